//! Greedy generation, one sequence: how long the prompt takes, and each token
//! after it; and the same by transformers and by llama.cpp.

use std::{
    ops::ControlFlow,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use burn::tensor::{Device, Int, Tensor, TensorData};
use olora_model::{Dtype, Llama, Matrices, ModelConfig, Packing, Sampling, generate, load_as};
use olora_runs::peak_resident_bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::{
    device::device,
    paths::{last_line, threads},
};

/// The size of the work.
pub(crate) struct Work<'a> {
    pub(crate) backend: &'a str,
    /// A checkpoint, or a `config.json` for random weights.
    pub(crate) model: &'a Path,
    pub(crate) prompt: usize,
    pub(crate) new_tokens: usize,
    /// What ours and transformers' is held in and computed with.
    pub(crate) dtype: Dtype,
    /// A file with packed weights that ours and llama.cpp run as it is.
    pub(crate) gguf: Option<&'a Path>,
}

/// Pythons that have other programs.
#[derive(Clone, Copy)]
pub(crate) struct Peers<'a> {
    pub(crate) transformers: Option<&'a Path>,
    pub(crate) llama_cpp: Option<&'a Path>,
}

impl Work<'_> {
    fn load(&self, device: &Device) -> anyhow::Result<Llama> {
        if self.model.is_dir() {
            return self.read(self.model, device);
        }
        ensure!(
            self.dtype == Dtype::F32,
            "random weights are float32: --model needs a checkpoint for --dtype"
        );
        device.seed(7);
        let config = ModelConfig::from_file(self.model)
            .with_context(|| format!("--model {}", self.model.display()))?;
        Ok(config.init(device))
    }

    fn read(&self, path: &Path, device: &Device) -> anyhow::Result<Llama> {
        let (of_tensors, matrices) = Matrices::to_run(Packing::Stored, self.dtype, device);
        Ok(load_as(path, of_tensors, matrices, device)?.0)
    }
}

pub(crate) fn run(work: &Work<'_>, rounds: usize, peers: Peers<'_>) -> anyhow::Result<()> {
    println!(
        "Greedy generation of {} tokens after a prompt of {}, one sequence, {}, {}.",
        work.new_tokens,
        work.prompt,
        work.dtype,
        work.model.display()
    );
    println!(
        "Times depend on what else the machine does. A first generation is not counted. A token is on the \
         host before the next one begins.\n"
    );
    let (device, details) = device(work.backend)?;
    let model = work.load(&device)?;
    let prompt = prompt(work.prompt, model.vocab_size());
    let near = check(&model, &prompt[..work.prompt.min(24)], work.dtype)?;
    let found = match near {
        0 => "all equal".to_owned(),
        n => format!("all equal but {n}, whose logits lie within 2 % of their range"),
    };
    println!("equality of cached generation and whole forward passes: 16 tokens, {found}\n");
    timed(&model, &prompt, work.new_tokens.min(4))?;
    let packed = match work.gguf {
        None => None,
        Some(gguf) => Some(work.read(gguf, &device)?),
    };
    if let Some(packed) = &packed {
        timed(packed, &prompt, work.new_tokens.min(4))?;
    }
    let mut rows: Vec<(String, Vec<Rates>, Option<u64>)> = Vec::new();
    let mut add = |name: &str, rates, peak| match rows.iter_mut().find(|row| row.0 == name) {
        Some((_, all, _)) => all.push(rates),
        None => rows.push((name.to_owned(), vec![rates], peak)),
    };
    for _ in 0..rounds {
        let rates = timed(&model, &prompt, work.new_tokens)?;
        // Of two models, the peak is of both.
        let peak = peak_resident_bytes().filter(|_| packed.is_none());
        add("olora", rates, peak);
        if let Some(packed) = &packed {
            add(
                "olora, GGUF",
                timed(packed, &prompt, work.new_tokens)?,
                None,
            );
        }
        for (name, python) in [
            ("transformers", peers.transformers),
            ("llama.cpp", peers.llama_cpp),
        ] {
            let Some(python) = python else { continue };
            let result = match (name, work.gguf) {
                ("llama.cpp", Some(gguf)) => run_peer(python, "llama_cpp.py", work, gguf)?,
                _ => run_peer(python, "generate.py", work, work.model)?,
            };
            let found = rates_of(&result).with_context(|| format!("{name} printed no rates"))?;
            add(name, found, result["peak_rss_bytes"].as_u64());
        }
    }
    println!(
        "| what | prompt, tokens/s | generated, tokens/s, median (min – max of rounds) | peak memory |"
    );
    println!("|---|---:|---:|---:|");
    let rows = rows
        .iter()
        .map(|(name, rates, peak)| row(name, rates, *peak));
    let results: Vec<Value> = rows.collect();
    println!(
        "{}",
        json!({
            "suite": "generate", "backend": work.backend, "device": details.to_string(), "model": work.model,
            "dtype": work.dtype.name(), "gguf": work.gguf, "prompt": work.prompt,
            "new_tokens": work.new_tokens, "rounds": rounds, "results": results,
        })
    );
    Ok(())
}

/// Tokens per second, of the prompt and of what is generated after it.
#[derive(Clone, Copy)]
struct Rates {
    prompt: f64,
    generated: f64,
}

fn row(name: &str, rates: &[Rates], peak: Option<u64>) -> Value {
    let sorted = |of: fn(&Rates) -> f64| {
        let mut sorted: Vec<f64> = rates.iter().map(of).collect();
        sorted.sort_by(f64::total_cmp);
        sorted
    };
    let prompt = sorted(|rates| rates.prompt);
    let generated = sorted(|rates| rates.generated);
    let middle = rates.len() / 2;
    println!(
        "| {name} | {:.0} | {:.1} ({:.1} – {:.1}) | {} |",
        prompt[middle],
        generated[middle],
        generated[0],
        generated[generated.len() - 1],
        peak.map_or_else(String::new, |bytes| format!("{:.0} MB", bytes as f64 / 1e6))
    );
    json!({
        "what": name, "prompt_tokens_per_second": prompt[middle],
        "tokens_per_second": { "median": generated[middle], "min": generated[0], "max": generated[generated.len() - 1] },
        "peak_rss_bytes": peak,
    })
}

/// Random tokens.
fn prompt(n: usize, vocab: usize) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    (0..n).map(|_| rng.random_range(0..vocab as u32)).collect()
}

fn timed(model: &Llama, prompt: &[u32], new_tokens: usize) -> anyhow::Result<Rates> {
    let began = Instant::now();
    let mut first = Duration::ZERO;
    let mut n = 0_usize;
    generate(model, prompt, new_tokens, &Sampling::default(), &[], |_| {
        if n == 0 {
            first = began.elapsed();
        }
        n += 1;
        ControlFlow::Continue(())
    })?;
    let rest = began.elapsed().saturating_sub(first);
    Ok(Rates {
        prompt: prompt.len() as f64 / first.as_secs_f64(),
        generated: n.saturating_sub(1) as f64 / rest.as_secs_f64(),
    })
}

/// What is generated with a cache is what whole forward passes say. In bfloat16 it may choose another of
/// two logits that are nearly equal, and how often it did is returned: a single row's attention and
/// update are computed in float32, those of many rows are rounded, and sums are taken in another order.
fn check(model: &Llama, prompt: &[u32], dtype: Dtype) -> anyhow::Result<usize> {
    const TOKENS: usize = 16;
    /// Of the range of all logits, in the place of the 1/256 that a bfloat16 is exact to.
    const NEAR: f32 = 0.02;
    const MOST_NEAR: usize = 2;
    let generated = generate(model, prompt, TOKENS, &Sampling::default(), &[], |_| {
        ControlFlow::Continue(())
    })?;
    let mut near = 0;
    let mut ids = prompt.to_vec();
    for (index, &token) in generated.iter().enumerate() {
        let data = TensorData::new(
            ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(),
            [1, ids.len()],
        );
        let input = Tensor::<2, Int>::from_data(data, &model.device());
        let logits = model.forward(input).slice([0..1, ids.len() - 1..ids.len()]);
        let logits: Vec<f32> = logits.into_data().convert::<f32>().try_into_vec()?;
        ensure!(
            logits.iter().all(|logit| logit.is_finite()),
            "logits of token {index} are not finite"
        );
        let (best, highest) =
            logits
                .iter()
                .enumerate()
                .fold((0, f32::NEG_INFINITY), |best, (id, logit)| {
                    if *logit > best.1 { (id, *logit) } else { best }
                });
        if best != token as usize {
            let lowest = logits.iter().copied().fold(f32::INFINITY, f32::min);
            let behind = (highest - logits[token as usize]) / (highest - lowest);
            ensure!(
                dtype == Dtype::Bf16 && behind < NEAR,
                "token {index} is {token} with the cache, but {best} without, by {behind:.4} of the logits' range"
            );
            near += 1;
        }
        ids.push(token);
    }
    ensure!(
        near <= MOST_NEAR,
        "{near} of {TOKENS} tokens are others with the cache than without"
    );
    Ok(near)
}

fn run_peer(python: &Path, script: &str, work: &Work<'_>, model: &Path) -> anyhow::Result<Value> {
    let mut command = Command::new(python);
    command
        .arg(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("peers")
                .join(script),
        )
        .arg("--model")
        .arg(model)
        .args(["--prompt", &work.prompt.to_string()])
        .args(["--new-tokens", &work.new_tokens.to_string()])
        .args(threads());
    if script == "generate.py" {
        command
            .args(["--dtype", work.dtype.name()])
            .arg("--device")
            .arg(if work.backend == "cpu" { "cpu" } else { "cuda" });
    }
    Ok(serde_json::from_str(&last_line(&mut command)?)?)
}

fn rates_of(result: &Value) -> Option<Rates> {
    Some(Rates {
        prompt: result["prompt_tokens_per_second"].as_f64()?,
        generated: result["tokens_per_second"].as_f64()?,
    })
}
