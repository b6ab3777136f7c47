//! From a data file to the first batch: seconds and peak memory. The same by
//! datasets and transformers is `benchmarks/peers/data.py`.
//!
//! `cargo run --release -p olora-data --example first_batch -- MODEL_DIR FILE`
#![allow(clippy::print_stdout)] // it is a program

use std::{env, error::Error, fs, path::PathBuf, time::Instant};

use burn::data::dataset::Dataset;
use olora_data::{
    Batch, DataOptions, Padding, Schedule, TokenCache, Tokenizer, load_samples_cached,
};
use tempfile::TempDir;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let usage = "usage: first_batch MODEL_DIR FILE";
    let (model, path) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let dir = TempDir::new()?;
    let cache = TokenCache {
        directory: dir.path().to_owned(),
        min_bytes: 0,
        max_bytes: u64::MAX,
    };
    for what in ["read and tokenised", "found in the cache"] {
        let began = Instant::now();
        let tokenizer = Tokenizer::from_path(&model)?;
        let data = load_samples_cached(&path, &tokenizer, &DataOptions::default(), Some(&cache))?;
        let n = data.samples.len();
        let schedule = Schedule::new(data.samples, 8, 42, 1)?;
        let item = schedule.get(0)?;
        let padding = Padding::from(tokenizer.pad_id());
        let batch = Batch::from_samples(&item.rows.concat(), padding);
        println!(
            "{what}: {n} samples, a batch of {} x {} after {:.1} s; {}",
            batch.n_rows,
            batch.seq_len,
            began.elapsed().as_secs_f64(),
            peak()?
        );
    }
    Ok(())
}

/// Of this process so far, as Linux counts it: mapped pages of files too.
fn peak() -> Result<String, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    Ok(line.unwrap_or("VmHWM unknown").to_owned())
}
