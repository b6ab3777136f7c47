//! An objective of one's own: direct preference optimisation (DPO, Rafailov et al.
//! 2023, arXiv 2305.18290, equation 7) on pairs of answers, with the adapter
//! switched off as the reference. (`olora_training::Dpo` is this one with its variants,
//! on pairs as `olora_data` reads them.) Blocks are computed again in the backward pass,
//! two micro-batches make a step, and dropout has its seeds.
//!
//! ```text
//! cargo run --release -p olora-examples --example own_objective
//! ```

#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::{path::Path, sync::Arc};

use burn::{
    module::Module,
    optim::AdamWConfig,
    tensor::{Device, activation::log_sigmoid},
};
use olora_adapter::{AdapterConfig, attach};
use olora_data::{Batch, Corpus, DataOptions, Sample, Tokenizer, load_samples};
use olora_model::{Dtype, load};
use olora_training::{Loss, Objective, Optimized, Outputs, Passes, Recompute, TrainError, step};

/// Rows come in pairs: the chosen answer, then the rejected one.
#[derive(Debug)]
struct Dpo {
    beta: f64,
}

impl Objective for Dpo {
    fn name(&self) -> &'static str {
        "DPO"
    }

    fn needs_reference(&self) -> bool {
        true
    }

    /// Sums are divided by the number of pairs.
    fn count(&self, batch: &Batch) -> f64 {
        (batch.n_samples() / 2) as f64
    }

    fn loss(&self, outputs: &Outputs<'_>) -> Loss {
        // By how much each token has become likelier than it is to the base, `[n_trained]`.
        let gained = outputs.token_log_likelihoods() - outputs.reference_log_likelihoods();
        let n_pairs = outputs.batch().n_samples() / 2;
        let of_answers = outputs.sum_by_sample(gained).reshape([n_pairs, 2]);
        let margin = of_answers.clone().narrow(1, 0, 1) - of_answers.narrow(1, 1, 1);
        Loss {
            sum: log_sigmoid(margin.clone().mul_scalar(self.beta))
                .sum()
                .neg(),
            measures: vec![("accuracy", margin.greater_elem(0.0).float().sum())],
        }
    }
}

fn main() -> anyhow::Result<()> {
    let quickstart = Path::new("recipes/quickstart");
    let tokenizer = Tokenizer::from_path(&quickstart.join("base"))?;
    let options = DataOptions::default();
    let samples = load_samples(&quickstart.join("train.jsonl"), &tokenizer, &options)?.samples;
    let (llama, _) = load(&quickstart.join("base"), Dtype::F32, &Device::flex())?;
    let config = AdapterConfig {
        dropout: 0.05,
        ..AdapterConfig::default()
    };
    let llama = attach(llama, &config, 1, &mut |_, _| {})?;

    let passes =
        Passes::new(Arc::new(Dpo { beta: 0.1 }), &llama)?.with_recompute(Recompute::Blocks);
    let mut learner = Optimized::new(Module::train(llama), AdamWConfig::new().init(), 5e-4);
    let (accumulation, pairs) = (2, 4);
    for number in 1..=20 {
        let result = step(&mut learner, accumulation, 1.0, |learner, micro_batch| {
            passes.seed_dropout(1, number, micro_batch);
            let first = (number * accumulation + micro_batch) * pairs;
            let rows: Vec<Sample> = (first..first + pairs)
                .flat_map(|i| pair(&samples, i))
                .collect();
            let batch = Batch::from_samples(&rows, tokenizer.pad_id());
            Ok::<_, TrainError>(Some(passes.run(&learner.module, &batch)))
        })?;
        if number == 1 || number % 5 == 0 {
            let count = result.count as f32;
            let accuracy = result.measures[0].1.clone().into_scalar::<f32>() / count;
            let loss = result.loss.into_scalar::<f32>() / count;
            println!(
                "step {number:2}: loss {loss:.4}, the chosen answer gained more in {accuracy:.2} of pairs"
            );
        }
    }
    Ok(())
}

/// A question with its own answer, and with that to another question.
fn pair(samples: &Corpus, i: usize) -> [Sample; 2] {
    let chosen = samples.sample(i % samples.len());
    let other = samples.sample((i + 7) % samples.len());
    let answer_of = |sample: &Sample| sample.trained.iter().position(|trained| *trained);
    let (question, answer) = (
        answer_of(&chosen).unwrap_or(0),
        answer_of(&other).unwrap_or(0),
    );
    let rejected = Sample::new(
        [&chosen.tokens[..question], &other.tokens[answer..]].concat(),
        [&chosen.trained[..question], &other.trained[answer..]].concat(),
    );
    [chosen, rejected]
}
