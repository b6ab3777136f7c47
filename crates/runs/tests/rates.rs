//! Learning rates that are found, and runs that end before their last step.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use common::{recipe, recorded, run};
use olora_runs::{
    Recipe, RunError, Start,
    recipe::{Keep, Rate},
};
use serde_json::Value;

const AUTO: &str = "training.learning_rate=auto";

/// The rate that a run was given, as its own recipe has it.
fn found(run: &Path) -> f64 {
    let recipe = Recipe::load(&run.join("recipe.toml"), &[]).unwrap();
    recipe.training.learning_rate.value().unwrap()
}

#[test]
fn a_rate_is_found_the_same_each_time_and_kept() {
    let out = tempfile::tempdir().unwrap();
    let settings = [AUTO, "training.max_steps=60", "training.batch_size=4"];
    let mut rates = Vec::new();
    for name in ["one", "other"] {
        let recipe = recipe(out.path(), name, &settings);
        let (summary, recorder) = recorded(&recipe, false, Some(2));
        assert!(!summary.unwrap().finished);
        let notes = recorder.notes.lock().unwrap().join("\n");
        let rate = found(&out.path().join(name));
        assert!(
            notes.contains(&format!("learning rate {rate:e}: one step")),
            "{notes}"
        );
        rates.push(rate);
    }
    assert_eq!(rates[0], rates[1]);
    // Between where nothing happens and where everything breaks.
    assert!((3e-4..2e-2).contains(&rates[0]), "{rates:?}");

    // It goes on at the rate that was found, without looking again.
    let again = recipe(out.path(), "one", &settings);
    let (summary, recorder) = recorded(&again, Start::Resume, Some(4));
    summary.unwrap();
    let notes = recorder.notes.lock().unwrap().join("\n");
    assert!(!notes.contains("learning rate"), "{notes}");
    assert_eq!(found(&out.path().join("one")), rates[0]);
    let other = settings.map(|one| {
        if one == AUTO {
            "training.learning_rate=1e-5"
        } else {
            one
        }
    });
    let refused = run(&recipe(out.path(), "one", &other), Start::Resume, None).0;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("training.learning_rate"), "{error}");
}

/// OLoRA's start makes every step larger, and the rate knows.
#[test]
fn a_method_with_longer_factors_gets_a_lower_rate() {
    let out = tempfile::tempdir().unwrap();
    let rate = |method: &str| {
        let method = format!("adapter.method={method}");
        let settings = [
            AUTO,
            "training.max_steps=80",
            "training.batch_size=8",
            &method,
        ];
        let name = method.replace('=', "-");
        run(&recipe(out.path(), &name, &settings), false, Some(1))
            .0
            .unwrap();
        found(&out.path().join(name))
    };
    let (lora, olora) = (rate("lora"), rate("olora"));
    assert!(olora < 0.6 * lora, "lora {lora}, olora {olora}");
}

#[test]
fn a_run_too_short_to_look_takes_a_usual_rate_and_says_so() {
    let out = tempfile::tempdir().unwrap();
    // Evaluations are part of what a run takes, so there are to be few of them.
    let validation = common::root().join("recipes/quickstart/valid.jsonl");
    let validation = format!("data.validation={}#4", validation.display());
    let settings = [
        AUTO,
        "training.max_steps=3",
        "training.batch_size=4",
        &validation,
    ];
    let recipe = recipe(out.path(), "short", &settings);
    let (summary, recorder) = recorded(&recipe, false, None);
    assert!(summary.unwrap().finished);
    let notes = recorder.notes.lock().unwrap().join("\n");
    assert!(notes.contains("is too little to look for one"), "{notes}");
    assert!(found(&out.path().join("short")) > 0.0);
}

/// The update that the run makes at a rate is the one that was tried at it.
#[test]
fn looking_changes_nothing_of_the_run() {
    let out = tempfile::tempdir().unwrap();
    let settings = [
        "training.max_steps=40",
        "training.batch_size=4",
        "adapter.dropout=0.1",
    ];
    let auto = [&[AUTO][..], &settings].concat();
    let (_, losses) = run(&recipe(out.path(), "auto", &auto), false, Some(3));
    let given = format!(
        "training.learning_rate={:e}",
        found(&out.path().join("auto"))
    );
    let given = [&[given.as_str()][..], &settings].concat();
    let (_, same) = run(&recipe(out.path(), "given", &given), false, Some(3));
    assert_eq!(losses, same);
}

#[test]
fn what_a_rate_cannot_be_found_for_is_refused_by_name() {
    let text = fs::read_to_string(common::root().join("recipes/quickstart.toml")).unwrap();
    for (settings, said) in [
        (&[AUTO, "training.optimizer=sgd"][..], "optimizer"),
        (
            &[AUTO, "training.min_learning_rate=1e-5"],
            "min_learning_rate",
        ),
        (&["training.learning_rate=fast"], "a number, or \"auto\""),
        (
            &["training.patience=2", "training.evaluate_every=0"],
            "evaluate_every",
        ),
        (&["training.decay_steps=2"], "schedule = \"wsd\""),
    ] {
        let settings: Vec<String> = settings.iter().map(|one| (*one).to_owned()).collect();
        let error = Recipe::parse(&text, "quickstart.toml", &settings).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}

/// A rate that rises all the way and in the end wrecks what was learned.
const RISING: [&str; 5] = [
    "training.max_steps=60",
    "training.evaluate_every=4",
    "training.checkpoint_every=0",
    "training.learning_rate=0.18",
    "training.warmup_steps=59",
];

fn summary(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap()
}

#[test]
fn patience_ends_a_run_that_has_ceased_to_learn_and_keeps_its_best() {
    let out = tempfile::tempdir().unwrap();
    let settings = [&RISING[..], &["training.patience=2"]].concat();
    let recipe = recipe(out.path(), "patient", &settings);
    assert_eq!(recipe.keep(), Keep::Best);
    let (ended, recorder) = recorded(&recipe, false, None);
    let ended = ended.unwrap();
    assert!(ended.finished && ended.stopped_early && ended.steps < 60);
    // Two evaluations after the best one, and not one more.
    assert_eq!(ended.best_step.unwrap() + 8, ended.steps);
    let notes = recorder.notes.lock().unwrap().join("\n");
    assert!(notes.contains("stopped early after step"), "{notes}");
    let directory = out.path().join("patient");
    assert_eq!(summary(&directory)["stopped_early"], true);
    let last = format!("checkpoints/step-{:06}", ended.steps);
    assert!(directory.join(last).exists());

    // It is complete, until more is asked for.
    let again = run(&recipe, Start::Resume, None).0;
    assert!(matches!(again, Err(RunError::Complete { .. })), "{again:?}");
    let more = [&RISING[..], &["training.patience=3", "output.keep=best"]].concat();
    let longer = run(
        &common::recipe(out.path(), "patient", &more),
        Start::Resume,
        None,
    )
    .0;
    let longer = longer.unwrap();
    assert!(
        longer.steps > ended.steps,
        "{} {}",
        longer.steps,
        ended.steps
    );
}

/// What is kept stays what it was when the run began, unless it is said.
#[test]
fn patience_may_be_added_on_resuming() {
    let out = tempfile::tempdir().unwrap();
    let begun = recipe(out.path(), "later", &["training.max_steps=8"]);
    assert!(!run(&begun, false, Some(3)).0.unwrap().finished);
    let more = [
        "training.max_steps=8",
        "training.evaluate_every=2",
        "training.patience=3",
    ];
    let (ended, recorder) = recorded(&recipe(out.path(), "later", &more), Start::Resume, None);
    assert!(ended.unwrap().finished);
    let notes = recorder.notes.lock().unwrap().join("\n");
    assert!(
        notes.contains("training.patience: was not set, now 3"),
        "{notes}"
    );
    let kept = Recipe::load(&out.path().join("later/recipe.toml"), &[]).unwrap();
    assert_eq!(kept.keep(), Keep::Last);
}

#[test]
fn a_run_that_goes_on_learning_is_not_ended() {
    let out = tempfile::tempdir().unwrap();
    let settings = [
        "training.max_steps=12",
        "training.evaluate_every=4",
        "training.patience=1",
    ];
    let ended = run(&recipe(out.path(), "learning", &settings), false, None)
        .0
        .unwrap();
    assert!(ended.finished && !ended.stopped_early && ended.steps == 12);
    let written = summary(&out.path().join("learning"));
    assert!(written.get("stopped_early").is_none(), "{written}");
}

#[test]
fn what_is_the_result_may_be_said_beside_patience() {
    let settings = [
        "training.patience=2",
        "training.evaluate_every=4",
        "output.keep=last",
    ];
    let out = tempfile::tempdir().unwrap();
    assert_eq!(recipe(out.path(), "last", &settings).keep(), Keep::Last);
    assert_eq!(recipe(out.path(), "last", &[]).keep(), Keep::Last);
    assert_eq!(
        Rate::Value(2e-4),
        Recipe::parse(
            "name = \"x\"\nmodel.path = \"m\"\ndata.train = \"d\"",
            "x",
            &[]
        )
        .unwrap()
        .training
        .learning_rate
    );
}

/// A run of twice the length is the same until the shorter one decays.
#[test]
fn warm_up_stable_decay_is_lengthened_without_a_change_of_what_was_stable() {
    let out = tempfile::tempdir().unwrap();
    let of = |steps: &'static str| [steps, "training.schedule=wsd", "training.decay_steps=3"];
    let (_, short) = run(
        &recipe(out.path(), "short", &of("training.max_steps=9")),
        false,
        None,
    );
    let (_, long) = run(
        &recipe(out.path(), "long", &of("training.max_steps=14")),
        false,
        None,
    );
    assert_eq!(short[..7], long[..7], "the rate falls from step 7 on");
    assert_ne!(short[8], long[8]);
}

/// Two questions: the scores of both evaluations are measured, and decide which is kept.
#[test]
fn a_run_is_scored_on_tasks_on_the_way_and_may_go_by_them() {
    let out = tempfile::tempdir().unwrap();
    let questions = [
        r#"{"query": "Question: Who is Imke?", "choices": ["a hen", "a friend"], "gold": 1}"#,
        r#"{"query": "Question: Who is Alder?", "choices": ["a baker", "a hen"], "gold": 0}"#,
    ];
    fs::write(out.path().join("arc_easy.jsonl"), questions.join("\n")).unwrap();
    let data = format!("tasks.data={:?}", out.path().display().to_string());
    let tasks = ["tasks.names=[\"arc_easy\"]", data.as_str()];
    let settings = [
        "training.max_steps=40",
        "training.evaluate_every=4",
        "training.patience=2",
    ];
    let settings = [&settings[..], &tasks, &["training.best_by=arc_easy"]].concat();
    let scored = recipe(out.path(), "scored", &settings);
    assert_eq!(scored.keep(), Keep::Best);
    let (ended, recorder) = recorded(&scored, false, None);
    let ended = ended.unwrap();
    let notes = recorder.notes.lock().unwrap().join("\n");
    let directory = out.path().join("scored");
    let text = fs::read_to_string(directory.join("metrics.jsonl")).unwrap();
    let scores: Vec<(u64, f64)> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|line| {
            Some((
                line["step"].as_u64()?,
                line["validation_measures"]["tasks/arc_easy"].as_f64()?,
            ))
        })
        .collect();
    assert!(
        scores
            .iter()
            .all(|(_, score)| [0.0, 0.5, 1.0].contains(score)),
        "{scores:?}"
    );
    // The first of the highest after the first step, whatever the loss does; two evaluations later
    // the run ends.
    let trained = scores.iter().filter(|(step, _)| *step > 0);
    let best = trained.fold(
        (0, -1.0),
        |best, next| if next.1 > best.1 { *next } else { best },
    );
    assert_eq!(
        ended.best_step.map(|step| step as u64),
        Some(best.0),
        "{scores:?}"
    );
    assert!(
        ended.stopped_early && ended.steps as u64 == best.0 + 8,
        "{scores:?}"
    );
    assert!(notes.contains("a higher tasks/arc_easy than"), "{notes}");
    assert_eq!(
        summary(&directory)["validation_measures"]["tasks/arc_easy"],
        scores.last().unwrap().1
    );

    // What is wrong is told before anything is made.
    for (settings, said) in [
        (&[tasks[0]][..], "go together"),
        (&["training.best_by=boolq"], "add it to `tasks.names`"),
        (&["training.best_by=fun"], "expected `loss` or a task"),
        (&["tasks.limit=2"], "`tasks.limit`"),
    ] {
        let text = fs::read_to_string(common::root().join("recipes/quickstart.toml")).unwrap();
        let settings: Vec<String> = settings.iter().map(|one| (*one).to_owned()).collect();
        let error = Recipe::parse(&text, "quickstart.toml", &settings).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    let missing = [&tasks[1..], &["tasks.names=[\"boolq\"]"]].concat();
    let error = run(&recipe(out.path(), "missing", &missing), false, None)
        .0
        .unwrap_err();
    assert!(error.to_string().contains("boolq.jsonl"), "{error}");
    assert!(!out.path().join("missing").exists());
}
