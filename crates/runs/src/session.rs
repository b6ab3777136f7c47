//! All that the loop needs, and what is left when it has ended.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use burn::{
    data::dataloader::DataLoader,
    module::Module,
    optim::{AdamWConfig, ModuleOptimizer, SgdConfig},
    tensor::Device,
    train::{
        Interrupter, Learner, SupervisedTraining, TrainingStrategy,
        metric::{LearningRateMetric, LossMetric},
        renderer::MetricsRenderer,
    },
};
use olora_adapter::{PeftAdapter, TaskType, WriteOptions, has_moved};
use olora_data::{Batch, Schedule, loader};
use olora_files::StagedDirectory;
use olora_model::{Llama, save, weights_fingerprint};
use olora_training::{CrossEntropy, FailureContext, Passes, caught, scheduler};

use crate::{
    Event, Observer, Plan, Recipe, RunError, Summary, TrainOptions,
    card::{base_name, card},
    checkpoint,
    prepare::Prepared,
    quiet::Quiet,
    recipe::{OptimizerKind, Trained, TrainingSection, Weights},
    run_data::fingerprint,
    run_directory::RunDirectory,
    run_log,
    sampler::Sampler,
    stages::Attached,
    state::{Outcome, RunState},
    strategy::{SaveResult, StepStrategy},
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
    plan: Plan,
}

impl<'a> Session<'a> {
    /// A new run makes its directory; a resumed one takes its newest checkpoint.
    pub(crate) fn new(
        attached: Attached<'a>,
        resumed: Option<RunDirectory>,
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
        let plan = Plan {
            directory: directory.path().to_owned(),
            n_params: counts.params,
            n_trained_params: counts.trained,
            n_adapted_layers: counts.adapted_layers,
            attach_seconds: seconds,
            total_steps: steps.total,
            batches_per_epoch: steps.batches_per_epoch,
            sequences_per_step: recipe.training.batch_size * recipe.training.accumulation,
            n_samples: data.train.len(),
            precision: prepared.precision.clone(),
            memory,
            device_memory: None,
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
        let plan = Plan {
            device_memory: options.device.memory,
            ..self.plan.clone()
        };
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
            .unwrap_or_else(|| data.train[..1].into());
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

/// How a recipe's run goes through its micro-batches.
pub(crate) fn passes(recipe: &Recipe, llama: &Llama) -> Result<Passes, RunError> {
    let passes = Passes::new(Arc::new(CrossEntropy), llama)?;
    let passes = passes.with_recompute(recipe.training.recompute);
    Ok(if recipe.adapter.config.dropout > 0.0 {
        passes.with_dropout()
    } else {
        passes
    })
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
            recipe.data.train.display(),
            recipe.model.path.display()
        )));
    }
    // A run that failed after its last step still has its result to write.
    if state.step >= total_steps && directory.path().join("summary.json").exists() {
        return Err(RunError::Complete(recipe.run_directory()));
    }
    Ok((path, state))
}

/// Hands everything to Burn's `SupervisedTraining` and waits for it.
pub(crate) fn run_learner(
    strategy: &Arc<StepStrategy>,
    learner: Learner<Trainee>,
    train: Arc<dyn DataLoader<Batch>>,
    valid: Arc<dyn DataLoader<Batch>>,
    renderer: Option<Box<dyn MetricsRenderer>>,
    interrupter: Interrupter,
) -> Result<(Llama, Outcome), RunError> {
    let training = SupervisedTraining::new(strategy.directory.path(), train, valid)
        .with_metric_logger(Quiet)
        // The log is ours, and so is the panic hook that Burn's would set.
        .with_application_logger(None)
        .metric_train_numeric(LossMetric::new())
        .metric_valid_numeric(LossMetric::new())
        .metric_train_numeric(LearningRateMetric::new())
        .with_interrupter(interrupter)
        .renderer(renderer.unwrap_or_else(|| Box::new(Quiet)))
        .with_training_strategy(TrainingStrategy::Custom(strategy.clone()))
        .num_epochs(1);
    let result = caught(|| training.launch(learner));
    let outcome = strategy
        .outcome
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    // The loop's own error says more than what Burn makes of it.
    let outcome = outcome.transpose()?;
    let result = result.map_err(|said| RunError::device(&said))?;
    let outcome = outcome.ok_or_else(|| RunError::burn(&"the loop did not run"))?;
    if let Some(error) = result.error {
        return Err(RunError::burn(&error));
    }
    Ok((result.model.llama, outcome))
}

/// The recipe's update rule.
pub(crate) fn optimizer(training: &TrainingSection) -> ModuleOptimizer {
    match training.optimizer {
        OptimizerKind::Sgd => SgdConfig::new().init(),
        OptimizerKind::Adamw => AdamWConfig::new()
            .with_beta_1(training.beta1 as f32)
            .with_beta_2(training.beta2 as f32)
            .with_epsilon(training.epsilon as f32)
            .with_weight_decay(training.weight_decay as f32)
            .init(),
    }
}

/// Writes the adapter, or the whole model, into the run directory.
fn saver(prepared: &Prepared, result: PathBuf) -> SaveResult {
    let recipe = &prepared.recipe;
    let config = prepared.config.clone();
    let base = recipe.model.path.clone();
    let name = base_name(recipe);
    let section = recipe.adapter.clone();
    let checkpoint = recipe.model.weights == Weights::Checkpoint;
    let dtype = recipe.output.dtype.unwrap_or_default();
    Box::new(move |trainee: &Trainee| {
        match section.trained(trainee.llama.lm_head.is_some()) {
            Trained::Adapter(config) => {
                let mut adapter = PeftAdapter::of(&trainee.llama, &config, section.form)?;
                adapter.task = Some(TaskType::CausalLm);
                adapter.base = Some(name.clone());
                if checkpoint {
                    adapter.base_fingerprint = Some(weights_fingerprint(&base)?);
                }
                adapter.write(&result, &WriteOptions::default())?;
            }
            Trained::Everything => {
                // A model that is there already stays until the new one is whole.
                let failed = |source| RunError::io("writing", &result, source);
                let staged = StagedDirectory::new(&result).map_err(failed)?;
                save(&trainee.llama, &config, dtype, Some(&base), staged.path())?;
                staged.replace().map_err(failed)?;
            }
        }
        Ok(())
    })
}
