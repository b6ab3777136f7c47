//! How fast files are read, and how much memory that takes: `count FILE…`.

#![allow(clippy::print_stdout)]

use std::{error::Error, path::Path, time::Instant};

use olora_records::{RecordsError, find, for_each, kind};

fn main() -> Result<(), Box<dyn Error>> {
    for what in std::env::args().skip(1) {
        for path in find(&what)? {
            count(&path)?;
        }
    }
    Ok(())
}

fn count(path: &Path) -> Result<(), Box<dyn Error>> {
    let form = kind(path)?;
    let bytes = std::fs::metadata(path)?.len();
    let start = Instant::now();
    let mut n_records = 0_u64;
    for_each::<RecordsError>(path, &mut |_| {
        n_records += 1;
        Ok(())
    })?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}: {form}, {n_records} records, {seconds:.2} s, {:.0} MB/s of the file, peak {} MB resident",
        path.display(),
        bytes as f64 / 1e6 / seconds,
        peak_resident_kib().map_or_else(|| "?".to_owned(), |kib| (kib / 1024).to_string()),
    );
    Ok(())
}

/// The most memory that this process has had, where `/proc` says so.
fn peak_resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
