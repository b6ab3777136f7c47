//! Tokenizers without a `tokenizer.json` against transformers: see
//! `fixtures/make_slow_tokenizers.py`, which makes as many texts as one likes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use olora_data::Tokenizer;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The fixtures, or what `OLORA_TOKENIZERS` names.
fn cases() -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tokenizers");
    std::env::var_os("OLORA_TOKENIZERS").map_or(fixtures, PathBuf::from)
}

/// A copy of one of them with some files other.
fn changed(name: &str, files: &[(&str, Option<&str>)]) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(cases().join(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), out.path().join(entry.file_name())).unwrap();
    }
    for (file, text) in files {
        match text {
            Some(text) => fs::write(out.path().join(file), text).unwrap(),
            None => fs::remove_file(out.path().join(file)).unwrap(),
        }
    }
    out
}

fn refused(directory: &TempDir) -> String {
    Tokenizer::from_dir(directory.path())
        .unwrap_err()
        .to_string()
}

#[test]
fn slow_tokenizers_give_the_tokens_of_transformers() {
    for name in ["gpt2", "opt", "qwen2", "llama", "llama-legacy"] {
        let directory = cases().join(name);
        let tokenizer = Tokenizer::from_dir(&directory).unwrap();
        assert_eq!(tokenizer.notes(), [""; 0]);
        let bytes = fs::read(directory.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json!(tokenizer.n_vocab()), expected["length"], "{name}");
        for (key, specials) in [("with_special", true), ("without", false)] {
            let texts = expected["texts"].as_array().unwrap();
            let tokens = expected[key].as_array().unwrap();
            for (text, tokens) in texts.iter().zip(tokens) {
                let text = text.as_str().unwrap();
                let found = tokenizer.encode(text, specials).unwrap();
                assert_eq!(json!(found), *tokens, "{name}, {key}: {text:?}");
            }
        }
    }
}

#[test]
fn an_end_that_only_another_file_names_is_found() {
    let without = r#"{"tokenizer_class": "GPT2Tokenizer"}"#;
    let map = r#"{"eos_token": "</s>", "bos_token": {"content": "<s>"}}"#;
    let opt = changed(
        "opt",
        &[
            ("tokenizer_config.json", Some(without)),
            ("special_tokens_map.json", Some(map)),
        ],
    );
    let tokenizer = Tokenizer::from_dir(opt.path()).unwrap();
    assert_eq!(tokenizer.eos_id(), Some(2));
    assert_eq!(tokenizer.bos_id(), Some(0));
}

#[test]
fn what_nothing_says_the_splitting_of_is_read_as_gpt2s_and_said() {
    let plain = Tokenizer::from_dir(&cases().join("gpt2")).unwrap();
    let unsaid = changed("gpt2", &[("tokenizer_config.json", Some("{}"))]);
    let tokenizer = Tokenizer::from_dir(unsaid.path()).unwrap();
    assert!(
        tokenizer.notes()[0].contains("GPT-2"),
        "{:?}",
        tokenizer.notes()
    );
    let text = "the mill's 12,000 loaves";
    assert_eq!(
        tokenizer.encode(text, true).unwrap(),
        plain.encode(text, true).unwrap()
    );
}

#[test]
fn a_class_that_is_not_made_is_refused_by_name_with_what_to_do() {
    let other = changed(
        "llama",
        &[(
            "tokenizer_config.json",
            Some(r#"{"tokenizer_class": "T5Tokenizer"}"#),
        )],
    );
    let message = refused(&other);
    assert!(
        message.contains("`T5Tokenizer`") && message.contains("save_pretrained"),
        "{message}"
    );
    let unsaid = changed("llama", &[("tokenizer_config.json", Some("{}"))]);
    let message = refused(&unsaid);
    assert!(
        message.contains("tokenizer.model") && message.contains("save_pretrained"),
        "{message}"
    );
}

#[test]
fn files_that_do_not_belong_together_or_are_damaged_are_told() {
    let message = refused(&changed("gpt2", &[("merges.txt", None)]));
    assert!(message.contains("merges.txt is not beside it"), "{message}");
    let message = refused(&changed(
        "gpt2",
        &[("merges.txt", Some("#version: 0.2\nq q\n"))],
    ));
    assert!(
        message.contains("line 2") && message.contains("of one model"),
        "{message}"
    );
    let message = refused(&changed("gpt2", &[("merges.txt", Some("#version: 0.2\n"))]));
    assert!(
        message.contains("merges.txt") && message.contains("cut short"),
        "{message}"
    );
    let vocabulary = fs::read_to_string(cases().join("gpt2/vocab.json")).unwrap();
    let mut doubled: serde_json::Map<String, Value> = serde_json::from_str(&vocabulary).unwrap();
    doubled["b"] = doubled["a"].clone();
    let doubled = serde_json::to_string(&doubled).unwrap();
    let message = refused(&changed("gpt2", &[("vocab.json", Some(&doubled))]));
    assert!(
        message.contains("\"a\" and \"b\" have the same number"),
        "{message}"
    );
    let message = refused(&changed("gpt2", &[("merges.txt", Some("abc\n"))]));
    assert!(message.contains("not two tokens"), "{message}");
    let message = refused(&changed(
        "llama",
        &[("tokenizer.model", Some("IQ== 0\nIg== 1\n"))],
    ));
    assert!(message.contains("no SentencePiece model"), "{message}");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n";
    let message = refused(&changed("llama", &[("tokenizer.model", Some(pointer))]));
    assert!(message.contains("git lfs pull"), "{message}");
}

#[test]
fn a_vocabulary_of_another_kind_is_told_by_its_kind() {
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("tekken.json"), "{}").unwrap();
    let message = refused(&out);
    assert!(
        message.contains("Mistral's own") && message.contains("save_pretrained"),
        "{message}"
    );
}

#[test]
fn a_directory_without_any_tokenizer_says_what_was_looked_for() {
    let empty = tempfile::tempdir().unwrap();
    assert!(refused(&empty).contains("tokenizer.json"));
}
