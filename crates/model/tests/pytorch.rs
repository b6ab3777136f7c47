//! Checkpoints as `torch.save` wrote them: see `fixtures/make_pytorch.py`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use burn::tensor::Device;
use common::fixture;
use olora_model::{Dtype, ModelError, load, save};
use tempfile::TempDir;

const FILE: &str = "pytorch_model.bin";

/// All weights of a checkpoint, as the bytes of the file that they are saved as.
fn weights(directory: &Path) -> Vec<u8> {
    let (model, config) = load(directory, Dtype::F32, &Device::flex()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let saved = out.path().join("saved");
    save(&model, &config, Dtype::F32, None, &saved).unwrap();
    fs::read(saved.join("model.safetensors")).unwrap()
}

/// A directory with the configuration of the fixtures and this weight file.
fn with_file(bytes: &[u8]) -> TempDir {
    let made = tempfile::tempdir().unwrap();
    let config = fixture("pytorch/zip").join("config.json");
    fs::copy(config, made.path().join("config.json")).unwrap();
    fs::write(made.path().join(FILE), bytes).unwrap();
    made
}

fn error(directory: &Path) -> ModelError {
    let loaded = load(directory, Dtype::F32, &Device::flex());
    loaded.map(|_| ()).unwrap_err()
}

#[test]
fn every_container_holds_the_same_weights() {
    let expected = weights(&fixture("pytorch/expected"));
    for name in ["zip", "legacy", "sharded"] {
        let found = weights(&fixture("pytorch").join(name));
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn safetensors_are_taken_where_both_are_there() {
    let both = with_file(b"not read");
    let weights = fixture("pytorch/expected").join("model.safetensors");
    fs::copy(weights, both.path().join("model.safetensors")).unwrap();
    load(both.path(), Dtype::F32, &Device::flex()).unwrap();
}

#[test]
fn what_would_run_a_command_is_refused_by_name_and_not_run() {
    for name in ["evil-zip", "evil-legacy"] {
        let message = error(&fixture("pytorch").join(name)).to_string();
        for part in [FILE, "`posix.system`", "save_pretrained"] {
            assert!(message.contains(part), "{name}: {message}");
        }
        assert!(!Path::new("olora-ran-a-pickle").exists());
    }
}

#[test]
fn a_file_cut_short_anywhere_is_an_error() {
    for name in ["zip", "legacy"] {
        let bytes = fs::read(fixture("pytorch").join(name).join(FILE)).unwrap();
        for length in (0..bytes.len()).step_by(23) {
            let error = error(with_file(&bytes[..length]).path());
            assert!(
                matches!(error, ModelError::Malformed { .. }),
                "{name} cut at {length}: {error}"
            );
        }
    }
}

#[test]
fn no_damaged_byte_is_more_than_an_error() {
    for name in ["zip", "legacy"] {
        let bytes = fs::read(fixture("pytorch").join(name).join(FILE)).unwrap();
        let mut refused = 0;
        for i in (0..bytes.len()).step_by(5) {
            let mut damaged = bytes.clone();
            damaged[i] ^= 0x55;
            let loaded = load(with_file(&damaged).path(), Dtype::F32, &Device::flex());
            refused += usize::from(loaded.is_err());
        }
        // Padding and the weights of a legacy file have no checksum.
        assert!(refused > 100, "{name}: {refused} of {}", bytes.len());
    }
}

#[test]
fn compressed_tensors_are_refused() {
    let bytes = fs::read(fixture("pytorch/compressed.bin")).unwrap();
    let message = error(with_file(&bytes).path()).to_string();
    assert!(message.contains("compressed"), "{message}");
}

#[test]
fn an_index_that_leads_out_of_the_directory_is_refused() {
    let made = with_file(b"");
    fs::remove_file(made.path().join(FILE)).unwrap();
    for file in ["../model.bin", "/model.bin", "", "."] {
        let index = serde_json::json!({"weight_map": {"lm_head.weight": file}});
        fs::write(
            made.path().join("pytorch_model.bin.index.json"),
            index.to_string(),
        )
        .unwrap();
        let message = error(made.path()).to_string();
        assert!(message.contains("lm_head.weight"), "{file}: {message}");
    }
}

#[test]
fn a_directory_without_weights_says_what_was_looked_for() {
    let made = with_file(b"");
    fs::remove_file(made.path().join(FILE)).unwrap();
    let message = error(made.path()).to_string();
    assert!(
        message.contains("model.safetensors and pytorch_model.bin"),
        "{message}"
    );
}

/// An archive of one stored entry.
fn archive_of(pickle: &[u8]) -> Vec<u8> {
    const NAME: &[u8] = b"archive/data.pkl";
    let mut crc = !0_u32;
    for byte in pickle {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    let length = pickle.len() as u32;
    let mut about = Vec::new();
    for part in [0_u16, 0, 0, 0] {
        about.extend(part.to_le_bytes());
    }
    for part in [!crc, length, length] {
        about.extend(part.to_le_bytes());
    }
    about.extend((NAME.len() as u16).to_le_bytes());
    about.extend(0_u16.to_le_bytes());
    let local = [b"PK\x03\x04\x14\0", &about[..], NAME].concat();
    let mut central = [b"PK\x01\x02\x14\0\x14\0", &about[..]].concat();
    central.extend([0; 14]);
    central.extend(NAME);
    let mut end = b"PK\x05\x06\0\0\0\0\x01\0\x01\0".to_vec();
    end.extend((central.len() as u32).to_le_bytes());
    end.extend(((local.len() + pickle.len()) as u32).to_le_bytes());
    end.extend(0_u16.to_le_bytes());
    [&local[..], pickle, &central, &end].concat()
}

#[test]
fn a_pickle_of_countless_objects_is_refused_before_they_are_made() {
    let nothing = error(with_file(&archive_of(b"}.")).path()).to_string();
    assert!(
        nothing.contains("0 tensors"),
        "the archive is whole: {nothing}"
    );
    let many = [vec![b'}'; 1_500_000], b".".to_vec()].concat();
    for bytes in [archive_of(&many), many] {
        let message = error(with_file(&bytes).path()).to_string();
        assert!(
            message.contains(FILE) && message.contains("instructions"),
            "{message}"
        );
    }
}

/// `expand` makes a matrix of any size out of one number.
#[test]
fn views_that_are_larger_than_the_file_are_refused() {
    // A storage of one f32, seen as 2²⁰ by 2¹⁰ with strides of zero.
    let mut pickle = b"}(X\x06\0\0\0Oxmerectorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\0".to_vec();
    pickle.extend(b"J\0\0\x10\0M\0\x04\x86K\0K\0\x86\x89}tRu.");
    let mut bytes = vec![0x80, 2];
    bytes.extend(pickle);
    let error = error(with_file(&archive_of(&bytes)).path());
    assert!(matches!(error, ModelError::Malformed { .. }), "{error}");
}
