//! After `finetune`: load the base, put the adapter on it, generate.
//!
//! ```text
//! cargo run --release -p olora-examples --example generate
//! ```

#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::{ops::ControlFlow, path::Path};

use burn::tensor::Device;
use olora_adapter::PeftAdapter;
use olora_data::Tokenizer;
use olora_model::{Dtype, Sampling, generate, load};

fn main() -> anyhow::Result<()> {
    let base = Path::new("recipes/quickstart/base");
    let (model, config) = load(base, Dtype::F32, &Device::default())?;
    let tokenizer = Tokenizer::from_path(base)?;
    let model = PeftAdapter::read(Path::new("runs/example-finetune/adapter"))?.attach(model)?;

    let prompt = tokenizer.encode("Where does Alder live?", true)?;
    let stop = config.eos_token_ids;
    let tokens = generate(&model, &prompt, 40, &Sampling::default(), &stop, |_| {
        ControlFlow::Continue(())
    })?;
    println!("{}", tokenizer.decode(&tokens, true)?);
    Ok(())
}
