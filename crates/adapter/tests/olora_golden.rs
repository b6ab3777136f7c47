//! The starts of `OLoRA` and `PiSSA` against PEFT's own: see `fixtures/README.md`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{fs, path::Path};

use burn::{
    module::Param,
    nn::{Linear, LinearConfig},
    tensor::{DType, Device, Tensor, TensorData},
};
use olora_adapter::{AdapterConfig, LowRank, Method, Placement, attach};
use safetensors::SafeTensors;
use serde_json::Value;

struct Golden {
    bytes: Vec<u8>,
    cases: Value,
}

impl Golden {
    fn read(name: &str) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/peft");
        let read = |end: &str| fs::read(fixtures.join(format!("{name}.{end}"))).unwrap();
        Self {
            bytes: read("safetensors"),
            cases: serde_json::from_slice(&read("json")).unwrap(),
        }
    }

    /// A tensor in PyTorch's orientation, turned into Burn's.
    fn transposed(&self, name: &str, device: &Device) -> Tensor<2> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).unwrap();
        let values: Vec<f32> = view
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect();
        let shape = [view.shape()[0], view.shape()[1]];
        Tensor::<2>::from_data(TensorData::new(values, shape), (device, DType::F32)).transpose()
    }
}

fn linear(weight: Tensor<2>, device: &Device) -> Linear {
    let [d_in, d_out] = weight.dims();
    let layer = LinearConfig::new(d_in, d_out).with_bias(false).init(device);
    Linear {
        weight: Param::initialized(layer.weight.id, weight),
        bias: None,
    }
}

fn close(ours: Tensor<2>, golden: &Tensor<2>, what: &str) {
    assert_eq!(ours.dims(), golden.dims(), "{what}");
    let size = golden.clone().abs().max().into_scalar::<f32>();
    let diff = (ours - golden.clone()).abs().max().into_scalar::<f32>();
    assert!(
        size > 0.01 && diff < 1e-5 * size.max(1.0),
        "{what}: differs by {diff}, size {size}"
    );
}

#[test]
fn factors_product_and_residual_equal_pefts_on_every_shape_and_rank() {
    let golden = Golden::read("olora-init");
    let device = Device::flex();
    let cases = golden.cases.as_object().unwrap();
    assert_eq!(cases.len(), 9);
    for (name, case) in cases {
        let rank = case["r"].as_u64().unwrap() as usize;
        let config = AdapterConfig {
            placement: Placement::Residual,
            rank,
            alpha: case["alpha"].as_f64().unwrap(),
            ..AdapterConfig::default()
        };
        let weight = golden.transposed(&format!("{name}.weight"), &device);
        let model = vec![linear(weight, &device)];
        let model = attach(model, &config, 0, &mut |_, _| {}).unwrap();
        let low_rank = model[0].weight.reparameterization::<LowRank>().unwrap();

        let a = golden.transposed(&format!("{name}.lora_A"), &device);
        let b = golden.transposed(&format!("{name}.lora_B"), &device);
        close(
            low_rank.a.val(),
            &a,
            &format!("{name}: A with LAPACK's signs"),
        );
        close(
            low_rank.b.val(),
            &b,
            &format!("{name}: B with LAPACK's signs"),
        );
        close(
            low_rank.a.val().matmul(low_rank.b.val()),
            &a.matmul(b),
            &format!("{name}: the product"),
        );
        let residual = golden.transposed(&format!("{name}.residual"), &device);
        close(
            model[0].weight.base(),
            &residual,
            &format!("{name}: the residual"),
        );
    }
}

#[test]
fn pissas_product_and_residual_equal_pefts_exact_and_randomised() {
    let golden = Golden::read("pissa-init");
    let device = Device::flex();
    let cases = golden.cases.as_object().unwrap();
    assert_eq!(cases.len(), 3);
    for (name, case) in cases {
        for iterations in [None, Some(4)] {
            let config = AdapterConfig {
                method: Method::Pissa,
                iterations,
                placement: Placement::Residual,
                rank: case["r"].as_u64().unwrap() as usize,
                alpha: case["alpha"].as_f64().unwrap(),
                ..AdapterConfig::default()
            };
            let scale = case["scale"].as_f64().unwrap();
            let weight = golden.transposed(&format!("{name}.weight"), &device);
            let model = vec![linear(weight, &device)];
            let model = attach(model, &config, 0, &mut |_, _| {}).unwrap();
            let low_rank = model[0].weight.reparameterization::<LowRank>().unwrap();
            let ours = low_rank.a.val().matmul(low_rank.b.val());
            let what = format!("{name}, {iterations:?}");
            let product = |a: &str, b: &str| {
                let factor = |part: &str| golden.transposed(&format!("{name}.{part}"), &device);
                factor(a).matmul(factor(b))
            };
            close(ours.clone(), &product("lora_A", "lora_B"), &what);
            let residual = golden.transposed(&format!("{name}.residual"), &device);
            close(model[0].weight.base(), &residual, &what);
            // PEFT's own randomised product is less exact than ours, which looks at more columns.
            let theirs = golden.transposed(&format!("{name}.product_niter_4"), &device);
            let apart = (ours.mul_scalar(scale) - theirs)
                .abs()
                .max()
                .into_scalar::<f32>();
            assert!(apart < 2e-4, "{what}: {apart}");
        }
    }
}
