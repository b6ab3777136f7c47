//! What it takes to start an adapter on every linear layer of a checkpoint, by
//! each method, against PEFT.

use std::{path::Path, process::Command, time::Instant};

use anyhow::{Context, bail, ensure};
use burn::tensor::{Device, Tensor};
use olora_adapter::{AdapterConfig, LowRank, Method, attach, linear_layers};
use olora_model::{Dtype, FeedForward, Llama, Projections, load};
use serde_json::{Map, Value, json};

use crate::paths::last_line;

const RANK: usize = 16;
/// Power iterations of the randomised decomposition, as in PEFT's examples.
const ITERATIONS: usize = 4;

pub(crate) fn run(model: &Path, rounds: usize, peer: Option<&Path>) -> anyhow::Result<()> {
    let (llama, _) = load(model, Dtype::F32, &Device::default())?;
    let n_layers = linear_layers(&llama).len();
    println!(
        "Starting rank {RANK} on all {n_layers} linear layers but the head, f32, the model in memory; \
         medians of {rounds}. Times depend on what else the machine does.\n"
    );
    let loss = lost_by_randomness(&llama)?;
    println!(
        "equality: the randomised start takes out of each weight what the exact one does, up to {loss:.1e} \
         of the exact one's size at worst\n"
    );
    let theirs = peer.map(|python| peer_run(python, model)).transpose()?;
    println!("| start | olora, s | PEFT, s | |\n|---|---|---|---|");
    let mut ours = Map::new();
    for (name, config) in methods() {
        // The exact decomposition takes a minute: once is enough.
        let rounds = if name == "pissa" { 1 } else { rounds };
        let seconds = median_seconds(&llama, &config, rounds)?;
        let peer = theirs
            .as_ref()
            .and_then(|theirs| theirs[name]["median"].as_f64());
        println!(
            "| {name} | {seconds:.2} | {} | {} |",
            peer.map_or(String::new(), |peer| format!("{peer:.2}")),
            peer.map_or(String::new(), |peer| format!("{:.1} times", peer / seconds))
        );
        ours.insert(name.to_owned(), json!(seconds));
    }
    println!(
        "{}",
        json!({
            "suite": "init", "model": model.file_name().map(|name| name.to_string_lossy()), "rank": RANK,
            "layers": n_layers, "seconds": ours, "peer": theirs, "randomised_loss": loss,
        })
    );
    Ok(())
}

fn config(method: Method, iterations: Option<usize>) -> AdapterConfig {
    AdapterConfig {
        method,
        iterations,
        rank: RANK,
        alpha: RANK as f64,
        ..AdapterConfig::default()
    }
}

/// By the names that PEFT has for them.
fn methods() -> [(&'static str, AdapterConfig); 4] {
    [
        ("lora", config(Method::Lora, None)),
        ("olora", config(Method::Olora, None)),
        ("pissa_niter_4", config(Method::Pissa, Some(ITERATIONS))),
        ("pissa", config(Method::Pissa, None)),
    ]
}

fn median_seconds(llama: &Llama, config: &AdapterConfig, rounds: usize) -> anyhow::Result<f64> {
    let mut seconds = Vec::new();
    for _ in 0..rounds {
        let began = Instant::now();
        let adapted = attach(llama.clone(), config, 0, &mut |_, _| {})?;
        Device::default().sync().context("waiting for the device")?;
        seconds.push(began.elapsed().as_secs_f64());
        drop(adapted);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// How much less of the first block's weights the randomised start takes out
/// than the exact one, at worst, relative to that: `(‖P‖ − ‖P'‖) / ‖P‖`.
fn lost_by_randomness(llama: &Llama) -> anyhow::Result<f64> {
    let norms = |iterations| {
        let config = AdapterConfig {
            layers: Some(vec![0]),
            ..config(Method::Pissa, iterations)
        };
        let adapted = attach(llama.clone(), &config, 0, &mut |_, _| {})?;
        let block = adapted
            .model
            .layers
            .first()
            .context("a model without blocks")?;
        let (Projections::Apart(attention), FeedForward::One(mlp)) =
            (&block.self_attn.projections, &block.mlp)
        else {
            bail!("a model with fused projections or experts");
        };
        let layers = [
            &attention.q_proj,
            &block.self_attn.o_proj,
            &mlp.up_proj,
            &mlp.down_proj,
        ];
        layers
            .into_iter()
            .map(|layer| {
                let low_rank = layer
                    .weight
                    .reparameterization::<LowRank>()
                    .context("no adapter was attached")?;
                let product: Tensor<2> = low_rank.a.val().matmul(low_rank.b.val());
                Ok(f64::from(
                    product.square().sum().sqrt().into_scalar::<f32>(),
                ))
            })
            .collect::<anyhow::Result<Vec<f64>>>()
    };
    let (exact, random) = (norms(None)?, norms(Some(ITERATIONS))?);
    let losses = exact
        .iter()
        .zip(&random)
        .map(|(exact, random)| (exact - random) / exact);
    let worst = losses.fold(0.0, f64::max);
    ensure!(
        worst < 0.1,
        "the randomised start loses {worst} of the exact one"
    );
    Ok(worst)
}

fn peer_run(python: &Path, model: &Path) -> anyhow::Result<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/starts.py");
    let mut command = Command::new(python);
    command
        .arg(script)
        .arg(model)
        .args(["--rank", &RANK.to_string()]);
    Ok(serde_json::from_str(&last_line(&mut command)?)?)
}
