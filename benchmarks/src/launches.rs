//! How many kernels a training step gives a GPU, by their names: what a step costs
//! beside its arithmetic, and what can be held to without knowing how fast a
//! device is. Any device that Burn makes kernels for will do, a software rasteriser
//! too.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::{Context, ensure};
use burn::{
    module::Module,
    optim::AdamWConfig,
    tensor::{Device, Tensor},
};
use olora_adapter::{AdapterConfig, Method, attach};
use olora_devices::launches::counted;
use olora_model::ModelConfig;
use olora_training::{CrossEntropy, Optimized, Passes, TrainError, step};
use serde_json::{Map, Value, json};

use crate::{
    device::device,
    here,
    paths::{FULL, Size, batch},
};

const RANK: usize = 16;
/// Fusion makes its plans in the first steps, and autotuning its choices.
const WARM_UP: u64 = 3;

/// A model to train, and on how many tokens.
struct Case {
    name: &'static str,
    config: Value,
    rows: usize,
    seq: usize,
}

fn cases(quick: bool) -> anyhow::Result<Vec<Case>> {
    let read = |path: &str| -> anyhow::Result<Value> {
        let path = here().join(path);
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let quickstart = Case {
        name: "quickstart",
        config: read("../recipes/quickstart/base/config.json")?,
        rows: 2,
        seq: 32,
    };
    if quick {
        return Ok(vec![quickstart]);
    }
    let mut block = read("gpu/tinyllama-1.1b.json")?;
    // One block, and a head that is small beside it.
    block["num_hidden_layers"] = json!(1);
    block["vocab_size"] = json!(256);
    let block = Case {
        name: "one block of TinyLlama",
        config: block,
        rows: 1,
        seq: 64,
    };
    Ok(vec![quickstart, block])
}

const METHODS: [(&str, Method); 2] = [("LoRA", Method::Lora), ("OLoRA", Method::Olora)];

pub(crate) fn run(backend: &str, quick: bool, budget: Option<&Path>) -> anyhow::Result<()> {
    let (device, details) = device(backend)?;
    println!(
        "Kernels of one training step (forward, backward, clipping, AdamW), f32, rank {RANK} on all \
         linear layers, on {}, after {WARM_UP} steps that are not counted.\n",
        details.name
    );
    let budget: Option<Map<String, Value>> = budget
        .map(|path| -> anyhow::Result<_> {
            let text = fs::read(path).with_context(|| format!("--budget {}", path.display()))?;
            Ok(serde_json::from_slice(&text)?)
        })
        .transpose()?;
    let mut results = Map::new();
    for case in cases(quick)? {
        for (name, method) in METHODS {
            let [passes, update] = count(&case, method, &device)?;
            let sum = |counts: &Counts| counts.values().sum::<usize>();
            let total = sum(&passes) + sum(&update);
            ensure!(
                total > 0,
                "{backend} launches no kernels: name a GPU by --backend"
            );
            println!("{}, {name}: {total}", case.name);
            for (what, counts) in [
                ("forward and backward", &passes),
                ("clipping and update", &update),
            ] {
                println!("  {what}: {}", sum(counts));
                let mut sorted: Vec<_> = counts.iter().collect();
                sorted.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
                for (kernel, count) in sorted {
                    println!("    {count:>5}  {kernel}");
                }
            }
            results.insert(
                format!("{}, {name}", case.name),
                json!({ "total": total, "passes": passes, "update": update }),
            );
        }
    }
    let mut over = Vec::new();
    if let Some(budget) = &budget {
        for (what, found) in &results {
            let allowed = budget
                .get(what)
                .and_then(Value::as_u64)
                .with_context(|| format!("the budget says nothing of `{what}`"))?;
            let total = found["total"].as_u64().unwrap_or(u64::MAX);
            if total > allowed {
                over.push(format!("{what}: {total} kernels, {allowed} are allowed"));
            }
        }
    }
    println!(
        "{}",
        json!({ "suite": "launches", "quick": quick, "backend": backend, "device": details.name, "results": results })
    );
    ensure!(over.is_empty(), "{}", over.join("; "));
    Ok(())
}

type Counts = BTreeMap<String, usize>;

/// The kernels of the step after the first few, by name: of its passes, and of what follows them.
fn count(case: &Case, method: Method, device: &Device) -> anyhow::Result<[Counts; 2]> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("config.json");
    fs::write(&path, case.config.to_string())?;
    let config = ModelConfig::from_file(&path)?;
    device.seed(11);
    let adapter = AdapterConfig {
        method,
        rank: RANK,
        alpha: RANK as f64,
        ..AdapterConfig::default()
    };
    let llama = attach(config.init(device), &adapter, 0, &mut |_, _| {})?;
    let model = Module::train(llama);
    let optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    let mut learner = Optimized::new(model, optimizer, 1e-4);
    let passes = Passes::new(Arc::new(CrossEntropy), &learner.module)?;
    let size = Size {
        vocab: config.vocab_size,
        rows: case.rows,
        seq: case.seq,
        ..FULL
    };
    let mut make_step = |index| -> anyhow::Result<(f32, Counts)> {
        let batch = batch(&size, index);
        let mut of_passes = Counts::new();
        let result = step(&mut learner, 1, 1.0, |learner, _| {
            // Within, another count takes the place of the one around it.
            let (pass, counts) = counted(|| {
                let pass = passes.run(&learner.module, &batch);
                device.sync().map(|()| pass)
            });
            of_passes = counts;
            let pass = pass.map_err(|error| TrainError::Mismatch(error.to_string()))?;
            Ok::<_, TrainError>(Some(pass))
        })?;
        let loss = Tensor::into_scalar::<f32>(result.loss);
        device.sync().context("waiting for the device")?;
        Ok((loss, of_passes))
    };
    for index in 0..WARM_UP {
        make_step(index)?;
    }
    let (made, after) = counted(|| make_step(WARM_UP));
    let (loss, of_passes) = made?;
    ensure!(loss.is_finite(), "the loss is not a number");
    Ok([of_passes, after])
}
