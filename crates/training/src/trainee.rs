//! The model as Burn's `Learner` trains it: one step, one loss.

use std::sync::{Arc, Mutex, PoisonError};

use burn::{
    lr_scheduler::module_lr_scheduler::ModuleLearningRate,
    module::Module,
    optim::{GradientsParams, ModuleOptimizer, OptimizerRecord},
    tensor::Tensor,
    train::{
        InferenceStep, ItemLazy, TrainOutput, TrainStep,
        metric::{Adaptor, LossInput},
    },
};
use olora_data::Batch;
use olora_model::Llama;

use crate::passes::{Passes, loss_sum};

/// The model together with what the stepwise loop needs to reach inside
/// `Learner`.
#[derive(Module, Debug)]
pub struct Trainee {
    /// The model.
    pub llama: Llama,
    #[module(skip)]
    tap: OptimizerTap,
    #[module(skip)]
    passes: Passes,
}

/// `Learner` keeps its optimiser to itself and lends it to
/// [`TrainStep::optimize`] alone; the tap carries a copy of its state out from
/// there when a checkpoint is due.
#[derive(Clone, Debug, Default)]
pub(crate) struct OptimizerTap(Arc<Mutex<Tap>>);

#[derive(Debug, Default)]
struct Tap {
    wanted: bool,
    record: Option<OptimizerRecord>,
}

impl OptimizerTap {
    /// Asks for the state after the next update.
    pub(crate) fn request(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).wanted = true;
    }

    /// The state asked for, once.
    pub(crate) fn take(&self) -> Option<OptimizerRecord> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .record
            .take()
    }
}

/// What one micro-batch, or one step, gives.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The loss summed over trained tokens, `[1]`, f32, without autodiff.
    pub loss_sum: Tensor<1>,
    /// The number of trained tokens.
    pub n_trained: usize,
}

impl Trainee {
    pub(crate) fn new(llama: Llama, passes: Passes) -> Self {
        Self {
            llama,
            tap: OptimizerTap::default(),
            passes,
        }
    }

    pub(crate) fn tap(&self) -> OptimizerTap {
        self.tap.clone()
    }
}

impl TrainStep for Trainee {
    type Input = Batch;
    type Output = StepOutput;

    fn step(&self, batch: Batch) -> TrainOutput<StepOutput> {
        let (loss_sum, grads) = self.passes.run(&self.llama, &batch);
        let item = StepOutput {
            loss_sum,
            n_trained: batch.n_trained,
        };
        TrainOutput { grads, item }
    }

    fn optimize(
        self,
        optim: &mut ModuleOptimizer,
        lr: ModuleLearningRate,
        grads: GradientsParams,
    ) -> Self {
        let tap = self.tap();
        let updated = optim.step(lr, self, grads);
        let mut tap = tap.0.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut tap.wanted) {
            tap.record = Some(optim.to_record());
        }
        updated
    }
}

impl InferenceStep for Trainee {
    type Input = Batch;
    type Output = StepOutput;

    fn step(&self, batch: Batch) -> StepOutput {
        StepOutput {
            loss_sum: loss_sum(&self.llama, &batch),
            n_trained: batch.n_trained,
        }
    }
}

impl ItemLazy for StepOutput {
    fn sync(self) -> Result<Self, burn::tensor::ExecutionError> {
        Ok(self)
    }
}

impl Adaptor<LossInput> for StepOutput {
    fn adapt(&self) -> LossInput {
        LossInput::new(
            self.loss_sum
                .clone()
                .div_scalar(self.n_trained.max(1) as f64),
        )
    }
}
