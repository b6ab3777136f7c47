//! Several methods on one recipe, each at its own learning rate, over several
//! seeds.
//!
//! ```text
//! <directory>/
//!   cells/<name>.json  one file for each finished run; the report is made of these
//!   runs/<name>/       the run directories
//!   report.md          tables, in words what they say, and pictures
//!   loss.svg, .png     validation loss by step
//!   steps.svg, .png    steps to LoRA's last loss
//! ```
//!
//! A method that starts elsewhere wants another learning rate (`LoRA` Matters,
//! arXiv 2602.04998), so none is run at another's: each is given the same grid,
//! and the rate with the lowest validation loss after the last step of the
//! first seed. If that is the grid's end, the grid grows. The other seeds then
//! run at that rate alone. A seed decides data order, random starts and dropout;
//! which samples are held out stays the same.

mod cell;
mod pictures;
mod report;
mod statistics;
mod variant;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::{tensor::Device, train::Interrupter};

use self::cell::{CELLS, Cell, Key};
pub use self::{report::Report, variant::Variant};
use crate::{
    DeviceTraits, Event, Observer, Recipe, TrainError, TrainOptions, checkpoint, memory,
    run_directory::differences, train,
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
    /// The seeds, of which the first chooses the rate.
    pub seeds: Vec<u64>,
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
    pub device: DeviceTraits,
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
        options: CompareOptions,
        observer: &Arc<dyn Observer>,
    ) -> Result<bool, TrainError> {
        self.validate()?;
        let mut running = Running {
            comparison: self,
            device,
            options,
            observer,
            done: 0,
            expected: self.variants.len()
                * self.ranks.len()
                * (self.rates.len() + self.seeds.len() - 1),
        };
        running.all()
    }

    /// Everything that can be refused before a run.
    fn validate(&self) -> Result<(), TrainError> {
        let refuse = |reason: &str| {
            Err(TrainError::Comparison {
                path: self.directory.clone(),
                reason: reason.to_owned(),
            })
        };
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
        for variant in &self.variants {
            for &rank in &self.ranks {
                for &rate in &self.rates {
                    let key = Key {
                        variant: *variant,
                        rank,
                        rate,
                        seed: self.seeds[0],
                    };
                    let text = self.recipe_of(&key).to_toml()?;
                    Recipe::parse(&text, &key.name(), &[])?;
                }
            }
        }
        Ok(())
    }

    /// The recipe of one run.
    fn recipe_of(&self, key: &Key) -> Recipe {
        let mut recipe = key.variant.applied_to(&self.recipe);
        let ratio = self.recipe.training.min_learning_rate / self.recipe.training.learning_rate;
        recipe.name = key.name();
        recipe.seed = key.seed;
        recipe.adapter.rank = key.rank;
        recipe.training.learning_rate = key.rate;
        recipe.training.min_learning_rate = ratio * key.rate;
        recipe.training.keep_checkpoints = 1;
        // The recipe's own seed chooses what is held out, for all.
        let split_seed = recipe.data.split_seed.unwrap_or(self.recipe.seed);
        recipe.data.split_seed = recipe.data.validation_samples.map(|_| split_seed);
        recipe.samples = crate::recipe::SamplesSection::default();
        recipe.output.directory = self.directory.join("runs");
        recipe
    }
}

/// A comparison under way.
struct Running<'a> {
    comparison: &'a Comparison,
    device: &'a Device,
    options: CompareOptions,
    observer: &'a Arc<dyn Observer>,
    done: usize,
    expected: usize,
}

impl Running<'_> {
    fn all(&mut self) -> Result<bool, TrainError> {
        let comparison = self.comparison;
        let mut tuned = Vec::new();
        for &rank in &comparison.ranks {
            for &variant in &comparison.variants {
                let Some(rate) = self.tune(variant, rank)? else {
                    return Ok(false);
                };
                tuned.push((variant, rank, rate));
            }
        }
        for &seed in &comparison.seeds[1..] {
            for &(variant, rank, rate) in &tuned {
                let key = Key {
                    variant,
                    rank,
                    rate,
                    seed,
                };
                if self.cell(&key)?.is_none() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The learning rate for a method at a rank; `None` if interrupted.
    fn tune(&mut self, variant: Variant, rank: usize) -> Result<Option<f64>, TrainError> {
        let mut rates = self.comparison.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        let mut losses = Vec::new();
        let seed = self.comparison.seeds[0];
        let mut added = 0;
        loop {
            // Rates are only ever added at an end, so those that have a loss keep their order.
            for &rate in &rates {
                if losses.iter().any(|(known, _)| *known == rate) {
                    continue;
                }
                let key = Key {
                    variant,
                    rank,
                    rate,
                    seed,
                };
                let Some(cell) = self.cell(&key)? else {
                    return Ok(None);
                };
                losses.push((rate, cell.last_loss()));
            }
            let best = report::best_rate(&losses);
            let next = best.and_then(|best| beyond(&rates, best));
            match (best, next) {
                (None, _) => {
                    return Err(TrainError::Comparison {
                        path: self.comparison.directory.clone(),
                        reason: format!(
                            "{variant} at rank {rank} diverged at every learning rate: give lower ones"
                        ),
                    });
                }
                (Some(_), Some(rate)) if added < self.comparison.widen => {
                    added += 1;
                    self.expected += 1;
                    rates.push(rate);
                    rates.sort_by(f64::total_cmp);
                }
                (best, _) => return Ok(best),
            }
        }
    }

    /// A run, made now or found; `None` if it was interrupted.
    fn cell(&mut self, key: &Key) -> Result<Option<Cell>, TrainError> {
        let recipe = self.comparison.recipe_of(key);
        let path = self
            .comparison
            .directory
            .join(CELLS)
            .join(key.name() + ".json");
        self.done += 1;
        if path.exists() {
            let cell = Cell::read(&path)?;
            if cell.recipe != recipe {
                return Err(changed(&path, &cell.recipe, &recipe)?);
            }
            return Ok(Some(cell));
        }
        if self.options.interrupter.should_stop() {
            return Ok(None);
        }
        self.observer.on(&Event::Cell {
            number: self.done,
            of: self.expected.max(self.done),
            name: key.name(),
        });
        let Some(cell) = self.make(key, recipe)? else {
            return Ok(None);
        };
        let known = self.fingerprint()?;
        if known.is_some_and(|known| cell.diverged.is_none() && known != cell.fingerprint) {
            return Err(TrainError::Comparison {
                path: self.comparison.directory.clone(),
                reason: "the data or the base has changed since its first run: \
                         compare in another directory (--output)"
                    .to_owned(),
            });
        }
        cell.write(&path)?;
        // What remains of a run is its adapter and its curves: with the optimiser's state, a
        // comparison would fill a disk.
        let checkpoints = cell.recipe.run_directory().join("checkpoints");
        if checkpoints.exists() {
            fs::remove_dir_all(&checkpoints)
                .map_err(|source| TrainError::io("removing", &checkpoints, source))?;
        }
        self.observer.on(&Event::CellFinished {
            name: key.name(),
            loss: cell.last_loss(),
            seconds: cell.wall_seconds,
        });
        Ok(Some(cell))
    }

    /// Trains.
    fn make(&mut self, key: &Key, recipe: Recipe) -> Result<Option<Cell>, TrainError> {
        let run = recipe.run_directory();
        let begun = checkpoint::list(&run.join("checkpoints"))?;
        // A run without a checkpoint, or one that was finished but for its cell, starts afresh.
        let resume = !begun.is_empty() && !run.join("summary.json").exists();
        if !resume && run.exists() {
            fs::remove_dir_all(&run).map_err(|source| TrainError::io("removing", &run, source))?;
        }
        memory::forget_peak();
        let options = TrainOptions {
            resume,
            interrupter: self.options.interrupter.clone(),
            renderer: None,
            commit: self.options.commit.clone(),
            device: self.options.device.clone(),
            reference: self.options.reference.take(),
        };
        let muted: Arc<dyn Observer> = Arc::new(Muted(self.observer.clone()));
        match train(&recipe, self.device, options, &muted) {
            Ok(summary) if !summary.finished => Ok(None),
            Ok(summary) => Cell::of(key, recipe, &summary).map(Some),
            Err(error @ (TrainError::NotFinite { .. } | TrainError::Diverged { .. })) => {
                Cell::diverged(key, recipe, &error).map(Some)
            }
            Err(error) => Err(error),
        }
    }

    /// What names the data and the base of the runs that are there.
    fn fingerprint(&self) -> Result<Option<String>, TrainError> {
        let cells = Cell::read_all(&self.comparison.directory)?.into_iter();
        let mut names = cells.filter(|cell| cell.diverged.is_none());
        Ok(names.next().map(|cell| cell.fingerprint))
    }
}

/// Lets through what is of interest of one run among many.
struct Muted(Arc<dyn Observer>);

impl Observer for Muted {
    fn on(&self, event: &Event) {
        let passes = matches!(
            event,
            Event::Note(_)
                | Event::DeviceChecked { .. }
                | Event::Resumed(_)
                | Event::Evaluated { .. }
        );
        if passes {
            self.0.on(event);
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
    let round = format!("{next:.0e}").parse().ok();
    let within = |rate: f64| rates.first() <= Some(&rate) && Some(&rate) <= rates.last();
    round.filter(|rate| !within(*rate)).or(Some(next))
}

/// Why a finished run cannot be used for this comparison.
fn changed(path: &Path, was: &Recipe, now: &Recipe) -> Result<TrainError, TrainError> {
    let differences = differences(&was.to_toml()?, &now.to_toml()?);
    Ok(TrainError::Comparison {
        path: path.to_owned(),
        reason: format!(
            "it is of another recipe, with {}. Compare in another directory (--output), or remove it",
            differences.join("; ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::beyond;

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
