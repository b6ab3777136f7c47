//! What is not finite is an error that names where it begins.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, ops::ControlFlow};

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Tensor, TensorData},
};
use common::fixture;
use olora_adapter::{AdapterConfig, attach};
use olora_model::{
    Dtype, Llama, ModelError, NotFinite, Sampling, first_not_finite, generate, load,
};
use safetensors::SafeTensors;

/// A fixture with one value of one tensor replaced.
fn spoilt(name: &str, tensor: &str, element: usize, value: f32) -> Llama {
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
    let loaded = load(copied.path(), Dtype::F32, &Device::flex());
    loaded.unwrap().0
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
