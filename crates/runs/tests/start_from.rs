//! A run that starts from an adapter.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{recipe, recipe_without, recorded, root, run};
use olora_adapter::{Method, PeftAdapter, PeftForm, WriteOptions};
use olora_runs::{Recipe, RunError, Summary, TrainedRun};

/// What the quickstart says of its adapter, without which all follows from the
/// one that a run starts from.
const KEYS: &str = "method = \"olora\"\nrank = 8\nalpha = 16\ntargets = [\"all-linear\"]\n";
const SHORT: [&str; 3] = [
    "training.max_steps=3",
    "training.checkpoint_every=1",
    "training.schedule=constant",
];

fn from(path: &Path) -> String {
    format!("adapter.from=\"{}\"", path.display())
}

/// A run of three steps, and where it is.
fn trained(out: &Path, name: &str, settings: &[&str]) -> (Summary, PathBuf) {
    let settings = [&SHORT[..], settings].concat();
    let summary = run(&recipe(out, name, &settings), false, None).0.unwrap();
    (summary, out.join(name))
}

/// The quickstart without a word on its adapter, starting from one.
fn starting(out: &Path, name: &str, start: &Path, settings: &[&str]) -> Recipe {
    let start = from(start);
    let settings = [&[start.as_str()][..], &SHORT, settings].concat();
    recipe_without(out, name, KEYS, &settings)
}

fn adapter(run: &Path) -> Vec<u8> {
    fs::read(run.join("adapter/adapter_model.safetensors")).unwrap()
}

fn error(result: Result<Summary, RunError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn the_first_loss_is_the_adapters_and_the_result_is_one_as_peft_has_it() {
    let out = tempfile::tempdir().unwrap();
    let (first, directory) = trained(out.path(), "first", &[]);
    let expected = first.validation_loss.unwrap();
    let native = {
        let settings = ["adapter.form=native"];
        trained(out.path(), "native", &settings).1.join("adapter")
    };
    let mlx = out.path().join("mlx");
    fs::create_dir(&mlx).unwrap();
    let plain = PeftAdapter::read(&directory.join("adapter")).unwrap();
    plain.write_mlx(&mlx, &WriteOptions::default()).unwrap();
    for (name, start, method, rank) in [
        ("of-run", directory.clone(), Method::Olora, 8),
        (
            "of-checkpoint",
            directory.join("checkpoints/step-000003"),
            Method::Olora,
            8,
        ),
        ("of-native", native, Method::Olora, 8),
        ("of-plain", directory.join("adapter"), Method::Lora, 16),
        ("of-mlx", mlx, Method::Lora, 16),
    ] {
        let recipe = starting(out.path(), name, &start, &[]);
        let (summary, recorder) = recorded(&recipe, false, None);
        let summary = summary.unwrap();
        let before = summary.validation_loss_before.unwrap();
        assert!(
            (before - expected).abs() < 2e-6,
            "{name}: {before} {expected}"
        );
        assert!(summary.validation_loss.unwrap() < before, "{name}");
        let notes = recorder.notes.lock().unwrap().join("\n");
        let said = format!("{} of rank {rank} on 28 layers", method.name());
        assert!(notes.contains(&said), "{name}: {notes}");

        let kept = Recipe::load(&out.path().join(name).join("recipe.toml"), &[]).unwrap();
        assert_eq!(kept.adapter.config.method, method, "{name}");
        assert_eq!(kept.adapter.config.rank, rank, "{name}");
        assert_eq!(
            kept.adapter.from.as_deref(),
            Some(start.as_path()),
            "{name}"
        );
        let saved = PeftAdapter::read(&out.path().join(name).join("adapter")).unwrap();
        assert_eq!(
            (saved.config.method, saved.config.rank),
            (Method::Lora, 16),
            "{name}"
        );
    }
}

#[test]
fn every_kind_of_adapter_is_gone_on_from() {
    let out = tempfile::tempdir().unwrap();
    for (name, settings) in [
        (
            "residual",
            &["adapter.method=pissa", "adapter.placement=residual"][..],
        ),
        ("dora", &["adapter.method=olora", "adapter.dora=true"]),
        ("eva", &["adapter.method=eva"]),
        ("gradient", &["adapter.method=olora-gradient"]),
        ("packed", &["model.quantize=q8_0"]),
        (
            "patterns",
            &[
                "adapter.method=lora",
                "adapter.rslora=true",
                "adapter.targets=[\"q_proj\", \"down_proj\"]",
                "adapter.rank_pattern={ q_proj = 4 }",
                "adapter.alpha_pattern={ down_proj = 5.0 }",
            ],
        ),
        (
            "saved",
            &["adapter.method=olora", "adapter.modules_to_save=[\"norm\"]"],
        ),
    ] {
        let (first, directory) = trained(out.path(), name, settings);
        let expected = first.validation_loss.unwrap();
        for (kind, start) in [
            ("run", directory.clone()),
            ("files", directory.join("adapter")),
        ] {
            let again = format!("{name}-{kind}");
            let summary = run(&starting(out.path(), &again, &start, &[]), false, None);
            let summary = summary.0.unwrap();
            let before = summary.validation_loss_before.unwrap();
            assert!(
                (before - expected).abs() < 5e-6,
                "{again}: {before} {expected}"
            );
            assert!(summary.validation_loss.unwrap() < before, "{again}");
        }
        // The same recipe again, from its own run, contradicts nothing.
        let start = from(&directory);
        let same = [&SHORT[..], settings, &[start.as_str()]].concat();
        let same = recipe(out.path(), &format!("{name}-same"), &same);
        run(&same, false, None).0.unwrap();
    }
}

#[test]
fn what_contradicts_the_adapter_is_refused_by_name_and_nothing_is_written() {
    let out = tempfile::tempdir().unwrap();
    let (_, directory) = trained(out.path(), "first", &[]);
    let start = from(&directory.join("adapter"));
    let others = [
        start.as_str(),
        "adapter.alpha=3.0",
        "adapter.dora=true",
        "adapter.targets=[\"q_proj\"]",
        "adapter.modules_to_save=[\"norm\"]",
    ];
    let said = error(run(&recipe(out.path(), "other", &others), false, None).0);
    for line in [
        "adapter.method is \"olora\" in the recipe, and \"lora\" in the adapter",
        "adapter.rank is 8 in the recipe, and 16 in the adapter",
        "adapter.alpha is 3.0 in the recipe, and 32.0 in the adapter",
        "adapter.dora is true in the recipe, and false in the adapter",
        "names 4 layers in the recipe, and the adapter has 28: only the adapter has",
        "adapter.modules_to_save is [\"norm\"]",
        "Leave these keys out",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }

    let base = out.path().join("base");
    fs::create_dir(&base).unwrap();
    for entry in fs::read_dir(root().join("recipes/quickstart/base")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
    }
    let weights = base.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    for at in (bytes.len() / 2..bytes.len()).step_by(100) {
        bytes[at] ^= 1;
    }
    fs::write(&weights, bytes).unwrap();
    let moved = format!("model.path=\"{}\"", base.display());
    for start in [directory.clone(), directory.join("adapter")] {
        let other = starting(out.path(), "other", &start, &[&moved]);
        let said = error(run(&other, false, None).0);
        assert!(
            said.contains("model.path is")
                && said.contains("not those that the adapter was trained on"),
            "{said}"
        );
    }
    let nothing = starting(out.path(), "other", &out.path().join("gone"), &[]);
    assert!(error(run(&nothing, false, None).0).contains("gone"));
    assert!(!out.path().join("other").exists());
}

#[test]
fn such_a_run_is_resumed_exactly_and_only_on_the_same_adapter() {
    let out = tempfile::tempdir().unwrap();
    let (_, directory) = trained(out.path(), "first", &[]);
    let dropout = ["adapter.dropout=0.1", "training.max_steps=4"];
    for (kind, start) in [
        ("run", directory.clone()),
        ("files", directory.join("adapter")),
    ] {
        let straight = starting(out.path(), &format!("{kind}-straight"), &start, &dropout);
        run(&straight, false, None).0.unwrap();
        let cut = starting(out.path(), &format!("{kind}-cut"), &start, &dropout);
        assert!(!run(&cut, false, Some(1)).0.unwrap().finished);
        // The adapter may have been moved.
        let elsewhere = out.path().join(format!("{kind}-elsewhere"));
        fs::rename(&start, &elsewhere).unwrap();
        let moved = starting(out.path(), &format!("{kind}-cut"), &elsewhere, &dropout);
        assert!(run(&moved, true, None).0.unwrap().finished);
        fs::rename(&elsewhere, &start).unwrap();
        assert!(
            adapter(&out.path().join(format!("{kind}-cut")))
                == adapter(&out.path().join(format!("{kind}-straight"))),
            "{kind}: adapters differ"
        );
    }
    let cut = starting(out.path(), "cut", &directory, &dropout);
    assert!(!run(&cut, false, Some(1)).0.unwrap().finished);
    let afresh = [&SHORT[..], &dropout].concat();
    let said = error(run(&recipe(out.path(), "cut", &afresh), true, None).0);
    assert!(
        said.contains("adapter.from: was \"") && said.contains("now not set"),
        "{said}"
    );
    let other = directory.join("checkpoints/step-000002");
    let other = starting(out.path(), "cut", &other, &dropout);
    let said = error(run(&other, true, None).0);
    assert!(
        said.contains("or the adapter in") && said.contains("not what the run was started on"),
        "{said}"
    );
}

#[test]
fn native_forms_are_kept_where_the_adapter_has_them() {
    let out = tempfile::tempdir().unwrap();
    let (first, directory) = trained(out.path(), "first", &["adapter.form=native"]);
    let again = starting(out.path(), "again", &directory, &["adapter.form=native"]);
    let second = run(&again, false, None).0.unwrap();
    assert_eq!(second.validation_loss_before, first.validation_loss);
    let saved = PeftAdapter::read(&out.path().join("again/adapter")).unwrap();
    assert_eq!((saved.config.method, saved.config.rank), (Method::Olora, 8));
    assert_eq!(again.adapter.form, PeftForm::Native);
    assert!(TrainedRun::at(&out.path().join("again")).unwrap().is_some());
}
