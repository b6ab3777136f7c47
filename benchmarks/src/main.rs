//! Benchmark suites. Each prints a table and, last, one line of JSON; `init` and
//! `paths` check first that what they compare is equal.
//!
//! ```text
//! cargo run --release -p olora-benchmarks -- paths
//! cargo run --release -p olora-benchmarks -- init --quick
//! ```

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

mod init;
mod instruction;
mod memory;
mod paths;
mod starts;

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
    /// `paths` and `instruction`: repetitions of each, interleaved
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// `instruction`: the checkpoint to train; `init`: one to start adapters on, by several methods
    #[arg(long)]
    model: Option<PathBuf>,
    /// `instruction`: the records to train on
    #[arg(long)]
    data: Option<PathBuf>,
    /// `instruction`: steps that are timed
    #[arg(long, default_value_t = 40)]
    steps: usize,
    /// `memory`: where to draw the curves, as SVG
    #[arg(long)]
    plot: Option<PathBuf>,
    /// `instruction`: run ours in this process and print its JSON
    #[arg(long, hide = true)]
    child: bool,
    /// `instruction`: with OLoRA's anchor
    #[arg(long, hide = true)]
    anchored: bool,
    /// `memory`: make one step in this process and print its JSON
    #[arg(long, hide = true, requires = "sequence")]
    keeping: Option<memory::Keeping>,
    /// `memory`: of this length
    #[arg(long, hide = true)]
    sequence: Option<usize>,
    /// `paths`: run one path in this process and print its JSON
    #[arg(long, hide = true)]
    only: Option<paths::Kind>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Suite {
    /// OLoRA's initialisation of one large weight, or with --model several methods' of a whole checkpoint
    Init,
    /// One training step: factored against Burn's composed weight
    Paths,
    /// Peak memory of a step against the length of the sequence
    Memory,
    /// Instruction tuning of a real checkpoint
    Instruction,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(
        !(args.quick && args.peer.is_some()),
        "--quick has another size than the peer: leave one out"
    );
    let rounds = usize::from(args.rounds);
    match (args.suite, args.only) {
        (Suite::Init, _) => match &args.model {
            Some(model) => starts::run(model, rounds, args.peer.as_deref()),
            None => init::run(args.quick, args.peer.as_deref()),
        },
        (Suite::Paths, Some(kind)) => paths::run_one(kind, args.quick),
        (Suite::Paths, None) => paths::run(args.quick, rounds, args.peer.as_deref()),
        (Suite::Memory, _) => match (args.keeping, args.sequence) {
            (Some(keeping), Some(seq)) => memory::run_one(keeping, seq, args.quick),
            _ => memory::run(args.quick, args.peer.as_deref(), args.plot.as_deref()),
        },
        (Suite::Instruction, _) => {
            let (Some(model), Some(data)) = (&args.model, &args.data) else {
                anyhow::bail!("`instruction` needs --model and --data");
            };
            let work = instruction::Work {
                model,
                data,
                steps: args.steps,
            };
            if args.child {
                instruction::run_one(&work, args.anchored)
            } else {
                instruction::run(&work, rounds, args.peer.as_deref())
            }
        }
    }
}
