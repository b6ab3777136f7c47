//! The model as Burn's `Learner` trains it: one step, one loss.

use std::sync::{Arc, Mutex, PoisonError};

use burn::{
    lr_scheduler::module_lr_scheduler::ModuleLearningRate,
    module::Module,
    optim::{GradientsParams, ModuleOptimizer, OptimizerRecord},
    tensor::{Device, Tensor},
    train::{
        InferenceStep, ItemLazy, Learner, TrainOutput, TrainStep,
        metric::{Adaptor, LossInput},
    },
};
use olora_data::Batch;
use olora_model::Llama;
use olora_training::{Learns, Measure, Passes};

/// The model together with what the stepwise loop needs to reach inside
/// `Learner`.
#[derive(Module, Debug)]
pub(crate) struct Trainee {
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

/// What one micro-batch gives, as Burn's metrics take it.
#[derive(Clone, Debug)]
pub(crate) struct StepOutput {
    /// The summed loss, `[1]`, f32, without autodiff.
    pub loss_sum: Tensor<1>,
    /// Other sums, `[1]` each, without autodiff.
    pub measures: Vec<Measure>,
    /// What the sums are divided by.
    pub count: f64,
}

impl StepOutput {
    /// A mean that is on the host.
    pub(crate) fn of_mean(loss: f64, device: &Device) -> Self {
        Self {
            loss_sum: Tensor::from_data([loss as f32], &device.clone().inner()),
            measures: Vec::new(),
            count: 1.0,
        }
    }
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
        let pass = self.passes.run(&self.llama, &batch);
        TrainOutput {
            grads: pass.grads,
            item: StepOutput {
                loss_sum: pass.loss,
                measures: pass.measures,
                count: pass.count,
            },
        }
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
        // Burn's own loop would call this; ours evaluates whole data sets by itself.
        let loss = self.passes.loss(&self.llama, &batch);
        StepOutput {
            loss_sum: loss.sum,
            measures: loss.measures,
            count: self.passes.objective().count(&batch),
        }
    }
}

/// Burn's learner as the owner of what [`olora_training::step()`] updates.
pub(crate) struct Learning<'a>(pub(crate) &'a mut Learner<Trainee>);

impl Learns for Learning<'_> {
    type Module = Trainee;

    fn module(&self) -> Trainee {
        self.0.model()
    }

    fn update(&mut self, grads: GradientsParams) {
        self.0.lr_step();
        self.0.optimizer_step(grads);
    }
}

impl ItemLazy for StepOutput {
    fn sync(self) -> Result<Self, burn::tensor::ExecutionError> {
        Ok(self)
    }
}

impl Adaptor<LossInput> for StepOutput {
    fn adapt(&self) -> LossInput {
        let count = if self.count > 0.0 { self.count } else { 1.0 };
        LossInput::new(self.loss_sum.clone().div_scalar(count))
    }
}
