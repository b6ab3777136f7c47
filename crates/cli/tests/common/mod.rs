//! The binary, run in the root of the repository.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use assert_cmd::Command;
use tempfile::TempDir;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

pub(crate) fn olora(arguments: &[&str]) -> Output {
    Command::cargo_bin("olora")
        .unwrap()
        .current_dir(root())
        // Nothing is asked of the hub.
        .env("HF_HUB_OFFLINE", "1")
        // Help is as wide as where nothing says how wide.
        .env_remove("COLUMNS")
        .args(arguments)
        .output()
        .unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// `olora train` on the quickstart, shortened, into `out`.
pub(crate) fn train(out: &TempDir, overrides: &[&str]) -> Output {
    let directory = format!("output.directory=\"{}\"", out.path().display());
    let mut arguments = vec!["train", "recipes/quickstart.toml", "--set", &directory];
    let short = [
        "training.epochs=0.02",
        "samples.max_new_tokens=4",
        "training.evaluate_every=0",
    ];
    for setting in short.iter().chain(overrides) {
        arguments.extend(["--set", setting]);
    }
    olora(&arguments)
}

/// Runs, expecting failure with this code, and returns what was said.
pub(crate) fn refused(output: &Output, code: i32) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(stdout(output), "", "an error has no result");
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// The quickstart's recipe to be written elsewhere: its paths are relative to where it lies.
pub(crate) fn moved(recipe: &str) -> String {
    let quickstart = root().join("recipes/quickstart");
    recipe.replace("\"quickstart/", &format!("\"{}/", quickstart.display()))
}
