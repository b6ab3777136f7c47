//! How fast each format is unpacked and multiplied with, on one core.
//!
//!     cargo run --release -p olora-packed --example speed [FORMAT]
//!
//! Panels of 32 rows stay in the cache, as a kernel has them; the matrix does not. Times are
//! of the fastest panel. `narrow` is 256 columns of 512 rows. GB/s are of `f32` unpacked, and of packed bytes read by products.

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "an example that prints"
)]

use std::{hint::black_box, time::Instant};

use olora_packed::{Affine, BlockFormat, Bytes, Format, Packed, PackedError, ScaleType};

const SHAPE: [usize; 2] = [4096, 4096];
/// Rows that are unpacked at a time.
const PANEL: usize = 32;

fn matrix(format: Format, values: &[f32]) -> Result<Packed, PackedError> {
    match format {
        Format::Affine(affine) => {
            let groups = values.len() / affine.group();
            let quants = (0..values.len() * affine.bits() / 8).map(|i| ((i * 97) >> 3) as u8);
            let scales = Bytes::from([0x12, 0x2c].repeat(groups));
            let quants = Bytes::from(quants.collect::<Vec<_>>());
            Packed::from_affine(affine, SHAPE, quants, scales.clone(), scales)
        }
        Format::Blocks(blocks @ (BlockFormat::Q2K | BlockFormat::Q3K | BlockFormat::Q8K)) => {
            Packed::from_blocks(blocks, SHAPE, Bytes::from(vec![17; format.bytes(SHAPE)?]))
        }
        // A few rows again and again: packing by least squares takes its time.
        Format::Blocks(blocks) => {
            let few = Packed::pack(blocks, [64, SHAPE[1]], &values[..64 * SHAPE[1]])?;
            let bytes = few.as_blocks().map(|(_, bytes)| bytes).unwrap_or_default();
            Packed::from_blocks(blocks, SHAPE, Bytes::from(bytes.repeat(SHAPE[0] / 64)))
        }
        _ => Packed::pack(format, SHAPE, values),
    }
}

/// Seconds per panel, of the fastest: what a core can do, whatever else runs on it.
fn fastest(mut panel: impl FnMut(usize)) -> f64 {
    let firsts = (0..SHAPE[0])
        .step_by(PANEL)
        .cycle()
        .take(4 * SHAPE[0] / PANEL);
    let times = firsts.map(|first| {
        let begin = Instant::now();
        panel(first);
        begin.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

fn main() -> Result<(), PackedError> {
    let [rows, columns] = SHAPE;
    let only = std::env::args().nth(1);
    let values: Vec<f32> = (0..rows * columns)
        .map(|i| ((i * 2_654_435_761) % 1_000_003) as f32 / 1e6 - 0.5)
        .collect();
    let vector = &values[..columns];
    let mut panel = vec![0.0_f32; PANEL * columns];
    let mut sums = vec![0.0_f32; PANEL];
    let count = (PANEL * columns) as f64;
    println!(
        "{:32} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "", "bits", "G values/s", "GB/s", "narrow", "dot G/s", "dot GB/s"
    );
    let copied = fastest(|first| {
        panel.copy_from_slice(&values[first * columns..][..PANEL * columns]);
        black_box(&panel);
    });
    println!(
        "{:32} {:>9} {:9.2} {:9.2}",
        "f32, copied",
        32,
        count / copied / 1e9,
        count * 4.0 / copied / 1e9
    );
    let formats = BlockFormat::ALL.map(Format::from).into_iter();
    let formats = formats.chain([
        Format::Bf16,
        Format::F32,
        Format::Nf4,
        Format::Nf4Double,
        Format::Affine(Affine::new(4, 64, ScaleType::F16)?),
        Format::Affine(Affine::new(8, 64, ScaleType::Bf16)?),
    ]);
    for format in formats {
        let name = format.to_string();
        if only
            .as_ref()
            .is_some_and(|only| !name.contains(only.as_str()))
        {
            continue;
        }
        let packed = matrix(format, &values)?;
        let unpacking = fastest(|first| {
            packed
                .unpack(first..first + PANEL, 0..columns, &mut panel, columns)
                .expect("rows are there");
            black_box(&panel);
        });
        // What a backward pass unpacks: a few columns of many rows.
        let narrow = fastest(|first| {
            packed
                .unpack(
                    0..PANEL * 16,
                    first / 256 * 256..first / 256 * 256 + 256,
                    &mut panel,
                    256,
                )
                .expect("rows are there");
            black_box(&panel);
        });
        let products = fastest(|first| {
            packed
                .dot_rows(first..first + PANEL, black_box(vector), &mut sums)
                .expect("rows are there");
            black_box(&sums);
        });
        let bytes = packed.bytes() as f64 * PANEL as f64 / rows as f64;
        println!(
            "{name:32} {:9.2} {:9.2} {:9.2} {:9.2} {:9.2} {:9.2}",
            bytes * 8.0 / count,
            count / unpacking / 1e9,
            count * 4.0 / unpacking / 1e9,
            count / narrow / 1e9,
            count / products / 1e9,
            bytes / products / 1e9,
        );
    }
    Ok(())
}
