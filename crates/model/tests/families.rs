//! What is to hold for each family beside its logits: PEFT's names, and a packed
//! base.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use burn::tensor::Device;
use common::{fixture, floats, host, ids, max_diff};
use olora_adapter::{PeftAdapter, PeftForm, TaskType, merge, save_peft};
use olora_model::{Dtype, Packing, Quantize, load, load_as, packed_matrices, save};
use safetensors::SafeTensors;

/// Those that are trained as LLaMA is, or have losses elsewhere.
const OTHERS: [&str; 6] = ["llama", "mistral", "qwen2", "qwen3", "gemma", "opt"];

/// Those that PEFT has trained ten steps on.
const TRAINED: [&str; 10] = [
    "gemma2",
    "gemma3",
    "phi3",
    "smollm3",
    "granite",
    "olmo2",
    "olmo3",
    "ministral3",
    "qwen3-moe",
    "mixtral",
];

fn names_and_values(directory: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(directory.join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec())))
        .collect()
}

#[test]
fn what_is_saved_is_pefts_own_file_and_what_is_merged_computes_the_same() {
    for family in TRAINED {
        let theirs = fixture("peft").join(format!("train-{family}/final"));
        let adapter = PeftAdapter::read(&theirs).unwrap();
        let config = adapter.config.clone();
        let (base, _) = load(&fixture(family), Dtype::F32, &Device::flex()).unwrap();
        let adapted = adapter.attach(base).unwrap();
        let out = tempfile::tempdir().unwrap();
        let task = Some(TaskType::CausalLm);
        save_peft(&adapted, &config, PeftForm::Plain, task, family, out.path()).unwrap();
        assert!(
            names_and_values(out.path()) == names_and_values(&theirs),
            "{family}: another file than PEFT's"
        );

        // Merged, it computes what PEFT's does.
        let golden = fixture("peft").join(format!("train-{family}/logits.safetensors"));
        let merged = merge(adapted).unwrap();
        let logits = host(merged.forward(ids(&golden, "input_ids", &Device::flex())));
        let diff = max_diff(&logits, &floats(&golden, "logits").1);
        assert!(diff < 1e-4, "{family} merged: {diff}");
    }
}

#[test]
fn a_packed_base_computes_what_its_unpacked_values_do() {
    for family in OTHERS.into_iter().chain(TRAINED) {
        let directory = fixture(family);
        let golden = directory.join("golden.safetensors");
        let device = Device::flex();
        let packing = Packing::As(Quantize::Q8_0);
        let (packed, config) = load_as(&directory, Dtype::F32, packing, &device).unwrap();
        let matrices = packed_matrices(&directory, &config, packing).unwrap();
        assert!(!matrices.is_empty(), "{family}: nothing is packed");

        let out = tempfile::tempdir().unwrap();
        let unpacked = out.path().join("unpacked");
        save(&packed, &config, Dtype::F32, None, &unpacked).unwrap();
        let (unpacked, _) = load(&unpacked, Dtype::F32, &device).unwrap();
        let logits =
            |llama: &olora_model::Llama| host(llama.forward(ids(&golden, "input_ids", &device)));
        let diff = max_diff(&logits(&packed), &logits(&unpacked));
        assert!(diff < 1e-4, "{family}: {diff}");
        let (dense, _) = load(&directory, Dtype::F32, &device).unwrap();
        let lost = max_diff(&logits(&packed), &logits(&dense));
        assert!(lost > 0.0, "{family}: packing changed nothing");
    }
}
