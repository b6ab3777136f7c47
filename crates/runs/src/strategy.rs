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
    data::dataloader::DataLoader,
    module::Module,
    tensor::Device,
    train::{
        Interrupter, Learner, SupervisedLearningStrategy, SupervisedTrainingEventProcessor,
        TrainLoader, TrainingComponents, ValidLoader,
    },
};
use olora_data::Batch;
use olora_training::{FailureContext, Passes, TrainError, caught, means, step_together};

#[cfg(feature = "test-hooks")]
use crate::step_work;
use crate::{
    Event, Observer, Progress, RunError, StepReport, checkpoint,
    claim::untidy,
    epochs::Epochs,
    judge::Judge,
    memory::{device_reserved_bytes, peak_resident_bytes},
    pace::{Pace, SecondsLeft},
    rank_times::{RankTimes, Slow},
    ranks::Ranks,
    recipe::{Keep, TrainingSection},
    run_directory::RunDirectory,
    run_log,
    shown::Shown,
    state::{Outcome, RunState},
    step_work::{Batches, StepWork},
    trainee::{Learning, Trainee},
    unread::{self, Unread},
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
    /// Which passes over the data they are of.
    pub(crate) epochs: Epochs,
    /// How long they still take, for whoever draws it.
    pub(crate) left: SecondsLeft,
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
        let start = &self.start;
        let training = &self.training;
        let evaluate_every = self.has_validation.then_some(training.evaluate_every);
        let mut run = Run {
            strategy: self,
            learner: &mut learner,
            valid,
            shown: Shown::begin(
                components.event_processor,
                components.interrupter.clone(),
                self.device.clone(),
                self.epochs,
                start.step,
            ),
            interrupter: components.interrupter,
            pace: Pace::new(
                start.step,
                start.seconds,
                self.total_steps,
                evaluate_every,
                training.checkpoint_every,
            ),
            state: start.clone(),
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
        let processor = run.shown.into_processor();
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        (learner.model(), processor)
    }
}

/// One execution of the loop.
struct Run<'a> {
    strategy: &'a StepStrategy,
    learner: &'a mut Learner<Trainee>,
    valid: ValidLoader<Trainee>,
    shown: Shown,
    interrupter: Interrupter,
    pace: Pace,
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

impl Run<'_> {
    fn all_steps(&mut self, batches: &dyn DataLoader<Batch>) -> Result<Outcome, RunError> {
        let strategy = self.strategy;
        let training = &strategy.training;
        let total = strategy.total_steps;
        let mut batches = batches.iter();
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
            let waited = self.wait_for_first(clock)?;

            if log_due || checkpoint_due || evaluation_due {
                // Reading the losses waits for the device, so the clock is stopped after it.
                let norm = self.read_losses()?;
                let seconds = clock.elapsed().as_secs_f64();
                self.state.window.seconds += seconds;
                self.state.seconds += seconds;
                self.progress(self.state.seconds);
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
            } else if waited {
                self.progress(self.state.seconds + clock.elapsed().as_secs_f64());
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
        self.shown.end();
        Ok(Outcome {
            state: self.state.clone(),
            interrupted,
            stopped_early,
            peak_device_memory: self.peak_device_memory,
            first_step_seconds: self.first_step_seconds,
        })
    }

    /// Waits for a device's first step, the one wait that nothing else asks for: what
    /// the kernels cost is to be seen. Returns whether the step is known to be done.
    fn wait_for_first(&mut self, clock: Instant) -> Result<bool, RunError> {
        let strategy = self.strategy;
        if !strategy.accelerator {
            return Ok(true);
        }
        if self.first_step_seconds.is_some() {
            return Ok(false);
        }
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
        Ok(true)
    }

    /// Tells how far the run is, after so many seconds of training.
    fn progress(&mut self, seconds: f64) {
        self.pace.stepped(self.state.step, seconds);
        let seconds_left = self.pace.seconds_left();
        self.strategy.left.set(seconds_left);
        self.strategy.observer.on(&Event::Progress(Progress {
            step: self.state.step,
            total_steps: self.strategy.total_steps,
            seconds_left,
        }));
    }

    fn took(&self, stage: &'static str, began: Instant) -> f64 {
        let seconds = began.elapsed().as_secs_f64();
        self.strategy.observer.on(&Event::Took { stage, seconds });
        seconds
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
        unread::read(&unread, &mut self.state.window).map_err(|error| match error {
            RunError::NotFinite {
                what,
                first,
                value,
                step,
                ..
            } => RunError::NotFinite {
                what,
                first,
                value,
                step,
                last_good: self.last_checkpoint.take().map(|(_, path)| path),
            },
            other => other,
        })
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

        self.shown.logged(self.state.step, loss, learning_rate);
        Ok(())
    }

    fn evaluate(&mut self) -> Result<(), RunError> {
        if !self.strategy.has_validation {
            return Ok(());
        }
        let began = Instant::now();
        self.shown.evaluating();
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
        let seconds = self.took("evaluation", began);
        self.pace.evaluated(step, seconds);
        if self.strategy.keep == Keep::Best
            && self.state.best().is_some_and(|(best, _)| best == step)
        {
            self.save_result()?;
        }

        self.shown.evaluated(step, loss);
        Ok(())
    }

    fn save_result(&self) -> Result<(), RunError> {
        if !self.strategy.directory.writes() {
            return Ok(());
        }
        self.strategy.directory.check_there()?;
        let began = Instant::now();
        (self.strategy.save_result)(&self.learner.model())?;
        self.took("saving the result", began);
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), RunError> {
        let began = Instant::now();
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
        let seconds = self.took("checkpoint", began);
        self.pace.saved(self.state.step, seconds);
        Ok(())
    }
}
