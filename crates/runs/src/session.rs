//! All that the loop needs, and what is left when it has ended.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Instant,
};

use burn::{
    data::dataset::Dataset,
    module::Module,
    optim::ModuleOptimizer,
    tensor::Device,
    train::{Interrupter, Learner, renderer::MetricsRenderer},
};
use olora_adapter::{has_moved, summary};
use olora_data::{Schedule, Share, loader};
use olora_model::Llama;
use olora_training::{FailureContext, Passes, scheduler};

use crate::{
    Event, Observer, RunError, RunPlan, Summary, TrainOptions,
    card::card,
    checkpoint::{self, Whole},
    claim::Next,
    epochs::Epochs,
    finished::SUMMARY,
    judge::TASKS,
    learner::{optimizer, passes, run_learner},
    pace::SecondsLeft,
    prepare::Prepared,
    ranks::{Ranks, Start},
    recipe::Trained,
    run_directory::RunDirectory,
    run_log,
    sampler::Sampler,
    save::saver,
    stages::{Attached, Parts},
    state::{Outcome, RunState},
    strategy::StepStrategy,
    summary::Around,
    trainee::Trainee,
};

/// A run that is ready to go on from where it stands.
pub(crate) struct Session<'a> {
    prepared: &'a Prepared,
    ranks: Ranks,
    /// The newest checkpoint when the session began.
    last_checkpoint: Option<(usize, PathBuf)>,
    passes: Passes,
    trainee: Trainee,
    optimizer: ModuleOptimizer,
    schedule: Schedule,
    directory: RunDirectory,
    state: RunState,
    /// What is said of the run before it begins.
    plan: RunPlan,
}

impl<'a> Session<'a> {
    /// A new run writes what it is into its directory; one that goes on takes
    /// what its checkpoint holds.
    pub(crate) fn new(
        attached: Attached<'a>,
        directory: RunDirectory,
        begin: &Start,
        fingerprint: u64,
        options: &TrainOptions,
    ) -> Result<Self, RunError> {
        let Attached { prepared, parts } = attached;
        let Parts {
            llama,
            schedule,
            counts,
            ranks: layer_ranks,
            memory,
            seconds,
        } = parts;
        let Prepared {
            recipe,
            data,
            steps,
            ..
        } = prepared;
        let passes = passes(recipe, &llama)?;
        let trainee = Module::train(Trainee::new(llama, passes.clone()));
        let optimizer = optimizer(&recipe.training);
        let last_checkpoint = begin.checkpoint.clone();
        let (state, trainee, optimizer) = match &begin.next {
            Next::Begin => {
                let task = recipe.training.best_by.task();
                let state = RunState {
                    fingerprint,
                    best_by: task.map(|task| format!("{TASKS}{}", task.as_str())),
                    ..RunState::default()
                };
                directory.begin(recipe)?;
                directory.write_ranks(&layer_ranks)?;
                directory.write_data(&data.reports)?;
                (state, trainee, optimizer)
            }
            Next::GoOn { from, changed, .. } => {
                let Whole { path, state } = &**from;
                let mut state = state.clone();
                let (trainee, record) = checkpoint::load(path, trainee)?;
                directory.go_on_after(state.step, (*changed).then_some(recipe))?;
                if state.last_loss.is_none() {
                    // Earlier versions did not keep it in the state.
                    state.last_loss = directory.last_loss()?;
                }
                (state, trainee, optimizer.load_record(record))
            }
        };
        let ranks = options.ranks.clone();
        ranks.agree(&trainee, "at the start")?;
        let plan = RunPlan {
            directory: directory.path().to_owned(),
            n_params: counts.params,
            n_trained_params: counts.trained,
            n_adapted_layers: counts.adapted_layers,
            attach_seconds: seconds,
            total_steps: steps.total,
            batches_per_epoch: steps.batches_per_epoch,
            epochs: steps.epochs(),
            sequences_per_step: recipe
                .training
                .batch_size
                .saturating_mul(recipe.training.accumulation),
            in_pairs: data.train.corpus().unit() > 1,
            n_samples: data.train.len(),
            precision: prepared.precision.clone(),
            memory,
            device_memory: options.device.memory,
        };
        Ok(Self {
            prepared,
            ranks,
            last_checkpoint,
            passes,
            trainee,
            optimizer,
            schedule,
            directory,
            state,
            plan,
        })
    }

    /// Makes the steps that are left, and sums up.
    pub(crate) fn run(
        self,
        began: Instant,
        device: &Device,
        options: TrainOptions,
        sampler: &Sampler,
        failure: &FailureContext,
        observer: &Arc<dyn Observer>,
    ) -> Result<Summary, RunError> {
        let prepared = self.prepared;
        let recipe = &prepared.recipe;
        let plan = self.plan.clone();
        if let Trained::Adapter(config) =
            recipe.adapter.trained(self.trainee.llama.lm_head.is_some())
        {
            let adapted = summary(&self.trainee.llama, &config)?;
            observer.on(&Event::Detail(adapted.to_string()));
        }
        observer.on(&Event::Ready(plan.clone()));
        let leads = self.ranks.leads();
        let n_ranks = self.ranks.n();
        if self.state.step == 0 {
            if leads {
                let samples = sampler.run("before", &self.trainee.llama)?;
                self.directory.write_samples(samples)?;
            }
        } else {
            observer.on(&Event::Resumed(self.state.step));
        }
        let full = prepared.trains_everything();
        let directory = self.directory.clone();
        let result = directory
            .path()
            .join(if full { "model" } else { "adapter" });
        if leads {
            run_log::write_to(&directory.path().join("experiment.log"))?;
        }
        let interrupter = options.interrupter.clone();
        let details = options.device;
        let (llama, outcome) = self.fit(
            &result,
            options.renderer,
            interrupter,
            details.accelerator,
            failure,
            observer,
        )?;

        let around = Around {
            device: if details.device.is_empty() {
                format!("{:?}", device.clone().inner())
            } else {
                details.to_string()
            },
            result,
            plan,
            wall_seconds: began.elapsed().as_secs_f64(),
            commit: options.commit,
            n_ranks,
        };
        let summary = Summary::new(recipe, &outcome, around);
        let json = serde_json::to_vec_pretty(&summary).map_err(|error| RunError::burn(&error))?;
        if outcome.interrupted {
            directory.write(SUMMARY, &json)?;
            return Ok(summary);
        }
        if !leads {
            return Ok(summary);
        }
        if !full {
            let rows = prepared.resized.then_some(prepared.config.vocab_size);
            let card = card(recipe, &summary, rows, prepared.config.with_pictures);
            directory.write("adapter/README.md", card.as_bytes())?;
        }
        // What could not be removed after the last checkpoint has been told; it may go now.
        let _ = checkpoint::tidy(&directory.checkpoints(), recipe.training.keep_checkpoints);
        // With it the run is finished. What is written after it, samples, no run needs.
        directory.write(SUMMARY, &json)?;
        if !full && recipe.adapter.config.modules_to_save.is_empty() && !has_moved(&llama)? {
            observer.on(&Event::Note(
                "no factor has moved in training, every `B` is what it was: the adapter changes nothing. \
                 Is the learning rate too small?"
                    .to_owned(),
            ));
        }
        let samples = sampler.run("after", &llama)?;
        if let Err(error) = directory.write_samples(samples) {
            observer.on(&Event::Note(format!(
                "the samples after training are not kept: {error}. The run is finished without them"
            )));
        }
        observer.on(&Event::Finished(Box::new(summary.clone())));
        Ok(summary)
    }

    /// Through Burn's learner.
    fn fit(
        self,
        result: &Path,
        renderer: Option<Box<dyn MetricsRenderer>>,
        interrupter: Interrupter,
        accelerator: bool,
        failure: &FailureContext,
        observer: &Arc<dyn Observer>,
    ) -> Result<(Llama, Outcome), RunError> {
        let Prepared {
            recipe,
            data,
            padding,
            steps,
            ..
        } = self.prepared;
        let accumulation = recipe.training.accumulation;
        let left = self.state.n_batches..steps.n_batches.max(self.state.n_batches);
        let block = self.ranks.block(recipe)?;
        let train = loader(
            Share::new(self.schedule, left, accumulation, block),
            *padding,
        );
        // Burn wants a validation loader even where there is nothing to validate on.
        let validation = data.validation.clone().unwrap_or_else(|| {
            let all = data.train.corpus();
            all.select(|i| i < all.unit())
        });
        let validation = Schedule::sequential(validation, recipe.training.batch_size)?;
        let (rank, n_ranks) = (self.ranks.exchange().rank(), self.ranks.n());
        let all = 0..validation.len();
        let valid = loader(
            Share::new(validation, all, n_ranks, rank..rank + 1),
            *padding,
        );

        let rate = recipe.training.learning_rate(steps.total);
        let ratio = recipe.training.loraplus_ratio;
        let epochs = Epochs {
            total_steps: steps.total,
            n_batches: steps.n_batches,
            batches_per_epoch: steps.batches_per_epoch,
            accumulation,
        };
        let scheduler = scheduler(&rate, ratio, self.state.step, &self.trainee);
        let strategy = Arc::new(StepStrategy {
            training: recipe.training.clone(),
            passes: self.passes,
            seed: recipe.seed,
            keep: recipe.keep(),
            total_steps: steps.total,
            epochs,
            left: SecondsLeft::default(),
            device: self.trainee.llama.device(),
            accelerator,
            failure: failure.clone(),
            has_validation: data.validation.is_some(),
            judge: self.prepared.judge.clone(),
            directory: self.directory,
            ranks: self.ranks,
            last_checkpoint: self.last_checkpoint,
            observer: Arc::clone(observer),
            save_result: saver(self.prepared, result.to_owned())?,
            start: self.state,
            outcome: Mutex::new(None),
        });
        let learner = Learner::new(self.trainee, self.optimizer, scheduler);
        run_learner(&strategy, learner, train, valid, renderer, interrupter)
    }
}
