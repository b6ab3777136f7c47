//! Whole runs of the quickstart, cut short: resuming, stopping, refusing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use burn::tensor::Device;
use common::{GENERATOR, Losses, recipe, root, run};
use olora_adapter::PeftAdapter;
use olora_data::{Corpus, DataOptions, Sample, Schedule, Tokenizer, load_samples, loader};
use olora_model::{Dtype, ModelConfig};
use olora_runs::{
    Event, Observer, Recipe, RunError, TrainOptions, check_samples,
    recipe::{AdapterSection, Weights},
    train,
};
use olora_training::{CrossEntropy, evaluate};
use serde_json::Value;

fn adapter(out: &Path, name: &str) -> Vec<u8> {
    fs::read(out.join(name).join("adapter/adapter_model.safetensors")).unwrap()
}

/// The logged steps and losses as they stand in the file.
fn losses_in(out: &Path, name: &str) -> Vec<(u64, String)> {
    let text = fs::read_to_string(out.join(name).join("metrics.jsonl")).unwrap();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter_map(|line| Some((line["step"].as_u64()?, line.get("loss")?.to_string())))
        .collect()
}

#[test]
fn five_steps_resumed_for_five_equal_ten_bit_for_bit() {
    let out = tempfile::tempdir().unwrap();
    // Mid-epoch, over two micro-batches, with dropout and a decaying rate.
    let settings = [
        "training.max_steps=10",
        "training.accumulation=2",
        "training.checkpoint_every=5",
        "adapter.dropout=0.1",
    ];
    let straight = recipe(out.path(), "straight", &settings);
    let (summary, losses) = run(&straight, false, None);
    let summary = summary.unwrap();
    assert!(summary.finished && losses.len() == 10);

    // What is left of a run that was killed some time after its fifth step.
    let resumed = recipe(out.path(), "resumed", &settings);
    run(&resumed, false, None).0.unwrap();
    let directory = out.path().join("resumed");
    fs::remove_dir_all(directory.join("checkpoints/step-000010")).unwrap();
    fs::remove_dir_all(directory.join("adapter")).unwrap();
    fs::remove_file(directory.join("summary.json")).unwrap();
    let (again, later) = run(&resumed, true, None);

    assert_eq!(later, losses[5..]);
    assert_eq!(
        losses_in(out.path(), "resumed"),
        losses_in(out.path(), "straight")
    );
    assert!(
        adapter(out.path(), "resumed") == adapter(out.path(), "straight"),
        "adapters differ"
    );
    assert_eq!(again.unwrap().validation_loss, summary.validation_loss);
}

#[test]
fn an_interrupted_run_writes_a_checkpoint_and_goes_on_exactly() {
    let out = tempfile::tempdir().unwrap();
    let settings = ["training.max_steps=6", "training.checkpoint_every=0"];
    let (_, losses) = run(&recipe(out.path(), "straight", &settings), false, None);
    let cut = recipe(out.path(), "cut", &settings);
    let (summary, first) = run(&cut, false, Some(2));
    let summary = summary.unwrap();
    assert!(!summary.finished);
    // The step in which the interruption is noticed is completed.
    assert_eq!((summary.steps, first.len()), (3, 3));
    assert!(!out.path().join("cut/adapter").exists());
    let (summary, second) = run(&cut, true, None);
    assert!(summary.unwrap().finished);
    assert_eq!([first, second].concat(), losses);
    assert!(
        adapter(out.path(), "cut") == adapter(out.path(), "straight"),
        "adapters differ"
    );
}

#[test]
fn full_training_resumes_exactly_too() {
    let out = tempfile::tempdir().unwrap();
    let text = |name: &str| {
        let mut recipe = recipe(
            out.path(),
            name,
            &["training.max_steps=4", "training.checkpoint_every=2"],
        );
        recipe.adapter = AdapterSection::everything();
        recipe.model.weights = Weights::Random;
        recipe
    };
    let (_, losses) = run(&text("straight"), false, None);
    assert_eq!(losses.len(), 4);
    run(&text("resumed"), false, None).0.unwrap();
    fs::remove_dir_all(out.path().join("resumed/checkpoints/step-000004")).unwrap();
    let (summary, later) = run(&text("resumed"), true, None);
    assert_eq!(later, losses[2..]);
    let model =
        |name: &str| fs::read(out.path().join(name).join("model/model.safetensors")).unwrap();
    assert!(model("straight") == model("resumed"), "models differ");
    assert!(summary.unwrap().result.join("tokenizer.json").exists());
}

#[test]
fn anchored_and_residual_train_the_same_function() {
    let out = tempfile::tempdir().unwrap();
    let settings = [
        "training.max_steps=50",
        "training.checkpoint_every=0",
        "training.learning_rate=5e-4",
    ];
    let (summary, anchored) = run(&recipe(out.path(), "anchored", &settings), false, None);
    summary.unwrap();
    let residual = [&settings[..], &["adapter.placement=residual"]].concat();
    let (summary, residual) = run(&recipe(out.path(), "residual", &residual), false, None);
    summary.unwrap();
    let mean = |losses: &[(usize, f64)]| {
        losses.iter().map(|(_, loss)| loss).sum::<f64>() / losses.len() as f64
    };
    assert!(
        mean(&anchored[40..]) < 0.8 * mean(&anchored[..10]),
        "nothing was learned: {anchored:?}"
    );
    for ((step, a), (_, r)) in anchored.iter().zip(&residual) {
        assert!(
            (a - r).abs() < 1e-4,
            "step {step}: anchored {a}, residual {r}"
        );
    }
}

#[test]
fn the_run_directory_is_complete_and_says_what_happened() {
    let out = tempfile::tempdir().unwrap();
    let settings = [
        "training.max_steps=4",
        "training.evaluate_every=2",
        "training.checkpoint_every=1",
    ];
    let (summary, losses) = run(&recipe(out.path(), "run", &settings), false, None);
    let summary = summary.unwrap();
    let run = out.path().join("run");
    for name in [
        "recipe.toml",
        "metrics.jsonl",
        "loss.svg",
        "loss.png",
        "loss.csv",
        "summary.json",
        "experiment.log",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ] {
        assert!(run.join(name).exists(), "{name} is missing");
    }
    assert_eq!(losses_in(out.path(), "run").len(), losses.len());
    let svg = fs::read_to_string(run.join("loss.svg")).unwrap();
    assert!(svg.contains("validation") && svg.contains("training"));
    // Two checkpoints are kept, nothing half-written is left.
    let mut kept: Vec<_> = fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    kept.sort();
    assert_eq!(kept, ["step-000003", "step-000004"]);
    let json: Value = serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    assert_eq!(json["steps"], 4);
    assert_eq!(json["validation_loss"].as_f64(), summary.validation_loss);
    // An example of each data set, with the answer alone trained.
    let sets: Value = serde_json::from_slice(&fs::read(run.join("data.json")).unwrap()).unwrap();
    for set in sets.as_array().unwrap() {
        let pieces = set["examples"][0]["pieces"].as_array().unwrap();
        let trained = pieces
            .iter()
            .map(|piece| piece["trained"].as_bool().unwrap());
        assert_eq!(trained.collect::<Vec<_>>(), [false, true], "{set}");
    }
    // The resolved recipe starts the same run again.
    let again = Recipe::load(&run.join("recipe.toml"), &[]).unwrap();
    assert_eq!(again.training.max_steps, Some(4));
}

#[test]
fn what_prompts_were_answered_before_and_after_is_kept() {
    let out = tempfile::tempdir().unwrap();
    let settings = [
        "training.max_steps=2",
        "samples.prompts=[\"Where does Alder live?\"]",
        "samples.max_new_tokens=2",
    ];
    run(&recipe(out.path(), "run", &settings), false, None)
        .0
        .unwrap();
    let samples = fs::read(out.path().join("run/samples.json")).unwrap();
    let samples: Vec<Value> = serde_json::from_slice(&samples).unwrap();
    let when: Vec<&Value> = samples.iter().map(|sample| &sample["when"]).collect();
    assert_eq!(when, ["before", "after"]);
    assert!(samples.iter().all(|sample| sample["text"].is_string()));
}

#[test]
fn the_best_adapter_is_kept_where_asked() {
    let out = tempfile::tempdir().unwrap();
    // A rate that rises all the way and in the end wrecks what was learned.
    let settings = [
        "training.max_steps=32",
        "training.evaluate_every=4",
        "training.learning_rate=0.093",
        "training.warmup_steps=31",
        "output.keep=best",
    ];
    let recipe = recipe(out.path(), "best", &settings);
    let summary = run(&recipe, false, None).0.unwrap();
    let (best, last) = (
        summary.best_validation_loss.unwrap(),
        summary.validation_loss.unwrap(),
    );
    assert!(
        best < last - 0.01,
        "best {best} and last {last} do not differ"
    );

    let base = root().join("recipes/quickstart/base");
    let (llama, _) = olora_model::load(&base, Dtype::F32, &Device::flex()).unwrap();
    let llama = PeftAdapter::read(&summary.result)
        .unwrap()
        .attach(llama)
        .unwrap();
    let tokenizer = Tokenizer::from_dir(&base).unwrap();
    let valid = root().join("recipes/quickstart/valid.jsonl");
    let samples = load_samples(&valid, &tokenizer, &DataOptions::default())
        .unwrap()
        .samples;
    let batches = loader(
        Schedule::sequential(samples, 2).unwrap(),
        tokenizer.pad_id(),
    );
    let saved = evaluate(&CrossEntropy, &llama, batches.iter())
        .unwrap()
        .loss;
    assert!(
        (saved - best).abs() < 1e-4,
        "saved {saved}, best {best}, last {last}"
    );
}

#[test]
fn logged_lines_cover_every_step_and_survive_a_resume() {
    let out = tempfile::tempdir().unwrap();
    let settings = |log_every: &'static str| {
        [
            "training.max_steps=8",
            "training.checkpoint_every=3",
            log_every,
        ]
    };
    let (_, each) = run(
        &recipe(out.path(), "each", &settings("training.log_every=1")),
        false,
        None,
    );
    let straight = recipe(out.path(), "straight", &settings("training.log_every=4"));
    let (_, lines) = run(&straight, false, None);
    assert_eq!(lines.iter().map(|line| line.0).collect::<Vec<_>>(), [4, 8]);
    // Steps weigh by their tokens, so the mean is only about the mean of means.
    let mean: f64 = each[..4].iter().map(|line| line.1).sum::<f64>() / 4.0;
    assert!(
        (lines[0].1 - mean).abs() < 0.3,
        "{lines:?} against {each:?}"
    );

    let resumed = recipe(out.path(), "resumed", &settings("training.log_every=4"));
    run(&resumed, false, None).0.unwrap();
    fs::remove_dir_all(out.path().join("resumed/checkpoints/step-000008")).unwrap();
    run(&resumed, true, None).0.unwrap();
    assert_eq!(
        losses_in(out.path(), "resumed"),
        losses_in(out.path(), "straight")
    );
}

#[test]
fn changed_data_or_a_finished_run_is_not_resumed() {
    let out = tempfile::tempdir().unwrap();
    let data = out.path().join("train.jsonl");
    fs::copy(root().join("recipes/quickstart/train.jsonl"), &data).unwrap();
    let setting = format!("data.train=\"{}\"", data.display());
    let recipe = recipe(
        out.path(),
        "run",
        &[
            "training.max_steps=2",
            "training.checkpoint_every=1",
            &setting,
        ],
    );
    run(&recipe, false, None).0.unwrap();
    let error = run(&recipe, true, None).0.unwrap_err().to_string();
    assert!(error.contains("is complete"), "{error}");

    // Killed after the last checkpoint and before the result was written.
    let before = adapter(out.path(), "run");
    fs::remove_dir_all(out.path().join("run/adapter")).unwrap();
    fs::remove_file(out.path().join("run/summary.json")).unwrap();
    assert!(run(&recipe, true, None).0.unwrap().finished);
    assert!(adapter(out.path(), "run") == before, "adapters differ");

    fs::remove_dir_all(out.path().join("run/checkpoints/step-000002")).unwrap();
    let text = fs::read_to_string(&data).unwrap();
    fs::write(&data, text.replacen("Hear ye", "Here ye", 1)).unwrap();
    let error = run(&recipe, true, None).0.unwrap_err().to_string();
    assert!(
        error.contains("train.jsonl") && error.contains("not what the run was started on"),
        "{error}"
    );
}

#[test]
fn answers_without_an_end_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let error = run(
        &recipe(out.path(), "run", &["data.max_length=16"]),
        false,
        None,
    )
    .0
    .unwrap_err();
    assert!(error.to_string().contains("learn to stop"), "{error}");
    assert!(!out.path().join("run").exists());
}

#[test]
fn validation_data_among_the_training_data_is_refused_or_said() {
    let out = tempfile::tempdir().unwrap();
    let data = out.path().join("data");
    fs::create_dir(&data).unwrap();
    for name in ["train.jsonl", "valid.jsonl"] {
        fs::copy(
            root().join("recipes/quickstart").join(name),
            data.join(name),
        )
        .unwrap();
    }
    let valid = data.join("valid.jsonl");
    let train = |names: &str| format!("data.train={names}");
    let validation = format!("data.validation=\"{}\"", valid.display());
    let gathered = train(&format!("\"{}/*.jsonl\"", data.display()));
    let error = run(
        &recipe(out.path(), "run", &[&gathered, &validation]),
        false,
        None,
    );
    let error = error.0.unwrap_err().to_string();
    assert!(
        error.contains(
            "valid.jsonl is in data.validation, and is among the files of the training data"
        ),
        "{error}"
    );
    assert!(!out.path().join("run").exists());
    // Who names it in both means it, and is told.
    let named = train(&format!("[\"{0}\", \"{0}\"]", valid.display()));
    let settings = [&*named, &*validation, "training.max_steps=1"];
    let (result, recorder) = common::recorded(&recipe(out.path(), "run", &settings), false, None);
    result.unwrap();
    let notes = recorder.notes.lock().unwrap().join("\n");
    assert!(
        notes.contains("valid.jsonl is named as training data and as validation data"),
        "{notes}"
    );
}

#[test]
fn an_existing_run_is_never_overwritten_and_a_changed_recipe_not_resumed() {
    let out = tempfile::tempdir().unwrap();
    let settings = ["training.max_steps=2", "training.checkpoint_every=1"];
    let first = recipe(out.path(), "run", &settings);
    run(&first, false, None).0.unwrap();
    let before = adapter(out.path(), "run");

    let error = run(&first, false, None).0.unwrap_err().to_string();
    assert!(
        error.contains("exists already") && error.contains("--resume"),
        "{error}"
    );
    let changed = recipe(
        out.path(),
        "run",
        &["training.max_steps=2", "training.warmup_steps=1"],
    );
    let error = run(&changed, true, None).0.unwrap_err().to_string();
    assert!(
        error.contains("training.warmup_steps: was 2, now 1"),
        "{error}"
    );
    let error = run(&recipe(out.path(), "other", &settings), true, None)
        .0
        .unwrap_err()
        .to_string();
    assert!(error.contains("no checkpoint to resume"), "{error}");
    assert_eq!(adapter(out.path(), "run"), before);
    assert!(!out.path().join("other").exists());
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint() {
    let out = tempfile::tempdir().unwrap();
    // Steps of this size overflow f32 within a few updates.
    let settings = [
        "training.max_steps=50",
        "training.optimizer=sgd",
        "training.learning_rate=1e20",
        "training.max_grad_norm=0",
        "training.warmup_steps=0",
        "training.checkpoint_every=1",
        "training.log_every=50",
    ];
    let (result, _) = run(&recipe(out.path(), "nan", &settings), false, None);
    let error = result.unwrap_err();
    let RunError::NotFinite {
        step, last_good, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert!(
        error.to_string().contains(&format!("at step {step}")),
        "{error}"
    );
    let last_good = last_good.clone().expect("the first step was still finite");
    assert!(
        last_good.ends_with(format!("step-{:06}", step - 1)),
        "{last_good:?} before step {step}"
    );
    assert!(last_good.join("state.json").exists());
    assert!(!out.path().join("nan/adapter").exists());
}

#[test]
fn a_token_beyond_the_embedding_is_refused_before_anything_is_written() {
    let out = tempfile::tempdir().unwrap();
    let base = out.path().join("base");
    fs::create_dir(&base).unwrap();
    for entry in fs::read_dir(root().join("recipes/quickstart/base")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
    }
    let config = fs::read_to_string(base.join("config.json")).unwrap();
    fs::write(
        base.join("config.json"),
        config.replace("\"vocab_size\": 1024", "\"vocab_size\": 1000"),
    )
    .unwrap();
    let path = format!("model.path=\"{}\"", base.display());
    let error = run(&recipe(out.path(), "run", &[&path]), false, None)
        .0
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("train.jsonl, record ") && error.contains("1000 rows"),
        "{error}"
    );
    assert!(!out.path().join("run").exists());
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name() {
    let out = tempfile::tempdir().unwrap();
    let settings = ["training.max_steps=2", "training.checkpoint_every=1"];
    let short = recipe(out.path(), "run", &settings);
    run(&short, false, None).0.unwrap();
    let checkpoints = out.path().join("run/checkpoints");
    fs::remove_dir_all(checkpoints.join("step-000002")).unwrap();
    let file = checkpoints.join("step-000001/trained.bpk");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let error = run(&short, true, None).0.unwrap_err().to_string();
    assert!(
        error.contains("step-000001") && error.contains("trained.bpk"),
        "{error}"
    );
}

/// Losses of two runs, step by step, as relative differences.
fn differences(left: &Losses, right: &Losses) -> Vec<f64> {
    assert_eq!(left.len(), right.len());
    left.iter()
        .zip(right)
        .map(|((_, left), (_, right))| (left - right).abs() / right)
        .collect()
}

#[test]
fn padding_to_a_multiple_changes_no_loss() {
    let out = tempfile::tempdir().unwrap();
    let losses = |name: &str, multiple: &str| {
        let settings = ["training.max_steps=8", multiple];
        let (summary, losses) = run(&recipe(out.path(), name, &settings), false, None);
        summary.unwrap();
        losses
    };
    let plain = losses("plain", "training.pad_to_multiple_of=1");
    let padded = losses("padded", "training.pad_to_multiple_of=32");
    let worst = differences(&padded, &plain).into_iter().fold(0.0, f64::max);
    // Sums over longer rows are added in another order, and that is all.
    assert!(worst < 1e-4, "{worst}: {plain:?} {padded:?}");
}

#[test]
fn half_precision_computing_is_asked_for_and_written_down() {
    let out = tempfile::tempdir().unwrap();
    let losses = |name: &str, settings: &[&str]| {
        let settings: Vec<_> = ["training.max_steps=5"]
            .into_iter()
            .chain(settings.iter().copied())
            .collect();
        let (summary, losses) = run(&recipe(out.path(), name, &settings), false, None);
        (summary.unwrap(), losses)
    };
    let (_, full) = losses("full", &[]);
    let float32 = "model.dtype=float32";
    for (name, compute, settings, weights) in [
        // The CPU multiplies with matrices that are held in bfloat16.
        ("bf16", "bfloat16", &[][..], "bfloat16"),
        ("bf16-tensors", "bfloat16", &[float32][..], "float32"),
        ("f16-tensors", "float16", &[][..], "float32"),
    ] {
        let setting = format!("model.compute_dtype={compute}");
        let settings: Vec<_> = settings.iter().copied().chain([&*setting]).collect();
        let (summary, half) = losses(name, &settings);
        assert_eq!(
            summary.precision.to_string(),
            if weights == compute {
                format!("{weights} weights")
            } else {
                format!("{weights} weights, computing in {compute}")
            }
        );
        let text = fs::read_to_string(out.path().join(name).join("recipe.toml")).unwrap();
        assert!(text.contains(&format!("dtype = \"{weights}\"")), "{text}");
        assert!(
            text.contains(&format!("compute_dtype = \"{compute}\"")),
            "{text}"
        );
        let differences = differences(&half, &full);
        let worst = differences.iter().copied().fold(0.0, f64::max);
        assert!(worst > 0.0 && worst < 0.03, "{compute}: {worst}");
    }
}

#[test]
fn weights_for_timing_take_an_adapter() {
    let out = tempfile::tempdir().unwrap();
    let settings = [
        "training.max_steps=2",
        "model.weights=timing",
        "model.dtype=bfloat16",
    ];
    let (summary, losses) = run(&recipe(out.path(), "timing", &settings), false, None);
    let summary = summary.unwrap();
    assert_eq!(summary.precision.to_string(), "bfloat16 weights");
    // Near the logarithm of the vocabulary, as random weights have it.
    assert!((losses[0].1 - 1024_f64.ln()).abs() < 0.3, "{losses:?}");
}

#[test]
fn a_reference_is_compared_with_before_the_first_step() {
    struct Checked(Mutex<Vec<f64>>);
    impl Observer for Checked {
        fn on(&self, event: &Event) {
            if let Event::DeviceChecked { worst, .. } = event {
                self.0.lock().unwrap().push(*worst);
            }
        }
    }
    let _alone = GENERATOR
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let out = tempfile::tempdir().unwrap();
    let checked = Arc::new(Checked(Mutex::default()));
    let observer: Arc<dyn Observer> = checked.clone();
    let options = TrainOptions {
        reference: Some(Device::flex()),
        ..TrainOptions::default()
    };
    let recipe = recipe(out.path(), "checked", &["training.max_steps=1"]);
    train(&recipe, &Device::flex(), options, &observer).unwrap();
    assert_eq!(*checked.0.lock().unwrap(), [0.0]);
}

#[test]
fn a_run_of_before_the_precision_keys_goes_on() {
    let out = tempfile::tempdir().unwrap();
    let recipe = recipe(out.path(), "old", &["training.max_steps=6"]);
    assert!(!run(&recipe, false, Some(2)).0.unwrap().finished);
    let file = out.path().join("old/recipe.toml");
    let text = fs::read_to_string(&file).unwrap();
    let old: Vec<_> = text
        .lines()
        .filter(|line| {
            !line.starts_with("compute_dtype") && !line.starts_with("pad_to_multiple_of")
        })
        .collect();
    assert_eq!(old.len() + 2, text.lines().count());
    fs::write(&file, old.join("\n")).unwrap();
    assert!(run(&recipe, true, None).0.unwrap().finished);
}

#[test]
fn a_sequence_may_predict_one_token_beyond_the_last_position() {
    let base = root().join("recipes/quickstart/base");
    let config = ModelConfig::from_dir(&base).unwrap();
    let tokenizer = Tokenizer::from_dir(&base).unwrap();
    let check = |n| {
        let samples = Corpus::from(vec![Sample::new(vec![5; n], vec![true; n])]);
        check_samples(&samples, &config, &tokenizer)
    };
    check(config.max_position_embeddings + 1).unwrap();
    let error = check(config.max_position_embeddings + 2).unwrap_err();
    assert!(error.to_string().contains("takes 257 positions"), "{error}");
}
