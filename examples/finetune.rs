//! Like `attach`, but on a whole language model, by a recipe: what
//! `olora train` does, with the events in your hands, on a device by name.
//!
//! ```text
//! cargo run --release -p olora-examples --example finetune
//! cargo run --release -p olora-examples --features wgpu --example finetune -- wgpu
//! ```

#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::{path::Path, sync::Arc};

use olora_devices::{KernelOptions, Opened};
use olora_runs::{Event, Observer, Recipe, TrainOptions, train};

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
    // SAFETY: nothing comes before it, so this thread is the only one.
    unsafe { olora_devices::set_environment() };
    let overrides = ["name=example-finetune", "training.epochs=1"].map(str::to_owned);
    let recipe = Recipe::load(Path::new("recipes/quickstart.toml"), &overrides)?;
    let observer: Arc<dyn Observer> = Arc::new(Printer);

    let kernels = KernelOptions::default();
    olora_devices::prepare(kernels)?;
    let name = std::env::args().nth(1).unwrap_or_else(|| "cpu".to_owned());
    let Opened { device, details } = olora_devices::open(&name, kernels)?;
    let options = TrainOptions {
        // With a CPU to compare with, a device whose gradients are wrong is refused.
        reference: olora_devices::reference().filter(|_| details.accelerator),
        device: details,
        ..TrainOptions::default()
    };
    let summary = train(&recipe, &device, options, &observer)?;
    println!("the adapter is in {}", summary.result.display());
    Ok(())
}
