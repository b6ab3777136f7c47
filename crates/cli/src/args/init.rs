//! `init`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{
    KeyArgs, SetArgs,
    values::{bytes, output},
};

#[derive(Args)]
pub(crate) struct InitArgs {
    /// The recipe to write, which must not exist [default: the data's name with .toml behind it]
    #[arg(value_name = "RECIPE", value_parser = output())]
    pub(crate) path: Option<PathBuf>,
    /// Write the quickstart into the working directory instead: a tiny model, data and a recipe
    #[arg(long, conflicts_with_all = [
        "path", "purpose", "memory", "overrides", "device", "model", "data", "validation", "method", "rank", "alpha",
        "lr", "epochs", "max_steps", "batch_size", "max_length", "seed",
    ])]
    pub(crate) example: bool,
    /// What is to be learned; what the data is laid out for, if not given
    #[arg(long)]
    pub(crate) purpose: Option<Purpose>,
    /// How much memory the run may take, such as 8GB; nine tenths of what is free, if not given
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(crate) memory: Option<u64>,
    #[command(flatten)]
    pub(crate) set: SetArgs,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
}

/// What a model is to learn from data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Purpose {
    /// To answer as the data does
    Answer,
    /// To prefer some answers to others: pairs, or labels
    Prefer,
    /// To go on as texts do
    Continue,
}
