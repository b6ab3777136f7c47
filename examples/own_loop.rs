//! A loop of one's own, over a Burn module that is no language model: micro-batches
//! of unequal size, one clipped step for several of them, a warm-up, and rates by
//! parameter. `finetune` has the loop of whole runs instead.
//!
//! ```text
//! cargo run --release -p olora-examples --example own_loop
//! ```

#![allow(clippy::print_stdout, reason = "an example shows its results")]

use burn::{
    module::Module,
    nn::{Linear, LinearConfig},
    optim::{AdamWConfig, GradientsParams},
    tensor::{Device, Distribution, Tensor, activation::tanh},
};
use olora_adapter::{AdapterConfig, Project, attach};
use olora_training::{Backward, Decay, LearningRate, Optimized, TrainError, scheduler, step};

/// Two layers that learn the sine.
#[derive(Module, Debug)]
struct Network {
    hidden: Linear,
    output: Linear,
}

impl Network {
    /// From `[n, 1]` to `[n, 1]`.
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.output.project(tanh(self.hidden.project(x)))
    }
}

fn main() -> anyhow::Result<()> {
    let device = Device::flex();
    device.seed(1);
    let network = Network {
        hidden: LinearConfig::new(1, 32).init(&device),
        output: LinearConfig::new(32, 1).init(&device),
    };
    let config = AdapterConfig {
        rank: 1,
        alpha: 1.0,
        ..AdapterConfig::default()
    };
    let network = Module::train(attach(network, &config, 1, &mut |_, _| {})?);
    let rate = LearningRate {
        peak: 0.05,
        min: 0.005,
        warmup_steps: 5,
        total_steps: 60,
        decay: Decay::Cosine,
        decay_steps: 0,
    };
    // LoRA+: `B` learns at four times the rate.
    let mut rates = scheduler(&rate, Some(4.0), 0, &network);
    let mut learner = Optimized::new(network, AdamWConfig::new().init(), 0.0);
    for number in 1..=rate.total_steps {
        learner.learning_rate = rates.step();
        // The loss is a sum with a count, so that 48 and 16 points weigh as they should.
        let sizes = [48, 16];
        let result = step(&mut learner, sizes.len(), 1.0, |learner, micro_batch| {
            let n = sizes[micro_batch];
            let device = learner.module.hidden.weight.device();
            let x = Tensor::<2>::random([n, 1], Distribution::Uniform(-2.0, 2.0), &device);
            let error = learner.module.forward(x.clone()) - x.sin();
            let loss = error.square().sum();
            Ok::<_, TrainError>(Some(Backward {
                loss: loss.clone().inner(),
                measures: Vec::new(),
                count: f64::from(n),
                grads: GradientsParams::from_grads(loss.backward(), &learner.module),
            }))
        })?;
        if number % 10 == 0 {
            let loss = result.loss.into_scalar::<f32>() / result.count as f32;
            let norm = result.norm.into_scalar::<f32>();
            println!("step {number:2}: mean squared error {loss:.4}, gradient norm {norm:.3}");
        }
    }
    Ok(())
}
