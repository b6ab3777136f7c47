//! `train`, and what others that run recipes have in common with it.

use std::path::PathBuf;

use clap::Args;

use super::values::{batch_size, max_length, output, rank, steps};

/// A recipe, and what is set in it.
#[derive(Args)]
pub(crate) struct RecipeFile {
    /// The recipe, a TOML file
    #[arg(value_name = "RECIPE")]
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) set: SetArgs,
}

/// What is set in a recipe by its keys.
#[derive(Args)]
pub(crate) struct SetArgs {
    /// Override a key of the recipe, such as `training.max_steps=50`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Device, in the recipe's place: cpu, cuda, cuda:1, wgpu, vulkan, metal, rocm
    #[arg(long)]
    pub(crate) device: Option<String>,
}

/// What is to be run: a recipe, or a model and data.
#[derive(Args)]
pub(crate) struct RecipeArgs {
    /// The recipe, a TOML file; without one, --model and --data are needed
    #[arg(value_name = "RECIPE")]
    pub(crate) path: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) set: SetArgs,
    /// The run's directory, which must not exist unless the run is gone on with: what is above it
    /// is the recipe's `output.directory`, its own name the recipe's `name`
    #[arg(long, value_name = "DIR", value_parser = output())]
    pub(crate) output: Option<PathBuf>,
    // Last, since the heading is for all that follows.
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
}

/// The keys of a recipe that have an option of their own.
#[derive(Args, Clone)]
#[command(next_help_heading = "Keys of the recipe")]
pub(crate) struct KeyArgs {
    /// Checkpoint directory, GGUF file or hub name (`model.path`)
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Training data: a file, a directory, a pattern or a data set of the hub; may be repeated
    /// (`data.train`)
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Vec<String>,
    /// Data that the model is evaluated on and not trained on; may be repeated
    /// (`data.validation`)
    #[arg(long, value_name = "FILE")]
    pub(crate) validation: Vec<String>,
    /// How the factors start: olora, lora, pissa and others (`adapter.method`)
    #[arg(long)]
    pub(crate) method: Option<String>,
    /// Rank of the adapter (`adapter.rank`)
    #[arg(long, value_parser = rank())]
    pub(crate) rank: Option<usize>,
    /// The update is scaled by alpha / rank (`adapter.alpha`)
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) alpha: Option<f64>,
    /// Learning rate, or auto to have one looked for (`training.learning_rate`)
    #[arg(
        long,
        value_name = "RATE",
        alias = "learning-rate",
        allow_negative_numbers = true
    )]
    pub(crate) lr: Option<String>,
    /// Passes over the data (`training.epochs`)
    #[arg(long, allow_negative_numbers = true, conflicts_with = "max_steps")]
    pub(crate) epochs: Option<f64>,
    /// Steps, in the place of epochs (`training.max_steps`)
    #[arg(long, value_name = "N", value_parser = steps())]
    pub(crate) max_steps: Option<usize>,
    /// Sequences of a micro-batch (`training.batch_size`)
    #[arg(long, value_name = "N", value_parser = batch_size())]
    pub(crate) batch_size: Option<usize>,
    /// Longest sequence in tokens (`data.max_length`)
    #[arg(long, value_name = "TOKENS", value_parser = max_length())]
    pub(crate) max_length: Option<usize>,
    /// Seed of everything that is drawn (`seed`)
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

impl KeyArgs {
    /// What is given, by its option, as `--set` would have it.
    pub(crate) fn options(&self) -> Vec<(&'static str, String)> {
        let list = |all: &[String]| match all {
            [] => None,
            [one] => Some(quoted(one)),
            all => {
                let all: Vec<_> = all.iter().map(|one| quoted(one)).collect();
                Some(format!("[{}]", all.join(", ")))
            }
        };
        // A rate that is no number is text, and refused as such if it is not `auto`.
        let rate = |rate: &String| match rate.parse::<f64>() {
            Ok(number) => float(number),
            Err(_) => quoted(rate),
        };
        let number = |number: Option<usize>| number.map(|number| number.to_string());
        let all = [
            ("--model", "model.path", self.model.as_deref().map(quoted)),
            ("--data", "data.train", list(&self.data)),
            ("--validation", "data.validation", list(&self.validation)),
            (
                "--method",
                "adapter.method",
                self.method.as_deref().map(quoted),
            ),
            ("--rank", "adapter.rank", number(self.rank)),
            ("--alpha", "adapter.alpha", self.alpha.map(float)),
            ("--lr", "training.learning_rate", self.lr.as_ref().map(rate)),
            ("--epochs", "training.epochs", self.epochs.map(float)),
            ("--max-steps", "training.max_steps", number(self.max_steps)),
            (
                "--batch-size",
                "training.batch_size",
                number(self.batch_size),
            ),
            ("--max-length", "data.max_length", number(self.max_length)),
            ("--seed", "seed", self.seed.map(|seed| seed.to_string())),
        ];
        let given = all.into_iter();
        given
            .filter_map(|(option, key, value)| Some((option, format!("{key}={}", value?))))
            .collect()
    }
}

/// Text as TOML.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn float(number: f64) -> String {
    toml::Value::from(number).to_string()
}

#[derive(Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own, as typed"
)]
pub(crate) struct TrainArgs {
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
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
}
