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
    let gemma = json!({
        "intermediate_size": 48, "head_dim": 12, "num_key_value_heads": 1, "sliding_window": 6,
        "sliding_window_pattern": 2, "query_pre_attn_scalar": 20,
    });
    let plain = json!({"intermediate_size": 48, "num_key_value_heads": 2});
    let own = match family {
        "gemma" => json!({"intermediate_size": 48, "head_dim": 12, "num_key_value_heads": 1}),
        "opt" => json!({"ffn_dim": 48}),
        "gemma2" | "gemma3_text" => gemma,
        "granite" => json!({
            "intermediate_size": 48, "embedding_multiplier": 3.0, "residual_multiplier": 0.5,
            "attention_multiplier": 0.2, "logits_scaling": 2.0,
        }),
        "mixtral" => json!({
            "intermediate_size": 24, "num_local_experts": 4, "num_key_value_heads": 2,
        }),
        "qwen3_moe" => json!({
            "intermediate_size": 48, "moe_intermediate_size": 24, "num_experts": 4,
            "num_experts_per_tok": 2, "mlp_only_layers": [0], "num_key_value_heads": 2,
        }),
        "phi3" => json!({"intermediate_size": 48, "partial_rotary_factor": 0.5}),
        _ => plain,
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

fn mixes(family: &str) -> bool {
    ["mixtral", "qwen3_moe"].contains(&family)
}

/// Between the weights of two models, in the same order in both files.
fn largest_difference(one: &Path, other: &Path) -> f32 {
    let read = |model: &Path| fs::read(model.join("model.safetensors")).unwrap();
    let (one, other) = (read(one), read(other));
    let tensors = |bytes| safetensors::SafeTensors::deserialize(bytes).unwrap();
    let (one, other) = (tensors(&one), tensors(&other));
    let mut worst = 0.0_f32;
    for (name, tensor) in one.tensors() {
        let same = other.tensor(&name).unwrap();
        let floats = |bytes: &[u8]| -> Vec<f32> {
            let (all, _) = bytes.as_chunks::<4>();
            all.iter().map(|four| f32::from_le_bytes(*four)).collect()
        };
        for (a, b) in floats(tensor.data()).into_iter().zip(floats(same.data())) {
            worst = worst.max((a - b).abs());
        }
    }
    worst
}

#[test]
fn every_weight_trains_alike_with_and_without_recompute_and_is_saved() {
    for family in [
        "gemma",
        "opt",
        "gemma2",
        "gemma3_text",
        "phi3",
        "smollm3",
        "granite",
        "olmo2",
        "olmo3",
        "qwen3_moe",
        "mixtral",
    ] {
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
        let others = summary.unwrap().result;
        // Gradients from several experts are added in another order, and round otherwise.
        let allowed = if mixes(family) { 1e-6 } else { 0.0 };
        let difference = largest_difference(&result, &others);
        assert!(
            difference <= allowed,
            "{family}: models differ by {difference}"
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
