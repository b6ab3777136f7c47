//! OLoRA's start against PEFT's own: see `fixtures/README.md`.

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
use olora_adapter::{AdapterConfig, LowRank, Placement, attach};
use safetensors::SafeTensors;
use serde_json::Value;

struct Golden {
    bytes: Vec<u8>,
    cases: Value,
}

impl Golden {
    fn read() -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/peft");
        Self {
            bytes: fs::read(fixtures.join("olora-init.safetensors")).unwrap(),
            cases: serde_json::from_slice(&fs::read(fixtures.join("olora-init.json")).unwrap())
                .unwrap(),
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
        size > 0.05 && diff < 1e-5 * size.max(1.0),
        "{what}: differs by {diff}, size {size}"
    );
}

#[test]
fn factors_product_and_residual_equal_pefts_on_every_shape_and_rank() {
    let golden = Golden::read();
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
