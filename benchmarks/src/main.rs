//! Benchmark suites. Each prints what to be careful of, a table and, last, one
//! line of JSON, and checks that what it compares is equal before it is timed.
//!
//! ```text
//! cargo run --release -p olora-benchmarks -- paths
//! cargo run --release -p olora-benchmarks -- init --quick
//! ```

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints its results, and how far it has come"
)]

mod convergence;
mod device;
mod evaluate;
mod generate;
mod init;
mod instruction;
mod launches;
mod memory;
mod packed;
mod paths;
mod replay;
mod starts;
mod train_step;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use olora_tasks::TaskName;

/// Time olora against the slow and the usual way of doing the same.
#[derive(Parser)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own on the command line"
)]
struct Args {
    suite: Suite,
    /// `convergence`, `evaluate`, `generate`, `launches` and `train_step`: the device, such as cpu, cuda, wgpu or vulkan
    #[arg(long, visible_alias = "device", default_value = "cpu")]
    backend: String,
    /// Small sizes, in seconds: shows that the suite works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Also time PyTorch + PEFT with this Python, in the same sitting
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Repetitions of each timing, interleaved
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// `instruction`: the checkpoint to train; `init`: one to start adapters on, by several methods;
    /// `generate`: one to run, or a `config.json` for random weights; `evaluate`: one to score
    #[arg(long)]
    model: Option<PathBuf>,
    /// `paths` and `instruction`: only rows that have this in their name, such as bf16; may be repeated
    #[arg(long, value_name = "TEXT")]
    rows: Vec<String>,
    /// `instruction`: the records to train on
    #[arg(long)]
    data: Option<PathBuf>,
    /// `instruction` and `train_step`: steps that are timed [default: 40, 10]
    #[arg(long, value_parser = at_least_one)]
    steps: Option<usize>,
    /// `train_step`: steps before those
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    warm_up: u16,
    /// `train_step`: a checkpoint's `config.json` [default: benchmarks/gpu/smollm2-135m.json]
    #[arg(long)]
    shape: Option<PathBuf>,
    /// `train_step` and `generate`: number format of the base
    #[arg(long, default_value = "float32")]
    dtype: String,
    /// `generate`: also time llama.cpp on `--gguf`, by its bindings for this Python
    #[arg(long, requires = "gguf")]
    llama_cpp: Option<PathBuf>,
    /// `generate`: the model for llama.cpp, and for a second row of ours
    #[arg(long)]
    gguf: Option<PathBuf>,
    /// `train_step`: sequences in a step
    #[arg(long, default_value_t = 2, value_parser = at_least_one)]
    batch: usize,
    /// `generate`: tokens of the prompt
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    prompt: usize,
    /// `generate`: tokens after it
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..))]
    new_tokens: u16,
    /// `evaluate` and `convergence`: directory of tasks' files, such as `arc_easy.jsonl`
    #[arg(long)]
    task_data: Option<PathBuf>,
    /// `evaluate` and `convergence`: tasks
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "arc_easy,arc_challenge,boolq,openbookqa,piqa,winogrande"
    )]
    tasks: Vec<TaskName>,
    /// `evaluate` and `convergence`: items of each task
    #[arg(long, default_value_t = 100, value_parser = at_least_one)]
    limit: usize,
    /// `convergence`: what to train on what [default: quickstart, instruction, gsm8k]
    #[arg(long, value_delimiter = ',')]
    only: Vec<convergence::Setting>,
    /// `convergence`: override a key of the recipes, such as `model.path=…`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// `convergence`: where runs are kept; those that are there are not made again
    /// [default: benchmarks/results]
    #[arg(long)]
    results: Option<PathBuf>,
    /// `launches`: kernels that are allowed, a JSON object by the names of the cases; fails if there are more
    #[arg(long)]
    budget: Option<PathBuf>,
    /// `memory`: where to draw the curves, as SVG
    #[arg(long)]
    plot: Option<PathBuf>,
    /// `instruction`: run ours in this process and print its JSON
    #[arg(long, hide = true)]
    child: bool,
    /// `instruction`: with OLoRA's anchor
    #[arg(long, hide = true)]
    anchored: bool,
    /// `instruction`: with the base in bfloat16
    #[arg(long, hide = true)]
    bf16: bool,
    /// `memory`: make one step in this process and print its JSON
    #[arg(long, hide = true, requires = "sequence")]
    keeping: Option<memory::Keeping>,
    /// `train_step`: tokens in a sequence [default: 256]; `memory`: of this length
    #[arg(long)]
    sequence: Option<usize>,
    /// `packed`: only a layer of so many inputs and outputs
    #[arg(long, value_name = "INxOUT", value_parser = layer)]
    layer: Option<[usize; 2]>,
    /// `paths`: run one path in this process and print its JSON
    #[arg(long, hide = true)]
    path: Option<paths::Kind>,
    /// `train_step`: run one method in this process and print its JSON
    #[arg(long, hide = true)]
    method: Option<train_step::Method>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// OLoRA's initialisation of one large weight, or with --model several methods' of a whole checkpoint
    Init,
    /// One training step as `olora train` makes it, at a shape and on a device of one's choice
    #[value(name = "train_step")]
    TrainStep,
    /// Which method learns faster, each at its own learning rate
    Convergence,
    /// Greedy generation
    Generate,
    /// Multiple-choice tasks
    Evaluate,
    /// One training step: factored against Burn's composed weight
    Paths,
    /// A layer with its weight packed against the same layer dense
    Packed,
    /// Peak memory of a step against the length of the sequence
    Memory,
    /// Instruction tuning of a real checkpoint
    Instruction,
    /// Kernels that a training step launches on a GPU
    Launches,
}

fn main() -> anyhow::Result<()> {
    // SAFETY: nothing comes before it, so this thread is the only one.
    unsafe { olora_devices::set_environment() };
    let args = Args::parse();
    anyhow::ensure!(
        !(args.quick && args.peer.is_some()),
        "--quick has another size than the peer: leave one out"
    );
    let anywhere = [
        Suite::TrainStep,
        Suite::Convergence,
        Suite::Generate,
        Suite::Evaluate,
        Suite::Launches,
    ];
    anyhow::ensure!(
        args.backend == "cpu" || anywhere.contains(&args.suite),
        "this suite measures the CPU: leave out --backend"
    );
    olora_devices::threads::start(None)?;
    let rounds = usize::from(args.rounds);
    let peer = args.peer.as_deref();
    match args.suite {
        Suite::Init => match &args.model {
            Some(model) => starts::run(model, rounds, peer),
            None => init::run(args.quick, peer),
        },
        Suite::Paths => match args.path {
            Some(kind) => paths::run_one(kind, args.quick),
            None => paths::run(args.quick, rounds, &args.rows, peer),
        },
        Suite::TrainStep => train_step(&args, rounds),
        Suite::Convergence if args.quick => convergence::quick(&args.backend),
        Suite::Convergence => {
            let results = args
                .results
                .unwrap_or_else(|| PathBuf::from("benchmarks/results"));
            let tasks = args.task_data.as_deref();
            convergence::run(&convergence::Work {
                settings: &args.only,
                backend: &args.backend,
                results: &results,
                overrides: &args.overrides,
                tasks: tasks.map(|data| (data, args.tasks.as_slice(), args.limit)),
                peer,
            })
        }
        Suite::Generate => generate(&args, rounds),
        Suite::Evaluate => evaluate(&args, rounds),
        Suite::Packed => packed::run(args.quick, if args.quick { 1 } else { rounds }, args.layer),
        Suite::Memory => match (args.keeping, args.sequence) {
            (Some(keeping), Some(seq)) => memory::run_one(keeping, seq, args.quick),
            _ => memory::run(args.quick, peer, args.plot.as_deref()),
        },
        Suite::Instruction => instruction(&args, rounds),
        Suite::Launches => launches::run(&args.backend, args.quick, args.budget.as_deref()),
    }
}

fn layer(text: &str) -> Result<[usize; 2], String> {
    let sizes = text
        .split_once('x')
        .map(|(d_in, d_out)| (d_in.parse(), d_out.parse()));
    match sizes {
        Some((Ok(d_in), Ok(d_out))) if d_in > 0 && d_out > 0 => Ok([d_in, d_out]),
        _ => Err("give inputs and outputs, as 4096x14336".to_owned()),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

/// This folder.
fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn instruction(args: &Args, rounds: usize) -> anyhow::Result<()> {
    let quickstart = here().join("../recipes/quickstart");
    let (base, records) = (quickstart.join("base"), quickstart.join("train.jsonl"));
    let work = if args.quick {
        instruction::Work {
            model: &base,
            data: &records,
            steps: 3,
        }
    } else {
        instruction::Work {
            model: args
                .model
                .as_deref()
                .context("`instruction` needs --model")?,
            data: args.data.as_deref().context("`instruction` needs --data")?,
            steps: args.steps.unwrap_or(40),
        }
    };
    if args.child {
        instruction::run_one(&work, args.anchored, args.bf16)
    } else {
        instruction::run(
            &work,
            if args.quick { 1 } else { rounds },
            &args.rows,
            args.peer.as_deref(),
        )
    }
}

fn train_step(args: &Args, rounds: usize) -> anyhow::Result<()> {
    let name = if args.quick { "tiny" } else { "smollm2-135m" };
    let of_this_folder = here().join(format!("gpu/{name}.json"));
    let work = train_step::Work {
        backend: &args.backend,
        shape: args.shape.as_ref().unwrap_or(&of_this_folder),
        dtype: &args.dtype,
        batch: args.batch,
        sequence: args.sequence.unwrap_or(if args.quick { 32 } else { 256 }),
        warm_up: usize::from(args.warm_up),
        steps: args.steps.unwrap_or(if args.quick { 3 } else { 10 }),
    };
    match args.method {
        Some(method) => train_step::run_one(method, &work),
        None => train_step::run(
            &work,
            if args.quick { 1 } else { rounds },
            args.peer.as_deref(),
        ),
    }
}

fn generate(args: &Args, rounds: usize) -> anyhow::Result<()> {
    let base = here().join("../recipes/quickstart/base");
    let shape = here().join("gpu/smollm2-135m.json");
    let work = generate::Work {
        backend: &args.backend,
        model: match &args.model {
            Some(model) => model,
            None if args.quick => &base,
            None => &shape,
        },
        prompt: if args.quick { 24 } else { args.prompt },
        new_tokens: if args.quick {
            16
        } else {
            usize::from(args.new_tokens)
        },
        dtype: args.dtype.parse()?,
        gguf: args.gguf.as_deref(),
    };
    let peers = generate::Peers {
        transformers: args.peer.as_deref(),
        llama_cpp: args.llama_cpp.as_deref(),
    };
    generate::run(&work, if args.quick { 1 } else { rounds }, peers)
}

fn evaluate(args: &Args, rounds: usize) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (base, village);
    let work = if args.quick {
        base = here().join("../recipes/quickstart/base");
        village = evaluate::village(directory.path(), 24)?;
        evaluate::Work {
            backend: &args.backend,
            model: &base,
            data: &village,
            tasks: &[TaskName::ArcEasy],
            limit: 24,
        }
    } else {
        evaluate::Work {
            backend: &args.backend,
            model: args.model.as_deref().context("`evaluate` needs --model")?,
            data: args
                .task_data
                .as_deref()
                .context("`evaluate` needs --task-data")?,
            tasks: &args.tasks,
            limit: args.limit,
        }
    };
    evaluate::run(
        &work,
        if args.quick { 1 } else { rounds },
        args.peer.as_deref(),
    )
}
