//! Files that are not whole, not GGUF, or made to hurt.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::{fs, path::PathBuf};

use common::fixture;
use olora_gguf::{GgufError, GgufFile};
use tempfile::TempDir;

fn whole() -> Vec<u8> {
    fs::read(fixture("gguf/types.gguf")).unwrap()
}

/// Opens a file with these bytes.
fn open(bytes: &[u8]) -> Result<GgufFile, GgufError> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    GgufFile::open(&path)
}

fn message(bytes: &[u8]) -> String {
    open(bytes).expect_err("the file is bad").to_string()
}

/// Puts `new` where `old` is in the fixture.
fn replaced(old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let mut bytes = whole();
    let at = bytes.windows(old.len()).position(|window| window == old);
    let at = at.expect("the fixture has it");
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// The first bytes of a file: magic, version, numbers of tensors and entries.
fn header(version: u32, tensors: u64, entries: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    bytes
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

#[test]
fn another_kind_of_file_is_told_from_gguf() {
    assert!(matches!(
        open(b"PK\x03\x04 zip"),
        Err(GgufError::NotGguf { .. })
    ));
    assert!(matches!(open(b"GG"), Err(GgufError::NotGguf { .. })));
    assert!(message(b"PK\x03\x04 zip").contains(r#"begins with "PK\x03\x04""#));
}

#[test]
fn an_empty_file_is_an_error() {
    assert!(open(b"").is_err());
}

#[test]
fn a_missing_file_is_named() {
    let error = GgufFile::open(&PathBuf::from("nowhere/model.gguf")).unwrap_err();
    assert!(error.to_string().contains("nowhere/model.gguf"), "{error}");
}

#[test]
fn big_endian_files_are_told_so() {
    let bytes = [b"GGUF".as_slice(), &3_u32.to_be_bytes(), &[0; 16]].concat();
    assert!(
        message(&bytes).contains("big-endian"),
        "{}",
        message(&bytes)
    );
}

#[test]
fn unknown_versions_are_named() {
    assert!(message(&header(4, 0, 0)).contains("GGUF version 4"));
    assert!(message(&header(1, 0, 0)).contains("GGUF version 1"));
}

#[test]
fn the_tensor_that_is_cut_off_is_named_with_its_bytes() {
    let mut bytes = whole();
    let length = bytes.len();
    // The last tensor is no multiple of the alignment long: cut into it.
    bytes.truncate(length - 40);
    match open(&bytes) {
        Err(GgufError::Truncated {
            what,
            expected,
            found,
            ..
        }) => {
            assert!(
                what.contains("attn_rot_embd") || what.contains("ffn_down"),
                "{what}"
            );
            assert!(expected <= length as u64 && expected > found);
            assert_eq!(found, bytes.len() as u64);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_shorter_file_is_an_error() {
    let bytes = whole();
    let headers = (0..6000).step_by(7);
    let data = (6000..bytes.len() - 64).step_by(4999);
    for length in headers.chain(data) {
        assert!(
            open(&bytes[..length]).is_err(),
            "{length} of {} bytes",
            bytes.len()
        );
    }
}

#[test]
fn no_changed_byte_in_the_header_makes_it_panic() {
    let bytes = whole();
    for at in (0..4000).step_by(7) {
        for change in [1, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= change;
            // Some changes leave a file that opens; then its tensors can be read.
            if let Ok(file) = open(&bytes) {
                for name in file.names() {
                    file.read(name).unwrap();
                }
            }
        }
    }
}

#[test]
fn no_changed_byte_in_a_tokenizer_makes_it_panic() {
    let bytes = fs::read(fixture("gguf/tokenizer-llama.gguf")).unwrap();
    for at in (0..bytes.len() - 4096).step_by(11) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0xff;
        if let Ok(file) = open(&bytes) {
            drop(file.tokenizer());
        }
    }
}

#[test]
fn counts_that_no_file_could_hold_allocate_nothing() {
    for (tensors, entries) in [(u64::MAX, 0), (0, u64::MAX), (1 << 40, 1 << 40)] {
        assert!(matches!(
            open(&header(3, tensors, entries)),
            Err(GgufError::Truncated { .. })
        ));
    }
    // A list of 2⁶⁰ numbers, and of as many lists.
    for element in [4_u32, 8, 9] {
        let mut bytes = header(3, 0, 1);
        push_text(&mut bytes, "key");
        bytes.extend(9_u32.to_le_bytes());
        bytes.extend(element.to_le_bytes());
        bytes.extend((1_u64 << 60).to_le_bytes());
        assert!(message(&bytes).contains("cut short"), "{}", message(&bytes));
    }
}

#[test]
fn lists_in_lists_end_somewhere() {
    let mut bytes = header(3, 0, 1);
    push_text(&mut bytes, "key");
    bytes.extend(9_u32.to_le_bytes());
    for _ in 0..100_000 {
        bytes.extend(9_u32.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
    }
    assert!(message(&bytes).contains("levels deep"));
}

/// The description of a tensor in the fixture: name, dimensions, type, offset.
fn described(name: &str, shape: &[u64], kind: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_text(&mut bytes, name);
    bytes.extend((shape.len() as u32).to_le_bytes());
    bytes.extend(shape.iter().flat_map(|size| size.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes
}

#[test]
fn a_format_without_a_reader_is_named_with_its_tensor() {
    let name = "token_embd.weight";
    for (kind, called) in [(16, "IQ2_XXS"), (20, "IQ4_NL"), (999, "number 999")] {
        let bytes = replaced(
            &described(name, &[256, 4], 1),
            &described(name, &[256, 4], kind),
        );
        let message = message(&bytes);
        assert!(
            message.contains(name) && message.contains(called),
            "{message}"
        );
        assert!(
            message.contains("Q4_K"),
            "what is supported is listed: {message}"
        );
    }
}

#[test]
fn sizes_that_overflow_are_errors() {
    let name = "token_embd.weight";
    for shape in [[u64::MAX, u64::MAX], [1 << 40, 1 << 40], [0, 4]] {
        let bytes = replaced(&described(name, &[256, 4], 1), &described(name, &shape, 1));
        assert!(
            matches!(open(&bytes), Err(GgufError::Malformed { .. })),
            "{shape:?}"
        );
    }
}

#[test]
fn rows_that_are_no_whole_number_of_blocks_are_errors() {
    let name = "token_embd.weight";
    let bytes = replaced(
        &described(name, &[256, 4], 1),
        &described(name, &[100, 4], 12),
    );
    let message = message(&bytes);
    assert!(
        message.contains(name) && message.contains("blocks of 256"),
        "{message}"
    );
}

#[test]
fn an_alignment_of_nothing_is_an_error() {
    let mut bytes = header(3, 0, 1);
    push_text(&mut bytes, "general.alignment");
    bytes.extend(4_u32.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    assert!(message(&bytes).contains("general.alignment"));
}

#[test]
fn another_architecture_is_named() {
    let message = message(&replaced(
        b"\x05\0\0\0\0\0\0\0llama",
        b"\x05\0\0\0\0\0\0\0mamba",
    ));
    assert!(
        message.contains("`mamba`") && message.contains("qwen3"),
        "{message}"
    );
}

#[test]
fn a_file_without_a_model_is_told_from_one() {
    let kind = |kind: &str| format!("general.type\x08\0\0\0\x05\0\0\0\0\0\0\0{kind}");
    let bytes = replaced(kind("model").as_bytes(), kind("vocab").as_bytes());
    let message = message(&bytes);
    assert!(message.contains("general.type: vocab"), "{message}");
}

#[test]
fn tensors_of_other_kinds_of_models_are_named() {
    let message = message(&replaced(
        b"blk.0.ffn_gate.weight",
        b"blk.0.ffn_exps.weight",
    ));
    assert!(message.contains("blk.0.ffn_exps.weight"), "{message}");
}

#[test]
fn missing_keys_are_named() {
    let message = message(&replaced(
        b"llama.embedding_length",
        b"llama.embedding_lengtH",
    ));
    assert!(message.contains("llama.embedding_length"), "{message}");
}

/// A key of the fixture's metadata with another value, as 32 bits.
fn with_size(key: &str, value: u32) -> Vec<u8> {
    let mut bytes = whole();
    let mut text = Vec::new();
    push_text(&mut text, key);
    let at = bytes.windows(text.len()).position(|window| window == text);
    let at = at.expect("the fixture has it") + text.len();
    assert_eq!(bytes[at..at + 4], 4_u32.to_le_bytes(), "its kind");
    bytes[at + 4..at + 8].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[test]
fn heads_that_do_not_divide_or_are_none_are_errors() {
    for heads in [0, 3, 1 << 31, u32::MAX] {
        let message = message(&with_size("llama.attention.head_count", heads));
        assert!(
            message.contains("head_count") || message.contains("heads"),
            "{heads}: {message}"
        );
    }
}

#[test]
fn tensors_that_share_bytes_are_refused_with_both_names() {
    let mut bytes = whole();
    // The second tensor of those listed begins where the first does.
    let offset = |bytes: &[u8], name: &str| {
        let mut text = Vec::new();
        push_text(&mut text, name);
        let at = bytes.windows(text.len()).position(|window| window == text);
        let at = at.expect("the fixture has it") + text.len();
        let n = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        at + 4 + 8 * n + 4
    };
    let (first, second) = ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight");
    let from = offset(&bytes, first);
    let to = offset(&bytes, second);
    bytes.copy_within(from..from + 8, to);
    let message = message(&bytes);
    assert!(
        message.contains("overlap") && message.contains(first) && message.contains(second),
        "{message}"
    );
}
