//! Tensors and configurations of GGUF files that Python wrote.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

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
