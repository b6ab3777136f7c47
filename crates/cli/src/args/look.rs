//! `inspect`, `devices` and `doctor`: what is there.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use olora_data::DEFAULT_MAX_LENGTH;
use olora_doctor::LENGTHS;

use super::values::{lengths, max_length, samples};

#[derive(Args)]
pub(crate) struct InspectArgs {
    /// What the path is
    pub(crate) what: What,
    /// Checkpoint directory or GGUF file, adapter directory, or data: a file, a
    /// directory, a pattern or a data set of the hub
    pub(crate) path: PathBuf,
    /// For data: the checkpoint whose tokenizer and chat template to use
    #[arg(long)]
    pub(crate) model: Option<PathBuf>,
    /// For data: which sample to show, counted from 0 [default: 0]
    #[arg(long, value_parser = samples(0))]
    pub(crate) sample: Option<usize>,
    #[arg(
        long,
        value_parser = max_length(),
        help = format!("For data: longest sequence in tokens [default: {DEFAULT_MAX_LENGTH}]")
    )]
    pub(crate) max_length: Option<usize>,
    /// For data: how many samples to show, from that one on [default: 1]
    #[arg(long, value_parser = samples(1))]
    pub(crate) samples: Option<usize>,
    /// For data: a key of `[data]`, as in a recipe, such as data.system=merge;
    /// may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum What {
    Model,
    Adapter,
    Data,
}

#[derive(Args)]
pub(crate) struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// The device to examine; every one that is found if not given
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Sequence lengths to run each operation at
    #[arg(long, value_delimiter = ',', default_values_t = LENGTHS, value_parser = lengths())]
    pub(crate) lengths: Vec<usize>,
    /// Print a line of JSON for each event; the last is a list of what was found on each device
    #[arg(long)]
    pub(crate) json: bool,
    /// Examine one device with one setting in this process, printing a line of JSON for each step
    #[arg(long, hide = true, requires = "device")]
    pub(crate) worker: bool,
    /// Break an operation on the device, to see that it is found
    #[cfg(feature = "test-hooks")]
    #[arg(long = "break", value_name = "OPERATION")]
    pub(crate) fault: Option<String>,
}
