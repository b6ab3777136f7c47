//! Runs on a base that stays packed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use common::{recipe, recorded, run};
use olora_adapter::PeftAdapter;
use olora_runs::Recipe;

fn adapter(out: &Path, name: &str) -> Vec<u8> {
    fs::read(out.join(name).join("adapter/adapter_model.safetensors")).unwrap()
}

/// Four steps on the base in 8 bits.
fn packed(out: &Path, name: &str, settings: &[&str]) -> Recipe {
    let all = [
        "training.max_steps=4",
        "training.checkpoint_every=2",
        "model.quantize=q8_0",
    ];
    recipe(out, name, &[&all[..], settings].concat())
}

#[test]
fn it_resumes_exactly_and_the_adapter_says_what_it_was_trained_on() {
    let out = tempfile::tempdir().unwrap();
    let settings = ["adapter.dropout=0.1"];
    let (_, losses) = run(&packed(out.path(), "straight", &settings), false, None);
    let cut = packed(out.path(), "cut", &settings);
    let (summary, first) = run(&cut, false, Some(1));
    assert!(!summary.unwrap().finished);
    let (summary, second) = run(&cut, true, None);
    assert!(summary.unwrap().finished);
    assert_eq!([first, second].concat(), losses);
    assert!(
        adapter(out.path(), "cut") == adapter(out.path(), "straight"),
        "adapters differ"
    );
    let read = PeftAdapter::read(&out.path().join("cut/adapter")).unwrap();
    assert_eq!(read.base_packing.as_deref(), Some("q8_0"));
}

/// A checkpoint holds what trains, and nothing of the packed base.
#[test]
fn its_checkpoints_are_as_large_as_those_on_a_dense_base() {
    let out = tempfile::tempdir().unwrap();
    run(&packed(out.path(), "packed", &[]), false, None)
        .0
        .unwrap();
    let dense = packed(out.path(), "dense", &["model.quantize=stored"]);
    run(&dense, false, None).0.unwrap();
    let size = |name: &str| {
        let path = format!("{name}/checkpoints/step-000004/trained.bpk");
        fs::metadata(out.path().join(path)).unwrap().len()
    };
    assert_eq!(size("packed"), size("dense"));
}

#[test]
fn every_start_is_the_packed_base_at_step_zero() {
    let out = tempfile::tempdir().unwrap();
    let before = |method: &str| {
        let method = format!("adapter.method={method}");
        let recipe = packed(out.path(), &method.replace('=', "-"), &[&method]);
        run(&recipe, false, None).0.unwrap().validation_loss_before
    };
    let lora = before("lora");
    assert!(lora.is_some());
    for method in [
        "olora",
        "pissa",
        "milora",
        "olora-tail",
        "eva",
        "olora-gradient",
        "lora-gradient",
    ] {
        assert_eq!(before(method), lora, "{method}");
    }
}

#[test]
fn blocks_run_again_on_packed_weights_give_the_same_adapter() {
    let out = tempfile::tempdir().unwrap();
    for (name, settings) in [
        ("kept", &["adapter.dora=true"][..]),
        ("again", &["adapter.dora=true", "training.recompute=blocks"]),
    ] {
        run(&packed(out.path(), name, settings), false, None)
            .0
            .unwrap();
    }
    assert!(
        adapter(out.path(), "kept") == adapter(out.path(), "again"),
        "adapters differ"
    );
}

#[test]
fn what_cannot_be_packed_is_refused_or_told() {
    let out = tempfile::tempdir().unwrap();
    let parsed = |settings: &[&str]| {
        let text = fs::read_to_string(common::root().join("recipes/quickstart.toml")).unwrap();
        let settings: Vec<String> = settings.iter().map(|one| (*one).to_owned()).collect();
        Recipe::parse(&text, "quickstart.toml", &settings)
            .unwrap_err()
            .to_string()
    };
    for (settings, named) in [
        (
            &["model.quantize=q8_0", "adapter.placement=residual"][..],
            "anchored",
        ),
        (
            &["model.quantize=q8_0", "model.weights=timing"],
            "model.weights",
        ),
        (&["model.quantize=int4"], "q4_k"),
    ] {
        let said = parsed(settings);
        assert!(said.contains(named), "{settings:?}: {said}");
    }
    // Blocks of 256 divide no row of this model.
    let none = packed(out.path(), "none", &["model.quantize=q4_k"]);
    let said = run(&none, false, None).0.unwrap_err().to_string();
    assert!(said.contains("q4_k") && said.contains("q8_0"), "{said}");
    assert!(!out.path().join("none").exists());
    let (result, recorder) = recorded(&packed(out.path(), "all", &[]), false, None);
    result.unwrap();
    let notes = recorder.notes.lock().unwrap();
    assert!(
        !notes.iter().any(|note| note.contains("dense")),
        "{notes:?}"
    );
}
