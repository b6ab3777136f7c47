//! A run of another length, and what else may change when it is resumed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use common::{recipe, recorded, root, run};
use olora_runs::{RunError, Start, recipe::AdapterSection};
use serde_json::Value;

const CONSTANT: [&str; 3] = [
    "training.schedule=constant",
    "training.checkpoint_every=1",
    "adapter.dropout=0.1",
];

fn adapter(run: &Path) -> Vec<u8> {
    fs::read(run.join("adapter/adapter_model.safetensors")).unwrap()
}

fn summary(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap()
}

fn with<'a>(settings: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [settings, more].concat()
}

#[test]
fn a_lengthened_run_is_that_of_its_length_from_the_start_bit_for_bit() {
    let out = tempfile::tempdir().unwrap();
    let long = with(&CONSTANT, &["training.max_steps=6"]);
    let (straight, losses) = run(&recipe(out.path(), "straight", &long), false, None);
    let straight = straight.unwrap();

    let short = with(&CONSTANT, &["training.max_steps=3"]);
    let (first, mut of_both) = run(&recipe(out.path(), "run", &short), false, None);
    assert!(first.unwrap().finished);
    let (second, rest) = run(&recipe(out.path(), "run", &long), true, None);
    let second = second.unwrap();
    of_both.extend(rest);

    assert!(
        adapter(&out.path().join("run")) == adapter(&out.path().join("straight")),
        "adapters differ"
    );
    assert_eq!(of_both, losses);
    assert_eq!(
        (second.steps, second.tokens, second.validation_loss),
        (straight.steps, straight.tokens, straight.validation_loss)
    );
    let kept = fs::read_to_string(out.path().join("run/recipe.toml")).unwrap();
    assert!(kept.contains("max_steps = 6"), "{kept}");
}

#[test]
fn a_run_that_trains_every_weight_is_lengthened_too() {
    let out = tempfile::tempdir().unwrap();
    let of = |name: &str, steps: &str| {
        let settings = ["training.schedule=constant", steps];
        let mut recipe = recipe(out.path(), name, &settings);
        recipe.adapter = AdapterSection::everything();
        recipe
    };
    let six = "training.max_steps=6";
    run(&of("straight", six), false, None).0.unwrap();
    run(&of("run", "training.max_steps=3"), false, None)
        .0
        .unwrap();
    run(&of("run", six), true, None).0.unwrap();
    let model = |name: &str| {
        let file = out.path().join(name).join("model/model.safetensors");
        fs::read(file).unwrap()
    };
    assert!(model("run") == model("straight"), "models differ");
}

#[test]
fn a_lengthened_run_that_is_interrupted_goes_on_too() {
    let out = tempfile::tempdir().unwrap();
    let long = with(&CONSTANT, &["training.max_steps=6"]);
    run(&recipe(out.path(), "straight", &long), false, None)
        .0
        .unwrap();
    let short = with(&CONSTANT, &["training.max_steps=3"]);
    run(&recipe(out.path(), "run", &short), false, None)
        .0
        .unwrap();
    let long = recipe(out.path(), "run", &long);
    assert!(!run(&long, Start::Auto, Some(4)).0.unwrap().finished);
    // Now it is the run of the longer recipe, which nothing has changed in.
    let (ended, recorder) = recorded(&long, true, None);
    assert!(ended.unwrap().finished);
    assert_eq!(*recorder.notes.lock().unwrap(), Vec::<String>::new());
    assert!(
        adapter(&out.path().join("run")) == adapter(&out.path().join("straight")),
        "adapters differ"
    );
    let error = run(&long, true, None).0.unwrap_err().to_string();
    assert!(
        error.contains("is complete, with 6 steps") && error.contains("training.max_steps=…"),
        "{error}"
    );
}

#[test]
fn what_may_not_change_is_named_before_the_data_is_read() {
    let out = tempfile::tempdir().unwrap();
    let data = out.path().join("train.jsonl");
    fs::copy(root().join("recipes/quickstart/train.jsonl"), &data).unwrap();
    let train = format!("data.train=\"{}\"", data.display());
    let settings = ["training.max_steps=2", train.as_str()];
    run(&recipe(out.path(), "run", &settings), false, None)
        .0
        .unwrap();
    let before = adapter(&out.path().join("run"));
    fs::remove_file(&data).unwrap();
    let changed = [
        train.as_str(),
        "training.max_steps=4",
        "training.batch_size=3",
        "training.learning_rate=5e-4",
        "adapter.targets=[\"q_proj\"]",
        "training.checkpoint_every=7",
    ];
    let error = run(&recipe(out.path(), "run", &changed), true, None).0;
    let error = error.unwrap_err().to_string();
    for line in [
        "training.batch_size: was 2, now 3",
        "training.learning_rate: was 0.002, now 0.0005",
        "adapter.targets: was [\"all-linear\"], now [\"q_proj\"]",
        "What may change on resuming: the length",
        "--from",
    ] {
        assert!(error.contains(line), "{line}: {error}");
    }
    assert!(!error.contains("max_steps: was"), "{error}");
    assert!(!error.contains("checkpoint_every: was"), "{error}");
    assert!(adapter(&out.path().join("run")) == before);
}

#[test]
fn what_decides_no_weight_may_change_and_is_said() {
    let out = tempfile::tempdir().unwrap();
    let settings = ["training.max_steps=4", "training.checkpoint_every=1"];
    run(&recipe(out.path(), "straight", &settings), false, None)
        .0
        .unwrap();
    run(&recipe(out.path(), "run", &settings), false, Some(1))
        .0
        .unwrap();
    let changed = [
        "training.max_steps=4",
        "training.checkpoint_every=2",
        "training.keep_checkpoints=5",
        "training.log_every=3",
        "training.evaluate_every=1",
        "training.recompute=blocks",
        "samples.prompts=[\"Where does Alder live?\"]",
        "samples.max_new_tokens=2",
        "model.base_name=\"village\"",
    ];
    let (result, recorder) = recorded(&recipe(out.path(), "run", &changed), true, None);
    result.unwrap();
    let notes = recorder.notes.lock().unwrap().join("\n");
    for change in [
        "training.log_every: was 1, now 3",
        "training.recompute: was \"none\", now \"blocks\"",
        "model.base_name: was not set, now \"village\"",
    ] {
        assert!(notes.contains(change), "{change}: {notes}");
    }
    assert!(
        adapter(&out.path().join("run")) == adapter(&out.path().join("straight")),
        "adapters differ"
    );
}

#[test]
fn a_rate_that_follows_the_length_is_computed_over_the_new_one_and_said() {
    let out = tempfile::tempdir().unwrap();
    run(
        &recipe(out.path(), "run", &["training.max_steps=3"]),
        false,
        None,
    )
    .0
    .unwrap();
    let long = recipe(out.path(), "run", &["training.max_steps=8"]);
    let (result, recorder) = recorded(&long, true, None);
    result.unwrap();
    let notes = recorder.notes.lock().unwrap().join("\n");
    let next = long.training.learning_rate(8).at(4);
    for said in [
        "is computed over 8 steps from here on",
        &format!("{next:.3e} at step 4"),
        "the shorter run ended at 0.000e0",
    ] {
        assert!(notes.contains(said), "{said}: {notes}");
    }
    let text = fs::read_to_string(out.path().join("run/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let logged = lines
        .iter()
        .find(|line| line["step"] == 4 && line["learning_rate"].is_f64());
    assert_eq!(logged.unwrap()["learning_rate"], next);
}

#[test]
fn passes_over_the_data_are_lengthened_after_a_step_that_was_not_full() {
    let out = tempfile::tempdir().unwrap();
    let train = root().join("recipes/quickstart/train.jsonl");
    // Five micro-batches an epoch, two in a step.
    let train = format!("data.train=\"{}#10\"", train.display());
    let of = |epochs: &'static str| {
        let settings = [&train, "training.accumulation=2", epochs];
        recipe(out.path(), "run", &settings)
    };
    let first = run(&of("training.epochs=1"), false, None).0.unwrap();
    assert_eq!(first.steps, 3);
    let twice = of("training.epochs=2");
    assert_eq!(run(&twice, true, None).0.unwrap().steps, 6);
    let error = run(&twice, true, None).0.unwrap_err();
    assert!(
        matches!(error, RunError::Complete { steps: 6, .. }),
        "{error}"
    );
    // The same length, counted otherwise.
    let error = run(&of("training.max_steps=6"), true, None).0.unwrap_err();
    assert!(
        matches!(error, RunError::Complete { steps: 6, .. }),
        "{error}"
    );
}

#[test]
fn a_run_is_not_shortened_and_not_lengthened_without_its_optimiser() {
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().join("run");
    let of = |length: &str| recipe(out.path(), "run", &[length]);
    run(&of("training.max_steps=3"), false, None).0.unwrap();
    let before = adapter(&directory);
    let error = run(&of("training.max_steps=2"), true, None).0.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("it has made 3 steps, and the recipe asks for 2 in all"),
        "{error}"
    );
    fs::remove_dir_all(directory.join("checkpoints")).unwrap();
    for start in [Start::Resume, Start::Auto] {
        let error = run(&of("training.max_steps=4"), start, None).0.unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("none of its checkpoints is left") && error.contains("--from"),
            "{error}"
        );
    }
    assert!(adapter(&directory) == before);
    assert_eq!(summary(&directory)["finished"], true);
}
