//! The loss of tokens that count unequally: by hand from logits, and against
//! samples that are repeated as often as their weight says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{path::Path, sync::Arc};

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Int, Tensor, TensorData},
};
use olora_adapter::{AdapterConfig, Method, attach};
use olora_data::{Batch, Padding, Sample};
use olora_model::{Dtype, Llama, load};
use olora_training::{
    CrossEntropy, Passes, Recompute, TrainError, evaluate, for_each_gradient, loss_sum,
};

/// With factors away from where they started, as after some training.
fn adapted() -> Llama {
    struct Move;
    impl ModuleMapper for Move {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if param.base().is_require_grad() {
                param.map(|factor| factor.mul_scalar(1.3).detach().require_grad())
            } else {
                param
            }
        }
    }
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama");
    let base = load(&fixture, Dtype::F32, &Device::flex()).unwrap().0;
    let config = AdapterConfig {
        method: Method::Olora,
        rank: 4,
        alpha: 6.0,
        exclude: vec!["lm_head".to_owned()],
        ..AdapterConfig::default()
    };
    Module::train(attach(base, &config, 3, &mut |_, _| {}).unwrap()).map(&mut Move)
}

/// `n` tokens, trained from the fourth on, each of which counts as `weight` says.
fn sample(seed: u32, n: u32, weight: impl Fn(u32) -> f32) -> Sample {
    Sample {
        tokens: (0..n).map(|i| (i * seed + 3) % 64).collect(),
        trained: (0..n).map(|i| i > 2).collect(),
        weights: Some((0..n).map(weight).collect()),
        preferred: None,
    }
}

/// Rows of unequal length: one weight for a row, several in a row, and none at
/// all. Of tokens that are not trained the weights mean nothing.
fn weighted() -> Vec<Sample> {
    vec![
        sample(7, 9, |_| 0.5),
        sample(5, 14, |i| if i < 3 { 100.0 } else { 0.25 * (i % 4) as f32 }),
        sample(11, 6, |_| 2.0),
        Sample {
            weights: None,
            preferred: None,
            ..sample(13, 8, |_| 1.0)
        },
    ]
}

/// `Σ w·(−log p)` and `Σ w`, from the logits of each sample alone, in f64.
fn by_hand(llama: &Llama, samples: &[Sample]) -> (f64, f64) {
    let (mut loss, mut count) = (0.0, 0.0);
    for sample in samples {
        let n = sample.tokens.len();
        let ids: Vec<i32> = sample.tokens.iter().map(|&id| id.cast_signed()).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, n]), &llama.device());
        let logits = llama.forward(ids).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(logits.len(), n * 64);
        for i in (1..n).filter(|&i| sample.trained[i]) {
            let row: Vec<f64> = (logits[(i - 1) * 64..i * 64].iter())
                .map(|&logit| f64::from(logit))
                .collect();
            let largest = row.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = row.iter().map(|logit| (logit - largest).exp()).sum();
            let log_p = row[sample.tokens[i] as usize] - largest - sum.ln();
            let weight = sample.weights.as_ref().map_or(1.0, |all| f64::from(all[i]));
            loss -= weight * log_p;
            count += weight;
        }
    }
    (loss, count)
}

fn near(found: f64, expected: f64, what: &str) {
    assert!(
        (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
        "{what}: {found}, by hand {expected}"
    );
}

/// The loss, its count, and every gradient by path.
fn pass(llama: &Llama, batch: &Batch, recompute: Recompute) -> Found {
    let passes = Passes::new(Arc::new(CrossEntropy), llama).unwrap();
    let pass = passes.with_recompute(recompute).run(llama, batch);
    let mut gradients = Vec::new();
    for_each_gradient(llama, &pass.grads, |path, gradient| {
        gradients.push((
            path.to_owned(),
            gradient.into_data().try_to_vec::<f32>().unwrap(),
        ));
    });
    Found {
        loss: f64::from(pass.loss.into_scalar::<f32>()),
        count: pass.count,
        gradients,
    }
}

struct Found {
    loss: f64,
    count: f64,
    gradients: Vec<(String, Vec<f32>)>,
}

/// Whether gradients are `factor` times others.
fn proportional(found: &Found, others: &Found, factor: f32) {
    assert!(!found.gradients.is_empty());
    assert_eq!(found.gradients.len(), others.gradients.len());
    for ((path, found), (other, others)) in found.gradients.iter().zip(&others.gradients) {
        assert_eq!(path, other);
        let size = others.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
        assert!(size > 0.0, "{path} has no gradient");
        for (found, other) in found.iter().zip(others) {
            assert!(
                (found - factor * other).abs() < 1e-4 * factor * size,
                "{path}: {found}, {factor} times {other}"
            );
        }
    }
}

#[test]
fn the_loss_is_the_weighted_mean_of_the_tokens() {
    let llama = adapted();
    let samples = weighted();
    let (loss, count) = by_hand(&llama.valid(), &samples);
    // 6 tokens of 0.5; 11 of 0.75, 0, 0.25, 0.5, …, 0.25; 3 of 2; 5 of 1.
    assert_eq!(count, 3.0 + 4.0 + 6.0 + 5.0);
    // Side by side, padded further, and packed into rows.
    let padding = Padding {
        id: 0,
        multiple: 16,
    };
    let packed = [samples[..2].to_vec(), samples[2..].to_vec()];
    for batch in [
        Batch::from_samples(&samples, 0),
        Batch::from_samples(&samples, padding),
        Batch::packed(&packed, 0),
    ] {
        for recompute in [Recompute::None, Recompute::Blocks] {
            let found = pass(&llama, &batch, recompute);
            assert_eq!(found.count, count);
            near(found.loss, loss, "sum");
            near(found.loss / found.count, loss / count, "mean");
        }
    }
    for one in &samples {
        let (loss, count) = by_hand(&llama.valid(), std::slice::from_ref(one));
        let found = pass(
            &llama,
            &Batch::from_samples(std::slice::from_ref(one), 0),
            Recompute::None,
        );
        assert_eq!(found.count, count);
        near(found.loss, loss, "sum of one");
    }
}

#[test]
fn a_weight_of_two_is_the_sample_twice() {
    let llama = adapted();
    let by = |samples: &[Sample]| pass(&llama, &Batch::from_samples(samples, 0), Recompute::None);
    let plain = |seed, n| sample(seed, n, |_| 1.0);
    let twice = by(&[sample(7, 9, |_| 2.0), plain(5, 14)]);
    let repeated = by(&[plain(7, 9), plain(7, 9), plain(5, 14)]);
    assert_eq!((twice.count, repeated.count), (23.0, 23.0));
    near(twice.loss, repeated.loss, "sum");
    proportional(&twice, &repeated, 1.0);

    // Fractions: a half and one and a half are half of once and three times.
    let fractions = by(&[sample(7, 9, |_| 0.5), sample(5, 14, |_| 1.5)]);
    let repeated = by(&[plain(7, 9), plain(5, 14), plain(5, 14), plain(5, 14)]);
    assert_eq!((fractions.count, repeated.count), (19.5, 39.0));
    near(
        fractions.loss / fractions.count,
        repeated.loss / repeated.count,
        "mean",
    );
    proportional(&fractions, &repeated, 0.5);
}

#[test]
fn a_weight_within_a_sample_is_its_tokens_once_more() {
    let llama = adapted();
    let by = |samples: &[Sample]| pass(&llama, &Batch::from_samples(samples, 0), Recompute::Blocks);
    let its_end = Sample {
        trained: (0..14).map(|i| i > 7).collect(),
        ..sample(5, 14, |_| 1.0)
    };
    let heavier = by(&[sample(5, 14, |i| if i > 7 { 3.0 } else { 1.0 })]);
    let repeated = by(&[sample(5, 14, |_| 1.0), its_end.clone(), its_end]);
    assert_eq!((heavier.count, repeated.count), (23.0, 23.0));
    near(heavier.loss, repeated.loss, "sum");
    proportional(&heavier, &repeated, 1.0);

    // A weight of 0 is a token that is not trained.
    let without = by(&[sample(5, 14, |i| if i > 7 { 1.0 } else { 0.0 })]);
    let untrained = by(&[Sample {
        trained: (0..14).map(|i| i > 7).collect(),
        ..sample(5, 14, |_| 1.0)
    }]);
    assert_eq!((without.count, untrained.count), (6.0, 6.0));
    near(without.loss, untrained.loss, "sum");
    proportional(&without, &untrained, 1.0);
}

#[test]
fn evaluation_is_the_weighted_mean_over_all_batches() {
    let llama = adapted().valid();
    let samples = weighted();
    let (loss, count) = by_hand(&llama, &samples);
    for n_rows in [1, 3, 4] {
        let batches = samples.chunks(n_rows);
        let batches = batches.map(|rows| Ok::<_, TrainError>(Batch::from_samples(rows, 0)));
        let evaluation = evaluate(&CrossEntropy, &llama, batches).unwrap();
        assert_eq!(evaluation.count, count);
        near(evaluation.loss, loss / count, "mean");
        near(
            evaluation.perplexity.unwrap(),
            (loss / count).exp(),
            "perplexity",
        );
    }
    let sum = loss_sum(&llama, &Batch::from_samples(&samples, 0));
    near(f64::from(sum.into_scalar::<f32>()), loss, "sum");
}
