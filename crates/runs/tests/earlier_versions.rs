//! What an earlier version left behind goes on as it would have gone on there:
//! `fixtures/runs/first` is of commit 36d3e87, killed after step 2 of 4.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use common::{root, run};
use olora_runs::{Recipe, TrainedRun};
use safetensors::SafeTensors;
use serde_json::Value;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn values(path: &Path) -> Vec<(String, Vec<f32>)> {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| {
        let words = data.as_chunks::<4>().0.iter();
        words.map(|&word| f32::from_le_bytes(word)).collect()
    };
    let tensors = tensors.iter();
    let mut all: Vec<_> = tensors
        .map(|(name, view)| (name.to_owned(), values(view.data())))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn a_run_of_the_first_version_is_resumed_to_the_same_end() {
    let first = root().join("fixtures/runs/first");
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().join("old");
    copy(&first, &directory);
    // It was started at the root of the repository.
    let recipe = directory.join("recipe.toml");
    let text = fs::read_to_string(&recipe).unwrap();
    let here = format!("\"{}/recipes/", root().display());
    fs::write(&recipe, text.replace("\"recipes/", &here)).unwrap();
    // What it had come to is an adapter.
    let adapter = TrainedRun::at(&directory).unwrap().unwrap();
    let adapter = adapter.adapter().unwrap();
    assert!(!adapter.shapes().is_empty());
    assert!(
        adapter.notes.join("\n").contains("has not finished"),
        "{:?}",
        adapter.notes
    );
    let settings = [format!("output.directory=\"{}\"", out.path().display())];
    let recipe = Recipe::load(&recipe, &settings).unwrap();
    let summary = run(&recipe, true, None).0.unwrap();
    assert!(summary.finished);

    let (found, expected) = (
        lines(&directory.join("metrics.jsonl")),
        lines(&first.join("metrics.jsonl")),
    );
    assert_eq!(found.len(), expected.len());
    // Bit for bit on the same processor; others round their products elsewhere.
    let mut compared = 0;
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found["step"], expected["step"]);
        for key in ["loss", "grad_norm", "validation_loss", "learning_rate"] {
            let Some(expected) = expected[key].as_f64() else {
                continue;
            };
            let found = found[key].as_f64().unwrap();
            assert!(
                (found - expected).abs() <= 1e-4 * expected.abs(),
                "{key}: {found} {expected}"
            );
            compared += 1;
        }
    }
    assert_eq!(compared, 14);
    let ours = values(&directory.join("adapter/adapter_model.safetensors"));
    let theirs = values(&first.join("last.safetensors"));
    assert_eq!(ours.len(), theirs.len());
    for ((name, ours), (same, theirs)) in ours.iter().zip(&theirs) {
        assert_eq!(name, same);
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!((ours - theirs).abs() < 1e-4, "{name}: {ours} {theirs}");
        }
    }
}

/// Its checkpoints have no hashes; what a cut file cannot be read as is found.
#[test]
fn a_cut_checkpoint_of_the_first_version_is_refused_by_name() {
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().join("old");
    copy(&root().join("fixtures/runs/first"), &directory);
    let recipe = directory.join("recipe.toml");
    let text = fs::read_to_string(&recipe).unwrap();
    let here = format!("\"{}/recipes/", root().display());
    fs::write(&recipe, text.replace("\"recipes/", &here)).unwrap();
    let settings = [format!("output.directory=\"{}\"", out.path().display())];
    let recipe = Recipe::load(&recipe, &settings).unwrap();
    let file = directory.join("checkpoints/step-000002/optimizer.bpk");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let error = run(&recipe, true, None).0.unwrap_err().to_string();
    assert!(
        error.contains("step-000002") && error.contains("optimizer.bpk"),
        "{error}"
    );
}
