//! LoRA adapters: what is written, and what is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{Tensor, fixture, json, kept, safetensors};
use olora_gguf::{GgufFile, LoraLayer, write_adapter};

/// The factors of `fixtures/peft/llama-lora`: module → (A, B).
fn factors() -> BTreeMap<String, [Tensor; 2]> {
    let tensors = safetensors(&fixture("peft/llama-lora/adapter_model.safetensors"));
    tensors
        .iter()
        .filter_map(|(name, a)| {
            let module = name.strip_suffix(".lora_A.weight")?;
            let b = &tensors[&format!("{module}.lora_B.weight")];
            let module = module.strip_prefix("base_model.model.")?;
            Some((module.to_owned(), [a.clone(), b.clone()]))
        })
        .collect()
}

#[test]
fn adapters_are_written_whole() {
    let factors = factors();
    let layers: Vec<_> = factors
        .iter()
        .map(|(module, [(shape, a), (_, b)])| LoraLayer {
            module,
            a,
            b,
            rank: shape[0],
            scale: 6.0 / 4.0,
        })
        .collect();
    let config = json(&fixture("llama/config.json"));
    let path = kept("llama-lora.gguf");
    write_adapter(&path, &config, 6.0, &layers).unwrap();
    // Reading them is llama.cpp's business; check_gguf.py compares the values.
    let error = GgufFile::open(&path).unwrap_err().to_string();
    assert!(error.contains("general.type: adapter"), "{error}");
}

/// The last `count` numbers of a file.
fn last(path: &Path, count: usize) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let (chunks, _) = bytes[bytes.len() - 4 * count..].as_chunks();
    chunks
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect()
}

#[test]
fn a_scale_of_its_own_goes_into_a_layers_b() {
    let config = json(&fixture("llama/config.json"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("adapter.gguf");
    let (a, b) = (vec![1.0; 2 * 32], vec![1.0; 48 * 2]);
    let layer = LoraLayer {
        module: "model.layers.0.mlp.up_proj",
        a: &a,
        b: &b,
        rank: 2,
        scale: 3.0,
    };
    // llama.cpp multiplies by 8 / 2.
    write_adapter(&path, &config, 8.0, &[layer]).unwrap();
    assert_eq!(last(&path, 48 * 2), vec![0.75; 48 * 2]);
}

/// Why an adapter of one layer is refused.
fn adapter_refusal(folder: &str, module: &str, b: &[f32], alpha: f64) -> String {
    let config = json(&fixture(folder).join("config.json"));
    let directory = tempfile::tempdir().unwrap();
    let layer = LoraLayer {
        module,
        a: &[1.0; 64],
        b,
        rank: 2,
        scale: 1.0,
    };
    let path = directory.path().join("adapter.gguf");
    let error = write_adapter(&path, &config, alpha, &[layer]).unwrap_err();
    assert!(!path.exists());
    error.to_string()
}

#[test]
fn layers_that_llama_cpp_does_not_adapt_are_refused() {
    for (folder, module) in [
        ("llama", "model.embed_tokens"),
        ("llama-tied", "lm_head"),
        ("llama", "model.layers.0.mlp.router"),
    ] {
        let message = adapter_refusal(folder, module, &[1.0; 64], 1.0);
        assert!(message.contains(module), "{message}");
    }
}

#[test]
fn factors_that_do_not_fit_their_rank_are_refused() {
    let message = adapter_refusal("llama", "model.layers.0.mlp.up_proj", &[1.0; 63], 1.0);
    assert!(message.contains("63"), "{message}");
}

#[test]
fn an_alpha_that_llama_cpp_takes_for_none_is_refused() {
    let message = adapter_refusal("llama", "model.layers.0.mlp.up_proj", &[1.0; 64], 0.0);
    assert!(message.contains("alpha 0"), "{message}");
}
