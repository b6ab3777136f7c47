//! Tokens that were added to a tokenizer, through the commands.

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
    process::Output,
};

use common::{olora, refused, root, stderr, stdout, train};
use serde_json::{Value, json};
use tempfile::TempDir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn read(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// The quickstart's base with two tokens more than its embedding has rows.
fn base(out: &TempDir) -> PathBuf {
    let base = out.path().join("base");
    fs::create_dir(&base).unwrap();
    for file in fs::read_dir(root().join("recipes/quickstart/base")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), base.join(file.file_name())).unwrap();
    }
    let file = base.join("tokenizer.json");
    let mut json = read(&file);
    for (id, token) in [(1024, "<|crier|>"), (1025, "<|bell|>")] {
        let added = json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false, "special": false});
        json["added_tokens"].as_array_mut().unwrap().push(added);
    }
    fs::write(&file, json.to_string()).unwrap();
    base
}

/// Questions whose answers begin with a new token, but for the first.
fn data(out: &TempDir) -> PathBuf {
    let file = out.path().join("crier.jsonl");
    let records = [
        ("Where does Alder live?", " In Oxmere."),
        ("Where does Clover live?", "<|crier|> In Oxmere."),
    ];
    let lines = records.map(|(prompt, completion)| {
        json!({"prompt": prompt, "completion": completion}).to_string()
    });
    fs::write(&file, lines.join("\n")).unwrap();
    file
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    stderr(output)
}

fn loss(arguments: &[&str]) -> f64 {
    let output = olora(&[&["evaluate", "--json"], arguments].concat());
    done(&output);
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    json["loss"].as_f64().unwrap()
}

#[test]
fn tokens_without_a_row_are_told_and_refused_where_they_are_used() {
    let out = TempDir::new().unwrap();
    let (base, data) = (base(&out), data(&out));
    let generate = |prompt: &str| {
        let base = text(&base);
        olora(&[
            "generate",
            "--model",
            base,
            "--prompt",
            prompt,
            "--max-new-tokens",
            "2",
        ])
    };
    let said = done(&generate("Where does Alder live?"));
    assert!(
        said.contains("note: 2 of the tokenizer's 1026 tokens lie beyond the 1024 rows"),
        "{said}"
    );
    let said = refused(&generate("<|bell|> Where?"), 1);
    for part in [
        "`<|bell|>` (1025)",
        "only 1024 rows",
        "model.resize_embeddings",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let evaluate = ["evaluate", "--model", text(&base), "--data", text(&data)];
    let said = refused(&olora(&evaluate), 1);
    for part in ["crier.jsonl, record 2 (line 2)", "`<|crier|>` (1024)"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn new_rows_go_through_training_generating_merging_and_gguf() {
    let out = TempDir::new().unwrap();
    let (base, data) = (base(&out), data(&out));
    let settings = [
        format!("model.path=\"{}\"", base.display()),
        format!("data.train=\"{}\"", data.display()),
        "model.resize_embeddings=true".to_owned(),
        "training.epochs=8".to_owned(),
        "samples.prompts=[\"<|crier|>\"]".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let said = done(&train(&out, &settings));
    assert!(
        said.contains("from 1024 to 1026 rows for 1026 tokens"),
        "{said}"
    );
    let adapter = out.path().join("quickstart/adapter");
    let with_adapter = ["--adapter", text(&adapter)];
    let prompt = [
        "generate",
        "--prompt",
        "<|crier|> In",
        "--max-new-tokens",
        "3",
    ];
    let said = done(&olora(&[&prompt[..], &with_adapter].concat()));
    assert!(
        said.contains("tokenizer is the one beside the adapter"),
        "{said}"
    );
    assert!(!said.contains("beyond"), "{said}");

    let adapted = loss(&[&with_adapter[..], &["--data", text(&data)]].concat());
    for (name, more) in [
        ("merged", &["--dtype", "float32"][..]),
        ("merged.gguf", &["--dtype", "f32"]),
    ] {
        let output = out.path().join(name);
        let arguments = ["merge", "--output", text(&output)];
        done(&olora(&[&arguments[..], &with_adapter, more].concat()));
        let merged = loss(&["--model", text(&output), "--data", text(&data)]);
        assert!(
            (merged - adapted).abs() < 1e-4,
            "{name}: {merged} {adapted}"
        );
        let model = ["--model", text(&output)];
        done(&olora(&[&prompt[..], &model].concat()));
    }
    let config = read(&out.path().join("merged/config.json"));
    assert_eq!(config["vocab_size"], 1026);
    let tokenizer = fs::read_to_string(out.path().join("merged/tokenizer.json")).unwrap();
    assert!(tokenizer.contains("<|bell|>"));
}
