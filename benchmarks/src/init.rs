//! OLoRA's start of one weight: thin QR of `r` columns and one matmul, against
//! the full QR factorisation that PEFT computes.

use std::time::Instant;

use anyhow::{Context, ensure};
use burn::{
    nn::{Linear, LinearConfig},
    tensor::{DType, Device, Tensor},
};
use nalgebra::DMatrix;
use olora_adapter::{AdapterConfig, LowRank, attach};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

pub(crate) fn run(quick: bool) -> anyhow::Result<()> {
    let (size, rank) = if quick { (256, 8) } else { (4096, 32) };
    // nalgebra's full factorisation of 4096 x 4096 takes minutes; equality is checked at this size.
    let checked = size.min(1024);
    println!(
        "OLoRA initialisation, f32; the thin way is equal to the full one only up to rounding.\n"
    );
    let diff = check(checked, rank)?;
    println!("equality at {checked} x {checked}, rank {rank}: B0·A0 differs by at most {diff:.1e}");

    let model = vec![layer(size)];
    let config = AdapterConfig {
        rank,
        alpha: rank as f64,
        ..AdapterConfig::default()
    };
    let mut seconds = Vec::new();
    for round in 0..8 {
        let began = Instant::now();
        let adapted = attach(model.clone(), &config, 0, &mut |_, _| {})?;
        Device::default().sync().context("waiting for the device")?;
        drop(adapted);
        if round >= 3 {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let full = full_seconds(checked);
    let median = seconds[seconds.len() / 2];
    println!("\n| way | weight | seconds |\n|---|---|---|");
    println!("| olora: thin QR + one matmul | {size} x {size} | {median:.4} |");
    println!("| nalgebra: full QR, f32 | {checked} x {checked} | {full:.2} |");
    println!(
        "{}",
        json!({
            "suite": "init", "quick": quick, "size": size, "rank": rank,
            "seconds": { "median": median, "min": seconds[0], "max": seconds[seconds.len() - 1] },
            "full_qr": { "size": checked, "seconds": full }, "max_abs_diff": diff,
        })
    );
    Ok(())
}

fn layer(size: usize) -> Linear {
    let device = Device::default();
    device.seed(5);
    let layer = LinearConfig::new(size, size).with_bias(false).init(&device);
    // Lazy until first used: initialise outside the timed region.
    let _ = layer.weight.val();
    layer
}

/// The largest difference of `A₀·B₀` from the one that a full QR gives.
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
    ensure!(
        diff < 1e-4,
        "the thin and the full factorisation differ by {diff}"
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
