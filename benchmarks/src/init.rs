//! OLoRA's start of one weight: thin QR of `r` columns and one matmul, against
//! the full QR factorisation that PEFT computes.

use std::{path::Path, process::Command, time::Instant};

use anyhow::{Context, ensure};
use burn::{
    nn::{Linear, LinearConfig},
    tensor::{DType, Device, Tensor},
};
use nalgebra::DMatrix;
use olora_adapter::{AdapterConfig, LowRank, attach};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::paths::last_line;

pub(crate) fn run(quick: bool, peer: Option<&Path>) -> anyhow::Result<()> {
    let (size, rank) = if quick { (256, 8) } else { (4096, 32) };
    // nalgebra's full factorisation of 4096 x 4096 takes minutes, so the two are compared here.
    let compared = size.min(1024);
    println!(
        "OLoRA's start of one f32 weight at rank {rank}; times depend on what else the machine does.\n"
    );
    let diff = check(compared, rank)?;
    println!(
        "equality at {compared} x {compared}: B0·A0 differs by {diff:.1e} of its largest value\n"
    );

    let full = full_seconds(compared);
    let small = thin_seconds(compared, rank)?;
    let large = thin_seconds(size, rank)?;
    println!("| way | weight | seconds | against the full QR |\n|---|---|---|---|");
    println!("| nalgebra: full QR | {compared} x {compared} | {full:.4} | 1 |");
    println!(
        "| olora: thin QR + one matmul | {compared} x {compared} | {small:.4} | {:.0} times faster |",
        full / small
    );
    println!("| olora: thin QR + one matmul | {size} x {size} | {large:.4} | |");
    let peer = peer
        .map(|python| peer_run(python, size, rank))
        .transpose()?;
    if let Some(peer) = &peer {
        let seconds = |way: &str| {
            peer[way]["median"]
                .as_f64()
                .context("the peer printed no median")
        };
        let (theirs, thin) = (seconds("full_seconds")?, seconds("thin_seconds")?);
        println!(
            "| torch: full QR, as PEFT does it | {size} x {size} | {theirs:.4} | olora {:.0} times faster |",
            theirs / large
        );
        println!("| torch: thin QR + one matmul | {size} x {size} | {thin:.4} | |");
    }
    println!(
        "{}",
        json!({
            "suite": "init", "quick": quick, "rank": rank, "max_relative_diff": diff,
            "compared": { "size": compared, "full_seconds": full, "thin_seconds": small },
            "size": size, "seconds": large, "peer": peer,
        })
    );
    Ok(())
}

/// Median seconds to attach an adapter to one layer, after three warm-ups.
fn thin_seconds(size: usize, rank: usize) -> anyhow::Result<f64> {
    let model = vec![layer(size)];
    let config = AdapterConfig {
        rank,
        alpha: rank as f64,
        ..AdapterConfig::default()
    };
    let mut seconds = Vec::new();
    for round in 0..10 {
        let began = Instant::now();
        let adapted = attach(model.clone(), &config, 0, &mut |_, _| {})?;
        Device::default().sync().context("waiting for the device")?;
        if round >= 3 {
            seconds.push(began.elapsed().as_secs_f64());
        }
        drop(adapted);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

fn peer_run(python: &Path, size: usize, rank: usize) -> anyhow::Result<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/olora_init.py");
    let mut command = Command::new(python);
    command
        .arg(script)
        .args(["--size", &size.to_string(), "--rank", &rank.to_string()]);
    Ok(serde_json::from_str(&last_line(&mut command)?)?)
}

fn layer(size: usize) -> Linear {
    let device = Device::default();
    device.seed(5);
    let layer = LinearConfig::new(size, size).with_bias(false).init(&device);
    // Lazy until first used: initialise outside the timed region.
    let _ = layer.weight.val();
    layer
}

/// The largest difference of `A₀·B₀` from the one that a full QR gives, as a
/// share of its largest value.
fn check(size: usize, rank: usize) -> anyhow::Result<f32> {
    let layer = layer(size);
    let v = host(layer.weight.val())?;
    let config = AdapterConfig {
        rank,
        alpha: rank as f64,
        ..AdapterConfig::default()
    };
    let adapted = attach(vec![layer], &config, 0, &mut |_, _| {})?;
    let low_rank = adapted[0]
        .weight
        .reparameterization::<LowRank>()
        .context("no adapter was attached")?;
    let ours = host(low_rank.a.val().matmul(low_rank.b.val()))?;

    // Burn's weight is the transpose of PyTorch's: column-major, it is PyTorch's own.
    let weight = DMatrix::from_column_slice(size, size, &v);
    let qr = weight.qr();
    let product = qr.q().columns(0, rank) * qr.r().rows(0, rank);
    let diff = ours
        .iter()
        .zip(product.iter())
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    let largest = product
        .iter()
        .fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let diff = diff / largest;
    ensure!(
        diff < 1e-4,
        "the thin and the full factorisation differ by {diff} of {largest}"
    );
    Ok(diff)
}

fn full_seconds(size: usize) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let weight = DMatrix::<f32>::from_fn(size, size, |_, _| rng.random_range(-1.0..1.0));
    let began = Instant::now();
    let qr = weight.qr();
    let (q, r) = (qr.q(), qr.r());
    std::hint::black_box((q[(0, 0)], r[(0, 0)]));
    began.elapsed().as_secs_f64()
}

fn host(tensor: Tensor<2>) -> anyhow::Result<Vec<f32>> {
    let data = tensor.into_data_dtype(DType::F32);
    data.try_into_vec()
        .map_err(|error| anyhow::anyhow!("{error}"))
}
