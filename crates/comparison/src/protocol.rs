//! What the runs of a comparison have in common: `comparison.json`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use olora_adapter::Method;
use olora_files::{DirectoryLock, LockError, remove_leftovers, write_atomically};
use olora_runs::{
    Recipe, differences,
    recipe::{LoggingSection, Rate, SamplesSection},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    ComparisonError,
    trial::{CELLS, RUNS},
};

const FILE: &str = "comparison.json";

/// What must be equal for runs to be compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Protocol {
    /// The seed that rates are chosen on, or the first of them.
    pub(crate) tuning_seed: u64,
    /// On how many seeds from there on; they are not reported. 0 for the first
    /// alone, and reported.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) tuning_seeds: usize,
    /// Whether runs of several lengths are compared.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) by_length: bool,
    /// What names the samples and the base.
    pub(crate) fingerprint: String,
    /// With what runs differ in taken out: [`common`].
    pub(crate) recipe: Recipe,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(is: &bool) -> bool {
    !is
}

impl Protocol {
    /// The seeds that rates are chosen on.
    pub(crate) fn chooses(&self, seed: u64) -> bool {
        let n = self.tuning_seeds.max(1) as u64;
        seed.wrapping_sub(self.tuning_seed) < n
    }

    /// Whether a seed is among those that are reported.
    pub(crate) fn reports(&self, seed: u64) -> bool {
        self.tuning_seeds == 0 || !self.chooses(seed)
    }

    pub(crate) fn read(directory: &Path) -> Result<Option<Self>, ComparisonError> {
        let path = directory.join(FILE);
        path.exists().then(|| read_json(&path)).transpose()
    }

    /// Writes it, or finds it as it is there already.
    ///
    /// # Errors
    ///
    /// [`ComparisonError::Comparison`] if what is there is another one.
    pub(crate) fn establish(&self, directory: &Path) -> Result<(), ComparisonError> {
        let refuse = |reason: String| {
            Err(ComparisonError::Comparison {
                path: directory.to_owned(),
                reason,
            })
        };
        let Some(there) = Self::read(directory)? else {
            return write_json(&directory.join(FILE), self);
        };
        if there.tuning_seed != self.tuning_seed {
            return refuse(format!(
                "learning rates were chosen on seed {} in it, and are chosen on the first seed, which is {} now: \
                 set `seed = {0}`, and more seeds follow from there",
                there.tuning_seed, self.tuning_seed
            ));
        }
        if there.tuning_seeds != self.tuning_seeds {
            return refuse(format!(
                "{} of its seeds choose the learning rate, and {} are to now: compare in another directory \
                 (--output), or give --tuning-seeds as it was ({})",
                match there.tuning_seeds {
                    0 => "the first".to_owned(),
                    n => n.to_string(),
                },
                self.tuning_seeds,
                there.tuning_seeds
            ));
        }
        if there.by_length != self.by_length {
            let (was, now) = if there.by_length {
                ("of lengths that were given", "of the recipe's own")
            } else {
                (
                    "of the recipe's own length",
                    "of lengths that are given (--steps)",
                )
            };
            return refuse(format!(
                "its runs are {was}, and are {now} now: compare in another directory (--output)"
            ));
        }
        // The same files, however they are named.
        let (was, now) = (
            there.recipe.with_whole_paths(),
            self.recipe.with_whole_paths(),
        );
        if was != now {
            let differences = differences(&was.to_toml()?, &now.to_toml()?);
            return refuse(format!(
                "its runs are of another recipe: {}. Compare in another directory (--output)",
                differences.join("; ")
            ));
        }
        if there.fingerprint != self.fingerprint {
            return refuse(
                "the data or the base has changed since its first run: compare in another directory (--output)"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// A recipe without what the runs of a comparison differ in, its length too if
/// they have several. The learning rates
/// are replaced by the share that the last is of the highest.
pub(crate) fn common(recipe: &Recipe, by_length: bool) -> Result<Recipe, ComparisonError> {
    let mut recipe = recipe.clone();
    if by_length {
        (recipe.training.max_steps, recipe.training.epochs) = (None, None);
    }
    "comparison".clone_into(&mut recipe.name);
    // The recipe's own seed chooses what is held out, for all.
    let split_seed = recipe.data.split_seed.unwrap_or(recipe.seed);
    recipe.data.split_seed = recipe.data.validation_samples.map(|_| split_seed);
    recipe.seed = 0;
    let adapter = &mut recipe.adapter;
    (adapter.everything, adapter.rho) = (false, None);
    (adapter.gradient_batches, adapter.gradient_scale) = (None, None);
    let config = &mut adapter.config;
    config.method = Method::Lora;
    (config.rslora, config.dora) = (false, false);
    config.iterations = None;
    config.rank = 1;
    let training = &mut recipe.training;
    let share = training.min_learning_rate / training.learning_rate.or_usual();
    training.min_learning_rate = (share * 1e6).round() / 1e6;
    training.learning_rate = Rate::Value(1.0);
    training.loraplus_ratio = None;
    training.keep_checkpoints = 1;
    recipe.samples = SamplesSection::default();
    recipe.logging = LoggingSection::default();
    recipe.output.keep = Some(recipe.keep());
    recipe.output.directory = PathBuf::from(RUNS);
    as_read(&recipe)
}

/// As it is when it has been written and read: the last digit of a number may
/// be another.
pub(crate) fn as_read<T: Serialize + DeserializeOwned>(value: &T) -> Result<T, ComparisonError> {
    serde_json::to_vec(value)
        .and_then(|json| serde_json::from_slice(&json))
        .map_err(|error| ComparisonError::json(&error))
}

/// Keeps other processes from comparing in a directory, until it is dropped,
/// and removes what a killed one was writing there.
pub(crate) fn lock(directory: &Path) -> Result<DirectoryLock, ComparisonError> {
    let runs = directory.join(RUNS);
    let lock = DirectoryLock::take(&runs).map_err(|error| match error {
        LockError::Held(holder) => ComparisonError::Comparison {
            path: directory.to_owned(),
            reason: format!(
                "{holder} is comparing in it: wait for it, or give another directory (--output)"
            ),
        },
        LockError::Io(source) => ComparisonError::io("locking", &runs, source),
    })?;
    for directory in [directory, &directory.join(CELLS), &runs] {
        if directory.is_dir() {
            remove_leftovers(directory).map_err(|source| {
                ComparisonError::io("removing what is left in", directory, source)
            })?;
        }
    }
    Ok(lock)
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ComparisonError> {
    let json = serde_json::to_vec_pretty(value).map_err(|error| ComparisonError::json(&error))?;
    write_atomically(path, |file| file.write_all(&json))
        .map_err(|source| ComparisonError::io("writing", path, source))
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ComparisonError> {
    let bytes = fs::read(path).map_err(|source| ComparisonError::io("reading", path, source))?;
    serde_json::from_slice(&bytes).map_err(|error| ComparisonError::Comparison {
        path: path.to_owned(),
        reason: format!(
            "it is not a file of a comparison ({error}). Remove it to have it made again"
        ),
    })
}
