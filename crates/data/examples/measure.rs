//! What reading, tokenising and batching a data file costs, and how much of a
//! batch is padding.
//!
//! `cargo run --release -p olora-data --example measure -- MODEL_DIR FILE…`
#![allow(clippy::print_stdout)] // it is a program

use std::{
    env,
    error::Error,
    hint::black_box,
    path::{Path, PathBuf},
    time::Instant,
};

use burn::data::dataset::{Dataset, DatasetError};
use olora_data::{
    Corpus, DataOptions, Padding, Schedule, TokenCache, Tokenizer, load_samples_cached,
};
use tempfile::TempDir;

const BATCH_SIZE: usize = 8;
const MAX_LENGTH: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let model = args.next().ok_or("usage: measure MODEL_DIR FILE…")?;
    let (tokenizer, seconds) = timed(|| Tokenizer::from_path(&model));
    let tokenizer = tokenizer?;
    println!("tokenizer read in {:.1} ms", 1e3 * seconds);
    for path in args {
        println!("\n{}, {} bytes", path.display(), path.metadata()?.len());
        let samples = reading(&path, &tokenizer)?;
        batching(&samples)?;
    }
    Ok(())
}

/// On several threads, each the best of three times; then through a cache.
fn reading(path: &Path, tokenizer: &Tokenizer) -> Result<Corpus, Box<dyn Error>> {
    let options = DataOptions {
        max_length: MAX_LENGTH,
        ..DataOptions::default()
    };
    let load = |cache| load_samples_cached(path, tokenizer, &options, cache);
    for n_threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
        let pool = pool.build()?;
        let seconds = best(|| pool.install(|| load(None)).map(drop))?;
        println!("  {:.1} ms on {n_threads} threads", 1e3 * seconds);
    }
    let dir = TempDir::new()?;
    let cache = TokenCache {
        directory: dir.path().to_owned(),
        min_bytes: 0,
        max_bytes: u64::MAX,
    };
    let (data, seconds) = timed(|| load(Some(&cache)));
    let data = data?;
    println!("  {:.1} ms with the cache written", 1e3 * seconds);
    let seconds = best(|| load(Some(&cache)).map(drop))?;
    let file = dir
        .path()
        .read_dir()?
        .next()
        .ok_or("nothing was cached")??;
    let size = file.metadata()?.len();
    println!("  {:.1} ms from the cache, of {size} bytes", 1e3 * seconds);
    println!("  {}", data.report);
    Ok(data.samples)
}

fn best<E>(mut work: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut least = f64::INFINITY;
    for _ in 0..3 {
        let (result, seconds) = timed(&mut work);
        result?;
        least = least.min(seconds);
    }
    Ok(least)
}

fn batching(samples: &Corpus) -> Result<(), Box<dyn Error>> {
    let n = samples.len().div_ceil(BATCH_SIZE);
    let schedule = Schedule::new(samples, BATCH_SIZE, 42, n)?;
    println!(
        "  padding at batch {BATCH_SIZE}: {:.2} %, least possible {:.2} %",
        100.0 * schedule.padding_share(),
        100.0 * Schedule::sequential(samples.clone(), BATCH_SIZE)?.padding_share(),
    );
    batches(&schedule, n)?;
    let (schedule, seconds) = timed(|| Schedule::packed(samples, BATCH_SIZE, MAX_LENGTH, 42, n));
    let schedule = schedule?;
    let rows = schedule.n_rows_per_epoch();
    println!("  packed into {rows} rows in {:.1} ms", 1e3 * seconds);
    batches(&schedule, schedule.n_batches_per_epoch())
}

/// The first `n` batches, padded to several multiples.
fn batches(schedule: &Schedule, n: usize) -> Result<(), Box<dyn Error>> {
    // The plan of the epoch is made with its first batch.
    schedule.get(0)?;
    for multiple in [1, 8, 16, 32, 64] {
        let (mut real, mut all) = (0, 0);
        let padding = Padding { id: 0, multiple };
        let (result, seconds) = timed(|| {
            (0..n).try_for_each(|i| {
                let batch = black_box(schedule.get(i)?.batch(padding));
                real += batch.n_tokens;
                all += batch.inputs.len();
                Ok::<_, DatasetError>(())
            })
        });
        result?;
        println!(
            "  rows to a multiple of {multiple}: {:.2} % padding, {:.1} µs per batch",
            100.0 * (1.0 - real as f64 / all as f64),
            1e6 * seconds / n as f64
        );
    }
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let began = Instant::now();
    let result = work();
    (result, began.elapsed().as_secs_f64())
}
