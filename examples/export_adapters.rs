//! Writes adapters with known logits, for `fixtures/check_peft.py` to load
//! with the real PEFT.
//!
//! ```text
//! cargo run --release -p olora-examples --example export_adapters -- fixtures/exports
//! python fixtures/check_peft.py --base fixtures/llama --record fixtures/exports/check.json fixtures/exports/{lora,olora-plain,olora-raw}
//! ```

use std::{fs, path::Path};

use anyhow::Context;
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Device, Distribution, Int, Tensor, TensorData},
};
use olora_adapter::{AdapterConfig, Method, PeftForm, attach, save_peft};
use olora_model::{Llama, WeightType, load};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

fn main() -> anyhow::Result<()> {
    let out = std::env::args()
        .nth(1)
        .context("give the directory to write to")?;
    for (name, method, form) in [
        ("lora", Method::Lora, PeftForm::Plain),
        ("olora-plain", Method::Olora, PeftForm::Plain),
        ("olora-raw", Method::Olora, PeftForm::Native),
    ] {
        export(&Path::new(&out).join(name), method, form)?;
    }
    Ok(())
}

fn export(directory: &Path, method: Method, form: PeftForm) -> anyhow::Result<()> {
    let device = Device::default();
    device.seed(3);
    let (base, _) = load(Path::new("fixtures/llama"), WeightType::F32, &device)?;
    let config = AdapterConfig {
        method,
        rank: 4,
        alpha: 6.0,
        exclude: vec!["lm_head".to_owned()],
        ..AdapterConfig::default()
    };
    let model = attach(base, &config, 1, &mut |_, _| {})?.map(&mut Perturb(Vec::new()));
    save_peft(
        &model,
        &config,
        form,
        "fixtures/llama",
        &directory.join("adapter"),
    )?;

    let golden = fs::read("fixtures/llama/golden.safetensors")?;
    let golden = SafeTensors::deserialize(&golden)?;
    let ids = golden.tensor("input_ids")?;
    let values: Vec<i32> = ids
        .data()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&b| i32::from_le_bytes(b))
        .collect();
    let shape = [ids.shape()[0], ids.shape()[1]];
    let logits = logits(&model, values, shape, &device);
    let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
    let n_vocab = logits.len() / (shape[0] * shape[1]);
    let tensors = [
        (
            "input_ids",
            TensorView::new(Dtype::I32, shape.to_vec(), ids.data())?,
        ),
        (
            "logits",
            TensorView::new(Dtype::F32, vec![shape[0], shape[1], n_vocab], &bytes)?,
        ),
    ];
    fs::write(
        directory.join("logits.safetensors"),
        safetensors::serialize(tensors, None)?,
    )?;
    Ok(())
}

fn logits(model: &Llama, ids: Vec<i32>, shape: [usize; 2], device: &Device) -> Vec<f32> {
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), device);
    model
        .forward(ids)
        .into_data_dtype(DType::F32)
        .try_into_vec()
        .unwrap_or_default()
}

/// Moves the factors away from where they started, as training would.
struct Perturb(Vec<String>);

impl ModuleMapper for Perturb {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.0.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.0.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let at = self.0.join(".");
        if !at.contains("low_rank") || at.contains("anchor") {
            return param;
        }
        param.map(|factor| {
            let noise = factor.random_like(Distribution::Normal(0.0, 0.1));
            factor + noise
        })
    }
}
