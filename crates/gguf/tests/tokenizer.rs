//! Tokenizers from GGUF files against the ones that the files were made from.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::{fs, str::FromStr};

use common::fixture;
use olora_gguf::GgufFile;
use serde_json::Value;
use tokenizers::Tokenizer;

const BYTE_LEVEL: [&str; 7] = [
    "gpt-2",
    "smollm",
    "llama-bpe",
    "tekken",
    "smaug-bpe",
    "qwen2",
    "default",
];
const SENTENCE_PIECE: [&str; 2] = ["llama", "gemma"];

fn tokens() -> Value {
    let bytes = fs::read(fixture("gguf/tokens.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn texts(tokens: &Value, key: &str) -> Vec<String> {
    serde_json::from_value(tokens[key].clone()).unwrap()
}

fn read(name: &str) -> olora_gguf::Tokenizer {
    let path = fixture("gguf").join(format!("tokenizer-{name}.gguf"));
    GgufFile::open(&path).unwrap().tokenizer().unwrap()
}

fn loaded(name: &str) -> Tokenizer {
    Tokenizer::from_str(&read(name).json.to_string()).expect("tokenizers reads it")
}

/// The ids of each text are the reference's.
fn agrees(name: &str, texts: &[String]) {
    let tokenizer = loaded(name);
    let expected = tokens();
    let expected = expected["ids"][name].as_array().unwrap();
    assert_eq!(texts.len(), expected.len(), "{name}");
    for (text, expected) in texts.iter().zip(expected) {
        let expected: Vec<u32> = serde_json::from_value(expected.clone()).unwrap();
        let encoding = tokenizer.encode_fast(text.as_str(), false).unwrap();
        assert_eq!(encoding.get_ids(), expected, "{name} {text:?}");
    }
}

#[test]
fn byte_level_tokenizers_give_the_ids_of_the_originals() {
    let tokens = tokens();
    let texts = [texts(&tokens, "plain"), texts(&tokens, "marked")].concat();
    for name in BYTE_LEVEL {
        agrees(name, &texts);
    }
}

#[test]
fn sentence_piece_tokenizers_give_the_ids_of_sentence_piece() {
    let texts = texts(&tokens(), "plain");
    for name in SENTENCE_PIECE {
        agrees(name, &texts);
    }
}

#[test]
fn decoding_gives_the_text_back() {
    let plain = texts(&tokens(), "plain");
    for name in BYTE_LEVEL.iter().chain(&SENTENCE_PIECE) {
        let tokenizer = loaded(name);
        for text in &plain {
            let ids = tokenizer.encode_fast(text.as_str(), false).unwrap();
            let decoded = tokenizer.decode(ids.get_ids(), false).unwrap();
            // Qwen2 composes accents.
            if *name != "qwen2" || text.is_ascii() {
                assert_eq!(&decoded, text, "{name}");
            }
        }
    }
}

#[test]
fn sentence_piece_texts_begin_with_the_first_token() {
    let tokenizer = loaded("llama");
    let encoding = tokenizer.encode_fast("text", true).unwrap();
    let bos = tokenizer.token_to_id("<s>").unwrap();
    assert_eq!(encoding.get_ids()[0], bos);
}

#[test]
fn control_tokens_are_special_and_user_defined_ones_are_not() {
    let json = read("smollm").json;
    let special = |content: &str| {
        let added = json["added_tokens"].as_array().unwrap();
        let token = added.iter().find(|token| token["content"] == content);
        token.unwrap()["special"].as_bool().unwrap()
    };
    assert!(special("<|im_end|>"));
    assert!(!special("<think>"));
}

#[test]
fn placeholders_are_not_tokens() {
    let json = read("smollm").json;
    let vocabulary = json["model"]["vocab"].as_object().unwrap();
    assert!(!vocabulary.keys().any(|token| token.starts_with("[PAD")));
}

#[test]
fn the_configuration_has_the_special_tokens_and_the_template() {
    let config = read("smollm").config;
    assert_eq!(config["bos_token"], "<|im_start|>");
    assert_eq!(config["eos_token"], "<|im_end|>");
    assert_eq!(config["pad_token"], "<|endoftext|>");
    assert_eq!(config["add_bos_token"], false);
    assert!(
        config["chat_template"]
            .as_str()
            .unwrap()
            .contains("messages")
    );
}

/// The error for a fixture with one text put in place of another.
fn refusal(old: &str, new: &str) -> String {
    let mut bytes = fs::read(fixture("gguf/tokenizer-smollm.gguf")).unwrap();
    let at = bytes
        .windows(old.len())
        .position(|window| window == old.as_bytes())
        .unwrap();
    bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let error = GgufFile::open(&path).unwrap().tokenizer().unwrap_err();
    error.to_string()
}

#[test]
fn an_unknown_pre_tokenisation_is_named() {
    let message = refusal("smollm", "smullm");
    assert!(
        message.contains("`smullm`") && message.contains("llama-bpe"),
        "{message}"
    );
}

#[test]
fn an_unknown_kind_of_tokenizer_is_named() {
    let message = refusal("gpt2", "rwkv");
    assert!(message.contains("`rwkv`"), "{message}");
}
