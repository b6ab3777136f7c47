//! The run directory: what happened, for people and for scripts.
//!
//! ```text
//! runs/<name>/
//!   recipe.toml      resolved: every default written out
//!   ranks.json       the rank of each adapted layer
//!   data.json        what became of each data set's records and keys, and an example
//!   adapter/         the result, for PEFT (model/ if all weights were trained)
//!   checkpoints/     step-000200/ …
//!   metrics.jsonl    one line per logged step or evaluation
//!   samples.json     how the recipe's prompts were answered before and after
//!   loss.svg         training and validation loss; with each evaluation
//!   loss.png         the same, when training ends
//!   loss.csv         what it shows
//!   rewards.*, accuracy.*   the same of an objective that compares answers
//!   summary.json     final metrics, timing, versions
//!   experiment.log   Burn's log
//!   tensorboard/     event files, and mlflow.json, mlflow-unsent.jsonl, by
//!                    `olora-loggers`, if the recipe asks for them
//!   lock             while a process trains in it: which one
//! ```

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use olora_files::{DirectoryLock, remove_leftovers, write_atomically};
use olora_model::Dtype;
use olora_training::Evaluation;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    DataRead, Recipe, RunError, StepReport, checkpoint,
    finished::SUMMARY,
    plot,
    recipe::{Change, changes},
    sampler::Sample,
};

pub(crate) const RECIPE: &str = "recipe.toml";
const RANKS: &str = "ranks.json";
const METRICS: &str = "metrics.jsonl";
const SAMPLES: &str = "samples.json";

/// One run's directory.
#[derive(Clone, Debug)]
pub(crate) struct RunDirectory {
    path: PathBuf,
    /// Whether this process writes to it. Of several that make a run together,
    /// the first does; the others' writing does nothing.
    writes: bool,
}

impl RunDirectory {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, writes: true }
    }

    /// That of a run which another process writes. It need not be there on this
    /// machine.
    pub(crate) fn of_another(path: PathBuf) -> Self {
        Self {
            path,
            writes: false,
        }
    }

    pub(crate) fn writes(&self) -> bool {
        self.writes
    }

    /// Begins a run in the directory, which is there: writes the resolved
    /// recipe, and drops what a run that came to nothing has logged.
    pub(crate) fn begin(&self, recipe: &Recipe) -> Result<(), RunError> {
        if !self.writes {
            return Ok(());
        }
        let text = recipe.to_be_kept_in(&self.path)?;
        for name in [METRICS, SUMMARY, SAMPLES] {
            self.remove(name)?;
        }
        self.write_whole(RECIPE, text.as_bytes())
    }

    /// Refuses to write into a directory that was taken away while the run
    /// trained: what were written from then on would be half a run.
    pub(crate) fn check_there(&self) -> Result<(), RunError> {
        if !self.writes {
            return Ok(());
        }
        let recipe = self.path.join(RECIPE);
        match recipe.try_exists() {
            Ok(true) => Ok(()),
            Ok(false) => Err(RunError::Vanished(self.path.clone())),
            Err(source) => Err(RunError::io("reading", &recipe, source)),
        }
    }

    /// Removes checkpoints beyond the newest `keep`, and what killed processes
    /// were writing: nobody else writes here.
    pub(crate) fn tidy(&self, keep: usize) -> Result<(), RunError> {
        checkpoint::tidy(&self.checkpoints(), keep)?;
        for directory in [&self.path, &self.path.join("adapter")] {
            if directory.is_dir() {
                remove_leftovers(directory).map_err(|source| {
                    RunError::io("removing what is left in", directory, source)
                })?;
            }
        }
        Ok(())
    }

    /// Goes on after a step: drops the lines after it, which will be written
    /// again, and the summary of an interruption. A recipe that is not the one
    /// that the run has had so far takes its place, after the summary has gone:
    /// what is finished by one recipe is not so by another.
    pub(crate) fn go_on_after(&self, step: usize, recipe: Option<&Recipe>) -> Result<(), RunError> {
        if !self.writes {
            return Ok(());
        }
        self.remove(SUMMARY)?;
        if let Some(recipe) = recipe {
            let text = recipe.to_be_kept_in(&self.path)?;
            self.write(RECIPE, text.as_bytes())?;
        }
        self.forget_after(step)
    }

    /// The recipe of a run that has begun.
    pub(crate) fn known(&self) -> Result<Option<Recipe>, RunError> {
        let path = self.path().join(RECIPE);
        let there = path.exists().then(|| Recipe::kept(&path, &[]));
        there.transpose()
    }

    /// What has changed in the recipe since the run was started with it, if it
    /// was: it may have been stopped before it had written one.
    ///
    /// # Errors
    ///
    /// [`RunError::RecipeChanged`] names what may not change.
    pub(crate) fn check_recipe(&self, recipe: &Recipe) -> Result<Option<Vec<Change>>, RunError> {
        let path = self.path();
        if !path.join(RECIPE).exists() {
            return if self.holds_only_leftovers() {
                Ok(None)
            } else {
                Err(RunError::NoRun(path.to_owned()))
            };
        }
        let mut started_with = Recipe::kept(&path.join(RECIPE), &[])?;
        // Runs from before these keys were written did as follows.
        let base = *started_with.model.dtype.get_or_insert(Dtype::F32);
        started_with.model.compute_dtype.get_or_insert(base);
        started_with.training.pad_to_multiple_of.get_or_insert(1);
        // It is this directory, however it was spelled and wherever it was then.
        started_with
            .output
            .directory
            .clone_from(&recipe.output.directory);
        started_with.name.clone_from(&recipe.name);
        let changes = changes(
            &started_with.with_whole_paths().to_toml()?,
            &recipe.with_whole_paths().to_toml()?,
        );
        let refused = changes.iter().filter(|change| !change.is_allowed());
        let differences: Vec<_> = refused.map(ToString::to_string).collect();
        if !differences.is_empty() {
            return Err(RunError::RecipeChanged {
                directory: path.to_owned(),
                differences,
            });
        }
        Ok(Some(changes))
    }

    /// Whether there is nothing but what a process leaves that is killed while
    /// it writes its first file.
    fn holds_only_leftovers(&self) -> bool {
        let entries = fs::read_dir(self.path()).into_iter().flatten().flatten();
        entries.into_iter().all(|entry| {
            let name = entry.file_name();
            name == DirectoryLock::NAME
                || [".staged-", ".tmp"]
                    .iter()
                    .any(|leftover| name.to_string_lossy().starts_with(leftover))
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    pub(crate) fn newest_checkpoint(&self) -> Result<Option<(usize, PathBuf)>, RunError> {
        Ok(checkpoint::list(&self.checkpoints())?.pop())
    }

    /// Writes what became of the data, with examples of it.
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
        let path = self.path.join(RANKS);
        if !path.exists() {
            return Ok(BTreeMap::new());
        }
        let bytes = fs::read(&path).map_err(|source| RunError::io("reading", &path, source))?;
        serde_json::from_slice(&bytes).map_err(|error| RunError::Checkpoint {
            path,
            reason: error.to_string(),
        })
    }

    /// Notes how prompts were answered, beside what they were at another time. A
    /// file of those that cannot be read is made anew.
    pub(crate) fn write_samples(&self, samples: Vec<Sample>) -> Result<(), RunError> {
        let Some(when) = samples.first().map(|sample| sample.when.clone()) else {
            return Ok(());
        };
        let known = fs::read(self.path.join(SAMPLES)).ok();
        let known = known.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut all: Vec<Sample> = known.unwrap_or_default();
        all.retain(|sample| sample.when != when);
        all.extend(samples);
        let json = serde_json::to_vec_pretty(&all).map_err(|error| RunError::burn(&error))?;
        self.write(SAMPLES, &json)
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
        });
        // Of another objective, the count is of pairs or what else it is.
        if let Some(perplexity) = evaluation.perplexity {
            line["validation_perplexity"] = json!(perplexity);
            line["validation_tokens"] = json!(whole(evaluation.count));
        } else {
            line["validation_count"] = json!(whole(evaluation.count));
        }
        if !evaluation.measures.is_empty() {
            line["validation_measures"] = json!(evaluation.measures);
        }
        self.append(&line)?;
        self.draw_with(false)
    }

    /// Draws the metrics so far: the loss, and rewards and accuracy where answers
    /// are compared; as SVG and PNG, and as CSV.
    pub(crate) fn draw(&self) -> Result<(), RunError> {
        self.draw_with(true)
    }

    /// A PNG takes longer than many an evaluation, so there is none with each.
    fn draw_with(&self, png: bool) -> Result<(), RunError> {
        if !self.writes {
            return Ok(());
        }
        for picture in plot::pictures(&self.metrics()?) {
            let Some(svg) = picture.figure.svg() else {
                continue;
            };
            let name = picture.name;
            self.write(&format!("{name}.csv"), picture.table.csv().as_bytes())?;
            self.write(&format!("{name}.svg"), svg.as_bytes())?;
            if png {
                self.write(&format!("{name}.png"), &olora_pictures::png(&svg)?)?;
            }
        }
        Ok(())
    }

    fn forget_after(&self, step: usize) -> Result<(), RunError> {
        let text = self.metrics_text()?;
        let kept = text.lines().filter(|line| {
            let value: Option<Value> = serde_json::from_str(line).ok();
            value
                .and_then(|value| value["step"].as_u64())
                .is_some_and(|at| at <= step as u64)
        });
        let text = kept.fold(String::new(), |text, line| text + line + "\n");
        self.write(METRICS, text.as_bytes())
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RunError> {
        if !self.writes {
            return Ok(());
        }
        self.check_there()?;
        self.write_whole(name, bytes)
    }

    fn write_whole(&self, name: &str, bytes: &[u8]) -> Result<(), RunError> {
        let path = self.path.join(name);
        write_atomically(&path, |file| file.write_all(bytes))
            .map_err(|source| RunError::io("writing", &path, source))
    }

    fn append(&self, line: &impl Serialize) -> Result<(), RunError> {
        if !self.writes {
            return Ok(());
        }
        self.check_there()?;
        let path = self.path.join(METRICS);
        let line = serde_json::to_string(line).map_err(|error| RunError::burn(&error))?;
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|source| RunError::io("writing", &path, source))
    }

    fn remove(&self, name: &str) -> Result<(), RunError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(RunError::io("removing", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// The training loss of the last line that has one.
    pub(crate) fn last_loss(&self) -> Result<Option<f64>, RunError> {
        let metrics = self.metrics()?;
        Ok(metrics.iter().rev().find_map(|line| line["loss"].as_f64()))
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
        let path = self.path.join(METRICS);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(RunError::io("reading", &path, source)),
        }
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
