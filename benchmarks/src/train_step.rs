//! A training step as `olora train` makes it, at a shape and on a device of
//! one's choice, by LoRA and by OLoRA; and the same step by PyTorch + PEFT.
//!
//! Random weights, every token of full-length sequences trained. Each timing is
//! a process of its own, so that its peak memory is its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use olora_runs::{Event, Observer, Recipe, TrainOptions, train};
use serde_json::{Value, json};

use crate::{
    device::device,
    paths::{last_line, shown_check, threads},
};

/// A method to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// One adapted product.
    Lora,
    /// With its anchor, two more thin products.
    Olora,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Olora => "olora",
        }
    }
}

/// The size of the work.
pub(crate) struct Work<'a> {
    pub(crate) backend: &'a str,
    /// A checkpoint's `config.json`.
    pub(crate) shape: &'a Path,
    pub(crate) dtype: &'a str,
    pub(crate) batch: usize,
    pub(crate) sequence: usize,
    pub(crate) warm_up: usize,
    pub(crate) steps: usize,
}

impl Work<'_> {
    fn tokens(&self) -> usize {
        self.batch * self.sequence
    }

    /// As options, which the peer's script calls alike.
    fn sizes(&self) -> Vec<String> {
        let sizes = [
            ("batch", self.batch),
            ("sequence", self.sequence),
            ("warm-up", self.warm_up),
            ("steps", self.steps),
        ];
        let options = sizes
            .iter()
            .map(|(name, value)| format!("--{name}={value}"));
        options.collect()
    }
}

pub(crate) fn run(work: &Work<'_>, rounds: usize, peer: Option<&Path>) -> anyhow::Result<()> {
    println!(
        "One training step (forward, backward, AdamW) of {} × {} tokens, {}, rank 16 on all linear layers, \
         random weights of {}.",
        work.batch,
        work.sequence,
        work.dtype,
        work.shape.display()
    );
    println!(
        "Times depend on what else the machine does; methods take turns, each in its own process; \
         {} steps of warm-up are not counted, and the loss is read after each step, which waits for the device.\n",
        work.warm_up
    );
    let (loss, gradients) = shown_check()?;
    let mut rows: Vec<(String, Vec<Value>)> = Vec::new();
    let mut add = |name: &str, result: Value| match rows.iter_mut().find(|(known, _)| known == name)
    {
        Some((_, results)) => results.push(result),
        None => rows.push((name.to_owned(), vec![result])),
    };
    for _ in 0..rounds {
        for method in Method::value_variants() {
            add(&format!("olora, {}", method.name()), child(*method, work)?);
        }
        for compiled in [false, true] {
            if let Some(python) = peer {
                let name = if compiled { "compiled" } else { "eager" };
                add(
                    &format!("PyTorch + PEFT, {name}"),
                    run_peer(python, work, compiled)?,
                );
            }
        }
    }
    println!("| what | tokens/s, median (min – max of rounds) | step, s | peak memory | trained |");
    println!("|---|---:|---:|---:|---:|");
    let mut results = Vec::new();
    for (name, timings) in rows {
        results.push(row(&name, &timings, work)?);
    }
    println!(
        "{}",
        json!({
            "suite": "train_step", "backend": work.backend, "shape": work.shape, "dtype": work.dtype,
            "batch": work.batch, "sequence": work.sequence, "warm_up": work.warm_up, "steps": work.steps,
            "rounds": rounds, "results": results, "max_loss_diff": loss, "max_relative_gradient_diff": gradients,
        })
    );
    Ok(())
}

fn row(name: &str, timings: &[Value], work: &Work<'_>) -> anyhow::Result<Value> {
    let rates: Option<Vec<f64>> = timings
        .iter()
        .map(|timing| timing["tokens_per_second"].as_f64())
        .collect();
    let mut rates = rates.with_context(|| format!("{name} printed no `tokens_per_second`"))?;
    rates.sort_by(f64::total_cmp);
    let (median, least, most) = (rates[rates.len() / 2], rates[0], rates[rates.len() - 1]);
    let memory = |timing: &Value| timing["peak_bytes"].as_u64();
    let peak = timings.iter().filter_map(memory).max();
    let trained = timings[0]["trainable_params"].as_u64();
    println!(
        "| {name} | {median:.0} ({least:.0} – {most:.0}) | {:.4} | {} | {} |",
        work.tokens() as f64 / median,
        peak.map_or_else(String::new, |bytes| format!("{:.0} MB", bytes as f64 / 1e6)),
        trained.unwrap_or(0)
    );
    Ok(json!({
        "what": name, "tokens_per_second": { "median": median, "min": least, "max": most },
        "peak_bytes": peak, "trainable_params": trained, "rounds": timings,
    }))
}

fn child(method: Method, work: &Work<'_>) -> anyhow::Result<Value> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["train_step", "--method", method.name()])
        .args(["--backend", work.backend, "--dtype", work.dtype])
        .arg("--shape")
        .arg(work.shape);
    command.args(work.sizes());
    Ok(serde_json::from_str(&last_line(&mut command)?)?)
}

fn run_peer(python: &Path, work: &Work<'_>, compiled: bool) -> anyhow::Result<Value> {
    let mut command = Command::new(python);
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/train_step.py"))
        .arg("--config")
        .arg(work.shape)
        .args(["--dtype", work.dtype, "--device"])
        .arg(if work.backend == "cpu" { "cpu" } else { "cuda" });
    command.args(work.sizes()).args(threads());
    if compiled {
        command.arg("--compile");
    }
    let found: Value = serde_json::from_str(&last_line(&mut command)?)?;
    let device = &found["peak_device_bytes"];
    Ok(json!({
        "tokens_per_second": found["tokens_per_second"]["median"],
        "peak_bytes": if device.is_u64() { device } else { &found["peak_rss_bytes"] },
        "trainable_params": found["trainable_params"],
        "loss": found["last_loss"],
        "versions": found["versions"],
    }))
}

/// Nothing is shown of a run that is timed.
pub(crate) struct Silent;

impl Observer for Silent {
    fn on(&self, _event: &Event) {}
}

/// Times one method in this process.
pub(crate) fn run_one(method: Method, work: &Work<'_>) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let recipe = recipe(method, work, directory.path())?;
    let (device, details) = device(work.backend)?;
    let options = TrainOptions {
        device: details,
        ..TrainOptions::default()
    };
    let silent: Arc<dyn Observer> = Arc::new(Silent);
    let summary = train(&recipe, &device, options, &silent)?;
    let metrics = fs::read_to_string(summary.directory.join("metrics.jsonl"))?;
    let lines: Result<Vec<Value>, _> = metrics.lines().map(serde_json::from_str).collect();
    let seconds: Vec<f64> = lines?
        .iter()
        .filter_map(|line| line["seconds"].as_f64())
        .collect();
    ensure!(
        seconds.len() == work.warm_up + work.steps,
        "{} steps were logged",
        seconds.len()
    );
    let mut each: Vec<f64> = seconds
        .windows(2)
        .skip(work.warm_up - 1)
        .map(|pair| pair[1] - pair[0])
        .collect();
    each.sort_by(f64::total_cmp);
    println!(
        "{}",
        json!({
            "tokens_per_second": work.tokens() as f64 / each[each.len() / 2],
            "peak_bytes": summary.peak_device_memory.or(summary.peak_memory),
            "trainable_params": summary.n_trained_params,
            "first_step_seconds": seconds[0],
            "loss": summary.train_loss,
            "device": summary.device,
            "versions": summary.versions,
        })
    );
    Ok(())
}

/// A recipe of random weights, in a directory with what it needs.
fn recipe(method: Method, work: &Work<'_>, directory: &Path) -> anyhow::Result<Recipe> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let quickstart = here.join("../recipes/quickstart");
    let base = directory.join("base");
    fs::create_dir(&base)?;
    fs::copy(work.shape, base.join("config.json"))
        .with_context(|| format!("--shape {}", work.shape.display()))?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(quickstart.join("base").join(name), base.join(name))?;
    }
    let text: PathBuf = directory.join("text.txt");
    fs::write(&text, stories(&quickstart.join("base-train.jsonl"))?)?;
    let n_steps = work.warm_up + work.steps;
    let settings = [
        format!("model.path={}", base.display()),
        format!("model.dtype={}", work.dtype),
        format!("adapter.method={}", method.name()),
        format!("data.train={}", text.display()),
        format!("data.max_length={}", work.sequence + 1),
        format!("output.directory={}", directory.join("runs").display()),
        format!("training.max_steps={n_steps}"),
        format!("training.batch_size={}", work.batch),
        "training.log_every=1".to_owned(),
    ];
    Ok(Recipe::load(&here.join("gpu/train.toml"), &settings)?)
}

/// Text enough for some thousand sequences.
fn stories(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    for line in fs::read_to_string(path)?.lines() {
        let record: Value = serde_json::from_str(line)?;
        text += record["completion"].as_str().unwrap_or_default();
        text.push('\n');
    }
    Ok(text)
}
