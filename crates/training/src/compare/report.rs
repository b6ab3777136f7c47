//! What the files of a comparison's runs say, for people.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use olora_adapter::write_atomically;
use serde_json::{Value, json};

use super::{
    cell::Cell,
    pictures, scores,
    setting::{Setting, common},
    statistics::{Interval, area, deviation, mean, median, steps_to},
    variant::Variant,
};
use crate::{Recipe, TrainError, size};

/// The runs of a comparison, in the order of its tables.
#[derive(Clone, Debug)]
pub struct Report {
    directory: PathBuf,
    pub(crate) groups: Vec<Group>,
    /// What the others are measured against.
    pub(crate) reference: Variant,
    n_cells: usize,
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
    pub(crate) cells: Vec<Cell>,
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
    /// [`TrainError::Comparison`] if there are none, or a file is damaged or of
    /// another comparison than the rest.
    pub fn read(directory: &Path) -> Result<Self, TrainError> {
        let refuse = |reason: String| TrainError::Comparison {
            path: directory.to_owned(),
            reason,
        };
        let setting = Setting::read(directory)?;
        let cells = Cell::read_all(directory)?;
        let (Some(setting), false) = (setting, cells.is_empty()) else {
            return Err(refuse(
                "there are no finished runs (comparison.json and cells/*.json) to report on"
                    .to_owned(),
            ));
        };
        for cell in &cells {
            let others = cell.diverged.is_none() && cell.fingerprint != setting.fingerprint;
            if others || !is_of(&cell.recipe, &setting)? {
                return Err(refuse(format!(
                    "{} is of another recipe, of other data or of another base than comparison.json says, \
                     and is not compared",
                    cell.recipe.name
                )));
            }
        }
        let starts: Vec<f64> = cells
            .iter()
            .filter_map(|cell| Some(cell.validation.first()?.1))
            .collect();
        let highest = starts.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lowest = starts.iter().copied().fold(f64::INFINITY, f64::min);
        let n_cells = cells.len();
        let groups = groups(cells, setting.tuning_seed)?;
        let lora = groups.iter().find(|group| group.variant == Variant::LORA);
        let reference = lora
            .or(groups.first())
            .map_or(Variant::LORA, |group| group.variant);
        Ok(Self {
            directory: directory.to_owned(),
            scores: scores::table(directory, &groups)?,
            groups,
            reference,
            n_cells,
            tuning_seed: setting.tuning_seed,
            largest_start_difference: highest - lowest,
        })
    }

    /// Writes `report.md` and the pictures beside the runs, over older ones.
    /// Returns the path of the first.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when that fails.
    pub fn write(&self) -> Result<PathBuf, TrainError> {
        let write = |name: &str, bytes: &[u8]| {
            let path = self.directory.join(name);
            write_atomically(&path, |file| file.write_all(bytes))
                .map_err(|source| TrainError::io("writing", &path, source))
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
        let pairs: Vec<(&Cell, &Cell)> = group
            .cells
            .iter()
            .filter_map(|cell| {
                let mut cells = reference.cells.iter();
                Some((cell, cells.find(|other| other.seed == cell.seed)?))
            })
            .collect();
        let itself = group.variant == self.reference;
        let differences = |value: &dyn Fn(&Cell) -> Option<f64>| -> Option<Interval> {
            let pairs = pairs.iter();
            let differences: Option<Vec<f64>> = pairs
                .map(|(cell, other)| Some(value(cell)? - value(other)?))
                .collect();
            Interval::of(&differences?).filter(|_| !itself)
        };
        let steps: Vec<Option<f64>> = pairs
            .iter()
            .map(|(cell, other)| steps_to(&cell.validation, other.last_loss()))
            .collect();
        // One time of a step for all seeds: a machine that was busy for a while is no property of a seed.
        let cells = group.cells.iter();
        let times: Vec<f64> = cells
            .map(|cell| cell.train_seconds / cell.steps.max(1) as f64)
            .collect();
        let each = median(&times)?;
        let seconds = pairs
            .iter()
            .zip(&steps)
            .map(|((cell, _), steps)| steps.map(|steps| cell.attach_seconds + steps * each));
        Some(Standing {
            loss: differences(&|cell| Some(cell.last_loss())),
            area: differences(&|cell| area(&cell.validation)),
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
                "seeds": group.cells.iter().map(|cell| cell.seed).collect::<Vec<_>>(),
                "diverged_seeds": group.diverged,
                "last_losses": group.last_losses(),
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

    /// The whole report.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_markdown(&mut text);
        text
    }

    fn write_markdown(&self, text: &mut String) -> std::fmt::Result {
        let names: Vec<String> = self
            .by_rank()
            .first()
            .map(|groups| groups.iter().map(|g| g.variant.to_string()).collect())
            .unwrap_or_default();
        writeln!(text, "# {}\n", names.join(", "))?;
        writeln!(
            text,
            "Made of the {} files in `cells/` by `olora report`.\n",
            self.n_cells
        )?;
        self.write_setting(text)?;
        self.write_caveats(text)?;
        for groups in self.by_rank() {
            self.write_rank(text, groups)?;
        }
        writeln!(text, "![Validation loss by step](loss.svg)\n")?;
        writeln!(
            text,
            "![Steps to the last loss of {}](steps.svg)",
            self.reference
        )?;
        if let Some(scores) = &self.scores {
            text.push_str(scores);
        }
        self.write_rates(text)
    }

    fn write_setting(&self, text: &mut String) -> std::fmt::Result {
        let cells = || self.groups.iter().flat_map(|group| &group.cells);
        let Some(cell) = cells().next() else {
            return Ok(());
        };
        let recipe = &cell.recipe;
        let training = &recipe.training;
        let held_out = match (&recipe.data.validation, recipe.data.validation_samples) {
            (Some(path), _) => format!("`{}`", path.display()),
            (None, n) => format!("{} samples held out of it", n.unwrap_or(0)),
        };
        let distinct = |of: &dyn Fn(&Cell) -> String| {
            let all: BTreeSet<String> = cells().map(of).collect();
            Vec::from_iter(all)
        };
        let versions = distinct(&|cell| {
            let versions = cell.versions.iter();
            let versions: Vec<String> = versions
                .map(|(name, version)| format!("{name} {version}"))
                .collect();
            versions.join(", ")
        });
        let dates = distinct(&|cell| cell.finished.split('T').next().unwrap_or("").to_owned());
        let dates = match dates.as_slice() {
            [first, .., last] => format!("{first} to {last}"),
            dates => dates.concat(),
        };
        let n_sequences = training.batch_size * training.accumulation;
        writeln!(text, "| | |\n|---|---|")?;
        writeln!(text, "| base | `{}` |", recipe.model.path.display())?;
        writeln!(
            text,
            "| training data | `{}` |",
            recipe.data.train.display()
        )?;
        writeln!(text, "| validation data | {held_out} |")?;
        writeln!(
            text,
            "| run | {} steps of {n_sequences} sequences of at most {} tokens: {} sequences, {} tokens |",
            cell.steps,
            recipe.data.max_length,
            cell.steps * n_sequences,
            cell.tokens
        )?;
        writeln!(
            text,
            "| adapter | on {}, alpha {} |",
            recipe.adapter.targets.join(", "),
            recipe.adapter.alpha
        )?;
        writeln!(
            text,
            "| learning rate | {} steps of warm-up, then {} |",
            training.warmup_steps,
            format!("{:?}", training.schedule).to_lowercase()
        )?;
        let devices = distinct(&|cell| cell.device.clone());
        writeln!(text, "| device | {} |", devices.join("; "))?;
        writeln!(text, "| versions | {} |", versions.join("; "))?;
        writeln!(text, "| date | {dates} |\n")
    }

    fn write_caveats(&self, text: &mut String) -> std::fmt::Result {
        let Self {
            reference,
            tuning_seed,
            ..
        } = self;
        let cells = || self.groups.iter().flat_map(|group| &group.cells);
        writeln!(
            text,
            "Read with care:\n\n\
             - Differences are to {reference} at the same rank and seed, which has the same order of data. In the tables \
             ± is the standard deviation over seeds; brackets, and ± in sentences, are Student's 95 % intervals over \
             seeds. Of twenty, one leaves out the truth by chance, and none says anything of other validation data.\n\
             - Each method has its own learning rate, the best of those tried on seed {tuning_seed} (last table: neighbours \
             may be far apart, and some methods were tried at more of them). It was chosen by the same validation data that \
             are reported, and that seed is among those averaged, which flatters every method.\n\
             - Steps to {reference}'s last loss are those after which the validation loss stays at or below it, by straight \
             lines between evaluations. Seconds are those steps at the median time of a step, with the start, on the machine \
             as it was."
        )?;
        writeln!(
            text,
            "- Before the first step, the losses of all runs lie within {:.1e} of each other.",
            self.largest_start_difference
        )?;
        let n_evaluations = cells().map(|cell| cell.validation.len()).min().unwrap_or(0);
        if n_evaluations < 5 {
            writeln!(
                text,
                "- There are only {n_evaluations} evaluations in a run: steps between them are guesses."
            )?;
        }
        for group in &self.groups {
            group.write_caveats(text)?;
        }
        writeln!(text)
    }

    fn write_rank(&self, text: &mut String, groups: &[Group]) -> std::fmt::Result {
        let Some(first) = groups.first() else {
            return Ok(());
        };
        let reference = self.reference;
        writeln!(text, "## Rank {}\n", first.rank)?;
        writeln!(
            text,
            "| method | learning rate | seeds | last loss | to {reference} | mean loss over the run | to {reference} \
             | steps to {reference}'s last loss | seconds to it | start | trained | peak memory |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
        )?;
        for group in groups {
            let standing = self.standing(group);
            let standing = standing.as_ref();
            let cells = &group.cells;
            let n_steps = cells.iter().map(|cell| cell.steps).max().unwrap_or(0);
            let areas: Vec<f64> = cells
                .iter()
                .filter_map(|cell| area(&cell.validation))
                .collect();
            let starts: Vec<f64> = cells.iter().map(|cell| cell.attach_seconds).collect();
            let peak = cells.iter().filter_map(|cell| cell.peak_memory).max();
            let seeds = match group.diverged.len() {
                0 => cells.len().to_string(),
                n => format!("{}, {n} more diverged", cells.len()),
            };
            if cells.is_empty() {
                writeln!(
                    text,
                    "| {} | diverged at all |{}",
                    group.variant,
                    " |".repeat(10)
                )?;
                continue;
            }
            writeln!(
                text,
                "| {} | {:e} | {} | {} | {} | {} | {} | {} | {} | {:.2} s | {} | {} |",
                group.variant,
                group.rate,
                seeds,
                spread(&group.last_losses()),
                interval(standing.and_then(|standing| standing.loss)),
                spread(&areas),
                interval(standing.and_then(|standing| standing.area)),
                reached(
                    standing.map_or(&[][..], |standing| &standing.steps),
                    &format!(" of {n_steps}")
                ),
                reached(standing.map_or(&[][..], |standing| &standing.seconds), ""),
                mean(&starts),
                cells.first().map_or(0, |cell| cell.trained_params),
                peak.map_or_else(|| "–".to_owned(), size),
            )?;
        }
        writeln!(text)?;
        for group in groups {
            if group.variant != self.reference
                && let Some(standing) = self.standing(group)
            {
                writeln!(text, "- {}", sentence(group, &standing, reference))?;
            }
        }
        writeln!(text)
    }

    /// What the rates were chosen by.
    fn write_rates(&self, text: &mut String) -> std::fmt::Result {
        let mut rates: Vec<f64> = self
            .groups
            .iter()
            .flat_map(|group| group.tried.iter().map(|(rate, _)| *rate))
            .collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        writeln!(text, "\n## Last loss of the first seed by learning rate\n")?;
        let head: Vec<String> = rates.iter().map(|rate| format!("{rate:e}")).collect();
        writeln!(text, "| method | rank | {} |", head.join(" | "))?;
        writeln!(text, "|---|---:|{}", "---:|".repeat(rates.len()))?;
        for group in &self.groups {
            let cells = rates.iter().map(|rate| {
                let tried = group.tried.iter().find(|(tried, _)| tried == rate);
                match tried {
                    None => String::new(),
                    Some((_, loss)) if !loss.is_finite() => "diverged".to_owned(),
                    Some((_, loss)) if *rate == group.rate => format!("**{loss:.4}**"),
                    Some((_, loss)) => format!("{loss:.4}"),
                }
            });
            let cells: Vec<String> = cells.collect();
            writeln!(
                text,
                "| {} | {} | {} |",
                group.variant,
                group.rank,
                cells.join(" | ")
            )?;
        }
        Ok(())
    }
}

impl Group {
    pub(crate) fn last_losses(&self) -> Vec<f64> {
        self.cells.iter().map(Cell::last_loss).collect()
    }

    /// What is to be known of this method beyond what holds for all.
    fn write_caveats(&self, text: &mut String) -> std::fmt::Result {
        let Self {
            variant,
            rank,
            rate,
            tried,
            diverged,
            ..
        } = self;
        if rate.is_nan() {
            return writeln!(
                text,
                "- {variant} at rank {rank} diverged at every rate that was tried: lower ones may do."
            );
        }
        if tried.len() == 1 {
            writeln!(
                text,
                "- {variant} at rank {rank} was tried at one learning rate alone, which is no tuning."
            )?;
        } else if let Some((end, beyond)) = edge(tried, *rate) {
            writeln!(
                text,
                "- {variant} at rank {rank} was best at the {end} rate tried, {rate:e}: a {beyond} one may be better."
            )?;
        }
        for seed in diverged {
            writeln!(
                text,
                "- {variant} at rank {rank} diverged on seed {seed} at its rate, and is compared without it."
            )?;
        }
        Ok(())
    }
}

/// Whether a run's recipe is of a comparison. The share that the last learning
/// rate is of the highest is not looked at: its last digits may differ.
fn is_of(recipe: &Recipe, setting: &Setting) -> Result<bool, TrainError> {
    let without_share = |recipe: &Recipe| {
        let mut recipe = recipe.clone();
        recipe.training.min_learning_rate = 0.0;
        recipe
    };
    let run = without_share(&common(recipe)?);
    Ok(run == without_share(&setting.recipe))
}

/// Runs by method and rank; those of a method that was not run on the seed that
/// chooses the rate are left out.
fn groups(cells: Vec<Cell>, tuning_seed: u64) -> Result<Vec<Group>, TrainError> {
    let mut sorted = Vec::with_capacity(cells.len());
    for cell in cells {
        sorted.push((cell.rank, cell.variant()?, cell));
    }
    sorted.sort_by(|one, other| {
        let key = |entry: &(usize, Variant, Cell)| (entry.0, entry.1.order(), entry.2.seed);
        key(one)
            .cmp(&key(other))
            .then(one.2.learning_rate.total_cmp(&other.2.learning_rate))
    });
    let groups = sorted.chunk_by(|one, other| (one.0, one.1) == (other.0, other.1));
    Ok(groups
        .filter_map(|group| {
            let (rank, variant, _) = *group.first()?;
            let cells = || group.iter().map(|(_, _, cell)| cell);
            let tried: Vec<(f64, f64)> = cells()
                .filter(|cell| cell.seed == tuning_seed)
                .map(|cell| (cell.learning_rate, cell.last_loss()))
                .collect();
            if tried.is_empty() {
                return None;
            }
            let rate = best_rate(&tried).unwrap_or(f64::NAN);
            let (finished, diverged): (Vec<&Cell>, Vec<&Cell>) = cells()
                .filter(|cell| cell.learning_rate == rate)
                .partition(|cell| cell.diverged.is_none());
            Some(Group {
                variant,
                rank,
                rate,
                tried,
                cells: finished.into_iter().cloned().collect(),
                diverged: diverged.iter().map(|cell| cell.seed).collect(),
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

/// At which end of the rates tried the best is, if at one, and what lies beyond.
fn edge(tried: &[(f64, f64)], best: f64) -> Option<(&'static str, &'static str)> {
    let lower = tried.iter().any(|(rate, _)| *rate < best);
    let higher = tried.iter().any(|(rate, _)| *rate > best);
    match (lower, higher) {
        (false, _) => Some(("lowest", "lower")),
        (_, false) => Some(("highest", "higher")),
        _ => None,
    }
}

/// `1.2345 ± 0.0012`.
fn spread(values: &[f64]) -> String {
    match deviation(values) {
        Some(deviation) => format!("{:.4} ± {deviation:.4}", mean(values)),
        None => format!("{:.4}", mean(values)),
    }
}

/// `-0.0123 [-0.0150, -0.0096]`.
fn interval(interval: Option<Interval>) -> String {
    interval.map_or_else(
        || "–".to_owned(),
        |Interval { mean, half_width }| {
            format!(
                "{mean:+.4} [{:+.4}, {:+.4}]",
                mean - half_width,
                mean + half_width
            )
        },
    )
}

/// The mean where all seeds got there, or how many did.
fn reached(values: &[Option<f64>], of: &str) -> String {
    let there: Vec<f64> = values.iter().copied().flatten().collect();
    match (there.len(), values.len()) {
        (_, 0) => "–".to_owned(),
        (0, _) => "not reached".to_owned(),
        (n, all) if n == all => format!("{:.1}{of}", mean(&there)),
        (n, all) => format!("{:.1}{of} ({n} of {all} seeds)", mean(&there)),
    }
}

/// In words, what a row says.
fn sentence(group: &Group, standing: &Standing, reference: Variant) -> String {
    let Group { variant, rank, .. } = group;
    let told = |interval: Option<Interval>, what: &str| match interval {
        None => format!("of its {what}, fewer than two seeds say nothing"),
        Some(interval) if !interval.is_clear() => format!(
            "its {what} cannot be told from {reference}'s ({:+.4} ± {:.4})",
            interval.mean, interval.half_width
        ),
        Some(interval) => format!(
            "its {what} is {} by {:.4} ± {:.4}",
            if interval.mean < 0.0 {
                "lower"
            } else {
                "higher"
            },
            interval.mean.abs(),
            interval.half_width
        ),
    };
    let there: Vec<f64> = standing.steps.iter().copied().flatten().collect();
    let n_steps = group.cells.iter().map(|cell| cell.steps).max().unwrap_or(0);
    let steps = match (there.len(), standing.steps.len()) {
        (_, 0) => format!("it has no seed in common with {reference}"),
        (0, all) if all > 1 => {
            format!("none of {all} seeds ends at or below {reference}'s last loss")
        }
        (0, _) => format!("its seed does not end at or below {reference}'s last loss"),
        (n, all) if n < all => {
            format!("{n} of {all} seeds end at or below {reference}'s last loss")
        }
        (n, _) => {
            let width =
                Interval::of(&there).map(|interval| format!(" ± {:.1}", interval.half_width));
            format!(
                "{} at or below {reference}'s last loss after {:.1}{} of {n_steps} steps",
                if n == 1 {
                    "its seed stays"
                } else {
                    "all seeds stay"
                },
                mean(&there),
                width.unwrap_or_default()
            )
        }
    };
    format!(
        "**{variant} at rank {rank}**: {}; {}; {steps}.",
        told(standing.loss, "last loss"),
        told(standing.area, "mean loss over the run"),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{super::setting::write_json, *};

    /// A run of two steps whose losses are 3 and `last`.
    fn cell(variant: &str, rate: f64, seed: u64, last: f64) -> Cell {
        let recipe = "name = \"x\"\nmodel.path = \"base\"\ndata.train = \"train.jsonl\"";
        Cell {
            variant: variant.to_owned(),
            rank: 8,
            learning_rate: rate,
            seed,
            fingerprint: "0".to_owned(),
            diverged: None,
            validation: vec![(0, 3.0), (2, last)],
            training: Vec::new(),
            steps: 2,
            tokens: 10,
            trained_params: 100,
            attach_seconds: 1.0,
            train_seconds: 4.0,
            wall_seconds: 6.0,
            peak_memory: Some(1 << 20),
            device: "cpu".to_owned(),
            finished: "2026-01-02T03:04:05Z".to_owned(),
            versions: BTreeMap::new(),
            recipe: Recipe::parse(recipe, "test", &[]).unwrap(),
        }
    }

    fn report(cells: &[Cell]) -> Result<Report, TrainError> {
        let directory = tempfile::tempdir().unwrap();
        for (index, cell) in cells.iter().enumerate() {
            let path = directory.path().join(format!("cells/{index}.json"));
            write_json(&path, cell).unwrap();
        }
        let setting = Setting {
            tuning_seed: 1,
            fingerprint: "0".to_owned(),
            recipe: common(&cells[0].recipe).unwrap(),
        };
        setting.establish(directory.path()).unwrap();
        Report::read(directory.path())
    }

    fn three_seeds() -> Vec<Cell> {
        vec![
            cell("olora", 1e-4, 1, 1.5),
            cell("olora", 1e-3, 1, 1.0),
            cell("olora", 1e-2, 1, 2.5),
            cell("olora", 1e-3, 2, 1.1),
            cell("olora", 1e-3, 3, 0.9),
            cell("lora", 1e-3, 1, 2.1),
            cell("lora", 1e-2, 1, 2.0),
            cell("lora", 1e-2, 2, 2.0),
            cell("lora", 1e-2, 3, 2.0),
        ]
    }

    #[test]
    fn each_method_is_judged_at_its_best_rate_of_the_first_seed() {
        let report = report(&three_seeds()).unwrap();
        let rates: Vec<(String, f64, usize)> = report
            .groups
            .iter()
            .map(|group| (group.variant.to_string(), group.rate, group.cells.len()))
            .collect();
        assert_eq!(
            rates,
            [("lora".to_owned(), 1e-2, 3), ("olora".to_owned(), 1e-3, 3)]
        );
        assert_eq!(report.reference, Variant::LORA);
        // LoRA's best is the highest that was tried, OLoRA's is not.
        let text = report.markdown();
        assert!(
            text.contains("lora at rank 8 was best at the highest rate tried, 1e-2"),
            "{text}"
        );
        assert!(!text.contains("olora at rank 8 was best at"), "{text}");
    }

    /// Differences -1.0, -0.9, -1.1; 2.0 is met after 1.0, 2/1.9 and 2/2.1 steps
    /// of 2 seconds, after a start of one.
    #[test]
    fn differences_and_steps_are_taken_seed_by_seed() {
        let report = report(&three_seeds()).unwrap();
        let standing = report.standing(&report.groups[1]).unwrap();
        let loss = standing.loss.unwrap();
        assert!((loss.mean + 1.0).abs() < 1e-9 && loss.is_clear());
        assert!((loss.half_width - 4.302_653 * 0.1 / 3_f64.sqrt()).abs() < 1e-6);
        for (found, expected) in standing.steps.iter().zip([1.0, 2.0 / 1.9, 2.0 / 2.1]) {
            assert!((found.unwrap() - expected).abs() < 1e-9, "{found:?}");
        }
        assert!((standing.seconds[0].unwrap() - 3.0).abs() < 1e-9);
        let text = report.markdown();
        let sentence = "**olora at rank 8**: its last loss is lower by 1.0000 ± 0.2484; its mean loss over the \
                        run is lower by 0.5000 ± 0.1242; all seeds stay at or below lora's last loss after 1.0 ± 0.1 \
                        of 2 steps.";
        assert!(text.contains(sentence), "{text}");
    }

    #[test]
    fn what_cannot_be_told_apart_is_said_to_be_so() {
        let mut cells = three_seeds();
        for (index, last) in [(1, 2.3), (3, 1.7), (4, 2.1), (0, 2.9)] {
            cells[index].validation[1].1 = last;
        }
        let report = report(&cells).unwrap();
        let text = report.markdown();
        assert!(
            text.contains("its last loss cannot be told from lora's (+0.0333 ±"),
            "{text}"
        );
        assert!(
            text.contains("1 of 3 seeds end at or below lora's last loss"),
            "{text}"
        );
    }

    #[test]
    fn runs_on_other_data_are_not_compared() {
        let mut cells = three_seeds();
        cells[3].fingerprint = "1".to_owned();
        let error = report(&cells).unwrap_err().to_string();
        assert!(
            error.contains("is of another recipe, of other data"),
            "{error}"
        );
    }

    #[test]
    fn runs_of_another_length_are_not_compared() {
        let mut cells = three_seeds();
        cells[3].recipe.training.max_steps = Some(400);
        let error = report(&cells).unwrap_err().to_string();
        assert!(
            error.contains("is of another recipe, of other data"),
            "{error}"
        );
    }

    #[test]
    fn a_seed_that_diverged_is_left_out_and_named() {
        let mut cells = three_seeds();
        // LoRA's second seed.
        cells[7].diverged = Some("the loss became NaN".to_owned());
        let report = report(&cells).unwrap();
        let standing = report.standing(&report.groups[1]).unwrap();
        assert_eq!(standing.steps.len(), 2);
        assert!(standing.steps.iter().all(|steps| steps.unwrap() > 0.9));
        let text = report.markdown();
        assert!(text.contains("lora at rank 8 diverged on seed 2"), "{text}");
        assert!(
            text.contains("| lora | 1e-2 | 2, 1 more diverged | 2.0000"),
            "{text}"
        );
        assert!(!text.contains("inf") && !text.contains("NaN"), "{text}");
    }

    #[test]
    fn a_method_that_diverged_at_every_rate_is_named() {
        let mut cells = three_seeds();
        for cell in &mut cells[..5] {
            cell.diverged = Some("the loss became NaN".to_owned());
        }
        let text = report(&cells).unwrap().markdown();
        assert!(
            text.contains("olora at rank 8 diverged at every rate"),
            "{text}"
        );
        assert!(text.contains("| olora | diverged at all |"), "{text}");
        assert!(!text.contains("NaN"), "{text}");
    }

    #[test]
    fn one_method_alone_has_pictures() {
        let report = report(&three_seeds()[5..]).unwrap();
        for svg in [pictures::losses(&report), pictures::steps(&report)] {
            let svg = svg.unwrap();
            assert!(svg.contains("lora") && !svg.contains("NaN"));
        }
    }
}
