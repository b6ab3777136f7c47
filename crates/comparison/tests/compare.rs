//! Comparisons: each method at its own rate, finished runs kept, interrupted
//! ones gone on with.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

#[path = "../../runs/tests/common/mod.rs"]
mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use burn::{tensor::Device, train::Interrupter};
use common::{GENERATOR, recipe};
use olora_comparison::{
    CompareOptions, Comparison, ComparisonError, ComparisonEvent, ComparisonObserver, Report,
};
use olora_runs::Event;
use serde_json::Value;

/// What a comparison said, and where to stop it.
#[derive(Default)]
struct Recorder {
    begun: Mutex<Vec<String>>,
    evaluations: AtomicUsize,
    stop_at_evaluation: Option<(usize, Interrupter)>,
}

impl ComparisonObserver for Recorder {
    fn on(&self, event: &ComparisonEvent<'_>) {
        match event {
            ComparisonEvent::Trial { name, .. } => {
                self.begun.lock().unwrap().push((*name).to_owned());
            }
            ComparisonEvent::Run(Event::Evaluated { .. }) => {
                let n = self.evaluations.fetch_add(1, Ordering::SeqCst) + 1;
                if let Some((at, interrupter)) = &self.stop_at_evaluation
                    && n == *at
                {
                    interrupter.stop(Some("test"));
                }
            }
            _ => {}
        }
    }
}

fn comparison(out: &Path, overrides: &[&str]) -> Comparison {
    let short = ["training.max_steps=6", "training.evaluate_every=2"];
    let settings = [&short[..], overrides].concat();
    Comparison {
        recipe: recipe(out, "base", &settings),
        variants: vec!["lora".parse().unwrap(), "olora".parse().unwrap()],
        ranks: vec![4],
        rates: vec![1e-3, 4e-3],
        widen: 0,
        refine: None,
        one_rates: Vec::new(),
        lengths: Vec::new(),
        seeds: vec![1, 2],
        tuning_seeds: 1,
        directory: out.join("comparison"),
    }
}

/// The names of the runs that were begun, with the result.
fn compare(
    comparison: &Comparison,
    stop_at_evaluation: Option<usize>,
) -> (Result<bool, ComparisonError>, Vec<String>) {
    let _alone = GENERATOR
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let interrupter = Interrupter::new();
    let recorder = Arc::new(Recorder {
        stop_at_evaluation: stop_at_evaluation.map(|n| (n, interrupter.clone())),
        ..Recorder::default()
    });
    let options = CompareOptions {
        interrupter,
        ..CompareOptions::default()
    };
    let observer: Arc<dyn ComparisonObserver> = recorder.clone();
    let result = comparison.run(&Device::flex(), &options, &observer);
    let begun = recorder.begun.lock().unwrap().clone();
    (result, begun)
}

/// The finished runs by name: validation curves, seeds and so on.
fn cells(comparison: &Comparison) -> BTreeMap<String, Value> {
    let entries = fs::read_dir(comparison.directory.join("cells")).unwrap();
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let cell = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), cell)
        })
        .collect()
}

/// Under any objective: the runs share it, and the report has what it measures.
#[test]
fn methods_are_compared_by_what_they_learn_from_preferences() {
    let out = tempfile::tempdir().unwrap();
    let data = common::root().join("recipes/quickstart");
    let of = |key: &str, file: &str| format!("data.{key}=\"{}\"", data.join(file).display());
    let (train, valid) = (
        of("train", "pairs-train.jsonl"),
        of("validation", "pairs-valid.jsonl#8"),
    );
    let comparison = Comparison {
        rates: vec![1e-3],
        seeds: vec![1],
        ..comparison(out.path(), &[&train, &valid, "objective.method=dpo"])
    };
    assert!(compare(&comparison, None).0.unwrap());
    for cell in cells(&comparison).values() {
        let margin = cell["measures"]["rewards/margins"].as_f64().unwrap();
        assert!(margin > 0.0, "{margin}");
    }
    let report = Report::read(&comparison.directory).unwrap();
    let text = report.markdown();
    assert!(text.contains("| objective | dpo |"), "{text}");
    assert!(text.contains("pairs of sequences"), "{text}");
    assert!(
        text.contains("| method | logps/chosen | logps/rejected | nll_loss | rewards/accuracies |"),
        "{text}"
    );
}

#[test]
fn each_method_is_tuned_and_run_over_the_seeds_once() {
    let out = tempfile::tempdir().unwrap();
    let comparison = comparison(out.path(), &[]);
    let (finished, begun) = compare(&comparison, None);
    assert!(finished.unwrap());
    // Two rates for each of two methods, and a second seed for each.
    assert_eq!(begun.len(), 6, "{begun:?}");
    let found = cells(&comparison);
    for cell in found.values() {
        let curve = cell["validation"].as_array().unwrap();
        let steps: Vec<u64> = curve.iter().map(|p| p[0].as_u64().unwrap()).collect();
        assert_eq!(steps, [0, 2, 4, 6]);
    }
    for method in ["lora", "olora"] {
        let last = |name: &str| found[name]["validation"][3][1].as_f64().unwrap();
        let slow = last(&format!("{method}-r4-lr1e-3-seed1"));
        let fast = last(&format!("{method}-r4-lr4e-3-seed1"));
        let best = if slow < fast { "1e-3" } else { "4e-3" };
        let second: Vec<&String> = found
            .keys()
            .filter(|name| name.starts_with(&format!("{method}-")) && name.ends_with("seed2"))
            .collect();
        assert_eq!(second, [&format!("{method}-r4-lr{best}-seed2")]);
    }

    let report = Report::read(&comparison.directory).unwrap();
    let path = report.write().unwrap();
    let text = fs::read_to_string(path).unwrap();
    for expected in [
        "# lora, olora",
        "## Rank 4",
        "**olora at rank 4**",
        "loss.svg",
    ] {
        assert!(text.contains(expected), "`{expected}` is not in\n{text}");
    }
    for name in [
        "loss.svg",
        "loss.png",
        "loss.csv",
        "training.svg",
        "training.png",
        "training.csv",
        "steps.svg",
        "steps.png",
        "steps.csv",
        "rates.svg",
        "rates.png",
        "rates.csv",
    ] {
        assert!(comparison.directory.join(name).exists(), "{name}");
    }

    let (finished, begun) = compare(&comparison, None);
    assert!(finished.unwrap());
    assert_eq!(begun, [""; 0], "finished runs were made again");
    assert_eq!(cells(&comparison), found);
}

#[test]
fn an_interrupted_comparison_goes_on_to_the_same_results() {
    let out = tempfile::tempdir().unwrap();
    let whole = comparison(&out.path().join("whole"), &["adapter.dropout=0.1"]);
    assert!(compare(&whole, None).0.unwrap());

    let cut = comparison(&out.path().join("cut"), &["adapter.dropout=0.1"]);
    // Each run is evaluated four times: this stops in the middle of the second.
    let (finished, begun) = compare(&cut, Some(6));
    assert!(!finished.unwrap());
    assert_eq!(begun.len(), 2);
    assert_eq!(cells(&cut).len(), 1);
    let before = fs::metadata(
        cut.directory
            .join("runs")
            .join(&begun[1])
            .join("recipe.toml"),
    );
    let (finished, again) = compare(&cut, None);
    assert!(finished.unwrap());
    assert_eq!(again.len(), 5);
    // The second run was resumed rather than made anew.
    let after = fs::metadata(
        cut.directory
            .join("runs")
            .join(&begun[1])
            .join("recipe.toml"),
    );
    let written = |file: std::io::Result<fs::Metadata>| file.unwrap().modified().unwrap();
    assert_eq!(written(before), written(after));
    let curves = |comparison| -> Vec<(String, Value)> {
        cells(comparison)
            .into_iter()
            .map(|(name, cell)| (name, cell["validation"].clone()))
            .collect()
    };
    assert_eq!(curves(&cut), curves(&whole));
}

#[test]
fn a_rate_at_the_end_of_the_grid_makes_it_grow() {
    let out = tempfile::tempdir().unwrap();
    let mut comparison = comparison(out.path(), &[]);
    comparison.variants.truncate(1);
    comparison.seeds.truncate(1);
    // So low that a higher one is better.
    comparison.rates = vec![1e-7, 1e-6];
    comparison.widen = 2;
    assert!(compare(&comparison, None).0.unwrap());
    let names: Vec<String> = cells(&comparison).into_keys().collect();
    assert_eq!(
        names,
        ["1e-4", "1e-5", "1e-6", "1e-7"].map(|rate| format!("lora-r4-lr{rate}-seed1"))
    );
}

#[test]
fn a_run_that_diverges_is_a_result() {
    let out = tempfile::tempdir().unwrap();
    let mut comparison = comparison(out.path(), &[]);
    comparison.rates = vec![1e-3, 1e30];
    comparison.seeds.truncate(1);
    assert!(compare(&comparison, None).0.unwrap());
    let found = cells(&comparison);
    assert!(found["lora-r4-lr1e30-seed1"]["diverged"].is_string());
    let text = Report::read(&comparison.directory).unwrap().markdown();
    assert!(text.contains("| lora | 4 | **"), "{text}");
    assert!(text.contains("| diverged |"), "{text}");

    comparison.rates = vec![1e30];
    comparison.directory = out.path().join("other");
    let error = compare(&comparison, None).0.unwrap_err().to_string();
    assert!(error.contains("diverged at every learning rate"), "{error}");
}

#[test]
fn a_comparison_can_be_added_to() {
    let out = tempfile::tempdir().unwrap();
    // A minimum whose product with other rates has no short decimal form.
    let floor = [
        "training.learning_rate=2e-4",
        "training.min_learning_rate=1e-5",
    ];
    let mut comparison = comparison(out.path(), &floor);
    comparison.variants.truncate(1);
    comparison.seeds.truncate(1);
    comparison.rates = vec![3e-4];
    assert!(compare(&comparison, None).0.unwrap());
    // Another rate and another seed: what is there is not made again.
    comparison.rates = vec![4e-3];
    comparison.seeds = vec![1, 2];
    let (finished, begun) = compare(&comparison, None);
    assert!(finished.unwrap());
    let best = begun.last().unwrap().clone();
    assert_eq!(begun[0], "lora-r4-lr4e-3-seed1");
    assert_eq!(begun.len(), 2, "{begun:?}");
    assert!(best.ends_with("seed2"), "{begun:?}");
    // The rate was chosen among both.
    let report = Report::read(&comparison.directory).unwrap().to_json();
    assert_eq!(report["groups"][0]["seeds"], serde_json::json!([2]));

    comparison.seeds = vec![2, 1];
    let error = compare(&comparison, None).0.unwrap_err().to_string();
    assert!(error.contains("chosen on seed 1"), "{error}");
}

#[test]
fn changed_data_is_noticed_before_a_run() {
    let out = tempfile::tempdir().unwrap();
    let data = out.path().join("train.jsonl");
    fs::copy(common::root().join("recipes/quickstart/train.jsonl"), &data).unwrap();
    let mut comparison = comparison(out.path(), &[]);
    comparison.recipe.data.train = data.to_str().unwrap().into();
    comparison.variants.truncate(1);
    comparison.rates.truncate(1);
    comparison.seeds.truncate(1);
    assert!(compare(&comparison, None).0.unwrap());
    let text = fs::read_to_string(&data).unwrap();
    let cut = text.trim_end().rsplit_once('\n').unwrap().0;
    fs::write(&data, cut.to_owned() + "\n").unwrap();
    comparison.seeds = vec![1, 2];
    let (result, begun) = compare(&comparison, None);
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("the data or the base has changed"),
        "{error}"
    );
    assert_eq!(begun, [""; 0]);
}

#[test]
fn what_is_held_out_does_not_depend_on_the_seed() {
    let out = tempfile::tempdir().unwrap();
    let mut comparison = comparison(out.path(), &["seed=7"]);
    comparison.recipe.data.validation = None;
    comparison.recipe.data.validation_samples = Some(8);
    comparison.variants.truncate(1);
    comparison.rates.truncate(1);
    assert!(compare(&comparison, None).0.unwrap());
    let found = cells(&comparison);
    let starts: Vec<&Value> = found.values().map(|cell| &cell["validation"][0]).collect();
    assert_eq!(starts.len(), 2);
    assert_eq!(starts[0], starts[1]);
    let first_steps: Vec<&Value> = found.values().map(|cell| &cell["training"][0]).collect();
    assert_ne!(first_steps[0], first_steps[1], "both seeds have one order");
}

#[test]
fn runs_of_another_recipe_are_not_compared() {
    let out = tempfile::tempdir().unwrap();
    let mut comparison = comparison(out.path(), &[]);
    comparison.variants.truncate(1);
    comparison.rates.truncate(1);
    comparison.seeds.truncate(1);
    assert!(compare(&comparison, None).0.unwrap());
    comparison.recipe.training.weight_decay = 0.1;
    let error = compare(&comparison, None).0.unwrap_err().to_string();
    assert!(
        error.contains("training.weight_decay: was 0.0, now 0.1"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_compared_is_refused_before_the_first_run() {
    let out = tempfile::tempdir().unwrap();
    type Change = fn(&mut Comparison);
    let cases: [(Change, &str); 12] = [
        (
            |c| c.recipe.data.train = "missing.jsonl".into(),
            "missing.jsonl",
        ),
        (|c| c.recipe.data.validation = None, "set `data.validation`"),
        (
            |c| c.recipe.training.evaluate_every = 0,
            "set `training.evaluate_every`",
        ),
        (
            |c| c.recipe.training.patience = Some(2),
            "`training.patience`",
        ),
        (
            |c| c.variants.push("lora".parse().unwrap()),
            "`lora` is the same as `lora`",
        ),
        (
            |c| {
                c.one_rates.push(1e-3);
                c.seeds.truncate(1);
            },
            "no seed to run all methods at one rate on",
        ),
        (
            |c| (c.seeds, c.tuning_seeds) = (vec![1, 5, 9], 2),
            "have to follow each other",
        ),
        (|c| c.tuning_seeds = 3, "more seeds are to choose"),
        (|c| c.refine = Some(1.0), "between 1.05 and 1000"),
        (|c| c.rates.clear(), "there is no learning rate"),
        (|c| c.rates.push(f64::NAN), "learning_rate"),
        (|c| c.ranks.push(0), "rank"),
    ];
    for (change, said) in cases {
        let mut comparison = comparison(out.path(), &[]);
        change(&mut comparison);
        let (result, begun) = compare(&comparison, None);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        assert_eq!(begun, [""; 0]);
        assert!(!comparison.directory.exists());
    }
}

#[test]
fn a_directory_without_runs_has_no_report() {
    let out = tempfile::tempdir().unwrap();
    let error = Report::read(out.path()).unwrap_err().to_string();
    assert!(error.contains("no finished runs"), "{error}");
    fs::create_dir(out.path().join("cells")).unwrap();
    fs::write(out.path().join("cells/x.json"), "{").unwrap();
    let error = Report::read(out.path()).unwrap_err().to_string();
    assert!(error.contains("x.json"), "{error}");
}
