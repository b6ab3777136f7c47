//! How much memory reading and batching a large file takes, of which the tokens
//! are mapped: a file is made, read, and gone through for an epoch.
//!
//! `cargo run --release -p olora-data --example larger_than_memory -- MODEL_DIR MEGABYTES`
#![allow(clippy::print_stdout)] // it is a program

use std::{
    env,
    error::Error,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use olora_data::{
    DataOptions, Mixture, Schedule, TokenCache, Tokenizer, ValidationSplit, load_samples_cached,
    loader, split,
};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

const BATCH_SIZE: usize = 8;
const WORDS: [&str; 10] = [
    "Alder", "Oxmere", "Zora", "Thornby", "Jorun", "lives", "in", "mends", "the", "bridge",
];

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args = env::args_os().skip(1);
    let usage = "usage: larger_than_memory MODEL_DIR MEGABYTES";
    let model = PathBuf::from(args.next().ok_or(usage)?);
    let megabytes: usize = args.next().ok_or(usage)?.to_str().ok_or(usage)?.parse()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("large.jsonl");
    let n_records = make(&path, megabytes * 1_000_000)?;
    println!("{n_records} records, {} bytes", path.metadata()?.len());

    let tokenizer = Tokenizer::from_path(&model)?;
    let cache = TokenCache {
        directory: directory.path().join("cache"),
        min_bytes: 0,
        max_bytes: u64::MAX,
    };
    let load = || {
        let options = DataOptions::default();
        load_samples_cached(&path, &tokenizer, &options, Some(&cache))
    };
    let data = watched("read and tokenised", load)?;
    println!("{}", data.report);
    let size = fs::read_dir(&cache.directory)?
        .next()
        .ok_or("nothing was cached")??
        .metadata()?
        .len();
    drop(data);
    let data = watched(&format!("found in the cache, of {size} bytes"), load)?;
    let (train, _) = split(data.samples, ValidationSplit::Fraction(0.01), 1)?;
    let n = train.len().div_ceil(BATCH_SIZE);
    let (first, second) = (train.clone(), train.clone());
    watched("an epoch", move || {
        epoch(Schedule::new(first, BATCH_SIZE, 1, n)?)
    })?;
    watched("an epoch, packed", move || {
        epoch(Schedule::packed(second, BATCH_SIZE, 512, 1, n)?)
    })?;
    watched("an epoch of a quarter", move || {
        let mixture = Mixture::new([(train, 0.25)])?;
        epoch(Schedule::new(mixture, BATCH_SIZE, 1, n)?)
    })?;
    Ok(())
}

/// Questions and answers of very different lengths.
fn make(path: &Path, n_bytes: usize) -> Result<usize, Box<dyn Error + Send + Sync>> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut file = BufWriter::new(File::create(path)?);
    let (mut written, mut n_records) = (0, 0);
    while written < n_bytes {
        let mut text = |most: usize| {
            let n = random.random_range(5..most);
            let words = (0..n).filter_map(|_| WORDS.choose(&mut random)).copied();
            words.collect::<Vec<_>>().join(" ")
        };
        let record = json!({"prompt": text(60), "completion": text(200)}).to_string();
        writeln!(file, "{record}")?;
        written += record.len() + 1;
        n_records += 1;
    }
    file.flush()?;
    Ok(n_records)
}

fn epoch(schedule: Schedule) -> Result<(), Box<dyn Error + Send + Sync>> {
    let n = schedule.n_batches_per_epoch();
    let (mut n_tokens, mut n_trained) = (0, 0);
    for batch in loader(schedule, 0).slice(0, n).iter() {
        let batch = batch?;
        n_tokens += batch.n_tokens;
        n_trained += batch.n_trained;
    }
    println!("{n} batches of {n_tokens} tokens, {n_trained} of them trained");
    Ok(())
}

/// Does some work and says how long it took, and the most that it had in memory.
fn watched<T, E>(what: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let done = Arc::new(AtomicBool::new(false));
    let watcher = {
        let done = Arc::clone(&done);
        thread::spawn(move || {
            let mut most = [0; 3];
            while !done.load(Ordering::Relaxed) {
                for (most, now) in most.iter_mut().zip(resident()) {
                    *most = now.max(*most);
                }
                thread::sleep(Duration::from_millis(5));
            }
            most
        })
    };
    let began = Instant::now();
    let result = work();
    let seconds = began.elapsed().as_secs_f64();
    done.store(true, Ordering::Relaxed);
    let [all, anonymous, mapped] = watcher.join().unwrap_or_default();
    println!(
        "{what}: {seconds:.1} s, resident at most {:.0} MB, of them own {:.0} MB, of files {:.0} MB",
        all as f64 / 1e3,
        anonymous as f64 / 1e3,
        mapped as f64 / 1e3
    );
    result
}

/// Resident memory in all, of its own, and of mapped files, in kB.
fn resident() -> [u64; 3] {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ["VmRSS:", "RssAnon:", "RssFile:"].map(|key| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok())
            .unwrap_or(0)
    })
}
