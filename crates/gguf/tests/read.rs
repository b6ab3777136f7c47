//! Tensors and configurations of GGUF files that Python wrote.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;

use common::{fixture, json, safetensors};
use olora_gguf::{GgufError, GgufFile};
use serde_json::json;

fn open(name: &str) -> GgufFile {
    GgufFile::open(&fixture("gguf").join(name)).expect("the fixture opens")
}

#[test]
fn every_format_gives_the_numbers_of_the_reference_implementation() {
    let file = open("types.gguf");
    let expected = safetensors(&fixture("gguf/types.safetensors"));
    let kinds = json(&fixture("gguf/types.json"));
    for (name, (_, values)) in &expected {
        assert_eq!(file.stored_type(name), kinds[name].as_str());
        let read = file.read(name).unwrap();
        let differing = read.iter().zip(values).position(|(a, b)| a != b);
        assert_eq!(differing, None, "{name} as {}", kinds[name]);
    }
}

#[test]
fn rows_are_those_of_the_whole_tensor() {
    let file = open("types.gguf");
    for (name, (shape, values)) in safetensors(&fixture("gguf/types.safetensors")) {
        let width: usize = shape[1..].iter().product();
        let rows = shape[0] / 3..shape[0];
        let mut read = vec![0.0; rows.len() * width];
        file.read_rows(&name, rows.clone(), &mut read).unwrap();
        assert_eq!(read, values[rows.start * width..], "{name}");
    }
}

#[test]
fn rows_that_are_not_there_are_refused() {
    let file = open("types.gguf");
    let name = "model.layers.1.self_attn.v_proj.weight";
    let &[rows, columns] = file.shape(name).unwrap() else {
        panic!("{name} is a matrix");
    };
    let mut output = vec![0.0; 2 * columns];
    for (rows, length) in [(rows - 1..rows + 1, 2 * columns), (0..2, 2 * columns - 1)] {
        let error = file.read_rows(name, rows, &mut output[..length]);
        assert!(matches!(error, Err(GgufError::Malformed { .. })));
    }
}

#[test]
fn packed_matrices_are_those_of_the_reference_implementation() {
    let file = open("types.gguf");
    let expected = safetensors(&fixture("gguf/types.safetensors"));
    let mut found = Vec::new();
    let packed: Vec<_> = expected
        .keys()
        .filter_map(|name| Some((name, file.packed(name).unwrap()?)))
        .collect();
    // What is mapped stays so for as long as it is used.
    drop(file);
    for (name, packed) in packed {
        let (shape, values) = &expected[name];
        assert_eq!(packed.shape().as_slice(), shape, "{name}");
        let [rows, columns] = packed.shape();
        let mut unpacked = vec![0.0; values.len()];
        packed
            .unpack(0..rows, 0..columns, &mut unpacked, columns)
            .unwrap();
        assert_eq!(&unpacked, values, "{name}");
        found.push(packed.format().to_string());
    }
    found.sort();
    found.dedup();
    assert_eq!(
        found,
        [
            "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "Q8_K"
        ]
    );
}

#[test]
fn a_packed_matrix_with_an_infinite_scale_is_refused_by_name() {
    let mut bytes = fs::read(fixture("gguf/types.gguf")).unwrap();
    let name = "model.layers.1.self_attn.v_proj.weight";
    let file = open("types.gguf");
    let block = file.packed(name).unwrap().unwrap();
    let (format, block) = block.as_blocks().unwrap();
    let at = bytes.windows(block.len()).position(|part| part == &*block);
    assert_eq!(format.name(), "Q4_K");
    let scale = at.unwrap();
    bytes[scale..scale + 2].copy_from_slice(&0x7c00_u16.to_le_bytes());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("infinite.gguf");
    fs::write(&path, bytes).unwrap();
    let error = GgufFile::open(&path).unwrap().packed(name).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("blk.1.attn_v.weight"), "{error}");
    assert!(error.contains("scale of block 0"), "{error}");
}

#[test]
fn names_and_shapes_are_those_of_the_checkpoint() {
    let file = open("types.gguf");
    let expected = safetensors(&fixture("gguf/types.safetensors"));
    let names: Vec<_> = file.names().collect();
    let expected_names: Vec<_> = expected.keys().map(String::as_str).collect();
    assert_eq!(names, expected_names);
    for (name, (shape, _)) in &expected {
        assert_eq!(file.shape(name), Some(shape.as_slice()), "{name}");
    }
}

#[test]
fn a_second_read_gives_the_same_numbers() {
    let file = open("types.gguf");
    for name in file.names() {
        assert_eq!(file.read(name).unwrap(), file.read(name).unwrap(), "{name}");
    }
}

#[test]
fn checkpoints_come_back_from_their_gguf_files() {
    for folder in ["qwen2", "qwen3", "llama-llama3"] {
        let file = open(&format!("{folder}.gguf"));
        let checkpoint = safetensors(&fixture(folder).join("model.safetensors"));
        assert_eq!(file.names().count(), checkpoint.len(), "{folder}");
        for (name, (shape, values)) in &checkpoint {
            assert_eq!(file.shape(name), Some(shape.as_slice()), "{folder} {name}");
            assert_eq!(&file.read(name).unwrap(), values, "{folder} {name}");
        }
    }
}

#[test]
fn configurations_come_back_from_their_gguf_files() {
    for folder in ["qwen2", "qwen3", "llama-llama3"] {
        let config = open(&format!("{folder}.gguf")).config();
        let expected = json(&fixture(folder).join("config.json"));
        for key in [
            "architectures",
            "model_type",
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "rms_norm_eps",
            "max_position_embeddings",
            "tie_word_embeddings",
            "hidden_act",
            "dtype",
            "bos_token_id",
            "eos_token_id",
        ] {
            assert_eq!(config.get(key), expected.get(key), "{folder} {key}");
        }
        let rope = &expected["rope_parameters"];
        assert_eq!(config["rope_theta"], rope["rope_theta"], "{folder}");
    }
}

#[test]
fn llama_3s_rope_factors_become_its_rope_scaling() {
    let config = open("llama-llama3.gguf").config();
    assert_eq!(
        config["rope_scaling"],
        json!({
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        })
    );
}

#[test]
fn a_file_without_an_output_layer_ties_it_to_the_embedding() {
    assert_eq!(open("types.gguf").config()["tie_word_embeddings"], false);
    let tied = open("tokenizer-llama.gguf").config();
    assert_eq!(tied["tie_word_embeddings"], true);
}

#[test]
fn gemmas_norms_lose_the_one_that_the_file_adds() {
    let file = open("tokenizer-gemma.gguf");
    assert_eq!(file.config()["hidden_act"], "gelu_pytorch_tanh");
    assert_eq!(file.read("model.norm.weight").unwrap(), [0.25; 4]);
}

#[test]
fn a_tensor_that_is_not_there_is_named() {
    let error = open("types.gguf").read("model.layers.9.nothing.weight");
    assert!(matches!(
        error,
        Err(GgufError::NoTensor { name, .. }) if name == "model.layers.9.nothing.weight"
    ));
}
