//! Peak memory of one training step against the length of the sequence, with
//! everything kept and with blocks computed again.
//!
//! Each point is a process of its own. The model is a stack of blocks of the
//! `paths` suite's width, the batch one sequence, the loss at every position.

use std::{path::Path, process::Command, sync::Arc};

use anyhow::{Context, ensure};
use burn::{module::Module, optim::AdamWConfig};
use clap::ValueEnum;
use olora_runs::peak_resident_bytes;
use olora_training::{CrossEntropy, Optimized, Passes, Recompute, TrainError, step};
use plotters::prelude::*;
use serde_json::{Value, json};

use crate::paths::{self, Kind, Size};

/// What is kept for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Keeping {
    /// What each operation needs.
    Operations,
    /// Each block's input.
    Blocks,
}

impl Keeping {
    fn recompute(self) -> Recompute {
        match self {
            Self::Operations => Recompute::None,
            Self::Blocks => Recompute::Blocks,
        }
    }
}

const LENGTHS: &[usize] = &[256, 512, 1024, 2048, 4096, 8192];
const QUICK_LENGTHS: &[usize] = &[32, 64];

fn size(seq: usize, quick: bool) -> Size {
    let size = if quick { paths::QUICK } else { paths::FULL };
    Size {
        rows: 1,
        seq,
        warmup: 0,
        steps: 1,
        ..size
    }
}

/// One step in this process.
pub(crate) fn run_one(keeping: Keeping, seq: usize, quick: bool) -> anyhow::Result<()> {
    let size = size(seq, quick);
    let model = Module::train(paths::adapted(Kind::Factored, &size)?);
    let batch = paths::batch(&size, 1);
    let optimizer = AdamWConfig::new().init();
    let mut learner = Optimized::new(model, optimizer, 1e-4);
    let passes = Passes::new(Arc::new(CrossEntropy), &learner.module)?;
    let passes = passes.with_recompute(keeping.recompute());
    let began = std::time::Instant::now();
    let result = step(&mut learner, 1, 0.0, |learner, _| {
        Ok::<_, TrainError>(Some(passes.run(&learner.module, &batch)))
    })?;
    let loss = f64::from(result.loss.into_scalar::<f32>()) / seq as f64;
    learner
        .module
        .device()
        .sync()
        .context("waiting for the device")?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({ "peak_rss_bytes": peak_resident_bytes(), "seconds": seconds, "loss": loss })
    );
    Ok(())
}

pub(crate) fn run(quick: bool, peer: Option<&Path>, plot: Option<&Path>) -> anyhow::Result<()> {
    let lengths = if quick { QUICK_LENGTHS } else { LENGTHS };
    println!("Peak resident memory of one training step over one sequence, f32, LoRA.\n");
    paths::shown_check()?;
    println!("| kept | sequence | peak | seconds |\n|---|---|---|---|");
    let mut series: Vec<(&str, Vec<Point>)> = Vec::new();
    for (name, keeping) in [
        ("by each operation", Keeping::Operations),
        ("each block's input", Keeping::Blocks),
    ] {
        let points = lengths
            .iter()
            .map(|seq| point(name, *seq, &mut child(keeping, *seq, quick)?))
            .collect::<anyhow::Result<_>>()?;
        series.push((name, points));
    }
    if let Some(python) = peer {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/train_step.py");
        let points = lengths
            .iter()
            .map(|seq| {
                let mut command = Command::new(python);
                command
                    .arg(&script)
                    .args(["--batch", "1", "--steps", "1", "--warm-up", "0"]);
                command.args(["--sequence", &seq.to_string()]);
                point("PyTorch + PEFT", *seq, &mut command)
            })
            .collect::<anyhow::Result<_>>()?;
        series.push(("PyTorch + PEFT", points));
    }
    let growth = growth(&series[1].1);
    println!("\nwith blocks computed again, bytes for each further token: {growth:.0?}");
    if !quick {
        let (low, high) = growth
            .iter()
            .fold((f64::INFINITY, 0.0_f64), |(low, high), x| {
                (low.min(*x), high.max(*x))
            });
        ensure!(
            high < 2.0 * low,
            "memory does not grow linearly: a further token takes {low:.0} to {high:.0} bytes"
        );
    }
    if let Some(path) = plot {
        draw(path, &series)
            .map_err(|error| anyhow::anyhow!("drawing {}: {error}", path.display()))?;
    }
    let results: Vec<Value> = series
        .iter()
        .flat_map(|(name, points)| {
            points.iter().map(move |point| {
                json!({ "kept": name, "sequence": point.seq, "peak_rss_bytes": point.bytes,
                        "seconds": point.seconds, "loss": point.loss })
            })
        })
        .collect();
    println!(
        "{}",
        json!({ "suite": "memory", "quick": quick, "results": results })
    );
    Ok(())
}

struct Point {
    seq: usize,
    bytes: u64,
    seconds: f64,
    loss: f64,
}

fn child(keeping: Keeping, seq: usize, quick: bool) -> anyhow::Result<Command> {
    let name = keeping.to_possible_value().context("all have names")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([
        "memory",
        "--keeping",
        name.get_name(),
        "--sequence",
        &seq.to_string(),
    ]);
    if quick {
        command.arg("--quick");
    }
    Ok(command)
}

fn point(name: &str, seq: usize, command: &mut Command) -> anyhow::Result<Point> {
    let result: Value = serde_json::from_str(&paths::last_line(command)?)?;
    let point = Point {
        seq,
        bytes: result["peak_rss_bytes"]
            .as_u64()
            .context("no peak was measured")?,
        seconds: result["seconds"]
            .as_f64()
            .or_else(|| result["step_seconds"]["median"].as_f64())
            .unwrap_or(f64::NAN),
        loss: result["loss"].as_f64().unwrap_or(f64::NAN),
    };
    let (megabytes, seconds) = (point.bytes as f64 / 1e6, point.seconds);
    println!("| {name} | {seq} | {megabytes:.0} MB | {seconds:.2} |");
    Ok(point)
}

/// Bytes for each further token, between one length and the next, from 1024 on:
/// below, the program itself weighs more.
fn growth(points: &[Point]) -> Vec<f64> {
    let from = points.iter().filter(|point| point.seq >= 1024);
    let points: Vec<&Point> = from.collect();
    points
        .windows(2)
        .map(|pair| {
            (pair[1].bytes as f64 - pair[0].bytes as f64) / (pair[1].seq - pair[0].seq) as f64
        })
        .collect()
}

fn draw(path: &Path, series: &[(&str, Vec<Point>)]) -> Result<(), Box<dyn std::error::Error>> {
    const COLORS: [RGBColor; 3] = [
        RGBColor(0x4c, 0x78, 0xa8),
        RGBColor(0x54, 0xa2, 0x4b),
        RGBColor(0xe4, 0x57, 0x56),
    ];
    let all = || series.iter().flat_map(|(_, points)| points);
    let longest = all().map(|point| point.seq as f64).fold(1.0, f64::max);
    let highest = all()
        .map(|point| point.bytes as f64 / 1e9)
        .fold(0.1, f64::max);
    let root = SVGBackend::new(path, (800, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .caption(
            "Peak resident memory of a training step (GB)",
            ("sans-serif", 20),
        )
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..longest, 0.0..1.05 * highest)?;
    chart
        .configure_mesh()
        .x_desc("sequence length, tokens")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.1}"))
        .light_line_style(WHITE)
        .draw()?;
    for ((name, points), color) in series.iter().zip(COLORS) {
        let line = points
            .iter()
            .map(|point| (point.seq as f64, point.bytes as f64 / 1e9));
        chart
            .draw_series(LineSeries::new(line.clone(), color.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        chart.draw_series(line.map(|point| Circle::new(point, 3, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}
