//! Every input of the corpus, every finding of the past, and new inputs from a
//! seed, in a second or two for each target.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_olora-fuzz"))
}

#[test]
fn nothing_is_found_in_the_corpus_nor_near_it() {
    let listed = program().arg("list").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for name in listed.lines() {
        // A target without a corpus would try nothing.
        let mut corpus = fuzz().join("corpus").join(name).read_dir().unwrap();
        assert!(corpus.next().is_some(), "{name}");
    }
    let out = program()
        .args([
            "--seconds",
            "2",
            "--count",
            "1000",
            "--skip-open",
            "--place",
        ])
        .arg(fuzz())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}{errors}");
}
