//! The command line, as typed.

#[cfg(feature = "web")]
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use olora_devices::KernelOptions;

use crate::terminal::Level;

mod compare;
mod files;
mod init;
mod look;
mod model;
mod reference;
#[cfg(feature = "web")]
pub(crate) mod serve;
mod train;
mod values;

pub(crate) use compare::CompareArgs;
pub(crate) use files::{Combine, ConvertArgs, Form, MergeArgs, MergedFormat, PushArgs};
pub(crate) use init::{InitArgs, Purpose};
pub(crate) use look::{DevicesArgs, DoctorArgs, InspectArgs, What};
pub(crate) use model::{EvaluateArgs, GenerateArgs, ModelArgs, TaskArgs};
pub(crate) use reference::{CompletionsArgs, ManArgs, ReferenceArgs};
pub(crate) use train::{KeyArgs, RecipeArgs, RecipeFile, SetArgs, TrainArgs, quoted};
#[cfg(feature = "web")]
use values::output;
pub(crate) use values::{parse_max_new_tokens, parse_temperature};

/// What `olora --help` ends with.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0         success
  1         failure: what was found in files, or happened in running
  2         wrong usage: the command line or the recipe cannot be meant
  130, 143  interrupted by Ctrl-C or SIGTERM (129: SIGHUP), to be continued with --resume
            or --auto-resume";

/// Fine-tune LLaMA-family models with OLoRA, in pure Rust.
#[derive(Parser)]
#[command(version, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Look at a model, data and the machine, and write a recipe that fits them; or the quickstart
    Init(OnDevice<InitArgs>),
    /// Run a recipe, or a model on data: train, evaluate, checkpoint, save the adapter
    Train(OnDevice<TrainArgs>),
    /// Run several methods on one recipe, each at its own learning rate, and report on them
    Compare(OnDevice<CompareArgs>),
    /// Write a comparison's report and pictures again, from the files of its runs; or runs and
    /// comparisons as one HTML file
    Report(ReportArgs),
    /// Show runs and comparisons in a browser, finished and running: curves, samples, data, memory
    #[cfg(feature = "web")]
    Board(BoardArgs),
    /// Say what a recipe's run will take in memory and time, and write nothing
    Plan(OnDevice<PlanArgs>),
    /// Loss over the trained tokens of a data file, or scores on multiple-choice tasks and GSM8K
    Evaluate(OnDevice<EvaluateArgs>),
    /// Continue a prompt, or chat when none is given
    Generate(OnDevice<GenerateArgs>),
    /// Answer over HTTP as OpenAI's API does, with a page to chat: a base and its adapters
    #[cfg(feature = "web")]
    Serve(OnDevice<serve::ServeArgs>),
    /// Add an adapter into the weights and write a checkpoint
    Merge(OnDevice<MergeArgs>),
    /// Write a model, or adapters, in another form: GGUF, safetensors, MLX; fewer bits, fewer ranks
    Convert(OnDevice<ConvertArgs>),
    /// Send a model or an adapter to a repository of the hub
    Push(PushArgs),
    /// Show what a model, an adapter or a data file holds
    Inspect(InspectArgs),
    /// List the devices that this build can use, and what they are
    Devices(OnDevice<DevicesArgs>),
    /// Compare what devices compute in training, gradients above all, with the CPU
    Doctor(OnDevice<DoctorArgs>),
    /// Print the JSON schema of recipes, for editors
    Schema,
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print the man page, or write one for each command
    Man(ManArgs),
    /// Write the references of the documentation, or compare them with what they would be
    #[command(hide = true)]
    Reference(ReferenceArgs),
}

/// What computes on a device, and how that makes its kernels.
#[derive(Args)]
pub(crate) struct OnDevice<T: Args> {
    #[command(flatten)]
    pub(crate) args: T,
    #[command(flatten)]
    pub(crate) kernels: KernelArgs,
}

/// What is said, and how.
#[derive(Args, Clone, Copy)]
#[command(next_help_heading = "What is said")]
pub(crate) struct OutputArgs {
    /// Say only warnings, errors and results
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Say more: each layer's adapter, each key of the data, how kernels are chosen, what each
    /// stage took
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// When there are colours; by itself, on a terminal that takes them, unless `NO_COLOR` is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: Colour,
}

impl OutputArgs {
    pub(crate) fn level(self) -> Level {
        match (self.quiet, self.verbose) {
            (true, _) => Level::Quiet,
            (_, true) => Level::Verbose,
            _ => Level::Usual,
        }
    }
}

/// When there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colour {
    Auto,
    Always,
    Never,
}

impl Colour {
    /// What is said of colours among these words, which is needed before they are read: errors of
    /// reading them have colours too.
    fn asked_for(words: impl IntoIterator<Item = std::ffi::OsString>) -> Self {
        let mut asked = Self::Auto;
        let mut is_next = false;
        for word in words {
            let word = word.to_string_lossy();
            if word == "--" {
                break;
            }
            let given = if is_next {
                Some(&*word)
            } else {
                word.strip_prefix("--color=")
            };
            if let Some(given) = given {
                // What it cannot be is refused where all is read.
                asked = Self::from_str(given, false).unwrap_or(asked);
            }
            is_next = word == "--color";
        }
        asked
    }

    /// Decides it for all that is printed.
    fn set(self) {
        let choice = match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
    }
}

impl Cli {
    /// Reads the command line; ends the process if it cannot be meant.
    pub(crate) fn read() -> Self {
        Colour::asked_for(std::env::args_os().skip(1)).set();
        let cli = Self::parse();
        // As clap has read it.
        cli.output.color.set();
        cli
    }
}

impl Command {
    /// How the command's device makes its kernels, if it has one.
    pub(crate) fn kernels(&self) -> KernelOptions {
        let kernels = match self {
            Self::Init(on) => on.kernels,
            Self::Train(on) => on.kernels,
            Self::Compare(on) => on.kernels,
            Self::Plan(on) => on.kernels,
            Self::Evaluate(on) => on.kernels,
            Self::Generate(on) => on.kernels,
            #[cfg(feature = "web")]
            Self::Serve(on) => on.kernels,
            Self::Merge(on) => on.kernels,
            Self::Convert(on) => on.kernels,
            Self::Devices(on) => on.kernels,
            Self::Doctor(on) => on.kernels,
            _ => return KernelOptions::default(),
        };
        kernels.into()
    }

    /// Whether stdout is for events, a line of JSON for each.
    pub(crate) fn writes_events(&self) -> bool {
        match self {
            Self::Train(on) => on.args.json,
            Self::Compare(on) => on.args.json,
            Self::Merge(on) => on.args.json,
            Self::Convert(on) => on.args.json,
            Self::Push(args) => args.json,
            Self::Doctor(on) => on.args.json,
            // Without tasks there is one line, the result.
            Self::Evaluate(on) => on.args.json && on.args.data.is_none(),
            _ => false,
        }
    }
}

/// Whether the build has a GPU's backend.
const HAS_GPU: bool = cfg!(any(
    feature = "cuda",
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "rocm"
));

/// How a GPU's kernels are made. A build without a GPU's backend does not show them.
#[derive(Args, Clone, Copy)]
#[command(next_help_heading = "Kernels, on a GPU")]
pub(crate) struct KernelArgs {
    /// Run every operation as a kernel of its own
    #[arg(long, hide = !HAS_GPU)]
    pub(crate) no_fusion: bool,
    /// Take the first kernel that works instead of measuring which is fastest; the default on
    /// software rasterisers. (Reductions fused with what is broadcast from them are measured still)
    #[arg(long, hide = !HAS_GPU)]
    pub(crate) no_autotune: bool,
    /// Measure which kernel is fastest on a software rasteriser too
    #[arg(long, conflicts_with = "no_autotune", hide = !HAS_GPU)]
    pub(crate) autotune: bool,
}

impl From<KernelArgs> for KernelOptions {
    fn from(args: KernelArgs) -> Self {
        let autotune = match (args.autotune, args.no_autotune) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        Self {
            fusion: !args.no_fusion,
            autotune,
        }
    }
}

#[derive(Args)]
pub(crate) struct ReportArgs {
    /// Directories of comparisons; with --html of runs too
    #[arg(required = true)]
    pub(crate) directories: Vec<PathBuf>,
    /// Write one HTML file to look at or to send, with all that it needs in it
    #[cfg(feature = "web")]
    #[arg(long)]
    pub(crate) html: bool,
    /// The HTML file [default: report.html in the directory, if it is one]
    #[cfg(feature = "web")]
    #[arg(short, long, value_name = "FILE", requires = "html", value_parser = output())]
    pub(crate) output: Option<PathBuf>,
}

#[cfg(feature = "web")]
#[derive(Args)]
pub(crate) struct BoardArgs {
    /// The directory that runs and comparisons are below
    #[arg(value_name = "DIR", default_value = "runs")]
    pub(crate) directory: PathBuf,
    /// The port; 0 is any that is free
    #[arg(long, default_value_t = 6061)]
    pub(crate) port: u16,
    /// The address to listen on. One that other machines reach needs a key in `OLORA_API_KEY`, which
    /// browsers ask for as the password
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    #[arg(
        long = "allow-origin",
        value_name = "ORIGIN",
        help = "Another site whose pages may ask, such as http://localhost:3000; may be repeated"
    )]
    pub(crate) origins: Vec<String>,
}

#[derive(Args)]
pub(crate) struct PlanArgs {
    /// As of `train`: the adapter to start from
    #[arg(long, value_name = "ADAPTER")]
    pub(crate) from: Option<PathBuf>,
    /// Predict from shapes alone: no weights are loaded and no time is predicted
    #[arg(long)]
    pub(crate) no_probe: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_known_before_the_command_line_is_read() {
        let asked = |line: &str| Colour::asked_for(line.split(' ').map(Into::into));
        assert_eq!(asked("train mine.toml"), Colour::Auto);
        assert_eq!(asked("train mine.toml --color never"), Colour::Never);
        assert_eq!(asked("--color=always train"), Colour::Always);
        assert_eq!(asked("train --color pink"), Colour::Auto);
        assert_eq!(asked("train -- --color never"), Colour::Auto);
    }

    #[test]
    fn the_example_takes_no_option_that_it_would_not_use() {
        use clap::CommandFactory;
        let mut command = Cli::command();
        command.build();
        let init = command.find_subcommand("init").unwrap();
        let example = init
            .get_arguments()
            .find(|arg| arg.get_id() == "example")
            .unwrap();
        let refused: Vec<_> = init.get_arg_conflicts_with(example);
        let refused: Vec<_> = refused.iter().map(|arg| arg.get_id().as_str()).collect();
        let taken = init.get_arguments().map(|arg| arg.get_id().as_str());
        let taken = taken.filter(|id| !refused.contains(id));
        let taken: Vec<_> = taken.collect();
        // What is said, and kernels, which no file depends on.
        let harmless = [
            "example",
            "quiet",
            "verbose",
            "color",
            "help",
            "version",
            "no_fusion",
            "no_autotune",
            "autotune",
        ];
        let unused: Vec<_> = taken.iter().filter(|id| !harmless.contains(id)).collect();
        assert!(unused.is_empty(), "{unused:?}");
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
