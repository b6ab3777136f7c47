//! Benchmark suites. Each checks that what it compares is equal, then times
//! it, and prints a table and, last, one line of JSON.
//!
//! ```text
//! cargo run --release -p olora-benchmarks -- paths
//! cargo run --release -p olora-benchmarks -- init --quick
//! ```

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

mod init;
mod paths;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Time olora against the slow and the usual way of doing the same.
#[derive(Parser)]
struct Args {
    suite: Suite,
    /// Small sizes, in seconds: shows that the suite works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// `paths`: also time PyTorch + PEFT with this Python, in turn with ours
    #[arg(long)]
    peer: Option<PathBuf>,
    /// `paths`: repetitions of each path, interleaved
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// `paths`: run one path in this process and print its JSON
    #[arg(long, hide = true)]
    only: Option<paths::Kind>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Suite {
    /// OLoRA's initialisation of one large weight
    Init,
    /// One training step: factored against Burn's composed weight
    Paths,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match (args.suite, args.only) {
        (Suite::Init, _) => init::run(args.quick),
        (Suite::Paths, Some(kind)) => paths::run_one(kind, args.quick),
        (Suite::Paths, None) => paths::run(args.quick, args.rounds, args.peer.as_deref()),
    }
}
