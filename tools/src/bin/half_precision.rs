//! How far adapter gradients in half precision are from those in float32, on a
//! real checkpoint, and what multiplying the loss by a scale would do for
//! float16. The loss is a sum over tokens, not a mean, which is a scale already:
//!
//! ```text
//! cargo run --release -p olora-tools --bin half_precision -- CHECKPOINT DATA.jsonl
//! ```

#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Context;
use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Device, Tensor},
};
use olora_adapter::{AdapterConfig, attach};
use olora_data::{Batch, DataOptions, Tokenizer, load_samples};
use olora_model::{Dtype, load};
use olora_training::loss_sum;

/// Gradients by the path of their parameter.
type Gradients = BTreeMap<String, Vec<f32>>;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let usage = "usage: half_precision CHECKPOINT DATA";
    let (checkpoint, data) = (
        arguments.next().context(usage)?,
        arguments.next().context(usage)?,
    );
    let tokenizer = Tokenizer::from_path(&checkpoint)?;
    let data = load_samples(&data, &tokenizer, &DataOptions::default())?;
    let samples: Vec<_> = data.samples.iter().take(4).collect();
    let batch = Batch::from_samples(&samples, tokenizer.pad_id());

    let gradients = |dtype, scale| -> anyhow::Result<(f64, Gradients)> {
        let (llama, _) = load(&checkpoint, dtype, &Device::default())?;
        let config = AdapterConfig {
            exclude: match &llama.lm_head {
                Some(_) => vec!["lm_head".to_owned()],
                None => Vec::new(),
            },
            ..AdapterConfig::default()
        };
        let llama = Module::train(attach(llama, &config, 0, &mut |_, _| {})?);
        let loss = loss_sum(&llama, &batch);
        let value = f64::from(loss.clone().inner().into_scalar::<f32>()) / batch.n_trained as f64;
        let gradients = GradientsParams::from_grads(loss.mul_scalar(scale).backward(), &llama);
        let mut reader = Reader {
            path: Vec::new(),
            gradients: &gradients,
            scale: scale as f32,
            read: BTreeMap::new(),
        };
        llama.visit(&mut reader);
        Ok((value, reader.read))
    };

    let (loss, exact) = gradients(Dtype::F32, 1.0)?;
    println!("float32: loss {loss:.6} over {} tokens", batch.n_trained);
    println!(
        "| format | loss scale | loss | gradient error (L2, relative) | worst tensor | exact zeros |"
    );
    println!("|---|---|---|---|---|---|");
    let cases = [(Dtype::Bf16, 0)]
        .into_iter()
        .chain([0, 6, 10, 14, 18].map(|power| (Dtype::F16, power)));
    for (dtype, power) in cases {
        let scale = f64::from(1_u32 << power);
        let (loss, found) = gradients(dtype, scale)?;
        let (mut difference, mut size, mut worst, mut zeros, mut count) = (0.0, 0.0, 0.0, 0, 0);
        for (path, exact) in &exact {
            let found = found.get(path).context("a gradient is missing")?;
            let pairs = exact.iter().zip(found);
            let square = |x: f32| f64::from(x) * f64::from(x);
            let of_tensor: f64 = pairs.map(|(exact, found)| square(exact - found)).sum();
            let size_of_tensor: f64 = exact.iter().map(|&x| square(x)).sum();
            worst = f64::max(worst, (of_tensor / size_of_tensor).sqrt());
            difference += of_tensor;
            size += size_of_tensor;
            zeros += found.iter().filter(|x| **x == 0.0).count();
            count += found.len();
        }
        println!(
            "| {} | {scale} | {loss:.6} | {:.2e} | {worst:.2e} | {:.3} % |",
            dtype.name(),
            (difference / size).sqrt(),
            100.0 * zeros as f64 / count as f64
        );
    }
    Ok(())
}

struct Reader<'a> {
    path: Vec<String>,
    gradients: &'a GradientsParams,
    scale: f32,
    read: Gradients,
}

impl ModuleVisitor for Reader<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            let values = gradient.into_data().convert::<f32>();
            let values = values.as_slice::<f32>().unwrap_or_default();
            self.read.insert(
                self.path.join("."),
                values.iter().map(|x| x / self.scale).collect(),
            );
        }
    }
}
