//! The model as Burn's `Learner` trains it: one step, one loss.

use std::sync::{Arc, Mutex, PoisonError};

use burn::{
    lr_scheduler::module_lr_scheduler::ModuleLearningRate,
    module::Module,
    optim::{GradientsParams, ModuleOptimizer, OptimizerRecord},
    tensor::{Device, Int, Tensor, TensorData},
    train::{
        InferenceStep, ItemLazy, TrainOutput, TrainStep,
        metric::{Adaptor, LossInput},
    },
};
use olora_data::Batch;
use olora_model::Llama;
use olora_operations::loss::{composed, cross_entropy};

/// The model together with what the stepwise loop needs to reach inside
/// `Learner`.
#[derive(Module, Debug)]
pub struct Trainee {
    /// The model.
    pub llama: Llama,
    #[module(skip)]
    tap: OptimizerTap,
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
    pub(crate) fn new(llama: Llama) -> Self {
        Self {
            llama,
            tap: OptimizerTap::default(),
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
        let loss_sum = loss_sum(&self.llama, &batch);
        let output = StepOutput {
            loss_sum: loss_sum.clone().inner(),
            n_trained: batch.n_trained,
        };
        TrainOutput::new(self, loss_sum.backward(), output)
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

/// The cross-entropy summed over the batch's trained tokens, `[1]`, f32.
///
/// A sum, not a mean: whoever accumulates adds sums and counts and divides
/// once, so that micro-batches of unequal length weigh as they should. It also
/// keeps gradients large enough for float16, which needs no other loss scale
/// (measured: BENCHMARKS.md, "Half precision"). The
/// vocabulary projection is computed at trained positions only.
pub fn loss_sum(llama: &Llama, batch: &Batch) -> Tensor<1> {
    let device: Device = llama.device();
    let (rows, seq) = (batch.n_rows, batch.seq_len);
    let ids =
        Tensor::<2, Int>::from_data(TensorData::new(batch.inputs.clone(), [rows, seq]), &device);
    let host = |values: &[i32]| {
        Tensor::<1, Int>::from_data(TensorData::new(values.to_vec(), [values.len()]), &device)
    };
    let hidden = llama.hidden(ids);
    let width = hidden.dims()[2];
    let trained = hidden
        .reshape([rows * seq, width])
        .select(0, host(&batch.positions));
    loss_of_hidden(llama, trained, batch)
}

/// The loss of final hidden states at the trained positions, `[n, hidden_size]`.
pub(crate) fn loss_of_hidden(llama: &Llama, trained: Tensor<2>, batch: &Batch) -> Tensor<1> {
    match llama.output_weight(trained.dtype()) {
        Some(weight) => cross_entropy(trained, weight, &batch.targets, batch.n_trained),
        // With an adapter on the projection, the logits are made whole.
        None => composed(llama.logits(trained), &batch.targets, batch.n_trained),
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
