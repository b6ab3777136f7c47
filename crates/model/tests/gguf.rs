//! Models out of GGUF files and into them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use burn::tensor::Device;
use common::{fixture, floats, host, ids, max_diff};
use olora_gguf::GgufType;
use olora_model::{
    Companions, Dtype, ModelConfig, config_bytes, load, save, save_gguf, weight_files,
};
use olora_packed::BlockFormat;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// The configuration and weights of a fixture, beside a tokenizer of as many
/// tokens as its vocabulary has.
fn checkpoint(name: &str) -> TempDir {
    let made = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), made.path().join(entry.file_name())).unwrap();
    }
    let specials = ["<unk>", "<s>", "</s>"];
    let letters = ('!'..).map(String::from);
    let tokens = specials.map(str::to_owned).into_iter().chain(letters);
    let vocabulary: Map<String, Value> = tokens.take(64).zip((0..).map(Value::from)).collect();
    let added = specials.iter().enumerate().map(|(id, token)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    });
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false,
                            "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []}
    });
    fs::write(made.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config =
        json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"});
    fs::write(
        made.path().join("tokenizer_config.json"),
        config.to_string(),
    )
    .unwrap();
    made
}

/// Written from `from` as `out/model.gguf`.
fn written(from: &Path, format: GgufType, out: &Path) -> std::path::PathBuf {
    let (model, config) = load(from, Dtype::F32, &Device::flex()).unwrap();
    let path = out.join("model.gguf");
    save_gguf(&model, &config, format, from, &path).unwrap();
    path
}

fn logits(path: &Path, name: &str) -> Vec<f32> {
    let device = Device::flex();
    let (model, _) = load(path, Dtype::F32, &device).unwrap();
    let golden = fixture(name).join("golden.safetensors");
    host(model.forward(ids(&golden, "input_ids", &device)))
}

#[test]
fn every_family_goes_into_a_file_and_comes_out_the_same() {
    for name in [
        "llama",
        "llama-tied",
        "llama-head-dim",
        "llama-llama3",
        "llama-linear",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
    ] {
        let from = checkpoint(name);
        let out = tempfile::tempdir().unwrap();
        let file = written(from.path(), GgufType::F32, out.path());
        let golden = floats(&fixture(name).join("golden.safetensors"), "logits").1;
        let diff = max_diff(&logits(&file, name), &golden);
        assert!(diff < 1e-4, "{name}: {diff}");
    }
}

/// The checkpoint of a fixture with some keys of its configuration set.
fn changed(name: &str, changes: &Value) -> TempDir {
    let made = checkpoint(name);
    let path = made.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(&path, config.to_string()).unwrap();
    made
}

/// With what llama.cpp takes for granted, where a fixture differs from that.
fn written_families() -> Vec<(&'static str, Value)> {
    let yarn = json!({
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e2,
        "original_max_position_embeddings": 16,
    });
    vec![
        ("llama-yarn", json!({"rope_parameters": yarn})),
        ("qwen3-yarn", json!({})),
        ("gemma2", json!({"query_pre_attn_scalar": 12})),
        ("gemma3", json!({"query_pre_attn_scalar": 12})),
        ("phi3", json!({})),
        ("phi3-longrope", json!({})),
        ("smollm3", json!({"no_rope_layers": [1, 1]})),
        ("granite", json!({})),
        ("olmo2", json!({})),
        ("olmo3", json!({})),
        ("ministral3", json!({})),
        ("qwen3-moe-sparse", json!({})),
        ("mixtral", json!({})),
    ]
}

#[test]
fn every_newer_family_goes_into_a_file_and_comes_out_the_same() {
    for (name, changes) in written_families() {
        let from = changed(name, &changes);
        let out = tempfile::tempdir().unwrap();
        let file = written(from.path(), GgufType::F32, out.path());
        let [before, after] = [from.path(), &file].map(|path| logits(path, name));
        let diff = max_diff(&after, &before);
        assert!(diff < 1e-5, "{name}: {diff}");
        let [before, after] =
            [from.path(), &file].map(|path| ModelConfig::from_path(path).unwrap());
        assert_eq!(after.family, before.family, "{name}");
        assert_eq!(after.sliding_windows, before.sliding_windows, "{name}");
        if let Ok(kept) = std::env::var("OLORA_KEEP_GGUF") {
            fs::copy(&file, Path::new(&kept).join(format!("{name}.gguf"))).unwrap();
        }
    }
}

/// Files that llama.cpp's converter has made of the fixtures, in the directory
/// that `OLORA_CONVERTED` names.
#[test]
#[ignore = "needs files of llama.cpp's converter"]
fn files_of_the_converter_compute_the_same() {
    let converted = std::env::var("OLORA_CONVERTED").unwrap();
    for (name, changes) in written_families() {
        let file = Path::new(&converted).join(format!("{name}.gguf"));
        let from = changed(name, &changes);
        if name == "llama-yarn" || name == "gemma3" {
            // One was changed before it is written; of the other the converter leaves out the
            // pattern of its windows.
            continue;
        }
        let diff = max_diff(&logits(&file, name), &logits(from.path(), name));
        assert!(diff < 1e-5, "{name}: {diff}");
    }
}

#[test]
fn a_text_model_within_a_larger_one_goes_into_a_file_alone() {
    for name in ["gemma3-multimodal", "mistral3-multimodal"] {
        let from = checkpoint(name);
        let path = from.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        if name.starts_with("gemma3") {
            config["text_config"]["query_pre_attn_scalar"] = json!(12);
        }
        fs::write(&path, config.to_string()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let file = written(from.path(), GgufType::F32, out.path());
        let diff = max_diff(&logits(&file, name), &logits(from.path(), name));
        assert!(diff < 1e-5, "{name}: {diff}");
    }
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_refused() {
    for (name, reason) in [
        ("gemma2", "query_pre_attn_scalar: 20"),
        ("gemma3", "query_pre_attn_scalar: 20"),
        ("smollm3", "no_rope_layers"),
        ("llama-yarn", "beta_fast"),
        ("llama-dynamic", "rope_type: dynamic"),
        ("qwen3-moe", "blocks without experts"),
    ] {
        let from = checkpoint(name);
        let out = tempfile::tempdir().unwrap();
        let (model, config) = load(from.path(), Dtype::F32, &Device::flex()).unwrap();
        let path = out.path().join("model.gguf");
        let error = save_gguf(&model, &config, GgufType::F32, from.path(), &path).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(reason), "{name}: {message}");
        assert!(!path.exists());
    }
}

/// Written by llama.cpp's Python package from the fixtures of the same names:
/// `fixtures/make_gguf.py`.
#[test]
fn files_of_others_compute_what_transformers_does() {
    for name in ["llama-llama3", "qwen2", "qwen3"] {
        let file = fixture("gguf").join(name).with_extension("gguf");
        let golden = floats(&fixture(name).join("golden.safetensors"), "logits").1;
        let diff = max_diff(&logits(&file, name), &golden);
        assert!(diff < 1e-4, "{name}: {diff}");
    }
}

#[test]
fn quantised_weights_are_close_and_halves_are_exact() {
    let from = checkpoint("llama");
    let golden = floats(&fixture("llama").join("golden.safetensors"), "logits").1;
    let out = tempfile::tempdir().unwrap();
    let file = written(from.path(), GgufType::Blocks(BlockFormat::Q8_0), out.path());
    let diff = max_diff(&logits(&file, "llama"), &golden);
    assert!(diff > 0.0 && diff < 0.5, "{diff}");

    let from = checkpoint("llama-sharded-bf16");
    let out = tempfile::tempdir().unwrap();
    let file = written(from.path(), GgufType::Bf16, out.path());
    assert_eq!(
        logits(&file, "llama-sharded-bf16"),
        logits(from.path(), "llama-sharded-bf16")
    );
    let config = ModelConfig::from_path(&file).unwrap();
    assert_eq!(config.stored_dtype(), Some(Dtype::Bf16));
}

#[test]
fn a_directory_saved_from_a_file_has_all_that_transformers_needs() {
    let from = checkpoint("llama-tied");
    let out = tempfile::tempdir().unwrap();
    let file = written(from.path(), GgufType::F32, out.path());
    let (model, config) = load(&file, Dtype::F32, &Device::flex()).unwrap();
    let saved = out.path().join("saved");
    let companions = Companions::read(&file).unwrap();
    save(&model, &config, Dtype::F32, Some(&companions), &saved).unwrap();
    assert_eq!(logits(&saved, "llama-tied"), logits(&file, "llama-tied"));
    let json = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(saved.join(name)).unwrap()).unwrap()
    };
    assert_eq!(json("config.json")["model_type"], "llama");
    assert_eq!(json("config.json")["eos_token_id"], 2);
    assert_eq!(json("tokenizer.json")["model"]["vocab"]["</s>"], 2);
    let config = json("tokenizer_config.json");
    assert_eq!(config["eos_token"], "</s>");
    assert_eq!(config["chat_template"], "{{ messages }}");

    // And back into a file, from what the first file said.
    let again = out.path().join("again.gguf");
    save_gguf(
        &model,
        &ModelConfig::from_path(&file).unwrap(),
        GgufType::F32,
        &file,
        &again,
    )
    .unwrap();
    assert_eq!(logits(&again, "llama-tied"), logits(&file, "llama-tied"));
}

#[test]
fn a_family_that_llama_cpp_has_not_is_refused_by_name() {
    let from = checkpoint("opt");
    let out = tempfile::tempdir().unwrap();
    let (model, config) = load(from.path(), Dtype::F32, &Device::flex()).unwrap();
    let path = out.path().join("model.gguf");
    let message = save_gguf(&model, &config, GgufType::F32, from.path(), &path)
        .unwrap_err()
        .to_string();
    assert!(message.contains("`opt`"), "{message}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn what_identifies_a_base_is_the_file_itself() {
    let from = checkpoint("llama-tied");
    let out = tempfile::tempdir().unwrap();
    let file = written(from.path(), GgufType::F32, out.path());
    assert_eq!(weight_files(&file).unwrap(), std::slice::from_ref(&file));
    let config: Value = serde_json::from_slice(&config_bytes(&file).unwrap()).unwrap();
    assert_eq!(config["hidden_size"], 32);
    assert_eq!(
        weight_files(&fixture("llama-sharded-bf16")).unwrap().len(),
        3
    );
}

#[test]
fn what_is_no_gguf_file_or_is_there_already_is_named() {
    let from = checkpoint("llama-tied");
    let out = tempfile::tempdir().unwrap();
    let file = written(from.path(), GgufType::F32, out.path());
    let (model, config) = load(from.path(), Dtype::F32, &Device::flex()).unwrap();
    let message = save_gguf(&model, &config, GgufType::F32, from.path(), &file)
        .unwrap_err()
        .to_string();
    assert!(message.contains("exists already"), "{message}");

    let error = |path: &Path| {
        let loaded = load(path, Dtype::F32, &Device::flex());
        loaded.map(|_| ()).unwrap_err().to_string()
    };
    let missing = out.path().join("missing.gguf");
    assert!(error(&missing).contains("opening"), "{}", error(&missing));
    let text = out.path().join("text.gguf");
    fs::write(&text, "not one").unwrap();
    assert!(error(&text).contains("text.gguf"), "{}", error(&text));
    let bytes = fs::read(&file).unwrap();
    fs::write(&text, &bytes[..bytes.len() - 1]).unwrap();
    assert!(error(&text).contains("cut short"), "{}", error(&text));
}

/// Both tables of families, this crate's and GGUF's, say what absent keys mean.
#[test]
fn absent_keys_mean_the_same_in_a_gguf_file() {
    let tokenizer = checkpoint("llama");
    for model_type in ["llama", "mistral", "qwen2", "qwen3", "gemma"] {
        let json = json!({
            "model_type": model_type, "vocab_size": 64, "hidden_size": 64, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 32, "max_position_embeddings": 128,
            "bos_token_id": 1, "eos_token_id": 2,
        });
        let json = json.as_object().unwrap().clone();
        let config = ModelConfig::from_json(json, Path::new(model_type)).unwrap();
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("model.gguf");
        let model = config.init(&Device::flex());
        save_gguf(&model, &config, GgufType::F16, tokenizer.path(), &path).unwrap();
        let (_, read) = load(&path, Dtype::F32, &Device::flex()).unwrap();
        let facts = |config: &ModelConfig| {
            let heads = [config.num_attention_heads, config.num_key_value_heads];
            (heads, config.head_dim, config.tie_word_embeddings)
        };
        assert_eq!(facts(&read), facts(&config), "{model_type}");
        assert_eq!(read.activation, config.activation, "{model_type}");
    }
}
