//! Runs on a tracking server that goes away, comes back, says nothing, refuses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod tracking;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use olora_loggers::{Mlflow, MlflowOptions, Pace, Server, Status};
use serde_json::{Value, json};
use tracking::{Mode, Tracking};

/// Impatient, so that tests are quick.
const PACE: Pace = Pace {
    request: Duration::from_millis(500),
    gather: Duration::from_millis(2),
    first_wait: Duration::from_millis(10),
    longest_wait: Duration::from_millis(50),
    at_end: Duration::from_millis(1500),
    capacity: 1000,
};

/// What a busy machine may take beyond that.
const SLACK: Duration = Duration::from_secs(5);

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn options(address: &str, directory: &Path) -> MlflowOptions {
    MlflowOptions {
        server: Server::new(address).unwrap(),
        experiment: "village".to_owned(),
        run_name: "quick".to_owned(),
        params: vec![pair("adapter.rank", "8"), pair("seed", "42")],
        tags: vec![pair("olora.version", "0.1.0")],
        directory: directory.to_owned(),
        resumed_after: None,
        pace: PACE,
    }
}

fn log(mlflow: &Mlflow, steps: impl IntoIterator<Item = u64>) {
    for step in steps {
        mlflow.log(step, &[("train/loss".to_owned(), loss(step))]);
    }
}

/// Few digits: those of others may come back as their neighbours, by the way in
/// which `serde_json` reads numbers.
fn loss(step: u64) -> f64 {
    4.0 - step as f64 / 64.0
}

/// What a server has of steps that were logged, each once and in order.
fn expected(steps: impl IntoIterator<Item = u64>) -> Vec<(String, u64, Value)> {
    let steps = steps.into_iter();
    steps
        .map(|step| ("train/loss".to_owned(), step, json!(loss(step))))
        .collect()
}

/// The steps in the file of what was not delivered.
fn unsent(directory: &Path) -> Vec<u64> {
    let text = fs::read_to_string(directory.join("mlflow-unsent.jsonl")).unwrap_or_default();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| line["step"].as_u64().unwrap()).collect()
}

#[test]
fn a_run_is_made_described_and_ended() {
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    let mlflow = Mlflow::begin(options(&server.address(), directory.path()));
    log(&mlflow, 1..=3);
    mlflow.log(3, &[("tasks/no%sign".to_owned(), f64::NAN)]);
    assert_eq!(mlflow.finish(Status::Finished), Vec::<String>::new());
    let run = server.run();
    assert_eq!(
        (run.name.as_str(), run.status.as_str()),
        ("quick", "FINISHED")
    );
    assert_eq!(server.state().experiments, ["village"]);
    assert_eq!(run.experiment, "0");
    assert_eq!(run.params.get("adapter.rank").unwrap(), "8");
    assert_eq!(run.tags.get("olora.version").unwrap(), "0.1.0");
    assert_eq!(run.tags.get("mlflow.runName").unwrap(), "quick");
    let mut metrics = expected(1..=3);
    metrics.push(("tasks/no_sign".to_owned(), 3, json!("NaN")));
    assert_eq!(run.metrics, metrics);
    assert!(!directory.path().join("mlflow-unsent.jsonl").exists());
}

#[test]
fn how_a_run_ended_is_told() {
    for (status, expected) in [(Status::Failed, "FAILED"), (Status::Killed, "KILLED")] {
        let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
        let mlflow = Mlflow::begin(options(&server.address(), directory.path()));
        mlflow.finish(status);
        assert_eq!(server.run().status, expected);
    }
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    drop(Mlflow::begin(options(&server.address(), directory.path())));
    assert_eq!(server.run().status, "FAILED", "it was dropped");
}

#[test]
fn requests_are_within_mlflows_limits() {
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    let params = (0..250).map(|n| pair(&format!("key{n}"), "x")).collect();
    let pace = Pace {
        capacity: 10_000,
        ..PACE
    };
    let options = MlflowOptions {
        params,
        pace,
        ..options(&server.address(), directory.path())
    };
    let mlflow = Mlflow::begin(options);
    let values: Vec<_> = (0..2500)
        .map(|n| (format!("metric{n}"), f64::from(n)))
        .collect();
    mlflow.log(1, &values);
    assert_eq!(mlflow.finish(Status::Finished), Vec::<String>::new());
    let run = server.run();
    assert_eq!((run.params.len(), run.metrics.len()), (250, 2500));
    let batches = &server.state().batches;
    let largest = batches.iter().fold((0, 0), |most, batch| {
        (most.0.max(batch.0), most.1.max(batch.1))
    });
    assert_eq!(largest, (100, 1000));
}

#[test]
fn nothing_is_lost_while_the_server_is_away_and_that_is_said_once() {
    let (mut server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    let mlflow = Mlflow::begin(options(&server.address(), directory.path()));
    log(&mlflow, 1..=5);
    server.wait("five steps", |state| {
        state.runs.first().is_some_and(|run| run.metrics.len() == 5)
    });
    server.go_away();
    log(&mlflow, 6..=80);
    let began = Instant::now();
    let mut notes = Vec::new();
    while notes.is_empty() {
        assert!(began.elapsed() < SLACK, "nothing is said");
        std::thread::sleep(Duration::from_millis(5));
        notes = mlflow.notes();
    }
    // Some more failures.
    std::thread::sleep(5 * PACE.longest_wait);
    server.come_back();
    log(&mlflow, 81..=90);
    server.wait("all steps", |state| state.runs[0].metrics.len() >= 90);
    notes.extend(mlflow.finish(Status::Finished));
    let run = server.run();
    assert_eq!(run.metrics, expected(1..=90));
    assert_eq!(run.status, "FINISHED");
    let [away, back] = &notes[..] else {
        panic!("{notes:?}");
    };
    assert!(
        away.contains(&server.address()) && away.contains("does not take"),
        "{away}"
    );
    assert!(back.contains("is back"), "{back}");
    assert_eq!(unsent(directory.path()), [0; 0]);
}

#[test]
fn a_server_that_never_was_there_holds_up_nothing_and_gets_it_on_resuming() {
    let (mut server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    server.go_away();
    let began = Instant::now();
    let mlflow = Mlflow::begin(options(&server.address(), directory.path()));
    log(&mlflow, 1..=200);
    assert!(
        began.elapsed() < PACE.request,
        "{:?} to log",
        began.elapsed()
    );
    let notes = mlflow.finish(Status::Killed);
    assert!(
        began.elapsed() < PACE.at_end + SLACK,
        "{:?}",
        began.elapsed()
    );
    assert_eq!(unsent(directory.path()), (1..=200).collect::<Vec<_>>());
    let end = notes.last().unwrap();
    let file = directory.path().join("mlflow-unsent.jsonl");
    for words in [
        "200 values",
        &file.display().to_string(),
        "not KILLED there",
    ] {
        assert!(end.contains(words), "{words}: {end}");
    }

    server.come_back();
    // From the checkpoint of step 150 on.
    let options = MlflowOptions {
        resumed_after: Some(150),
        ..options(&server.address(), directory.path())
    };
    let mlflow = Mlflow::begin(options);
    log(&mlflow, 151..=210);
    assert_eq!(mlflow.finish(Status::Finished), Vec::<String>::new());
    assert_eq!(server.run().metrics, expected(1..=210));
    assert!(!file.exists(), "everything was delivered");
}

#[test]
fn a_server_that_accepts_and_never_answers_holds_up_nothing() {
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    server.state().mode = Mode::Silent;
    let mlflow = Mlflow::begin(options(&server.address(), directory.path()));
    let began = Instant::now();
    log(&mlflow, 1..=200);
    assert!(
        began.elapsed() < PACE.request,
        "{:?} to log",
        began.elapsed()
    );
    let ending = Instant::now();
    let notes = mlflow.finish(Status::Finished);
    assert!(
        ending.elapsed() < PACE.at_end + SLACK,
        "{:?}",
        ending.elapsed()
    );
    let end = notes.last().unwrap();
    assert!(
        end.contains("200 values") && end.contains("not answered within 500ms"),
        "{end}"
    );
    assert_eq!(unsent(directory.path()).len(), 200);
}

/// A run on a server that takes half of the patience for each answer, with so
/// many values to send at its end.
fn slow(server: &Tracking, directory: &Path, n: u32) -> (Duration, Vec<String>) {
    server.state().mode = Mode::Slow(PACE.request / 2);
    let pace = Pace {
        capacity: 20_000,
        at_end: PACE.request,
        ..PACE
    };
    let mlflow = Mlflow::begin(MlflowOptions {
        pace,
        ..options(&server.address(), directory)
    });
    server.wait("a run", |state| !state.batches.is_empty());
    let values = (0..n).map(|n| (format!("metric{n}"), f64::from(n)));
    mlflow.log(1, &values.collect::<Vec<_>>());
    let began = Instant::now();
    let notes = mlflow.finish(Status::Finished);
    (began.elapsed(), notes)
}

#[test]
fn a_server_that_is_slow_is_waited_for_as_long_as_it_answers() {
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    // Four requests and the end, which together take longer than an answer may.
    let (waited, notes) = slow(&server, directory.path(), 4000);
    assert_eq!(notes, Vec::<String>::new());
    assert!(waited > PACE.request, "it was not slow: {waited:?}");
    assert_eq!(server.run().metrics.len(), 4000);
}

#[test]
fn a_server_that_is_slow_is_not_waited_for_without_end() {
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    let (waited, notes) = slow(&server, directory.path(), 20_000);
    assert!(waited < 6 * PACE.request + SLACK, "{waited:?}");
    assert!(notes.last().unwrap().contains("not delivered"), "{notes:?}");
    let (n_sent, n_kept) = (server.run().metrics.len(), unsent(directory.path()).len());
    // The request that was under way may have arrived, too.
    let both = 20_000..=21_000;
    assert!(both.contains(&(n_sent + n_kept)), "{n_sent} and {n_kept}");
}

#[test]
fn a_run_that_was_made_in_silence_is_found_and_not_made_twice() {
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    server.state().mode = Mode::SilentAboutTheRun;
    let mlflow = Mlflow::begin(options(&server.address(), directory.path()));
    log(&mlflow, 1..=3);
    mlflow.finish(Status::Finished);
    let run = server.run();
    assert_eq!(run.metrics, expected(1..=3));
    assert_eq!(run.params.len(), 2);
}

#[test]
fn a_run_that_is_resumed_goes_on_with_its_run_on_the_server() {
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    let first = Mlflow::begin(options(&server.address(), directory.path()));
    log(&first, 1..=4);
    first.finish(Status::Killed);
    assert_eq!(server.run().status, "KILLED");

    let resumed = MlflowOptions {
        params: vec![
            pair("adapter.rank", "8"),
            pair("seed", "43"),
            pair("patience", "2"),
        ],
        resumed_after: Some(4),
        ..options(&server.address(), directory.path())
    };
    let second = Mlflow::begin(resumed);
    server.wait("it runs", |state| state.runs[0].status == "RUNNING");
    log(&second, 5..=6);
    assert_eq!(second.finish(Status::Finished), Vec::<String>::new());
    let run = server.run();
    assert_eq!(run.metrics, expected(1..=6));
    assert_eq!(run.status, "FINISHED");
    // MLflow lets nobody change a parameter.
    assert_eq!(run.params.get("seed").unwrap(), "42");
    assert_eq!(run.tags.get("resumed.seed").unwrap(), "43");
    assert!(!run.tags.contains_key("resumed.adapter.rank"));
    assert_eq!(run.params.get("patience").unwrap(), "2");
}

#[test]
fn a_run_that_was_deleted_on_the_server_is_followed_by_another() {
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    Mlflow::begin(options(&server.address(), directory.path())).finish(Status::Killed);
    server.state().runs[0].is_deleted = true;
    let options = MlflowOptions {
        resumed_after: Some(1),
        ..options(&server.address(), directory.path())
    };
    let mlflow = Mlflow::begin(options);
    log(&mlflow, 2..=3);
    let notes = mlflow.finish(Status::Finished);
    assert!(
        notes[0].contains("run0 is no longer on the server"),
        "{notes:?}"
    );
    let state = server.state();
    assert_eq!(state.runs.len(), 2);
    assert_eq!(state.runs[1].metrics, expected(2..=3));
}

#[test]
fn another_experiment_is_another_run() {
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    Mlflow::begin(options(&server.address(), directory.path())).finish(Status::Killed);
    let options = MlflowOptions {
        experiment: "town".to_owned(),
        resumed_after: Some(1),
        ..options(&server.address(), directory.path())
    };
    Mlflow::begin(options).finish(Status::Finished);
    let state = server.state();
    let runs: Vec<_> = state
        .runs
        .iter()
        .map(|run| (run.experiment.as_str(), run.status.as_str()))
        .collect();
    assert_eq!(runs, [("0", "KILLED"), ("1", "FINISHED")]);
}

#[test]
fn values_that_are_refused_do_not_stand_in_the_way_of_others() {
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    server.state().refused_key = Some("bad".to_owned());
    let mlflow = Mlflow::begin(options(&server.address(), directory.path()));
    log(&mlflow, 1..=2);
    server.wait("two steps", |state| {
        state.runs.first().is_some_and(|run| run.metrics.len() == 2)
    });
    for step in 3..=4 {
        let n = server.state().batches.len();
        mlflow.log(step, &[("bad".to_owned(), 0.5)]);
        server.wait("a refusal", |state| state.batches.len() > n);
    }
    log(&mlflow, 5..=5);
    let notes = mlflow.finish(Status::Finished);
    assert_eq!(
        server.run().metrics,
        [expected(1..=2), expected(5..=5)].concat()
    );
    assert_eq!(server.run().status, "FINISHED");
    assert_eq!(unsent(directory.path()), [3, 4]);
    let [refused, end] = &notes[..] else {
        panic!("{notes:?}");
    };
    assert!(
        refused.contains("INVALID_PARAMETER_VALUE: no such key, please"),
        "{refused}"
    );
    assert!(end.contains("2 values"), "{end}");
}

#[test]
fn what_does_not_fit_into_the_buffer_goes_into_the_file() {
    let (mut server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    server.go_away();
    let pace = Pace {
        capacity: 30,
        ..PACE
    };
    let options = MlflowOptions {
        pace,
        ..options(&server.address(), directory.path())
    };
    let mlflow = Mlflow::begin(options);
    log(&mlflow, 1..=40);
    assert_eq!(unsent(directory.path()), (31..=40).collect::<Vec<_>>());
    server.come_back();
    let notes = mlflow.finish(Status::Finished);
    assert_eq!(server.run().metrics, expected(1..=30));
    assert!(notes.last().unwrap().starts_with("10 values"), "{notes:?}");
}

#[test]
fn a_token_goes_to_the_server_and_into_no_note() {
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    server.state().mode = Mode::Say(401, json!({ "message": "bad token hush-hush" }));
    let options = MlflowOptions {
        server: Server::new(&server.address())
            .unwrap()
            .with_token("hush-hush")
            .unwrap(),
        ..options(&server.address(), directory.path())
    };
    let mlflow = Mlflow::begin(options);
    log(&mlflow, 1..=2);
    server.wait("some requests", |state| state.requests.len() > 2);
    let notes = mlflow.finish(Status::Finished);
    let sent = server.state().requests[0].1.clone();
    assert_eq!(sent.as_deref(), Some("Bearer hush-hush"));
    let notes = notes.join("\n");
    assert!(
        notes.contains("401") && notes.contains("MLFLOW_TRACKING_"),
        "{notes}"
    );
    assert!(!notes.contains("hush-hush"), "{notes}");
    for file in fs::read_dir(directory.path()).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("hush-hush"), "{text}");
    }
}

#[test]
fn what_is_no_mlflow_is_told() {
    let (server, directory) = (Tracking::start(), tempfile::tempdir().unwrap());
    server.state().mode = Mode::Say(404, json!("not found"));
    let mlflow = Mlflow::begin(options(&server.address(), directory.path()));
    server.wait("some requests", |state| state.requests.len() > 2);
    let notes = mlflow.finish(Status::Finished).join("\n");
    assert!(notes.contains("something else than MLflow"), "{notes}");
}
