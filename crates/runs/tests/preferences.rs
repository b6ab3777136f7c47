//! Runs that learn from judged answers: what they measure and leave behind, going
//! on, and what they are compared with.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path, sync::Arc};

use burn::tensor::Device;
use common::{Recorder, recipe, root, run};
use olora_devices::Details;
use olora_runs::{Observer, Recipe, Summary, plan};
use serde_json::Value;

/// The quickstart's pairs, a few steps of them.
fn pairs(out: &Path, name: &str, settings: &[&str]) -> Recipe {
    let data = root().join("recipes/quickstart");
    let of = |key: &str, file: &str| format!("data.{key}=\"{}\"", data.join(file).display());
    let (train, valid) = (
        of("train", "pairs-train.jsonl"),
        of("validation", "pairs-valid.jsonl#12"),
    );
    let all = [
        &[
            train.as_str(),
            &valid,
            "objective.method=dpo",
            "training.max_steps=4",
            "training.batch_size=4",
            "training.checkpoint_every=2",
            "training.schedule=constant",
        ],
        settings,
    ];
    recipe(out, name, &all.concat())
}

fn trained(recipe: &Recipe) -> Summary {
    run(recipe, false, None).0.unwrap()
}

fn adapter(out: &Path, name: &str) -> Vec<u8> {
    fs::read(out.join(name).join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn every_method_raises_the_margin_on_held_out_answers() {
    let out = tempfile::tempdir().unwrap();
    for method in ["dpo", "orpo", "simpo", "kto"] {
        let method_is = format!("objective.method={method}");
        let summary = trained(&pairs(out.path(), method, &[&method_is]));
        let margin =
            |measures: &std::collections::BTreeMap<String, f64>| measures["rewards/margins"];
        let (before, after) = (
            margin(&summary.validation_measures_before),
            margin(&summary.validation_measures),
        );
        assert!(after > before, "{method}: {before} {after}");
        if ["dpo", "kto"].contains(&method) {
            assert_eq!(before, 0.0, "{method} compares with the base");
        }
        assert_eq!(summary.objective.as_deref(), Some(method));
    }
}

#[test]
fn what_is_measured_is_in_metrics_pictures_summary_and_card() {
    let out = tempfile::tempdir().unwrap();
    let settings = [
        "objective.beta=0.2",
        "objective.loss=robust",
        "objective.label_smoothing=0.1",
    ];
    let summary = trained(&pairs(out.path(), "run", &settings));
    let directory = out.path().join("run");
    let text = fs::read_to_string(directory.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let step = lines.iter().find(|line| line["step"] == 3).unwrap();
    for key in [
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "nll_loss",
    ] {
        assert!(step["measures"][key].is_f64(), "{key} in {step}");
    }
    assert!(!text.contains('#'), "divisors are not told");
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["validation_count"], &last["validation_perplexity"]),
        (&12.into(), &Value::Null)
    );
    // JSON's decimals are read back to the last digit but one.
    let told = last["validation_measures"]["rewards/margins"].as_f64();
    let known = summary.validation_measures["rewards/margins"];
    assert!((told.unwrap() - known).abs() < 1e-12 * known.abs());
    for name in ["loss", "rewards", "accuracy"] {
        let file = |end: &str| fs::read(directory.join(name).with_extension(end)).unwrap();
        assert!(file("svg").starts_with(b"<svg"), "{name}");
        assert!(file("png").starts_with(b"\x89PNG"), "{name}");
        assert!(file("csv").starts_with(b"step,"), "{name}");
    }
    let card = fs::read_to_string(directory.join("adapter/README.md")).unwrap();
    for part in [
        "tags: [\"lora\",\"olora\",\"dpo\"]",
        "| objective | dpo, loss robust, beta 0.2, label_smoothing 0.1 |",
        "| steps | 4 of 4 pairs,",
        "| on validation data, before | margin 0.000, accuracy 0.000",
        "| on validation data, after | margin ",
    ] {
        assert!(card.contains(part), "{part} in {card}");
    }
    // A recipe that says nothing of an objective has none written out.
    let plain = recipe(out.path(), "plain", &[]).to_toml().unwrap();
    assert!(!plain.contains("objective"), "{plain}");
}

/// The reference is where the run started, not where it goes on.
#[test]
fn a_run_that_is_cut_in_two_is_the_run_in_one() {
    let out = tempfile::tempdir().unwrap();
    trained(&pairs(out.path(), "start", &["training.max_steps=2"]));
    let from = format!("adapter.from=\"{}\"", out.path().join("start").display());
    for (name, more) in [("base", None), ("adapter", Some(from.as_str()))] {
        for method in ["objective.method=dpo", "objective.method=kto"] {
            let settings: Vec<&str> = more.into_iter().chain([method]).collect();
            let name = format!("{name}-{}", method.rsplit('=').next().unwrap());
            trained(&pairs(out.path(), &name, &settings));
            let cut = format!("{name}-cut");
            let recipe = pairs(out.path(), &cut, &settings);
            let (summary, _) = run(&recipe, false, Some(2));
            assert!(!summary.unwrap().finished);
            run(&recipe, true, None).0.unwrap();
            assert!(
                adapter(out.path(), &name) == adapter(out.path(), &cut),
                "{name}"
            );
        }
    }
}

#[test]
fn from_an_adapter_that_adapter_is_the_reference_and_counted_in_memory() {
    let out = tempfile::tempdir().unwrap();
    trained(&pairs(out.path(), "first", &["training.max_steps=2"]));
    let from = format!("adapter.from=\"{}\"", out.path().join("first").display());
    let recipe = pairs(out.path(), "second", &[&from]);
    let summary = trained(&recipe);
    for key in ["rewards/chosen", "rewards/rejected", "rewards/margins"] {
        assert_eq!(summary.validation_measures_before[key], 0.0, "{key}");
    }
    assert!(summary.validation_measures["rewards/margins"] > 0.0);
    // Against the base it would have begun with what the first run learnt.
    let expected = |recipe: &Recipe| {
        let observer: Arc<dyn Observer> = Arc::new(Recorder::default());
        let forecast = plan(
            recipe,
            &Device::flex(),
            &Details::default(),
            false,
            &observer,
        )
        .unwrap();
        (forecast.memory.trained, forecast.n_trained_params as u64)
    };
    let (kept, n) = expected(&recipe);
    let (plain, _) = expected(&pairs(out.path(), "third", &[]));
    assert_eq!(kept - plain, 4 * n);
}

/// What trains whole is no longer there when the adapter is switched off: it is
/// kept as it was.
#[test]
fn modules_that_train_whole_are_compared_with_what_they_were() {
    let out = tempfile::tempdir().unwrap();
    let settings = ["adapter.modules_to_save=[\"norm\"]"];
    let summary = trained(&pairs(out.path(), "run", &settings));
    assert_eq!(summary.validation_measures_before["rewards/margins"], 0.0);
    assert!(summary.validation_measures["rewards/margins"] > 0.0);
}

#[test]
fn pairs_are_packed_whole_with_the_losses_of_rows_of_their_own() {
    let out = tempfile::tempdir().unwrap();
    let losses = |name: &str, settings: &[&str]| {
        let recipe = pairs(out.path(), name, settings);
        run(&recipe, false, None).1
    };
    let blocks = losses("blocks", &["training.recompute=blocks"]);
    assert_eq!(losses("plain", &[]), blocks);
    // Rows have room for two answers of the longest: all of a few pairs are one batch.
    let few = format!(
        "data.train=\"{}#4\"",
        root()
            .join("recipes/quickstart/pairs-train.jsonl")
            .display()
    );
    let whole = losses("few", &[&few]);
    let packed = losses("few-packed", &[&few, "data.packing=true"]);
    for ((_, whole), (_, packed)) in whole.iter().zip(&packed) {
        assert!((whole - packed).abs() < 1e-4, "{whole} {packed}");
    }
}

#[test]
fn data_of_another_kind_is_refused_by_what_the_objective_needs() {
    let out = tempfile::tempdir().unwrap();
    let supervised = recipe(out.path(), "run", &["objective.method=dpo"]);
    let error = run(&supervised, false, None).0.unwrap_err().to_string();
    assert!(
        error.contains("not those of answers that were judged"),
        "{error}"
    );
    let pairs = pairs(out.path(), "run", &["objective.method=cross-entropy"]);
    let error = run(&pairs, false, None).0.unwrap_err().to_string();
    assert!(error.contains("it is preference data"), "{error}");
    assert!(!out.path().join("run").exists());
}
