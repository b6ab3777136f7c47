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
use olora_model::{Companions, Dtype, SaveOptions, load, save};
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
    let companions = Companions::read(&directory).unwrap();
    save(&model, &config, options, Some(&companions), &saved).unwrap();
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

/// A directory with the fixture's weights in two files, an index that says so,
/// and what `change` does to the second file's tensors and to the index.
fn in_two(change: impl FnOnce(&mut Vec<String>, &mut Value)) -> tempfile::TempDir {
    let directory = fixture("llama");
    let made = tempfile::tempdir().unwrap();
    let config = "config.json";
    fs::copy(directory.join(config), made.path().join(config)).unwrap();
    let bytes = fs::read(directory.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<String> = tensors.names().into_iter().map(str::to_owned).collect();
    names.sort();
    let mut second = names.split_off(9);
    let files = ["alder.safetensors", "thornby.safetensors"];
    let mut index = serde_json::json!({"weight_map": {}});
    for (names, file) in [(&names, files[0]), (&second, files[1])] {
        for name in names {
            index["weight_map"][name] = file.into();
        }
    }
    change(&mut second, &mut index);
    for (names, file) in [(&names, files[0]), (&second, files[1])] {
        let views = names
            .iter()
            .map(|name| (name, tensors.tensor(name).unwrap()));
        let bytes = safetensors::serialize(views, None).unwrap();
        fs::write(made.path().join(file), bytes).unwrap();
    }
    let path = made.path().join("model.safetensors.index.json");
    fs::write(path, index.to_string()).unwrap();
    made
}

fn error(made: &tempfile::TempDir) -> String {
    let loaded = load(made.path(), Dtype::F32, &Device::flex());
    loaded.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn a_tensor_in_two_files_is_refused_with_both() {
    load(in_two(|_, _| {}).path(), Dtype::F32, &Device::flex()).unwrap();
    let made = in_two(|second, _| second.push("lm_head.weight".to_owned()));
    let message = error(&made);
    for part in [
        "`lm_head.weight`",
        "alder.safetensors",
        "thornby.safetensors",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn an_index_of_files_that_are_not_there_is_refused_with_their_names() {
    for (file, expected) in [
        ("jorun.safetensors", "not there"),
        ("../alder.safetensors", "within the directory"),
        ("/alder.safetensors", "within the directory"),
    ] {
        let made = in_two(|_, index| index["weight_map"]["model.norm.weight"] = file.into());
        let message = error(&made);
        assert!(
            message.contains(file) && message.contains(expected) && message.contains("model.norm"),
            "{message}"
        );
    }
    let made = in_two(|_, index| index["weight_map"] = serde_json::json!({}));
    assert!(error(&made).contains("names no tensor"));
    let twice = r#"{"weight_map": {"zora": "alder.safetensors", "zora": "thornby.safetensors"}}"#;
    fs::write(made.path().join("model.safetensors.index.json"), twice).unwrap();
    assert!(error(&made).contains("`zora` is there twice"));
}

#[test]
fn a_base_that_is_gone_is_not_one_without_a_tokenizer() {
    let out = tempfile::tempdir().unwrap();
    let gone = out.path().join("oxmere");
    let message = Companions::read(&gone).unwrap_err().to_string();
    assert!(message.contains("oxmere"), "{message}");
    fs::create_dir(&gone).unwrap();
    Companions::read(&gone).unwrap();
}
