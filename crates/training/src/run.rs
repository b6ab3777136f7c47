//! From a recipe to a finished run directory.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use burn::{
    data::dataloader::DataLoader,
    module::Module,
    optim::{AdamWConfig, ModuleOptimizer, SgdConfig},
    tensor::{DType, Device},
    train::{
        Interrupter, Learner, SupervisedTraining, TrainingStrategy,
        metric::{LearningRateMetric, LossMetric},
        renderer::MetricsRenderer,
    },
};
use olora_adapter::{PeftAdapter, TaskType, WriteOptions, factors, has_moved};
use olora_data::{Batch, Schedule, loader};
use olora_model::{Llama, ModelConfig, WeightType, save, weights_fingerprint};

use crate::{
    Doctor, Event, MemoryEstimate, Observer, Plan, Precision, Recipe, TrainError,
    card::{base_name, card},
    checkpoint::{self, RunState, num_trained_params},
    failure::Circumstances,
    learning_rate::scheduler,
    panics,
    passes::{DropoutSeed, Passes},
    prepare::{Prepared, Start, attach_adapter, load_base, ranks, schedule},
    quiet::Quiet,
    recipe::{AdapterMethod, BaseType, OptimizerKind, TrainingSection, Weights},
    run_data::fingerprint,
    run_directory::{RunDirectory, refuse_existing},
    run_log,
    sampler::Sampler,
    strategy::{Outcome, SaveResult, StepStrategy},
    summary::Summary,
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
    /// What the caller knows of the device.
    pub device: DeviceTraits,
    /// A device whose gradients are right, the CPU. If given, the run's device
    /// is compared with it before the first step, and refused if it differs.
    pub reference: Option<Device>,
}

/// What a [`Device`] does not tell of itself.
#[derive(Clone, Debug, Default)]
pub struct DeviceTraits {
    /// Its name, for `summary.json`; Burn's name for it if this is empty.
    pub name: String,
    /// Whether it makes kernels at run time and works by itself: everything but
    /// the CPU.
    pub accelerator: bool,
    /// Its memory in bytes, where it is known.
    pub memory: Option<u64>,
    /// Whether it measures which of several kernels is fastest.
    pub autotune: bool,
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
    run_log::listen();
    let circumstances = Circumstances::new(&options.device, &advice(recipe, device));
    circumstances.guard(|| run_recipe(recipe, device, options, observer, &circumstances))
}

/// What to lower when memory runs out.
pub(crate) fn advice(recipe: &Recipe, device: &Device) -> String {
    let is_full = recipe.adapter.method == AdapterMethod::None;
    let is_half = recipe
        .model
        .dtype
        .is_some_and(|dtype| dtype != BaseType::Float32);
    let half = if is_full || is_half || !device.supports_dtype(DType::BF16) {
        ""
    } else {
        ", or hold the base in half precision (model.dtype = \"bfloat16\")"
    };
    format!(
        "Lower training.batch_size (training.accumulation makes up for it) or data.max_length{half}"
    )
}

#[expect(
    clippy::too_many_lines,
    reason = "one thing after another, each of them named"
)]
fn run_recipe(
    recipe: &Recipe,
    device: &Device,
    options: TrainOptions,
    observer: &Arc<dyn Observer>,
    circumstances: &Circumstances,
) -> Result<Summary, TrainError> {
    let began = Instant::now();
    if !options.resume {
        refuse_existing(&recipe.run_directory())?;
    }
    let accelerator = options.device.accelerator;
    let prepared = Prepared::new(recipe, device, accelerator, &**observer)?;
    let Prepared {
        recipe,
        config,
        precision,
        tokenizer,
        data,
        padding,
        steps,
        load: mut expected,
    } = prepared;
    let recipe = &recipe;
    let resumed = options
        .resume
        .then(|| RunDirectory::open(recipe))
        .transpose()?;
    let full = recipe.adapter.method == AdapterMethod::None;
    let sampler = Sampler::new(recipe, &config, &tokenizer, &**observer)?;
    if accelerator {
        observer.on(&Event::MakingKernels {
            measured: options.device.autotune,
        });
    }
    if let Some(reference) = &options.reference {
        check_device(device, reference, &precision, full, &**observer)?;
    }
    circumstances.expect(MemoryEstimate::new(&config, &expected));
    device.seed(recipe.seed);
    let llama = load_base(recipe, &config, &precision, device, &**observer)?;

    let attaching = Instant::now();
    let run_schedule = schedule(recipe, &data.train, steps.n_batches)?;
    let known = resumed.as_ref().map(RunDirectory::ranks).transpose()?;
    let start = match &known {
        Some(ranks) => Start::Resumed(ranks),
        None => Start::Fresh {
            schedule: &run_schedule,
            padding,
        },
    };
    let llama = attach_adapter(recipe, llama, start, &**observer)?;
    let attach_seconds = attaching.elapsed().as_secs_f64();
    let factors = factors(&llama);
    let n_anchor_params: usize = factors
        .iter()
        .filter_map(|layer| layer.anchor.as_ref())
        .map(|(a, b)| a.shape().num_elements() + b.shape().num_elements())
        .sum();
    let n_adapted_layers = factors.len();
    drop(factors);
    let ranks = ranks(&llama);
    let n_params = llama.num_params() - n_anchor_params;

    let dropout = (recipe.adapter.dropout > 0.0).then(DropoutSeed::default);
    let passes = Passes {
        recompute: recipe.training.recompute,
        dropout: dropout.clone(),
    };
    let mut trainee = Module::train(Trainee::new(llama, passes));
    let n_trained_params = num_trained_params(&trainee);
    let fingerprint = fingerprint(&data, recipe)?;
    expected.n_params = n_params;
    expected.n_trained_params = n_trained_params;
    expected.n_anchor_params = n_anchor_params;
    expected.n_adapted_layers = n_adapted_layers;
    let memory = MemoryEstimate::new(&config, &expected);
    circumstances.expect(memory);

    let mut optimizer = optimizer(&recipe.training);
    let (directory, state) = match resumed {
        None => {
            let state = RunState {
                fingerprint,
                ..RunState::default()
            };
            let directory = RunDirectory::create(recipe)?;
            directory.write_ranks(&ranks)?;
            (directory, state)
        }
        Some(directory) => {
            let (path, state) = checkpoint_to_resume(recipe, &directory, fingerprint, steps.total)?;
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
        precision: precision.clone(),
        memory,
        device_memory: options.device.memory,
    }));
    if state.step == 0 {
        sampler.run("before", &trainee.llama)?;
    } else {
        observer.on(&Event::Resumed(state.step));
    }

    let result = directory
        .path()
        .join(if full { "model" } else { "adapter" });
    let batch_size = recipe.training.batch_size;
    let train_loader = loader(run_schedule, padding).slice(state.n_batches, steps.n_batches);
    // Burn wants a validation loader even where there is nothing to validate on.
    let validation = data
        .validation
        .clone()
        .unwrap_or_else(|| data.train[..1].into());
    let valid_loader = loader(Schedule::sequential(validation, batch_size)?, padding);

    let rate = recipe.training.learning_rate(steps.total);
    let ratio = recipe.training.loraplus_ratio;
    let scheduler = scheduler(&rate, ratio, state.step, &trainee);
    let strategy = Arc::new(StepStrategy {
        training: recipe.training.clone(),
        full,
        keep: recipe.output.keep,
        total_steps: steps.total,
        dropout: dropout.map(|dropout| (recipe.seed, dropout)),
        device: trainee.llama.device(),
        accelerator,
        circumstances: circumstances.clone(),
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
        device: traits,
        ..
    } = options;
    run_log::write_to(&directory.path().join("experiment.log"))?;
    let (llama, outcome) = run_learner(
        &strategy,
        learner,
        train_loader,
        valid_loader,
        renderer,
        interrupter,
    )?;

    let mut summary = Summary::new(recipe, device, &outcome, precision);
    if !traits.name.is_empty() {
        summary.device = traits.name;
    }
    summary.estimated_memory = memory;
    summary.estimated_peak = memory.total();
    summary.result = result;
    summary.attach_seconds = attach_seconds;
    (summary.n_params, summary.n_trained_params) = (n_params, n_trained_params);
    summary.wall_seconds = began.elapsed().as_secs_f64();
    summary
        .versions
        .extend(commit.map(|commit| ("commit", commit)));
    let json = serde_json::to_vec_pretty(&summary).map_err(|error| TrainError::burn(&error))?;
    directory.write("summary.json", &json)?;
    if !full && !outcome.interrupted {
        directory.write("adapter/README.md", card(recipe, &summary).as_bytes())?;
        if recipe.adapter.modules_to_save.is_empty() && !has_moved(&llama)? {
            observer.on(&Event::Note(
                "no factor has moved in training, every `B` is what it was: the adapter changes nothing. \
                 Is the learning rate too small?"
                    .to_owned(),
            ));
        }
    }
    if !outcome.interrupted {
        sampler.run("after", &llama)?;
        observer.on(&Event::Finished(Box::new(summary.clone())));
    }
    Ok(summary)
}

/// The newest checkpoint of a run that can go on, and where it stood.
fn checkpoint_to_resume(
    recipe: &Recipe,
    directory: &RunDirectory,
    fingerprint: u64,
    total_steps: usize,
) -> Result<(PathBuf, RunState), TrainError> {
    let newest = directory.newest_checkpoint()?;
    let (_, path) = newest.ok_or_else(|| TrainError::NothingToResume(recipe.run_directory()))?;
    let state = checkpoint::load_state(&path)?;
    if state.fingerprint != fingerprint {
        return Err(TrainError::Mismatch(format!(
            "cannot resume {}: {} or the weights in {} are not what the run was started on",
            recipe.run_directory().display(),
            recipe.data.train.display(),
            recipe.model.path.display()
        )));
    }
    // A run that failed after its last step still has its result to write.
    if state.step >= total_steps && directory.path().join("summary.json").exists() {
        return Err(TrainError::Complete(recipe.run_directory()));
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
) -> Result<(Llama, Outcome), TrainError> {
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
    let result = panics::caught(|| training.launch(learner));
    let outcome = strategy
        .outcome
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    // The loop's own error says more than what Burn makes of it.
    let outcome = outcome.transpose()?;
    let result = result.map_err(TrainError::Device)?;
    let outcome = outcome.ok_or_else(|| TrainError::Burn("the loop did not run".to_owned()))?;
    if let Some(error) = result.error {
        return Err(TrainError::burn(&error));
    }
    Ok((result.model.llama, outcome))
}

/// Compares the device with the reference, in the number format of the run.
fn check_device(
    device: &Device,
    reference: &Device,
    precision: &Precision,
    full: bool,
    observer: &dyn Observer,
) -> Result<(), TrainError> {
    let checking = Instant::now();
    let doctor = Doctor::new(device, reference);
    let findings = doctor.quick_check(precision.base.into(), precision.compute.into(), full)?;
    let worst = findings
        .iter()
        .filter_map(|finding| finding.worst)
        .fold(0.0, f64::max);
    observer.on(&Event::DeviceChecked {
        dtype: WeightType::from(precision.compute).name(),
        worst,
        seconds: checking.elapsed().as_secs_f64(),
    });
    Ok(())
}

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
fn saver(recipe: &Recipe, config: ModelConfig, result: PathBuf) -> SaveResult {
    let base = recipe.model.path.clone();
    let name = base_name(recipe);
    let section = recipe.adapter.clone();
    let checkpoint = recipe.model.weights == Weights::Checkpoint;
    let dtype = recipe
        .output
        .dtype
        .map_or(WeightType::F32, WeightType::from);
    Box::new(move |trainee: &Trainee| {
        if let Some(config) = section.config(trainee.llama.lm_head.is_some()) {
            let mut adapter = PeftAdapter::of(&trainee.llama, &config, section.form)?;
            adapter.task = Some(TaskType::CausalLm);
            adapter.base = Some(name.clone());
            if checkpoint {
                adapter.base_fingerprint = Some(weights_fingerprint(&base)?);
            }
            return Ok(adapter.write(&result, &WriteOptions::default())?);
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
