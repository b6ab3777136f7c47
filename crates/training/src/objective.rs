//! What is minimised: from the decoder's last hidden states to a sum and the
//! number that it is divided by.
//!
//! A loss is a sum with a count, never a mean: whoever accumulates adds sums
//! and counts and divides once, so that micro-batches of unequal length weigh
//! as they should. It also keeps gradients large enough for float16, which
//! needs no other loss scale (measured: BENCHMARKS.md, "Half precision").

use std::collections::BTreeMap;

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};
use olora_data::Batch;
use olora_model::Llama;
use olora_operations::{
    likelihood,
    loss::{PACKED_ROWS, composed, cross_entropy, rows_at_once},
    token_log_likelihoods,
};

/// What is minimised.
///
/// An objective sees the decoder's outputs for one micro-batch and returns a
/// sum. Recomputation by blocks, accumulation, dropout's seeds, evaluation and
/// the memory estimate follow from that alone: [`Passes`](crate::Passes) and
/// [`step`](crate::step()) take any objective.
///
/// [`CrossEntropy`] is the usual one. `examples/own_objective.rs` has another.
pub trait Objective: std::fmt::Debug + Send + Sync {
    /// Its name, for logs and errors.
    fn name(&self) -> &'static str;

    /// The summed loss of a micro-batch.
    fn loss(&self, outputs: &Outputs<'_>) -> Loss;

    /// What sums over this micro-batch are divided by in the end: trained
    /// tokens, or what they count together; sequences or pairs. A micro-batch of
    /// which it is 0 is refused.
    fn count(&self, batch: &Batch) -> f64;

    /// Whether [`Outputs::reference_log_likelihoods`] is asked for: those of a
    /// [reference](crate::Reference), by a forward pass of its own.
    fn needs_reference(&self) -> bool {
        false
    }

    /// Another batch that the model and the reference are compared on, without a
    /// gradient, for [`Outputs::unrelated_gains`]. Only of objectives with a
    /// reference.
    fn unrelated(&self, _batch: &Batch) -> Option<Batch> {
        None
    }

    /// Whether the loss is the mean cross-entropy, whose exponential is the
    /// perplexity.
    fn is_cross_entropy(&self) -> bool {
        false
    }

    /// Bytes that [`loss`](Self::loss) and its backward pass take at their
    /// peak beside the blocks: those of per-token log-likelihoods, unless an
    /// objective holds more. A reference pass is over before, and keeps one
    /// number for each token: it takes less than the pass that trains.
    fn head_bytes(&self, head: &HeadShape) -> u64 {
        head.log_likelihood_bytes()
    }
}

/// The sum over a micro-batch, and what else is worth knowing of it.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The summed loss, `[1]`, f32.
    pub sum: Tensor<1>,
    /// Other sums by name, `[1]` each, such as how often the chosen answer
    /// was the likelier one. Divided by the count and logged beside the loss, see
    /// [`means`]; no gradient goes through them.
    pub measures: Vec<Measure>,
}

/// A named sum, `[1]`, f32.
pub type Measure = (&'static str, Tensor<1>);

/// What is told of measured sums: each divided by `count`, or, where there is one
/// of the same name with `#` at its end, by that. What would be divided by 0 is left
/// out, as the mean reward of bad answers where there was none. Where there are
/// `rewards/chosen` and `rewards/rejected`, `rewards/margins` is their difference.
pub fn means(sums: &BTreeMap<String, f64>, count: f64) -> BTreeMap<String, f64> {
    let all = sums.iter().filter(|(name, _)| !name.ends_with('#'));
    let mut means: BTreeMap<_, _> = all
        .filter_map(|(name, sum)| {
            let divisor = sums.get(&format!("{name}#")).copied().unwrap_or(count);
            (divisor > 0.0).then(|| (name.clone(), sum / divisor))
        })
        .collect();
    let reward = |of: &str| means.get(&format!("rewards/{of}")).copied();
    if let (Some(chosen), Some(rejected)) = (reward("chosen"), reward("rejected")) {
        means.insert("rewards/margins".to_owned(), chosen - rejected);
    }
    means
}

impl From<Tensor<1>> for Loss {
    fn from(sum: Tensor<1>) -> Self {
        Self {
            sum,
            measures: Vec::new(),
        }
    }
}

/// The decoder's outputs for one micro-batch.
#[derive(Debug)]
pub struct Outputs<'a> {
    llama: &'a Llama,
    residual: Tensor<3>,
    batch: &'a Batch,
    beside: &'a Beside,
}

/// What an objective is compared with, without autodiff.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beside {
    /// The reference's log-likelihoods of the trained tokens, `[n_trained]`.
    pub(crate) reference: Option<Tensor<1>>,
    /// What each sample of [`Objective::unrelated`] gained on the reference.
    pub(crate) unrelated: Option<Tensor<1>>,
}

impl Beside {
    pub(crate) const NOTHING: &'static Self = &Self {
        reference: None,
        unrelated: None,
    };
}

impl<'a> Outputs<'a> {
    /// From the residual stream after the last block, `[n_rows, seq, width]`.
    pub(crate) fn new(
        llama: &'a Llama,
        residual: Tensor<3>,
        batch: &'a Batch,
        beside: &'a Beside,
    ) -> Self {
        Self {
            llama,
            residual,
            batch,
            beside,
        }
    }

    /// The micro-batch.
    pub fn batch(&self) -> &'a Batch {
        self.batch
    }

    /// The hidden states that targets are predicted from, after the last norm:
    /// `[n_targets, width]`, after the first `n_trained` padding, as in
    /// [`Batch::targets`](olora_data::Batch).
    pub fn hidden(&self) -> Tensor<2> {
        let hidden = self.llama.finished(self.residual.clone());
        let [rows, seq, width] = hidden.dims();
        let device = hidden.device();
        let n = self.batch.target_positions.len();
        let at = TensorData::new(self.batch.target_positions.clone(), [n]);
        hidden
            .reshape([rows * seq, width])
            .select(0, Tensor::<1, Int>::from_data(at, &device))
    }

    /// The cross-entropy summed over the trained tokens, `[1]`, f32, in nats;
    /// of a batch with weights, each token's times its weight.
    /// The vocabulary projection is computed at their positions only, some at a
    /// time, and its logits are not kept.
    pub fn cross_entropy(&self) -> Tensor<1> {
        let batch = self.batch;
        if let Some(weights) = &batch.target_weights {
            let log_likelihoods = self.token_log_likelihoods();
            let weights = TensorData::new(weights[..batch.n_trained].to_vec(), [batch.n_trained]);
            let weights = Tensor::<1>::from_data(weights, &log_likelihoods.device());
            return (log_likelihoods * weights).sum().neg();
        }
        let trained = self.hidden();
        match self.llama.output_head(trained.dtype()) {
            Some(head) => cross_entropy(trained, head, &batch.targets, batch.n_trained),
            // With an adapter on the projection, its logits are made whole.
            None => composed(self.llama.logits(trained), &batch.targets, batch.n_trained),
        }
    }

    /// The log-likelihood of each trained token given what comes before it,
    /// `[n_trained]`, f32, in nats, in the order of
    /// [`Batch::targets`](olora_data::Batch). The logits are not kept.
    pub fn token_log_likelihoods(&self) -> Tensor<1> {
        let batch = self.batch;
        let trained = self.hidden();
        let n = batch.targets.len();
        let all = match self.llama.output_head(trained.dtype()) {
            Some(head) => token_log_likelihoods(trained, head, &batch.targets),
            None => likelihood::composed(self.llama.logits(trained), &batch.targets),
        };
        if batch.n_trained < n {
            all.narrow(0, 0, batch.n_trained)
        } else {
            all
        }
    }

    /// The same of the reference, without autodiff.
    ///
    /// # Panics
    ///
    /// If [`Objective::needs_reference`] has not asked for it.
    pub fn reference_log_likelihoods(&self) -> Tensor<1> {
        #[expect(clippy::expect_used, reason = "documented")]
        let reference = self
            .beside
            .reference
            .clone()
            .expect("an objective that compares with the base says so in `needs_reference`");
        self.as_constant(reference)
    }

    /// By how much each sample of [`Objective::unrelated`] has become likelier than
    /// it is to the reference, `[n_samples]`, nats, without a gradient; `None` if
    /// there is no such batch.
    pub fn unrelated_gains(&self) -> Option<Tensor<1>> {
        let gains = self.beside.unrelated.clone()?;
        Some(self.as_constant(gains))
    }

    /// On the outputs' own device, as far as autodiff goes.
    fn as_constant(&self, tensor: Tensor<1>) -> Tensor<1> {
        if self.residual.is_autodiff() {
            Tensor::from_inner(tensor)
        } else {
            tensor
        }
    }

    /// What there is of each trained token, `[n_trained]`, times what it counts.
    pub fn weighted(&self, of_tokens: Tensor<1>) -> Tensor<1> {
        let Some(weights) = &self.batch.target_weights else {
            return of_tokens;
        };
        let n = self.batch.n_trained;
        let weights = TensorData::new(weights[..n].to_vec(), [n]);
        let weights = Tensor::<1>::from_data(weights, &of_tokens.device());
        of_tokens * weights
    }

    /// The logits of the trained tokens, `[n_trained, vocab]`, made whole: for
    /// what needs the distribution, such as distillation.
    pub fn logits(&self) -> Tensor<2> {
        let hidden = self.hidden();
        self.llama.logits(hidden.narrow(0, 0, self.batch.n_trained))
    }

    /// Sums what there is of each trained token over the row that it is in:
    /// from `[n_trained]` to `[n_rows]`. A row of several packed samples, or of
    /// a pair, is still one row: [`sum_by_sample`](Self::sum_by_sample) tells them apart.
    ///
    /// # Panics
    ///
    /// If there is not one value for each trained token.
    pub fn sum_by_row(&self, of_tokens: Tensor<1>) -> Tensor<1> {
        let batch = self.batch;
        let rows: Vec<i32> = batch.target_positions[..batch.n_trained]
            .iter()
            .map(|position| position / batch.seq_len as i32)
            .collect();
        sum_by(of_tokens, rows, batch.n_rows)
    }

    /// The same by sample, `[n_samples]`, wherever it lies: several may share a row.
    ///
    /// # Panics
    ///
    /// As [`sum_by_row`](Self::sum_by_row).
    pub fn sum_by_sample(&self, of_tokens: Tensor<1>) -> Tensor<1> {
        let samples = self.batch.target_samples();
        sum_by(of_tokens, samples, self.batch.n_samples())
    }
}

/// Sums of which each token's place is given, `[n]`.
pub(crate) fn sum_by(of_tokens: Tensor<1>, places: Vec<i32>, n: usize) -> Tensor<1> {
    assert!(
        of_tokens.dims() == [places.len()],
        "{} values for {} trained tokens",
        of_tokens.dims()[0],
        places.len()
    );
    let device = of_tokens.device();
    let n_tokens = places.len();
    let places = Tensor::<1, Int>::from_data(TensorData::new(places, [n_tokens]), &device);
    Tensor::zeros([n], (&device, DType::F32)).select_assign(
        0,
        places,
        of_tokens,
        IndexingUpdateOp::Add,
    )
}

/// The sizes that a loss's memory follows from.
#[derive(Clone, Copy, Debug)]
pub struct HeadShape {
    /// Trained positions of the largest micro-batch.
    pub targets: usize,
    /// The width of the residual stream.
    pub width: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Bytes of one activation.
    pub element: u64,
    /// Whether the vocabulary projection has an adapter, so that its logits are
    /// made whole.
    pub is_adapted: bool,
    /// Whether its weight is packed, so that more rows go through it at once.
    pub is_packed: bool,
    /// Whether the device has no kernels of ours, which keep fewer copies.
    pub accelerator: bool,
}

impl HeadShape {
    /// What cross-entropy and per-token log-likelihoods take: logits of some
    /// positions, and hidden states with their gradient.
    pub fn log_likelihood_bytes(&self) -> u64 {
        let rows = rows_at_once(self.vocab);
        let rows = if self.is_packed {
            rows.max(PACKED_ROWS)
        } else {
            rows
        };
        let (at_once, copies) = match (self.is_adapted, self.accelerator) {
            (true, _) => (self.targets, 4),
            (false, true) => (self.targets.min(rows), 4),
            (false, false) => (self.targets.min(rows), 1),
        };
        at_once as u64 * self.vocab as u64 * 4 * copies
            + self.targets as u64 * 2 * self.width as u64 * self.element
    }
}

/// The cross-entropy of the trained tokens; its count is their number, or the
/// sum of their weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrossEntropy;

impl Objective for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn loss(&self, outputs: &Outputs<'_>) -> Loss {
        outputs.cross_entropy().into()
    }

    fn is_cross_entropy(&self) -> bool {
        true
    }

    fn count(&self, batch: &Batch) -> f64 {
        batch.weight_sum
    }
}
