//! From a recipe to a finished run directory, one stage after another.
//!
//! [`Prepared`] is what is known before weights are in memory; [`Loaded`] has
//! the base, [`Attached`] what trains, [`Session`] all that the loop needs. Each
//! is complete when it exists.

use std::{sync::Arc, time::Instant};

use burn::tensor::Device;
use olora_doctor::Doctor;

use crate::{
    Event, Observer, Recipe, RunError, Summary, TrainOptions,
    claim::{Asked, Claim, Next},
    failure::failure_context,
    find_rate::find_rate,
    logging::Logging,
    prepare::{Prepared, Resolved},
    recipe::Rate,
    run_directory::RunDirectory,
    run_log,
    sampler::Sampler,
    session::Session,
    stages::{Attached, Loaded},
};

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
        let ranks = options.ranks.clone();
        ranks.block(recipe)?;
        if ranks.n() > 1 && recipe.training.learning_rate == Rate::Auto {
            return Err(RunError::Recipe {
                recipe: "training.learning_rate = \"auto\"".to_owned(),
                reason: format!(
                    "{} processes do not look for a learning rate: have one process begin the run, which \
                     says what it has found, and give the number",
                    ranks.n()
                ),
            });
        }
        let logging = Logging::new(recipe, ranks.leads(), observer)?;
        let told: Arc<dyn Observer> = logging.clone();
        let observer = &told;
        // For this process alone, until the run has ended; of several, for the first.
        let claim = ranks
            .leads()
            .then(|| Claim::new(recipe, options.start, &**observer));
        let claim = claim.transpose()?;
        let accelerator = options.device.accelerator;
        let mut resolved = Resolved::new(recipe, device, accelerator, &**observer)?;
        if let Some(known) = claim.as_ref().map(Claim::known).transpose()?.flatten() {
            // What was found, or followed from other keys, when the run began.
            if recipe.training.learning_rate == Rate::Auto {
                resolved.recipe.training.learning_rate = known.training.learning_rate;
            }
            if recipe.output.keep.is_none() {
                resolved.recipe.output.keep = known.output.keep;
            }
        }
        let changes = match &claim {
            Some(claim) => claim.check(&resolved.recipe)?,
            None => None,
        };
        let mut prepared = Prepared::new(resolved, &**observer)?;
        observer.on(&Event::Took {
            stage: "reading configuration, tokenizer and data",
            seconds: began.elapsed().as_secs_f64(),
        });
        prepared.n_ranks = ranks.n();
        let fingerprint = prepared.fingerprint()?;
        ranks.introduce(&prepared.recipe, fingerprint)?;
        let decided = claim.as_ref().map(|claim| {
            let asked = Asked {
                recipe: &prepared.recipe,
                steps: &prepared.steps,
                fingerprint,
                changes,
            };
            claim.next(&asked, &**observer)
        });
        let directory = match &claim {
            Some(claim) => claim.directory().clone(),
            None => RunDirectory::of_another(recipe.run_directory()),
        };
        if let Some(Err(RunError::Complete { steps, .. })) = &decided {
            ranks.tell_complete(*steps)?;
        }
        let mut begin = ranks.start(&directory, decided.transpose()?)?;
        let _received = begin.received.take();
        if let Next::GoOn { total, .. } = &begin.next {
            prepared.steps.total = *total;
        }
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
        let attached = loaded.attach(begin.layer_ranks.as_ref(), &**observer)?;
        failure.expect(&attached.parts.memory);
        let attached = if prepared.recipe.training.learning_rate == Rate::Auto {
            let found = find_rate(&attached, &**observer)?;
            let parts = attached.parts;
            prepared.recipe.training.learning_rate = Rate::Value(found);
            Attached {
                prepared: &prepared,
                parts,
            }
        } else {
            attached
        };
        let session = Session::new(attached, directory, &begin, fingerprint, &options)?;
        logging.begin(&prepared.recipe, &begin.next, options.commit.as_deref());
        let result = session.run(began, device, options, &sampler, &failure, observer);
        logging.end(&result);
        result
    })
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
