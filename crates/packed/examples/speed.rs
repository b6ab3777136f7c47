//! How fast each format is unpacked and multiplied with, on one core.
//!
//!     cargo run --release -p olora-packed --example speed [FORMAT [COLUMNS]]
//!
//! Panels of 32 rows stay in the cache, as a kernel has them; the matrix does not. Times are
//! of the fastest panel. `narrow` is 256 columns of 512 rows. GB/s are of `f32` unpacked, and of packed bytes read by
//! products; those of `all` are of the whole matrix, from its first row to its last.

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "an example that prints"
)]

use std::{hint::black_box, time::Instant};

use olora_packed::{Affine, BlockFormat, Bytes, Format, Packed, PackedError, ScaleType};

const VALUES: usize = 4096 * 4096;
/// Rows that are unpacked at a time.
const PANEL: usize = 32;

fn matrix(format: Format, shape: [usize; 2], values: &[f32]) -> Result<Packed, PackedError> {
    match format {
        Format::Affine(affine) => {
            let groups = values.len() / affine.group();
            let quants = (0..values.len() * affine.bits() / 8).map(|i| ((i * 97) >> 3) as u8);
            let scales = Bytes::from([0x12, 0x2c].repeat(groups));
            let quants = Bytes::from(quants.collect::<Vec<_>>());
            Packed::from_affine(affine, shape, quants, scales.clone(), scales)
        }
        Format::Blocks(blocks @ (BlockFormat::Q2K | BlockFormat::Q3K | BlockFormat::Q8K)) => {
            Packed::from_blocks(blocks, shape, Bytes::from(vec![17; format.bytes(shape)?]))
        }
        // A few rows again and again: packing by least squares takes its time.
        Format::Blocks(blocks) => {
            let few = Packed::pack(blocks, [PANEL, shape[1]], &values[..PANEL * shape[1]])?;
            let bytes = few.as_blocks().map(|(_, bytes)| bytes).unwrap_or_default();
            Packed::from_blocks(blocks, shape, Bytes::from(bytes.repeat(shape[0] / PANEL)))
        }
        _ => Packed::pack(format, shape, values),
    }
}

/// Seconds per panel, of the fastest: what a core can do, whatever else runs on it.
fn fastest(rows: usize, mut panel: impl FnMut(usize)) -> f64 {
    let firsts = (0..rows).step_by(PANEL).cycle().take(4 * rows / PANEL);
    let times = firsts.map(|first| {
        let begin = Instant::now();
        panel(first);
        begin.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

fn main() -> Result<(), PackedError> {
    let only = std::env::args().nth(1);
    let columns = std::env::args().nth(2).map(|text| text.parse());
    let columns = columns
        .transpose()
        .expect("a number of columns")
        .unwrap_or(4096);
    let rows = VALUES / columns / PANEL * PANEL;
    let shape = [rows, columns];
    let values: Vec<f32> = (0..rows * columns)
        .map(|i| ((i * 2_654_435_761) % 1_000_003) as f32 / 1e6 - 0.5)
        .collect();
    let vector = &values[..columns];
    let mut panel = vec![0.0_f32; PANEL * columns.max(16 * 256)];
    let mut sums = vec![0.0_f32; PANEL];
    let count = (PANEL * columns) as f64;
    println!(
        "{:32} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "", "bits", "G values/s", "GB/s", "narrow", "dot G/s", "dot GB/s", "all GB/s"
    );
    let copied = fastest(rows, |first| {
        panel[..PANEL * columns].copy_from_slice(&values[first * columns..][..PANEL * columns]);
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
        let packed = matrix(format, shape, &values)?;
        let unpacking = fastest(rows, |first| {
            packed
                .unpack(first..first + PANEL, 0..columns, &mut panel, columns)
                .expect("rows are there");
            black_box(&panel);
        });
        // What a backward pass unpacks: a few columns of many rows.
        let narrow = fastest(rows, |first| {
            let first = first / 256 % (columns / 256) * 256;
            packed
                .unpack(0..PANEL * 16, first..first + 256, &mut panel, 256)
                .expect("rows are there");
            black_box(&panel);
        });
        let products = fastest(rows, |first| {
            packed
                .dot_rows(first..first + PANEL, black_box(vector), &mut sums)
                .expect("rows are there");
            black_box(&sums);
        });
        let mut all = vec![0.0_f32; rows];
        let whole = [(); 5].map(|()| {
            let begin = Instant::now();
            packed
                .dot_rows(0..rows, black_box(vector), &mut all)
                .expect("rows are there");
            black_box(&all);
            begin.elapsed().as_secs_f64()
        });
        let whole = whole.into_iter().fold(f64::INFINITY, f64::min);
        let bytes = packed.bytes() as f64 * PANEL as f64 / rows as f64;
        println!(
            "{name:32} {:9.2} {:9.2} {:9.2} {:9.2} {:9.2} {:9.2} {:9.2}",
            bytes * 8.0 / count,
            count / unpacking / 1e9,
            count * 4.0 / unpacking / 1e9,
            count / narrow / 1e9,
            count / products / 1e9,
            bytes / products / 1e9,
            packed.bytes() as f64 / whole / 1e9,
        );
    }
    Ok(())
}
