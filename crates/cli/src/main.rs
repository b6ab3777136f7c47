//! `olora`: fine-tune, evaluate, generate, merge, inspect.
//!
//! Results go to stdout, everything else to stderr. Exit code 0 is success, 1
//! a failed or interrupted run, 2 wrong usage.

mod args;
mod commands;
mod device;
mod inspect;
mod progress;

use std::process::ExitCode;

use clap::Parser;
use olora_training::TrainError;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Train(args) => commands::train(&args),
        Command::Evaluate(args) => commands::evaluate(&args),
        Command::Generate(args) => commands::generate(&args),
        Command::Merge(args) => commands::merge(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Devices => device::list(),
    };
    match result {
        Ok(code) => code,
        // The reader of our output has gone, as `head` does: nothing to report.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            progress::say(&format!("error: {error:#}"));
            let usage = error.downcast_ref::<device::UnknownDevice>().is_some()
                || matches!(
                    error.downcast_ref::<TrainError>(),
                    Some(TrainError::Recipe { .. })
                );
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
