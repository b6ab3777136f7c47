//! A layer's product with a packed weight against the dense one, forward, and
//! forward and backward.
//!
//! Both take turns, and what is shown is the median of the quotients of times
//! that were measured one after the other, so that a busy machine slows both.

use std::{borrow::Cow, time::Instant};

use anyhow::ensure;
use burn::tensor::{DType, Device, Distribution, Tensor};
use olora_operations::{PackedTensor, Weight, project};
use olora_packed::{BlockFormat, Bytes, Format, Packed};
use serde_json::json;

/// Inputs and outputs: of SmolLM2-135M, then of Llama-3.1-8B.
const LAYERS: [[usize; 2]; 7] = [
    [576, 576],
    [576, 1536],
    [1536, 576],
    [4096, 4096],
    [4096, 1024],
    [4096, 14336],
    [14336, 4096],
];
const TOKENS: [usize; 5] = [1, 128, 512, 1024, 2048];

const FORMATS: [Format; 5] = [
    Format::Blocks(BlockFormat::Q4_0),
    Format::Blocks(BlockFormat::Q4K),
    Format::Blocks(BlockFormat::Q6K),
    Format::Blocks(BlockFormat::Q8_0),
    Format::Nf4,
];

/// A measurement is repeated until it has taken so long.
const SECONDS: f64 = 0.05;

pub(crate) fn run(quick: bool, rounds: usize, only: Option<[usize; 2]>) -> anyhow::Result<()> {
    println!("A frozen layer in f32 with its weight packed, against the same layer dense.");
    println!(
        "Percent more time than dense, forward / forward and backward: medians of {rounds} pairs. \
         A dash: rows do not divide into blocks.\n"
    );
    check()?;
    let names = FORMATS.map(|format| format.to_string());
    println!(
        "| layer | tokens | dense, ms: forward / both | {} |",
        names.join(" | ")
    );
    println!("|---|---|---|{}", "---|".repeat(FORMATS.len()));
    let (layers, tokens): (&[[usize; 2]], &[usize]) = if quick {
        (&[[256, 128], [192, 64]], &[1, 64])
    } else {
        (&LAYERS, &TOKENS)
    };
    let layers = only.as_ref().map_or(layers, std::slice::from_ref);
    let mut results = Vec::new();
    for &layer in layers {
        let weights = FORMATS.map(|format| packed(format, layer));
        for &n in tokens {
            results.push(row(layer, n, &weights, rounds));
        }
    }
    println!("\n{}", json!({ "suite": "packed", "results": results }));
    Ok(())
}

/// One line of the table.
fn row(
    [d_in, d_out]: [usize; 2],
    tokens: usize,
    weights: &[anyhow::Result<PackedTensor>],
    rounds: usize,
) -> serde_json::Value {
    let dense = Weight::from(random([d_in, d_out]));
    let x = random([tokens, d_in]);
    let mut of_dense = [Vec::new(), Vec::new()];
    let mut quotients = vec![[Vec::new(), Vec::new()]; weights.len()];
    // Pages that are touched first, and threads that start.
    seconds(&x, &dense, true);
    for _ in 0..rounds {
        for (weight, quotients) in weights.iter().zip(&mut quotients) {
            let Ok(weight) = weight else { continue };
            let weight = Weight::from(weight.clone());
            for (i, back) in [false, true].into_iter().enumerate() {
                let dense = seconds(&x, &dense, back);
                quotients[i].push(seconds(&x, &weight, back) / dense);
                of_dense[i].push(dense);
            }
        }
    }
    let dense = of_dense.map(|times| median(times) * 1e3);
    let mut cells = Vec::new();
    let mut of_formats = serde_json::Map::new();
    for (format, quotients) in FORMATS.iter().zip(quotients) {
        if quotients[0].is_empty() {
            cells.push("-".to_owned());
            continue;
        }
        let more = quotients.map(|quotients| (median(quotients) - 1.0) * 100.0);
        cells.push(format!("{:+.0} % / {:+.0} %", more[0], more[1]));
        of_formats.insert(format.to_string(), json!(more));
    }
    println!(
        "| {d_in} × {d_out} | {tokens} | {:.2} / {:.2} | {} |",
        dense[0],
        dense[1],
        cells.join(" | ")
    );
    json!({
        "layer": [d_in, d_out],
        "tokens": tokens,
        "dense_ms": dense,
        "percent_more": of_formats,
    })
}

/// Mean seconds of a product, or of a product and its gradient.
fn seconds(x: &Tensor<2>, weight: &Weight, back: bool) -> f64 {
    let began = Instant::now();
    let mut times = 0;
    loop {
        times += 1;
        if back {
            let x = Tensor::<2>::from_inner(x.clone()).require_grad();
            let output = project(x, weight.clone(), None, None);
            drop(output.sum().backward());
        } else {
            drop(project(x.clone(), weight.clone(), None, None));
        }
        let taken = began.elapsed().as_secs_f64();
        if taken > SECONDS {
            return taken / f64::from(times);
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn random(shape: [usize; 2]) -> Tensor<2> {
    let device = Device::flex();
    Tensor::random(shape, Distribution::Default, (&device, DType::F32))
}

/// A packed weight; of blocks, which take long to make, 64 rows over and over.
fn packed(format: Format, [d_in, d_out]: [usize; 2]) -> anyhow::Result<PackedTensor> {
    const ROWS: usize = 64;
    let values: Vec<f32> = (0..d_out * d_in)
        .map(|i| (i * 7919 % 10_007) as f32 / 5000.0 - 1.0)
        .collect();
    let Format::Blocks(blocks) = format else {
        return Ok(PackedTensor::new(Packed::pack(
            format,
            [d_out, d_in],
            &values,
        )?));
    };
    let some = Packed::pack(format, [ROWS, d_in], &values[..ROWS * d_in])?;
    let (_, bytes) = some.as_blocks().unwrap_or((blocks, Cow::default()));
    let bytes = Bytes::from(bytes.repeat(d_out / ROWS));
    let packed = Packed::from_blocks(blocks, [d_out, d_in], bytes)?;
    Ok(PackedTensor::new(packed))
}

/// What is timed gives the same bits.
fn check() -> anyhow::Result<()> {
    for format in FORMATS {
        let weight = packed(format, [256, 128])?;
        let x = random([65, 256]);
        let dense = weight.dense(&Device::flex(), DType::F32);
        let ours = project(x.clone(), weight, None, None).into_data();
        let right = project(x, dense, None, None).into_data();
        ensure!(ours == right, "{format} differs from its unpacked weight");
    }
    Ok(())
}
