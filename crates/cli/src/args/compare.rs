//! `compare`.

use std::path::PathBuf;

use clap::Args;
use olora_tasks::TaskName;

use super::{
    RecipeFile,
    values::{output, rank, samples, steps, widen},
};

#[derive(Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeFile,
    /// What to compare: starts, with +rslora, +dora or +loraplus where wanted; `rslora`, `dora` and
    /// `loraplus` stand for LoRA with them
    #[arg(long, value_delimiter = ',', default_value = "lora,olora")]
    pub(crate) methods: Vec<String>,
    /// Ranks, each with the recipe's alpha [default: the recipe's]
    #[arg(long, value_delimiter = ',', value_parser = rank())]
    pub(crate) ranks: Vec<usize>,
    /// How many seeds are reported, after those that choose the rate; 0 only looks for each method's
    /// best rate
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub(crate) seeds: u64,
    /// How many seeds choose the rate, from the recipe's on; with 0 it is the first of --seeds, which is
    /// reported too, as in comparisons made before 2026-11-29
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub(crate) tuning_seeds: u64,
    /// Learning rates that each method is tried at first
    #[arg(
        long,
        value_delimiter = ',',
        allow_negative_numbers = true,
        default_value = "1e-4,3e-4,1e-3"
    )]
    pub(crate) lrs: Vec<f64>,
    /// How many rates to try beyond the lowest or the highest where that is the best
    #[arg(long, default_value_t = 4, value_parser = widen())]
    pub(crate) widen: usize,
    /// Try rates around the best until its neighbours are within this factor, and a third and three
    /// times the best; `none` tries no others than those of --lrs and --widen, and so does one rate
    /// alone [default: √3]
    #[arg(long, value_name = "FACTOR", value_parser = refine, default_value = "1.7320508", hide_default_value = true)]
    pub(crate) refine: Refine,
    /// Run every method at this rate too, as papers do; several are separated by commas
    #[arg(long, value_name = "RATE", value_delimiter = ',')]
    pub(crate) one_rate: Vec<f64>,
    /// Numbers of steps, in the place of the recipe's; each method is tuned anew for each
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = steps())]
    pub(crate) steps: Vec<usize>,
    /// Directory of the comparison; runs that are finished in it are not made again. If not given,
    /// the recipe's name with `-compare` behind it, in its output directory
    #[arg(long, value_parser = output())]
    pub(crate) output: Option<PathBuf>,
    /// Then put the base and each method's adapters to these tasks, separated by commas: those of
    /// `olora evaluate --tasks`
    #[arg(long, value_delimiter = ',', requires = "task_data")]
    pub(crate) tasks: Vec<TaskName>,
    /// Directory with a file for each task, such as `arc_easy.jsonl`
    #[arg(long, value_name = "DIR", requires = "tasks")]
    pub(crate) task_data: Option<PathBuf>,
    /// Only the first so many items of each task
    #[arg(long, value_parser = samples(1), requires = "tasks")]
    pub(crate) limit: Option<usize>,
    /// Train without comparing the device's gradients with the CPU's first
    #[arg(long)]
    pub(crate) no_check: bool,
    /// Print a line of JSON for each event, and nothing else, on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

/// How fine a grid of learning rates gets, if it does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refine(pub(crate) Option<f64>);

fn refine(text: &str) -> Result<Refine, String> {
    if text == "none" {
        return Ok(Refine(None));
    }
    let factor: Option<f64> = text.parse().ok();
    match factor.filter(|factor| (1.05..=1e3).contains(factor)) {
        Some(factor) => Ok(Refine(Some(factor))),
        None => Err("expected a factor between 1.05 and 1000, or `none`".to_owned()),
    }
}
