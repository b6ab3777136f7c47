//! What the files of a comparison's runs say, for people.

mod markdown;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use olora_files::write_atomically;
use olora_runs::Recipe;
use serde_json::{Value, json};

use crate::{
    ComparisonError, pictures,
    protocol::{Protocol, common},
    scores,
    statistics::{Interval, area, median, steps_to},
    trial::Trial,
    variant::Variant,
};

/// The runs of a comparison, in the order of its tables.
#[derive(Clone, Debug)]
pub struct Report {
    directory: PathBuf,
    pub(crate) groups: Vec<Group>,
    /// What the others are measured against.
    pub(crate) reference: Variant,
    n_trials: usize,
    tuning_seed: u64,
    /// Between the losses before the first step, of any two runs.
    largest_start_difference: f64,
    /// The table of scores on tasks, if there are any.
    scores: Option<String>,
}

/// A method at a rank: the rates it was tried at, and its runs at the best.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) variant: Variant,
    pub(crate) rank: usize,
    /// The best; not a number if all of them diverged.
    pub(crate) rate: f64,
    /// Rates and losses of the first seed, by rate.
    tried: Vec<(f64, f64)>,
    /// At `rate`, by seed; those that diverged are not among them.
    pub(crate) trials: Vec<Trial>,
    /// The seeds that diverged at `rate`.
    diverged: Vec<u64>,
}

/// How a group compares with the reference at the same rank.
pub(crate) struct Standing {
    /// Of the last loss to the reference's, over the seeds that both have.
    pub(crate) loss: Option<Interval>,
    pub(crate) area: Option<Interval>,
    /// Steps after which the loss stays at or below the reference's last, by
    /// seed; `None` where it does not.
    pub(crate) steps: Vec<Option<f64>>,
    /// Seconds, with those that the start took.
    pub(crate) seconds: Vec<Option<f64>>,
}

impl Report {
    /// Reads the runs in a comparison's directory.
    ///
    /// # Errors
    ///
    /// [`ComparisonError::Comparison`] if there are none, or a file is damaged or of
    /// another comparison than the rest.
    pub fn read(directory: &Path) -> Result<Self, ComparisonError> {
        let refuse = |reason: String| ComparisonError::Comparison {
            path: directory.to_owned(),
            reason,
        };
        let protocol = Protocol::read(directory)?;
        let trials = Trial::read_all(directory)?;
        let (Some(protocol), false) = (protocol, trials.is_empty()) else {
            return Err(refuse(
                "there are no finished runs (comparison.json and cells/*.json) to report on"
                    .to_owned(),
            ));
        };
        for trial in &trials {
            let others = trial.diverged.is_none() && trial.fingerprint != protocol.fingerprint;
            if others || !is_of(&trial.recipe, &protocol)? {
                return Err(refuse(format!(
                    "{} is of another recipe, of other data or of another base than comparison.json says, \
                     and is not compared",
                    trial.recipe.name
                )));
            }
        }
        let starts: Vec<f64> = trials
            .iter()
            .filter_map(|trial| Some(trial.validation.first()?.1))
            .collect();
        let highest = starts.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lowest = starts.iter().copied().fold(f64::INFINITY, f64::min);
        let n_trials = trials.len();
        let groups = groups(trials, protocol.tuning_seed)?;
        let lora = groups.iter().find(|group| group.variant == Variant::LORA);
        let reference = lora
            .or(groups.first())
            .map_or(Variant::LORA, |group| group.variant);
        Ok(Self {
            directory: directory.to_owned(),
            scores: scores::table(directory, &groups)?,
            groups,
            reference,
            n_trials,
            tuning_seed: protocol.tuning_seed,
            largest_start_difference: highest - lowest,
        })
    }

    /// Writes `report.md` and the pictures beside the runs, over older ones.
    /// Returns the path of the first.
    ///
    /// # Errors
    ///
    /// [`ComparisonError::Io`] when that fails.
    pub fn write(&self) -> Result<PathBuf, ComparisonError> {
        let write = |name: &str, bytes: &[u8]| {
            let path = self.directory.join(name);
            write_atomically(&path, |file| file.write_all(bytes))
                .map_err(|source| ComparisonError::io("writing", &path, source))
        };
        for (name, svg) in [
            ("loss", pictures::losses(self)?),
            ("steps", pictures::steps(self)?),
        ] {
            write(&format!("{name}.svg"), svg.as_bytes())?;
            write(&format!("{name}.png"), &pictures::png(&svg)?)?;
        }
        write("report.md", self.markdown().as_bytes())?;
        Ok(self.directory.join("report.md"))
    }

    /// The groups of each rank, in order.
    pub(crate) fn by_rank(&self) -> Vec<&[Group]> {
        self.groups
            .chunk_by(|one, other| one.rank == other.rank)
            .collect()
    }

    pub(crate) fn reference_of(&self, rank: usize) -> Option<&Group> {
        let mut groups = self.groups.iter();
        groups.find(|group| group.rank == rank && group.variant == self.reference)
    }

    /// How a group compares with the reference; `None` without one.
    pub(crate) fn standing(&self, group: &Group) -> Option<Standing> {
        let reference = self.reference_of(group.rank)?;
        let pairs: Vec<(&Trial, &Trial)> = group
            .trials
            .iter()
            .filter_map(|trial| {
                let mut trials = reference.trials.iter();
                Some((trial, trials.find(|other| other.seed == trial.seed)?))
            })
            .collect();
        let itself = group.variant == self.reference;
        let differences = |value: &dyn Fn(&Trial) -> Option<f64>| -> Option<Interval> {
            let pairs = pairs.iter();
            let differences: Option<Vec<f64>> = pairs
                .map(|(trial, other)| Some(value(trial)? - value(other)?))
                .collect();
            Interval::of(&differences?).filter(|_| !itself)
        };
        let steps: Vec<Option<f64>> = pairs
            .iter()
            .map(|(trial, other)| steps_to(&trial.validation, other.last_loss()))
            .collect();
        // One time of a step for all seeds: a machine that was busy for a while is no property of a seed.
        let trials = group.trials.iter();
        let times: Vec<f64> = trials
            .map(|trial| trial.train_seconds / trial.steps.max(1) as f64)
            .collect();
        let each = median(&times)?;
        let seconds = pairs
            .iter()
            .zip(&steps)
            .map(|((trial, _), steps)| steps.map(|steps| trial.attach_seconds + steps * each));
        Some(Standing {
            loss: differences(&|trial| Some(trial.last_loss())),
            area: differences(&|trial| area(&trial.validation)),
            seconds: seconds.collect(),
            steps,
        })
    }

    /// The tables' numbers.
    pub fn to_json(&self) -> Value {
        let interval = |interval: Option<Interval>| {
            interval.map(
                |Interval { mean, half_width }| json!({ "mean": mean, "half_width": half_width }),
            )
        };
        let groups = self.groups.iter().map(|group| {
            let standing = self.standing(group);
            let standing = standing.as_ref();
            json!({
                "method": group.variant.to_string(),
                "rank": group.rank,
                "learning_rate": group.rate,
                "seeds": group.trials.iter().map(|trial| trial.seed).collect::<Vec<_>>(),
                "diverged_seeds": group.diverged,
                "last_losses": group.last_losses(),
                "last_measures": group.measures(),
                "last_loss_difference": interval(standing.and_then(|standing| standing.loss)),
                "mean_loss_difference": interval(standing.and_then(|standing| standing.area)),
                "steps_to_reference": standing.map(|standing| &standing.steps),
                "seconds_to_reference": standing.map(|standing| &standing.seconds),
            })
        });
        json!({
            "directory": self.directory,
            "reference": self.reference.to_string(),
            "groups": groups.collect::<Vec<_>>(),
        })
    }
}

impl Group {
    /// What else was measured after the last step, by name, for each seed.
    pub(crate) fn measures(&self) -> BTreeMap<&str, Vec<f64>> {
        let mut all = BTreeMap::<&str, Vec<f64>>::new();
        for (name, value) in self.trials.iter().flat_map(|trial| &trial.measures) {
            all.entry(name).or_default().push(*value);
        }
        all
    }

    pub(crate) fn last_losses(&self) -> Vec<f64> {
        self.trials.iter().map(Trial::last_loss).collect()
    }
}

/// Whether a run's recipe is of a comparison. The share that the last learning
/// rate is of the highest is not looked at: its last digits may differ.
fn is_of(recipe: &Recipe, protocol: &Protocol) -> Result<bool, ComparisonError> {
    let without_share = |recipe: &Recipe| {
        let mut recipe = recipe.clone();
        recipe.training.min_learning_rate = 0.0;
        recipe
    };
    let run = without_share(&common(recipe)?);
    Ok(run == without_share(&protocol.recipe))
}

/// Runs by method and rank; those of a method that was not run on the seed that
/// chooses the rate are left out.
fn groups(trials: Vec<Trial>, tuning_seed: u64) -> Result<Vec<Group>, ComparisonError> {
    let mut sorted = Vec::with_capacity(trials.len());
    for trial in trials {
        sorted.push((trial.rank, trial.variant()?, trial));
    }
    sorted.sort_by(|one, other| {
        let key = |entry: &(usize, Variant, Trial)| (entry.0, entry.1.order(), entry.2.seed);
        key(one)
            .cmp(&key(other))
            .then(one.2.learning_rate.total_cmp(&other.2.learning_rate))
    });
    let groups = sorted.chunk_by(|one, other| (one.0, one.1) == (other.0, other.1));
    Ok(groups
        .filter_map(|group| {
            let (rank, variant, _) = *group.first()?;
            let trials = || group.iter().map(|(_, _, trial)| trial);
            let tried: Vec<(f64, f64)> = trials()
                .filter(|trial| trial.seed == tuning_seed)
                .map(|trial| (trial.learning_rate, trial.last_loss()))
                .collect();
            if tried.is_empty() {
                return None;
            }
            let rate = best_rate(&tried).unwrap_or(f64::NAN);
            let (finished, diverged): (Vec<&Trial>, Vec<&Trial>) = trials()
                .filter(|trial| trial.learning_rate == rate)
                .partition(|trial| trial.diverged.is_none());
            Some(Group {
                variant,
                rank,
                rate,
                tried,
                trials: finished.into_iter().cloned().collect(),
                diverged: diverged.iter().map(|trial| trial.seed).collect(),
            })
        })
        .collect())
}

/// The rate with the lowest loss; `None` if none has a finite one.
pub(crate) fn best_rate(losses: &[(f64, f64)]) -> Option<f64> {
    let finite = losses.iter().filter(|(_, loss)| loss.is_finite());
    finite
        .min_by(|one, other| one.1.total_cmp(&other.1))
        .map(|(rate, _)| *rate)
}

#[cfg(test)]
mod tests;
