//! What is not finite is an error that names where it begins.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, ops::ControlFlow, path::Path};

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Tensor, TensorData},
};
use common::fixture;
use olora_adapter::{AdapterConfig, attach};
use olora_model::{
    Dtype, Llama, ModelConfig, ModelError, NotFinite, Sampling, first_not_finite, generate, load,
    save,
};
use safetensors::SafeTensors;
use tempfile::TempDir;

/// A copy of a fixture with one value of one tensor replaced.
fn damaged(name: &str, tensor: &str, element: usize, value: f32) -> TempDir {
    let copied = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture(name).join(file), copied.path().join(file)).unwrap();
    }
    let path = copied.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let data = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensor(tensor)
        .unwrap();
    let start = data.data().as_ptr() as usize - bytes.as_ptr() as usize + 4 * element;
    bytes[start..start + 4].copy_from_slice(&value.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    copied
}

/// The same, in memory: a file with such a value is not loaded.
fn spoilt(name: &str, tensor: &'static str, element: usize, value: f32) -> Llama {
    struct Spoil {
        path: Vec<String>,
        tensor: &'static str,
        element: usize,
        value: f32,
    }
    impl ModuleMapper for Spoil {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if self.path.join(".") != self.tensor {
                return param;
            }
            param.map(|weight| {
                let (shape, device) = (weight.shape(), weight.device());
                let mut values: Vec<f32> = weight.into_data().try_into_vec().unwrap();
                values[self.element] = self.value;
                Tensor::from_data(TensorData::new(values, shape), &device)
            })
        }
    }
    let (model, _) = load(&fixture(name), Dtype::F32, &Device::flex()).unwrap();
    model.map(&mut Spoil {
        path: Vec::new(),
        tensor,
        element,
        value,
    })
}

fn load_error(directory: &Path, dtype: Dtype) -> String {
    let loaded = load(directory, dtype, &Device::flex());
    loaded.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn a_file_with_what_is_no_number_is_not_loaded_and_its_place_is_named() {
    for (value, shown) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let tensor = "model.layers.1.mlp.down_proj.weight";
        // The second row, of 48 columns.
        let directory = damaged("llama", tensor, 48 + 5, value);
        let message = load_error(directory.path(), Dtype::F32);
        for part in [
            format!("`{tensor}` in "),
            "model.safetensors".to_owned(),
            format!("holds {shown} at [1, 5]"),
        ] {
            assert!(message.contains(&part), "{part}: {message}");
        }
    }
}

#[test]
fn finite_weights_that_float16_does_not_hold_are_said_as_that() {
    let directory = damaged("llama", "model.norm.weight", 3, -1.2e5);
    let message = load_error(directory.path(), Dtype::F16);
    for part in [
        "`model.norm.weight`",
        "1.2e5",
        "float16",
        "65504",
        "bfloat16 or float32",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    for dtype in [Dtype::F32, Dtype::Bf16] {
        load(directory.path(), dtype, &Device::flex()).unwrap();
    }
}

#[test]
fn a_model_with_what_is_no_number_is_not_written() {
    let tensor = "model.layers.0.self_attn.q_proj.weight";
    // In memory the matrix is the other way around: row 1 is column 1 of the file's.
    let model = spoilt("llama", tensor, 32 + 4, f32::INFINITY);
    let config = ModelConfig::from_dir(&fixture("llama")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let place = out.path().join("written");
    for dtype in [Dtype::F32, Dtype::F16] {
        let error = save(&model, &config, dtype, None, &place).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains(&format!("`{tensor}` holds inf at [4, 1]"))
                && message.contains("nothing was written"),
            "{message}"
        );
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }
}

/// The error of generating, and how many tokens came before it.
fn failure(model: &Llama, sampling: &Sampling) -> (usize, ModelError) {
    let mut n_tokens = 0;
    let result = generate(model, &[1, 2, 3], 4, sampling, &[], |_| {
        n_tokens += 1;
        ControlFlow::Continue(())
    });
    (n_tokens, result.unwrap_err())
}

fn warm() -> Sampling {
    Sampling {
        temperature: 1.0,
        top_k: 5,
        top_p: 0.9,
        ..Sampling::default()
    }
}

#[test]
fn generating_from_a_nan_weight_fails_and_names_it() {
    for (name, tensor) in [
        ("llama", "model.layers.1.mlp.down_proj.weight"),
        ("llama", "model.norm.weight"),
        ("llama", "lm_head.weight"),
        ("opt", "model.decoder.layers.0.fc1.bias"),
        ("opt", "model.decoder.final_layer_norm.weight"),
    ] {
        let model = spoilt(name, tensor, 0, f32::NAN);
        for sampling in [Sampling::default(), warm()] {
            let (n_tokens, error) = failure(&model, &sampling);
            let message = error.to_string();
            assert!(
                message.contains("the logits of the next token")
                    && message.contains(&format!("`{tensor}` holds NaN")),
                "{message}"
            );
            assert_eq!(n_tokens, 0);
        }
    }
}

/// The row of a token that was not given reaches the logits through the head.
#[test]
fn a_tied_embedding_is_named_from_either_end() {
    for row in [2, 40] {
        let model = spoilt(
            "llama-tied",
            "model.embed_tokens.weight",
            row * 32,
            f32::INFINITY,
        );
        let message = failure(&model, &Sampling::default()).1.to_string();
        assert!(
            message.contains("`model.embed_tokens.weight` holds inf"),
            "{message}"
        );
    }
}

/// Weights that are finite, and too large for what is computed with them.
#[test]
fn a_layer_that_overflows_is_named_if_its_weights_are_finite() {
    let norm = "model.layers.1.post_attention_layernorm.weight";
    let model = spoilt("llama", norm, 0, 3e38);
    let (_, error) = failure(&model, &Sampling::default());
    let message = error.to_string();
    assert!(
        message.contains("the output of layer 1 holds") && message.contains("weights are finite"),
        "{message}"
    );
    let ModelError::NotFinite {
        first: Some(NotFinite::Output { of, .. }),
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(of, "layer 1");
}

const FACTOR: &str = "model.layers.1.self_attn.v_proj.weight.low_rank.b";

#[test]
fn an_adapters_factor_is_named_by_its_path() {
    struct Spoil(Vec<String>);
    impl ModuleMapper for Spoil {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.0.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if self.0.join(".") == FACTOR {
                return param.map(|factor| factor.mul_scalar(f32::NAN));
            }
            param
        }
    }
    let (model, _) = load(&fixture("llama"), Dtype::F32, &Device::flex()).unwrap();
    let config = AdapterConfig {
        rank: 2,
        alpha: 2.0,
        ..AdapterConfig::default()
    };
    let model = attach(model, &config, 1, &mut |_, _| {}).unwrap();
    let model = model.map(&mut Spoil(Vec::new()));
    let message = failure(&model, &Sampling::default()).1.to_string();
    assert!(
        message.contains(&format!("`{FACTOR}` holds NaN")),
        "{message}"
    );
}

#[test]
fn a_whole_pass_without_such_values_finds_nothing() {
    let device = Device::flex();
    for name in ["llama-tied", "gemma", "opt"] {
        let (model, _) = load(&fixture(name), Dtype::F32, &device).unwrap();
        // More positions than logits are made for at a time, in two rows.
        let ids = TensorData::new(vec![3_i32; 2 * 40], [2, 40]);
        let embedded = model.embed(Tensor::from_data(ids, &device));
        let documents = vec![vec![30], vec![20, 20]];
        for positions in [
            model.positions(&embedded, 0),
            model.positions_in_documents(&embedded, &documents),
        ] {
            let found = first_not_finite(&model, embedded.clone(), &positions).unwrap();
            assert_eq!(found, None, "{name}");
        }
    }
}
