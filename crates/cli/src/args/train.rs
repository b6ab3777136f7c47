//! `train`, and what others that run recipes have in common with it.

use std::path::PathBuf;

use clap::Args;

/// What is to be run.
#[derive(Args)]
pub(crate) struct RecipeArgs {
    /// The recipe, a TOML file
    #[arg(value_name = "RECIPE")]
    pub(crate) path: PathBuf,
    /// Override a key of the recipe, such as `training.max_steps=50`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Device, in the recipe's place: cpu, cuda, cuda:1, wgpu, vulkan, metal, rocm
    #[arg(long)]
    pub(crate) device: Option<String>,
}

#[derive(Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own, as typed"
)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Continue the run of this name from its newest checkpoint, or start it again if it was
    /// stopped before its first. A finished run is lengthened with
    /// `--set training.max_steps=N`
    #[arg(long)]
    pub(crate) resume: bool,
    /// Start the run, or continue it if it has begun, or do nothing if it is finished: the same
    /// command for a scheduler, however often it comes. Goes on from the checkpoint before a damaged one
    #[arg(long, conflicts_with = "resume")]
    pub(crate) auto_resume: bool,
    /// Start from this adapter, with the optimiser afresh: a PEFT or mlx-lm directory, a run, or a
    /// checkpoint of one (the recipe's `adapter.from`)
    #[arg(long, value_name = "ADAPTER")]
    pub(crate) from: Option<PathBuf>,
    /// Show Burn's full-screen view of the run
    #[arg(long, conflicts_with = "json")]
    pub(crate) tui: bool,
    /// Print a line of JSON for each event, and nothing else, on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// Train without comparing the device's gradients with the CPU's first
    #[arg(long)]
    pub(crate) no_check: bool,
}
