//! The run directory: what happened, for people and for scripts.
//!
//! ```text
//! runs/<name>/
//!   recipe.toml      resolved: every default written out
//!   ranks.json       the rank of each adapted layer
//!   data.json        what became of each data set's records and keys
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
use olora_model::Dtype;
use olora_training::Evaluation;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{DataRead, Recipe, RunError, StepReport, checkpoint, differences, plot};

const RANKS: &str = "ranks.json";

/// One run's directory.
#[derive(Clone, Debug)]
pub(crate) struct RunDirectory(PathBuf);

impl RunDirectory {
    /// Makes the directory of a new run and writes the resolved recipe.
    pub(crate) fn create(recipe: &Recipe) -> Result<Self, RunError> {
        let path = recipe.run_directory();
        refuse_existing(&path)?;
        let text = recipe.to_toml()?;
        fs::create_dir_all(&path).map_err(|source| RunError::io("creating", &path, source))?;
        let directory = Self(path);
        directory.write("recipe.toml", text.as_bytes())?;
        Ok(directory)
    }

    /// Opens the directory of a run to be continued; the recipe must be the
    /// one it was started with.
    pub(crate) fn open(recipe: &Recipe) -> Result<Self, RunError> {
        let path = recipe.run_directory();
        let directory = Self(path.clone());
        if directory.newest_checkpoint()?.is_none() {
            return Err(RunError::NothingToResume(path));
        }
        let mut started_with = Recipe::load(&path.join("recipe.toml"), &[])?;
        // Runs from before these keys were written did as follows.
        let base = *started_with.model.dtype.get_or_insert(Dtype::F32);
        started_with.model.compute_dtype.get_or_insert(base);
        started_with.training.pad_to_multiple_of.get_or_insert(1);
        // It is this directory, however it was spelled and wherever it was then.
        started_with
            .output
            .directory
            .clone_from(&recipe.output.directory);
        if started_with != *recipe {
            let differences = differences(&started_with.to_toml()?, &recipe.to_toml()?);
            return Err(RunError::RecipeChanged {
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

    pub(crate) fn newest_checkpoint(&self) -> Result<Option<(usize, PathBuf)>, RunError> {
        Ok(checkpoint::list(&self.checkpoints())?.pop())
    }

    /// Writes what became of the data.
    pub(crate) fn write_data(&self, reports: &[DataRead]) -> Result<(), RunError> {
        let text = serde_json::to_vec_pretty(reports).map_err(|error| {
            RunError::mismatch(format!("the report on the data cannot be written: {error}"))
        })?;
        self.write("data.json", &text)
    }

    /// Notes the ranks that the adapter has, which a method may have chosen.
    pub(crate) fn write_ranks(&self, ranks: &BTreeMap<String, usize>) -> Result<(), RunError> {
        if ranks.is_empty() {
            return Ok(());
        }
        let json = serde_json::to_vec_pretty(ranks).map_err(|error| RunError::burn(&error))?;
        self.write(RANKS, &json)
    }

    /// The ranks that were noted; none by a run from before they were.
    pub(crate) fn ranks(&self) -> Result<BTreeMap<String, usize>, RunError> {
        let path = self.0.join(RANKS);
        if !path.exists() {
            return Ok(BTreeMap::new());
        }
        let bytes = fs::read(&path).map_err(|source| RunError::io("reading", &path, source))?;
        serde_json::from_slice(&bytes).map_err(|error| RunError::Checkpoint {
            path,
            reason: error.to_string(),
        })
    }

    pub(crate) fn log_step(&self, report: &StepReport) -> Result<(), RunError> {
        self.append(report)
    }

    pub(crate) fn log_evaluation(
        &self,
        step: usize,
        evaluation: &Evaluation,
    ) -> Result<(), RunError> {
        let mut line = json!({
            "step": step,
            "validation_loss": evaluation.loss,
            "validation_perplexity": evaluation.perplexity,
            "validation_tokens": whole(evaluation.count),
        });
        if !evaluation.measures.is_empty() {
            line["validation_measures"] = json!(evaluation.measures);
        }
        self.append(&line)?;
        self.draw()
    }

    /// Draws `loss.svg` from the metrics so far.
    pub(crate) fn draw(&self) -> Result<(), RunError> {
        let svg = plot::loss_curves(&self.metrics()?)?;
        self.write("loss.svg", svg.as_bytes())
    }

    /// Drops the lines after `step`, which the resumed run will write again.
    pub(crate) fn forget_after(&self, step: usize) -> Result<(), RunError> {
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

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RunError> {
        let path = self.0.join(name);
        write_atomically(&path, |file| file.write_all(bytes))
            .map_err(|source| RunError::io("writing", &path, source))
    }

    fn append(&self, line: &impl Serialize) -> Result<(), RunError> {
        let path = self.0.join("metrics.jsonl");
        let line = serde_json::to_string(line).map_err(|error| RunError::burn(&error))?;
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|source| RunError::io("writing", &path, source))
    }

    /// Every line of `metrics.jsonl`; one cut short by a crash is left out.
    fn metrics(&self) -> Result<Vec<Value>, RunError> {
        Ok(self
            .metrics_text()?
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }

    fn metrics_text(&self) -> Result<String, RunError> {
        let path = self.0.join("metrics.jsonl");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(RunError::io("reading", &path, source)),
        }
    }
}

/// A directory that holds anything is never written into.
pub(crate) fn refuse_existing(path: &Path) -> Result<(), RunError> {
    let holds_something = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    if holds_something {
        Err(RunError::RunExists(path.to_owned()))
    } else {
        Ok(())
    }
}

/// A count as it is written to files: without a point, unless weights make it a
/// fraction.
pub fn whole(count: f64) -> Value {
    if count.fract() == 0.0 {
        json!(count as u64)
    } else {
        json!(count)
    }
}
