//! One run of a comparison, and the file that is left of it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use olora_runs::{Recipe, RunError, Summary, recipe::LoggingSection};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    ComparisonError,
    protocol::{as_read, read_json},
    statistics::{Point, median},
    variant::Variant,
};

/// Where the files of finished runs are, below a comparison's directory.
pub(crate) const CELLS: &str = "cells";
/// Where the run directories are.
pub(crate) const RUNS: &str = "runs";

/// What has a learning rate of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cell {
    pub(crate) variant: Variant,
    pub(crate) rank: usize,
    /// The number of steps, where lengths are compared.
    pub(crate) steps: Option<usize>,
}

impl Cell {
    pub(crate) fn at(self, rate: f64, seed: u64) -> Key {
        let Self {
            variant,
            rank,
            steps,
        } = self;
        Key {
            variant,
            rank,
            steps,
            rate,
            seed,
        }
    }
}

/// Which run it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) variant: Variant,
    pub(crate) rank: usize,
    pub(crate) steps: Option<usize>,
    pub(crate) rate: f64,
    pub(crate) seed: u64,
}

impl Key {
    /// The name of the run and of its file.
    pub(crate) fn name(&self) -> String {
        let Self {
            variant,
            rank,
            steps,
            rate,
            seed,
        } = self;
        let steps = steps.map(|steps| format!("-n{steps}")).unwrap_or_default();
        format!("{variant}-r{rank}{steps}-lr{rate:e}-seed{seed}")
    }
}

/// A finished run, as it is kept: `cells/<name>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trial {
    /// The method with its modifiers.
    pub(crate) variant: String,
    pub(crate) rank: usize,
    pub(crate) learning_rate: f64,
    pub(crate) seed: u64,
    /// What names the samples and the base, so that other ones are noticed.
    pub(crate) fingerprint: String,
    /// Why training stopped before its end, if it did: a loss that was no
    /// number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) diverged: Option<String>,
    /// The loss over the validation data, by step, from step 0.
    pub(crate) validation: Vec<Point>,
    /// The training loss as logged: each is the mean since the one before.
    pub(crate) training: Vec<Point>,
    /// What else was measured of the validation data after the last step, such as
    /// rewards.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) measures: BTreeMap<String, f64>,
    pub(crate) steps: usize,
    /// Unpadded input tokens.
    pub(crate) tokens: u64,
    pub(crate) trained_params: usize,
    /// Seconds to start the adapter.
    pub(crate) attach_seconds: f64,
    /// Seconds of training, without evaluations.
    pub(crate) train_seconds: f64,
    /// Seconds of the run, all told.
    pub(crate) wall_seconds: f64,
    /// Peak memory of the process or, on a device with memory of its own, what
    /// its allocator held at most, which an earlier run of the process may have
    /// made it hold; in bytes.
    pub(crate) peak_memory: Option<u64>,
    pub(crate) device: String,
    /// When it was finished, in UTC.
    pub(crate) finished: String,
    pub(crate) versions: BTreeMap<String, String>,
    /// With `runs` as its output directory, wherever the comparison is: its
    /// directory may be moved.
    pub(crate) recipe: Recipe,
}

impl Trial {
    /// What is to be kept of a run that ended; `own_peak` says whether the
    /// process's peak memory is that of this run.
    pub(crate) fn of(
        key: &Key,
        recipe: &Recipe,
        summary: &Summary,
        own_peak: bool,
    ) -> Result<Self, ComparisonError> {
        let (validation, training) = curves(&recipe.run_directory())?;
        let versions = summary.versions.iter();
        Ok(Self {
            fingerprint: summary.fingerprint.clone(),
            diverged: None,
            validation,
            training,
            measures: summary.validation_measures.clone(),
            steps: summary.steps,
            tokens: summary.tokens,
            trained_params: summary.n_trained_params,
            attach_seconds: summary.attach_seconds,
            train_seconds: summary.train_seconds,
            wall_seconds: summary.wall_seconds,
            peak_memory: summary
                .peak_device_memory
                .or(summary.peak_memory.filter(|_| own_peak)),
            device: summary.device.clone(),
            versions: versions
                .map(|(name, version)| ((*name).to_owned(), version.clone()))
                .collect(),
            ..Self::empty(key, recipe)?
        })
    }

    /// A run whose loss stopped being a number, which is a result too.
    pub(crate) fn diverged(
        key: &Key,
        recipe: &Recipe,
        error: &RunError,
    ) -> Result<Self, ComparisonError> {
        let (validation, training) = curves(&recipe.run_directory())?;
        Ok(Self {
            diverged: Some(error.to_string()),
            validation,
            training,
            ..Self::empty(key, recipe)?
        })
    }

    fn empty(key: &Key, recipe: &Recipe) -> Result<Self, ComparisonError> {
        Ok(Self {
            variant: key.variant.to_string(),
            rank: key.rank,
            learning_rate: key.rate,
            seed: key.seed,
            fingerprint: String::new(),
            diverged: None,
            validation: Vec::new(),
            training: Vec::new(),
            measures: BTreeMap::new(),
            steps: 0,
            tokens: 0,
            trained_params: 0,
            attach_seconds: 0.0,
            train_seconds: 0.0,
            wall_seconds: 0.0,
            peak_memory: None,
            device: String::new(),
            finished: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            versions: BTreeMap::new(),
            recipe: anywhere(recipe)?,
        })
    }

    /// The run's directory in a comparison's.
    pub(crate) fn run_directory(&self, comparison: &Path) -> PathBuf {
        comparison.join(self.recipe.run_directory())
    }

    /// The validation loss after the last step; infinite if the run diverged.
    pub(crate) fn last_loss(&self) -> f64 {
        let last = self.validation.last().filter(|_| self.diverged.is_none());
        last.map_or(f64::INFINITY, |(_, loss)| *loss)
    }

    /// The seconds of a step. One time for all seeds: a machine that was busy for a while is no
    /// property of a seed. `None` without a run.
    pub(crate) fn seconds_by_step(trials: &[Self]) -> Option<f64> {
        let times: Vec<f64> = trials
            .iter()
            .map(|trial| trial.train_seconds / trial.steps.max(1) as f64)
            .collect();
        median(&times)
    }

    pub(crate) fn variant(&self) -> Result<Variant, ComparisonError> {
        self.variant.parse()
    }

    /// What it was a run of.
    pub(crate) fn cell(&self, by_length: bool) -> Result<Cell, ComparisonError> {
        Ok(Cell {
            variant: self.variant()?,
            rank: self.rank,
            steps: self.recipe.training.max_steps.filter(|_| by_length),
        })
    }

    /// All finished runs of a comparison, by file name.
    pub(crate) fn read_all(directory: &Path) -> Result<Vec<Self>, ComparisonError> {
        let files = directory.join(CELLS);
        let entries = match fs::read_dir(&files) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|source| ComparisonError::io("reading", &files, source))?,
        };
        let paths: Result<Vec<PathBuf>, _> = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect();
        let mut paths = paths.map_err(|source| ComparisonError::io("reading", &files, source))?;
        paths.retain(|path| path.extension().is_some_and(|end| end == "json"));
        paths.sort();
        paths.iter().map(|path| read_json(path)).collect()
    }
}

/// The recipe of a run, for a comparison that may be anywhere, as it is read
/// from its file.
pub(crate) fn anywhere(recipe: &Recipe) -> Result<Recipe, ComparisonError> {
    let mut recipe = recipe.clone();
    recipe.output.keep = Some(recipe.keep());
    recipe.output.directory = PathBuf::from(RUNS);
    // Who is told of a run is no part of what is compared.
    recipe.logging = LoggingSection::default();
    as_read(&recipe)
}

/// Validation and training loss by step, from the run's `metrics.jsonl`.
fn curves(run: &Path) -> Result<(Vec<Point>, Vec<Point>), ComparisonError> {
    let path = run.join("metrics.jsonl");
    let text = match fs::read_to_string(&path) {
        // A run can diverge before its first line.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.map_err(|source| ComparisonError::io("reading", &path, source))?,
    };
    let lines: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let curve = |key: &str| -> Vec<Point> {
        let points = lines.iter();
        points
            .filter_map(|line| {
                let step = usize::try_from(line["step"].as_u64()?).ok()?;
                Some((step, line[key].as_f64()?))
            })
            .collect()
    };
    Ok((curve("validation_loss"), curve("loss")))
}
