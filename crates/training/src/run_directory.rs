//! The run directory: what happened, for people and for scripts.
//!
//! ```text
//! runs/<name>/
//!   recipe.toml      resolved: every default written out
//!   ranks.json       the rank of each adapted layer
//!   adapter/         the result, for PEFT (model/ if all weights were trained)
//!   checkpoints/     step-000200/ …
//!   metrics.jsonl    one line per logged step or evaluation
//!   loss.svg         training and validation loss
//!   summary.json     final metrics, timing, versions
//!   experiment.log   Burn's log
//! ```

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use olora_files::write_atomically;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{Evaluation, Recipe, StepReport, TrainError, checkpoint, plot, recipe::BaseType};

const RANKS: &str = "ranks.json";

/// One run's directory.
#[derive(Clone, Debug)]
pub(crate) struct RunDirectory(PathBuf);

impl RunDirectory {
    /// Makes the directory of a new run and writes the resolved recipe.
    pub(crate) fn create(recipe: &Recipe) -> Result<Self, TrainError> {
        let path = recipe.run_directory();
        refuse_existing(&path)?;
        let text = recipe.to_toml()?;
        fs::create_dir_all(&path).map_err(|source| TrainError::io("creating", &path, source))?;
        let directory = Self(path);
        directory.write("recipe.toml", text.as_bytes())?;
        Ok(directory)
    }

    /// Opens the directory of a run to be continued; the recipe must be the
    /// one it was started with.
    pub(crate) fn open(recipe: &Recipe) -> Result<Self, TrainError> {
        let path = recipe.run_directory();
        let directory = Self(path.clone());
        if directory.newest_checkpoint()?.is_none() {
            return Err(TrainError::NothingToResume(path));
        }
        let mut started_with = Recipe::load(&path.join("recipe.toml"), &[])?;
        // Runs from before these keys were written did as follows.
        let base = *started_with.model.dtype.get_or_insert(BaseType::Float32);
        started_with.model.compute_dtype.get_or_insert(base);
        started_with.training.pad_to_multiple_of.get_or_insert(1);
        // It is this directory, however it was spelled and wherever it was then.
        started_with
            .output
            .directory
            .clone_from(&recipe.output.directory);
        if started_with != *recipe {
            let differences = differences(&started_with.to_toml()?, &recipe.to_toml()?);
            return Err(TrainError::RecipeChanged {
                directory: path,
                differences,
            });
        }
        Ok(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    pub(crate) fn newest_checkpoint(&self) -> Result<Option<(usize, PathBuf)>, TrainError> {
        Ok(checkpoint::list(&self.checkpoints())?.pop())
    }

    /// Notes the ranks that the adapter has, which a method may have chosen.
    pub(crate) fn write_ranks(&self, ranks: &BTreeMap<String, usize>) -> Result<(), TrainError> {
        if ranks.is_empty() {
            return Ok(());
        }
        let json = serde_json::to_vec_pretty(ranks).map_err(|error| TrainError::burn(&error))?;
        self.write(RANKS, &json)
    }

    /// The ranks that were noted; none by a run from before they were.
    pub(crate) fn ranks(&self) -> Result<BTreeMap<String, usize>, TrainError> {
        let path = self.0.join(RANKS);
        if !path.exists() {
            return Ok(BTreeMap::new());
        }
        let bytes = fs::read(&path).map_err(|source| TrainError::io("reading", &path, source))?;
        serde_json::from_slice(&bytes).map_err(|error| TrainError::Checkpoint {
            path,
            reason: error.to_string(),
        })
    }

    pub(crate) fn log_step(&self, report: &StepReport) -> Result<(), TrainError> {
        self.append(report)
    }

    pub(crate) fn log_evaluation(
        &self,
        step: usize,
        evaluation: &Evaluation,
    ) -> Result<(), TrainError> {
        self.append(&json!({
            "step": step,
            "validation_loss": evaluation.loss,
            "validation_perplexity": evaluation.perplexity,
            "validation_tokens": evaluation.n_trained_tokens,
        }))?;
        self.draw()
    }

    /// Draws `loss.svg` from the metrics so far.
    pub(crate) fn draw(&self) -> Result<(), TrainError> {
        let svg = plot::loss_curves(&self.metrics()?)?;
        self.write("loss.svg", svg.as_bytes())
    }

    /// Drops the lines after `step`, which the resumed run will write again.
    pub(crate) fn forget_after(&self, step: usize) -> Result<(), TrainError> {
        let text = self.metrics_text()?;
        let kept = text.lines().filter(|line| {
            let value: Option<Value> = serde_json::from_str(line).ok();
            value
                .and_then(|value| value["step"].as_u64())
                .is_some_and(|at| at <= step as u64)
        });
        let text = kept.fold(String::new(), |text, line| text + line + "\n");
        self.write("metrics.jsonl", text.as_bytes())
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        let path = self.0.join(name);
        write_atomically(&path, |file| file.write_all(bytes))
            .map_err(|source| TrainError::io("writing", &path, source))
    }

    fn append(&self, line: &impl Serialize) -> Result<(), TrainError> {
        let path = self.0.join("metrics.jsonl");
        let line = serde_json::to_string(line).map_err(|error| TrainError::burn(&error))?;
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|source| TrainError::io("writing", &path, source))
    }

    /// Every line of `metrics.jsonl`; one cut short by a crash is left out.
    fn metrics(&self) -> Result<Vec<Value>, TrainError> {
        Ok(self
            .metrics_text()?
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }

    fn metrics_text(&self) -> Result<String, TrainError> {
        let path = self.0.join("metrics.jsonl");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(TrainError::io("reading", &path, source)),
        }
    }
}

/// A directory that holds anything is never written into.
pub(crate) fn refuse_existing(path: &Path) -> Result<(), TrainError> {
    let holds_something = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    if holds_something {
        Err(TrainError::RunExists(path.to_owned()))
    } else {
        Ok(())
    }
}

/// The lines that differ, by key.
pub(crate) fn differences(before: &str, now: &str) -> Vec<String> {
    let flat = |text: &str| -> Vec<(String, String)> {
        let mut section = String::new();
        let mut values = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = format!("{}.", name.trim_end_matches(']'));
            } else if let Some((key, value)) = line.split_once(" = ") {
                values.push((format!("{section}{key}"), value.to_owned()));
            }
        }
        values
    };
    let (before, now) = (flat(before), flat(now));
    let find = |values: &[(String, String)], key: &str| {
        values
            .iter()
            .find(|(k, _)| k == key)
            .map_or_else(|| "not set".to_owned(), |(_, value)| value.clone())
    };
    let mut keys: Vec<&String> = before.iter().chain(&now).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .map(|key| (key, find(&before, key), find(&now, key)))
        .filter(|(_, before, now)| before != now)
        .map(|(key, before, now)| format!("{key}: was {before}, now {now}"))
        .collect()
}
