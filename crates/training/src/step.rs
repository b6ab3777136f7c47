//! One optimiser step: accumulate, average by the count, clip, update.

use burn::{
    lr_scheduler::module_lr_scheduler::ModuleLearningRate,
    module::Module,
    optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer},
    tensor::Tensor,
};

use crate::{TrainError, gradients::average_and_clip, objective::Measure};

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

/// One step over up to `accumulation` micro-batches, whatever the module is.
///
/// `backward` goes forward and backward through the micro-batch of this index,
/// from 0, and returns sums; `None` ends the step early, for the last one of a
/// run. The sums and the gradients are added up, divided once by the sum of the
/// counts, scaled down to a global norm of at most `max_grad_norm` (0 leaves
/// them alone), and handed to the optimiser: the step is that of one large
/// batch, however unequal its parts are.
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
    let mut accumulator = GradientsAccumulator::new();
    let mut sums: Option<(Tensor<1>, Vec<Measure>)> = None;
    let mut count = 0.0;
    for micro_batch in 0..accumulation {
        let Some(pass) = backward(learner, micro_batch)? else {
            break;
        };
        if pass.count <= 0.0 {
            return Err(mismatch(
                "a micro-batch has nothing that its loss is divided by, such as trained tokens: it \
                 would be 0 / 0"
                    .to_owned(),
            ));
        }
        count += pass.count;
        sums = Some(match sums {
            None => (pass.loss, pass.measures),
            Some((loss, measures)) => (loss + pass.loss, added(measures, pass.measures)?),
        });
        accumulator.accumulate(&learner.module(), pass.grads);
    }
    let Some((loss, measures)) = sums else {
        return Err(mismatch(
            "there is no micro-batch to make a step of".to_owned(),
        ));
    };
    // Several processes would exchange loss, measures, count and gradients here.
    let module = learner.module();
    let mut grads = accumulator.grads();
    let norm = average_and_clip(&module, &mut grads, count, max_grad_norm).ok_or_else(|| {
        mismatch("no parameter received a gradient: is everything frozen?".to_owned())
    })?;
    // A clone that is still held would keep the optimiser from updating in place.
    drop(module);
    learner.update(grads);
    Ok(StepResult {
        loss,
        measures,
        count,
        norm,
    })
}

fn added<E: From<TrainError>>(sums: Vec<Measure>, more: Vec<Measure>) -> Result<Vec<Measure>, E> {
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

fn mismatch<E: From<TrainError>>(reason: String) -> E {
    TrainError::Mismatch(reason).into()
}
