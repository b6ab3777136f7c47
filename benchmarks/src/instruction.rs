//! Instruction tuning of a real checkpoint: prompts masked, unequal lengths,
//! batches of eight cut at 512 tokens; and the same by PyTorch + PEFT.
//!
//! The peer's best loop runs the very batches that ours runs; its plain loop
//! draws its own, as people write it.

use std::{collections::HashMap, path::Path, process::Command, sync::Arc, time::Instant};

use anyhow::Context;
use burn::{data::dataset::Dataset, module::Module, optim::AdamWConfig, tensor::Device};
use olora_adapter::{AdapterConfig, Method, attach};
use olora_data::{Batch, Corpus, DataOptions, Schedule, Tokenizer, load_samples};
use olora_model::{Dense, Dtype, Matrices, Packing, load_as};
use olora_operations::Products;
use olora_runs::peak_resident_bytes;
use olora_training::{CrossEntropy, Optimized, Passes, TrainError, step};
use serde_json::{Value, json};

use crate::paths::{PEER_FORMATS, is_wanted, last_line, shown_check};

const BATCH: usize = 8;
const MAX_LENGTH: usize = 512;
const RANK: usize = 16;
const WARMUP: usize = 3;
const LEARNING_RATE: f64 = 5e-4;

/// What to train on what.
pub(crate) struct Work<'a> {
    pub(crate) model: &'a Path,
    pub(crate) data: &'a Path,
    pub(crate) steps: usize,
}

impl Work<'_> {
    fn samples(&self) -> anyhow::Result<Corpus> {
        let tokenizer = Tokenizer::from_path(self.model)?;
        let options = DataOptions {
            max_length: MAX_LENGTH,
            ..DataOptions::default()
        };
        Ok(load_samples(self.data, &tokenizer, &options)?.samples)
    }

    fn schedule(&self) -> anyhow::Result<Schedule> {
        Ok(Schedule::new(
            self.samples()?,
            BATCH,
            42,
            WARMUP + self.steps,
        )?)
    }

    /// The records of each batch, as the peer takes them.
    fn order(&self) -> anyhow::Result<Vec<Vec<usize>>> {
        let mut records: HashMap<Vec<u32>, Vec<usize>> = HashMap::new();
        for (record, sample) in self.samples()?.iter().enumerate() {
            records.entry(sample.tokens).or_default().push(record);
        }
        let schedule = self.schedule()?;
        (0..WARMUP + self.steps)
            .map(|index| {
                let rows = schedule
                    .get(index)
                    .map_err(|error| anyhow::anyhow!("{error}"))?
                    .rows;
                rows.concat()
                    .iter()
                    .map(|sample| {
                        let found = records.get(&sample.tokens).and_then(|found| found.first());
                        found.copied().context("a sample is not among the records")
                    })
                    .collect()
            })
            .collect()
    }
}

/// Ours, in this process.
pub(crate) fn run_one(work: &Work<'_>, anchored: bool, bf16: bool) -> anyhow::Result<()> {
    let device = Device::default();
    let dense = if bf16 {
        Dense::Bf16(Products::Rounded)
    } else {
        Dense::Tensors
    };
    let matrices = Matrices {
        packing: Packing::Stored,
        dense,
        interleaved: false,
    };
    let (llama, _) = load_as(work.model, Dtype::F32, matrices, &device)?;
    let config = AdapterConfig {
        method: if anchored {
            Method::Olora
        } else {
            Method::Lora
        },
        rank: RANK,
        alpha: RANK as f64,
        ..AdapterConfig::default()
    };
    let model = Module::train(attach(llama, &config, 42, &mut |_, _| {})?);
    let optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    let mut learner = Optimized::new(model, optimizer, LEARNING_RATE);
    let passes = Passes::new(Arc::new(CrossEntropy), &learner.module)?;
    let schedule = work.schedule()?;
    let (mut seconds, mut trained, mut tokens, mut inputs) = (0.0, 0, 0, 0);
    let mut losses = Vec::new();
    for index in 0..WARMUP + work.steps {
        let began = Instant::now();
        let rows = schedule
            .get(index)
            .map_err(|error| anyhow::anyhow!("{error}"))?
            .rows;
        let batch = Batch::from_samples(&rows.concat(), 0);
        let result = step(&mut learner, 1, 1.0, |learner, _| {
            Ok::<_, TrainError>(Some(passes.run(&learner.module, &batch)))
        })?;
        losses.push(f64::from(result.loss.into_scalar::<f32>()) / batch.n_trained as f64);
        if index >= WARMUP {
            seconds += began.elapsed().as_secs_f64();
            trained += batch.n_trained;
            tokens += batch.n_tokens;
            inputs += batch.inputs.len();
        }
    }
    println!(
        "{}",
        json!({
            "trained_tokens_per_second": trained as f64 / seconds,
            "tokens_per_second": tokens as f64 / seconds,
            "padding_share": 1.0 - tokens as f64 / inputs as f64,
            "seconds": seconds, "losses": losses, "peak_rss_bytes": peak_resident_bytes(),
        })
    );
    Ok(())
}

pub(crate) fn run(
    work: &Work<'_>,
    rounds: usize,
    wanted: &[String],
    peer: Option<&Path>,
) -> anyhow::Result<()> {
    println!(
        "LoRA rank {RANK} on all linear layers, f32 where a row does not say bf16, batch {BATCH} \
         cut at {MAX_LENGTH}, prompts masked; {} steps after {WARMUP}, {rounds} rounds, taking turns.\n",
        work.steps
    );
    shown_check()?;
    let order = tempfile::NamedTempFile::new()?;
    serde_json::to_writer(&order, &work.order()?)?;
    let mut rows: Vec<(String, Vec<Value>)> = Vec::new();
    let mut add = |name: &str, mut command: Command| -> anyhow::Result<()> {
        if !is_wanted(name, wanted) {
            return Ok(());
        }
        command
            .args(["--steps", &work.steps.to_string()])
            .arg("--model")
            .arg(work.model)
            .arg("--data")
            .arg(work.data);
        let result = serde_json::from_str(&last_line(&mut command)?)?;
        match rows.iter_mut().find(|(known, _)| known == name) {
            Some((_, results)) => results.push(result),
            None => rows.push((name.to_owned(), vec![result])),
        }
        Ok(())
    };
    for _ in 0..rounds {
        for (name, options) in [
            ("olora, LoRA", [].as_slice()),
            ("olora, OLoRA, anchored", &["--anchored"]),
            ("olora, LoRA, bf16", &["--bf16"]),
            ("olora, OLoRA, anchored, bf16", &["--anchored", "--bf16"]),
        ] {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["instruction", "--child"]).args(options);
            add(name, command)?;
        }
        let Some(python) = peer else { continue };
        let script = || {
            let mut command = Command::new(python);
            command
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/instruction.py"))
                .args(["--warm-up", &WARMUP.to_string()]);
            command
        };
        add("PyTorch + PEFT, plain loop", script())?;
        for (format, options) in PEER_FORMATS {
            for (way, compile) in [("eager", None), ("compiled", Some("--compile"))] {
                let mut command = script();
                command
                    .args(["--loop", "best", "--order"])
                    .arg(order.path());
                command.args(options).args(compile);
                let name = format!("PyTorch + PEFT, best loop, the same batches, {format}, {way}");
                add(&name, command)?;
            }
        }
    }
    println!(
        "| loop | trained tokens/s, of all rounds | tokens/s | padding | peak resident | last loss |"
    );
    println!("|---|---|---|---|---|---|");
    let mut results = Vec::new();
    for (name, found) in &rows {
        results.push(row(name, found)?);
    }
    println!(
        "{}",
        json!({ "suite": "instruction", "steps": work.steps, "rounds": rounds, "results": results })
    );
    Ok(())
}

fn row(name: &str, found: &[Value]) -> anyhow::Result<Value> {
    let rate = |key: &str| -> anyhow::Result<Vec<f64>> {
        let rates = found.iter().map(|result| {
            let rate = &result[key];
            rate.as_f64().or_else(|| rate["median"].as_f64())
        });
        let mut rates: Vec<f64> = rates
            .collect::<Option<_>>()
            .with_context(|| format!("{name}: no {key}"))?;
        rates.sort_by(f64::total_cmp);
        Ok(rates)
    };
    let (trained, tokens) = (
        rate("trained_tokens_per_second")?,
        rate("tokens_per_second")?,
    );
    let padding = rate("padding_share")?;
    let peak = found
        .iter()
        .filter_map(|result| result["peak_rss_bytes"].as_u64())
        .max()
        .unwrap_or(0);
    let losses = found[0]["losses"].as_array().context("no losses")?;
    let last = losses
        .last()
        .and_then(Value::as_f64)
        .context("no last loss")?;
    let middle = |values: &[f64]| values[values.len() / 2];
    println!(
        "| {name} | {:.1} ({:.1} – {:.1}) | {:.0} | {:.1} % | {:.2} GB | {last:.4} |",
        middle(&trained),
        trained[0],
        trained[trained.len() - 1],
        middle(&tokens),
        100.0 * middle(&padding),
        peak as f64 / 1e9
    );
    Ok(
        json!({ "loop": name, "trained_tokens_per_second": trained, "tokens_per_second": tokens,
               "padding_share": middle(&padding), "peak_rss_bytes": peak, "last_loss": last }),
    )
}
