//! One training step on a 33M-parameter model, by several paths: our factored
//! one in f32 and in bf16, Burn's own `apply_lora` (composed weight), in f32 over
//! our operations and over Burn's, and PyTorch + PEFT in f32 and in bf16.
//!
//! Each timing is a process of its own, so that its peak memory is its own,
//! and the paths take turns, so that a busy machine slows all of them.

use std::{path::Path, process::Command, sync::Arc, time::Instant};

use anyhow::{Context, ensure};
use burn::{
    module::{Lora, Module, ModuleVisitor, Param, ParamGroup},
    optim::AdamWConfig,
    tensor::{DType, Device, Tensor, TensorData},
};
use clap::ValueEnum;
use olora_adapter::{
    AdapterConfig, MapParams, Method, Parameter, Place, attach, map_params, params, resolve,
};
use olora_data::{Batch, Sample};
use olora_model::{Llama, ModelConfig, hold_in_bf16};
use olora_operations::{Products, use_compositions};
use olora_runs::peak_resident_bytes;
use olora_training::{CrossEntropy, Optimized, Passes, TrainError, loss_sum, step};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A way of computing the adapted step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// `x·W + s·(x·A)·B`.
    Factored,
    /// The same with OLoRA's anchor, which costs two more thin products.
    Anchored,
    /// The factored path with the base held in bfloat16 and multiplied with so.
    FactoredBf16,
    /// That with the anchor.
    AnchoredBf16,
    /// The factored path over Burn's own operations in the place of ours.
    FactoredPlain,
    /// Burn's `apply_lora`, `x·(W + s·A·B)`, over our operations.
    Burn,
    /// The same over Burn's own.
    BurnPlain,
}

/// The size of the work.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocab: usize,
    pub(crate) rows: usize,
    pub(crate) seq: usize,
    pub(crate) warmup: usize,
    pub(crate) steps: usize,
}

pub(crate) const FULL: Size = Size {
    hidden: 512,
    layers: 8,
    intermediate: 1408,
    vocab: 8192,
    rows: 4,
    seq: 256,
    warmup: 3,
    steps: 10,
};
pub(crate) const QUICK: Size = Size {
    hidden: 64,
    layers: 2,
    intermediate: 176,
    vocab: 256,
    rows: 2,
    seq: 32,
    warmup: 1,
    steps: 2,
};
const RANK: usize = 16;

#[derive(Clone, Serialize, Deserialize)]
struct Timing {
    path: String,
    step_seconds: Vec<f64>,
    tokens_per_step: usize,
    peak_rss_bytes: Option<u64>,
    trainable_params: usize,
    last_loss: f64,
}

impl Timing {
    fn median(&self) -> f64 {
        let mut sorted = self.step_seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Factored => "olora, LoRA, factored",
            Self::Anchored => "olora, OLoRA, factored and anchored",
            Self::FactoredBf16 => "olora, LoRA, bf16",
            Self::AnchoredBf16 => "olora, OLoRA, anchored, bf16",
            Self::FactoredPlain => "LoRA, factored, Burn's operations",
            Self::Burn => "Burn's apply_lora, olora's operations",
            Self::BurnPlain => "Burn's apply_lora and operations",
        }
    }
}

/// Whether a row has one of these in its name, if any are given.
pub(crate) fn is_wanted(name: &str, rows: &[String]) -> bool {
    rows.is_empty() || rows.iter().any(|row| name.contains(row.as_str()))
}

/// In which formats PyTorch computes, each eager and compiled: how the rows are
/// called, and the options of the peers' scripts.
pub(crate) const PEER_FORMATS: [(&str, &[&str]); 3] = [
    ("f32", &[]),
    ("base in bf16", &["--dtype", "bfloat16"]),
    ("autocast to bf16", &["--autocast"]),
];

pub(crate) fn run(
    quick: bool,
    rounds: usize,
    rows: &[String],
    peer: Option<&Path>,
) -> anyhow::Result<()> {
    println!(
        "One training step (forward, backward, AdamW), LoRA rank {RANK} on all linear layers; f32 \
         where a row does not say bf16."
    );
    println!(
        "Times depend on what else the machine does; the paths take turns, each in its own process.\n"
    );
    let diff = shown_check()?;

    let kinds: Vec<Kind> = Kind::value_variants()
        .iter()
        .copied()
        .filter(|kind| is_wanted(kind.name(), rows))
        .collect();
    ensure!(
        rows.is_empty() || !kinds.is_empty() || peer.is_some(),
        "--rows: no row has any of {rows:?} in its name"
    );
    let mut timings: Vec<Vec<Timing>> = vec![Vec::new(); kinds.len()];
    let mut peers: Vec<(String, Vec<Value>)> = Vec::new();
    for _ in 0..if quick { 1 } else { rounds } {
        for (kind, timings) in kinds.iter().zip(&mut timings) {
            timings.push(child(*kind, quick)?);
        }
        let Some(python) = peer else { continue };
        for (format, options) in PEER_FORMATS {
            for (way, compile) in [("eager", None), ("compiled", Some("--compile"))] {
                let name = format!("PyTorch + PEFT, {format}, {way}");
                if !is_wanted(&name, rows) {
                    continue;
                }
                let options: Vec<&str> = options.iter().copied().chain(compile).collect();
                let found = peer_run(python, &options)?;
                match peers.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, results)) => results.push(found),
                    None => peers.push((name, vec![found])),
                }
            }
        }
    }
    println!(
        "| path | tokens/s, median (min – max of rounds) | step, s | peak resident | trainable |"
    );
    println!("|---|---|---|---|---|");
    let mut results = Vec::new();
    for timings in &timings {
        let rates: Vec<f64> = timings
            .iter()
            .map(|t| t.tokens_per_step as f64 / t.median())
            .collect();
        let peak = timings.iter().filter_map(|t| t.peak_rss_bytes).max();
        results.push(row(
            &timings[0].path,
            &rates,
            timings[0].tokens_per_step,
            peak,
            timings[0].trainable_params,
        ));
    }
    for (name, peers) in &peers {
        let rates: Vec<f64> = peers.iter().filter_map(peer_rate).collect();
        ensure!(!rates.is_empty(), "the peer printed no `tokens_per_second`");
        let peak = peers
            .iter()
            .filter_map(|p| p["peak_rss_bytes"].as_u64())
            .max();
        let trainable = peers[0]["trainable_params"].as_u64().unwrap_or(0) as usize;
        results.push(row(name, &rates, FULL.rows * FULL.seq, peak, trainable));
    }
    println!(
        "{}",
        json!({ "suite": "paths", "quick": quick, "rounds": rounds, "results": results,
                "max_loss_diff": diff.0, "max_relative_gradient_diff": diff.1 })
    );
    Ok(())
}

fn row(path: &str, rates: &[f64], tokens: usize, peak: Option<u64>, trainable: usize) -> Value {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
    let memory = peak.map_or_else(
        || "?".to_owned(),
        |bytes| format!("{:.0} MB", bytes as f64 / 1e6),
    );
    println!(
        "| {path} | {median:.0} ({min:.0} – {max:.0}) | {:.2} | {memory} | {trainable} |",
        tokens as f64 / median
    );
    json!({ "path": path, "tokens_per_second": { "median": median, "min": min, "max": max },
            "peak_rss_bytes": peak, "trainable_params": trainable })
}

fn child(kind: Kind, quick: bool) -> anyhow::Result<Timing> {
    let name = kind.to_possible_value().context("every path has a name")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["paths", "--path", name.get_name()]);
    if quick {
        command.arg("--quick");
    }
    Ok(serde_json::from_str(&last_line(&mut command)?)?)
}

fn peer_run(python: &Path, options: &[&str]) -> anyhow::Result<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/train_step.py");
    let mut command = Command::new(python);
    command.arg(script).args(threads()).args(options);
    Ok(serde_json::from_str(&last_line(&mut command)?)?)
}

fn peer_rate(result: &Value) -> Option<f64> {
    let rate = &result["tokens_per_second"];
    rate.as_f64().or_else(|| rate["median"].as_f64())
}

/// As many threads for a peer as this process has.
pub(crate) fn threads() -> [String; 2] {
    let n = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    ["--threads".to_owned(), n.to_string()]
}

/// Runs a command and returns the last line it prints, the suites' JSON.
pub(crate) fn last_line(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    text.lines()
        .last()
        .map(str::to_owned)
        .with_context(|| format!("{command:?} printed nothing"))
}

/// Times one path in this process.
pub(crate) fn run_one(kind: Kind, quick: bool) -> anyhow::Result<()> {
    let size = if quick { QUICK } else { FULL };
    if matches!(kind, Kind::FactoredPlain | Kind::BurnPlain) {
        use_compositions();
    }
    let model = Module::train(adapted(kind, &size)?);
    let device = model.device();
    let optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    let mut learner = Optimized::new(model, optimizer, 1e-4);
    let passes = Passes::new(Arc::new(CrossEntropy), &learner.module)?;
    let (mut step_seconds, mut last_loss) = (Vec::new(), 0.0);
    for index in 0..size.warmup + size.steps {
        let batch = batch(&size, index as u64);
        let began = Instant::now();
        let result = step(&mut learner, 1, 0.0, |learner, _| {
            Ok::<_, TrainError>(Some(passes.run(&learner.module, &batch)))
        })?;
        last_loss = f64::from(result.loss.into_scalar::<f32>()) / result.count;
        device.sync().context("waiting for the device")?;
        if index >= size.warmup {
            step_seconds.push(began.elapsed().as_secs_f64());
        }
    }
    let timing = Timing {
        path: kind.name().to_owned(),
        step_seconds,
        tokens_per_step: size.rows * size.seq,
        peak_rss_bytes: peak_resident_bytes(),
        trainable_params: trained_params(&learner.module),
        last_loss,
    };
    println!("{}", serde_json::to_string(&timing)?);
    Ok(())
}

/// The check below, printed.
pub(crate) fn shown_check() -> anyhow::Result<(f64, f64)> {
    let (loss, gradients) = check()?;
    println!(
        "equality of the factored and the composed path: loss {loss:.1e}, gradients {gradients:.1e} (relative)\n"
    );
    Ok((loss, gradients))
}

/// Loss and every factor's gradient, equal by both paths, with nonzero B and
/// a scale that is not 1.
fn check() -> anyhow::Result<(f64, f64)> {
    let losses_and_grads = |kind| -> anyhow::Result<(f64, Vec<Tensor<2>>)> {
        let model = Module::train(map_params(adapted(kind, &QUICK)?, &mut Refill));
        let batch = batch(&QUICK, 7);
        let loss = loss_sum(&model, &batch);
        let value = f64::from(loss.clone().inner().into_scalar::<f32>()) / batch.n_trained as f64;
        let grads = loss.backward();
        struct Collect<'a>(&'a burn::tensor::Gradients, Vec<Tensor<2>>);
        impl ModuleVisitor for Collect<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(grad) = param.base().grad(self.0) {
                    let shape = grad.shape();
                    self.1.push(grad.reshape([shape[0], shape[1]]));
                }
            }
        }
        let mut collect = Collect(&grads, Vec::new());
        model.visit(&mut collect);
        Ok((value, collect.1))
    };
    let (loss, grads) = losses_and_grads(Kind::Factored)?;
    let (burn_loss, burn_grads) = losses_and_grads(Kind::Burn)?;
    ensure!(
        grads.len() == burn_grads.len() && grads.len() == QUICK.layers * 14,
        "{} gradients",
        grads.len()
    );
    let mut worst = 0.0_f64;
    for (ours, theirs) in grads.into_iter().zip(burn_grads) {
        let size = f64::from(theirs.clone().abs().max().into_scalar::<f32>());
        let diff = f64::from((ours - theirs).abs().max().into_scalar::<f32>());
        ensure!(size > 0.0, "a gradient is zero, which proves nothing");
        worst = worst.max(diff / size);
    }
    let loss_diff = (loss - burn_loss).abs();
    ensure!(
        loss_diff < 1e-4 && worst < 1e-3,
        "the paths differ: loss {loss_diff}, gradients {worst}"
    );
    Ok((loss_diff, worst))
}

pub(crate) fn adapted(kind: Kind, size: &Size) -> anyhow::Result<Llama> {
    let device = Device::default();
    device.seed(11);
    let model = config(size)?.init(&device);
    let targets = vec![olora_adapter::ALL_LINEAR.to_owned()];
    let exclude = vec!["lm_head".to_owned()];
    if matches!(kind, Kind::Burn | Kind::BurnPlain) {
        let paths: Vec<String> = resolve(&model, &targets, &exclude)?
            .into_iter()
            .map(|target| format!("{}.weight", target.path))
            .collect();
        let lora = Lora::new(RANK, alpha()).set_param_group(ParamGroup::from_paths(paths));
        return Ok(model.apply_lora(lora));
    }
    let model = if matches!(kind, Kind::FactoredBf16 | Kind::AnchoredBf16) {
        hold_in_bf16(model, Products::Rounded)?
    } else {
        model
    };
    let method = if matches!(kind, Kind::Anchored | Kind::AnchoredBf16) {
        Method::Olora
    } else {
        Method::Lora
    };
    let config = AdapterConfig {
        method,
        rank: RANK,
        alpha: alpha(),
        targets,
        exclude,
        ..AdapterConfig::default()
    };
    Ok(attach(model, &config, 0, &mut |_, _| {})?)
}

/// A scale that is not 1.
fn alpha() -> f64 {
    1.5 * RANK as f64
}

fn config(size: &Size) -> anyhow::Result<ModelConfig> {
    let json = json!({
        "model_type": "llama", "hidden_size": size.hidden, "num_hidden_layers": size.layers,
        "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": size.intermediate,
        "vocab_size": size.vocab, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false, "rope_parameters": { "rope_theta": 10000.0, "rope_type": "default" },
    });
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("config.json");
    std::fs::write(&path, json.to_string())?;
    Ok(ModelConfig::from_file(&path)?)
}

/// Random tokens, every one of them trained on.
pub(crate) fn batch(size: &Size, seed: u64) -> Batch {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let samples: Vec<Sample> = (0..size.rows)
        .map(|_| {
            let tokens: Vec<u32> = (0..=size.seq)
                .map(|_| rng.random_range(0..size.vocab as u32))
                .collect();
            let mut trained = vec![true; tokens.len()];
            trained[0] = false;
            Sample::new(tokens, trained)
        })
        .collect();
    Batch::from_samples(&samples, 0)
}

fn trained_params(model: &Llama) -> usize {
    let trained = params(model).into_iter().filter(Parameter::trains);
    trained.map(|param| param.num_elements()).sum()
}

/// Fills factors by their layer and name, the same for both kinds of storage.
struct Refill;

impl MapParams for Refill {
    fn map<const D: usize>(&mut self, place: &Place, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = place.path.replace(".low_rank.", ".lora.");
        if !path.contains(".lora.") {
            return param;
        }
        let seed = path.bytes().fold(0_u64, |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        param.map(|factor| {
            let values: Vec<f32> = (0..factor.shape().num_elements())
                .map(|_| rng.random_range(-0.1..0.1))
                .collect();
            let data = TensorData::new(values, factor.shape());
            Tensor::from_data(data, (&factor.device(), DType::F32))
        })
    }
}
