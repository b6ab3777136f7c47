//! One optimiser step: accumulate, average by the count, clip, update.

use std::time::Instant;

use burn::{
    lr_scheduler::module_lr_scheduler::ModuleLearningRate,
    module::Module,
    optim::{GradientsParams, ModuleOptimizer},
    tensor::Tensor,
};

use crate::{
    Exchange, Local, TrainError,
    exchange::share,
    gradients::{self, average_and_clip},
    objective::Measure,
    order::Parts,
    shared::{Mine, together},
};

/// What going forward and backward through one micro-batch gives: sums.
#[derive(Debug)]
pub struct Backward {
    /// The summed loss, `[1]`, f32, without autodiff.
    pub loss: Tensor<1>,
    /// Other sums, `[1]` each, without autodiff.
    pub measures: Vec<Measure>,
    /// What the sums are to be divided by.
    pub count: f64,
    /// The gradients of the summed loss.
    pub grads: GradientsParams,
}

/// What one step gives, still on the device.
#[derive(Clone, Debug)]
pub struct StepResult {
    /// The loss summed over the micro-batches, `[1]`, f32.
    pub loss: Tensor<1>,
    /// Other sums over them, `[1]` each.
    pub measures: Vec<Measure>,
    /// What the sums are divided by.
    pub count: f64,
    /// The global norm of the averaged gradients before clipping, `[1]`, f32.
    pub norm: Tensor<1>,
    /// The micro-batches of the step, all ranks' together.
    pub n_micro_batches: usize,
    /// What each rank said of its share.
    pub ranks: Vec<RankStep>,
    /// Seconds in which sums were on their way between ranks.
    pub exchange_seconds: f64,
}

/// What a rank says of its share of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankStep {
    /// Unpadded input tokens.
    pub tokens: u64,
    /// Seconds that its share took, without waiting for others. Alone, a rank
    /// does not wait for its device either.
    pub seconds: f64,
    /// Whether it was asked to stop.
    pub stop: bool,
}

/// A module with its optimiser and its learning rate, whoever holds them:
/// Burn's `Learner` in a run, [`Optimized`] in a loop of one's own.
pub trait Learns {
    /// The module that trains.
    type Module: Module;

    /// The module as it is now.
    fn module(&self) -> Self::Module;

    /// Takes one step of the optimiser.
    fn update(&mut self, grads: GradientsParams);
}

/// A module, its optimiser, and the learning rate of the next step.
#[derive(Clone)]
pub struct Optimized<M> {
    /// The module, on a device with autodiff.
    pub module: M,
    /// The update rule with its state.
    pub optimizer: ModuleOptimizer,
    /// The learning rate of the next step, for all parameters or by group.
    pub learning_rate: ModuleLearningRate,
}

impl<M: Module> Optimized<M> {
    /// One learning rate for all.
    pub fn new(module: M, optimizer: ModuleOptimizer, learning_rate: f64) -> Self {
        Self {
            module,
            optimizer,
            learning_rate: ModuleLearningRate::from(learning_rate),
        }
    }
}

impl<M: Module> Learns for Optimized<M> {
    type Module = M;

    fn module(&self) -> M {
        self.module.clone()
    }

    fn update(&mut self, grads: GradientsParams) {
        let module = self.module.clone();
        let rate = self.learning_rate.clone();
        self.module = self.optimizer.step(rate, module, grads);
    }
}

/// What a step does with one micro-batch after another, and what else its ranks
/// tell each other. A closure that goes through a micro-batch is one.
pub trait Work<L> {
    /// What can go wrong.
    type Error: From<TrainError>;

    /// Goes forward and backward through the micro-batch of this index, counted
    /// from 0 over all ranks; `None` if there is none any more.
    ///
    /// # Errors
    ///
    /// End the step, and nothing is updated.
    fn backward(
        &mut self,
        learner: &L,
        micro_batch: usize,
    ) -> Result<Option<Backward>, Self::Error>;

    /// After its last micro-batch: the unpadded tokens of this rank's share, and
    /// whether it was asked to stop.
    fn share(&mut self) -> (u64, bool) {
        (0, false)
    }

    /// Before the update: what all ranks said.
    fn agreed(&mut self, learner: &L, ranks: &[RankStep]) {
        let _ = (learner, ranks);
    }
}

impl<L, E, F> Work<L> for F
where
    E: From<TrainError>,
    F: FnMut(&L, usize) -> Result<Option<Backward>, E>,
{
    type Error = E;

    fn backward(&mut self, learner: &L, micro_batch: usize) -> Result<Option<Backward>, E> {
        self(learner, micro_batch)
    }
}

/// One step over up to `accumulation` micro-batches, whatever the module is.
///
/// `backward` goes forward and backward through the micro-batch of this index,
/// from 0, and returns sums; `None` ends the step early, for the last one of a
/// run. The sums and the gradients are added up, divided once by the sum of the
/// counts, scaled down to a global norm of at most `max_grad_norm` (0 leaves
/// them alone), and handed to the optimiser: the step is that of one large
/// batch, however unequal its parts are.
///
/// They are added as the leaves of a binary tree, neighbours first:
/// `((0+1)+(2+3))+…`, for up to three the order from left to right. So as many
/// partial gradients are held at once as `accumulation` has binary digits.
///
/// # Errors
///
/// Those of `backward`; [`TrainError::Mismatch`] if there was no micro-batch, or
/// one whose count is 0, and if nothing received a gradient. Nothing is updated
/// then.
pub fn step<L: Learns, E: From<TrainError>>(
    learner: &mut L,
    accumulation: usize,
    max_grad_norm: f64,
    mut backward: impl FnMut(&L, usize) -> Result<Option<Backward>, E>,
) -> Result<StepResult, E> {
    step_together(learner, &Local, accumulation, max_grad_norm, &mut backward)
}

/// The same step with its micro-batches shared out among ranks: each has a block
/// of neighbours, and all make the same update, bit for bit that of one process
/// on the same kind of processor.
///
/// # Errors
///
/// Those of [`step`]; and [`TrainError::Exchange`] if another rank has failed, or
/// the ranks are not at the same step of the same run.
pub fn step_together<L: Learns, W: Work<L>>(
    learner: &mut L,
    exchange: &dyn Exchange,
    accumulation: usize,
    max_grad_norm: f64,
    work: &mut W,
) -> Result<StepResult, W::Error> {
    let began = Instant::now();
    let block =
        share(accumulation, exchange.rank(), exchange.n_ranks()).map_err(TrainError::from)?;
    let mut parts = Parts::new();
    let mut counts = Vec::new();
    let module = learner.module();
    for micro_batch in block {
        exchange.check().map_err(TrainError::from)?;
        let Some(pass) = work.backward(learner, micro_batch)? else {
            break;
        };
        if pass.count <= 0.0 {
            return Err(mismatch(
                "a micro-batch has nothing that its loss is divided by, such as trained tokens: it \
                 would be 0 / 0"
                    .to_owned(),
            )
            .into());
        }
        counts.push(pass.count);
        let part = Part {
            loss: pass.loss,
            measures: pass.measures,
            grads: pass.grads,
        };
        let add = &mut |left, right| add_parts(&module, left, right);
        parts.leaf(micro_batch, part, add)?;
    }
    let (tokens, stop) = work.share();
    let mine = Mine {
        parts,
        counts,
        tokens,
        stop,
        began,
    };
    let ours = together(exchange, accumulation, &module, mine)?;
    let Some(Sums {
        loss,
        measures,
        mut grads,
    }) = ours.sums
    else {
        return Err(mismatch("there is no micro-batch to make a step of".to_owned()).into());
    };
    let count = ours.counts.iter().sum();
    let norm = average_and_clip(&module, &mut grads, count, max_grad_norm).ok_or_else(|| {
        mismatch("no parameter received a gradient: is everything frozen?".to_owned())
    })?;
    // A clone that is still held would keep the optimiser from updating in place.
    drop(module);
    work.agreed(learner, &ours.ranks);
    learner.update(grads);
    Ok(StepResult {
        loss,
        measures,
        count,
        norm,
        n_micro_batches: ours.counts.len(),
        ranks: ours.ranks,
        exchange_seconds: ours.exchange_seconds,
    })
}

/// Sums over some micro-batches of a step.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) loss: Tensor<1>,
    pub(crate) measures: Vec<Measure>,
    pub(crate) grads: GradientsParams,
}

/// Sums over all of them.
pub(crate) type Sums = Part;

/// What is left of it first: it is the order of the sums.
pub(crate) fn add_parts<M: Module>(
    module: &M,
    left: Part,
    right: Part,
) -> Result<Part, TrainError> {
    let mut grads = left.grads;
    gradients::add(module, right.grads, &mut grads);
    Ok(Part {
        loss: left.loss + right.loss,
        measures: added(left.measures, right.measures)?,
        grads,
    })
}

fn added(sums: Vec<Measure>, more: Vec<Measure>) -> Result<Vec<Measure>, TrainError> {
    let names = |measures: &[Measure]| measures.iter().map(|m| m.0).collect::<Vec<_>>();
    if names(&sums) != names(&more) {
        return Err(mismatch(format!(
            "the micro-batches of a step must be measured alike, but one has {:?} and another {:?}",
            names(&sums),
            names(&more)
        )));
    }
    let both = sums.into_iter().zip(more);
    Ok(both
        .map(|((name, sum), (_, more))| (name, sum + more))
        .collect())
}

fn mismatch(reason: String) -> TrainError {
    TrainError::Mismatch(reason)
}
