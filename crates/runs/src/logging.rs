//! What a run tells TensorBoard and MLflow: the events that its caller gets.
//!
//! Nothing here stops or slows a run: what goes wrong is an
//! [`Event::Note`](crate::Event::Note).

use std::{
    collections::BTreeMap,
    env, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use olora_loggers::{EventFile, Mlflow, MlflowOptions, Pace, Server, Status};
use olora_training::Evaluation;

use crate::{
    Event, Observer, Recipe, RunError, StepReport, Summary, claim::Next, judge::TASKS, recipe::flat,
};

/// MLflow's own name for the experiment of those who name none.
const EXPERIMENT: &str = "Default";

/// Passes events on to a caller's observer, then to what `[logging]` asks for.
pub(crate) struct Logging {
    observer: Arc<dyn Observer>,
    /// Whether this process tells of the run: of several, the first does.
    leads: bool,
    /// The tracking server, until the run begins there.
    server: Mutex<Option<Server>>,
    loggers: Mutex<Loggers>,
}

/// What is told of the run.
#[derive(Default)]
struct Loggers {
    file: Option<EventFile>,
    /// Events that are not in the file.
    n_missing: usize,
    mlflow: Option<Mlflow>,
    /// The newest step that was told of.
    step: usize,
    /// When the last sample was made, and its number among those.
    sample: (&'static str, usize),
}

impl Logging {
    /// For a process that leads its run or follows. Whom to tell is known, or
    /// refused, before anything is read; nobody is told yet.
    ///
    /// # Errors
    ///
    /// [`RunError::Recipe`] if the environment does not say what the recipe
    /// leaves to it.
    pub(crate) fn new(
        recipe: &Recipe,
        leads: bool,
        observer: &Arc<dyn Observer>,
    ) -> Result<Arc<Self>, RunError> {
        let section = recipe.logging.mlflow.as_ref().filter(|_| leads);
        let server = section
            .map(|section| Server::from_env(section.uri.as_deref()))
            .transpose()
            .map_err(|error| RunError::Recipe {
                recipe: "[logging]".to_owned(),
                reason: error.to_string(),
            })?;
        Ok(Arc::new(Self {
            observer: Arc::clone(observer),
            leads,
            server: Mutex::new(server),
            loggers: Mutex::default(),
        }))
    }

    /// The run is in its directory, and begins or goes on.
    pub(crate) fn begin(&self, recipe: &Recipe, next: &Next, commit: Option<&str>) {
        if !self.leads {
            return;
        }
        let after = match next {
            Next::Begin => None,
            Next::GoOn { from, .. } => Some(from.state.step),
        };
        let directory = recipe.run_directory();
        // As it is kept there.
        let text = recipe.to_be_kept_in(&directory).unwrap_or_default();
        let mut loggers = Loggers {
            step: after.unwrap_or(0),
            ..Loggers::default()
        };
        let place = recipe
            .logging
            .tensorboard
            .directory(&directory, &recipe.name);
        let mut notes = Vec::new();
        if let Some(place) = place {
            let first = after.map_or(0, |step| step as u64 + 1);
            let begun = EventFile::begin(&place, first).and_then(|mut file| {
                file.text(first.saturating_sub(1), "recipe", &verbatim(&text))?;
                Ok(file)
            });
            match begun {
                Ok(file) => loggers.file = Some(file),
                Err(error) => notes.push(format!(
                    "there is no event file for TensorBoard in {}: {error}. The run goes on without",
                    place.display()
                )),
            }
        }
        let server = lock(&self.server).take();
        loggers.mlflow = server.map(|server| {
            let section = recipe.logging.mlflow.clone().unwrap_or_default();
            let experiment = section
                .experiment
                .or_else(|| variable("MLFLOW_EXPERIMENT_NAME"));
            Mlflow::begin(MlflowOptions {
                server,
                experiment: experiment.unwrap_or_else(|| EXPERIMENT.to_owned()),
                run_name: recipe.name.clone(),
                params: params(&text),
                tags: tags(&directory, commit),
                directory,
                resumed_after: after.map(|step| step as u64),
                pace: Pace::default(),
            })
        });
        *lock(&self.loggers) = loggers;
        self.say(notes);
    }

    /// The run has ended, in one way or another.
    pub(crate) fn end(&self, result: &Result<Summary, RunError>) {
        let status = match result {
            Ok(summary) if summary.finished => Status::Finished,
            Ok(_) => Status::Killed,
            Err(_) => Status::Failed,
        };
        let loggers = std::mem::take(&mut *lock(&self.loggers));
        let mut notes = Vec::new();
        if let (n @ 1.., Some(file)) = (loggers.n_missing, &loggers.file) {
            notes.push(format!(
                "{n} events are not in TensorBoard's file {}; metrics.jsonl has their values",
                file.path().display()
            ));
        }
        if let Some(mlflow) = loggers.mlflow {
            notes.extend(mlflow.finish(status));
        }
        self.say(notes);
    }

    fn say(&self, notes: Vec<String>) {
        for note in notes {
            self.observer.on(&Event::Note(note));
        }
    }
}

impl Observer for Logging {
    fn on(&self, event: &Event) {
        self.observer.on(event);
        let notes = lock(&self.loggers).on(event);
        self.say(notes);
    }
}

impl Loggers {
    /// Tells of an event. Returns what the caller is to be told.
    fn on(&mut self, event: &Event) -> Vec<String> {
        let mut notes = Vec::new();
        match event {
            Event::Step(report) => self.values(report.step, &of_step(report), &mut notes),
            Event::Evaluated { step, evaluation } => {
                self.values(*step, &of_evaluation(evaluation), &mut notes);
            }
            Event::Sample { when, prompt, text } => self.sample(when, prompt, text, &mut notes),
            _ => {}
        }
        if let Some(mlflow) = &self.mlflow {
            notes.extend(mlflow.notes());
        }
        notes
    }

    fn values(&mut self, step: usize, values: &[(String, f64)], notes: &mut Vec<String>) {
        self.step = self.step.max(step);
        if let Some(mlflow) = &self.mlflow {
            mlflow.log(step as u64, values);
        }
        let written = self
            .file
            .as_mut()
            .map(|file| file.scalars(step as u64, values));
        self.written(written, notes);
    }

    /// A prompt is a tag, so that its answers are one after the other.
    fn sample(&mut self, when: &'static str, prompt: &str, text: &str, notes: &mut Vec<String>) {
        let number = match self.sample {
            (before, number) if before == when => number + 1,
            _ => 1,
        };
        self.sample = (when, number);
        let shown = format!(
            "prompt\n\n{}\n\nanswer {when} training\n\n{}\n",
            verbatim(prompt),
            verbatim(text)
        );
        let step = self.step as u64;
        let written = self
            .file
            .as_mut()
            .map(|file| file.text(step, &format!("samples/{number}"), &shown));
        self.written(written, notes);
    }

    fn written(&mut self, written: Option<io::Result<()>>, notes: &mut Vec<String>) {
        let (Some(Err(error)), Some(file)) = (written, &self.file) else {
            return;
        };
        if self.n_missing == 0 {
            notes.push(format!(
                "TensorBoard's file {} cannot be written: {error}. The run goes on, and so does the file if it can; \
                 metrics.jsonl has every value",
                file.path().display()
            ));
        }
        self.n_missing += 1;
    }
}

/// What is plotted of a logged step.
fn of_step(report: &StepReport) -> Vec<(String, f64)> {
    let mut values = vec![
        named("train/loss", report.loss),
        named("train/learning_rate", report.learning_rate),
        named("train/grad_norm", report.grad_norm),
        named("train/tokens", report.tokens as f64),
        named("train/tokens_per_second", report.tokens_per_second),
        named("train/seconds", report.seconds),
    ];
    let memory = [
        ("memory/peak_bytes", report.peak_memory),
        ("memory/device_bytes", report.device_memory),
    ];
    let memory = memory.into_iter();
    values.extend(memory.filter_map(|(name, bytes)| Some(named(name, bytes? as f64))));
    values.extend(measured("train", &report.measures));
    if let Some(ranks) = &report.ranks {
        values.extend([
            named("ranks/exchange_seconds", ranks.exchange_seconds),
            named("ranks/slowest_seconds", ranks.slowest_seconds),
            named("ranks/median_seconds", ranks.median_seconds),
        ]);
    }
    values
}

/// What is plotted of an evaluation.
fn of_evaluation(evaluation: &Evaluation) -> Vec<(String, f64)> {
    let mut values = vec![named("validation/loss", evaluation.loss)];
    let perplexity = evaluation.perplexity;
    values.extend(perplexity.map(|value| named("validation/perplexity", value)));
    values.extend(measured("validation", &evaluation.measures));
    values
}

/// Measures under a name that they share; scores of tasks have one of their own.
fn measured(of: &str, measures: &BTreeMap<String, f64>) -> impl Iterator<Item = (String, f64)> {
    measures.iter().map(move |(name, value)| {
        if name.starts_with(TASKS) {
            named(name, *value)
        } else {
            named(&format!("{of}/{name}"), *value)
        }
    })
}

fn named(name: &str, value: f64) -> (String, f64) {
    (name.to_string(), value)
}

/// A text in Markdown that is shown as it is.
fn verbatim(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| format!("    {line}")).collect();
    lines.join("\n")
}

/// A recipe by its keys, without who is told of it.
fn params(text: &str) -> Vec<(String, String)> {
    let values = flat(text).into_iter();
    values
        .filter(|(key, _)| !key.starts_with("logging."))
        .map(|(key, value)| match value {
            toml::Value::String(text) => (key, text),
            value => (key, value.to_string()),
        })
        .collect()
}

/// What MLflow shows of where a run came from, and what else there is to say.
fn tags(directory: &Path, commit: Option<&str>) -> Vec<(String, String)> {
    let user = ["USER", "LOGNAME", "USERNAME"]
        .into_iter()
        .find_map(variable);
    let tags = [
        ("mlflow.source.name", Some("olora".to_owned())),
        ("mlflow.source.type", Some("LOCAL".to_owned())),
        ("mlflow.user", user),
        ("olora.version", Some(env!("CARGO_PKG_VERSION").to_owned())),
        ("olora.commit", commit.map(str::to_owned)),
        ("olora.run_directory", Some(directory.display().to_string())),
    ];
    let tags = tags.into_iter();
    tags.filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect()
}

/// A variable of the environment that says something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
