//! Like `attach`, but on a whole language model, by a recipe: what
//! `olora train` does, with the events in your hands.
//!
//! ```text
//! cargo run --release -p olora-examples --example finetune
//! ```

#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::{path::Path, sync::Arc};

use burn::tensor::Device;
use olora_training::{Event, Observer, Recipe, TrainOptions, train};

struct Printer;

impl Observer for Printer {
    fn on(&self, event: &Event) {
        match event {
            Event::Step(report) => println!("step {:3}: loss {:.4}", report.step, report.loss),
            Event::Evaluated { step, evaluation } => {
                println!("step {step:3}: validation loss {:.4}", evaluation.loss);
            }
            _ => {}
        }
    }
}

fn main() -> anyhow::Result<()> {
    let overrides = ["name=example-finetune", "training.epochs=1"].map(str::to_owned);
    let recipe = Recipe::load(Path::new("recipes/quickstart.toml"), &overrides)?;
    let observer: Arc<dyn Observer> = Arc::new(Printer);
    let summary = train(
        &recipe,
        &Device::default(),
        TrainOptions::default(),
        &observer,
    )?;
    println!("the adapter is in {}", summary.result.display());
    Ok(())
}
