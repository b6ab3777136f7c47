//! From a recipe to a finished run directory, one stage after another.
//!
//! [`Prepared`] is what is known before weights are in memory; [`Loaded`] has
//! the base, [`Attached`] what trains, [`Session`] all that the loop needs. Each
//! is complete when it exists.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use burn::{
    tensor::{DType, Device},
    train::{Interrupter, renderer::MetricsRenderer},
};
use olora_adapter::factors;
use olora_data::Schedule;
use olora_devices::Details;
use olora_doctor::Doctor;
use olora_model::{Dtype, Llama};
use olora_training::FailureContext;

use crate::{
    Event, MemoryEstimate, Observer, Recipe, RunError, Summary,
    attach::{Start, attach_adapter},
    base::load_base,
    counts::Counts,
    prepare::Prepared,
    recipe::AdapterMethod,
    run_directory::{RunDirectory, refuse_existing},
    run_log,
    sampler::Sampler,
    session::Session,
    steps::schedule,
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
    pub device: Details,
    /// A device whose gradients are right, the CPU. If given, the run's device
    /// is compared with it before the first step, and refused if it differs.
    pub reference: Option<Device>,
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
) -> Result<Summary, RunError> {
    let began = Instant::now();
    run_log::listen();
    let failure = failure_context(recipe, device, &options.device);
    failure.guard(|| {
        if !options.resume {
            refuse_existing(&recipe.run_directory())?;
        }
        let accelerator = options.device.accelerator;
        let prepared = Prepared::new(recipe, device, accelerator, &**observer)?;
        let resumed = options
            .resume
            .then(|| RunDirectory::open(&prepared.recipe))
            .transpose()?;
        let sampler = Sampler::new(&prepared, observer)?;
        if accelerator {
            observer.on(&Event::MakingKernels {
                measured: options.device.autotune,
            });
        }
        if let Some(reference) = &options.reference {
            check_device(&prepared, device, reference, &**observer)?;
        }
        failure.expect(&prepared.memory(&prepared.counts));
        let loaded = Loaded::new(&prepared, device, &**observer)?;
        let attached = loaded.attach(resumed.as_ref(), &**observer)?;
        failure.expect(&attached.memory);
        let session = Session::new(attached, resumed)?;
        session.run(began, device, options, &sampler, &failure, observer)
    })
}

/// What is known about a run if its device fails.
pub(crate) fn failure_context(
    recipe: &Recipe,
    device: &Device,
    details: &Details,
) -> FailureContext {
    let is_full = recipe.adapter.method == AdapterMethod::None;
    let is_half = recipe.model.dtype.is_some_and(|dtype| dtype != Dtype::F32);
    let half = if is_full || is_half || !device.supports_dtype(DType::BF16) {
        ""
    } else {
        ", or hold the base in half precision (model.dtype = \"bfloat16\")"
    };
    let advice = format!(
        "Lower training.batch_size (training.accumulation makes up for it) or data.max_length{half}"
    );
    FailureContext::new(details.accelerator, details.memory, &advice)
}

/// Compares the device with the reference, in the number format of the run.
fn check_device(
    prepared: &Prepared,
    device: &Device,
    reference: &Device,
    observer: &dyn Observer,
) -> Result<(), RunError> {
    let checking = Instant::now();
    let doctor = Doctor::new(device, reference);
    let (base, compute) = (prepared.precision.base, prepared.precision.compute);
    let full = prepared.trains_everything();
    let findings = doctor.quick_check(base, compute, full)?;
    let worst = findings
        .iter()
        .filter_map(|finding| finding.worst)
        .fold(0.0, f64::max);
    observer.on(&Event::DeviceChecked {
        dtype: compute.name(),
        worst,
        seconds: checking.elapsed().as_secs_f64(),
    });
    Ok(())
}

/// The base in memory.
pub(crate) struct Loaded<'a> {
    pub(crate) prepared: &'a Prepared,
    pub(crate) llama: Llama,
}

impl<'a> Loaded<'a> {
    pub(crate) fn new(
        prepared: &'a Prepared,
        device: &Device,
        observer: &dyn Observer,
    ) -> Result<Self, RunError> {
        let Prepared {
            recipe,
            config,
            precision,
            ..
        } = prepared;
        device.seed(recipe.seed);
        let llama = load_base(recipe, config, precision, device, observer)?;
        Ok(Self { prepared, llama })
    }

    /// Attaches the adapter, if the recipe has one: afresh, or with the ranks
    /// that an earlier session chose.
    fn attach(
        self,
        resumed: Option<&RunDirectory>,
        observer: &dyn Observer,
    ) -> Result<Attached<'a>, RunError> {
        let Self { prepared, llama } = self;
        let attaching = Instant::now();
        let (recipe, data, steps) = (&prepared.recipe, &prepared.data, &prepared.steps);
        let schedule = schedule(recipe, &data.train, steps.n_batches)?;
        let known = resumed.map(RunDirectory::ranks).transpose()?;
        let start = match &known {
            Some(ranks) => Start::Resumed(ranks),
            None => Start::Fresh {
                schedule: &schedule,
                padding: prepared.padding,
            },
        };
        let llama = attach_adapter(recipe, llama, start, observer)?;
        let seconds = attaching.elapsed().as_secs_f64();
        let counts = prepared.counts.attached(&llama);
        Ok(Attached {
            ranks: ranks(&llama),
            memory: prepared.memory(&counts),
            prepared,
            llama,
            schedule,
            counts,
            seconds,
        })
    }
}

/// What trains, on the base.
pub(crate) struct Attached<'a> {
    pub(crate) prepared: &'a Prepared,
    pub(crate) llama: Llama,
    /// The run's micro-batches.
    pub(crate) schedule: Schedule,
    pub(crate) counts: Counts,
    /// The rank of each adapted layer.
    pub(crate) ranks: BTreeMap<String, usize>,
    /// What the run takes, now that its parameters are there.
    pub(crate) memory: MemoryEstimate,
    /// Seconds that the adapter's start took.
    pub(crate) seconds: f64,
}

fn ranks(llama: &Llama) -> BTreeMap<String, usize> {
    let layers = factors(llama).into_iter();
    layers
        .map(|layer| (layer.path, layer.a.dims()[1]))
        .collect()
}
