//! `completions`, `man` and `reference`: what is told of the program itself.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

#[derive(Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: Shell,
}

#[derive(Args)]
pub(crate) struct ManArgs {
    /// Write `olora.1` and a page for each command into this directory
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ReferenceArgs {
    /// The directory of the documentation
    #[arg(default_value = "docs")]
    pub(crate) directory: PathBuf,
    /// Write nothing, and fail where something would change
    #[arg(long)]
    pub(crate) check: bool,
}
