//! Several methods on one recipe, each at its own learning rate, over several
//! seeds.
//!
//! ```text
//! <directory>/
//!   comparison.json    what all runs have in common
//!   cells/<name>.json  one file for each finished run; the report is made of these
//!   runs/<name>/       the run directories
//!   scores/<name>.json what the base and the adapters score on tasks
//!   report.md          tables, in words what they say, and pictures
//!   loss.svg, .png, .csv       validation loss by step and by time, and what is drawn
//!   training.svg, .png, .csv   training loss by step
//!   steps.svg, .png, .csv      steps and seconds to LoRA's last loss
//!   rates.svg, .png, .csv      last loss by learning rate
//! ```
//!
//! A method that starts elsewhere wants another learning rate (`LoRA` Matters,
//! arXiv 2602.04998), so each is given the same grid, and the rate with the
//! lowest validation loss after the last step, on average over the seeds that
//! choose. If that is the grid's end, the grid grows; around it, it gets finer.
//! The other seeds then run at that rate, and they alone are what is reported:
//! a rate that was chosen by a run flatters that run. A method at another rank,
//! or over another number of steps, is tuned anew. Where one rate for all is
//! asked for too, as papers have it, every method is run at it as well. A seed
//! decides data order, random starts and dropout; which samples are held out
//! stays the same.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod error;
mod events;
mod pictures;
mod protocol;
mod report;
mod scores;
mod statistics;
mod trial;
mod variant;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::{tensor::Device, train::Interrupter};
use olora_data::Tokenizer;
use olora_devices::Details;
use olora_files::{DirectoryLock, clear_leftovers, remove_directory};
use olora_runs::{
    Data, Observer, Recipe, RunError, Start, TrainOptions, differences, fingerprint, forget_peak,
    has_checkpoint, is_finished,
    recipe::{Rate, SamplesSection},
    train,
};

pub use self::{
    error::ComparisonError,
    events::{ComparisonEvent, ComparisonObserver},
    report::Report,
    variant::Variant,
};
use self::{
    events::Muted,
    protocol::{Protocol, common, lock, read_json, write_json},
    trial::{CELLS, Cell, Key, RUNS, Trial, anywhere},
};

/// What to compare, and where to.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What all runs have in common. Its method, its rank, its learning rate,
    /// its seed, its name and its prompts are replaced.
    pub recipe: Recipe,
    /// The methods.
    pub variants: Vec<Variant>,
    /// The ranks; alpha is the recipe's at each.
    pub ranks: Vec<usize>,
    /// The learning rates that each method is tried at.
    pub rates: Vec<f64>,
    /// By how many rates the grid may grow at the end where the best one is.
    pub widen: usize,
    /// Rates are tried between the best one and its neighbours until these are
    /// within this factor of it, and at a third and three times the best, which
    /// shows how much the rate matters; no such rates if not given, or if there is
    /// one rate alone.
    pub refine: Option<f64>,
    /// Rates that every method is run at, whatever its best is.
    pub one_rates: Vec<f64>,
    /// Numbers of steps, in the place of the recipe's own if there are any.
    pub lengths: Vec<usize>,
    /// The seeds: first those that choose the rate, then those that are reported.
    pub seeds: Vec<u64>,
    /// How many of the seeds choose the rate. With 0 it is the first, which is
    /// reported too, as in comparisons made before 2026-11-29.
    pub tuning_seeds: usize,
    /// The directory of the comparison.
    pub directory: PathBuf,
}

/// What the caller decides about a comparison beyond what is compared.
#[derive(Default)]
pub struct CompareOptions {
    /// Stops it from another thread.
    pub interrupter: Interrupter,
    /// The source commit of this build.
    pub commit: Option<String>,
    /// What the caller knows of the device.
    pub device: Details,
    /// As in [`TrainOptions::reference`]; asked before the first run.
    pub reference: Option<Device>,
}

impl Comparison {
    /// Makes the runs that are not finished yet, one after another. Returns
    /// whether all are; not all are if it was interrupted.
    ///
    /// # Errors
    ///
    /// What cannot be compared is refused before the first run. A run that
    /// fails ends the comparison, but for one whose loss is no longer a number:
    /// that is a result. What is finished stays, and is not run again.
    pub fn run(
        &self,
        device: &Device,
        options: &CompareOptions,
        observer: &Arc<dyn ComparisonObserver>,
    ) -> Result<bool, ComparisonError> {
        self.validate()?;
        let _lock = self.begin(observer)?;
        let mut running = Running {
            comparison: self,
            device,
            options,
            observer,
            reference: options.reference.clone(),
            done: 0,
            expected: self.n_expected(),
        };
        running.all()
    }

    /// The runs that it will take if no grid grows.
    fn n_expected(&self) -> usize {
        let (tuning, fresh) = self.split_seeds();
        let at_one_rate = self.one_rates.len().saturating_mul(fresh.len());
        let each = self.rates.len() * tuning.len() + fresh.len() + at_one_rate;
        self.variants
            .len()
            .saturating_mul(self.ranks.len())
            .saturating_mul(self.lengths.len().max(1))
            .saturating_mul(each)
    }

    /// The seeds that choose the rate, and the others.
    fn split_seeds(&self) -> (&[u64], &[u64]) {
        self.seeds
            .split_at(self.tuning_seeds.max(1).min(self.seeds.len()))
    }

    /// The lengths, of which the recipe's own is `None`.
    fn lengths(&self) -> Vec<Option<usize>> {
        match self.lengths.as_slice() {
            [] => vec![None],
            lengths => lengths.iter().copied().map(Some).collect(),
        }
    }

    /// Makes the directory this comparison's, unless it is another's.
    fn begin(
        &self,
        observer: &Arc<dyn ComparisonObserver>,
    ) -> Result<DirectoryLock, ComparisonError> {
        // What cannot be read leaves no directory behind.
        let tokenizer = Tokenizer::from_path(&self.recipe.model.path)?;
        let muted = Muted(observer.clone());
        let by_length = !self.lengths.is_empty();
        let recipe = common(&self.recipe, by_length)?;
        let data = Data::load(&recipe, &tokenizer, &muted)?;
        let protocol = Protocol {
            tuning_seed: self.seeds[0],
            tuning_seeds: self.tuning_seeds,
            by_length,
            fingerprint: format!("{:016x}", fingerprint(&data, &recipe)?),
            recipe,
        };
        let lock = lock(&self.directory)?;
        protocol.establish(&self.directory)?;
        Ok(lock)
    }

    /// Everything that can be refused before a run.
    fn validate(&self) -> Result<(), ComparisonError> {
        let refuse = |reason: &str| Err(ComparisonError::Refused(reason.to_owned()));
        for (what, n) in [
            ("method", self.variants.len()),
            ("rank", self.ranks.len()),
            ("learning rate", self.rates.len()),
            ("seed", self.seeds.len()),
        ] {
            if n == 0 {
                return refuse(&format!("there is no {what} to compare: give one at least"));
            }
        }
        if self.tuning_seeds > self.seeds.len() {
            return refuse("more seeds are to choose the rate than there are");
        }
        let (tuning, fresh) = self.split_seeds();
        if tuning
            .windows(2)
            .any(|pair| pair[0].wrapping_add(1) != pair[1])
        {
            return refuse("the seeds that choose the rate have to follow each other");
        }
        if fresh.is_empty() && !self.one_rates.is_empty() {
            return refuse(
                "there is no seed to run all methods at one rate on: give more seeds, or no rate for all",
            );
        }
        if let Some(factor) = self.refine.filter(|factor| !(1.05..=1e3).contains(factor)) {
            return refuse(&format!(
                "rates are to be refined to a factor of {factor}: give one between 1.05 and 1000"
            ));
        }
        if self.recipe.adapter.from.is_some() {
            return refuse(
                "`adapter.from` has no use in a comparison of how adapters start: remove it",
            );
        }
        if self.recipe.data.validation.is_none() && self.recipe.data.validation_samples.is_none() {
            return refuse(
                "methods are compared by their validation loss: set `data.validation` or \
                 `data.validation_samples`",
            );
        }
        if self.recipe.training.evaluate_every == 0 {
            return refuse(
                "curves need evaluations on the way: set `training.evaluate_every`, such that there are \
                 five or more",
            );
        }
        for (place, variant) in self.variants.iter().enumerate() {
            let same = |other: &&Variant| other.as_of(&self.recipe) == variant.as_of(&self.recipe);
            if let Some(other) = self.variants[..place].iter().find(same) {
                return refuse(&format!(
                    "`{variant}` is the same as `{other}` on this recipe: leave one"
                ));
            }
        }
        if self.recipe.training.patience.is_some() {
            return refuse(
                "runs of one length are compared, and `training.patience` would end some before it: remove it",
            );
        }
        for cell in self.cells() {
            for &rate in self.rates.iter().chain(&self.one_rates) {
                let key = cell.at(rate, self.seeds[0]);
                let text = self.recipe_of(&key).to_toml()?;
                Recipe::parse(&text, &key.name(), &[])?;
            }
        }
        Ok(())
    }

    /// What is tuned by itself: each method at each rank and length.
    fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for steps in self.lengths() {
            for &rank in &self.ranks {
                for &variant in &self.variants {
                    cells.push(Cell {
                        variant,
                        rank,
                        steps,
                    });
                }
            }
        }
        cells
    }

    /// The recipe of one run.
    fn recipe_of(&self, key: &Key) -> Recipe {
        let mut recipe = key.variant.applied_to(&self.recipe);
        let training = &self.recipe.training;
        let ratio = training.min_learning_rate / training.learning_rate.or_usual();
        recipe.name = key.name();
        recipe.seed = key.seed;
        recipe.adapter.config.rank = key.rank;
        if key.steps.is_some() {
            (recipe.training.max_steps, recipe.training.epochs) = (key.steps, None);
        }
        recipe.training.learning_rate = Rate::Value(key.rate);
        recipe.training.min_learning_rate = ratio * key.rate;
        recipe.training.keep_checkpoints = 1;
        // The recipe's own seed chooses what is held out, for all.
        let split_seed = recipe.data.split_seed.unwrap_or(self.recipe.seed);
        recipe.data.split_seed = recipe.data.validation_samples.map(|_| split_seed);
        recipe.samples = SamplesSection::default();
        recipe.output.keep = Some(recipe.keep());
        recipe.output.directory = self.directory.join(RUNS);
        recipe
    }
}

/// A comparison under way.
struct Running<'a> {
    comparison: &'a Comparison,
    device: &'a Device,
    options: &'a CompareOptions,
    observer: &'a Arc<dyn ComparisonObserver>,
    /// The reference device, until the first run has asked it.
    reference: Option<Device>,
    done: usize,
    expected: usize,
}

impl Running<'_> {
    fn all(&mut self) -> Result<bool, ComparisonError> {
        let comparison = self.comparison;
        let (tuning, fresh) = comparison.split_seeds();
        let mut tuned = Vec::new();
        for cell in comparison.cells() {
            let Some(losses) = self.tune(cell, tuning)? else {
                return Ok(false);
            };
            match report::best_rate(&losses) {
                Some(rate) => tuned.push((cell, rate)),
                // It has no other seeds, and the report says so.
                None => self.expected -= fresh.len(),
            }
        }
        if tuned.is_empty() {
            return Err(ComparisonError::Comparison {
                path: comparison.directory.clone(),
                reason: "every method diverged at every learning rate: give lower ones".to_owned(),
            });
        }
        for &seed in fresh {
            for &(cell, rate) in &tuned {
                if self.trial(&cell.at(rate, seed))?.is_none() {
                    return Ok(false);
                }
            }
            for &rate in &comparison.one_rates {
                for cell in comparison.cells() {
                    if self.trial(&cell.at(rate, seed))?.is_none() {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// The losses of a method at a rank by learning rate, means over the seeds
    /// that choose: those of the grid, those that are there from before, and
    /// those by which the grid has to grow. `None` if interrupted.
    fn tune(
        &mut self,
        cell: Cell,
        seeds: &[u64],
    ) -> Result<Option<Vec<(f64, f64)>>, ComparisonError> {
        let comparison = self.comparison;
        let by_length = !comparison.lengths.is_empty();
        // Those that are there from before come last: so that a comparison that goes on tries the
        // same rates, in the same order, as one that was never interrupted.
        let mut earlier: Vec<f64> = Vec::new();
        for trial in Trial::read_all(&comparison.directory)? {
            if trial.cell(by_length)? == cell && seeds.contains(&trial.seed) {
                earlier.push(trial.learning_rate);
            }
        }
        let mut rates = comparison.rates.clone();
        let mut added = 0;
        let mut losses: Vec<(f64, f64)> = Vec::new();
        loop {
            rates.sort_by(f64::total_cmp);
            rates.dedup();
            for &rate in &rates {
                if losses.iter().any(|(known, _)| *known == rate) {
                    continue;
                }
                let mut sum = 0.0;
                for &seed in seeds {
                    let Some(trial) = self.trial(&cell.at(rate, seed))? else {
                        return Ok(None);
                    };
                    sum += trial.last_loss();
                }
                losses.push((rate, sum / seeds.len() as f64));
            }
            // Of equal losses the lowest rate's, as in the report.
            losses.sort_by(|one, other| one.0.total_cmp(&other.0));
            let best = report::best_rate(&losses);
            let wider = best
                .and_then(|best| beyond(&rates, best))
                .filter(|_| added < comparison.widen);
            added += usize::from(wider.is_some());
            // A grid of one rate is not to be tuned.
            let refine = comparison.refine.filter(|_| comparison.rates.len() > 1);
            let finer = || between(&rates, best?, refine?);
            if let Some(next) = wider.or_else(finer) {
                self.expected += seeds.len();
                rates.push(next);
                continue;
            }
            earlier.retain(|rate| !rates.contains(rate));
            if earlier.is_empty() {
                return Ok(Some(losses));
            }
            rates.append(&mut earlier);
        }
    }

    /// A run, made now or found; `None` if it was interrupted.
    fn trial(&mut self, key: &Key) -> Result<Option<Trial>, ComparisonError> {
        let recipe = self.comparison.recipe_of(key);
        let path = self
            .comparison
            .directory
            .join(CELLS)
            .join(key.name() + ".json");
        self.done += 1;
        let run = recipe.run_directory();
        if path.exists() {
            let trial: Trial = read_json(&path)?;
            let recipe = anywhere(&recipe)?;
            if trial.recipe != recipe {
                return Err(changed(&path, &trial.recipe, &recipe)?);
            }
            remove_checkpoints(&run)?;
            return Ok(Some(trial));
        }
        if self.options.interrupter.should_stop() {
            return Ok(None);
        }
        self.observer.on(&ComparisonEvent::Trial {
            number: self.done,
            of: self.expected.max(self.done),
            name: &key.name(),
        });
        let Some(trial) = self.make(key, &recipe)? else {
            return Ok(None);
        };
        write_json(&path, &trial)?;
        remove_checkpoints(&run)?;
        self.observer.on(&ComparisonEvent::TrialFinished {
            name: &key.name(),
            loss: trial.last_loss(),
            seconds: trial.wall_seconds,
        });
        Ok(Some(trial))
    }

    /// Trains.
    fn make(&mut self, key: &Key, recipe: &Recipe) -> Result<Option<Trial>, ComparisonError> {
        let run = recipe.run_directory();
        // A run without a checkpoint, or one that was finished but for its trial, starts afresh.
        let start = if has_checkpoint(&run)? && !is_finished(&run) {
            Start::Auto
        } else {
            Start::New
        };
        if start == Start::New && run.exists() {
            remove_directory(&run)
                .map_err(|source| ComparisonError::io("removing", &run, source))?;
        }
        let own_peak = forget_peak();
        let options = TrainOptions {
            start,
            interrupter: self.options.interrupter.clone(),
            renderer: None,
            commit: self.options.commit.clone(),
            device: self.options.device.clone(),
            reference: self.reference.take(),
            ..TrainOptions::default()
        };
        let muted: Arc<dyn Observer> = Arc::new(Muted(self.observer.clone()));
        match train(recipe, self.device, options, &muted) {
            Ok(summary) if !summary.finished => Ok(None),
            Ok(summary) => Trial::of(key, recipe, &summary, own_peak).map(Some),
            Err(error @ (RunError::NotFinite { .. } | RunError::Diverged { .. })) => {
                Trial::diverged(key, recipe, &error).map(Some)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The rate beyond the grid's end, if the best one is there. Grids such as 1, 3,
/// 10 go on as 30: the step is that between the end's neighbours. A grid of one
/// rate has no step.
fn beyond(rates: &[f64], best: f64) -> Option<f64> {
    let next = match *rates {
        [] | [_] => return None,
        [first, second] if best == first => first * first / second,
        [first, second, third, ..] if best == first => first * second / third,
        [first, last] if best == last => last * last / first,
        [.., third, second, last] if best == last => last * second / third,
        _ => return None,
    };
    // A round number is as good, unless it is back in the grid.
    let within = |rate: &f64| rates.first() <= Some(rate) && Some(rate) <= rates.last();
    let rounded = |digits: usize| format!("{next:.digits$e}").parse::<f64>().ok();
    let mut rounded = [0, 1, 2].into_iter().filter_map(rounded);
    rounded.find(|rate| !within(rate))
}

/// The next rate that makes a grid finer around the best one, until its neighbours are within
/// `factor` of it, then what is a third or three times it, if nothing as low or as high has been
/// tried.
fn between(rates: &[f64], best: f64, factor: f64) -> Option<f64> {
    /// How much of a factor rounding may take.
    const SLACK: f64 = 1.1;
    /// How far to look for how much the rate matters.
    const FAR: f64 = 3.0;
    let rounded = |rate: f64| format!("{rate:.1e}").parse::<f64>().ok();
    let lower = rates.iter().copied().filter(|rate| *rate < best);
    let higher = rates.iter().copied().filter(|rate| *rate > best);
    let neighbours = [
        lower
            .reduce(f64::max)
            .filter(|rate| best / rate > factor * SLACK),
        higher
            .reduce(f64::min)
            .filter(|rate| rate / best > factor * SLACK),
    ];
    let mut middles = neighbours
        .into_iter()
        .flatten()
        .filter_map(|rate| rounded((rate * best).sqrt()))
        .filter(|rate| !rates.contains(rate));
    if let Some(middle) = middles.next() {
        return Some(middle);
    }
    // Where the best is an end, what lies beyond is a matter of how far the grid may grow.
    let (lowest, highest) = (*rates.first()?, *rates.last()?);
    if lowest < best && lowest > best / FAR * SLACK {
        return rounded(best / FAR);
    }
    if highest > best && highest < best * FAR / SLACK {
        return rounded(best * FAR);
    }
    None
}

/// Why a finished run cannot be used for this comparison.
fn changed(path: &Path, was: &Recipe, now: &Recipe) -> Result<ComparisonError, ComparisonError> {
    let differences = differences(&was.to_toml()?, &now.to_toml()?);
    Ok(ComparisonError::Comparison {
        path: path.to_owned(),
        reason: format!(
            "it is of another recipe, with {}. Compare in another directory (--output), or remove it",
            differences.join("; ")
        ),
    })
}

/// What remains of a run is its adapter and its curves: with the optimiser's
/// state, a comparison would fill a disk. A process may have been killed before
/// it had removed all of that.
fn remove_checkpoints(run: &Path) -> Result<(), ComparisonError> {
    let checkpoints = run.join("checkpoints");
    clear_leftovers(&checkpoints);
    if checkpoints.exists() {
        remove_directory(&checkpoints)
            .map_err(|source| ComparisonError::io("removing", &checkpoints, source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{between, beyond};

    #[test]
    fn a_grid_gets_finer_around_the_best() {
        let root = 3_f64.sqrt();
        for (rates, best, next) in [
            (&[1e-4, 3e-4, 1e-3][..], 3e-4, Some(1.7e-4)),
            (&[1e-4, 1.7e-4, 3e-4, 1e-3], 3e-4, Some(5.5e-4)),
            (&[1e-4, 1.7e-4, 3e-4, 5.5e-4, 1e-3], 3e-4, None),
            // A third of the best is not there yet, or three times it.
            (&[1e-4, 1.7e-4, 3e-4, 5.5e-4, 1e-3], 1.7e-4, Some(5.7e-5)),
            (&[1e-4, 1.7e-4, 3e-4, 5.5e-4, 1e-3], 5.5e-4, Some(1.6e-3)),
        ] {
            assert_eq!(between(rates, best, root), next, "{rates:?} {best}");
        }
    }

    #[test]
    fn a_grid_goes_on_as_it_went() {
        for (rates, best, next) in [
            (&[3e-4, 1e-3, 3e-3][..], 3e-4, Some(1e-4)),
            (&[3e-4, 1e-3, 3e-3], 3e-3, Some(1e-2)),
            (&[3e-4, 1e-3, 3e-3], 1e-3, None),
            (&[1e-4, 2e-4, 4e-4], 4e-4, Some(8e-4)),
            (&[1e-4, 1e-3], 1e-4, Some(1e-5)),
            (&[1e-4, 1e-3], 1e-3, Some(1e-2)),
            (&[3e-4, 1e-3], 1e-3, Some(3e-3)),
            (&[1e-4], 1e-4, None),
        ] {
            assert_eq!(beyond(rates, best), next, "{rates:?}");
        }
    }
}
