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
    FailureContext, Passes, StepResult, TrainError, caught, means, step_together,
};

#[cfg(feature = "test-hooks")]
use crate::step_work;
use crate::{
    Event, Observer, RunError, StepReport, checkpoint,
    claim::untidy,
    judge::Judge,
    memory::{device_reserved_bytes, peak_resident_bytes},
    rank_times::{RankTimes, Slow},
    ranks::Ranks,
    recipe::{Keep, TrainingSection},
    run_directory::RunDirectory,
    run_log,
    state::{Outcome, RunState},
    step_work::{Batches, StepWork},
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
    /// The tasks that are scored with each evaluation, if there are any.
    pub(crate) judge: Option<Judge>,
    pub(crate) directory: RunDirectory,
    /// The processes that make the run together.
    pub(crate) ranks: Ranks,
    /// The newest checkpoint when the loop starts.
    pub(crate) last_checkpoint: Option<(usize, PathBuf)>,
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
            times: RankTimes::default(),
            slow: Slow::default(),
            last_checkpoint: self.last_checkpoint.clone(),
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
    /// What each rank has taken since the last logged line.
    times: RankTimes,
    /// Which ranks have been named as slow.
    slow: Slow,
    last_checkpoint: Option<(usize, PathBuf)>,
    peak_device_memory: Option<u64>,
    first_step_seconds: Option<f64>,
}

/// What is told of a run whose patience has come to its end.
fn stopped(state: &RunState, patience: Option<usize>) -> String {
    format!(
        "stopped early after step {}: none of the last {} evaluations has {}",
        state.step,
        patience.unwrap_or_default(),
        state.best_in_words()
    )
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
        self.report_event(LearnerEvent::StartSplit {
            epoch_number: 1,
            total_items: total,
        });
        if self.state.step == 0 {
            self.evaluate()?;
        }
        let mut clock = Instant::now();
        let (mut interrupted, mut stopped_early) = (false, false);
        // It may have been stopped between that and its summary.
        let waited = |patience| self.state.step > 0 && self.state.unimproved() >= patience;
        if training.patience.is_some_and(waited) && self.state.step < total {
            stopped_early = true;
            self.tell_stopped();
        }
        while self.state.step < total && !stopped_early {
            if let Some(error) = self.interrupter.error() {
                return Err(RunError::burn(&error));
            }
            let step = self.state.step + 1;
            let every = |n: usize| n > 0 && step.is_multiple_of(n);
            let last = step == total;
            let checkpoint_due = last || every(training.checkpoint_every);
            let evaluation_due =
                strategy.has_validation && (last || every(training.evaluate_every));
            let log_due = last || every(training.log_every);
            // The last evaluation that patience may have, which has a checkpoint if it is.
            let may_end = |patience: usize| self.state.unimproved() + 1 >= patience;
            let may_end = evaluation_due && training.patience.is_some_and(may_end);
            // The optimiser's state can only be had during an update: whoever is asked to stop ends with
            // the update that all ranks are about to make.
            interrupted = self.step(&mut batches, checkpoint_due || may_end)?;
            let checkpoint_due = checkpoint_due || interrupted;
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
                let waited = |patience| self.state.unimproved() >= patience;
                stopped_early = may_end && training.patience.is_some_and(waited) && !last;
                if checkpoint_due || stopped_early {
                    self.checkpoint()?;
                } else if may_end {
                    // What was captured for it is not needed.
                    let _ = self.learner.model().tap().take();
                }
                clock = Instant::now();
            }
            if stopped_early {
                self.tell_stopped();
                break;
            }
            if interrupted {
                break;
            }
        }
        // An interruption during the last step changed nothing.
        let interrupted = interrupted && self.state.step < total && !stopped_early;
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
            stopped_early,
            peak_device_memory: self.peak_device_memory,
            first_step_seconds: self.first_step_seconds,
        })
    }

    fn tell_stopped(&self) {
        let note = stopped(&self.state, self.strategy.training.patience);
        self.strategy.observer.on(&Event::Note(note));
    }

    /// One optimiser step over `accumulation` micro-batches. Returns whether any
    /// rank was asked to stop.
    fn step(&mut self, batches: &mut Batches<'_>, checkpoint_due: bool) -> Result<bool, RunError> {
        let strategy = self.strategy;
        let number = self.state.step + 1;
        #[cfg(feature = "test-hooks")]
        step_work::lose_device(number, strategy.ranks.exchange().rank());
        if checkpoint_due && strategy.directory.writes() {
            self.learner.model().tap().request();
        }
        let mut work = StepWork {
            strategy,
            batches,
            interrupter: &self.interrupter,
            number,
            n_done: 0,
            tokens: 0,
        };
        let mut learning = Learning(&mut *self.learner);
        let training = &strategy.training;
        let result = step_together(
            &mut learning,
            strategy.ranks.exchange(),
            training.accumulation,
            training.max_grad_norm,
            &mut work,
        );
        let result = result.map_err(|error| match error {
            RunError::Train(TrainError::NotFinite { value, .. }) => RunError::NotFinite {
                what: "loss",
                first: None,
                value: value as f32,
                step: number,
                last_good: self.last_checkpoint.take().map(|(_, path)| path),
            },
            other => other,
        })?;
        let tokens: u64 = result.ranks.iter().map(|rank| rank.tokens).sum();
        self.state.n_batches += result.n_micro_batches;
        self.state.tokens += tokens;
        self.state.window.tokens += tokens;
        self.times.add(&result);
        let stop = result.ranks.iter().any(|rank| rank.stop);
        self.unread.push(Unread {
            step: number,
            result,
        });
        self.state.step = number;
        Ok(stop)
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
        let times = std::mem::take(&mut self.times);
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
            ranks: times.report(self.strategy.ranks.exchange()),
        };
        if let Some(note) = self.slow.note(report.ranks.as_ref()) {
            self.strategy.observer.on(&Event::Note(note));
        }
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
        let exchange = self.strategy.ranks.exchange();
        let evaluation = passes.evaluate_together(exchange, &model.llama, self.valid.iter());
        let mut evaluation = evaluation.map_err(|error| match error {
            TrainError::NotFinite { value, first } => RunError::NotFinite {
                what: "validation loss",
                first: Some(first),
                value: value as f32,
                step,
                last_good: self.last_checkpoint.take().map(|(_, path)| path),
            },
            other => other.into(),
        })?;
        if let Some(judge) = &self.strategy.judge {
            evaluation
                .measures
                .extend(judge.scores(exchange, &model.llama)?);
        }
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
        if !self.strategy.directory.writes() {
            return Ok(());
        }
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
        strategy
            .ranks
            .agree(&model, &format!("after step {}", self.state.step))?;
        let checkpoints = strategy.directory.checkpoints();
        if !strategy.directory.writes() {
            // The first rank writes it under this name.
            let path = checkpoint::path_of(&checkpoints, self.state.step);
            self.last_checkpoint = Some((self.state.step, path));
            return Ok(());
        }
        let record = model.tap().take().ok_or_else(|| {
            RunError::burn(&"the optimiser's state was not captured for the checkpoint".to_owned())
        })?;
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
