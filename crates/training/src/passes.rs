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
use olora_adapter::{Parameter, params};
use olora_data::Batch;
use olora_model::{Llama, Positions};
use serde::{Deserialize, Serialize};

use crate::{
    Evaluation, Exchange, Local, TrainError,
    evaluate::evaluate_beside,
    gradients,
    objective::{Beside, CrossEntropy, Loss, Measure, Objective, Outputs},
    reference::{Reference, beside},
    step::Backward,
};

/// What is computed again in the backward pass rather than kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing beyond what each operation computes again by itself.
    #[default]
    None,
    /// Whole blocks, of which only the input is kept: the same gradients for a
    /// fraction of the memory and a third more work.
    Blocks,
}

/// How micro-batches are gone through: towards which objective, what is kept
/// for the backward pass, and where dropout's numbers begin.
#[derive(Clone, Debug)]
pub struct Passes {
    objective: Arc<dyn Objective>,
    recompute: Recompute,
    /// Dropout's seed for the micro-batch at hand; `None` if there is none.
    dropout: Option<DropoutSeed>,
    /// What the objective compares with, if it does.
    reference: Reference,
}

/// Where dropout's numbers begin. Each block has a seed of its own, so that a
/// block run again drops what it dropped before. Shared by all clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct DropoutSeed(Arc<AtomicU64>);

/// Seeds between two micro-batches: more than a model has blocks.
const MICRO_BATCH: u64 = 1 << 12;

impl DropoutSeed {
    fn begin(&self, device: &Device, layer_idx: usize) {
        let seed = self.0.load(Ordering::Relaxed);
        device.seed(seed.wrapping_add(layer_idx as u64));
    }
}

impl Passes {
    /// Towards `objective`, over `llama`; with dropout if its adapters drop some
    /// of their input.
    ///
    /// # Errors
    ///
    /// [`TrainError::Adapter`] if the objective compares with the base and the
    /// model no longer has it: nothing is adapted, or modules train whole. See
    /// [`with_reference`](Self::with_reference).
    pub fn new(objective: Arc<dyn Objective>, llama: &Llama) -> Result<Self, TrainError> {
        Self::with_reference(objective, llama, Reference::Base)
    }

    /// The same, compared with something else than the base.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), for [`Reference::Base`].
    pub fn with_reference(
        objective: Arc<dyn Objective>,
        llama: &Llama,
        reference: Reference,
    ) -> Result<Self, TrainError> {
        if objective.needs_reference() {
            reference.of(llama.clone())?;
        }
        Ok(Self {
            objective,
            recompute: Recompute::None,
            dropout: llama.has_dropout().then(DropoutSeed::default),
            reference,
        })
    }

    /// Keeps less for the backward pass.
    #[must_use]
    pub fn with_recompute(mut self, recompute: Recompute) -> Self {
        self.recompute = recompute;
        self
    }

    /// What is minimised.
    pub fn objective(&self) -> &dyn Objective {
        &*self.objective
    }

    /// Decides what the next micro-batch drops, so that a run that is cut in two
    /// drops the same; nothing happens without dropout. Micro-batches that are
    /// not seeded drop by the seeds that follow.
    ///
    /// Dropout is the only thing that draws from the device's generator. Seeded
    /// by step, micro-batch and block, it is the same in a resumed run and in a
    /// block run again. Without it nothing is seeded, since a device that fuses
    /// operations finishes recording them first.
    pub fn seed_dropout(&self, seed: u64, step: usize, micro_batch: usize) {
        if let Some(dropout) = &self.dropout {
            let step = (step as u64) << 32;
            let micro_batch = micro_batch as u64 * MICRO_BATCH;
            let seed = seed.wrapping_add(step).wrapping_add(micro_batch);
            dropout.0.store(seed, Ordering::Relaxed);
        }
    }

    /// Forward and backward through one micro-batch, for a model on a device
    /// with autodiff: sums, and the gradients of what trains.
    ///
    /// # Panics
    ///
    /// If the objective compares with the base and `llama` no longer has it;
    /// [`new`](Self::new) refuses such a model.
    pub fn run(&self, llama: &Llama, batch: &Batch) -> Backward {
        let beside = if self.objective.needs_reference() {
            let plain = llama.valid();
            let reference = self.reference(&plain);
            beside(&*self.objective, &plain, reference.as_ref(), batch)
        } else {
            Beside::default()
        };
        let pass = match self.recompute {
            Recompute::None => self.whole(llama, batch, &beside),
            Recompute::Blocks => self.by_blocks(llama, batch, &beside),
        };
        if let Some(dropout) = &self.dropout {
            dropout.0.fetch_add(MICRO_BATCH, Ordering::Relaxed);
        }
        pass
    }

    /// The loss alone, for a model without autodiff.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    pub fn loss(&self, llama: &Llama, batch: &Batch) -> Loss {
        let reference = self.reference(llama);
        forward(&*self.objective, llama, reference.as_ref(), batch)
    }

    /// The objective over held-out data: see [`evaluate`](crate::evaluate).
    ///
    /// # Errors
    ///
    /// Those of [`evaluate`](crate::evaluate).
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    pub fn evaluate<E: ToString>(
        &self,
        llama: &Llama,
        batches: impl IntoIterator<Item = Result<Batch, E>>,
    ) -> Result<Evaluation, TrainError> {
        self.evaluate_together(&Local, llama, batches)
    }

    /// The same with the batches shared out among ranks, as
    /// [`evaluate_together`](crate::evaluate_together) has it.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    pub fn evaluate_together<E: ToString>(
        &self,
        exchange: &dyn Exchange,
        llama: &Llama,
        batches: impl IntoIterator<Item = Result<Batch, E>>,
    ) -> Result<Evaluation, TrainError> {
        let reference = self.reference(llama);
        evaluate_beside(
            exchange,
            &*self.objective,
            llama,
            reference.as_ref(),
            batches,
        )
    }

    /// The model that the objective compares with, if it does.
    #[expect(clippy::expect_used, reason = "documented, and refused beforehand")]
    pub(crate) fn reference(&self, llama: &Llama) -> Option<Llama> {
        self.objective.needs_reference().then(|| {
            let reference = self.reference.of(llama.clone());
            reference.expect("the base is still in the model")
        })
    }

    fn whole(&self, llama: &Llama, batch: &Batch, beside: &Beside) -> Backward {
        let residual = blocks(llama, batch, self.dropout.as_ref());
        let loss = self
            .objective
            .loss(&Outputs::new(llama, residual, batch, beside));
        self.backward(loss, batch, |sum| {
            GradientsParams::from_grads(sum.backward(), llama)
        })
    }

    /// What a pass gives, with the gradients that `grads` makes of the loss.
    fn backward(
        &self,
        loss: Loss,
        batch: &Batch,
        grads: impl FnOnce(Tensor<1>) -> GradientsParams,
    ) -> Backward {
        let plain = |(name, sum): Measure| (name, sum.without_autodiff());
        Backward {
            loss: loss.sum.clone().inner(),
            measures: loss.measures.into_iter().map(plain).collect(),
            count: self.objective.count(batch),
            grads: grads(loss.sum),
        }
    }

    /// Keeps what each block is given and nothing of its inside, and runs the
    /// blocks again, last to first, to go back through them (Chen et al. 2016,
    /// [arXiv 1604.06174](https://arxiv.org/abs/1604.06174)). The same operations
    /// on the same numbers: the gradients are those of the whole, bit for bit.
    fn by_blocks(&self, llama: &Llama, batch: &Batch, beside: &Beside) -> Backward {
        let dropout = self.dropout.as_ref();
        let device = llama.device();
        let (embedded, positions) = embed(llama, batch, &device);
        let layers = &llama.model.layers;
        let embedding_trains =
            trains(&llama.model.embed_tokens) || trains(&llama.model.embed_positions);
        // Nothing before the first block that trains has a gradient.
        let first = if embedding_trains {
            Some(0)
        } else {
            layers.iter().position(trains)
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
        let outputs = Outputs::new(llama, last.clone(), batch, beside);
        let loss = self.objective.loss(&outputs);
        drop(outputs);
        let mut grad = None;
        let mut pass = self.backward(loss, batch, |sum| {
            let mut grads = sum.backward();
            grad = last.grad_remove(&mut grads);
            GradientsParams::from_grads(grads, llama)
        });
        drop(last);
        let found = &mut pass.grads;

        let Some(first) = first else {
            return pass;
        };
        for layer_idx in (first..layers.len()).rev() {
            let (Some(input), Some(grad_output)) = (inputs.pop(), grad.take()) else {
                break;
            };
            let input = leaf(input, layer_idx > first || embedding_trains);
            if let Some(dropout) = dropout {
                dropout.begin(&device, layer_idx);
            }
            let output = layers[layer_idx].forward(input.clone(), &positions);
            let mut grads = backward_from(output, grad_output);
            grad = input.grad_remove(&mut grads);
            let of_block = GradientsParams::from_grads(grads, &layers[layer_idx]);
            gradients::add(&layers[layer_idx], of_block, found);
        }
        if let Some(grad_embedded) = grad {
            let grads = backward_from(embedded, grad_embedded);
            // Of what is in this graph: the embedding of tokens and, if there is one, of positions.
            let of_embeddings = GradientsParams::from_grads(grads, llama);
            gradients::add(llama, of_embeddings, found);
        }
        pass
    }
}

/// The residual stream after the last block, `[n_rows, seq, width]`.
pub(crate) fn blocks(llama: &Llama, batch: &Batch, dropout: Option<&DropoutSeed>) -> Tensor<3> {
    let device = llama.device();
    let (mut x, positions) = embed(llama, batch, &device);
    for (layer_idx, layer) in llama.model.layers.iter().enumerate() {
        if let Some(dropout) = dropout {
            dropout.begin(&device, layer_idx);
        }
        x = layer.forward(x, &positions);
    }
    x
}

/// The loss of a micro-batch, for a model with or without autodiff. `reference` is
/// the model that an objective with a reference compares with.
pub(crate) fn forward(
    objective: &dyn Objective,
    llama: &Llama,
    reference: Option<&Llama>,
    batch: &Batch,
) -> Loss {
    let beside = beside(objective, llama, reference, batch);
    let residual = blocks(llama, batch, None);
    objective.loss(&Outputs::new(llama, residual, batch, &beside))
}

/// The cross-entropy summed over the batch's trained tokens, `[1]`, f32.
pub fn loss_sum(llama: &Llama, batch: &Batch) -> Tensor<1> {
    forward(&CrossEntropy, llama, None, batch).sum
}

fn input_ids(batch: &Batch, device: &Device) -> Tensor<2, Int> {
    let data = TensorData::new(batch.inputs.clone(), [batch.n_rows, batch.seq_len]);
    Tensor::from_data(data, device)
}

/// The tokens' embeddings, and where they stand.
pub(crate) fn embedded(llama: &Llama, batch: &Batch, device: &Device) -> (Tensor<3>, Positions) {
    let x = llama.embed(input_ids(batch, device));
    let positions = match (batch.documents(), batch.continued()) {
        (None, _) => llama.positions(&x, 0),
        (Some(lengths), None) => llama.positions_in_documents(&x, &lengths),
        (Some(lengths), Some(continued)) => {
            llama.positions_in_continued_documents(&x, &lengths, continued)
        }
    };
    (x, positions)
}

/// What the first block is given.
pub(crate) fn embed(llama: &Llama, batch: &Batch, device: &Device) -> (Tensor<3>, Positions) {
    let (x, positions) = embedded(llama, batch, device);
    (llama.with_positions(x, &positions), positions)
}

/// Whether anything of a module trains.
fn trains<M: Module>(module: &M) -> bool {
    params(module).iter().any(Parameter::trains)
}

/// A tensor that a graph begins at.
pub(crate) fn leaf(x: Tensor<3>, needs_gradient: bool) -> Tensor<3> {
    let x = Tensor::from_inner(x);
    if needs_gradient { x.require_grad() } else { x }
}

/// Goes back from `output`, whose gradient is known: that of `Σ output·g` is
/// exactly `g`.
pub(crate) fn backward_from(output: Tensor<3>, grad_output: Tensor<3>) -> burn::tensor::Gradients {
    (output * Tensor::from_inner(grad_output)).sum().backward()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::module::Param;
    use olora_adapter::{AdapterConfig, attach};
    use olora_data::Sample;
    use olora_model::Dtype;

    use super::*;

    /// One of each kind of block, embedding and position.
    const FAMILIES: [&str; 3] = ["llama", "gemma", "opt"];

    fn model_of(family: &str) -> Llama {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        olora_model::load(&fixtures.join(family), Dtype::F32, &Device::flex())
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
            weights: None,
            preferred: None,
        };
        vec![sample(7, 9), sample(5, 14), sample(11, 6)]
    }

    /// The loss and every gradient, by path.
    fn all(llama: &Llama, batch: &Batch, passes: &Passes) -> (f32, Vec<(String, Vec<f32>)>) {
        passes.seed_dropout(9, 0, 0);
        let pass = passes.run(llama, batch);
        let mut found = Vec::new();
        gradients::for_each_gradient(llama, &pass.grads, |path, gradient| {
            let values = gradient.into_data().try_to_vec().unwrap();
            found.push((path.to_owned(), values));
        });
        assert_eq!(pass.grads.len(), found.len());
        (pass.loss.into_scalar::<f32>(), found)
    }

    fn by(llama: &Llama, recompute: Recompute) -> Passes {
        let passes = Passes::new(Arc::new(CrossEntropy), llama).unwrap();
        passes.with_recompute(recompute)
    }

    fn assert_bit_equal(llama: &Llama) {
        let batch = Batch::from_samples(&samples(), 0);
        let whole = all(llama, &batch, &by(llama, Recompute::None));
        let blocks = all(llama, &batch, &by(llama, Recompute::Blocks));
        assert!(!whole.1.is_empty());
        assert_eq!(whole, blocks);
    }

    #[test]
    fn blocks_run_again_give_the_same_gradients_bit_for_bit() {
        for family in FAMILIES {
            assert_bit_equal(&adapted_of(family, 0.0));
        }
    }

    #[test]
    fn blocks_run_again_drop_what_they_dropped() {
        let llama = adapted(0.3);
        assert_bit_equal(&llama);
        let batch = Batch::from_samples(&samples(), 0);
        let whole = adapted(0.0);
        let kept = all(&whole, &batch, &by(&whole, Recompute::Blocks));
        let passes = by(&llama, Recompute::Blocks);
        let dropped = all(&llama, &batch, &passes);
        assert_ne!(kept, dropped, "nothing was dropped");
        // Whoever forgets to seed gets another mask for the next micro-batch all the same.
        let mut norms = (0..2).map(|_| {
            let pass = passes.run(&llama, &batch);
            let mut norm = 0.0;
            gradients::for_each_gradient(&llama, &pass.grads, |_, gradient| {
                norm += gradient.square().sum().into_scalar::<f32>();
            });
            norm
        });
        assert_ne!(norms.next(), norms.next());
    }

    #[test]
    fn blocks_run_again_give_every_weights_gradient() {
        for family in FAMILIES {
            assert_bit_equal(&Module::train(model_of(family)));
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
        assert_bit_equal(&Module::train(llama));
    }

    #[test]
    fn packed_rows_give_the_gradients_of_rows_of_their_own() {
        for family in FAMILIES {
            assert_packed_rows_agree(family);
        }
    }

    /// The two of a pair share their first tokens, and there is a row with two pairs.
    #[test]
    fn pairs_that_share_their_prompt_give_the_gradients_of_rows_of_their_own() {
        let judged = |mut sample: Sample, preferred: bool| {
            sample.preferred = Some(preferred);
            sample
        };
        let pair = |prompt: u32, seed: u32, ends: [u32; 2]| {
            [true, false].map(|preferred| {
                let end = ends[usize::from(preferred)];
                let answer = (0..end).map(|i| (i * seed + u32::from(preferred)) % 64);
                let tokens: Vec<u32> = (3..3 + prompt).chain(answer).collect();
                let trained = (0..tokens.len() as u32).map(|i| i >= prompt).collect();
                judged(Sample::new(tokens, trained), preferred)
            })
        };
        let rows = [
            [pair(7, 5, [4, 9]), pair(3, 11, [1, 6])].concat(),
            pair(12, 7, [8, 2]).to_vec(),
        ];
        for family in FAMILIES {
            let llama = adapted_of(family, 0.0).map(&mut Move);
            let apart = Batch::from_samples(&rows.concat(), 0);
            let shared = Batch::of_pairs(&rows, 0);
            assert!(shared.n_tokens < apart.n_tokens - 20);
            let objective = Arc::new(crate::Dpo {
                rpo_alpha: 0.5,
                beta: 0.7,
                ..crate::Dpo::default()
            });
            let passes = |recompute| {
                let passes = Passes::new(objective.clone(), &llama).unwrap();
                passes.with_recompute(recompute)
            };
            let whole = passes(Recompute::None);
            let right = all(&llama, &apart, &whole);
            let ours = all(&llama, &shared, &whole);
            assert_alike(&right, &ours);
            assert_eq!(ours, all(&llama, &shared, &passes(Recompute::Blocks)));
            // Where nothing is shared it is another loss: the test can fail.
            let mut blind = shared;
            let pairs = blind.pairs.as_mut().unwrap();
            pairs.shared[1][0] -= 1;
            blind.segments.as_mut().unwrap()[1][0] += 1;
            let blind = all(&llama, &blind, &whole);
            assert!((right.0 - blind.0).abs() > 1e-4 * right.0, "{family}");
        }
    }

    /// The loss and gradients, up to the order of sums.
    fn assert_alike(right: &(f32, Vec<(String, Vec<f32>)>), ours: &(f32, Vec<(String, Vec<f32>)>)) {
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
    }

    /// Nonzero where training has moved: the update is not zero.
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

    fn assert_packed_rows_agree(family: &str) {
        let llama = adapted_of(family, 0.0).map(&mut Move);
        let [a, b, c] = <[Sample; 3]>::try_from(samples()).unwrap();
        let apart = Batch::from_samples(&[a.clone(), b.clone(), c.clone()], 0);
        let packed = Batch::packed(&[vec![a, c], vec![b]], 0);
        assert_eq!(apart.n_trained, packed.n_trained);
        let passes = by(&llama, Recompute::None);
        let (right, ours) = (all(&llama, &apart, &passes), all(&llama, &packed, &passes));
        assert_alike(&right, &ours);
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
        let llama = adapted(0.0);
        let trained = params(&llama).iter().filter(|param| param.trains()).count();
        let batch = Batch::from_samples(&samples(), 0);
        let (_, found) = all(&llama, &batch, &by(&llama, Recompute::Blocks));
        assert_eq!(found.len(), trained);
    }
}
