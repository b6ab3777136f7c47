//! Runs of the families that differ most from LLaMA, from random weights.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use burn::tensor::Device;
use olora_model::{Dtype, load};
use olora_runs::{
    Event, Observer, Recipe, RunError, Summary, TrainOptions,
    recipe::{AdapterSection, Weights},
    train,
};
use serde_json::json;

/// Longest sample of the quickstart, in positions, with some to spare.
const POSITIONS: usize = 256;

fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/quickstart")
}

/// A base of two layers without weights, with the quickstart's tokenizer.
fn base(family: &str, positions: usize) -> tempfile::TempDir {
    let mut config = json!({
        "model_type": family, "dtype": "float32", "vocab_size": 1024, "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": positions,
        "eos_token_id": 1,
    });
    let own = match family {
        "gemma" => json!({"intermediate_size": 48, "head_dim": 12, "num_key_value_heads": 1}),
        _ => json!({"ffn_dim": 48}),
    };
    let own = own.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(own);
    let base = tempfile::tempdir().unwrap();
    fs::write(base.path().join("config.json"), config.to_string()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(quickstart().join("base").join(name), base.path().join(name)).unwrap();
    }
    base
}

struct Losses(Mutex<Vec<f64>>);

impl Observer for Losses {
    fn on(&self, event: &Event) {
        if let Event::Step(report) = event {
            self.0.lock().unwrap().push(report.loss);
        }
    }
}

/// One run at a time: the CPU backend has one random generator per process.
static GENERATOR: Mutex<()> = Mutex::new(());

fn run(
    base: &Path,
    out: &Path,
    name: &str,
    overrides: &[&str],
) -> (Result<Summary, RunError>, Vec<f64>) {
    let data = quickstart();
    let mut settings = vec![
        format!("name={name}"),
        format!("output.directory=\"{}\"", out.display()),
        format!("model.path=\"{}\"", base.display()),
        format!("data.train=\"{}\"", data.join("train.jsonl").display()),
        format!("data.validation=\"{}\"", data.join("valid.jsonl").display()),
        "samples.prompts=[]".to_owned(),
        "training.max_steps=3".to_owned(),
        "training.batch_size=2".to_owned(),
        "training.log_every=1".to_owned(),
        "training.warmup_steps=0".to_owned(),
        "training.evaluate_every=0".to_owned(),
        "training.checkpoint_every=0".to_owned(),
    ];
    settings.extend(overrides.iter().map(|setting| (*setting).to_owned()));
    let text = fs::read_to_string(data.with_extension("toml")).unwrap();
    let mut recipe = Recipe::parse(&text, "quickstart.toml", &settings).unwrap();
    recipe.adapter = AdapterSection::everything();
    recipe.model.weights = Weights::Random;
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let losses = Arc::new(Losses(Mutex::default()));
    let observer: Arc<dyn Observer> = losses.clone();
    let result = train(&recipe, &Device::flex(), TrainOptions::default(), &observer);
    let losses = losses.0.lock().unwrap().clone();
    (result, losses)
}

#[test]
fn every_weight_trains_alike_with_and_without_recompute_and_is_saved() {
    for family in ["gemma", "opt"] {
        let (base, out) = (base(family, POSITIONS), tempfile::tempdir().unwrap());
        let packed = ["data.packing=true", "training.recompute=none"];
        let (summary, whole) = run(base.path(), out.path(), "whole", &packed);
        let result = summary.unwrap().result;
        // Near the logarithm of the vocabulary, as random weights have it, and then lower.
        assert!(
            (whole[0] - 1024_f64.ln()).abs() < 0.5,
            "{family}: {whole:?}"
        );
        assert!(
            whole.len() == 3 && whole[2] < whole[0],
            "{family}: {whole:?}"
        );
        load(&result, Dtype::F32, &Device::flex()).unwrap();

        let packed = ["data.packing=true", "training.recompute=blocks"];
        let (summary, blocks) = run(base.path(), out.path(), "blocks", &packed);
        let weights = |result: &Path| fs::read(result.join("model.safetensors")).unwrap();
        assert!(
            weights(&result) == weights(&summary.unwrap().result),
            "{family}: models differ"
        );
        assert_eq!(whole, blocks, "{family}");
    }
}

#[test]
fn more_tokens_than_learned_positions_are_refused_before_the_first_step() {
    let out = tempfile::tempdir().unwrap();
    let few = base("opt", 8);
    let (result, losses) = run(few.path(), out.path(), "samples", &[]);
    let message = result.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("the model was made for 8"), "{message}");
    assert!(losses.is_empty());

    let enough = base("opt", POSITIONS);
    let prompts = ["samples.prompts=[\"x\"]", "samples.max_new_tokens=400"];
    let (result, losses) = run(enough.path(), out.path(), "prompts", &prompts);
    let message = result.map(|_| ()).unwrap_err().to_string();
    assert!(
        message.contains("samples.prompts") && message.contains("256 positions"),
        "{message}"
    );
    assert!(losses.is_empty());
}
