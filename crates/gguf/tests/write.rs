//! What is written can be read again, and is refused where it could not be.
//!
//! The files stay in `target/tmp/gguf`, where `fixtures/check_gguf.py` compares
//! them with what Python makes of the same checkpoints.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{Tensor, fixture, json, kept, safetensors};
use olora_gguf::{
    GgufError, GgufFile, GgufType, TensorSpec, TensorValues, TokenizerFiles, write_model,
};
use olora_packed::{BlockFormat, Packed};
use serde_json::{Map, Value, json};

/// A checkpoint of `fixtures/` with a tokenizer to go with it.
struct Checkpoint {
    config: Map<String, Value>,
    tensors: BTreeMap<String, Tensor>,
    tokenizer: Vec<u8>,
    tokenizer_config: Vec<u8>,
}

/// The vocabulary that fits a checkpoint's 64 rows: 60 bytes and their like.
fn small_tokenizer() -> Vec<u8> {
    let vocabulary: Map<_, _> = ('!'..)
        .take(60)
        .enumerate()
        .map(|(id, token)| (token.to_string(), json!(id)))
        .chain([("ab".to_owned(), json!(60))])
        .collect();
    let special = json!({"id": 61, "content": "<end>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true});
    let pre = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let document = json!({
        "version": "1.0",
        "added_tokens": [special],
        "normalizer": null,
        "pre_tokenizer": pre,
        "post_processor": null,
        "decoder": pre,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]]},
    });
    document.to_string().into_bytes()
}

impl Checkpoint {
    fn new(folder: &str) -> Self {
        Self {
            config: json(&fixture(folder).join("config.json")),
            tensors: safetensors(&fixture(folder).join("model.safetensors")),
            tokenizer: small_tokenizer(),
            tokenizer_config: br#"{"eos_token": "<end>"}"#.to_vec(),
        }
    }

    fn write(&self, path: &Path, format: GgufType) -> Result<(), GgufError> {
        let specs: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, (shape, _))| TensorSpec {
                name: name.clone(),
                shape: shape.clone(),
                packed: None,
                copied: false,
            })
            .collect();
        let tokenizer = TokenizerFiles {
            tokenizer: &self.tokenizer,
            config: Some(&self.tokenizer_config),
            chat_template: Some("{{ messages }}"),
        };
        write_model(path, &self.config, tokenizer, &specs, format, |name| {
            Ok(TensorValues::Floats(self.tensors[name].1.clone()))
        })
    }

    fn refusal(&self) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        let error = self.write(&path, GgufType::F16).unwrap_err();
        assert!(!path.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        error.to_string()
    }
}

const FOLDERS: [&str; 8] = [
    "llama",
    "llama-tied",
    "llama-linear",
    "llama-llama3",
    "llama-head-dim",
    "mistral",
    "qwen2",
    "qwen3",
];

#[test]
fn f32_files_give_back_every_tensor_exactly() {
    for folder in FOLDERS {
        let checkpoint = Checkpoint::new(folder);
        let path = kept(&format!("{folder}.f32.gguf"));
        checkpoint.write(&path, GgufType::F32).unwrap();
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.names().count(), checkpoint.tensors.len(), "{folder}");
        for (name, (shape, values)) in &checkpoint.tensors {
            assert_eq!(file.shape(name), Some(shape.as_slice()), "{folder} {name}");
            assert_eq!(&file.read(name).unwrap(), values, "{folder} {name}");
        }
    }
}

#[test]
fn the_other_formats_are_as_near_as_they_can_be() {
    let checkpoint = Checkpoint::new("llama");
    for (format, most) in [
        (GgufType::F16, 2.0_f32.powi(-11)),
        (GgufType::Bf16, 2.0_f32.powi(-8)),
        // Half a step of the largest of 32 numbers, and the scale's rounding.
        (
            GgufType::Blocks(BlockFormat::Q8_0),
            0.5 / 127.0 + 2.0_f32.powi(-11),
        ),
    ] {
        let path = kept(&format!("llama.{}.gguf", format.name()));
        checkpoint.write(&path, format).unwrap();
        let file = GgufFile::open(&path).unwrap();
        for (name, (shape, values)) in &checkpoint.tensors {
            let read = file.read(name).unwrap();
            if shape.len() == 1 {
                assert_eq!(file.stored_type(name), Some("F32"), "{name}");
                assert_eq!(&read, values, "{name}");
                continue;
            }
            let blocks = read.chunks(32).zip(values.chunks(32));
            for (read, values) in blocks {
                let largest = values
                    .iter()
                    .fold(0.0_f32, |most, value| most.max(value.abs()));
                for (read, value) in read.iter().zip(values) {
                    assert!(
                        (read - value).abs() <= most * largest,
                        "{name} {}",
                        format.name()
                    );
                }
            }
        }
    }
}

#[test]
fn rows_that_no_q8_block_fits_are_written_as_f16() {
    let checkpoint = Checkpoint::new("llama");
    let path = kept("llama.q8_0-rows.gguf");
    checkpoint
        .write(&path, GgufType::Blocks(BlockFormat::Q8_0))
        .unwrap();
    let file = GgufFile::open(&path).unwrap();
    // 48 inputs are no multiple of 32, 32 inputs are.
    let stored = |module: &str| file.stored_type(&format!("model.layers.0.mlp.{module}.weight"));
    assert_eq!(stored("down_proj"), Some("F16"));
    assert_eq!(stored("up_proj"), Some("Q8_0"));
}

#[test]
fn configurations_survive() {
    for folder in FOLDERS {
        let checkpoint = Checkpoint::new(folder);
        let path = kept(&format!("{folder}.config.gguf"));
        checkpoint.write(&path, GgufType::F32).unwrap();
        let config = GgufFile::open(&path).unwrap().config();
        for key in [
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
            "dtype",
        ] {
            assert_eq!(
                config.get(key),
                checkpoint.config.get(key),
                "{folder} {key}"
            );
        }
        if folder == "mistral" {
            assert_eq!(
                config["sliding_window"],
                checkpoint.config["sliding_window"]
            );
        }
        let parameters = checkpoint.config["rope_parameters"].as_object().unwrap();
        assert_eq!(config["rope_theta"], parameters["rope_theta"], "{folder}");
        for (key, value) in parameters.iter().filter(|(key, _)| *key != "rope_theta") {
            let found = config
                .get("rope_scaling")
                .and_then(|scaling| scaling.get(key));
            match (value.as_f64(), value.as_str()) {
                (Some(number), _) => assert_eq!(found.unwrap().as_f64(), Some(number), "{folder}"),
                (_, Some("default")) => assert_eq!(found, None, "{folder}"),
                _ => assert_eq!(found, Some(value), "{folder}"),
            }
        }
    }
}

#[test]
fn tokenizers_survive() {
    for name in [
        "gpt-2",
        "smollm",
        "llama-bpe",
        "tekken",
        "smaug-bpe",
        "qwen2",
        "default",
        "llama",
        "gemma",
    ] {
        let original = fixture("gguf").join(format!("tokenizer-{name}.gguf"));
        let file = GgufFile::open(&original).unwrap();
        let tokenizer = file.tokenizer().unwrap();
        let model_type = if name == "gemma" { "gemma" } else { "llama" };
        let mut checkpoint = Checkpoint::new("llama");
        checkpoint
            .config
            .insert("model_type".to_owned(), json!(model_type));
        let activation = file.config()["hidden_act"].clone();
        checkpoint
            .config
            .insert("hidden_act".to_owned(), activation);
        let rows = file.config()["vocab_size"].clone();
        let size = rows.as_u64().unwrap() as usize;
        checkpoint.config.insert("vocab_size".to_owned(), rows);
        for tensor in ["model.embed_tokens.weight", "lm_head.weight"] {
            let values = (vec![size, 32], vec![0.0; size * 32]);
            checkpoint.tensors.insert(tensor.to_owned(), values);
        }
        checkpoint.tokenizer = tokenizer.json.to_string().into_bytes();
        let config = Value::Object(tokenizer.config.clone());
        checkpoint.tokenizer_config = config.to_string().into_bytes();
        let path = kept(&format!("tokenizer-{name}.gguf"));
        checkpoint.write(&path, GgufType::F16).unwrap();

        let again = GgufFile::open(&path).unwrap().tokenizer().unwrap();
        assert_eq!(again.json, tokenizer.json, "{name}");
        for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            let expected = tokenizer.config.get(key);
            // A checkpoint's config.json may add what the tokenizer lacks.
            if expected.is_some() {
                assert_eq!(again.config.get(key), expected, "{name} {key}");
            }
        }
        assert_eq!(again.config["chat_template"], "{{ messages }}", "{name}");
    }
}

#[test]
fn a_failing_source_leaves_the_old_file() {
    let checkpoint = Checkpoint::new("llama");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    fs::write(&path, "old").unwrap();
    let specs: Vec<_> = checkpoint
        .tensors
        .iter()
        .map(|(name, (shape, _))| TensorSpec {
            name: name.clone(),
            shape: shape.clone(),
            packed: None,
            copied: false,
        })
        .collect();
    let tokenizer = TokenizerFiles {
        tokenizer: &checkpoint.tokenizer,
        config: None,
        chat_template: None,
    };
    let mut left = 3;
    let error = write_model(
        &path,
        &checkpoint.config,
        tokenizer,
        &specs,
        GgufType::F32,
        |name| {
            left -= 1;
            if left == 0 {
                return Err("the device is gone".into());
            }
            Ok(TensorValues::Floats(checkpoint.tensors[name].1.clone()))
        },
    );
    assert!(matches!(error, Err(GgufError::Source { .. })), "{error:?}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn tensors_that_are_missing_or_unknown_are_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let mut checkpoint = Checkpoint::new("llama");
    let tensor = checkpoint.tensors.remove(name).unwrap();
    assert!(checkpoint.refusal().contains(name));
    checkpoint.tensors.insert(name.to_owned(), tensor.clone());
    checkpoint
        .tensors
        .insert("model.layers.1.mlp.router.weight".to_owned(), tensor);
    assert!(checkpoint.refusal().contains("mlp.router.weight"));
}

#[test]
fn a_number_beyond_f16_is_not_written_as_infinity() {
    let mut checkpoint = Checkpoint::new("llama");
    let name = "model.layers.0.mlp.up_proj.weight";
    checkpoint.tensors.get_mut(name).unwrap().1[5] = 1e6;
    let message = checkpoint.refusal();
    assert!(
        message.contains("1e6") && message.contains("65504") && message.contains("bf16"),
        "{message}"
    );
}

#[test]
fn other_models_are_refused_by_name() {
    let mut checkpoint = Checkpoint::new("llama");
    checkpoint
        .config
        .insert("model_type".to_owned(), json!("gpt_neox"));
    assert!(checkpoint.refusal().contains("`gpt_neox`"));
}

#[test]
fn a_scaling_that_gguf_readers_compute_otherwise_is_refused_by_name() {
    let mut checkpoint = Checkpoint::new("llama");
    let rope = json!({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4});
    checkpoint.config.insert("rope_parameters".to_owned(), rope);
    assert!(checkpoint.refusal().contains("rope_type: dynamic"));
}

/// The refusal after one place of the small tokenizer was changed.
fn tokenizer_refusal(place: &str, value: Value) -> String {
    let mut checkpoint = Checkpoint::new("llama");
    let mut document: Value = serde_json::from_slice(&checkpoint.tokenizer).unwrap();
    *document.pointer_mut(place).unwrap() = value;
    checkpoint.tokenizer = document.to_string().into_bytes();
    checkpoint.refusal()
}

#[test]
fn pre_tokenisers_without_a_name_are_refused() {
    let message = tokenizer_refusal("/pre_tokenizer", json!({"type": "Whitespace"}));
    assert!(
        message.contains("Whitespace") && message.contains("smollm"),
        "{message}"
    );
}

#[test]
fn normalisers_that_llama_cpp_leaves_out_are_refused() {
    let message = tokenizer_refusal("/normalizer", json!({"type": "Lowercase"}));
    assert!(message.contains("Lowercase"), "{message}");
}

#[test]
fn other_kinds_of_tokenizers_are_refused() {
    assert!(tokenizer_refusal("/model/type", json!("Unigram")).contains("`Unigram`"));
}

#[test]
fn tokens_beyond_the_embedding_are_refused() {
    let message = tokenizer_refusal("/added_tokens/0/id", json!(64));
    assert!(message.contains("vocab_size of 64"), "{message}");
}

#[test]
fn merges_that_no_scores_give_are_refused() {
    let original = fixture("gguf/tokenizer-llama.gguf");
    let tokenizer = GgufFile::open(&original).unwrap().tokenizer().unwrap();
    let mut document = tokenizer.json;
    let merges = document["model"]["merges"].as_array_mut().unwrap();
    merges.remove(merges.len() / 2);
    let mut checkpoint = Checkpoint::new("llama");
    checkpoint
        .config
        .insert("vocab_size".to_owned(), json!(1000));
    checkpoint.tokenizer = document.to_string().into_bytes();
    checkpoint.tokenizer_config = b"{}".to_vec();
    let message = checkpoint.refusal();
    assert!(
        message.contains("SentencePiece would merge differently"),
        "{message}"
    );
}

/// A matrix in blocks goes into a file of the same format as it is, whatever
/// order its rows have there, and is packed anew for another.
#[test]
fn a_packed_matrix_is_copied_where_the_format_is_its_own() {
    let checkpoint = Checkpoint::new("llama");
    let directory = tempfile::tempdir().unwrap();
    let format = BlockFormat::Q8_0;
    let packed_of = |name: &str| {
        let (shape, values) = &checkpoint.tensors[name];
        let &[rows, columns] = shape.as_slice() else {
            return None;
        };
        Packed::pack(format, [rows, columns], values).ok()
    };
    let written = |as_type: GgufType, packed: bool| {
        let path = directory
            .path()
            .join(format!("{}-{packed}.gguf", as_type.name()));
        let specs: Vec<_> = checkpoint
            .tensors
            .iter()
            .map(|(name, (shape, _))| TensorSpec {
                name: name.clone(),
                shape: shape.clone(),
                packed: packed_of(name).map(|_| format),
                copied: packed,
            })
            .collect();
        let tokenizer = TokenizerFiles {
            tokenizer: &checkpoint.tokenizer,
            config: Some(&checkpoint.tokenizer_config),
            chat_template: None,
        };
        write_model(
            &path,
            &checkpoint.config,
            tokenizer,
            &specs,
            as_type,
            |name| {
                Ok(match packed_of(name).filter(|_| packed) {
                    Some(packed) => TensorValues::Packed(packed),
                    None => TensorValues::Floats(checkpoint.tensors[name].1.clone()),
                })
            },
        )
        .unwrap();
        fs::read(&path).unwrap()
    };
    let right = written(GgufType::Blocks(format), false);
    assert!(written(GgufType::Blocks(format), true) == right, "copied");
    written(GgufType::AsPacked, true);
    let same = GgufFile::open(&directory.path().join("same-true.gguf")).unwrap();
    let of = |name: &str| same.stored_type(&format!("model.layers.0.mlp.{name}.weight"));
    // Rows of 48 are in no blocks, and the configuration says float32.
    assert_eq!(
        (of("up_proj"), of("down_proj")),
        (Some("Q8_0"), Some("F32"))
    );
    let path = directory.path().join("q4_0-true.gguf");
    written(GgufType::Blocks(BlockFormat::Q4_0), true);
    let file = GgufFile::open(&path).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(file.stored_type(name), Some("Q4_0"));
    let (rows, columns) = (48, 32);
    let mut values = vec![0.0; rows * columns];
    let q8 = packed_of(name).unwrap();
    q8.unpack(0..rows, 0..columns, &mut values, columns)
        .unwrap();
    let again = Packed::pack(BlockFormat::Q4_0, [rows, columns], &values).unwrap();
    again
        .unpack(0..rows, 0..columns, &mut values, columns)
        .unwrap();
    assert_eq!(file.read(name).unwrap(), values);
}
