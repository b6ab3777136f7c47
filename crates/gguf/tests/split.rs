//! A model that is split over several files (`fixtures/make_split.py`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use common::fixture;
use olora_gguf::GgufFile;
use tempfile::TempDir;

fn part(number: usize) -> String {
    format!("qwen2-{number:05}-of-{:05}.gguf", parts())
}

fn parts() -> usize {
    fs::read_dir(fixture("gguf-split")).unwrap().count()
}

/// The files of the fixture by other names; those without one are left out.
fn copied(name: impl Fn(usize) -> Option<String>) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    for number in 1..=parts() {
        if let Some(name) = name(number) {
            let from = fixture("gguf-split").join(part(number));
            fs::copy(from, out.path().join(name)).unwrap();
        }
    }
    out
}

fn refused(path: &Path) -> String {
    GgufFile::open(path).unwrap_err().to_string()
}

#[test]
fn every_part_stands_for_the_whole_model() {
    assert!(parts() > 2);
    let whole = GgufFile::open(&fixture("gguf/qwen2.gguf")).unwrap();
    for number in 1..=parts() {
        let split = GgufFile::open(&fixture("gguf-split").join(part(number))).unwrap();
        assert_eq!(split.files().count(), parts());
        assert_eq!(split.config(), whole.config());
        assert!(split.names().eq(whole.names()));
        for name in whole.names() {
            assert_eq!(
                split.read(name).unwrap(),
                whole.read(name).unwrap(),
                "{name}"
            );
        }
        assert_eq!(split.tokenizer().is_ok(), whole.tokenizer().is_ok());
    }
}

#[test]
fn a_lost_part_is_named() {
    for lost in 1..=parts() {
        let some = copied(|number| (number != lost).then(|| part(number)));
        let given = if lost == 1 { 2 } else { 1 };
        let message = refused(&some.path().join(part(given)));
        assert!(
            message.contains(&part(lost)) && message.contains("not beside it"),
            "{message}"
        );
    }
}

#[test]
fn a_part_under_another_name_is_told() {
    let other = copied(|number| {
        Some(if number == 1 {
            "model.gguf".to_owned()
        } else {
            part(number)
        })
    });
    let message = refused(&other.path().join("model.gguf"));
    assert!(message.contains("names back"), "{message}");
    let swapped = copied(|number| Some(part(if number < 3 { 3 - number } else { number })));
    let message = refused(&swapped.path().join(part(1)));
    assert!(message.contains("by its metadata"), "{message}");
}

#[test]
fn a_pointer_in_the_place_of_a_part_is_told() {
    let all = copied(|number| Some(part(number)));
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 77\n";
    fs::write(all.path().join(part(2)), pointer).unwrap();
    let message = refused(&all.path().join(part(1)));
    assert!(
        message.contains(&part(2)) && message.contains("git lfs pull"),
        "{message}"
    );
}
