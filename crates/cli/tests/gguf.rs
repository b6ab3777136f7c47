//! A GGUF file in the place of a checkpoint's directory, for every command.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::fs;

use common::{olora, refused, stderr, stdout, train};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn a_gguf_file_stands_where_a_directory_does() {
    let out = TempDir::new().unwrap();
    assert!(train(&out, &[]).status.success());
    let run = out.path().join("quickstart");
    let merge = |name: &str, dtype: &str| {
        let path = out.path().join(name).display().to_string();
        let run = run.to_str().unwrap();
        let merge = [
            "merge",
            "--adapter",
            run,
            "--output",
            &path,
            "--dtype",
            dtype,
        ];
        (olora(&merge), path)
    };
    let (output, directory) = merge("merged", "float32");
    assert!(output.status.success(), "{}", stderr(&output));
    let (output, file) = merge("merged.gguf", "float32");
    assert!(output.status.success(), "{}", stderr(&output));
    let text = refused(&merge("merged.gguf", "float32").0, 1);
    assert!(text.contains("exists already"), "{text}");
    let text = refused(&merge("another", "q8_0").0, 2);
    assert!(text.contains(".gguf"), "{text}");

    let json = |arguments: &[&str]| -> Value {
        let output = olora(&[arguments, &["--json"]].concat());
        serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)))
    };
    let loss = |model: &str| {
        let data = "recipes/quickstart/valid.jsonl";
        json(&["evaluate", "--model", model, "--data", data])["loss"]
            .as_f64()
            .unwrap()
    };
    assert!((loss(&file) - loss(&directory)).abs() < 1e-5);
    let prompt = [
        "--prompt",
        "Where does Alder live?",
        "--max-new-tokens",
        "6",
    ];
    let text = |model| {
        stdout(&olora(
            &[&["generate", "--model", model][..], &prompt].concat(),
        ))
    };
    assert_eq!(text(&file), text(&directory));
    let facts = json(&["inspect", "model", &file]);
    assert_eq!(facts["tensor_types"]["F32"], 38);
    assert_eq!(facts["layers"], 4);

    // It trains, and what it was trained on is held against the file.
    let other = TempDir::new().unwrap();
    let path = format!("model.path=\"{file}\"");
    let output = train(&other, &[&path]);
    assert!(output.status.success(), "{}", stderr(&output));
    let resumed = || {
        let directory = format!("output.directory=\"{}\"", other.path().display());
        let recipe = ["train", "recipes/quickstart.toml", "--resume"];
        let settings = [&directory, &path, "training.epochs=0.02"];
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        let more = [
            "--set",
            "samples.max_new_tokens=4",
            "--set",
            "training.evaluate_every=0",
        ];
        let arguments: Vec<&str> = recipe.into_iter().chain(settings).chain(more).collect();
        refused(&olora(&arguments), 1)
    };
    assert!(resumed().contains("complete"), "{}", resumed());
    let mut bytes = fs::read(&file).unwrap();
    bytes[(1 << 20) + 1] ^= 1;
    fs::write(&file, bytes).unwrap();
    assert!(
        resumed().contains("not what the run was started on"),
        "{}",
        resumed()
    );
}
