//! Whole runs of the quickstart, cut short.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use burn::{tensor::Device, train::Interrupter};
use olora_runs::{Event, Observer, Recipe, RunError, Start, Summary, TrainOptions, train};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The quickstart recipe with absolute paths, short steps, and `overrides`.
pub(crate) fn recipe(out: &Path, name: &str, overrides: &[&str]) -> Recipe {
    recipe_without(out, name, "", overrides)
}

/// The same, without some of its text.
pub(crate) fn recipe_without(out: &Path, name: &str, left_out: &str, overrides: &[&str]) -> Recipe {
    let data = root().join("recipes/quickstart");
    let mut settings = vec![
        format!("name={name}"),
        format!("output.directory=\"{}\"", out.display()),
        format!("model.path=\"{}\"", data.join("base").display()),
        format!("data.train=\"{}\"", data.join("train.jsonl").display()),
        format!("data.validation=\"{}\"", data.join("valid.jsonl").display()),
        "samples.prompts=[]".to_owned(),
        "training.batch_size=2".to_owned(),
        "training.log_every=1".to_owned(),
        "training.warmup_steps=2".to_owned(),
        "training.evaluate_every=0".to_owned(),
    ];
    settings.extend(overrides.iter().map(|setting| (*setting).to_owned()));
    let text = fs::read_to_string(root().join("recipes/quickstart.toml")).unwrap();
    assert!(text.contains(left_out), "{left_out}");
    let text = text.replacen(left_out, "", 1);
    Recipe::parse(&text, "quickstart.toml", &settings).unwrap()
}

#[derive(Default)]
pub(crate) struct Recorder {
    pub losses: Mutex<Vec<(usize, f64)>>,
    /// Messages that stop nothing.
    pub notes: Mutex<Vec<String>>,
    pub interrupt_at: Option<(usize, Interrupter)>,
}

impl Observer for Recorder {
    fn on(&self, event: &Event) {
        if let Event::Note(note) = event {
            self.notes.lock().unwrap().push(note.clone());
        }
        if let Event::Step(report) = event {
            self.losses.lock().unwrap().push((report.step, report.loss));
            if let Some((step, interrupter)) = &self.interrupt_at
                && report.step == *step
            {
                interrupter.stop(Some("test"));
            }
        }
    }
}

/// How a run begins: a start, or whether it is resumed.
pub(crate) struct Begin(Start);

impl From<bool> for Begin {
    fn from(resume: bool) -> Self {
        Self(if resume { Start::Resume } else { Start::New })
    }
}

impl From<Start> for Begin {
    fn from(start: Start) -> Self {
        Self(start)
    }
}

pub(crate) type Losses = Vec<(usize, f64)>;

/// One run at a time: the CPU backend has one random generator per process,
/// and dropout draws from it.
pub(crate) static GENERATOR: Mutex<()> = Mutex::new(());

pub(crate) fn run(
    recipe: &Recipe,
    resume: impl Into<Begin>,
    interrupt_at: Option<usize>,
) -> (Result<Summary, RunError>, Losses) {
    let (result, recorder) = recorded(recipe, resume, interrupt_at);
    let losses = recorder.losses.lock().unwrap().clone();
    (result, losses)
}

/// The same, with everything that was recorded.
pub(crate) fn recorded(
    recipe: &Recipe,
    resume: impl Into<Begin>,
    interrupt_at: Option<usize>,
) -> (Result<Summary, RunError>, Arc<Recorder>) {
    let _alone = GENERATOR
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let interrupter = Interrupter::new();
    let recorder = Arc::new(Recorder {
        interrupt_at: interrupt_at.map(|step| (step, interrupter.clone())),
        ..Recorder::default()
    });
    let options = TrainOptions {
        start: resume.into().0,
        interrupter,
        ..TrainOptions::default()
    };
    let observer: Arc<dyn Observer> = recorder.clone();
    let result = train(recipe, &Device::flex(), options, &observer);
    (result, recorder)
}
