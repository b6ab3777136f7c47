//! From a recipe to a finished run directory.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Seek, SeekFrom},
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
    Batch, DataOptions, Format, Message, Sample, Samples, Schedule, Tokenizer, ValidationSplit,
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
    recipe::{AdapterMethod, OptimizerKind, TrainingSection, Weights},
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
///
/// # Reproducibility
///
/// A device has one random generator. Two runs with dropout at once in one
/// process and on one device disturb each other's.
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
        refuse_existing(&recipe.run_directory())?;
        None
    };
    let full = recipe.adapter.method == AdapterMethod::None;

    let tokenizer = Tokenizer::from_dir(&recipe.model.path)?;
    let data = Data::load(recipe, &tokenizer, &**observer)?;
    let config = ModelConfig::from_dir(&recipe.model.path)?;
    data.check_against(&config, &tokenizer)?;
    let sampler = Sampler::new(recipe, &config, &tokenizer, &**observer)?;
    device.seed(recipe.seed);
    let llama = load_base(recipe, &config, device, &**observer)?;

    let attaching = Instant::now();
    let llama = attach_adapter(recipe, llama, &**observer)?;
    let attach_seconds = attaching.elapsed().as_secs_f64();
    let factors = factors(&llama);
    let n_anchor_params: usize = factors
        .iter()
        .filter_map(|layer| layer.anchor.as_ref())
        .map(|(a, b)| a.shape().num_elements() + b.shape().num_elements())
        .sum();
    let n_adapted_layers = factors.len();
    drop(factors);
    let n_params = llama.num_params() - n_anchor_params;

    let mut trainee = Module::train(Trainee::new(llama));
    let n_trained_params = num_trained_params(&trainee);
    let steps = Steps::new(&recipe.training, &data.train)?;
    let fingerprint = fingerprint(&data.train, &recipe.model.path)?;

    let mut optimizer = optimizer(&recipe.training);
    let (directory, state) = match resumed {
        None => (
            RunDirectory::create(recipe)?,
            RunState {
                fingerprint,
                ..RunState::default()
            },
        ),
        Some(directory) => {
            let newest = directory.newest_checkpoint()?;
            let (_, path) =
                newest.ok_or_else(|| TrainError::NothingToResume(recipe.run_directory()))?;
            let state = checkpoint::load_state(&path)?;
            if state.step >= steps.total {
                return Err(TrainError::Complete(recipe.run_directory()));
            }
            if state.fingerprint != fingerprint {
                return Err(TrainError::Mismatch(format!(
                    "cannot resume {}: {} or the weights in {} are not what the run was started on",
                    recipe.run_directory().display(),
                    recipe.data.train.display(),
                    recipe.model.path.display()
                )));
            }
            let (restored, record) = checkpoint::load(&path, trainee, full)?;
            trainee = restored;
            optimizer = optimizer.load_record(record);
            directory.forget_after(state.step)?;
            (directory, state)
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
    if state.step == 0 {
        sampler.run("before", &trainee.llama)?;
    } else {
        observer.on(&Event::Resumed(state.step));
    }

    let result = directory
        .path()
        .join(if full { "model" } else { "adapter" });
    let pad = tokenizer.pad_id();
    let batch_size = recipe.training.batch_size;
    let schedule = Schedule::new(data.train.clone(), batch_size, recipe.seed, steps.n_batches)?;
    let train_loader = loader(schedule, pad).slice(state.n_batches, steps.n_batches);
    // Burn wants a validation loader even where there is nothing to validate on.
    let validation = data
        .validation
        .clone()
        .unwrap_or_else(|| data.train[..1].into());
    let valid_loader = loader(Schedule::sequential(validation, batch_size)?, pad);

    let rate = recipe.training.learning_rate(steps.total);
    let scheduler = ModuleLrScheduler::new(Stepper {
        rate,
        step: state.step,
    });
    let strategy = Arc::new(StepStrategy {
        training: recipe.training.clone(),
        full,
        keep: recipe.output.keep,
        total_steps: steps.total,
        seed: recipe.seed,
        device: trainee.llama.device(),
        has_validation: data.validation.is_some(),
        directory: directory.clone(),
        observer: Arc::clone(observer),
        save_result: saver(recipe, config.clone(), result.clone()),
        start: state,
        outcome: Mutex::new(None),
    });
    let learner = Learner::new(trainee, optimizer, scheduler);
    let TrainOptions {
        renderer,
        interrupter,
        commit,
        ..
    } = options;
    let (llama, outcome) = run_learner(
        &strategy,
        learner,
        train_loader,
        valid_loader,
        renderer,
        interrupter,
    )?;

    let state = &outcome.state;
    let summary = Summary {
        name: recipe.name.clone(),
        result,
        finished: !outcome.interrupted,
        steps: state.step,
        train_loss: outcome.last_loss,
        validation_loss_before: state.validation.first().filter(|v| v.0 == 0).map(|v| v.1),
        validation_loss: state.validation.last().map(|v| v.1),
        best_step: state.best().map(|v| v.0),
        best_validation_loss: state.best().map(|v| v.1),
        tokens: state.tokens,
        tokens_per_second: state.tokens as f64 / state.seconds.max(1e-9),
        train_seconds: state.seconds,
        wall_seconds: began.elapsed().as_secs_f64(),
        attach_seconds,
        peak_memory: peak_resident_bytes(),
        n_params,
        n_trained_params,
        device: format!("{:?}", device.clone().inner()),
        versions: versions(commit),
        directory: directory.path().to_owned(),
    };
    let json = serde_json::to_vec_pretty(&summary).map_err(|error| TrainError::burn(&error))?;
    directory.write("summary.json", &json)?;
    if !outcome.interrupted {
        sampler.run("after", &llama)?;
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
    format: Format,
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
        let format = train.format;
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
            format,
        })
    }

    fn check_against(&self, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<(), TrainError> {
        check_samples(&self.train, config, tokenizer)?;
        if let Some(validation) = &self.validation {
            check_samples(validation, config, tokenizer)?;
        }
        let stop = stop_ids(config, tokenizer);
        let ends = |sample: &Sample| {
            let trained = sample.tokens.iter().zip(&sample.trained);
            trained
                .into_iter()
                .any(|(token, trained)| *trained && stop.contains(token))
        };
        if self.format != Format::Text && !stop.is_empty() && !self.train.iter().any(ends) {
            return Err(TrainError::Mismatch(
                "no training sample contains its end-of-sequence token, so the model would never \
                 learn to stop: raise data.max_length"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

/// Refuses samples that the model would index out of its embedding, or beyond
/// the positions it was made for.
///
/// # Errors
///
/// [`TrainError::Mismatch`], saying which.
pub fn check_samples(
    samples: &[Sample],
    config: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<(), TrainError> {
    if tokenizer.n_vocab() > config.vocab_size {
        return Err(TrainError::Mismatch(format!(
            "the tokenizer knows {} tokens, but the model's embedding has only {} rows: \
             this is not the tokenizer of this checkpoint",
            tokenizer.n_vocab(),
            config.vocab_size
        )));
    }
    let longest = samples.iter().map(Sample::len).max().unwrap_or(0);
    if longest > config.max_position_embeddings {
        return Err(TrainError::Mismatch(format!(
            "the longest sequence has {longest} tokens, but the model was made for {}: \
             lower the maximum length",
            config.max_position_embeddings
        )));
    }
    Ok(())
}

/// A number that changes when the samples or the base weights do: 64-bit
/// FNV-1a over every token, and over the weight files' names, sizes and one
/// block in each mebibyte.
fn fingerprint(samples: &[Sample], base: &Path) -> Result<u64, TrainError> {
    const BLOCK: usize = 4096;
    const STRIDE: u64 = 1 << 20;
    let mut hash = Fnv::default();
    for sample in samples {
        for (token, trained) in sample.tokens.iter().zip(&sample.trained) {
            hash.add(&token.to_le_bytes());
            hash.add(&[u8::from(*trained)]);
        }
        hash.add(&[0xff]);
    }
    let failed = |source| TrainError::io("reading", base, source);
    let mut files: Vec<PathBuf> = fs::read_dir(base)
        .map_err(failed)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "safetensors")
        })
        .collect();
    files.sort();
    for path in files {
        let mut file = fs::File::open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        hash.add(&length.to_le_bytes());
        let mut block = [0; BLOCK];
        for start in (0..length).step_by(STRIDE as usize) {
            file.seek(SeekFrom::Start(start)).map_err(failed)?;
            let n_read = file.read(&mut block).map_err(failed)?;
            hash.add(&block[..n_read]);
        }
    }
    Ok(hash.0)
}

struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn load_base(
    recipe: &Recipe,
    config: &ModelConfig,
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
    let Some(config) = recipe.adapter.config(llama.lm_head.is_some()) else {
        return Ok(llama);
    };
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
    let section = recipe.adapter.clone();
    let dtype = recipe
        .output
        .dtype
        .map_or(WeightType::F32, WeightType::from);
    Box::new(move |trainee: &Trainee| {
        if let Some(config) = section.config(trainee.llama.lm_head.is_some()) {
            let base = base.display().to_string();
            return Ok(save_peft(
                &trainee.llama,
                &config,
                section.form,
                &base,
                &result,
            )?);
        }
        // A model that is there already stays until the new one is whole.
        let (new, old) = (result.with_extension("new"), result.with_extension("old"));
        for leftover in [&new, &old] {
            remove(leftover)?;
        }
        save(&trainee.llama, &config, dtype, Some(&base), &new)?;
        if result.exists() {
            rename(&result, &old)?;
        }
        rename(&new, &result)?;
        remove(&old)
    })
}

fn remove(directory: &Path) -> Result<(), TrainError> {
    if !directory.exists() {
        return Ok(());
    }
    fs::remove_dir_all(directory).map_err(|source| TrainError::io("removing", directory, source))
}

fn rename(from: &Path, to: &Path) -> Result<(), TrainError> {
    fs::rename(from, to).map_err(|source| TrainError::io("renaming to", to, source))
}

/// Answers the recipe's prompts.
struct Sampler<'a> {
    /// Each prompt as written and as tokens.
    prompts: Vec<(&'a str, Vec<u32>)>,
    max_new_tokens: usize,
    stop: Vec<u32>,
    tokenizer: &'a Tokenizer,
    observer: &'a dyn Observer,
}

impl<'a> Sampler<'a> {
    /// Encodes the prompts, so that a bad one is refused before training.
    fn new(
        recipe: &'a Recipe,
        config: &ModelConfig,
        tokenizer: &'a Tokenizer,
        observer: &'a dyn Observer,
    ) -> Result<Self, TrainError> {
        let prompts = recipe.samples.prompts.iter().map(|prompt| {
            let ids = encode_prompt(tokenizer, prompt)?;
            if ids.is_empty() {
                return Err(TrainError::Mismatch(
                    "a prompt of `samples.prompts` is empty".to_owned(),
                ));
            }
            Ok((prompt.as_str(), ids))
        });
        Ok(Self {
            prompts: prompts.collect::<Result<_, _>>()?,
            max_new_tokens: recipe.samples.max_new_tokens,
            stop: stop_ids(config, tokenizer),
            tokenizer,
            observer,
        })
    }

    fn run(&self, when: &'static str, llama: &Llama) -> Result<(), TrainError> {
        if self.prompts.is_empty() {
            return Ok(());
        }
        let llama = llama.valid();
        for (prompt, ids) in &self.prompts {
            let go_on = |_| ControlFlow::Continue(());
            let greedy = Sampling::default();
            let mut tokens =
                generate(&llama, ids, self.max_new_tokens, &greedy, &self.stop, go_on)?;
            tokens.retain(|token| !self.stop.contains(token));
            let text = self.tokenizer.decode(&tokens, true)?;
            let prompt = (*prompt).to_owned();
            self.observer.on(&Event::Sample { when, prompt, text });
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
