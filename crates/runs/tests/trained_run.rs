//! A run and its checkpoints as adapters.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use common::{recipe, run};
use olora_adapter::{Method, PeftAdapter};
use olora_runs::{RunError, TrainedRun, recipe::AdapterSection};

const SHORT: [&str; 3] = [
    "training.max_steps=3",
    "training.checkpoint_every=1",
    "training.schedule=constant",
];

fn trained(path: &Path) -> TrainedRun {
    TrainedRun::at(path).unwrap().unwrap()
}

fn adapter(path: &Path) -> PeftAdapter {
    trained(path).adapter().unwrap()
}

/// As a run is that was killed after its last checkpoint.
fn without_its_result(run: &Path) {
    fs::remove_dir_all(run.join("adapter")).unwrap();
    fs::remove_file(run.join("summary.json")).unwrap();
}

#[test]
fn a_checkpoint_is_the_adapter_that_is_saved_from_it_bit_for_bit() {
    let out = tempfile::tempdir().unwrap();
    for (name, settings) in [
        ("anchored", &["adapter.method=olora"][..]),
        ("rslora", &["adapter.method=olora", "adapter.rslora=true"]),
        (
            "residual",
            &["adapter.method=pissa", "adapter.placement=residual"],
        ),
        ("dora", &["adapter.method=milora", "adapter.dora=true"]),
        ("eva", &["adapter.method=eva"]),
        ("gradient", &["adapter.method=olora-gradient"]),
        ("packed", &["model.quantize=q8_0"]),
        (
            "patterns",
            &[
                "adapter.method=lora",
                "adapter.targets=[\"q_proj\", \"embed_tokens\", \"down_proj\"]",
                "adapter.rank_pattern={ q_proj = 4 }",
                "adapter.alpha_pattern={ down_proj = 5.0 }",
            ],
        ),
        (
            "saved",
            &["adapter.method=olora", "adapter.modules_to_save=[\"norm\"]"],
        ),
    ] {
        let settings = [&SHORT[..], settings].concat();
        run(&recipe(out.path(), name, &settings), false, None)
            .0
            .unwrap();
        let directory = out.path().join(name);
        let saved = PeftAdapter::read(&directory.join("adapter")).unwrap();
        let of_checkpoint = adapter(&directory.join("checkpoints/step-000003"));
        assert_eq!(of_checkpoint.content(), saved.content(), "{name}");
        assert_eq!(of_checkpoint.shapes(), saved.shapes(), "{name}");
        assert_eq!(of_checkpoint.base, saved.base, "{name}");
        assert_eq!(of_checkpoint.base_packing, saved.base_packing, "{name}");
        assert_eq!(
            of_checkpoint.base_fingerprint, saved.base_fingerprint,
            "{name}"
        );
        assert_eq!(of_checkpoint.config.rank, saved.config.rank, "{name}");
        assert_eq!(of_checkpoint.config.alpha, saved.config.alpha, "{name}");
        let before = adapter(&directory.join("checkpoints/step-000002"));
        assert_ne!(before.content(), saved.content(), "{name}");
        assert!(before.notes.join("\n").contains("after step 2"), "{name}");
    }
}

#[test]
fn a_run_that_has_not_finished_is_its_newest_whole_checkpoint_which_is_said() {
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().join("run");
    let recipe = recipe(out.path(), "run", &SHORT);
    run(&recipe, false, None).0.unwrap();
    let finished = adapter(&directory);
    assert_eq!(finished.notes, Vec::<String>::new());
    without_its_result(&directory);
    let interrupted = adapter(&directory);
    assert_eq!(interrupted.content(), finished.content());
    let notes = interrupted.notes.join("\n");
    assert!(
        notes.contains("has not finished") && notes.contains("step-000003"),
        "{notes}"
    );

    let newest = directory.join("checkpoints/step-000003");
    let mut bytes = fs::read(newest.join("trained.bpk")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(newest.join("trained.bpk"), bytes).unwrap();
    let older = adapter(&directory);
    assert!(older.notes.join("\n").contains("step-000002"));
    assert!(older.warnings.join("\n").contains("trained.bpk is damaged"));
    let error = trained(&newest).adapter().unwrap_err().to_string();
    assert!(error.contains("trained.bpk is damaged"), "{error}");
}

#[test]
fn as_it_was_trained_an_adapter_has_its_own_rank_and_what_it_is_measured_from() {
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().join("run");
    run(&recipe(out.path(), "run", &SHORT), false, None)
        .0
        .unwrap();
    let saved = adapter(&directory);
    assert_eq!((saved.config.method, saved.config.rank), (Method::Lora, 16));
    let as_trained = trained(&directory).as_trained().unwrap();
    assert_eq!(
        (as_trained.config.method, as_trained.config.rank),
        (Method::Olora, 8)
    );
    assert_eq!(as_trained.widened().content(), saved.content());
    // Without its checkpoints, there is only what was saved.
    fs::remove_dir_all(directory.join("checkpoints")).unwrap();
    let left = trained(&directory).as_trained().unwrap();
    assert_eq!(left.content(), saved.content());
    assert!(
        left.notes
            .join("\n")
            .contains("as it was saved, `lora` of rank 16")
    );
}

#[test]
fn what_has_no_adapter_is_told_why() {
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().join("run");
    run(&recipe(out.path(), "run", &SHORT), false, None)
        .0
        .unwrap();
    let apart = out.path().join("apart");
    fs::rename(directory.join("checkpoints/step-000003"), &apart).unwrap();
    let error = TrainedRun::at(&apart).unwrap_err().to_string();
    assert!(error.contains("recipe.toml of its run"), "{error}");

    without_its_result(&directory);
    fs::remove_dir_all(directory.join("checkpoints")).unwrap();
    let error = trained(&directory).adapter().unwrap_err();
    assert!(matches!(error, RunError::NoAdapter { .. }), "{error}");
    assert!(error.to_string().contains("--resume"), "{error}");

    let mut everything = recipe(out.path(), "everything", &SHORT);
    everything.adapter = AdapterSection::everything();
    run(&everything, false, None).0.unwrap();
    for path in ["everything", "everything/checkpoints/step-000003"] {
        let error = trained(&out.path().join(path)).adapter().unwrap_err();
        let error = error.to_string();
        assert!(error.contains("trained every weight"), "{path}: {error}");
    }
    // What is no run is left to others.
    assert!(TrainedRun::at(&out.path().join("gone")).unwrap().is_none());
    assert!(TrainedRun::at(out.path()).unwrap().is_none());
}
