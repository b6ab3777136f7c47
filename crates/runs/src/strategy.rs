//! The training loop: steps, not epochs.
//!
//! Burn's own loop evaluates and checkpoints by epoch, saves the whole model,
//! clips each tensor by itself and sums accumulated gradients. This one takes
//! its place through [`SupervisedLearningStrategy`], and keeps `Learner`, its
//! metrics, its terminal interface and its interrupter.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use burn::{
    data::dataloader::{DataLoader, Progress},
    module::Module,
    tensor::{Device, Tensor},
    train::{
        EventProcessorTraining, Interrupter, Learner, LearnerEvent, SupervisedLearningStrategy,
        SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents, TrainingItem,
        ValidLoader,
    },
};
use olora_data::Batch;

use olora_training::{
    Backward, FailureContext, Passes, StepResult, TrainError, caught, means, step,
};

use crate::{
    Event, Observer, RunError, StepReport, checkpoint,
    claim::untidy,
    memory::{device_reserved_bytes, peak_resident_bytes},
    recipe::{Keep, TrainingSection},
    run_directory::RunDirectory,
    run_log,
    state::{Outcome, RunState},
    trainee::{Learning, StepOutput, Trainee},
};

/// Writes the model's result into the run directory.
pub(crate) type SaveResult = Box<dyn Fn(&Trainee) -> Result<(), RunError> + Send + Sync>;

/// The loop and what it needs, for one run.
pub(crate) struct StepStrategy {
    pub(crate) training: TrainingSection,
    /// How micro-batches are gone through, as the trainee does.
    pub(crate) passes: Passes,
    /// Seeds dropout.
    pub(crate) seed: u64,
    pub(crate) keep: Keep,
    pub(crate) total_steps: usize,
    /// The device, with autodiff.
    pub(crate) device: Device,
    /// Whether the device makes kernels at run time.
    pub(crate) accelerator: bool,
    /// What is known if the device fails.
    pub(crate) failure: FailureContext,
    pub(crate) has_validation: bool,
    pub(crate) directory: RunDirectory,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) save_result: SaveResult,
    /// Where the run stands when the loop starts.
    pub(crate) start: RunState,
    /// What came of it, for the caller: `fit` itself cannot return an error.
    pub(crate) outcome: Mutex<Option<Result<Outcome, RunError>>>,
}

impl SupervisedLearningStrategy<Trainee> for StepStrategy {
    fn fit(
        &self,
        components: TrainingComponents<Trainee>,
        mut learner: Learner<Trainee>,
        train: TrainLoader<Trainee>,
        valid: ValidLoader<Trainee>,
        _starting_epoch: usize,
    ) -> (Trainee, SupervisedTrainingEventProcessor<Trainee>) {
        let mut run = Run {
            strategy: self,
            learner: &mut learner,
            valid,
            processor: components.event_processor,
            interrupter: components.interrupter,
            state: self.start.clone(),
            unread: Vec::new(),
            last_checkpoint: None,
            peak_device_memory: None,
            first_step_seconds: None,
        };
        let result = caught(|| run.all_steps(&*train))
            .unwrap_or_else(|said| Err(RunError::device(&said)))
            .map_err(|error| {
                let last_good = run.last_checkpoint.take().map(|(_, path)| path);
                self.failure
                    .at_step(run.state.step + 1, last_good)
                    .explain(error)
            });
        let processor = run.processor;
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        (learner.model(), processor)
    }
}

/// One execution of the loop.
struct Run<'a> {
    strategy: &'a StepStrategy,
    learner: &'a mut Learner<Trainee>,
    valid: ValidLoader<Trainee>,
    processor: SupervisedTrainingEventProcessor<Trainee>,
    interrupter: Interrupter,
    state: RunState,
    /// Steps whose loss and norm are still on the device.
    unread: Vec<Unread>,
    last_checkpoint: Option<(usize, PathBuf)>,
    peak_device_memory: Option<u64>,
    first_step_seconds: Option<f64>,
}

/// A step that the host has not looked at yet.
struct Unread {
    step: usize,
    result: StepResult,
}

impl Run<'_> {
    fn all_steps(&mut self, batches: &dyn DataLoader<Batch>) -> Result<Outcome, RunError> {
        let strategy = self.strategy;
        let training = &strategy.training;
        let total = strategy.total_steps;
        let mut batches = batches.iter();
        self.last_checkpoint = strategy.directory.newest_checkpoint()?;
        self.report_event(LearnerEvent::StartSplit {
            epoch_number: 1,
            total_items: total,
        });
        if self.state.step == 0 {
            self.evaluate()?;
        }
        let mut clock = Instant::now();
        let mut interrupted = false;
        while self.state.step < total {
            if let Some(error) = self.interrupter.error() {
                return Err(RunError::burn(&error));
            }
            // The optimiser's state can only be had during an update, so an interrupted run
            // makes one more step, with a checkpoint.
            interrupted = self.interrupter.should_stop();
            let step = self.state.step + 1;
            let every = |n: usize| n > 0 && step.is_multiple_of(n);
            let last = step == total;
            let checkpoint_due = last || interrupted || every(training.checkpoint_every);
            let evaluation_due =
                strategy.has_validation && (last || every(training.evaluate_every));
            let log_due = last || every(training.log_every);
            self.step(&mut batches, checkpoint_due)?;
            if strategy.accelerator && self.first_step_seconds.is_none() {
                // The one wait that nothing else asks for: what the kernels cost is to be seen.
                strategy
                    .device
                    .sync()
                    .map_err(|error| RunError::device(&error))?;
                let seconds = clock.elapsed().as_secs_f64();
                self.first_step_seconds = Some(seconds);
                strategy.observer.on(&Event::FirstStep {
                    seconds,
                    n_choices: run_log::n_choices(),
                });
            }

            if log_due || checkpoint_due || evaluation_due {
                // Reading the losses waits for the device, so the clock is stopped after it.
                let norm = self.read_losses()?;
                let seconds = clock.elapsed().as_secs_f64();
                self.state.window.seconds += seconds;
                self.state.seconds += seconds;
                if log_due {
                    self.log(norm)?;
                }
                if evaluation_due {
                    self.evaluate()?;
                }
                if checkpoint_due {
                    self.checkpoint()?;
                }
                clock = Instant::now();
            }
            if interrupted {
                break;
            }
        }
        // An interruption during the last step changed nothing.
        let interrupted = interrupted && self.state.step < total;
        if interrupted {
            strategy.observer.on(&Event::Interrupted(self.state.step));
        } else if strategy.keep == Keep::Last {
            self.save_result()?;
        }
        strategy.directory.draw()?;
        self.report_event(LearnerEvent::EndSplit(1));
        Ok(Outcome {
            state: self.state.clone(),
            interrupted,
            peak_device_memory: self.peak_device_memory,
            first_step_seconds: self.first_step_seconds,
        })
    }

    /// One optimiser step over `accumulation` micro-batches.
    fn step(
        &mut self,
        batches: &mut dyn Iterator<Item = Result<Batch, burn::data::dataset::DatasetError>>,
        checkpoint_due: bool,
    ) -> Result<(), RunError> {
        let strategy = self.strategy;
        let training = &strategy.training;
        let number = self.state.step + 1;
        let state = &mut self.state;
        #[cfg(feature = "test-hooks")]
        lose_device(number);
        if checkpoint_due {
            self.learner.model().tap().request();
        }
        let backward = |learning: &Learning<'_>, micro_batch: usize| {
            let Some(batch) = batches.next() else {
                // Only the last step of a run by epochs may be short of micro-batches.
                if micro_batch == 0 {
                    return Err(RunError::mismatch(format!(
                        "the data ended before step {number}"
                    )));
                }
                if number < strategy.total_steps {
                    return Err(RunError::mismatch(format!(
                        "the data ended during step {number}"
                    )));
                }
                return Ok(None);
            };
            let batch = batch.map_err(|error| RunError::burn(&error))?;
            if batch.n_trained == 0 {
                return Err(RunError::mismatch(format!(
                    "the batch of step {number} has no trained tokens: its loss would be 0 / 0"
                )));
            }
            state.n_batches += 1;
            state.tokens += batch.n_tokens as u64;
            state.window.tokens += batch.n_tokens as u64;
            strategy
                .passes
                .seed_dropout(strategy.seed, number, micro_batch);
            let output = learning.0.train_step(batch);
            Ok(Some(Backward {
                loss: output.item.loss_sum,
                measures: output.item.measures,
                count: output.item.count,
                grads: output.grads,
            }))
        };
        let mut learning = Learning(&mut *self.learner);
        let (accumulation, max_norm) = (training.accumulation, training.max_grad_norm);
        let result = step(&mut learning, accumulation, max_norm, backward)?;
        self.unread.push(Unread {
            step: number,
            result,
        });
        self.state.step = number;
        Ok(())
    }

    /// Brings the losses since the last reading to the host and refuses to go
    /// on if one is not a number. Returns the last norm.
    fn read_losses(&mut self) -> Result<f64, RunError> {
        let unread = std::mem::take(&mut self.unread);
        if unread.is_empty() {
            return Ok(0.0);
        }
        // One reading, since each waits for the device.
        let all = unread
            .iter()
            .flat_map(|Unread { result, .. }| {
                let measures = result.measures.iter().map(|(_, sum)| sum.clone());
                [result.loss.clone(), result.norm.clone()]
                    .into_iter()
                    .chain(measures)
            })
            .collect();
        let values = Tensor::cat(all, 0)
            .try_into_data()
            .map_err(|error| RunError::device(&error))?
            .try_to_vec::<f32>()
            .map_err(|error| RunError::device(&error))?;
        let mut values = values.into_iter();
        let mut next = || f64::from(values.next().unwrap_or(f32::NAN));
        let mut last_norm = 0.0;
        for unread in &unread {
            let (loss, norm) = (next(), next());
            for (what, value) in [("loss", loss), ("gradient norm", norm)] {
                if !value.is_finite() {
                    return Err(RunError::NotFinite {
                        what,
                        first: None,
                        value: value as f32,
                        step: unread.step,
                        last_good: self.last_checkpoint.take().map(|(_, path)| path),
                    });
                }
            }
            for (name, _) in &unread.result.measures {
                let sums = &mut self.state.window.measures;
                *sums.entry((*name).to_owned()).or_default() += next();
            }
            self.state.window.loss_sum += loss;
            self.state.window.n_trained += unread.result.count;
            last_norm = norm;
        }
        Ok(last_norm)
    }

    fn log(&mut self, grad_norm: f64) -> Result<(), RunError> {
        let window = std::mem::take(&mut self.state.window);
        let count = if window.n_trained > 0.0 {
            window.n_trained
        } else {
            1.0
        };
        let loss = window.loss_sum / count;
        let learning_rate = self.learner.lr_current();
        let device_memory = device_reserved_bytes(&self.strategy.device);
        self.peak_device_memory = self.peak_device_memory.max(device_memory);
        let report = StepReport {
            step: self.state.step,
            loss,
            learning_rate: learning_rate.base(),
            grad_norm,
            tokens: self.state.tokens,
            tokens_per_second: window.tokens as f64 / window.seconds.max(1e-9),
            seconds: self.state.seconds,
            peak_memory: peak_resident_bytes(),
            device_memory,
            measures: means(&window.measures, count),
        };
        self.state.last_loss = Some(loss);
        self.strategy.directory.log_step(&report)?;
        log::info!("{report:?}");
        self.strategy.observer.on(&Event::Step(report));

        let item = StepOutput::of_mean(loss, &self.strategy.device);
        let progress = Progress::new(
            self.state.step,
            self.strategy.total_steps,
            Some("steps".to_owned()),
        );
        let item = TrainingItem::new(item, progress, Some(self.state.step), Some(learning_rate));
        self.report_event(LearnerEvent::ProcessedItem(item));
        Ok(())
    }

    fn evaluate(&mut self) -> Result<(), RunError> {
        if !self.strategy.has_validation {
            return Ok(());
        }
        let model = self.learner.model().valid();
        let step = self.state.step;
        let passes = &self.strategy.passes;
        let evaluation = passes.evaluate(&model.llama, self.valid.iter());
        let evaluation = evaluation.map_err(|error| match error {
            TrainError::NotFinite { value, first } => RunError::NotFinite {
                what: "validation loss",
                first: Some(first),
                value: value as f32,
                step,
                last_good: self.last_checkpoint.take().map(|(_, path)| path),
            },
            other => other.into(),
        })?;
        self.state.validation.push((step, evaluation.loss));
        if !evaluation.measures.is_empty() {
            let measures = evaluation.measures.clone();
            self.state.validation_measures.push(measures);
        }
        self.strategy.directory.log_evaluation(step, &evaluation)?;
        log::info!("after step {step}: {evaluation:?}");
        let loss = evaluation.loss;
        self.strategy
            .observer
            .on(&Event::Evaluated { step, evaluation });
        if self.strategy.keep == Keep::Best
            && self.state.best().is_some_and(|(best, _)| best == step)
        {
            self.save_result()?;
        }

        let start = LearnerEvent::StartSplit {
            epoch_number: 1,
            total_items: 1,
        };
        self.interrupter
            .fail_on_error(self.processor.process_valid(start));
        let item = StepOutput::of_mean(loss, &self.strategy.device);
        let item = TrainingItem::new(item, Progress::new(1, 1, None), Some(step), None);
        self.interrupter.fail_on_error(
            self.processor
                .process_valid(LearnerEvent::ProcessedItem(item)),
        );
        self.interrupter
            .fail_on_error(self.processor.process_valid(LearnerEvent::EndSplit(1)));
        Ok(())
    }

    fn save_result(&self) -> Result<(), RunError> {
        self.strategy.directory.check_there()?;
        (self.strategy.save_result)(&self.learner.model())
    }

    fn checkpoint(&mut self) -> Result<(), RunError> {
        let strategy = self.strategy;
        strategy.directory.check_there()?;
        let model = self.learner.model();
        // The loss was finite before this update; the weights must be so after it.
        if let Some(path) = checkpoint::not_finite(&model)? {
            let step = self.state.step;
            let last_good = self.last_checkpoint.take().map(|(_, path)| path);
            return Err(RunError::Diverged {
                path,
                step,
                last_good,
            });
        }
        let record = model.tap().take().ok_or_else(|| {
            RunError::burn(&"the optimiser's state was not captured for the checkpoint".to_owned())
        })?;
        let checkpoints = strategy.directory.checkpoints();
        let path = checkpoint::save(&checkpoints, &model, record, &self.state)?;
        log::info!("checkpoint {}", path.display());
        strategy.observer.on(&Event::Checkpoint {
            step: self.state.step,
            path: path.clone(),
        });
        self.last_checkpoint = Some((self.state.step, path));
        // Hours of training are not lost because an old checkpoint cannot be removed. It is tried again
        // after the next one.
        if let Err(error) = checkpoint::tidy(&checkpoints, strategy.training.keep_checkpoints) {
            strategy.observer.on(&untidy(&error));
        }
        Ok(())
    }

    fn report_event(&mut self, event: LearnerEvent<StepOutput>) {
        self.interrupter
            .fail_on_error(self.processor.process_train(event));
    }
}

/// Does what a lost device does, at the step that a test names.
#[cfg(feature = "test-hooks")]
fn lose_device(step: usize) {
    let at = std::env::var("OLORA_TEST_LOSE_DEVICE_AT").ok();
    let lost = at.is_some_and(|at| at.parse() == Ok(step));
    // So do tensor operations on a lost device.
    assert!(!lost, "the device is lost (a test asked for it)");
}
