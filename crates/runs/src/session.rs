//! All that the loop needs, and what is left when it has ended.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Instant,
};

use burn::{
    module::Module,
    optim::ModuleOptimizer,
    tensor::Device,
    train::{Interrupter, Learner, renderer::MetricsRenderer},
};
use olora_adapter::has_moved;
use olora_data::{Schedule, loader};
use olora_model::Llama;
use olora_training::{FailureContext, Passes, scheduler};

use crate::{
    Event, Observer, Recipe, RunError, RunPlan, Summary, TrainOptions,
    card::card,
    checkpoint,
    learner::{optimizer, passes, run_learner},
    prepare::Prepared,
    run_data::fingerprint,
    run_directory::RunDirectory,
    run_log,
    sampler::Sampler,
    save::saver,
    stages::Attached,
    state::{Outcome, RunState},
    strategy::StepStrategy,
    summary::Around,
    trainee::Trainee,
};

/// A run that is ready to go on from where it stands.
pub(crate) struct Session<'a> {
    prepared: &'a Prepared,
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
    /// A new run makes its directory; a resumed one takes its newest checkpoint.
    pub(crate) fn new(
        attached: Attached<'a>,
        resumed: Option<RunDirectory>,
        device_memory: Option<u64>,
    ) -> Result<Self, RunError> {
        let Attached {
            prepared,
            llama,
            schedule,
            counts,
            ranks,
            memory,
            seconds,
        } = attached;
        let Prepared {
            recipe,
            data,
            steps,
            ..
        } = prepared;
        let passes = passes(recipe, &llama)?;
        let trainee = Module::train(Trainee::new(llama, passes.clone()));
        let optimizer = optimizer(&recipe.training);
        let fingerprint = fingerprint(data, recipe)?;
        let (directory, state, trainee, optimizer) = match resumed {
            None => {
                let state = RunState {
                    fingerprint,
                    ..RunState::default()
                };
                let directory = RunDirectory::create(recipe)?;
                directory.write_ranks(&ranks)?;
                directory.write_data(&data.reports)?;
                (directory, state, trainee, optimizer)
            }
            Some(directory) => {
                let (path, state) =
                    checkpoint_to_resume(recipe, &directory, fingerprint, steps.total)?;
                let (trainee, record) = checkpoint::load(&path, trainee)?;
                directory.forget_after(state.step)?;
                (directory, state, trainee, optimizer.load_record(record))
            }
        };
        let plan = RunPlan {
            directory: directory.path().to_owned(),
            n_params: counts.params,
            n_trained_params: counts.trained,
            n_adapted_layers: counts.adapted_layers,
            attach_seconds: seconds,
            total_steps: steps.total,
            batches_per_epoch: steps.batches_per_epoch,
            epochs: steps.epochs(),
            sequences_per_step: recipe.training.batch_size * recipe.training.accumulation,
            n_samples: data.train.len(),
            precision: prepared.precision.clone(),
            memory,
            device_memory,
        };
        Ok(Self {
            prepared,
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
        sampler: &Sampler<'_>,
        failure: &FailureContext,
        observer: &Arc<dyn Observer>,
    ) -> Result<Summary, RunError> {
        let prepared = self.prepared;
        let recipe = &prepared.recipe;
        let plan = self.plan.clone();
        observer.on(&Event::Ready(plan.clone()));
        if self.state.step == 0 {
            sampler.run("before", &self.trainee.llama)?;
        } else {
            observer.on(&Event::Resumed(self.state.step));
        }
        let full = prepared.trains_everything();
        let directory = self.directory.clone();
        let result = directory
            .path()
            .join(if full { "model" } else { "adapter" });
        run_log::write_to(&directory.path().join("experiment.log"))?;
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
        };
        let summary = Summary::new(recipe, &outcome, around);
        let json = serde_json::to_vec_pretty(&summary).map_err(|error| RunError::burn(&error))?;
        directory.write("summary.json", &json)?;
        if outcome.interrupted {
            return Ok(summary);
        }
        if !full {
            directory.write("adapter/README.md", card(recipe, &summary).as_bytes())?;
            if recipe.adapter.config.modules_to_save.is_empty() && !has_moved(&llama)? {
                observer.on(&Event::Note(
                    "no factor has moved in training, every `B` is what it was: the adapter changes nothing. \
                     Is the learning rate too small?"
                        .to_owned(),
                ));
            }
        }
        sampler.run("after", &llama)?;
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
        let train = loader(self.schedule, *padding).slice(self.state.n_batches, steps.n_batches);
        // Burn wants a validation loader even where there is nothing to validate on.
        let validation = data
            .validation
            .clone()
            .unwrap_or_else(|| data.train.corpus().select(|i| i == 0));
        let validation = Schedule::sequential(validation, recipe.training.batch_size)?;
        let valid = loader(validation, *padding);

        let rate = recipe.training.learning_rate(steps.total);
        let ratio = recipe.training.loraplus_ratio;
        let scheduler = scheduler(&rate, ratio, self.state.step, &self.trainee);
        let strategy = Arc::new(StepStrategy {
            training: recipe.training.clone(),
            passes: self.passes,
            seed: recipe.seed,
            keep: recipe.output.keep,
            total_steps: steps.total,
            device: self.trainee.llama.device(),
            accelerator,
            failure: failure.clone(),
            has_validation: data.validation.is_some(),
            directory: self.directory,
            observer: Arc::clone(observer),
            save_result: saver(self.prepared, result.to_owned()),
            start: self.state,
            outcome: Mutex::new(None),
        });
        let learner = Learner::new(self.trainee, self.optimizer, scheduler);
        run_learner(&strategy, learner, train, valid, renderer, interrupter)
    }
}

/// The newest checkpoint of a run that can go on, and where it stood.
fn checkpoint_to_resume(
    recipe: &Recipe,
    directory: &RunDirectory,
    fingerprint: u64,
    total_steps: usize,
) -> Result<(PathBuf, RunState), RunError> {
    let newest = directory.newest_checkpoint()?;
    let (_, path) = newest.ok_or_else(|| RunError::NothingToResume(recipe.run_directory()))?;
    let state = checkpoint::load_state(&path)?;
    if state.fingerprint != fingerprint {
        return Err(RunError::mismatch(format!(
            "cannot resume {}: {} or the weights in {} are not what the run was started on",
            recipe.run_directory().display(),
            recipe.data.described(),
            recipe.model.path.display()
        )));
    }
    // A run that failed after its last step still has its result to write.
    if state.step >= total_steps && directory.path().join("summary.json").exists() {
        return Err(RunError::Complete(recipe.run_directory()));
    }
    Ok((path, state))
}
