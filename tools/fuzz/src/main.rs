//! `olora-fuzz`: the targets with mutated inputs, on stable Rust.
//!
//! ```text
//! olora-fuzz --seconds 60                        every target for a minute
//! olora-fuzz --target gguf --seconds 600 --seed 7 --findings found
//! olora-fuzz run gguf found/gguf/*               inputs again, one after the other
//! olora-fuzz shrink gguf found/gguf/1 smaller    a smaller input that does the same
//! olora-fuzz corpus                              makes fuzz/corpus again
//! ```

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program prints its results"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use olora_files::fnv1a;
use olora_fuzz::{
    TARGETS, Target, find,
    memory::Counting,
    trial::{Inputs, Limits, Program, Report, run, work},
};

#[global_allocator]
static MEMORY: Counting = Counting;

/// Try everything that reads foreign bytes with mutated ones.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Words {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    all: All,
}

#[derive(Args)]
struct All {
    /// Only these targets; may be repeated
    #[arg(long = "target", value_name = "NAME", value_parser = target)]
    targets: Vec<Target>,
    /// Directory to write the input of each finding to
    #[arg(long, value_name = "DIR")]
    findings: Option<PathBuf>,
    #[command(flatten)]
    limits: LimitWords,
}

#[derive(Args)]
struct LimitWords {
    /// How long to try each target
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// The most inputs of each target
    #[arg(long, default_value_t = u64::MAX)]
    count: u64,
    /// Targets with faults that are known, in `open`, are given nothing but the corpus as it is:
    /// what is near such a fault is found again and again
    #[arg(long)]
    skip_open: bool,
    /// Decides the inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The most that one input may have allocated, in MiB
    #[arg(long, default_value_t = 512)]
    memory: usize,
    /// The longest that one input may take, in seconds
    #[arg(long, default_value_t = 10.0)]
    limit: f64,
    /// Directory with `corpus` and `regressions`
    #[arg(long, default_value = "fuzz")]
    place: PathBuf,
}

impl LimitWords {
    fn limits(&self) -> Limits {
        Limits {
            seconds: self.seconds,
            count: self.count,
            memory: self.memory << 20,
            time: Duration::from_secs_f64(self.limit),
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run inputs, one after the other
    Run {
        #[arg(value_parser = target)]
        target: Target,
        files: Vec<PathBuf>,
        #[command(flatten)]
        limits: LimitWords,
    },
    /// Make a smaller input that does the same
    Shrink {
        #[arg(value_parser = target)]
        target: Target,
        file: PathBuf,
        output: PathBuf,
        #[command(flatten)]
        limits: LimitWords,
    },
    /// Name the targets
    List,
    /// Write the part of the corpus that is made by code
    Corpus {
        #[arg(long, default_value = "fuzz/corpus")]
        output: PathBuf,
        /// The root of the repository
        #[arg(long, default_value = ".")]
        root: PathBuf,
    },
    /// The process of a trial
    #[command(hide = true)]
    Work {
        #[arg(value_parser = target)]
        target: Target,
        #[arg(long)]
        from: u64,
        #[command(flatten)]
        limits: LimitWords,
    },
}

fn target(name: &str) -> Result<Target, String> {
    find(name).ok_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    let words = Words::parse();
    match words.command {
        None => trials(&words.all),
        Some(Command::Run {
            target,
            files,
            limits,
        }) => match run(target, &files, limits.limits().memory) {
            Ok(all) => {
                for (file, (seconds, peak)) in files.iter().zip(all) {
                    println!(
                        "{}: {:.1} ms, {} kB",
                        file.display(),
                        seconds * 1e3,
                        peak >> 10
                    );
                }
                ExitCode::SUCCESS
            }
            Err(said) => {
                eprintln!("{said}");
                ExitCode::FAILURE
            }
        },
        Some(Command::Shrink {
            target,
            file,
            output,
            limits,
        }) => {
            let done = fs::read(&file).and_then(|input| {
                let scratch = scratch()?;
                let smaller = program(&limits.place, scratch.path(), |program| {
                    program.shrink(target, &input, &limits.limits(), limits.seconds)
                })?;
                println!("{} bytes of {}", smaller.len(), input.len());
                fs::write(&output, smaller)
            });
            exit(done)
        }
        Some(Command::List) => {
            for target in TARGETS {
                println!("{}", target.name);
            }
            ExitCode::SUCCESS
        }
        #[cfg(feature = "models")]
        Some(Command::Corpus { output, root }) => {
            for path in olora_fuzz::corpus::write(&output, &root) {
                println!("{}", path.display());
            }
            ExitCode::SUCCESS
        }
        #[cfg(not(feature = "models"))]
        Some(Command::Corpus { .. }) => {
            eprintln!("the corpus is made with the feature `models`");
            ExitCode::FAILURE
        }
        Some(Command::Work {
            target,
            from,
            limits,
        }) => {
            let inputs = Inputs::read(&limits.place, target.name, limits.seed);
            work(target, &inputs, from, &limits.limits());
            ExitCode::SUCCESS
        }
    }
}

fn exit(done: std::io::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn scratch() -> std::io::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("olora-fuzz-");
    if memory.is_dir() {
        builder.tempdir_in(memory)
    } else {
        builder.tempdir()
    }
}

fn program<T>(
    place: &Path,
    scratch: &Path,
    then: impl FnOnce(&Program<'_>) -> T,
) -> std::io::Result<T> {
    let path = std::env::current_exe()?;
    Ok(then(&Program {
        path: &path,
        place,
        scratch,
    }))
}

fn trials(words: &All) -> ExitCode {
    let targets = if words.targets.is_empty() {
        TARGETS
    } else {
        &words.targets
    };
    println!(
        "{:12} {:>9} {:>8} {:>12} {:>12}  findings",
        "target", "inputs", "s", "slowest, ms", "largest, MB"
    );
    let mut found = 0;
    for target in targets {
        let mut limits = words.limits.limits();
        let open = words.limits.place.join("open").join(target.name);
        let is_open = open
            .read_dir()
            .is_ok_and(|mut faults| faults.next().is_some());
        if words.limits.skip_open && is_open {
            limits.count = Inputs::read(&words.limits.place, target.name, 0).len();
        }
        let report = scratch().and_then(|scratch| {
            program(&words.limits.place, scratch.path(), |program| {
                program.trial(*target, words.limits.seed, &limits)
            })
        });
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        };
        found += report.findings.len();
        show(target.name, &report, words.findings.as_deref());
    }
    if found == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn show(name: &str, report: &Report, findings: Option<&Path>) {
    println!(
        "{name:12} {:>9} {:>8.1} {:>12.1} {:>12.1}  {}",
        report.inputs,
        report.seconds,
        report.slowest.0 * 1e3,
        report.largest.0 as f64 / 1e6,
        report.findings.len()
    );
    for (said, finding) in &report.findings {
        println!(
            "  {} x {said} ({} bytes) {}",
            finding.times,
            finding.input.len(),
            finding.words
        );
        if let Some(findings) = findings {
            let path = findings
                .join(name)
                .join(format!("{:08x}", fnv1a(said.as_bytes()) as u32));
            let written = path
                .parent()
                .map_or(Ok(()), fs::create_dir_all)
                .and_then(|()| fs::write(&path, &finding.input));
            match written {
                Ok(()) => println!("    {}", path.display()),
                Err(error) => eprintln!("{}: {error}", path.display()),
            }
        }
    }
}
