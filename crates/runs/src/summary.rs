//! What came of a run.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;

use crate::{
    MemoryEstimate, Precision, Recipe, RunPlan, finished::printed, memory::peak_resident_bytes,
    recipe::Rate, run_log, state::Outcome,
};

/// Burn's version. The workspace asks for exactly this one (`=`), so whoever
/// builds this crate, and wherever, has it; nothing is to be found out at build
/// time. A test compares it with `Cargo.lock`.
const BURN: &str = "0.22.1";

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
    /// What names the samples and the base: a run on other ones has another.
    pub fingerprint: String,
    /// Steps made.
    pub steps: usize,
    /// Whether training stopped before its last step, since the validation loss
    /// had ceased to fall.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopped_early: bool,
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
    /// What should make one doubt the result: a loss that training has raised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concern: Option<String>,
    /// What is minimised, unless it is the cross-entropy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objective: Option<String>,
    /// What else was measured of the validation data before the first step, such as
    /// rewards.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub validation_measures_before: BTreeMap<String, f64>,
    /// The same after the last.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub validation_measures: BTreeMap<String, f64>,
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
    /// The most memory that the device's allocator held at a logged line, in
    /// bytes.
    pub peak_device_memory: Option<u64>,
    /// The memory that the run was expected to take, by what it is for.
    pub estimated_memory: MemoryEstimate,
    /// The peak that follows.
    pub estimated_peak: u64,
    /// What the first step of this session took, where kernels are made and
    /// chosen in it.
    pub first_step_seconds: Option<f64>,
    /// For how many shapes a kernel was chosen that was not known from an
    /// earlier run.
    pub kernel_choices: usize,
    /// The number formats.
    pub precision: Precision,
    /// All parameters.
    pub n_params: usize,
    /// Those that were trained.
    pub n_trained_params: usize,
    /// The device, as the caller describes it, or else as Burn names it.
    pub device: String,
    /// Of a run of several processes, how many; memory and device are the
    /// first's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<usize>,
    /// Versions of this program and of Burn.
    pub versions: BTreeMap<&'static str, String>,
}

/// What is known of a run around its loop.
pub(crate) struct Around {
    /// As the caller describes it, or else as Burn names it.
    pub(crate) device: String,
    /// The adapter's directory, or the model's.
    pub(crate) result: PathBuf,
    pub(crate) plan: RunPlan,
    pub(crate) wall_seconds: f64,
    pub(crate) commit: Option<String>,
    pub(crate) n_ranks: usize,
}

impl Summary {
    pub(crate) fn new(recipe: &Recipe, outcome: &Outcome, around: Around) -> Self {
        let state = &outcome.state;
        let before = state.validation.first().filter(|(step, _)| *step == 0);
        let plan = around.plan;
        let versions = [
            ("olora", Some(env!("CARGO_PKG_VERSION").to_owned())),
            ("burn", Some(BURN.to_owned())),
            ("commit", around.commit),
        ];
        let versions = versions.into_iter();
        Self {
            name: recipe.name.clone(),
            directory: recipe.run_directory(),
            result: around.result,
            finished: !outcome.interrupted,
            fingerprint: printed(state.fingerprint),
            steps: state.step,
            stopped_early: outcome.stopped_early,
            train_loss: state.last_loss,
            validation_loss_before: before.map(|(_, loss)| *loss),
            validation_loss: state.validation.last().map(|(_, loss)| *loss),
            best_step: state.best().map(|(step, _)| step),
            best_validation_loss: state.best().map(|(_, loss)| loss),
            concern: concern(&state.validation, recipe.training.learning_rate),
            objective: (!recipe.objective.is_default()).then(|| recipe.objective.described()),
            validation_measures_before: match before {
                Some(_) => state
                    .validation_measures
                    .first()
                    .cloned()
                    .unwrap_or_default(),
                None => BTreeMap::new(),
            },
            validation_measures: state
                .validation_measures
                .last()
                .cloned()
                .unwrap_or_default(),
            tokens: state.tokens,
            tokens_per_second: state.tokens as f64 / state.seconds.max(1e-9),
            train_seconds: state.seconds,
            wall_seconds: around.wall_seconds,
            attach_seconds: plan.attach_seconds,
            peak_memory: peak_resident_bytes(),
            peak_device_memory: outcome.peak_device_memory,
            estimated_memory: plan.memory,
            estimated_peak: plan.memory.total(),
            first_step_seconds: outcome.first_step_seconds,
            kernel_choices: run_log::n_choices(),
            precision: plan.precision,
            n_params: plan.n_params,
            n_trained_params: plan.n_trained_params,
            device: around.device,
            ranks: Some(around.n_ranks).filter(|n| *n > 1),
            versions: versions
                .filter_map(|(name, version)| Some((name, version?)))
                .collect(),
        }
    }
}

/// Says so if the validation loss has risen since before the first step, and what to do.
fn concern(validation: &[(usize, f64)], rate: Rate) -> Option<String> {
    let (&(first, before), &(last, after)) = (validation.first()?, validation.last()?);
    if first != 0 || last == 0 || after <= before {
        return None;
    }
    let (lowest_at, lowest) = validation
        .iter()
        .copied()
        .min_by(|(_, a), (_, b)| a.total_cmp(b))?;
    let advice = if lowest < before {
        format!(
            "It was lowest after step {lowest_at}, {lowest:.4}: train for fewer steps, or set \
             training.patience, which keeps the best"
        )
    } else {
        format!(
            "The usual cause is a rate that is too high (training.learning_rate = {rate}): try a third of \
             it, or \"auto\""
        )
    };
    Some(format!(
        "the validation loss has risen, from {before:.4} to {after:.4}: what was trained is worse than \
         the base on this data. {advice}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_has_risen_is_said_with_what_to_do() {
        let rate = Rate::Value(2e-4);
        let said = |losses: &[(usize, f64)]| concern(losses, rate);
        assert_eq!(said(&[(0, 2.0), (10, 1.5), (20, 1.4)]), None);
        assert_eq!(said(&[(0, 2.0), (10, 1.5), (20, 2.0)]), None);
        assert_eq!(said(&[(10, 1.5), (20, 1.8)]), None);
        assert_eq!(said(&[(0, 2.0)]), None);
        assert_eq!(said(&[]), None);
        let overfitted = said(&[(0, 2.0), (10, 1.5), (20, 2.5)]).unwrap();
        assert!(overfitted.contains("from 2.0000 to 2.5000"), "{overfitted}");
        assert!(overfitted.contains("after step 10, 1.5000"), "{overfitted}");
        let too_fast = said(&[(0, 2.0), (10, 7.0), (20, 9.0)]).unwrap();
        assert!(too_fast.contains("learning_rate = 2e-4"), "{too_fast}");
    }

    /// When this fails, write the new version into `BURN`.
    #[test]
    fn the_version_of_burn_is_the_one_in_use() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
        let lock = std::fs::read_to_string(lock).unwrap().replace('\r', "");
        let entry = format!("name = \"burn\"\nversion = \"{BURN}\"\n");
        assert!(lock.contains(&entry), "{entry}");
    }
}
