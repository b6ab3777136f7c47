//! Checkpoints saved in several files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{collections::BTreeMap, fs};

use burn::tensor::Device;
use common::{fixture, host, ids};
use olora_model::{Dtype, SaveOptions, load, save};
use safetensors::SafeTensors;
use serde_json::Value;

#[test]
fn shards_and_their_index_hold_the_whole_model() {
    const LIMIT: u64 = 10_000;
    let directory = fixture("llama");
    let device = Device::flex();
    let (model, config) = load(&directory, Dtype::F32, &device).unwrap();
    let out = tempfile::tempdir().unwrap();
    let saved = out.path().join("saved");
    let options = SaveOptions {
        shard_bytes: LIMIT,
        ..Dtype::F32.into()
    };
    save(&model, &config, options, Some(&directory), &saved).unwrap();
    assert!(!saved.join("model.safetensors").exists());

    let index = fs::read(saved.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let map: BTreeMap<String, String> =
        serde_json::from_value(index["weight_map"].clone()).unwrap();
    let (mut total, mut n_tensors) = (0, 0);
    let mut files: Vec<&String> = map.values().collect();
    files.sort();
    files.dedup();
    for (i, file) in files.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, files.len());
        assert_eq!(**file, name);
        let bytes = fs::read(saved.join(file)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let sizes = tensors.iter().map(|(name, view)| {
            assert_eq!(&map[name], *file, "{name}");
            view.data().len() as u64
        });
        let sizes: Vec<u64> = sizes.collect();
        assert!(sizes.iter().sum::<u64>() <= LIMIT || sizes.len() == 1);
        total += sizes.iter().sum::<u64>();
        n_tensors += sizes.len();
    }
    assert!(files.len() > 3, "{files:?}");
    assert_eq!(n_tensors, map.len());
    assert_eq!(index["metadata"]["total_size"], total);
    assert_eq!(index["metadata"]["total_parameters"], total / 4);

    let (again, _) = load(&saved, Dtype::F32, &device).unwrap();
    let input = ids(&directory.join("golden.safetensors"), "input_ids", &device);
    assert_eq!(
        host(again.forward(input.clone())),
        host(model.forward(input))
    );
}

/// As `LlamaModel.save_pretrained` names them, without the head's class around it.
#[test]
fn a_decoder_saved_without_its_prefix_loads() {
    let directory = fixture("llama-tied");
    let copied = tempfile::tempdir().unwrap();
    fs::copy(
        directory.join("config.json"),
        copied.path().join("config.json"),
    )
    .unwrap();
    let bytes = fs::read(directory.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let bare = tensors.iter().map(|(name, view)| {
        let name = name.strip_prefix("model.").unwrap().to_owned();
        (name, view)
    });
    let bare: Vec<_> = bare.collect();
    fs::write(
        copied.path().join("model.safetensors"),
        safetensors::serialize(bare, None).unwrap(),
    )
    .unwrap();
    let device = Device::flex();
    let logits = |directory| {
        let (model, _) = load(directory, Dtype::F32, &device).unwrap();
        let golden = fixture("llama-tied").join("golden.safetensors");
        host(model.forward(ids(&golden, "input_ids", &device)))
    };
    assert_eq!(logits(copied.path()), logits(&directory));
}
