//! Text that people see, as a whole: a change of it is seen in review.
//!
//! After a change that is meant: `INSTA_UPDATE=always cargo test --release
//! --workspace --test snapshots`, and look at the difference.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]
#![cfg(feature = "web")]

mod common;

use common::{olora, stderr, stdout};
use insta::{assert_snapshot, with_settings};
use tempfile::TempDir;

const BASE: &str = "recipes/quickstart/base";

/// What a command prints, on both streams.
fn said(line: &str) -> String {
    let mut words: Vec<_> = line.split(' ').filter(|word| !word.is_empty()).collect();
    // The repository may hold a run of the quickstart, in the place that its recipe names.
    let elsewhere = TempDir::new().unwrap();
    let elsewhere = format!("output.directory={}", elsewhere.path().display());
    if line.starts_with("train recipes/") {
        words.extend(["--set", &elsewhere]);
    }
    let output = olora(&words);
    let (out, err) = (stdout(&output), stderr(&output));
    let streams = [(out, ""), (err, "! ")].map(|(text, mark)| {
        let text = text.replace(&format!(" --set {elsewhere}"), "");
        let lines = text.lines().map(|line| format!("{mark}{line}\n"));
        lines.collect::<String>()
    });
    let code = output.status.code().unwrap();
    format!("$ olora {line}\n{}[{code}]\n", streams.concat())
}

#[test]
fn help() {
    let commands = [
        "",
        "init",
        "train",
        "compare",
        "report",
        "board",
        "plan",
        "evaluate",
        "generate",
        "serve",
        "merge",
        "convert",
        "push",
        "inspect",
        "devices",
        "doctor",
        "schema",
        "completions",
        "man",
    ];
    for command in commands {
        let line = format!("{command} --help");
        // What a build with a GPU's backend shows beside is no part of it.
        with_settings!({filters => vec![(r"(?s)\nKernels, on a GPU:.*?\n\n", "\n")]}, {
            assert_snapshot!(format!("help-{command}"), said(line.trim()));
        });
    }
}

#[test]
fn errors() {
    let lines = [
        "fly",
        "train",
        "train --model recipes/quickstart/base",
        "train nowhere.toml",
        "train recipes/quickstart.toml --rnk 8",
        "train recipes/quickstart.toml --set training.learnig_rate=1",
        "train recipes/quickstart.toml --set learning_rate=1",
        "train recipes/quickstart.toml --set adapter.lora_alpha=1",
        "train recipes/quickstart.toml --set adapter.method=qlora",
        "train recipes/quickstart.toml --set training.batch_size=0",
        "train recipes/quickstart.toml --set adapter.rho=2",
        "train recipes/quickstart.toml --set adapter.targets=[\"query\"]",
        "train recipes/quickstart.toml --set data.train=nowhere.jsonl",
        "train recipes/quickstart.toml --set model.path=no/such/model",
        "train recipes/quickstart.toml --device tpu",
        "train recipes/quickstart.toml --tui",
        "compare recipes/quickstart.toml --methods qlora",
        "evaluate --model recipes/quickstart/base",
        "generate --adapter fixtures/peft/llama-lora --prompt x --top-k 5",
        "merge --adapter recipes/quickstart/base --output merged",
        "inspect data recipes/quickstart/train.jsonl",
        "inspect adapter recipes",
        "report nowhere",
        "init --model recipes/quickstart/base",
        "init new.toml --model recipes/quickstart/base --data recipes/quickstart/train.jsonl --memory 1MB",
    ];
    let text: Vec<_> = lines.iter().map(|line| said(line)).collect();
    with_settings!({filters => vec![
        (r"cpu \(.*\)", "cpu (PROCESSOR)"),
        (r"take \d+(\.\d+)? [kM]B", "take [SIZE]"),
    ]}, {
        assert_snapshot!("errors", text.join("\n"));
    });
}

#[test]
fn plan() {
    let filters = vec![
        (r"cpu \(.*\)", "cpu (PROCESSOR)"),
        // The program's own is of this moment, and others follow from the number of threads.
        (r"\d+(\.\d+)? [kMG]?B\b", "[SIZE]"),
    ];
    with_settings!({filters => filters}, {
        assert_snapshot!("plan", said("plan recipes/quickstart.toml --no-probe"));
    });
}

#[test]
fn inspect() {
    let lines = [
        format!("inspect model {BASE}"),
        "inspect adapter fixtures/peft/llama-lora".to_owned(),
        format!("inspect data recipes/quickstart/train.jsonl --model {BASE}"),
        format!("inspect data recipes/quickstart/pairs-train.jsonl --model {BASE}"),
    ];
    let text: Vec<_> = lines.iter().map(|line| said(line)).collect();
    assert_snapshot!("inspect", text.join("\n"));
}
