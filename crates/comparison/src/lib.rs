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
    has_checkpoint, is_finished, recipe::SamplesSection, train,
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
    trial::{CELLS, Key, RUNS, Trial, anywhere},
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
            expected: self
                .variants
                .len()
                .saturating_mul(self.ranks.len())
                .saturating_mul(self.rates.len() + self.seeds.len() - 1),
        };
        running.all()
    }

    /// Makes the directory this comparison's, unless it is another's.
    fn begin(
        &self,
        observer: &Arc<dyn ComparisonObserver>,
    ) -> Result<DirectoryLock, ComparisonError> {
        // What cannot be read leaves no directory behind.
        let tokenizer = Tokenizer::from_path(&self.recipe.model.path)?;
        let muted = Muted(observer.clone());
        let recipe = common(&self.recipe)?;
        let data = Data::load(&recipe, &tokenizer, &muted)?;
        let protocol = Protocol {
            tuning_seed: self.seeds[0],
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
        recipe.adapter.config.rank = key.rank;
        recipe.training.learning_rate = key.rate;
        recipe.training.min_learning_rate = ratio * key.rate;
        recipe.training.keep_checkpoints = 1;
        // The recipe's own seed chooses what is held out, for all.
        let split_seed = recipe.data.split_seed.unwrap_or(self.recipe.seed);
        recipe.data.split_seed = recipe.data.validation_samples.map(|_| split_seed);
        recipe.samples = SamplesSection::default();
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
        let mut tuned = Vec::new();
        for &rank in &comparison.ranks {
            for &variant in &comparison.variants {
                let Some(losses) = self.tune(variant, rank)? else {
                    return Ok(false);
                };
                match report::best_rate(&losses) {
                    Some(rate) => tuned.push((variant, rank, rate)),
                    // It has no other seeds, and the report says so.
                    None => self.expected -= comparison.seeds.len() - 1,
                }
            }
        }
        if tuned.is_empty() {
            return Err(ComparisonError::Comparison {
                path: comparison.directory.clone(),
                reason: "every method diverged at every learning rate: give lower ones".to_owned(),
            });
        }
        for &seed in &comparison.seeds[1..] {
            for &(variant, rank, rate) in &tuned {
                let key = Key {
                    variant,
                    rank,
                    rate,
                    seed,
                };
                if self.trial(&key)?.is_none() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The losses of a method at a rank by learning rate: those of the grid,
    /// those that are there from before, and those by which the grid has to
    /// grow. `None` if interrupted.
    fn tune(
        &mut self,
        variant: Variant,
        rank: usize,
    ) -> Result<Option<Vec<(f64, f64)>>, ComparisonError> {
        let comparison = self.comparison;
        let seed = comparison.seeds[0];
        let mut rates = comparison.rates.clone();
        rates.sort_by(f64::total_cmp);
        let (lowest, highest) = (rates[0], rates[rates.len() - 1]);
        for trial in Trial::read_all(&comparison.directory)? {
            if (trial.variant()?, trial.rank, trial.seed) == (variant, rank, seed) {
                rates.push(trial.learning_rate);
            }
        }
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        let within = |rate: &&f64| (lowest..=highest).contains(*rate);
        let mut added = rates.len() - rates.iter().filter(within).count();
        let mut losses: Vec<(f64, f64)> = Vec::new();
        loop {
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
                let Some(trial) = self.trial(&key)? else {
                    return Ok(None);
                };
                losses.push((rate, trial.last_loss()));
            }
            let next = report::best_rate(&losses).and_then(|best| beyond(&rates, best));
            match next {
                Some(rate) if added < comparison.widen => {
                    added += 1;
                    self.expected += 1;
                    rates.push(rate);
                    rates.sort_by(f64::total_cmp);
                }
                _ => return Ok(Some(losses)),
            }
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
