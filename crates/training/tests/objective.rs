//! A second objective, with a reference pass and a measure: what cross-entropy
//! has, it has too, without a change of the loop.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use burn::{
    module::{Module, ModuleMapper, Param},
    optim::{GradientsParams, SgdConfig},
    tensor::{
        DType, Device, Int, Tensor, TensorData,
        activation::{log_sigmoid, log_softmax},
    },
};
use olora_adapter::{AdapterConfig, Method, attach, params, without_adapter};
use olora_data::{Batch, Sample};
use olora_model::{Dtype, Llama, load};
use olora_training::{
    Backward, CrossEntropy, Loss, Objective, Optimized, Outputs, Passes, Recompute, TrainError,
    evaluate, for_each_gradient, step,
};

/// The CPU backend has one random generator per process.
static GENERATOR: Mutex<()> = Mutex::new(());

/// Rows in pairs: the first is to gain more on the base than the second.
#[derive(Debug)]
struct Preference;

const BETA: f64 = 0.7;

impl Objective for Preference {
    fn name(&self) -> &'static str {
        "preference"
    }

    fn needs_reference(&self) -> bool {
        true
    }

    fn count(&self, batch: &Batch) -> f64 {
        (batch.n_rows / 2) as f64
    }

    fn loss(&self, outputs: &Outputs<'_>) -> Loss {
        let reference = outputs.reference_log_likelihoods();
        let gained = outputs.sum_by_row(outputs.token_log_likelihoods() - reference);
        let pairs = gained.reshape([outputs.batch().n_rows / 2, 2]);
        let margin = pairs.clone().narrow(1, 0, 1) - pairs.narrow(1, 1, 1);
        Loss {
            sum: log_sigmoid(margin.clone().mul_scalar(BETA)).sum().neg(),
            measures: vec![("margin", margin.sum())],
        }
    }
}

fn base() -> Llama {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama");
    load(&fixture, Dtype::F32, &Device::flex()).unwrap().0
}

fn adapted(dropout: f64, modules_to_save: &[&str]) -> Llama {
    let config = AdapterConfig {
        method: Method::Olora,
        rank: 4,
        alpha: 6.0,
        dropout,
        exclude: vec!["lm_head".to_owned()],
        modules_to_save: modules_to_save.iter().map(|&m| m.to_owned()).collect(),
        ..AdapterConfig::default()
    };
    Module::train(attach(base(), &config, 3, &mut |_, _| {}).unwrap())
}

/// Factors away from where they started, as after some training.
fn moved(llama: Llama) -> Llama {
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
    llama.map(&mut Move)
}

/// Two pairs of rows of unequal length.
fn samples() -> Vec<Sample> {
    let sample = |seed: u32, n: u32| Sample {
        tokens: (0..n).map(|i| (i * seed + 3) % 64).collect(),
        trained: (0..n).map(|i| i > 2).collect(),
        weights: None,
        preferred: None,
    };
    vec![sample(7, 9), sample(5, 14), sample(11, 6), sample(13, 8)]
}

fn batch() -> Batch {
    Batch::from_samples(&samples(), 0)
}

/// Every gradient, by path.
fn gradients(llama: &Llama, grads: &GradientsParams) -> Vec<(String, Vec<f32>)> {
    let mut found = Vec::new();
    for_each_gradient(llama, grads, |path, gradient| {
        found.push((path.to_owned(), gradient.into_data().try_to_vec().unwrap()));
    });
    found
}

/// Every value that trains.
fn trained_values(llama: &Llama) -> Vec<f32> {
    let trained = params(llama);
    let trained = trained.iter().filter(|param| param.trains());
    trained
        .flat_map(|param| param.data().unwrap().try_to_vec::<f32>().unwrap())
        .collect()
}

type Found = (f32, f32, Vec<(String, Vec<f32>)>);

fn found(llama: &Llama, pass: Backward) -> Found {
    let margin = pass.measures[0].1.clone().into_scalar::<f32>();
    let loss = pass.loss.into_scalar::<f32>();
    (loss, margin, gradients(llama, &pass.grads))
}

fn close(ours: &[(String, Vec<f32>)], right: &[(String, Vec<f32>)], tolerance: f32) {
    assert_eq!(ours.len(), right.len());
    for ((path, ours), (_, right)) in ours.iter().zip(right) {
        let size = right.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
        assert!(size > 0.0, "{path} has no gradient");
        for (ours, right) in ours.iter().zip(right) {
            assert!(
                (ours - right).abs() < tolerance * size,
                "{path}: {ours} {right}"
            );
        }
    }
}

/// The summed log-likelihood of each row's trained tokens, from full logits.
fn by_row_from_logits(llama: &Llama, batch: &Batch) -> Vec<Tensor<1>> {
    let device = llama.device();
    let ids = TensorData::new(batch.inputs.clone(), [batch.n_rows, batch.seq_len]);
    let logits = llama.forward(Tensor::<2, Int>::from_data(ids, &device));
    let [rows, seq, vocab] = logits.dims();
    let all = log_softmax(logits.cast(DType::F32).reshape([rows * seq, vocab]), 1);
    (0..rows)
        .map(|row| {
            let mine = batch.target_positions.iter().zip(&batch.targets);
            let mine: Vec<(i32, i32)> = mine
                .map(|(&position, &target)| (position, target))
                .filter(|(position, _)| *position as usize / seq == row)
                .collect();
            let sum = mine.iter().map(|&(position, target)| {
                let row = all.clone().narrow(0, position as usize, 1);
                row.narrow(1, target as usize, 1).reshape([1])
            });
            sum.reduce(|sum, next| sum + next).unwrap()
        })
        .collect()
}

#[test]
fn it_equals_the_obvious_form_with_full_logits_and_a_second_model() {
    let llama = moved(adapted(0.0, &[]));
    let passes = Passes::new(Arc::new(Preference), &llama).unwrap();
    let batch = batch();
    let ours = found(&llama, passes.run(&llama, &batch));

    let reference = by_row_from_logits(&without_adapter(llama.valid()).unwrap(), &batch);
    let rows = by_row_from_logits(&llama, &batch);
    let gained: Vec<Tensor<1>> = rows
        .into_iter()
        .zip(reference)
        .map(|(row, reference)| row - Tensor::from_inner(reference))
        .collect();
    let margins = Tensor::cat(
        gained
            .chunks(2)
            .map(|pair| pair[0].clone() - pair[1].clone())
            .collect(),
        0,
    );
    let loss = log_sigmoid(margins.clone().mul_scalar(BETA)).sum().neg();
    let value = loss.clone().inner().into_scalar::<f32>();
    let margin = margins.inner().sum().into_scalar::<f32>();
    let grads = GradientsParams::from_grads(loss.backward(), &llama);
    assert!((ours.0 - value).abs() < 1e-4, "{} {value}", ours.0);
    assert!((ours.1 - margin).abs() < 1e-4, "{} {margin}", ours.1);
    assert!(margin.abs() > 1e-2, "the adapter has not moved");
    close(&ours.2, &gradients(&llama, &grads), 1e-3);
}

#[test]
fn the_reference_is_the_base_bit_for_bit_where_nothing_has_moved() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    for dropout in [0.0, 0.3] {
        let llama = adapted(dropout, &[]);
        let passes = Passes::new(Arc::new(Preference), &llama).unwrap();
        // Dropout drops from the trained and from the anchored product alike.
        let (loss, margin, grads) = found(&llama, passes.run(&llama, &batch()));
        assert_eq!(margin, 0.0);
        assert!((loss - 2.0 * 2.0_f32.ln()).abs() < 1e-6, "{loss}");
        assert!(grads.iter().any(|(_, grad)| grad.iter().any(|&x| x != 0.0)));
    }
}

#[test]
fn blocks_are_computed_again_with_the_same_gradients_and_the_same_dropout() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    for dropout in [0.0, 0.3] {
        let llama = moved(adapted(dropout, &[]));
        let by = |recompute| {
            let passes = Passes::new(Arc::new(Preference), &llama).unwrap();
            let passes = passes.with_recompute(recompute);
            passes.seed_dropout(9, 1, 2);
            found(&llama, passes.run(&llama, &batch()))
        };
        assert_eq!(by(Recompute::None), by(Recompute::Blocks));
    }
}

#[test]
fn a_step_of_several_micro_batches_is_that_of_one_batch() {
    let llama = moved(adapted(0.0, &[]));
    let after = |micro_batches: &[&[Sample]]| {
        let passes = Passes::new(Arc::new(Preference), &llama).unwrap();
        let mut learner = Optimized::new(llama.clone(), SgdConfig::new().init(), 0.5);
        let result = step(&mut learner, micro_batches.len(), 0.0, |learner, i| {
            let batch = Batch::from_samples(micro_batches[i], 0);
            Ok::<_, TrainError>(Some(passes.run(&learner.module, &batch)))
        })
        .unwrap();
        assert_eq!(result.count, 2.0);
        let margin = result.measures[0].1.clone().into_scalar::<f32>();
        let loss = result.loss.into_scalar::<f32>();
        (loss, margin, trained_values(&learner.module))
    };
    let samples = samples();
    let whole = after(&[&samples]);
    let parts = after(&[&samples[..2], &samples[2..]]);
    assert!((whole.0 - parts.0).abs() < 1e-5);
    assert!((whole.1 - parts.1).abs() < 1e-5);
    for (whole, parts) in whole.2.iter().zip(&parts.2) {
        assert!((whole - parts).abs() < 1e-5, "{whole} {parts}");
    }
}

#[test]
fn evaluation_is_its_mean_over_pairs() {
    let llama = moved(adapted(0.0, &[])).valid();
    let halves = samples();
    let batches = halves.chunks(2).map(|rows| Batch::from_samples(rows, 0));
    let batches = batches.map(Ok::<_, TrainError>);
    let evaluation = evaluate(&Preference, &llama, batches).unwrap();
    assert_eq!(evaluation.count, 2.0);
    let trained = moved(adapted(0.0, &[]));
    let passes = Passes::new(Arc::new(Preference), &trained).unwrap();
    let (sum, margin, _) = found(&trained, passes.run(&trained, &batch()));
    assert!((evaluation.loss - f64::from(sum) / 2.0).abs() < 1e-5);
    assert!((evaluation.measures["margin"] - f64::from(margin) / 2.0).abs() < 1e-4);
}

#[test]
fn a_model_that_no_longer_has_its_base_is_refused_by_name() {
    let refused = |llama: &Llama| {
        Passes::new(Arc::new(Preference), llama)
            .unwrap_err()
            .to_string()
    };
    let message = refused(&adapted(0.0, &["norm"]));
    assert!(message.contains("modules_to_save"), "{message}");
    assert!(message.contains("model.norm.weight"), "{message}");
    let message = refused(&Module::train(base()));
    assert!(message.contains("no adapter"), "{message}");
    // What compares with nothing takes any model.
    Passes::new(Arc::new(CrossEntropy), &Module::train(base())).unwrap();
}

#[test]
fn a_step_without_anything_to_divide_by_is_refused_and_updates_nothing() {
    let llama = adapted(0.0, &[]);
    let passes = Passes::new(Arc::new(CrossEntropy), &llama).unwrap();
    let before = trained_values(&llama);
    let mut learner = Optimized::new(llama, SgdConfig::new().init(), 0.5);
    let untrained = Sample::new(vec![1, 2, 3], vec![false; 3]);
    let empty = Batch::from_samples(&[untrained], 0);
    let error = step(&mut learner, 1, 1.0, |learner, _| {
        Ok::<_, TrainError>(Some(passes.run(&learner.module, &empty)))
    });
    assert!(error.unwrap_err().to_string().contains("0 / 0"));
    let error = step(&mut learner, 1, 1.0, |_, _| Ok::<_, TrainError>(None));
    assert!(error.unwrap_err().to_string().contains("no micro-batch"));
    let named = |name: &'static str| Backward {
        loss: Tensor::ones([1], &Device::flex()),
        measures: vec![(name, Tensor::ones([1], &Device::flex()))],
        count: 1.0,
        grads: GradientsParams::new(),
    };
    let error = step(&mut learner, 1, 1.0, |_, _| {
        Ok::<_, TrainError>(Some(named("a")))
    });
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("no parameter received")
    );
    let error = step(&mut learner, 2, 1.0, |_, i| {
        Ok::<_, TrainError>(Some(named(["a", "b"][i])))
    });
    assert!(error.unwrap_err().to_string().contains("measured alike"));
    assert_eq!(trained_values(&learner.module), before);
}

#[test]
fn a_loss_that_is_no_number_names_the_first_tensor_that_is_none() {
    struct Spoil(usize);
    impl ModuleMapper for Spoil {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            self.0 += 1;
            // The second norm of the first block is among the first ten.
            if D == 1 && self.0 > 3 {
                param.map(|weight| weight.mul_scalar(f32::NAN))
            } else {
                param
            }
        }
    }
    let llama = base().map(&mut Spoil(0));
    let error = evaluate(&CrossEntropy, &llama, [Ok::<_, TrainError>(batch())]).unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with("the loss is NaN"), "{message}");
    assert!(
        message.contains("model.layers.0.") && message.contains("norm.weight"),
        "{message}"
    );
}
