//! What the files of a comparison's runs say, for people.

mod markdown;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use olora_files::write_atomically;
use olora_pictures::png;
use olora_runs::Recipe;
use serde_json::{Value, json};

use crate::{
    ComparisonError, pictures,
    protocol::{Protocol, common},
    scores,
    statistics::{Interval, area, at_log, holm, length_to, mean, steps_to},
    trial::{Cell, Trial},
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
    /// As in [`Protocol`].
    pub(crate) tuning_seeds: usize,
    /// Between the losses before the first step, of any two runs.
    largest_start_difference: f64,
    /// The table of scores on tasks, if there are any.
    scores: Option<String>,
}

/// A method at a rank and length: the rates it was tried at, and its runs at the best.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) variant: Variant,
    pub(crate) rank: usize,
    /// The number of steps, where several are compared.
    pub(crate) steps: Option<usize>,
    /// The best; not a number if all of them diverged.
    pub(crate) rate: f64,
    /// Rates and losses, means over the seeds that choose, by rate.
    pub(crate) tried: Vec<(f64, f64)>,
    /// At `rate`, by seed, of the seeds that are reported; those that diverged are not among them.
    pub(crate) trials: Vec<Trial>,
    /// The seeds that diverged at `rate`.
    diverged: Vec<u64>,
    /// Whether there is no other seed than those that chose the rate.
    only_tuned: bool,
    /// Those at other rates, of the seeds that are reported, and those that diverged at `rate`.
    elsewhere: Vec<Trial>,
}

/// How a group compares with the reference at the same rank.
pub(crate) struct Standing {
    /// The seeds that both have.
    pub(crate) seeds: Vec<u64>,
    /// Of the last loss to the reference's, over the seeds that both have.
    pub(crate) loss: Option<Interval>,
    pub(crate) area: Option<Interval>,
    /// Steps after which the loss stays at or below the reference's last, by
    /// seed; `None` where it does not.
    pub(crate) steps: Vec<Option<f64>>,
    /// Seconds, with those that the start took.
    pub(crate) seconds: Vec<Option<f64>>,
    /// The same for [`NEAR`] times the reference's last loss.
    pub(crate) steps_near: Vec<Option<f64>>,
    pub(crate) seconds_near: Vec<Option<f64>>,
    /// The probability of a last loss as different if there were no difference, and the same
    /// corrected for the number of methods, ranks and lengths in the report.
    pub(crate) p: Option<(f64, f64)>,
}

/// A method with its runs at a rate.
type GroupRuns<'a> = (&'a Group, Vec<Trial>);

/// What counts as near the reference's last loss, in multiples of it.
const NEAR: f64 = 1.25;
/// How far from a method's best rate its loss is asked for too.
const FAR: f64 = 3.0;

/// How long a method has to train, with a schedule of that length, to end where the reference
/// ends after the longest run.
pub(crate) struct Lengths {
    pub(crate) variant: Variant,
    /// To [`NEAR`] times the reference's loss, and to it, by seed.
    pub(crate) near: Vec<Option<f64>>,
    pub(crate) exact: Vec<Option<f64>>,
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
        let groups = groups(trials, &protocol)?;
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
            tuning_seeds: protocol.tuning_seeds,
            largest_start_difference: highest - lowest,
        })
    }

    /// Writes `report.md` and the pictures beside the runs, over older ones, each
    /// with a table of what it shows. Returns the path of the first.
    ///
    /// # Errors
    ///
    /// [`ComparisonError::Io`] when that fails, and [`ComparisonError::Drawing`].
    pub fn write(&self) -> Result<PathBuf, ComparisonError> {
        let write = |name: &str, bytes: &[u8]| {
            let path = self.directory.join(name);
            write_atomically(&path, |file| file.write_all(bytes))
                .map_err(|source| ComparisonError::io("writing", &path, source))
        };
        for picture in pictures::pictures(self) {
            let Some(svg) = picture.figure.svg() else {
                continue;
            };
            let name = picture.name;
            write(&format!("{name}.csv"), picture.table.csv().as_bytes())?;
            write(&format!("{name}.svg"), svg.as_bytes())?;
            write(&format!("{name}.png"), &png(&svg)?)?;
        }
        write("report.md", self.markdown().as_bytes())?;
        Ok(self.directory.join("report.md"))
    }

    /// The groups of each rank and length, in order.
    pub(crate) fn sections(&self) -> Vec<&[Group]> {
        self.groups
            .chunk_by(|one, other| (one.rank, one.steps) == (other.rank, other.steps))
            .collect()
    }

    fn reference_of(&self, group: &Group) -> Option<&Group> {
        let mut groups = self.groups.iter();
        let place = (group.rank, group.steps);
        groups.find(|other| (other.rank, other.steps) == place && other.variant == self.reference)
    }

    /// How a group compares with the reference; `None` without one.
    pub(crate) fn standing(&self, group: &Group) -> Option<Standing> {
        let reference = self.reference_of(group)?;
        let mut standing = Self::standing_of(&group.trials, &reference.trials)?;
        if group.variant == self.reference {
            (standing.loss, standing.area) = (None, None);
            return Some(standing);
        }
        let all: Vec<(usize, f64)> = self
            .groups
            .iter()
            .enumerate()
            .filter_map(|(index, other)| Some((index, self.p(other)?)))
            .collect();
        let corrected = holm(&all.iter().map(|(_, p)| *p).collect::<Vec<_>>());
        let mut groups = self.groups.iter();
        let own = groups.position(|other| std::ptr::eq(other, group));
        let mut found = all.iter().zip(corrected);
        standing.p = found
            .find(|((index, _), _)| Some(*index) == own)
            .map(|((_, p), corrected)| (*p, corrected));
        Some(standing)
    }

    /// The probability of a group's last losses if they were the reference's.
    fn p(&self, group: &Group) -> Option<f64> {
        if group.variant == self.reference {
            return None;
        }
        let reference = self.reference_of(group)?;
        let pairs = pairs(&group.trials, &reference.trials);
        let differences: Vec<f64> = pairs
            .iter()
            .map(|(trial, other)| trial.last_loss() - other.last_loss())
            .collect();
        Interval::p(&differences)
    }

    /// How some runs compare with others of the same seeds.
    pub(crate) fn standing_of(trials: &[Trial], reference: &[Trial]) -> Option<Standing> {
        let pairs = pairs(trials, reference);
        let differences = |value: &dyn Fn(&Trial) -> Option<f64>| -> Option<Interval> {
            let pairs = pairs.iter();
            let differences: Option<Vec<f64>> = pairs
                .map(|(trial, other)| Some(value(trial)? - value(other)?))
                .collect();
            Interval::of(&differences?)
        };
        let steps = |times: f64| -> Vec<Option<f64>> {
            let pairs = pairs.iter();
            pairs
                .map(|(trial, other)| steps_to(&trial.validation, times * other.last_loss()))
                .collect()
        };
        let (near, steps) = (steps(NEAR), steps(1.0));
        let each = Trial::seconds_by_step(trials)?;
        let seconds = |steps: &[Option<f64>]| -> Vec<Option<f64>> {
            let pairs = pairs.iter().zip(steps);
            pairs
                .map(|((trial, _), steps)| steps.map(|steps| trial.attach_seconds + steps * each))
                .collect()
        };
        Some(Standing {
            seeds: pairs.iter().map(|(trial, _)| trial.seed).collect(),
            loss: differences(&|trial| Some(trial.last_loss())),
            area: differences(&|trial| area(&trial.validation)),
            seconds: seconds(&steps),
            steps,
            seconds_near: seconds(&near),
            steps_near: near,
            p: None,
        })
    }

    /// The rates at which the reference and at least one other method of a section were run on
    /// the same seeds, with the runs of each, those that diverged among them.
    pub(crate) fn at_one_rate<'a>(&self, groups: &'a [Group]) -> Vec<(f64, Vec<GroupRuns<'a>>)> {
        let all = |group: &'a Group, rate: f64| -> Vec<Trial> {
            let trials = group.trials.iter().chain(&group.elsewhere);
            let mut trials: Vec<Trial> = trials
                .filter(|trial| trial.learning_rate == rate)
                .cloned()
                .collect();
            trials.sort_by_key(|trial| trial.seed);
            trials
        };
        let reference = groups.iter().find(|group| group.variant == self.reference);
        let Some(reference) = reference else {
            return Vec::new();
        };
        let of_reference = reference.trials.iter().chain(&reference.elsewhere);
        let mut rates: Vec<f64> = of_reference.map(|trial| trial.learning_rate).collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        let found = rates.into_iter().filter_map(|rate| {
            let theirs = all(reference, rate);
            let runs: Vec<GroupRuns<'_>> = groups
                .iter()
                .map(|group| (group, all(group, rate)))
                .filter(|(_, trials)| !pairs(trials, &theirs).is_empty())
                .collect();
            (runs.len() > 1).then_some((rate, runs))
        });
        found.collect()
    }

    /// How long each method has to train at a rank to end where the reference does after the
    /// longest run; nothing unless there are several lengths.
    pub(crate) fn lengths(&self, rank: usize) -> Vec<Lengths> {
        let at = |variant: Variant| -> Vec<&Group> {
            let groups = self.groups.iter();
            let mut groups: Vec<&Group> = groups
                .filter(|group| group.rank == rank && group.variant == variant)
                .collect();
            groups.sort_by_key(|group| group.steps);
            groups
        };
        let Some(last) = at(self.reference).pop().filter(|last| last.steps.is_some()) else {
            return Vec::new();
        };
        let mut variants: Vec<Variant> = Vec::new();
        for group in self.groups.iter().filter(|group| group.rank == rank) {
            if !variants.contains(&group.variant) {
                variants.push(group.variant);
            }
        }
        let all = variants.into_iter().filter_map(|variant| {
            let groups = at(variant);
            if groups.len() < 2 {
                return None;
            }
            let to = |times: f64| -> Vec<Option<f64>> {
                let targets = last.trials.iter();
                targets
                    .map(|target| {
                        // A length that a seed diverged at is not there for it.
                        let losses: Vec<(usize, f64)> = groups
                            .iter()
                            .filter_map(|group| {
                                let mut trials = group.trials.iter();
                                let same = trials.find(|trial| trial.seed == target.seed)?;
                                Some((group.steps?, same.last_loss()))
                            })
                            .collect();
                        length_to(&losses, times * target.last_loss())
                    })
                    .collect()
            };
            Some(Lengths {
                variant,
                near: to(NEAR),
                exact: to(1.0),
            })
        });
        all.collect()
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
                "steps": group.steps,
                "learning_rate": group.rate,
                "seeds": group.trials.iter().map(|trial| trial.seed).collect::<Vec<_>>(),
                "diverged_seeds": group.diverged,
                "last_losses": group.last_losses(),
                "last_measures": group.measures(),
                "last_loss_difference": interval(standing.and_then(|standing| standing.loss)),
                "mean_loss_difference": interval(standing.and_then(|standing| standing.area)),
                "p": standing.and_then(|standing| standing.p).map(|(p, _)| p),
                "p_holm": standing.and_then(|standing| standing.p).map(|(_, p)| p),
                "steps_to_reference": standing.map(|standing| &standing.steps),
                "seconds_to_reference": standing.map(|standing| &standing.seconds),
                "steps_near_reference": standing.map(|standing| &standing.steps_near),
                "seconds_near_reference": standing.map(|standing| &standing.seconds_near),
                "tried": group.tried,
                "loss_at_a_third_of_the_rate": group.loss_near_rate(1.0 / FAR),
                "loss_at_three_times_the_rate": group.loss_near_rate(FAR),
            })
        });
        json!({
            "directory": self.directory,
            "reference": self.reference.to_string(),
            "groups": groups.collect::<Vec<_>>(),
            "at_one_rate": self.one_rate_json(),
            "lengths": self.lengths_json(),
        })
    }

    fn one_rate_json(&self) -> Value {
        let mut all = Vec::new();
        for groups in self.sections() {
            for (rate, runs) in self.at_one_rate(groups) {
                for (group, trials) in runs {
                    let losses: Vec<f64> = trials.iter().map(Trial::last_loss).collect();
                    all.push(json!({
                        "learning_rate": rate,
                        "method": group.variant.to_string(),
                        "rank": group.rank,
                        "steps": group.steps,
                        "seeds": trials.iter().map(|trial| trial.seed).collect::<Vec<_>>(),
                        "last_losses": losses,
                    }));
                }
            }
        }
        all.into()
    }

    fn lengths_json(&self) -> Value {
        let ranks: BTreeSet<usize> = self.groups.iter().map(|group| group.rank).collect();
        let all = ranks.into_iter().flat_map(|rank| {
            let lengths = self.lengths(rank).into_iter();
            lengths.map(move |lengths| {
                json!({
                    "method": lengths.variant.to_string(),
                    "rank": rank,
                    "steps_near_reference": lengths.near,
                    "steps_to_reference": lengths.exact,
                })
            })
        });
        all.collect::<Vec<_>>().into()
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

    /// The loss, on the seeds that chose the rate, at so many times the best one, by a straight
    /// line between those that were tried; infinite next to one that diverged, and `None` beyond
    /// them all.
    pub(crate) fn loss_near_rate(&self, times: f64) -> Option<f64> {
        let rate = self.rate * times;
        // What was tried has been rounded.
        let distance = |tried: f64| (tried / rate).ln().abs();
        let close = self.tried.iter();
        let close = close.filter(|(tried, _)| distance(*tried) < 0.1);
        close
            .min_by(|one, other| distance(one.0).total_cmp(&distance(other.0)))
            .map(|(_, loss)| *loss)
            .or_else(|| at_log(&self.tried, rate))
    }

    /// The method at its rank and, where several are compared, its length.
    pub(crate) fn place(&self) -> String {
        let Self { rank, steps, .. } = self;
        match steps {
            Some(steps) => format!("rank {rank}, {steps} steps"),
            None => format!("rank {rank}"),
        }
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
    let run = without_share(&common(recipe, protocol.by_length)?);
    Ok(run == without_share(&protocol.recipe))
}

/// The runs of the same seed.
fn pairs<'a>(trials: &'a [Trial], others: &'a [Trial]) -> Vec<(&'a Trial, &'a Trial)> {
    let trials = trials.iter();
    trials
        .filter_map(|trial| {
            let mut others = others.iter();
            Some((trial, others.find(|other| other.seed == trial.seed)?))
        })
        .collect()
}

/// Runs by length, rank and method; those of a method that was not run on the seeds that choose
/// the rate are left out.
fn groups(trials: Vec<Trial>, protocol: &Protocol) -> Result<Vec<Group>, ComparisonError> {
    let mut sorted = Vec::with_capacity(trials.len());
    for trial in trials {
        sorted.push((trial.cell(protocol.by_length)?, trial));
    }
    let key = |cell: &Cell| (cell.steps, cell.rank, cell.variant.order());
    sorted.sort_by(|(one, run), (other, run_of_other)| {
        (key(one), run.seed)
            .cmp(&(key(other), run_of_other.seed))
            .then(run.learning_rate.total_cmp(&run_of_other.learning_rate))
    });
    let groups = sorted.chunk_by(|(one, _), (other, _)| one == other);
    Ok(groups
        .filter_map(|group| {
            let cell = group.first()?.0;
            let trials = || group.iter().map(|(_, trial)| trial);
            let tried = tried(trials().filter(|trial| protocol.chooses(trial.seed)));
            if tried.is_empty() {
                return None;
            }
            let rate = best_rate(&tried).unwrap_or(f64::NAN);
            let only_tuned =
                !trials().any(|trial| trial.learning_rate == rate && protocol.reports(trial.seed));
            let reported = |trial: &&Trial| only_tuned || protocol.reports(trial.seed);
            let (at_best, elsewhere): (Vec<&Trial>, Vec<&Trial>) = trials()
                .filter(reported)
                .partition(|trial| trial.learning_rate == rate);
            let (finished, diverged): (Vec<&Trial>, Vec<&Trial>) = at_best
                .into_iter()
                .partition(|trial| trial.diverged.is_none());
            Some(Group {
                variant: cell.variant,
                rank: cell.rank,
                steps: cell.steps,
                rate,
                tried,
                trials: finished.into_iter().cloned().collect(),
                diverged: diverged.iter().map(|trial| trial.seed).collect(),
                only_tuned,
                elsewhere: elsewhere.into_iter().chain(diverged).cloned().collect(),
            })
        })
        .collect())
}

/// Rates with their losses, means over the seeds that have the most of them.
fn tried<'a>(trials: impl Iterator<Item = &'a Trial>) -> Vec<(f64, f64)> {
    let mut by_rate: Vec<(f64, Vec<f64>)> = Vec::new();
    for trial in trials {
        let (rate, loss) = (trial.learning_rate, trial.last_loss());
        match by_rate.iter_mut().find(|(known, _)| *known == rate) {
            Some((_, losses)) => losses.push(loss),
            None => by_rate.push((rate, vec![loss])),
        }
    }
    // A rate that an interrupted comparison has tried on fewer seeds is not to be chosen for that.
    let most = by_rate.iter().map(|(_, losses)| losses.len()).max();
    by_rate.retain(|(_, losses)| Some(losses.len()) == most);
    by_rate.sort_by(|one, other| one.0.total_cmp(&other.0));
    by_rate
        .into_iter()
        .map(|(rate, losses)| (rate, mean(&losses)))
        .collect()
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
