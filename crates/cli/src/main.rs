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
            progress::say(&format!("error: {}", message(&error)));
            let usage = error.downcast_ref::<Usage>().is_some()
                || matches!(
                    error.downcast_ref::<TrainError>(),
                    Some(TrainError::Recipe { .. })
                );
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
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
