//! `olora compare` and `olora report`, as a person uses them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, process::Output};

use common::{olora, refused, stderr, stdout};
use tempfile::TempDir;

/// The quickstart, four steps of it, with more arguments.
fn compare(arguments: &[&str]) -> Output {
    let mut all = vec!["compare", "recipes/quickstart.toml", "--seeds", "1"];
    for setting in [
        "training.max_steps=4",
        "training.evaluate_every=1",
        "training.warmup_steps=1",
    ] {
        all.extend(["--set", setting]);
    }
    all.extend(arguments);
    olora(&all)
}

#[test]
fn methods_are_compared_scored_and_reported_on_again() {
    let out = TempDir::new().unwrap();
    let directory = out.path().join("comparison");
    let directory = directory.to_str().unwrap();
    let question =
        r#"{"query": "Question: Who is Imke?", "choices": ["a hen", "a friend"], "gold": 1}"#;
    fs::write(out.path().join("arc_easy.jsonl"), question).unwrap();
    let data = out.path().to_str().unwrap();
    let arguments = [
        "--methods",
        "lora,olora",
        "--lrs",
        "3e-3",
        "--output",
        directory,
        "--tasks",
        "arc_easy",
        "--task-data",
        data,
    ];
    let output = compare(&arguments);
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    for expected in ["[1/4] lora-r8-lr3e-3-seed42", "scoring base", "report.md"] {
        assert!(text.contains(expected), "`{expected}` is not in\n{text}");
    }
    let report = stdout(&output);
    assert!(report.starts_with("# lora, olora\n"), "{report}");
    assert!(report.contains("arc_easy (acc_norm, n = 1)"), "{report}");

    // What is finished is not made again, and the report is made of what is there.
    let again = compare(&arguments);
    assert!(!stderr(&again).contains("[1/4]"), "{}", stderr(&again));
    fs::remove_dir_all(out.path().join("comparison/runs")).unwrap();
    let reported = olora(&["report", directory]);
    assert_eq!(stdout(&reported), report);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let out = TempDir::new().unwrap();
    let directory = out.path().join("comparison");
    let output = ["--output", directory.to_str().unwrap()];
    for (arguments, code, expected) in [
        (&["--methods", "qlora"][..], 2, "there is no method `qlora`"),
        (&["--methods", "olora", "--lrs", "-1"], 2, "learning_rate"),
        (
            &["--set", "training.evaluate_every=0"],
            2,
            "set `training.evaluate_every`",
        ),
        (&["--tasks", "arc_easy"], 2, "--task-data"),
    ] {
        let text = refused(&compare(&[arguments, &output[..]].concat()), code);
        assert!(text.contains(expected), "{arguments:?}: {text}");
        assert!(!directory.exists());
    }
    let text = refused(&olora(&["report", out.path().to_str().unwrap()]), 1);
    assert!(text.contains("no finished runs"), "{text}");
}
