//! Checkpoints into other forms, without a model in between.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use common::{fixture, floats, host, ids};
use olora_files::fnv1a;
use olora_gguf::{GgufFile, GgufType};
use olora_model::{
    Companions, Dtype, Layout, ModelError, Packing, SaveOptions, StoredModel, load_as, save,
};
use olora_packed::BlockFormat;
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

/// The weights' bytes of a directory with one file.
fn tensors(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(directory.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let all = file.iter();
    all.map(|(name, view)| (name.to_owned(), view.data().to_vec()))
        .collect()
}

/// A checkpoint saved without a model, and by way of one.
fn both_ways(from: &Path, dtype: Dtype, out: &TempDir) -> [PathBuf; 2] {
    let [direct, loaded] = ["direct", "loaded"].map(|name| out.path().join(name));
    // Some GGUF files here have no tokenizer.
    let companions = Companions::read(from).ok();
    StoredModel::open(from)
        .unwrap()
        .save(dtype, companions.as_ref(), &direct)
        .unwrap();
    let (model, config) = load_as(from, Dtype::F32, Packing::None, &Device::flex()).unwrap();
    save(&model, &config, dtype, companions.as_ref(), &loaded).unwrap();
    [direct, loaded]
}

#[test]
fn every_form_is_written_as_the_loaded_model_is() {
    for name in [
        "llama",
        "llama-tied",
        "llama-tied-lm-head",
        "llama-sharded-bf16",
        "gemma",
        "opt",
        "qwen3",
        "gemma2",
        "gemma3-multimodal",
        "gemma3-multimodal-v5",
        "phi3-longrope",
        "olmo3",
        "mistral3-multimodal",
        "qwen3-moe",
        "mixtral",
        "pytorch/zip",
        "gguf/qwen2.gguf",
        "gguf/llama-llama3.gguf",
        "pure/model.gguf",
        "quantised/gptq",
        "quantised/awq",
        "quantised/bnb-nf4-double",
        "quantised/mlx-4",
    ] {
        let from = fixture(name);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let out = tempfile::tempdir().unwrap();
            let [direct, loaded] = both_ways(&from, dtype, &out);
            let file_of = |directory: &Path, file: &str| fs::read(directory.join(file)).unwrap();
            assert!(tensors(&direct) == tensors(&loaded), "{name} {dtype:?}");
            assert_eq!(
                file_of(&direct, "config.json"),
                file_of(&loaded, "config.json"),
                "{name}"
            );
            let listed = |directory: &Path| {
                let entries = fs::read_dir(directory).unwrap();
                let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                names
            };
            assert_eq!(listed(&direct), listed(&loaded), "{name}");
        }
    }
}

/// `fixtures/make_pure.py`: the tensors that llama.cpp's quantiser makes, in its
/// pure form, of the same file.
#[test]
fn blocks_are_those_of_llama_cpps_quantiser_for_every_format() {
    let from = fixture("pure/model.gguf");
    let sums = fs::read(fixture("pure/sums.json")).unwrap();
    let sums: Value = serde_json::from_slice(&sums).unwrap();
    let out = tempfile::tempdir().unwrap();
    let model = StoredModel::open(&from).unwrap();
    let formats = sums.as_object().unwrap();
    assert_eq!(formats.len(), 8);
    for (format, expected) in formats {
        let path = out.path().join(format).with_extension("gguf");
        let kind = GgufType::of_name(format).unwrap();
        model.save_gguf(kind, &from, &path).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let mut n = 0;
        for name in file.names() {
            let bytes = match file.packed(name).unwrap() {
                Some(packed) => packed.as_blocks().unwrap().1.into_owned(),
                None => bytemuck::cast_slice(&file.read(name).unwrap()).to_vec(),
            };
            let theirs = &expected[gguf_name(name)];
            assert_eq!(
                theirs[0],
                file.stored_type(name).unwrap(),
                "{format} {name}"
            );
            assert_eq!(
                theirs[1],
                format!("{:016x}", fnv1a(&bytes)),
                "{format} {name}"
            );
            n += 1;
        }
        // Of theirs, the factors of the rotary embedding have no name here.
        assert_eq!(n + 1, expected.as_object().unwrap().len(), "{format}");
    }
}

/// What llama.cpp calls a tensor.
fn gguf_name(name: &str) -> String {
    let name = name.replace("model.layers.", "blk.");
    [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ]
    .iter()
    .fold(name, |name, (ours, theirs)| name.replace(ours, theirs))
}

#[test]
fn what_keeps_its_blocks_is_copied_and_what_does_not_is_counted() {
    let out = tempfile::tempdir().unwrap();
    let from = fixture("pure/model.gguf");
    let at = |name: &str| out.path().join(name);
    let q4 = GgufType::Blocks(BlockFormat::Q4_0);
    let dense = StoredModel::open(&from).unwrap();
    assert!(dense.unpacked(None).is_empty());
    dense.save_gguf(q4, &from, &at("a.gguf")).unwrap();

    let packed = StoredModel::open(&at("a.gguf")).unwrap();
    for format in [q4, GgufType::AsPacked] {
        assert!(packed.unpacked(Some(format)).is_empty());
    }
    let count = BTreeMap::from([("Q4_0".to_owned(), 9)]);
    assert_eq!(packed.unpacked(Some(GgufType::F16)), count);
    assert_eq!(packed.unpacked(None), count);
    packed
        .save_gguf(GgufType::AsPacked, &at("a.gguf"), &at("b.gguf"))
        .unwrap();
    assert!(fs::read(at("a.gguf")).unwrap() == fs::read(at("b.gguf")).unwrap());
    assert!(matches!(
        dense.save_gguf(GgufType::AsPacked, &from, &at("c.gguf")),
        Err(ModelError::NotInBlocks)
    ));
    assert!(!at("c.gguf").exists());
}

/// As mlx-lm writes and reads it: the same names, `format` in the metadata, and
/// an index.
#[test]
fn a_directory_for_mlx_says_so_and_has_an_index() {
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("mlx");
    let from = fixture("quantised/mlx-4");
    let options = SaveOptions {
        layout: Layout::Mlx,
        ..Dtype::F16.into()
    };
    let model = StoredModel::open(&from).unwrap();
    model.save(options, None, &to).unwrap();
    let bytes = fs::read(to.join("model.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "mlx");
    let read = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(to.join(name)).unwrap()).unwrap()
    };
    let index = read("model.safetensors.index.json");
    let map = index["weight_map"].as_object().unwrap();
    assert!(map.values().all(|file| file == "model.safetensors"));
    assert_eq!(map.len(), tensors(&to).len());
    // It is dense now.
    let config = read("config.json");
    assert!(config.get("quantization").is_none() && config["dtype"] == "float16");
}

#[test]
fn what_is_wrong_is_told_and_nothing_is_left() {
    let out = tempfile::tempdir().unwrap();
    let broken = out.path().join("broken");
    fs::create_dir(&broken).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture("llama").join(file), broken.join(file)).unwrap();
    }
    // The last value of the weights.
    let mut bytes = fs::read(broken.join("model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(broken.join("model.safetensors"), bytes).unwrap();
    let to = out.path().join("to");
    let refused = StoredModel::open(&broken)
        .unwrap()
        .save(Dtype::F32, None, &to);
    assert!(
        matches!(refused, Err(ModelError::NotFiniteWeight { .. })),
        "{refused:?}"
    );
    let left: Vec<_> = fs::read_dir(out.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");

    let config = fs::read_to_string(broken.join("config.json")).unwrap();
    let other = config.replace("\"vocab_size\": 64", "\"vocab_size\": 65");
    fs::write(broken.join("config.json"), other).unwrap();
    assert!(matches!(
        StoredModel::open(&broken),
        Err(ModelError::Mismatch { .. })
    ));
}

#[test]
fn a_converted_model_computes_the_same() {
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("to");
    let device = Device::flex();
    StoredModel::open(&fixture("gguf/qwen3.gguf"))
        .unwrap()
        .save(Dtype::F32, None, &to)
        .unwrap();
    let golden = fixture("qwen3/golden.safetensors");
    let (model, _) = load_as(&to, Dtype::F32, Packing::Stored, &device).unwrap();
    let found = host(model.forward(ids(&golden, "input_ids", &device)));
    let diff = common::max_diff(&found, &floats(&golden, "logits").1);
    assert!(diff < 1e-4, "{diff}");
}
