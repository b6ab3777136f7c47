//! What is left of a run that was stopped goes on, or says why it does not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use burn::tensor::Device;
use common::{GENERATOR, recipe, recorded, root, run};
use olora_runs::{
    Event, Observer, Recipe, RunError, Start, TrainOptions, is_finished, recipe::AdapterSection,
    train,
};
use serde_json::Value;

const SHORT: [&str; 2] = ["training.max_steps=4", "training.checkpoint_every=1"];

fn adapter(run: &Path) -> Vec<u8> {
    fs::read(run.join("adapter/adapter_model.safetensors")).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// As a run is that was killed after its last checkpoint.
fn without_its_result(run: &Path) {
    fs::remove_dir_all(run.join("adapter")).unwrap();
    fs::remove_file(run.join("summary.json")).unwrap();
}

fn flip_a_bit(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(file, bytes).unwrap();
}

/// Does something when an event comes.
struct When<F>(F);

impl<F: Fn(&Event) + Send + Sync> Observer for When<F> {
    fn on(&self, event: &Event) {
        (self.0)(event);
    }
}

fn observed(
    recipe: &Recipe,
    start: Start,
    on: impl Fn(&Event) + Send + Sync + 'static,
) -> Result<(), RunError> {
    let _alone = GENERATOR
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let observer: Arc<dyn Observer> = Arc::new(When(on));
    let options = TrainOptions {
        start,
        ..TrainOptions::default()
    };
    train(recipe, &Device::flex(), options, &observer).map(drop)
}

#[test]
fn an_interruption_and_a_failed_last_save_cost_nothing() {
    let out = tempfile::tempdir().unwrap();
    let straight = out.path().join("straight");
    run(&recipe(out.path(), "straight", &SHORT), false, None)
        .0
        .unwrap();
    let cut = recipe(out.path(), "cut", &SHORT);
    let directory = out.path().join("cut");
    assert!(!run(&cut, false, Some(1)).0.unwrap().finished);
    assert!(directory.join("summary.json").exists() && !is_finished(&directory));

    // Something is in the way of the result, as a full disk would be.
    fs::write(directory.join("adapter"), "no directory").unwrap();
    run(&cut, true, None).0.unwrap_err();
    // What the interrupted session summed up is not said of the resumed one.
    assert!(!directory.join("summary.json").exists());
    fs::remove_file(directory.join("adapter")).unwrap();

    assert!(run(&cut, true, None).0.unwrap().finished);
    assert!(is_finished(&directory));
    assert!(adapter(&directory) == adapter(&straight), "adapters differ");
}

#[test]
fn the_summary_of_an_interruption_is_no_end() {
    let out = tempfile::tempdir().unwrap();
    let cut = recipe(out.path(), "cut", &SHORT);
    let directory = out.path().join("cut");
    run(&cut, false, Some(1)).0.unwrap();
    let interrupted = fs::read(directory.join("summary.json")).unwrap();
    run(&cut, true, None).0.unwrap();
    let before = adapter(&directory);
    // As an earlier version left it that was killed while it wrote the adapter.
    without_its_result(&directory);
    fs::write(directory.join("summary.json"), interrupted).unwrap();
    assert!(run(&cut, true, None).0.unwrap().finished);
    assert!(adapter(&directory) == before, "adapters differ");
}

#[test]
fn a_run_killed_in_its_last_save_ends_with_all_that_it_would_have_had() {
    let out = tempfile::tempdir().unwrap();
    let recipe = recipe(out.path(), "run", &SHORT);
    let directory = out.path().join("run");
    let first = run(&recipe, false, None).0.unwrap();
    let card = fs::read_to_string(directory.join("adapter/README.md")).unwrap();
    without_its_result(&directory);
    fs::create_dir_all(directory.join("adapter")).unwrap();
    let leftovers = [
        "adapter/.staged-README.md-Ab12Cd",
        "adapter/.tmpAb12Cd",
        "checkpoints/.staged-step-000004-Ab12Cd",
        ".staged-summary.json-Ab12Cd",
        ".tmpZora12",
    ];
    for leftover in leftovers {
        fs::write(directory.join(leftover), "half").unwrap();
    }
    let again = run(&recipe, true, None).0.unwrap();
    assert_eq!(again.train_loss, first.train_loss);
    assert!(again.train_loss.is_some());
    assert_eq!(
        fs::read_to_string(directory.join("adapter/README.md")).unwrap(),
        card
    );
    for leftover in leftovers {
        assert!(!directory.join(leftover).exists(), "{leftover}");
    }
    assert!(!directory.join("lock").exists());
}

#[test]
fn a_run_stopped_before_its_first_checkpoint_starts_again_in_its_directory() {
    let out = tempfile::tempdir().unwrap();
    let short = recipe(out.path(), "run", &SHORT);
    let directory = out.path().join("run");
    let (summary, losses) = run(&short, false, None);
    let (summary, before) = (summary.unwrap(), adapter(&directory));
    let lines = fs::read_to_string(directory.join("metrics.jsonl")).unwrap();
    without_its_result(&directory);
    fs::remove_dir_all(directory.join("checkpoints")).unwrap();

    let other = recipe(
        out.path(),
        "run",
        &[&SHORT[..], &["training.batch_size=3"]].concat(),
    );
    let error = run(&other, true, None).0.unwrap_err().to_string();
    assert!(
        error.contains("training.batch_size: was 2, now 3"),
        "{error}"
    );

    let (again, recorder) = recorded(&short, true, None);
    assert_eq!(again.unwrap().validation_loss, summary.validation_loss);
    let notes = recorder.notes.lock().unwrap().clone();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].contains("before its first checkpoint") && notes[0].contains("starts again"),
        "{notes:?}"
    );
    assert_eq!(*recorder.losses.lock().unwrap(), losses);
    let again = fs::read_to_string(directory.join("metrics.jsonl")).unwrap();
    assert_eq!(again.lines().count(), lines.lines().count());
    assert!(adapter(&directory) == before, "adapters differ");
}

#[test]
fn a_run_killed_while_it_was_loading_starts() {
    let out = tempfile::tempdir().unwrap();
    for (name, start, leftover) in [
        ("new", Start::New, "lock"),
        ("resumed", Start::Resume, "lock"),
        ("half", Start::Resume, ".staged-recipe.toml-Ab12Cd"),
    ] {
        let recipe = recipe(out.path(), name, &["training.max_steps=1"]);
        let directory = out.path().join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join(leftover), "").unwrap();
        assert!(run(&recipe, start, None).0.unwrap().finished, "{name}");
        assert!(!directory.join(leftover).exists(), "{name}");
    }
}

#[test]
fn one_flag_starts_goes_on_and_ends() {
    let out = tempfile::tempdir().unwrap();
    let recipe = recipe(out.path(), "run", &SHORT);
    assert!(!run(&recipe, Start::Auto, Some(1)).0.unwrap().finished);
    let (summary, losses) = run(&recipe, Start::Auto, None);
    assert!(summary.unwrap().finished);
    assert_eq!(losses[0].0, 3);
    let error = run(&recipe, Start::Auto, None).0.unwrap_err();
    assert!(matches!(error, RunError::Complete { .. }), "{error}");
}

#[test]
fn what_is_no_run_is_not_written_into() {
    let out = tempfile::tempdir().unwrap();
    let recipe = recipe(out.path(), "run", &SHORT);
    let directory = out.path().join("run");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("letters of Jorun"), "").unwrap();
    for start in [Start::Resume, Start::Auto] {
        let error = run(&recipe, start, None).0.unwrap_err().to_string();
        assert!(error.contains("is no run directory"), "{error}");
    }
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
}

#[test]
fn a_second_process_is_refused_by_the_number_of_the_first() {
    let out = tempfile::tempdir().unwrap();
    let recipe = recipe(out.path(), "run", &SHORT);
    let directory = out.path().join("run");
    let errors = Arc::new(Mutex::new(Vec::new()));
    let (seen, second) = (errors.clone(), recipe.clone());
    let was_there = directory.clone();
    observed(&recipe, Start::New, move |event| {
        // Before the first file of the run is written, and while it trains.
        let early = matches!(event, Event::ModelLoaded { .. });
        assert!(!early || !was_there.join("recipe.toml").exists());
        if !early && !matches!(event, Event::Step(report) if report.step == 2) {
            return;
        }
        for start in [Start::New, Start::Resume, Start::Auto] {
            let quiet: Arc<dyn Observer> = Arc::new(When(|_: &Event| {}));
            let options = TrainOptions {
                start,
                ..TrainOptions::default()
            };
            let result = train(&second, &Device::flex(), options, &quiet);
            seen.lock().unwrap().push(result.unwrap_err().to_string());
        }
    })
    .unwrap();
    let errors = errors.lock().unwrap();
    assert_eq!(errors.len(), 6);
    for error in &*errors {
        let process = format!("process {}", std::process::id());
        assert!(
            error.contains(&process) && error.contains("is training in"),
            "{error}"
        );
    }
    let lines = fs::read_to_string(directory.join("metrics.jsonl")).unwrap();
    let n_steps = lines
        .lines()
        .filter(|line| line.contains("\"loss\""))
        .count();
    assert_eq!(n_steps, 4);
}

#[test]
fn a_base_that_goes_while_a_run_trains_is_not_missed() {
    let out = tempfile::tempdir().unwrap();
    run(&recipe(out.path(), "straight", &SHORT), false, None)
        .0
        .unwrap();
    let from = root().join("recipes/quickstart/base");
    let gone = |name: &str, everything: bool| -> PathBuf {
        let base = out.path().join("base");
        fs::create_dir(&base).unwrap();
        for entry in fs::read_dir(&from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
        }
        let path = format!("model.path=\"{}\"", base.display());
        let mut recipe = recipe(out.path(), name, &[&SHORT[..], &[&path]].concat());
        if everything {
            recipe.adapter = AdapterSection::everything();
        }
        observed(&recipe, Start::New, move |event| {
            if matches!(event, Event::Step(report) if report.step == 1) {
                fs::remove_dir_all(&base).unwrap();
            }
        })
        .unwrap();
        out.path().join(name)
    };
    let run = gone("gone", false);
    assert!(
        adapter(&run) == adapter(&out.path().join("straight")),
        "adapters differ"
    );
    let model = gone("everything", true).join("model");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(
            fs::read(model.join(name)).ok(),
            fs::read(from.join(name)).ok(),
            "{name}"
        );
    }
}

#[test]
fn a_damaged_checkpoint_is_named_with_the_whole_one_before_it() {
    let out = tempfile::tempdir().unwrap();
    let recipe = recipe(out.path(), "run", &SHORT);
    let directory = out.path().join("run");
    run(&recipe, false, None).0.unwrap();
    let before = adapter(&directory);
    without_its_result(&directory);
    let checkpoints = directory.join("checkpoints");
    flip_a_bit(&checkpoints.join("step-000004/optimizer.bpk"));

    let error = run(&recipe, true, None).0.unwrap_err().to_string();
    for words in [
        "step-000004 cannot be used: optimizer.bpk is damaged",
        "step-000003 is whole",
        "--auto-resume",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert!(checkpoints.join("step-000004").exists());

    let (summary, recorder) = recorded(&recipe, Start::Auto, None);
    assert!(summary.unwrap().finished);
    assert_eq!(recorder.losses.lock().unwrap()[0].0, 4);
    let notes = recorder.notes.lock().unwrap().clone();
    assert!(notes[0].contains("damaged-step-000004"), "{notes:?}");
    assert!(checkpoints.join("damaged-step-000004/trained.bpk").exists());
    assert!(adapter(&directory) == before, "adapters differ");
}

#[test]
fn without_a_whole_checkpoint_a_run_is_not_started_again_by_itself() {
    let out = tempfile::tempdir().unwrap();
    let recipe = recipe(out.path(), "run", &SHORT);
    let directory = out.path().join("run");
    run(&recipe, false, None).0.unwrap();
    without_its_result(&directory);
    for step in ["step-000003/trained.bpk", "step-000004/state.json"] {
        flip_a_bit(&directory.join("checkpoints").join(step));
    }
    for start in [Start::Resume, Start::Auto] {
        let error = run(&recipe, start, None).0.unwrap_err().to_string();
        assert!(
            error.contains("step-000004") && error.contains("No checkpoint of the run is whole"),
            "{error}"
        );
    }
    let state = json(&directory.join("checkpoints/step-000003/state.json"));
    assert_eq!(state["step"], 3);
}

fn checkpoints(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn old_checkpoints_go_after_a_kill_before_they_were_removed_or_while() {
    let out = tempfile::tempdir().unwrap();
    let recipe = recipe(out.path(), "run", &SHORT);
    run(&recipe, false, None).0.unwrap();
    let directory = out.path().join("run");
    let newest = ["step-000003", "step-000004"];
    assert_eq!(checkpoints(&directory), newest);
    let killed = || {
        let kept = directory.join("checkpoints");
        copy(&kept.join("step-000003"), &kept.join("step-000002"));
        copy(
            &kept.join("step-000003"),
            &kept.join(".staged-step-000001-remove"),
        );
        fs::remove_file(kept.join(".staged-step-000001-remove/state.json")).unwrap();
    };
    killed();
    without_its_result(&directory);
    observed(&recipe, Start::Auto, |_| {}).unwrap();
    assert_eq!(checkpoints(&directory), newest);
    // Of a version before, which removed them in the place where they were.
    killed();
    let error = observed(&recipe, Start::Auto, |_| {}).unwrap_err();
    assert!(matches!(error, RunError::Complete { .. }), "{error}");
    assert_eq!(checkpoints(&directory), newest);
}

#[test]
fn an_old_checkpoint_that_cannot_be_removed_costs_no_run() {
    let out = tempfile::tempdir().unwrap();
    let recipe = recipe(out.path(), "run", &SHORT);
    let directory = out.path().join("run");
    let old = directory.join("checkpoints/step-000000");
    let notes = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notes);
    observed(&recipe, Start::New, move |event| match event {
        // A file is removed in another way than a directory is.
        Event::Checkpoint { step: 1, .. } => fs::write(&old, "").unwrap(),
        Event::Note(note) => heard.lock().unwrap().push(note.clone()),
        _ => {}
    })
    .unwrap();
    let notes = notes.lock().unwrap();
    let told: Vec<_> = notes
        .iter()
        .filter(|note| note.contains("step-000000"))
        .collect();
    assert_eq!(told.len(), 1, "{notes:?}");
    assert!(is_finished(&directory));
    assert_eq!(checkpoints(&directory), ["step-000003", "step-000004"]);
}

#[test]
fn a_run_directory_that_goes_while_a_run_trains_is_an_error_and_not_made_again() {
    let out = tempfile::tempdir().unwrap();
    let recipe = recipe(out.path(), "run", &SHORT);
    let directory = out.path().join("run");
    let (from, to) = (directory.clone(), out.path().join("moved"));
    let error = observed(&recipe, Start::New, move |event| {
        if matches!(event, Event::Step(report) if report.step == 2) {
            fs::rename(&from, &to).unwrap();
        }
    })
    .unwrap_err();
    assert!(matches!(error, RunError::Vanished(_)), "{error}");
    let message = error.to_string();
    assert!(
        message.contains(directory.to_str().unwrap()) && message.contains("is gone"),
        "{message}"
    );
    assert!(!directory.exists());
    // Put back, it goes on.
    fs::rename(out.path().join("moved"), &directory).unwrap();
    observed(&recipe, Start::Resume, |_| {}).unwrap();
    assert!(is_finished(&directory));
}
