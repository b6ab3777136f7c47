//! What Burn's view of a run is told.

use burn::{
    data::dataloader::Progress,
    lr_scheduler::module_lr_scheduler::ModuleLearningRate,
    tensor::Device,
    train::{
        EventProcessorTraining, Interrupter, LearnerEvent, SupervisedTrainingEventProcessor,
        TrainingItem,
    },
};

use crate::{
    epochs::Epochs,
    trainee::{StepOutput, Trainee},
};

/// Burn's processor of events, told of steps: of both splits, the items are the steps
/// of the whole run, which [`BySteps`](crate::by_steps::BySteps) makes epochs of.
pub(crate) struct Shown {
    processor: SupervisedTrainingEventProcessor<Trainee>,
    interrupter: Interrupter,
    device: Device,
    epochs: Epochs,
    /// The epoch that the last number was of.
    epoch: usize,
    /// Whether there is a number in it: Burn's mean over none would be NaN.
    has_items: bool,
}

impl Shown {
    /// Of a run that stands after `step`.
    pub(crate) fn begin(
        processor: SupervisedTrainingEventProcessor<Trainee>,
        interrupter: Interrupter,
        device: Device,
        epochs: Epochs,
        step: usize,
    ) -> Self {
        let mut shown = Self {
            processor,
            interrupter,
            device,
            epochs,
            epoch: epochs.of(step + 1),
            has_items: false,
        };
        shown.begin_epoch();
        shown
    }

    fn begin_epoch(&mut self) {
        self.train(LearnerEvent::StartSplit {
            epoch_number: self.epoch,
            total_items: self.epochs.total_steps,
        });
    }

    fn end_epoch(&mut self) {
        if std::mem::take(&mut self.has_items) {
            self.train(LearnerEvent::EndSplit(self.epoch));
        }
    }

    /// A line was logged: the mean loss up to a step.
    pub(crate) fn logged(&mut self, step: usize, loss: f64, rate: ModuleLearningRate) {
        let epoch = self.epochs.of(step);
        if epoch != self.epoch && self.has_items {
            self.end_epoch();
            self.train(LearnerEvent::EndEpoch(self.epoch));
            self.epoch = epoch;
            self.begin_epoch();
        }
        self.epoch = epoch;
        let item = self.item(step, loss, Some(rate));
        self.train(LearnerEvent::ProcessedItem(item));
        self.has_items = true;
    }

    /// An evaluation begins.
    pub(crate) fn evaluating(&mut self) {
        self.valid(LearnerEvent::StartSplit {
            epoch_number: self.epoch,
            total_items: self.epochs.total_steps,
        });
    }

    /// The evaluation has ended.
    pub(crate) fn evaluated(&mut self, step: usize, loss: f64) {
        let item = self.item(step, loss, None);
        self.valid(LearnerEvent::ProcessedItem(item));
        self.valid(LearnerEvent::EndSplit(self.epoch));
    }

    /// All steps are made.
    pub(crate) fn end(&mut self) {
        self.end_epoch();
    }

    pub(crate) fn into_processor(self) -> SupervisedTrainingEventProcessor<Trainee> {
        self.processor
    }

    fn item(
        &self,
        step: usize,
        loss: f64,
        rate: Option<ModuleLearningRate>,
    ) -> TrainingItem<StepOutput> {
        let unit = Some("steps".to_owned());
        let progress = Progress::new(step, self.epochs.total_steps, unit);
        let item = StepOutput::of_mean(loss, &self.device);
        TrainingItem::new(item, progress, Some(step), rate)
    }

    fn train(&mut self, event: LearnerEvent<StepOutput>) {
        self.interrupter
            .fail_on_error(self.processor.process_train(event));
    }

    fn valid(&mut self, event: LearnerEvent<StepOutput>) {
        self.interrupter
            .fail_on_error(self.processor.process_valid(event));
    }
}
