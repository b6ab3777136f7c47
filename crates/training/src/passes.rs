//! Forward and backward through one micro-batch, whole or block by block.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use burn::{
    module::Module,
    optim::GradientsParams,
    tensor::{Device, Int, Tensor, TensorData},
};
use olora_data::Batch;
use olora_model::{Llama, Positions};
use olora_operations::loss::{composed, cross_entropy};

use crate::{checkpoint::num_trained_params, gradients, recipe::Recompute};

/// How a run goes through its micro-batches.
#[derive(Clone, Debug, Default)]
pub(crate) struct Passes {
    pub(crate) recompute: Recompute,
    /// Dropout's seed for the micro-batch at hand; `None` if there is none.
    pub(crate) dropout: Option<DropoutSeed>,
}

/// Where dropout's numbers begin. Each block has a seed of its own, so that a
/// block run again drops what it dropped before.
#[derive(Clone, Debug, Default)]
pub(crate) struct DropoutSeed(Arc<AtomicU64>);

impl DropoutSeed {
    /// For the next micro-batch.
    pub(crate) fn set(&self, seed: u64) {
        self.0.store(seed, Ordering::Relaxed);
    }

    fn begin(&self, device: &Device, layer_idx: usize) {
        let seed = self.0.load(Ordering::Relaxed);
        device.seed(seed.wrapping_add(layer_idx as u64));
    }
}

/// The cross-entropy summed over the batch's trained tokens, `[1]`, f32.
///
/// A sum, not a mean: whoever accumulates adds sums and counts and divides
/// once, so that micro-batches of unequal length weigh as they should. It also
/// keeps gradients large enough for float16, which needs no other loss scale
/// (measured: BENCHMARKS.md, "Half precision"). The
/// vocabulary projection is computed at trained positions only.
pub fn loss_sum(llama: &Llama, batch: &Batch) -> Tensor<1> {
    loss_through(llama, batch, None)
}

fn loss_through(llama: &Llama, batch: &Batch, dropout: Option<&DropoutSeed>) -> Tensor<1> {
    let device = llama.device();
    let (mut x, positions) = embed(llama, batch, &device);
    for (layer_idx, layer) in llama.model.layers.iter().enumerate() {
        if let Some(dropout) = dropout {
            dropout.begin(&device, layer_idx);
        }
        x = layer.forward(x, &positions);
    }
    head_loss(llama, x, batch)
}

fn input_ids(batch: &Batch, device: &Device) -> Tensor<2, Int> {
    let data = TensorData::new(batch.inputs.clone(), [batch.n_rows, batch.seq_len]);
    Tensor::from_data(data, device)
}

/// What the first block is given.
fn embed(llama: &Llama, batch: &Batch, device: &Device) -> (Tensor<3>, Positions) {
    let x = llama.embed(input_ids(batch, device));
    let positions = match &batch.segments {
        None => llama.positions(&x, 0),
        Some(lengths) => llama.positions_in_documents(&x, lengths),
    };
    (llama.with_positions(x, &positions), positions)
}

/// The loss from the residual stream after the last block.
fn head_loss(llama: &Llama, x: Tensor<3>, batch: &Batch) -> Tensor<1> {
    let hidden = llama.model.norm.forward(x);
    let [rows, seq, width] = hidden.dims();
    let device = hidden.device();
    let n = batch.target_positions.len();
    let at = TensorData::new(batch.target_positions.clone(), [n]);
    let trained = hidden
        .reshape([rows * seq, width])
        .select(0, Tensor::<1, Int>::from_data(at, &device));
    match llama.output_weight(trained.dtype()) {
        Some(weight) => cross_entropy(trained, weight, &batch.targets, batch.n_trained),
        // With an adapter on the projection, its logits are made whole.
        None => composed(llama.logits(trained), &batch.targets, batch.n_trained),
    }
}

/// The summed loss, `[1]`, f32, without autodiff, and the gradients of what
/// trains, for a model on a device with autodiff and without dropout.
pub fn loss_and_gradients(
    llama: &Llama,
    batch: &Batch,
    recompute: Recompute,
) -> (Tensor<1>, GradientsParams) {
    let passes = Passes {
        recompute,
        dropout: None,
    };
    passes.run(llama, batch)
}

impl Passes {
    /// The summed loss, `[1]`, f32, without autodiff, and the gradients of what
    /// trains.
    pub(crate) fn run(&self, llama: &Llama, batch: &Batch) -> (Tensor<1>, GradientsParams) {
        let dropout = self.dropout.as_ref();
        match self.recompute {
            Recompute::None => {
                let loss = loss_through(llama, batch, dropout);
                let value = loss.clone().inner();
                (value, GradientsParams::from_grads(loss.backward(), llama))
            }
            Recompute::Blocks => by_blocks(llama, batch, dropout),
        }
    }
}

/// Keeps what each block is given and nothing of its inside, and runs the
/// blocks again, last to first, to go back through them (Chen et al. 2016,
/// [arXiv 1604.06174](https://arxiv.org/abs/1604.06174)). The same operations
/// on the same numbers: the gradients are those of the whole, bit for bit.
fn by_blocks(
    llama: &Llama,
    batch: &Batch,
    dropout: Option<&DropoutSeed>,
) -> (Tensor<1>, GradientsParams) {
    let device = llama.device();
    let (embedded, positions) = embed(llama, batch, &device);
    let layers = &llama.model.layers;
    let embedding_trains = num_trained_params(&llama.model.embed_tokens) > 0
        || num_trained_params(&llama.model.embed_positions) > 0;
    // Nothing before the first block that trains has a gradient.
    let first = if embedding_trains {
        Some(0)
    } else {
        layers
            .iter()
            .position(|layer| num_trained_params(layer) > 0)
    };

    let plain = llama.valid();
    let mut inputs = Vec::with_capacity(layers.len());
    let mut x = embedded.clone().inner();
    for (layer_idx, layer) in layers.iter().enumerate() {
        inputs.push(x.clone());
        x = match dropout {
            None => plain.model.layers[layer_idx].forward(x, &positions),
            // Only on a device with autodiff does dropout drop.
            Some(dropout) => {
                dropout.begin(&device, layer_idx);
                // Without gradients, or autodiff would keep the block's inside until it is run again.
                let layer = layer.clone().no_grad();
                layer.forward(Tensor::from_inner(x), &positions).inner()
            }
        };
    }
    drop(plain);

    let last = leaf(x, first.is_some());
    let loss = head_loss(llama, last.clone(), batch);
    let value = loss.clone().inner();
    let mut grads = loss.backward();
    let mut grad = last.grad_remove(&mut grads);
    drop(last);
    let mut found = GradientsParams::from_grads(grads, llama);

    let Some(first) = first else {
        return (value, found);
    };
    for layer_idx in (first..layers.len()).rev() {
        let (Some(input), Some(of_output)) = (inputs.pop(), grad.take()) else {
            break;
        };
        let input = leaf(input, layer_idx > first || embedding_trains);
        if let Some(dropout) = dropout {
            dropout.begin(&device, layer_idx);
        }
        let output = layers[layer_idx].forward(input.clone(), &positions);
        let mut grads = backward_from(output, of_output);
        grad = input.grad_remove(&mut grads);
        let of_block = GradientsParams::from_grads(grads, &layers[layer_idx]);
        gradients::add(&layers[layer_idx], of_block, &mut found);
    }
    if let Some(of_embedded) = grad {
        let grads = backward_from(embedded, of_embedded);
        // Of what is in this graph: the embedding of tokens and, if there is one, of positions.
        let of_embeddings = GradientsParams::from_grads(grads, llama);
        gradients::add(llama, of_embeddings, &mut found);
    }
    (value, found)
}

/// A tensor that a graph begins at.
fn leaf(x: Tensor<3>, needs_gradient: bool) -> Tensor<3> {
    let x = Tensor::from_inner(x);
    if needs_gradient { x.require_grad() } else { x }
}

/// Goes back from `output`, whose gradient is known: that of `Σ output·g` is
/// exactly `g`.
fn backward_from(output: Tensor<3>, of_output: Tensor<3>) -> burn::tensor::Gradients {
    (output * Tensor::from_inner(of_output)).sum().backward()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::module::{ModuleVisitor, Param};
    use olora_adapter::{AdapterConfig, attach};
    use olora_data::Sample;
    use olora_model::WeightType;

    use super::*;

    /// One of each kind of block, embedding and position.
    const FAMILIES: [&str; 3] = ["llama", "gemma", "opt"];

    fn model_of(family: &str) -> Llama {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        olora_model::load(&fixtures.join(family), WeightType::F32, &Device::flex())
            .unwrap()
            .0
    }

    fn model() -> Llama {
        model_of("llama")
    }

    fn adapted(dropout: f64) -> Llama {
        adapted_of("llama", dropout)
    }

    fn adapted_of(family: &str, dropout: f64) -> Llama {
        let config = AdapterConfig {
            rank: 4,
            alpha: 6.0,
            dropout,
            ..AdapterConfig::default()
        };
        let model = model_of(family);
        let exclude = model.lm_head.iter().map(|_| "lm_head".to_owned()).collect();
        let config = AdapterConfig { exclude, ..config };
        Module::train(attach(model, &config, 3, &mut |_, _| {}).unwrap())
    }

    fn samples() -> Vec<Sample> {
        let sample = |seed: u32, n: u32| Sample {
            tokens: (0..n).map(|i| (i * seed + 3) % 64).collect(),
            trained: (0..n).map(|i| i > 2).collect(),
        };
        vec![sample(7, 9), sample(5, 14), sample(11, 6)]
    }

    /// The loss and every gradient, by path.
    fn all(llama: &Llama, batch: &Batch, passes: &Passes) -> (f32, Vec<(String, Vec<f32>)>) {
        if let Some(dropout) = &passes.dropout {
            dropout.set(9);
        }
        let (loss, grads) = passes.run(llama, batch);
        let mut found = Vec::new();
        gradients::for_each_gradient(llama, &grads, |path, gradient| {
            let values = gradient.into_data().try_to_vec().unwrap();
            found.push((path.to_owned(), values));
        });
        assert_eq!(grads.len(), found.len());
        (loss.into_scalar::<f32>(), found)
    }

    fn by(recompute: Recompute, dropout: bool) -> Passes {
        Passes {
            recompute,
            dropout: dropout.then(DropoutSeed::default),
        }
    }

    fn assert_bit_equal(llama: &Llama, dropout: bool) {
        let batch = Batch::from_samples(&samples(), 0);
        let whole = all(llama, &batch, &by(Recompute::None, dropout));
        let blocks = all(llama, &batch, &by(Recompute::Blocks, dropout));
        assert!(!whole.1.is_empty());
        assert_eq!(whole, blocks);
    }

    #[test]
    fn blocks_run_again_give_the_same_gradients_bit_for_bit() {
        for family in FAMILIES {
            assert_bit_equal(&adapted_of(family, 0.0), false);
        }
    }

    #[test]
    fn blocks_run_again_drop_what_they_dropped() {
        let _alone = crate::GENERATOR.write();
        let llama = adapted(0.3);
        assert_bit_equal(&llama, true);
        let batch = Batch::from_samples(&samples(), 0);
        let kept = all(&adapted(0.0), &batch, &by(Recompute::Blocks, false));
        let dropped = all(&llama, &batch, &by(Recompute::Blocks, true));
        assert_ne!(kept, dropped, "nothing was dropped");
    }

    #[test]
    fn blocks_run_again_give_every_weights_gradient() {
        for family in FAMILIES {
            assert_bit_equal(&Module::train(model_of(family)), false);
        }
    }

    /// Blocks before the first that trains have no gradient, and cost nothing.
    #[test]
    fn blocks_that_do_not_train_are_passed_over() {
        let config = AdapterConfig {
            rank: 2,
            alpha: 2.0,
            targets: vec!["model.layers.1.mlp.up_proj".to_owned()],
            ..AdapterConfig::default()
        };
        let llama = attach(model(), &config, 3, &mut |_, _| {}).unwrap();
        assert_bit_equal(&Module::train(llama), false);
    }

    #[test]
    fn packed_rows_give_the_gradients_of_rows_of_their_own() {
        for family in FAMILIES {
            assert_packed_rows_agree(family);
        }
    }

    fn assert_packed_rows_agree(family: &str) {
        // Nonzero where training has moved: the update is not zero.
        struct Move;
        impl burn::module::ModuleMapper for Move {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                if param.val().is_require_grad() {
                    param.map(|factor| factor.mul_scalar(1.3).detach().require_grad())
                } else {
                    param
                }
            }
        }
        let llama = adapted_of(family, 0.0).map(&mut Move);
        let [a, b, c] = <[Sample; 3]>::try_from(samples()).unwrap();
        let apart = Batch::from_samples(&[a.clone(), b.clone(), c.clone()], 0);
        let packed = Batch::packed(&[vec![a, c], vec![b]], 0);
        assert_eq!(apart.n_trained, packed.n_trained);
        let passes = by(Recompute::None, false);
        let (right, ours) = (all(&llama, &apart, &passes), all(&llama, &packed, &passes));
        assert!(
            (right.0 - ours.0).abs() < 1e-5 * right.0,
            "{} {}",
            right.0,
            ours.0
        );
        for ((path, right), (_, ours)) in right.1.iter().zip(&ours.1) {
            let size = right.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
            for (right, ours) in right.iter().zip(ours) {
                assert!((right - ours).abs() < 1e-5 * size, "{path}: {right} {ours}");
            }
        }
        // Without the boundaries it is another loss: the test can fail.
        let merged = Batch {
            segments: None,
            ..packed
        };
        let merged = all(&llama, &merged, &passes);
        assert!((right.0 - merged.0).abs() > 1e-4 * right.0);
    }

    #[test]
    fn every_trained_parameter_has_a_gradient() {
        struct Trained(usize);
        impl ModuleVisitor for Trained {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0 += usize::from(param.base().is_require_grad());
            }
        }
        let llama = adapted(0.0);
        let mut trained = Trained(0);
        llama.visit(&mut trained);
        let batch = Batch::from_samples(&samples(), 0);
        let (_, found) = all(&llama, &batch, &by(Recompute::Blocks, false));
        assert_eq!(found.len(), trained.0);
    }
}
