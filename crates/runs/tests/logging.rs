//! What TensorBoard and MLflow are told of runs of the quickstart, cut short.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;
#[path = "../../loggers/tests/reader/mod.rs"]
mod reader;
#[path = "../../loggers/tests/tracking/mod.rs"]
mod tracking;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use burn::tensor::Device;
use common::{Recorder, recipe, recorded, run};
use olora_runs::{Observer, plan};
use reader::{Field, events, field, inner, step, text};
use serde_json::Value;
use tracking::{Mode, Tracking};

const SETTINGS: [&str; 2] = ["training.max_steps=6", "training.checkpoint_every=0"];

/// Tag, step and value of what `metrics.jsonl` says.
fn logged(run: &Path) -> BTreeMap<(String, u64), f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let mut logged = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let step = line["step"].as_u64().unwrap();
        for (key, tag) in [
            ("loss", "train/loss"),
            ("learning_rate", "train/learning_rate"),
            ("grad_norm", "train/grad_norm"),
            ("tokens", "train/tokens"),
            ("tokens_per_second", "train/tokens_per_second"),
            ("seconds", "train/seconds"),
            ("peak_memory", "memory/peak_bytes"),
            ("device_memory", "memory/device_bytes"),
            ("validation_loss", "validation/loss"),
            ("validation_perplexity", "validation/perplexity"),
        ] {
            if let Some(value) = line[key].as_f64() {
                logged.insert((tag.to_owned(), step), value);
            }
        }
    }
    logged
}

/// The event files of a directory, in the order in which they are read.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Values by tag and step.
type Scalars = BTreeMap<(String, u64), f32>;
/// Tag, step and words.
type Texts = Vec<(String, u64, String)>;

/// What TensorBoard makes of the files: scalars, rounded, and texts. The start of
/// a session takes back what was said of its step and later ones.
fn shown(directory: &Path) -> (Scalars, Texts) {
    let (mut scalars, mut texts) = (Scalars::new(), Texts::new());
    for file in files(directory) {
        for event in events(&file) {
            let at = step(&event);
            if field(&event, 7).is_some() {
                scalars.retain(|(_, step), _| *step < at);
                texts.retain(|(_, step, _)| *step < at);
            }
            if field(&event, 5).is_none() {
                continue;
            }
            for (_, value) in inner(&event, 5) {
                let Field::Bytes(value) = value else {
                    panic!("{value:?}");
                };
                let value = reader::message(&value);
                let tag = text(&value, 1);
                match field(&value, 2) {
                    Some(Field::Bits32(bits)) => {
                        let was = scalars.insert((tag, at), f32::from_bits(bits));
                        assert_eq!(was, None, "twice");
                    }
                    _ => texts.push((tag, at, text(&inner(&value, 8), 8))),
                }
            }
        }
    }
    (scalars, texts)
}

fn rounded(logged: BTreeMap<(String, u64), f64>) -> Scalars {
    logged
        .into_iter()
        .map(|(key, value)| (key, value as f32))
        .collect()
}

#[test]
fn event_files_say_what_the_metrics_say_also_of_a_run_that_was_stopped() {
    let out = tempfile::tempdir().unwrap();
    let settings = [
        &SETTINGS[..],
        &[
            "logging.tensorboard=true",
            "samples.prompts=[\"Where does Alder live?\"]",
            "samples.max_new_tokens=2",
        ],
    ]
    .concat();
    let directory = out.path().join("watched");
    let (summary, _) = run(&recipe(out.path(), "watched", &settings), false, Some(2));
    assert!(!summary.unwrap().finished);
    let (first, _) = shown(&directory.join("tensorboard"));
    assert_eq!(first, rounded(logged(&directory)));

    let (summary, _) = run(&recipe(out.path(), "watched", &settings), true, None);
    assert!(summary.unwrap().finished);
    assert_eq!(files(&directory.join("tensorboard")).len(), 2);
    let (scalars, texts) = shown(&directory.join("tensorboard"));
    assert_eq!(scalars, rounded(logged(&directory)));
    assert!(scalars.contains_key(&("train/loss".to_owned(), 6)));
    assert!(scalars.contains_key(&("validation/loss".to_owned(), 0)));
    let tags: Vec<_> = texts
        .iter()
        .map(|(tag, step, _)| (tag.as_str(), *step))
        .collect();
    assert_eq!(
        tags,
        [
            ("recipe", 0),
            ("samples/1", 0),
            ("recipe", 3),
            ("samples/1", 6)
        ]
    );
    assert!(texts[0].2.contains("    max_steps = 6"), "{}", texts[0].2);
    assert!(
        texts[3].2.contains("    Where does Alder live?"),
        "{}",
        texts[3].2
    );
}

#[test]
fn a_run_that_starts_again_takes_back_all_that_it_said() {
    let out = tempfile::tempdir().unwrap();
    let logs = out.path().join("logs");
    let logging = format!("logging.tensorboard=\"{}\"", logs.display());
    let settings = [&SETTINGS[..], &[logging.as_str()]].concat();
    let recipe = recipe(out.path(), "again", &settings);
    run(&recipe, false, None).0.unwrap();
    // As if it had been killed before its first checkpoint.
    let directory = out.path().join("again");
    for name in ["checkpoints", "adapter"] {
        fs::remove_dir_all(directory.join(name)).unwrap();
    }
    fs::remove_file(directory.join("summary.json")).unwrap();
    run(&recipe, true, None).0.unwrap();
    let (scalars, _) = shown(&logs.join("again"));
    assert_eq!(scalars, rounded(logged(&directory)));
}

#[test]
fn what_cannot_be_written_for_tensorboard_is_a_note() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("file");
    fs::write(&file, []).unwrap();
    let logging = format!("logging.tensorboard=\"{}\"", file.display());
    let settings = [&SETTINGS[..], &[logging.as_str()]].concat();
    let (summary, recorder) = recorded(&recipe(out.path(), "blind", &settings), false, None);
    assert!(summary.unwrap().finished);
    let notes = recorder.notes.lock().unwrap().clone();
    let said = notes.iter().filter(|note| note.contains("TensorBoard"));
    assert_eq!(said.count(), 1, "{notes:?}");
}

/// What a server has, by key and step.
fn metrics(run: &tracking::Run) -> BTreeMap<(String, u64), f64> {
    let metrics = run.metrics.iter();
    metrics
        .map(|(key, step, value)| ((key.clone(), *step), value.as_f64().unwrap()))
        .collect()
}

#[test]
fn mlflow_has_the_metrics_and_the_recipe_of_a_run_that_was_stopped_and_goes_on() {
    let out = tempfile::tempdir().unwrap();
    let server = Tracking::start();
    let logging = format!(
        "logging.mlflow={{ uri = \"{}\", experiment = \"village\" }}",
        server.address()
    );
    let settings = [&SETTINGS[..], &[logging.as_str()]].concat();
    let recipe = recipe(out.path(), "tracked", &settings);
    assert!(!run(&recipe, false, Some(2)).0.unwrap().finished);
    assert_eq!(server.run().status, "KILLED");
    // Who is told of a run may change when it goes on.
    let more = [&settings[..], &["logging.tensorboard=true"]].concat();
    let more = common::recipe(out.path(), "tracked", &more);
    let (summary, recorder) = recorded(&more, true, None);
    assert!(summary.unwrap().finished);
    let directory = out.path().join("tracked");
    assert_eq!(files(&directory.join("tensorboard")).len(), 1);
    let tracked = server.run();
    assert_eq!(tracked.status, "FINISHED");
    assert_eq!(metrics(&tracked), logged(&directory));
    assert_eq!(tracked.name, "tracked");
    assert_eq!(server.state().experiments, ["village"]);
    let param = |key: &str| tracked.params.get(key).unwrap().as_str();
    assert_eq!(param("training.max_steps"), "6");
    assert_eq!(param("adapter.method"), "olora");
    assert!(!tracked.params.keys().any(|key| key.starts_with("logging")));
    assert_eq!(
        tracked.tags.get("olora.version").unwrap(),
        env!("CARGO_PKG_VERSION")
    );
    let notes = recorder.notes.lock().unwrap().clone();
    assert!(
        !notes.iter().any(|note| note.contains("MLflow")),
        "{notes:?}"
    );
}

#[test]
fn a_run_that_fails_is_failed_on_the_server() {
    let out = tempfile::tempdir().unwrap();
    let server = Tracking::start();
    let logging = format!("logging.mlflow=\"{}\"", server.address());
    let settings = [
        &SETTINGS[..],
        &[
            logging.as_str(),
            "training.optimizer=sgd",
            "training.learning_rate=1e20",
            "training.max_grad_norm=0",
            "training.warmup_steps=0",
        ],
    ]
    .concat();
    let (result, _) = run(&recipe(out.path(), "lost", &settings), false, None);
    result.unwrap_err();
    assert_eq!(server.run().status, "FAILED");
}

#[test]
fn a_server_that_says_nothing_does_not_keep_a_run_from_ending_well() {
    let out = tempfile::tempdir().unwrap();
    let server = Tracking::start();
    server.state().mode = Mode::Silent;
    let plain = recipe(out.path(), "plain", &SETTINGS);
    let began = Instant::now();
    run(&plain, false, None).0.unwrap();
    let usual = began.elapsed();
    let logging = format!("logging.mlflow=\"{}\"", server.address());
    let settings = [&SETTINGS[..], &[logging.as_str()]].concat();
    let began = Instant::now();
    let (summary, recorder) = recorded(&recipe(out.path(), "silence", &settings), false, None);
    assert!(summary.unwrap().finished);
    // Ten seconds at the end, and what a busy machine may take.
    let most = 3 * usual + Duration::from_secs(20);
    assert!(began.elapsed() < most, "{:?}, {usual:?}", began.elapsed());
    let notes = recorder.notes.lock().unwrap().clone();
    let unsent = out.path().join("silence/mlflow-unsent.jsonl");
    assert!(
        notes
            .iter()
            .any(|note| note.contains(&unsent.display().to_string())),
        "{notes:?}"
    );
    let lines = fs::read_to_string(unsent).unwrap().lines().count();
    assert_eq!(lines, logged(&out.path().join("silence")).len());
}

#[test]
fn a_plan_tells_nobody() {
    let out = tempfile::tempdir().unwrap();
    let server = Tracking::start();
    let logging = format!("logging.mlflow=\"{}\"", server.address());
    let settings = [
        &SETTINGS[..],
        &[logging.as_str(), "logging.tensorboard=true"],
    ]
    .concat();
    let recipe = recipe(out.path(), "planned", &settings);
    let observer: Arc<dyn Observer> = Arc::new(Recorder::default());
    let details = olora_devices::Details::default();
    plan(&recipe, &Device::flex(), &details, false, &observer).unwrap();
    assert!(server.state().requests.is_empty());
    assert!(!out.path().join("planned").exists());
}
