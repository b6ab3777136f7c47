//! The binary, run in the root of the repository.

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use assert_cmd::Command;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

pub fn olora(arguments: &[&str]) -> Output {
    Command::cargo_bin("olora")
        .unwrap()
        .current_dir(root())
        // Nothing is asked of the hub.
        .env("HF_HUB_OFFLINE", "1")
        .args(arguments)
        .output()
        .unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
