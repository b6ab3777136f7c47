//! What the files of a comparison's runs say, for people.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use olora_adapter::write_atomically;
use serde_json::{Value, json};

use super::{
    cell::Cell,
    pictures,
    statistics::{Interval, area, deviation, mean, steps_to},
    variant::Variant,
};
#[cfg(test)]
use crate::Recipe;
use crate::{TrainError, size};

/// The runs of a comparison, in the order of its tables.
#[derive(Clone, Debug)]
pub struct Report {
    directory: PathBuf,
    pub(crate) groups: Vec<Group>,
    /// What the others are measured against.
    pub(crate) reference: Variant,
    n_cells: usize,
    /// Between the losses before the first step, of any two runs.
    largest_start_difference: f64,
}

/// A method at a rank: the rates it was tried at, and its runs at the best.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) variant: Variant,
    pub(crate) rank: usize,
    pub(crate) rate: f64,
    /// Rates and losses of the first seed, by rate.
    tried: Vec<(f64, f64)>,
    /// At `rate`, by seed.
    pub(crate) cells: Vec<Cell>,
}

/// How a group compares with the reference at the same rank.
pub(crate) struct Standing {
    /// Of the last loss to the reference's, over the seeds that both have.
    pub(crate) loss: Option<Interval>,
    pub(crate) area: Option<Interval>,
    /// Steps to the reference's last loss, by seed; `None` where it was not
    /// reached.
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
    /// other data than the rest.
    pub fn read(directory: &Path) -> Result<Self, TrainError> {
        let cells = Cell::read_all(directory)?;
        let refuse = |reason: String| TrainError::Comparison {
            path: directory.to_owned(),
            reason,
        };
        if cells.is_empty() {
            return Err(refuse(
                "there are no finished runs (cells/*.json) to report on".to_owned(),
            ));
        }
        let finished: Vec<&Cell> = cells
            .iter()
            .filter(|cell| cell.diverged.is_none())
            .collect();
        if let Some([one, other]) = finished
            .windows(2)
            .find(|pair| pair[0].fingerprint != pair[1].fingerprint)
        {
            return Err(refuse(format!(
                "{} and {} are of other data or another base than each other, and are not compared",
                one.recipe.name, other.recipe.name
            )));
        }
        let starts: Vec<f64> = finished
            .iter()
            .filter_map(|cell| Some(cell.validation.first()?.1))
            .collect();
        let highest = starts.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lowest = starts.iter().copied().fold(f64::INFINITY, f64::min);
        let n_cells = cells.len();
        let groups = groups(cells)?;
        let variants: Vec<Variant> = groups.iter().map(|group| group.variant).collect();
        let reference = match (variants.contains(&Variant::LORA), variants.first()) {
            (true, _) => Variant::LORA,
            (false, Some(first)) => *first,
            (false, None) => {
                return Err(refuse(
                    "every run diverged: there is nothing to compare".to_owned(),
                ));
            }
        };
        Ok(Self {
            directory: directory.to_owned(),
            groups,
            reference,
            n_cells,
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
        let finite = |loss: f64| Some(loss).filter(|loss| loss.is_finite());
        let steps: Vec<Option<f64>> = pairs
            .iter()
            .map(|(cell, other)| steps_to(&cell.validation, other.last_loss()))
            .collect();
        let seconds = pairs.iter().zip(&steps).map(|((cell, _), steps)| {
            let each = cell.train_seconds / cell.steps.max(1) as f64;
            steps.map(|steps| cell.attach_seconds + steps * each)
        });
        Some(Standing {
            loss: differences(&|cell| finite(cell.last_loss())),
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
        writeln!(text, "\n![Validation loss by step](loss.svg)\n")?;
        writeln!(
            text,
            "![Steps to the last loss of {}](steps.svg)",
            self.reference
        )?;
        self.write_rates(text)
    }

    fn write_setting(&self, text: &mut String) -> std::fmt::Result {
        let Some(cell) = self.groups.iter().find_map(|group| group.cells.first()) else {
            return Ok(());
        };
        let recipe = &cell.recipe;
        let training = &recipe.training;
        let held_out = match (&recipe.data.validation, recipe.data.validation_samples) {
            (Some(path), _) => format!("`{}`", path.display()),
            (None, n) => format!("{} samples held out of it", n.unwrap_or(0)),
        };
        let versions: Vec<String> = cell
            .versions
            .iter()
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        let mut dates: Vec<&str> = self
            .groups
            .iter()
            .flat_map(|group| &group.cells)
            .filter_map(|cell| cell.finished.split('T').next())
            .collect();
        dates.sort_unstable();
        let dates = match (dates.first(), dates.last()) {
            (Some(first), Some(last)) if first != last => format!("{first} to {last}"),
            (first, _) => (*first.unwrap_or(&"")).to_owned(),
        };
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
            "| run | {} steps of {} sequences of at most {} tokens, {} tokens in all |",
            cell.steps,
            training.batch_size * training.accumulation,
            recipe.data.max_length,
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
            "| learning rate | {} steps of warm-up, then {:?} |",
            training.warmup_steps, training.schedule
        )?;
        writeln!(text, "| device | {} |", cell.device)?;
        writeln!(text, "| versions | {} |", versions.join(", "))?;
        writeln!(text, "| date | {dates} |\n")
    }

    fn write_caveats(&self, text: &mut String) -> std::fmt::Result {
        let reference = self.reference;
        writeln!(
            text,
            "Read with care:\n\n\
             - Differences are to {reference} at the same rank and seed, which has the same order of data; \
             their intervals are Student's, at 95 %. Of twenty such intervals, one leaves out the truth by chance.\n\
             - Each method has its own learning rate, the best of those tried on the first seed. It was chosen by \
             the same validation data that are reported, which flatters all methods alike."
        )?;
        writeln!(
            text,
            "- Before the first step, the losses of all runs lie within {:.1e} of each other.",
            self.largest_start_difference
        )?;
        for group in &self.groups {
            let Group {
                variant,
                rank,
                rate,
                tried,
                cells,
            } = group;
            if let Some(end) = edge(tried, *rate) {
                writeln!(
                    text,
                    "- {variant} at rank {rank} was best at the {end} rate tried, {rate:e}: a {} one may be better.",
                    if end == "lowest" { "lower" } else { "higher" }
                )?;
            }
            for cell in cells.iter().filter(|cell| cell.diverged.is_some()) {
                writeln!(
                    text,
                    "- {variant} at rank {rank} diverged on seed {}, at the rate that was best on the first.",
                    cell.seed
                )?;
            }
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
            writeln!(
                text,
                "| {} | {:e} | {} | {} | {} | {} | {} | {} of {n_steps} | {} | {:.2} s | {} | {} |",
                group.variant,
                group.rate,
                cells.len(),
                spread(&group.last_losses()),
                interval(standing.and_then(|standing| standing.loss)),
                spread(&areas),
                interval(standing.and_then(|standing| standing.area)),
                reached(standing.map_or(&[][..], |standing| &standing.steps)),
                reached(standing.map_or(&[][..], |standing| &standing.seconds)),
                mean(&starts),
                cells.first().map_or(0, |cell| cell.trained_params),
                peak.map_or_else(String::new, size),
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
        Ok(())
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
}

/// Runs by method and rank. A group all of whose rates diverged is left out.
fn groups(mut cells: Vec<Cell>) -> Result<Vec<Group>, TrainError> {
    let mut sorted = Vec::with_capacity(cells.len());
    for cell in cells.drain(..) {
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
            let (rank, variant, first) = group.first()?;
            let tried: Vec<(f64, f64)> = group
                .iter()
                .filter(|(_, _, cell)| cell.seed == first.seed)
                .map(|(_, _, cell)| (cell.learning_rate, cell.last_loss()))
                .collect();
            let rate = best_rate(&tried)?;
            let at_best = group.iter().filter(|entry| entry.2.learning_rate == rate);
            Some(Group {
                variant: *variant,
                rank: *rank,
                rate,
                tried,
                cells: at_best.map(|(_, _, cell)| cell.clone()).collect(),
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

/// At which end of the rates tried the best is, if at one. Beyond a rate that
/// diverged there is nothing to look for.
fn edge(tried: &[(f64, f64)], best: f64) -> Option<&'static str> {
    let lower = tried.iter().any(|(rate, _)| *rate < best);
    let higher = tried.iter().any(|(rate, _)| *rate > best);
    match (lower, higher) {
        (false, _) => Some("lowest"),
        (_, false) => Some("highest"),
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
fn reached(values: &[Option<f64>]) -> String {
    let there: Vec<f64> = values.iter().copied().flatten().collect();
    match (there.len(), values.len()) {
        (0, _) => "not reached".to_owned(),
        (n, all) if n == all => format!("{:.1}", mean(&there)),
        (n, all) => format!("{:.1} ({n} of {all} seeds)", mean(&there)),
    }
}

/// In words, what a row says.
fn sentence(group: &Group, standing: &Standing, reference: Variant) -> String {
    let Group { variant, rank, .. } = group;
    let told = |interval: Option<Interval>, what: &str| match interval {
        None => format!("its {what} has no interval, with fewer than two seeds"),
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
        (0, all) => format!("none of {all} seeds got down to {reference}'s last loss"),
        (n, all) if n < all => {
            format!("{n} of {all} seeds got down to {reference}'s last loss")
        }
        (n, _) => {
            let width =
                Interval::of(&there).map(|interval| format!(" ± {:.1}", interval.half_width));
            format!(
                "{} got down to {reference}'s last loss, after {:.1}{} of {n_steps} steps",
                if n == 1 { "its seed" } else { "all seeds" },
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

    use super::*;

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
            cell.write(&path).unwrap();
        }
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
                        run is lower by 0.5000 ± 0.1242; all seeds got down to lora's last loss, after 1.0 ± 0.1 \
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
            text.contains("1 of 3 seeds got down to lora's last loss"),
            "{text}"
        );
    }

    #[test]
    fn runs_on_other_data_are_not_compared() {
        let mut cells = three_seeds();
        cells[3].fingerprint = "1".to_owned();
        let error = report(&cells).unwrap_err().to_string();
        assert!(error.contains("other data or another base"), "{error}");
    }
}
