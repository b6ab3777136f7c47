//! OLoRA on a Burn module of your own.
//!
//! ```text
//! cargo run --release -p olora-examples --example attach
//! ```

#![allow(clippy::print_stdout, reason = "an example shows its results")]

use burn::{
    module::Module,
    nn::{Linear, LinearConfig},
    optim::{AdamWConfig, GradientsParams},
    tensor::{Device, Distribution, Tensor, activation::silu},
};
use olora_adapter::{AdapterConfig, Project, attach, merge};

/// Any module will do; `project` in the place of `forward` makes it fast.
#[derive(Module, Debug)]
struct Net {
    up: Linear,
    down: Linear,
}

impl Net {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.project(silu(self.up.project(x)))
    }
}

fn main() -> anyhow::Result<()> {
    // The first device of the backends compiled in.
    let device = Device::default();
    device.seed(1);
    let net = Net {
        up: LinearConfig::new(32, 64).init(&device),
        down: LinearConfig::new(64, 8).init(&device),
    };

    // 1. Attach: freezes everything, adds factors that start from the weights' QR.
    let config = AdapterConfig {
        rank: 4,
        alpha: 4.0,
        ..AdapterConfig::default()
    };
    let adapted = attach(net, &config, 42, &mut |_done, _all| {})?;

    // 2. Train, as any Burn module.
    let mut adapted = Module::train(adapted);
    let mut optimizer = AdamWConfig::new().init();
    let x = Tensor::from_inner(Tensor::random(
        [64, 32],
        Distribution::Normal(0.0, 1.0),
        &device,
    ));
    let y = Tensor::from_inner(Tensor::random(
        [64, 8],
        Distribution::Normal(0.0, 1.0),
        &device,
    ));
    for step in 0..=100 {
        let loss = (adapted.forward(x.clone()) - y.clone()).square().mean();
        if step % 25 == 0 {
            println!(
                "step {step:3}: loss {:.4}",
                loss.clone().into_scalar::<f32>()
            );
        }
        let grads = GradientsParams::from_grads(loss.backward(), &adapted);
        adapted = optimizer.step(1e-2, adapted, grads);
    }

    // 3. Merge: a plain network again, with the same outputs.
    let adapted = adapted.valid();
    let merged = merge(adapted.clone())?;
    let diff = (adapted.forward(x.clone().inner()) - merged.forward(x.inner()))
        .abs()
        .max();
    println!(
        "merged differs from adapted by {:.1e}",
        diff.into_scalar::<f32>()
    );
    Ok(())
}
