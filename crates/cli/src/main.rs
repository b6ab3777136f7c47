//! `olora`: fine-tune, compare, show, evaluate, generate, serve, merge, convert, push, inspect, examine devices.
//!
//! Results go to stdout, everything else to stderr. Exit code 0 is success, 1 a
//! failure, 2 wrong usage, 128 and a signal's number an interrupted run.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod args;
#[cfg(feature = "web")]
mod board;
mod commands;
mod compare;
mod convert;
mod convert_model;
mod devices;
mod doctor;
mod generate;
mod init;
mod inspect;
mod inspect_data;
mod merge;
mod mistaken;
mod modelfile;
mod models;
mod parallel;
mod progress;
mod push;
mod recipes;
mod reference;
#[cfg(feature = "web")]
mod serve;
mod signals;
mod suggest;
mod tasks;
mod terminal;
mod written;

use std::process::ExitCode;

use anyhow::Context;
use olora_comparison::ComparisonError;
use olora_devices::DeviceError;
use olora_runs::RunError;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    // SAFETY: nothing comes before it, so this thread is the only one.
    unsafe { olora_devices::set_environment() };
    // Devices report failures as panics, on threads of their own; they end as errors here.
    olora_training::record_panics();
    let result = olora_training::caught(|| run(Cli::read()))
        .unwrap_or_else(|said| Err(anyhow::anyhow!("something unforeseen failed: {said}")));
    match result.and_then(parallel::finish) {
        Ok(code) => code,
        // The reader of our output has gone, as `head` does: nothing to report.
        Err(error) if is_broken_pipe(&error) && !parallel::is_one_of_several() => ExitCode::SUCCESS,
        Err(error) => {
            let code = if is_usage(&error) { 2 } else { 1 };
            parallel::part(&message(&error), code)
        }
    }
}

/// Refuses what `RAYON_NUM_THREADS` cannot mean: the pool would begin to start
/// tens of thousands of threads, or take no notice of it.
fn check_threads() -> anyhow::Result<()> {
    use olora_devices::threads::VARIABLE;
    const MOST: usize = 1024;
    let Some(found) = std::env::var_os(VARIABLE).filter(|found| !found.is_empty()) else {
        return Ok(());
    };
    let found = found.to_string_lossy();
    match found.parse::<usize>() {
        Ok(0..=MOST) => Ok(()),
        _ => Err(Usage::new(&format!(
            "{VARIABLE} is {found:?}, but must be between 0 and {MOST}: the number of threads, 0 being one for \
             each core"
        ))),
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    terminal::set_level(cli.output.level());
    terminal::set_events(cli.command.writes_events());
    check_threads()?;
    // These compute nothing.
    let is_idle = match &cli.command {
        Command::Inspect(_)
        | Command::Report(_)
        | Command::Push(_)
        | Command::Schema
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Reference(_) => true,
        #[cfg(feature = "web")]
        Command::Board(_) => true,
        _ => false,
    };
    let kernels = cli.command.kernels();
    let shared_by_ranks = matches!(
        cli.command,
        Command::Train(_) | Command::Plan(_) | Command::Evaluate(_)
    );
    let n_threads = parallel::join(shared_by_ranks)?;
    if !is_idle {
        olora_devices::threads::start(n_threads).map_err(|error| {
            anyhow::anyhow!("the threads to compute with could not be started: {error}")
        })?;
    }
    olora_devices::prepare(kernels)?;
    let code = match cli.command {
        Command::Init(on) => init::init(&on.args, kernels),
        Command::Train(on) => commands::train(&on.args, kernels),
        Command::Compare(on) => compare::compare(&on.args, kernels),
        #[cfg(feature = "web")]
        Command::Report(args) if args.html => board::report(&args),
        Command::Report(args) => compare::report(&args),
        #[cfg(feature = "web")]
        Command::Board(args) => board::board(&args),
        Command::Plan(on) => commands::plan(&on.args, kernels),
        Command::Evaluate(on) => commands::evaluate(&on.args, kernels),
        Command::Generate(on) => generate::generate(&on.args, kernels),
        #[cfg(feature = "web")]
        Command::Serve(on) => serve::serve(&on.args, kernels),
        Command::Merge(on) => merge::merge(&on.args, kernels),
        Command::Convert(on) => convert::convert(&on.args, kernels),
        Command::Push(args) => push::push(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Devices(on) => devices::list(&on.args, kernels),
        Command::Doctor(on) => doctor::doctor(&on.args, kernels),
        Command::Schema => reference::schema(),
        Command::Completions(args) => reference::completions(&args),
        Command::Man(args) => reference::man(&args),
        Command::Reference(args) => reference::reference(&args),
    }?;
    let events = terminal::failure().map_or(Ok(()), Err);
    terminal::unless_gone(events).context("writing events to stdout")?;
    Ok(code)
}

/// Whether what was typed, the recipe included, cannot be meant or cannot be had
/// from this build; not what was found in other files, or happened in running.
fn is_usage(error: &anyhow::Error) -> bool {
    let comparison = error.downcast_ref::<ComparisonError>();
    let run = match comparison {
        Some(ComparisonError::Run(error)) => Some(&**error),
        _ => error.downcast_ref::<RunError>(),
    };
    error.downcast_ref::<Usage>().is_some()
        || matches!(
            comparison,
            Some(ComparisonError::Methods { .. } | ComparisonError::Refused(_))
        )
        || matches!(
            run,
            Some(RunError::Recipe { .. } | RunError::Precision { .. })
        )
        || error
            .downcast_ref::<DeviceError>()
            .is_some_and(|error| !matches!(error, DeviceError::DoesNotOpen { .. }))
}

/// The error and those of its causes that it does not already quote.
fn message(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |message, cause| {
        let cause = cause.to_string();
        match message.as_str() {
            "" => cause,
            said if said.contains(&cause) => message,
            _ => format!("{message}: {cause}"),
        }
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// What was asked for on the command line cannot be meant, or cannot be had.
#[derive(Debug)]
struct Usage(String);

impl Usage {
    #[expect(
        clippy::new_ret_no_self,
        reason = "it is only ever returned as an error"
    )]
    fn new(reason: &str) -> anyhow::Error {
        Self(reason.to_owned()).into()
    }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}
