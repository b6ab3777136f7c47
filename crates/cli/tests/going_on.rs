//! Going on: from a run, from its checkpoints, from an adapter.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use common::{olora, refused, root, stderr, stdout, train};
use serde_json::Value;
use tempfile::TempDir;

const VALID: &str = "recipes/quickstart/valid.jsonl";

/// The loss that `evaluate` gives an adapter, and what is said.
fn loss(adapter: &Path) -> (f64, String) {
    let adapter = adapter.to_str().unwrap();
    let output = olora(&["evaluate", "--adapter", adapter, "--data", VALID, "--json"]);
    let json: Value =
        serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    (json["loss"].as_f64().unwrap(), stderr(&output))
}

fn done(arguments: &[&str]) -> String {
    let output = olora(arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    stderr(&output)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Everything that takes an adapter takes a checkpoint of a run too, and a run
/// that was stopped.
#[test]
fn a_checkpoint_and_an_interrupted_run_are_adapters() {
    let out = TempDir::new().unwrap();
    let settings = ["training.checkpoint_every=1", "training.schedule=constant"];
    let output = train(&out, &settings);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = out.path().join("quickstart");
    let (finished, said) = loss(&run);
    assert!(!said.contains("not finished"), "{said}");
    let checkpoint = run.join("checkpoints/step-000002");
    assert_eq!(loss(&checkpoint).0, finished);
    assert_ne!(loss(&run.join("checkpoints/step-000001")).0, finished);

    fs::remove_dir_all(run.join("adapter")).unwrap();
    fs::remove_file(run.join("summary.json")).unwrap();
    let (interrupted, said) = loss(&run);
    assert_eq!(interrupted, finished);
    assert!(
        said.contains("has not finished") && said.contains("step-000002"),
        "{said}"
    );
    for (adapter, name) in [(&run, "run"), (&checkpoint, "checkpoint")] {
        let adapter = text(adapter);
        let to = |end: &str| out.path().join(format!("{name}{end}"));
        let (gguf, plain, merged) = (to(".gguf"), to("-plain"), to("-merged"));
        done(&["convert", adapter, "--output", text(&gguf)]);
        done(&["convert", adapter, "--output", text(&plain)]);
        done(&["merge", "--adapter", adapter, "--output", text(&merged)]);
        done(&["inspect", "adapter", adapter]);
        let prompt = [
            "--prompt",
            "Where does Alder live?",
            "--max-new-tokens",
            "2",
        ];
        done(&[&["generate", "--adapter", adapter][..], &prompt].concat());
        assert_eq!(loss(&plain).0, finished, "{name}");
    }
    let output = olora(&["evaluate", "--model", text(&run), "--data", VALID]);
    let said = refused(&output, 1);
    assert!(said.contains("directory of a run"), "{said}");
}

#[test]
fn training_from_an_adapter_starts_at_its_loss() {
    let out = TempDir::new().unwrap();
    let output = train(&out, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = out.path().join("quickstart");
    let directory = format!("output.directory=\"{}\"", out.path().display());
    let recipe = out.path().join("recipe.toml");
    let whole = fs::read_to_string(root().join("recipes/quickstart.toml")).unwrap();
    let whole = common::moved(&whole);
    let (before, rest) = whole.split_once("[adapter]").unwrap();
    let (_, after) = rest.split_once("[data]").unwrap();
    fs::write(&recipe, format!("{before}[data]{after}")).unwrap();
    let from = |name: &str, recipe: &str, adapter: &Path| {
        let name = format!("name={name}");
        let mut arguments = vec!["train", recipe, "--from", text(adapter)];
        for setting in [
            directory.as_str(),
            &name,
            "training.max_steps=2",
            "samples.prompts=[]",
        ] {
            arguments.extend(["--set", setting]);
        }
        olora(&arguments)
    };
    for (name, adapter) in [("of-files", run.join("adapter")), ("of-run", run.clone())] {
        let output = from(name, text(&recipe), &adapter);
        assert!(output.status.success(), "{}", stderr(&output));
        let new = out.path().join(name);
        let summary = fs::read(new.join("summary.json")).unwrap();
        let summary: Value = serde_json::from_slice(&summary).unwrap();
        let first = summary["validation_loss_before"].as_f64().unwrap();
        let expected = loss(&adapter).0;
        assert!(
            (first - expected).abs() < 1e-5,
            "{name}: {first} {expected}"
        );
        let ended = summary["validation_loss"].as_f64().unwrap();
        assert!((loss(&new).0 - ended).abs() < 1e-5, "{name}");
        assert!(ended < first, "{name}");
    }
    // As a plan, of twice the rank that the run has trained.
    let plan = |adapter: &Path| {
        let arguments = ["plan", text(&recipe), "--from", text(adapter), "--json"];
        let output = olora(&[&arguments[..], &["--set", "training.max_steps=2"]].concat());
        let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert!(json["probe"]["seconds_per_input"].is_f64(), "{json}");
        json["n_trained_params"].as_u64().unwrap()
    };
    assert_eq!(plan(&run.join("adapter")), 2 * plan(&run));
    // The quickstart says what it trains, which is not what was saved.
    let quickstart = "recipes/quickstart.toml";
    let said = refused(&from("other", quickstart, &run.join("adapter")), 2);
    assert!(
        said.contains("adapter.rank is 8 in the recipe, and 16 in the adapter"),
        "{said}"
    );
    let base = root().join("recipes/quickstart/base");
    let said = refused(&from("other", quickstart, &base), 1);
    assert!(said.contains("is a model, not an adapter"), "{said}");
    assert!(!out.path().join("other").exists());
}

#[test]
fn what_rounding_costs_is_measured_on_the_runs_own_validation_data() {
    let out = TempDir::new().unwrap();
    let output = train(&out, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = out.path().join("quickstart");
    let merge = |name: &str, adapter: &Path, more: &[&str]| {
        let output = out.path().join(name);
        let arguments = [
            "merge",
            "--adapter",
            text(adapter),
            "--output",
            text(&output),
        ];
        done(&[&arguments[..], more].concat())
    };
    let said = merge("half", &run, &["--dtype", "bfloat16"]);
    assert!(
        said.contains("tokens of its run's validation data: ")
            && said.contains("merged and rounded to bfloat16"),
        "{said}"
    );
    for (name, more) in [
        ("exact", &["--dtype", "float32"][..]),
        ("quiet", &["--dtype", "bfloat16", "--no-measure"]),
    ] {
        let said = merge(name, &run, more);
        assert!(
            !said.contains("loss") && !said.contains("measured"),
            "{said}"
        );
    }
    let said = merge("files", &run.join("adapter"), &["--dtype", "float16"]);
    assert!(
        said.contains("not measured (the adapter is no run") && said.contains("--data"),
        "{said}"
    );
    // The data may be gone.
    let recipe = run.join("recipe.toml");
    let kept = fs::read_to_string(&recipe).unwrap();
    fs::write(&recipe, kept.replace("valid.jsonl", "gone.jsonl")).unwrap();
    let said = merge("gone", &run, &["--dtype", "float16"]);
    assert!(
        said.contains("not measured (the validation data of the adapter's run")
            && said.contains("gone.jsonl"),
        "{said}"
    );
}
