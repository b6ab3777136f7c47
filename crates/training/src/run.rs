//! From a recipe to a finished run directory.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use burn::{
    data::dataloader::DataLoader,
    lr_scheduler::module_lr_scheduler::ModuleLrScheduler,
    module::Module,
    optim::{AdamWConfig, ModuleOptimizer, SgdConfig},
    tensor::Device,
    train::{
        Interrupter, Learner, SupervisedTraining, TrainingStrategy,
        metric::{LearningRateMetric, LossMetric},
        renderer::MetricsRenderer,
    },
};
use olora_adapter::{attach, factors, save_peft};
use olora_data::{
    Batch, DataOptions, Message, Sample, Samples, Schedule, Tokenizer, ValidationSplit,
    load_samples, loader, split,
};
use olora_model::{Llama, ModelConfig, Sampling, WeightType, generate, load, save};
use serde::Serialize;

use crate::{
    Event, Observer, Plan, Recipe, TrainError,
    checkpoint::{self, RunState, num_trained_params},
    learning_rate::Stepper,
    memory::peak_resident_bytes,
    quiet::Quiet,
    recipe::{Mode, OptimizerKind, TrainingSection, Weights},
    run_directory::{RunDirectory, refuse_existing},
    strategy::{Outcome, SaveResult, StepStrategy},
    trainee::Trainee,
};

/// What the caller decides about a run beyond its recipe.
#[derive(Default)]
pub struct TrainOptions {
    /// Continue from the newest checkpoint of the run directory.
    pub resume: bool,
    /// Stops the run from another thread.
    pub interrupter: Interrupter,
    /// Burn's view of the run, for its terminal interface; none if not given.
    pub renderer: Option<Box<dyn MetricsRenderer>>,
    /// The source commit of this build, for `summary.json`.
    pub commit: Option<String>,
}

/// What came of a run; `summary.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The recipe's name.
    pub name: String,
    /// The run directory.
    pub directory: PathBuf,
    /// The adapter's directory, or the model's.
    pub result: PathBuf,
    /// Whether all steps were made.
    pub finished: bool,
    /// Steps made.
    pub steps: usize,
    /// Training loss of the last logged stretch.
    pub train_loss: Option<f64>,
    /// Validation loss before the first step.
    pub validation_loss_before: Option<f64>,
    /// Validation loss after the last step.
    pub validation_loss: Option<f64>,
    /// The step with the lowest validation loss.
    pub best_step: Option<usize>,
    /// The lowest validation loss.
    pub best_validation_loss: Option<f64>,
    /// Unpadded input tokens.
    pub tokens: u64,
    /// Unpadded input tokens per second of training.
    pub tokens_per_second: f64,
    /// Seconds of training, over all sessions of the run.
    pub train_seconds: f64,
    /// Seconds of this session, all told.
    pub wall_seconds: f64,
    /// Seconds spent initialising the adapter.
    pub attach_seconds: f64,
    /// Peak resident memory of this process, in bytes.
    pub peak_memory: Option<u64>,
    /// All parameters.
    pub n_params: usize,
    /// Those that were trained.
    pub n_trained_params: usize,
    /// The device, as Burn names it.
    pub device: String,
    /// Versions of this program and of Burn.
    pub versions: BTreeMap<&'static str, String>,
}

/// Runs a recipe on `device`, from reading its data to writing the result.
///
/// # Errors
///
/// Everything that can be known beforehand is refused before the run directory
/// is made. After that, an error leaves the directory with its checkpoints.
pub fn train(
    recipe: &Recipe,
    device: &Device,
    options: TrainOptions,
    observer: &Arc<dyn Observer>,
) -> Result<Summary, TrainError> {
    let began = Instant::now();
    let resumed = if options.resume {
        Some(RunDirectory::open(recipe)?)
    } else {
        None
    };
    if resumed.is_none() {
        refuse_existing(&recipe.run_directory())?;
    }

    let tokenizer = Tokenizer::from_dir(&recipe.model.path)?;
    let data = Data::load(recipe, &tokenizer, &**observer)?;
    let config = ModelConfig::from_dir(&recipe.model.path)?;
    data.check_against(&config, &tokenizer)?;
    device.seed(recipe.seed);
    let llama = load_base(recipe, config.clone(), device, &**observer)?;

    let attaching = Instant::now();
    let llama = attach_adapter(recipe, llama, &**observer)?;
    let attach_seconds = attaching.elapsed().as_secs_f64();
    let n_adapted_layers = factors(&llama).len();
    let n_params = llama.num_params();

    let mut trainee = Module::train(Trainee::new(llama));
    let n_trained_params = num_trained_params(&trainee);
    let steps = Steps::new(&recipe.training, &data.train)?;

    let (directory, state, mut optimizer) = match resumed {
        None => (
            RunDirectory::create(recipe)?,
            RunState::default(),
            optimizer(&recipe.training),
        ),
        Some(directory) => {
            let newest = directory.newest_checkpoint()?;
            let (_, path) =
                newest.ok_or_else(|| TrainError::NothingToResume(recipe.run_directory()))?;
            let state = checkpoint::load_state(&path)?;
            let (restored, record) = checkpoint::load(&path, trainee, recipe.training.mode)?;
            trainee = restored;
            directory.forget_after(state.step)?;
            observer.on(&Event::Resumed(state.step));
            (
                directory,
                state,
                optimizer(&recipe.training).load_record(record),
            )
        }
    };
    observer.on(&Event::Ready(Plan {
        directory: directory.path().to_owned(),
        n_params,
        n_trained_params,
        n_adapted_layers,
        attach_seconds,
        total_steps: steps.total,
        batches_per_epoch: steps.batches_per_epoch,
        sequences_per_step: recipe.training.batch_size * recipe.training.accumulation,
        n_samples: data.train.len(),
    }));

    let sampler = Sampler {
        recipe,
        config: &config,
        tokenizer: &tokenizer,
        observer: &**observer,
    };
    if state.step == 0 {
        sampler.run("before", &trainee.llama)?;
    }

    let result = directory.path().join(recipe.training.mode.result_name());
    let save_result = saver(recipe, config.clone(), result.clone());
    let pad = tokenizer.pad_id();
    let schedule = Schedule::new(
        data.train.clone(),
        recipe.training.batch_size,
        recipe.seed,
        steps.n_batches,
    )?;
    let train_loader = loader(schedule, pad).slice(state.n_batches, steps.n_batches);
    let validation = data
        .validation
        .clone()
        .unwrap_or_else(|| data.train[..1].into());
    let valid_loader = loader(
        Schedule::sequential(validation, recipe.training.batch_size)?,
        pad,
    );

    let scheduler = ModuleLrScheduler::new(Stepper {
        rate: recipe.training.learning_rate(steps.total),
        step: state.step,
    });
    let strategy = Arc::new(StepStrategy {
        training: recipe.training.clone(),
        keep: recipe.output.keep,
        total_steps: steps.total,
        seed: recipe.seed,
        device: trainee.llama.device(),
        has_validation: data.validation.is_some(),
        directory: directory.clone(),
        observer: Arc::clone(observer),
        save_result,
        start: state,
        outcome: Mutex::new(None),
    });
    let learner = Learner::new(
        trainee,
        std::mem::replace(&mut optimizer, SgdConfig::new().init()),
        scheduler,
    );
    let (llama, outcome) = run_learner(
        &strategy,
        learner,
        train_loader,
        valid_loader,
        options.renderer,
        options.interrupter,
    )?;

    if !outcome.interrupted {
        sampler.run("after", &llama)?;
    }
    let summary = Summary {
        name: recipe.name.clone(),
        result,
        finished: !outcome.interrupted,
        steps: outcome.state.step,
        train_loss: outcome.last_loss,
        validation_loss_before: outcome
            .state
            .validation
            .first()
            .filter(|(step, _)| *step == 0)
            .map(|v| v.1),
        validation_loss: outcome.state.validation.last().map(|v| v.1),
        best_step: outcome.state.best().map(|v| v.0),
        best_validation_loss: outcome.state.best().map(|v| v.1),
        tokens: outcome.state.tokens,
        tokens_per_second: outcome.state.tokens as f64 / outcome.state.seconds.max(1e-9),
        train_seconds: outcome.state.seconds,
        wall_seconds: began.elapsed().as_secs_f64(),
        attach_seconds,
        peak_memory: peak_resident_bytes(),
        n_params,
        n_trained_params,
        device: format!("{:?}", device.clone().inner()),
        versions: versions(options.commit),
        directory: directory.path().to_owned(),
    };
    let json = serde_json::to_vec_pretty(&summary).map_err(|error| TrainError::burn(&error))?;
    directory.write("summary.json", &json)?;
    if !outcome.interrupted {
        observer.on(&Event::Finished(Box::new(summary.clone())));
    }
    Ok(summary)
}

/// Hands everything to Burn's `SupervisedTraining` and waits for it.
pub(crate) fn run_learner(
    strategy: &Arc<StepStrategy>,
    learner: Learner<Trainee>,
    train: Arc<dyn DataLoader<Batch>>,
    valid: Arc<dyn DataLoader<Batch>>,
    renderer: Option<Box<dyn MetricsRenderer>>,
    interrupter: Interrupter,
) -> Result<(Llama, Outcome), TrainError> {
    let training = SupervisedTraining::new(strategy.directory.path(), train, valid)
        .with_metric_logger(Quiet)
        .metric_train_numeric(LossMetric::new())
        .metric_valid_numeric(LossMetric::new())
        .metric_train_numeric(LearningRateMetric::new())
        .with_interrupter(interrupter)
        .renderer(renderer.unwrap_or_else(|| Box::new(Quiet)))
        .with_training_strategy(TrainingStrategy::Custom(strategy.clone()))
        .num_epochs(1);
    let result = training.launch(learner);
    let outcome = strategy
        .outcome
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let outcome =
        outcome.unwrap_or_else(|| Err(TrainError::Burn("the loop did not run".to_owned())))?;
    if let Some(error) = result.error {
        return Err(TrainError::burn(&error));
    }
    Ok((result.model.llama, outcome))
}

/// Training and validation samples.
struct Data {
    train: Arc<[Sample]>,
    validation: Option<Arc<[Sample]>>,
}

impl Data {
    fn load(
        recipe: &Recipe,
        tokenizer: &Tokenizer,
        observer: &dyn Observer,
    ) -> Result<Self, TrainError> {
        let section = &recipe.data;
        let options = DataOptions {
            format: section.format,
            max_length: section.max_length,
            train_on_prompt: section.train_on_prompt,
        };
        let read = |role: &'static str, path: &Path| -> Result<Samples, TrainError> {
            let samples = load_samples(path, tokenizer, &options)?;
            observer.on(&Event::Data {
                role,
                path: path.to_owned(),
                report: samples.report.to_string(),
            });
            Ok(samples)
        };
        let train = read("training", &section.train)?;
        let (train, validation) = match (&section.validation, section.validation_samples) {
            (Some(path), _) => (train.samples, Some(read("validation", path)?.samples)),
            (None, Some(count)) => {
                let (train, validation) =
                    split(train.samples, ValidationSplit::Count(count), recipe.seed)?;
                (train, Some(validation))
            }
            (None, None) => (train.samples, None),
        };
        Ok(Self {
            train: train.into(),
            validation: validation.map(Into::into),
        })
    }

    /// Refuses data that this model would index out of its embedding, or that
    /// would never teach it to stop.
    fn check_against(&self, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<(), TrainError> {
        if tokenizer.n_vocab() > config.vocab_size {
            return Err(TrainError::Mismatch(format!(
                "the tokenizer knows {} tokens, but the model's embedding has only {} rows: \
                 this is not the tokenizer of this checkpoint",
                tokenizer.n_vocab(),
                config.vocab_size
            )));
        }
        let longest = self
            .train
            .iter()
            .chain(self.validation.iter().flat_map(|v| v.iter()))
            .map(Sample::len)
            .max();
        if longest.is_some_and(|longest| longest > config.max_position_embeddings) {
            return Err(TrainError::Mismatch(format!(
                "the longest sequence has {} tokens, but the model was made for {}: lower data.max_length",
                longest.unwrap_or(0),
                config.max_position_embeddings
            )));
        }
        Ok(())
    }
}

fn load_base(
    recipe: &Recipe,
    config: ModelConfig,
    device: &Device,
    observer: &dyn Observer,
) -> Result<Llama, TrainError> {
    let loading = Instant::now();
    let llama = match recipe.model.weights {
        Weights::Checkpoint => load(&recipe.model.path, recipe.model.dtype.into(), device)?.0,
        Weights::Random => config.init(device),
    };
    observer.on(&Event::ModelLoaded {
        path: recipe.model.path.clone(),
        n_params: llama.num_params(),
        seconds: loading.elapsed().as_secs_f64(),
    });
    Ok(llama)
}

fn attach_adapter(
    recipe: &Recipe,
    llama: Llama,
    observer: &dyn Observer,
) -> Result<Llama, TrainError> {
    let Some(section) = &recipe.adapter else {
        return Ok(llama);
    };
    let config = section.config(llama.lm_head.is_some());
    let mut progress = |done, all| observer.on(&Event::Attaching(done, all));
    Ok(attach(llama, &config, recipe.seed, &mut progress)?)
}

fn optimizer(training: &TrainingSection) -> ModuleOptimizer {
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

/// How many steps, over how many micro-batches.
struct Steps {
    total: usize,
    n_batches: usize,
    batches_per_epoch: usize,
}

impl Steps {
    fn new(training: &TrainingSection, samples: &Arc<[Sample]>) -> Result<Self, TrainError> {
        let one_epoch = Schedule::new(samples.clone(), training.batch_size, 0, 1)?;
        let batches_per_epoch = one_epoch.n_batches_per_epoch();
        let (total, n_batches) = match training.max_steps {
            Some(steps) => (steps, steps * training.accumulation),
            None => {
                let epochs = training.epochs.unwrap_or(1.0);
                let n_batches = ((batches_per_epoch as f64 * epochs).round() as usize).max(1);
                // The last step takes the micro-batches that are left.
                (n_batches.div_ceil(training.accumulation), n_batches)
            }
        };
        Ok(Self {
            total,
            n_batches,
            batches_per_epoch,
        })
    }
}

/// Writes the adapter, or the whole model, into the run directory.
fn saver(recipe: &Recipe, config: ModelConfig, result: PathBuf) -> SaveResult {
    let base = recipe.model.path.clone();
    let adapter = recipe.adapter.clone();
    let mode = recipe.training.mode;
    Box::new(move |trainee: &Trainee| {
        match (&adapter, mode) {
            (Some(section), Mode::Adapter) => {
                let config = section.config(trainee.llama.lm_head.is_some());
                save_peft(
                    &trainee.llama,
                    &config,
                    section.form,
                    &base.display().to_string(),
                    &result,
                )?;
            }
            _ => {
                if result.exists() {
                    std::fs::remove_dir_all(&result)
                        .map_err(|source| TrainError::io("replacing", &result, source))?;
                }
                save(
                    &trainee.llama,
                    &config,
                    WeightType::F32,
                    Some(&base),
                    &result,
                )?;
            }
        }
        Ok(())
    })
}

/// Answers the recipe's prompts.
struct Sampler<'a> {
    recipe: &'a Recipe,
    config: &'a ModelConfig,
    tokenizer: &'a Tokenizer,
    observer: &'a dyn Observer,
}

impl Sampler<'_> {
    fn run(&self, when: &'static str, llama: &Llama) -> Result<(), TrainError> {
        if self.recipe.samples.prompts.is_empty() {
            return Ok(());
        }
        let llama = llama.valid();
        for prompt in &self.recipe.samples.prompts {
            let ids = encode_prompt(self.tokenizer, prompt)?;
            let stop = stop_ids(self.config, self.tokenizer);
            let sampling = Sampling::default();
            let n_tokens = self.recipe.samples.max_new_tokens;
            let mut tokens = generate(&llama, &ids, n_tokens, &sampling, &stop, |_| {
                ControlFlow::Continue(())
            })?;
            tokens.retain(|token| !stop.contains(token));
            let text = self.tokenizer.decode(&tokens, true)?;
            self.observer.on(&Event::Sample {
                when,
                prompt: prompt.clone(),
                text,
            });
        }
        Ok(())
    }
}

/// A prompt as tokens: as a user's message if the checkpoint has a chat
/// template, else as plain text.
///
/// # Errors
///
/// When the template or the tokenizer fails.
pub fn encode_prompt(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>, TrainError> {
    if !tokenizer.has_chat_template() {
        return Ok(tokenizer.encode(prompt, true)?);
    }
    let message = Message {
        role: "user".to_owned(),
        content: prompt.to_owned(),
    };
    let text = tokenizer.render_chat(&[message], true)?;
    Ok(tokenizer.encode(&text, false)?)
}

/// Every token that ends a generation: the configuration's and the tokenizer's.
pub fn stop_ids(config: &ModelConfig, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids = config.eos_token_ids.clone();
    ids.extend(tokenizer.stop_ids());
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn versions(commit: Option<String>) -> BTreeMap<&'static str, String> {
    let mut versions = BTreeMap::from([
        ("olora", env!("CARGO_PKG_VERSION").to_owned()),
        ("burn", "0.22.1".to_owned()),
    ]);
    versions.extend(commit.map(|commit| ("commit", commit)));
    versions
}
