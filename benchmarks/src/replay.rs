//! Runs of a comparison once more by PyTorch + PEFT: the same batches, rates and
//! validation data, PEFT's own starts. Kept in `peer/<name>.json` and not made
//! again.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, ensure};
use burn::data::dataset::Dataset;
use olora_adapter::{AdapterConfig, Method};
use olora_data::{Sample, Schedule, Tokenizer};
use olora_files::write_atomically;
use olora_runs::{
    Data, Recipe,
    recipe::{AdapterSection, OptimizerKind, TrainingSection},
};
use serde_json::{Value, json};

use crate::{
    paths::{last_line, threads},
    train_step::Silent,
};

/// The first seed of each method and rank, as `Report::to_json` has them.
pub(crate) fn run(report: &Value, results: &Path, python: &Path) -> anyhow::Result<Vec<Value>> {
    println!("\n## The first seed once more, by PyTorch + PEFT on the same batches\n");
    println!(
        "| method | rank | learning rate | last loss, ours | PEFT's | largest difference at any evaluation |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    let groups = report["groups"].as_array().context("a report has groups")?;
    let mut rows = Vec::new();
    for group in groups {
        let method = group["method"].as_str().unwrap_or_default();
        let (rank, rate, seed) = (&group["rank"], &group["learning_rate"], &group["seeds"][0]);
        let (Some(rate), true) = (rate.as_f64(), seed.is_u64()) else {
            continue;
        };
        let name = format!("{method}-r{rank}-lr{rate:e}-seed{seed}");
        let path = results.join("peer").join(format!("{name}.json"));
        let cell: Value =
            serde_json::from_slice(&fs::read(results.join(format!("cells/{name}.json")))?)?;
        let ours = curve(&cell["validation"])?;
        let peer: Value = if path.exists() {
            serde_json::from_slice(&fs::read(&path)?)?
        } else {
            let recipe: Recipe = serde_json::from_value(cell["recipe"].clone())?;
            let steps: Vec<u64> = ours.iter().map(|(step, _)| *step).collect();
            let peer = work(&recipe, &steps)
                .and_then(|work| run_peer(&work, python))
                .with_context(|| format!("making {name} again"))?;
            write_atomically(&path, |file| writeln!(file, "{peer:#}"))?;
            peer
        };
        let theirs = curve(&peer["validation"])?;
        ensure!(
            theirs.len() == ours.len(),
            "the peer made other evaluations"
        );
        let apart = ours.iter().zip(&theirs).map(|(a, b)| (a.1 - b.1).abs());
        let apart = apart.fold(0.0, f64::max);
        let last = |curve: &[(u64, f64)]| curve.last().map_or(f64::NAN, |point| point.1);
        println!(
            "| {method} | {rank} | {rate:e} | {:.4} | {:.4} | {apart:.4} |",
            last(&ours),
            last(&theirs)
        );
        rows.push(
            json!({ "name": name, "ours": ours, "peer": theirs, "versions": peer["versions"] }),
        );
    }
    Ok(rows)
}

fn run_peer(work: &Value, python: &Path) -> anyhow::Result<Value> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), work.to_string())?;
    let mut command = Command::new(python);
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/convergence.py"))
        .arg(file.path())
        .args(threads());
    Ok(serde_json::from_str(&last_line(&mut command)?)?)
}

/// PEFT's `init_lora_weights` for an adapter.
fn init(adapter: &AdapterConfig) -> anyhow::Result<Value> {
    Ok(match (adapter.method, adapter.iterations) {
        (Method::Lora, _) => json!(true),
        (Method::LoraGaussian, _) => json!("gaussian"),
        (Method::LoraOrthogonal, _) => json!("orthogonal"),
        (Method::Olora, _) => json!("olora"),
        (Method::Pissa, None) => json!("pissa"),
        (Method::Pissa, Some(n)) => json!(format!("pissa_niter_{n}")),
        (method, _) => anyhow::bail!("the peer has no start `{method:?}`"),
    })
}

fn curve(points: &Value) -> anyhow::Result<Vec<(u64, f64)>> {
    Ok(serde_json::from_value(points.clone())?)
}

/// All that the peer needs: tokens of every step, rates, and the adapter.
fn work(recipe: &Recipe, steps: &[u64]) -> anyhow::Result<Value> {
    let (data, training) = (&recipe.data, &recipe.training);
    let given = &recipe.adapter.config;
    let adapter = AdapterConfig {
        method: given.method,
        iterations: given.iterations,
        rank: given.rank,
        alpha: given.alpha,
        rslora: given.rslora,
        dora: given.dora,
        targets: given.targets.clone(),
        ..AdapterConfig::default()
    };
    let section = AdapterSection {
        config: adapter.clone(),
        ..AdapterSection::default()
    };
    let simple = TrainingSection {
        accumulation: 1,
        optimizer: OptimizerKind::Adamw,
        loraplus_ratio: None,
        ..training.clone()
    };
    ensure!(
        section == recipe.adapter && simple == *training && !data.packing,
        "the peer knows a method, its rank, alpha and targets, and AdamW with one micro-batch a step: \
         nothing else of the recipe"
    );
    let tokenizer = Tokenizer::from_path(&recipe.model.path)?;
    let Data {
        train, validation, ..
    } = Data::load(recipe, &tokenizer, &Silent)?;
    let validation = validation.context("there is no validation data")?;
    let total = *steps.last().context("there are no evaluations")? as usize;
    let schedule = Schedule::new(train, training.batch_size, recipe.seed, total)?;
    let batches: anyhow::Result<Vec<Value>> = (0..total)
        .map(|index| {
            let item = schedule
                .get(index)
                .map_err(|error| anyhow::anyhow!("{error}"))?;
            Ok(rows(item.rows.concat()))
        })
        .collect();
    let rate = training.learning_rate(total);
    Ok(json!({
        "model": recipe.model.path,
        "seed": recipe.seed,
        "train": batches?,
        "validation": rows(validation.iter()),
        "rates": (1..=total).map(|step| rate.at(step)).collect::<Vec<_>>(),
        "evaluate_after": steps,
        "batch_size": training.batch_size,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "rslora": adapter.rslora,
        "dora": adapter.dora,
        "targets": adapter.targets,
        "init": init(&adapter)?,
        "betas": [training.beta1, training.beta2],
        "epsilon": training.epsilon,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
    }))
}

fn rows(samples: impl IntoIterator<Item = Sample>) -> Value {
    let rows = samples.into_iter().map(|sample| {
        let trained: Vec<u8> = sample
            .trained
            .iter()
            .map(|trained| u8::from(*trained))
            .collect();
        json!({ "tokens": sample.tokens, "trained": trained })
    });
    Value::Array(rows.collect())
}
