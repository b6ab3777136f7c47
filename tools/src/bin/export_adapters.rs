//! Writes adapters with known logits, for `fixtures/check_peft.py` to load
//! with the real PEFT.
//!
//! ```text
//! cargo run --release -p olora-tools --bin export_adapters -- fixtures/exports
//! python fixtures/check_peft.py --base fixtures/llama --record fixtures/exports/check.json fixtures/exports/*/
//! ```

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Device, Distribution, Int, Tensor, TensorData},
};
use olora_adapter::{AdapterConfig, Method, PeftForm, TaskType, attach, save_peft};
use olora_model::{Dtype, Llama, load};
use safetensors::{SafeTensors, tensor::TensorView};

fn main() -> anyhow::Result<()> {
    let out = std::env::args()
        .nth(1)
        .context("give the directory to write to")?;
    for (name, config, form) in exports() {
        export(&Path::new(&out).join(name), &config, form)?;
    }
    Ok(())
}

/// Each way of starting, and what goes with it, in each form that PEFT has of it.
fn exports() -> Vec<(&'static str, AdapterConfig, PeftForm)> {
    use PeftForm::{Native, Plain};
    let of = |method| AdapterConfig {
        method,
        rank: 4,
        alpha: 6.0,
        exclude: vec!["lm_head".to_owned()],
        ..AdapterConfig::default()
    };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let dora = |method| AdapterConfig {
        dora: true,
        ..of(method)
    };
    let rslora = |method| AdapterConfig {
        rslora: true,
        ..of(method)
    };
    let randomised = AdapterConfig {
        iterations: Some(4),
        ..of(Method::Pissa)
    };
    let patterns = AdapterConfig {
        rank_pattern: BTreeMap::from([("q_proj".to_owned(), 2)]),
        alpha_pattern: BTreeMap::from([("model.layers.1.mlp.up_proj".to_owned(), 9.0)]),
        layers: Some(vec![1]),
        ..of(Method::Olora)
    };
    let whole = AdapterConfig {
        targets: names(&["q_proj", "down_proj"]),
        exclude: Vec::new(),
        modules_to_save: names(&["lm_head", "model.norm"]),
        ..of(Method::Olora)
    };
    let embedding = AdapterConfig {
        targets: names(&["embed_tokens", "q_proj", "lm_head"]),
        exclude: Vec::new(),
        ..of(Method::Lora)
    };
    vec![
        ("lora", of(Method::Lora), Plain),
        ("lora-gaussian", of(Method::LoraGaussian), Plain),
        ("lora-orthogonal", of(Method::LoraOrthogonal), Plain),
        ("olora-plain", of(Method::Olora), Plain),
        ("olora-raw", of(Method::Olora), Native),
        ("olora-tail", of(Method::OloraTail), Plain),
        ("pissa-plain", of(Method::Pissa), Plain),
        ("pissa-raw", of(Method::Pissa), Native),
        ("pissa-randomised", randomised, Plain),
        ("milora", of(Method::Milora), Plain),
        ("rslora", rslora(Method::Lora), Plain),
        ("rslora-raw", rslora(Method::Lora), Native),
        ("olora-rslora", rslora(Method::Olora), Plain),
        ("olora-rslora-raw", rslora(Method::Olora), Native),
        ("dora", dora(Method::Lora), Plain),
        ("dora-olora", dora(Method::Olora), Plain),
        ("dora-olora-raw", dora(Method::Olora), Native),
        ("patterns", patterns.clone(), Plain),
        ("patterns-raw", patterns, Native),
        ("modules-to-save", whole, Plain),
        ("embedding", embedding, Plain),
    ]
}

fn export(directory: &Path, config: &AdapterConfig, form: PeftForm) -> anyhow::Result<()> {
    let device = Device::default();
    device.seed(3);
    let (base, _) = load(
        Path::new("fixtures/llama"),
        safetensors::Dtype::F32,
        &device,
    )?;
    let mut perturb = Perturb {
        path: Vec::new(),
        whole: config.modules_to_save.clone(),
    };
    let model = attach(base, config, 1, &mut |_, _| {})?.map(&mut perturb);
    save_peft(
        &model,
        config,
        form,
        Some(TaskType::CausalLm),
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
            TensorView::new(safetensors::Dtype::I32, shape.to_vec(), ids.data())?,
        ),
        (
            "logits",
            TensorView::new(
                safetensors::Dtype::F32,
                vec![shape[0], shape[1], n_vocab],
                &bytes,
            )?,
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

/// Moves what trains away from where it started, as training would.
struct Perturb {
    path: Vec<String>,
    whole: Vec<String>,
}

impl ModuleMapper for Perturb {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let at = self.path.join(".");
        let constant = ["anchor", "dora.start", "dora.weight_squares"];
        let is_factor = at.contains("low_rank") && !constant.iter().any(|name| at.contains(name));
        if !is_factor && !self.whole.iter().any(|name| at.starts_with(name.as_str())) {
            return param;
        }
        param.map(|factor| {
            let noise = factor.random_like(Distribution::Normal(0.0, 0.1));
            factor + noise
        })
    }
}
