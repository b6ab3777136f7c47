//! Scoring multiple-choice tasks: what the choices of an item have in common
//! run once, against each choice from the beginning; and the same by
//! lm-evaluation-harness.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use olora_data::Tokenizer;
use olora_model::{Dtype, load};
use olora_tasks::{self as tasks, ItemResults, Task, TaskName, TaskOptions, TaskResult};
use serde_json::{Value, json};

use crate::{
    device::device,
    paths::{last_line, threads},
};

/// The size of the work.
pub(crate) struct Work<'a> {
    pub(crate) backend: &'a str,
    /// A checkpoint.
    pub(crate) model: &'a Path,
    /// The tasks' files.
    pub(crate) data: &'a Path,
    pub(crate) tasks: &'a [TaskName],
    /// Items of each task.
    pub(crate) limit: usize,
}

/// Items of each task that are scored both ways, and compared, before anything
/// is timed.
const COMPARED: usize = 8;
/// How far log-likelihoods may differ, relative to their size: they are sums of
/// f32 products in another order.
const TOLERANCE: f64 = 1e-4;

pub(crate) fn run(work: &Work<'_>, rounds: usize, peer: Option<&Path>) -> anyhow::Result<()> {
    println!(
        "Scoring the first {} items of each task with {}, f32, zero-shot, tokenisation included.",
        work.limit,
        work.model.display()
    );
    println!("Times depend on what else the machine does; ways take turns.\n");
    ensure!(
        peer.is_none() || work.backend == "cpu",
        "the peer runs on the CPU: leave out --backend or --peer"
    );
    let (device, details) = device(work.backend)?;
    let (llama, config) = load(work.model, Dtype::F32, &device)?;
    let tokenizer = Tokenizer::from_path(work.model)?;
    let tasks = tasks::load(work.tasks, work.data, Some(work.limit))?;
    let shared = TaskOptions::new(&config, &tokenizer, details.accelerator);
    let apart = TaskOptions {
        share_prefix: false,
        ..shared.clone()
    };
    let score = |tasks: &[Task], options: &TaskOptions| {
        tasks::score(&llama, &tokenizer, tasks, options, &mut |_| {})
    };
    // This is the warm-up too.
    let few = tasks::load(work.tasks, work.data, Some(COMPARED.min(work.limit)))?;
    let (n, worst) = equal(&score(&few, &shared)?, &score(&few, &apart)?)?;
    println!(
        "equality of both ways: {n} log-likelihoods, largest relative difference {worst:.1e}, the same \
         predictions\n"
    );
    let (mut ours, mut slow, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(score(&tasks, &shared)?);
        slow.push(score(&tasks, &apart)?);
        if let Some(python) = peer {
            theirs.push(run_peer(python, work)?);
        }
    }

    println!(
        "| task | items | what | seconds, median (min – max of rounds) | items/s | tokens run |"
    );
    println!("|---|---:|---|---:|---:|---:|");
    let mut rows = Vec::new();
    for (index, task) in tasks.iter().enumerate() {
        let seconds = |of: &[Vec<TaskResult>]| of.iter().map(|r| r[index].seconds).collect();
        let tokens = |of: &[Vec<TaskResult>]| Some(of[0][index].tokens);
        let n = task.items.len();
        let name = task.name.as_str();
        rows.push(row(
            name,
            n,
            "olora, shared prefix",
            seconds(&ours),
            tokens(&ours),
        ));
        rows.push(row(
            name,
            n,
            "olora, each choice whole",
            seconds(&slow),
            tokens(&slow),
        ));
        if !theirs.is_empty() {
            let seconds: Option<Vec<f64>> = theirs
                .iter()
                .map(|result| result["tasks"][name]["seconds"].as_f64())
                .collect();
            let seconds = seconds.context("the peer printed no `seconds`")?;
            rows.push(row(name, n, "lm-evaluation-harness", seconds, None));
        }
    }
    println!(
        "{}",
        json!({
            "suite": "evaluate", "backend": work.backend, "device": details.to_string(), "model": work.model,
            "limit": work.limit, "rounds": rounds, "results": rows,
            "versions": theirs.first().map(|result| &result["versions"]),
        })
    );
    Ok(())
}

fn row(task: &str, n: usize, what: &str, mut seconds: Vec<f64>, tokens: Option<usize>) -> Value {
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let (least, most) = (seconds[0], seconds[seconds.len() - 1]);
    println!(
        "| {task} | {n} | {what} | {median:.1} ({least:.1} – {most:.1}) | {:.1} | {} |",
        n as f64 / median,
        tokens.map_or_else(String::new, |tokens| tokens.to_string())
    );
    json!({ "task": task, "items": n, "what": what, "tokens": tokens,
            "seconds": { "median": median, "min": least, "max": most } })
}

/// How many log-likelihoods there are, and how far they are apart.
fn equal(ours: &[TaskResult], oracle: &[TaskResult]) -> anyhow::Result<(usize, f64)> {
    let (mut n, mut worst) = (0, 0.0_f64);
    for (ours, oracle) in ours.iter().zip(oracle) {
        let (ItemResults::Choices(ours), ItemResults::Choices(oracle)) =
            (&ours.items, &oracle.items)
        else {
            continue;
        };
        for (ours, oracle) in ours.iter().zip(oracle) {
            ensure!(
                ours.prediction == oracle.prediction,
                "item {}: one way predicts {}, the other {}",
                ours.index,
                ours.prediction,
                oracle.prediction
            );
            for (a, b) in ours.log_likelihoods.iter().zip(&oracle.log_likelihoods) {
                n += 1;
                worst = worst.max((a - b).abs() / b.abs().max(1.0));
            }
        }
    }
    ensure!(n > 0, "there is nothing to compare");
    ensure!(worst < TOLERANCE, "log-likelihoods differ by {worst:.1e}");
    Ok((n, worst))
}

fn run_peer(python: &Path, work: &Work<'_>) -> anyhow::Result<Value> {
    let output = tempfile::tempdir()?;
    let names: Vec<&str> = work.tasks.iter().map(|task| task.as_str()).collect();
    let mut command = Command::new(python);
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/harness.py"))
        .arg("--model")
        .arg(work.model)
        .arg("--data")
        .arg(work.data)
        .args([
            "--tasks",
            &names.join(","),
            "--limit",
            &work.limit.to_string(),
        ])
        .args(threads())
        .arg("--output")
        .arg(output.path().join("out"));
    Ok(serde_json::from_str(&last_line(&mut command)?)?)
}

/// Questions of the quickstart with its own answers to choose from, as a task's
/// file: for machines without the real ones.
pub(crate) fn village(directory: &Path, n: usize) -> anyhow::Result<PathBuf> {
    const CHOICES: usize = 4;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart/valid.jsonl");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let records: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
    let records = records?;
    let lines = records.iter().enumerate().take(n).map(|(index, record)| {
        let gold = index % CHOICES;
        // The right answer in its place, and those of the next records around it.
        let choices = (0..CHOICES).map(|place| {
            let other = (index + (place + CHOICES - gold) % CHOICES) % records.len();
            records[other]["completion"].clone()
        });
        let choices: Vec<Value> = choices.collect();
        let query = format!(
            "Question: {}",
            record["prompt"].as_str().unwrap_or_default()
        );
        json!({ "query": query, "choices": choices, "gold": gold }).to_string() + "\n"
    });
    fs::write(directory.join("arc_easy.jsonl"), lines.collect::<String>())?;
    Ok(directory.to_owned())
}
