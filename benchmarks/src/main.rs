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
    /// Also time PyTorch + PEFT with this Python, in the same sitting
    #[arg(long)]
    peer: Option<PathBuf>,
    /// `paths`: repetitions of each path, interleaved
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
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
    anyhow::ensure!(
        !(args.quick && args.peer.is_some()),
        "--quick has another size than the peer: leave one out"
    );
    let rounds = usize::from(args.rounds);
    match (args.suite, args.only) {
        (Suite::Init, _) => init::run(args.quick, args.peer.as_deref()),
        (Suite::Paths, Some(kind)) => paths::run_one(kind, args.quick),
        (Suite::Paths, None) => paths::run(args.quick, rounds, args.peer.as_deref()),
    }
}
