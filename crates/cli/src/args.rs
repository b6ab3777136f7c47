//! The command line, as typed.

#[cfg(feature = "web")]
use std::net::IpAddr;
use std::path::PathBuf;

use clap::builder::{PathBufValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use olora_adapter::{MAX_RANK, WEIGHTS, is_weight};
use olora_data::DEFAULT_MAX_LENGTH;
use olora_devices::KernelOptions;
use olora_doctor::LENGTHS;
use olora_gguf::GgufType;
use olora_model::{Dtype, Packing};
use olora_runs::recipe::bounds::{
    MAX_BATCH_SIZE, MAX_LENGTH, MAX_NEW_TOKENS, MAX_SAMPLES, MAX_STEPS, has_control,
};
use olora_tasks::TaskName;

/// What `olora --help` ends with.
const EXIT_CODES: &str = "\
Exit codes:
  0         success
  1         failure: what was found in files, or happened in running
  2         wrong usage: the command line or the recipe cannot be meant
  130, 143  interrupted by Ctrl-C or SIGTERM (129: SIGHUP), to be continued with --resume
            or --auto-resume";

/// The longest sequence that devices are examined at: what they are compared
/// with keeps all scores of attention.
const MAX_EXAMINED: usize = 16_384;

/// Fine-tune LLaMA-family models with OLoRA, in pure Rust.
#[derive(Parser)]
#[command(version, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) kernels: KernelArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a recipe: train, evaluate, checkpoint, save the adapter
    Train(TrainArgs),
    /// Run several methods on one recipe, each at its own learning rate, and report on them
    Compare(CompareArgs),
    /// Write a comparison's report and pictures again, from the files of its runs; or runs and
    /// comparisons as one HTML file
    Report(ReportArgs),
    /// Show runs and comparisons in a browser, finished and running: curves, samples, data, memory
    #[cfg(feature = "web")]
    Board(BoardArgs),
    /// Say what a recipe's run will take in memory and time, and write nothing
    Plan(PlanArgs),
    /// Loss over the trained tokens of a data file, or scores on multiple-choice tasks and GSM8K
    Evaluate(EvaluateArgs),
    /// Continue a prompt, or chat when none is given
    Generate(GenerateArgs),
    /// Add an adapter into the weights and write a checkpoint
    Merge(MergeArgs),
    /// Write a model, or adapters, in another form: GGUF, safetensors, MLX; fewer bits, fewer ranks
    Convert(ConvertArgs),
    /// Send a model or an adapter to a repository of the hub
    Push(PushArgs),
    /// Show what a model, an adapter or a data file holds
    Inspect(InspectArgs),
    /// List the devices that this build can use, and what they are
    Devices(DevicesArgs),
    /// Compare what devices compute in training, gradients above all, with the CPU
    Doctor(DoctorArgs),
}

/// How a GPU's kernels are made.
#[derive(Args, Clone, Copy)]
#[command(next_help_heading = "Kernels, on a GPU")]
pub(crate) struct KernelArgs {
    /// Run every operation as a kernel of its own
    #[arg(long, global = true)]
    pub(crate) no_fusion: bool,
    /// Take the first kernel that works instead of measuring which is fastest; the default on
    /// software rasterisers. (Reductions fused with what is broadcast from them are measured still)
    #[arg(long, global = true)]
    pub(crate) no_autotune: bool,
    /// Measure which kernel is fastest on a software rasteriser too
    #[arg(long, global = true, conflicts_with = "no_autotune")]
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
    /// Print JSON
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
    #[arg(long)]
    pub(crate) tui: bool,
    /// Train without comparing the device's gradients with the CPU's first
    #[arg(long)]
    pub(crate) no_check: bool,
}

#[derive(Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
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
    /// Another site whose pages may ask, such as http://localhost:3000; may be repeated
    #[arg(long = "allow-origin", value_name = "ORIGIN")]
    pub(crate) origins: Vec<String>,
}

#[derive(Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// As of `train`: the adapter to start from
    #[arg(long, value_name = "ADAPTER")]
    pub(crate) from: Option<PathBuf>,
    /// Predict from shapes alone: no weights are loaded and no time is predicted
    #[arg(long)]
    pub(crate) no_probe: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which weights to run.
#[derive(Args)]
pub(crate) struct ModelArgs {
    /// Checkpoint directory or GGUF file; may be left out if the adapter names its base
    #[arg(long, required_unless_present = "adapter")]
    pub(crate) model: Option<PathBuf>,
    /// PEFT or mlx-lm adapter directory, a run directory, or a checkpoint of a run
    #[arg(long)]
    pub(crate) adapter: Option<PathBuf>,
    #[arg(long, value_name = "FORMAT", help = QUANTIZE)]
    pub(crate) quantize: Option<Packing>,
    /// Number format to hold the weights in; if not given, float32 on the CPU, and on a GPU
    /// bfloat16 for a half-precision checkpoint where it can
    #[arg(long, value_parser = dtype())]
    pub(crate) dtype: Option<Dtype>,
    /// Device: cpu, cuda, cuda:1, wgpu, vulkan, metal, rocm
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

#[derive(Args)]
#[command(group(ArgGroup::new("what").required(true).args(["data", "tasks"])))]
pub(crate) struct EvaluateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Data: a file, a directory, a pattern or a data set of the hub
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    #[arg(
        long,
        value_parser = max_length(),
        help = format!(
            "Longest sequence in tokens \
             [default: {DEFAULT_MAX_LENGTH} with --data, the model's own length with --tasks]"
        )
    )]
    pub(crate) max_length: Option<usize>,
    /// Sequences per batch
    #[arg(long, default_value_t = 4, value_parser = batch_size(), conflicts_with = "tasks")]
    pub(crate) batch_size: usize,
    /// Count the prompt's tokens too
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) train_on_prompt: bool,
    /// A key of `[data]` or `[objective]`, as in a recipe, such as data.system=merge or
    /// objective.method=kto; may be repeated. Pairs of answers are compared by DPO if
    /// nothing is said
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "tasks")]
    pub(crate) set: Vec<String>,
    /// The adapter that answers are compared with, of a run that started from one; the
    /// base if not given
    #[arg(long, value_name = "ADAPTER", conflicts_with = "tasks")]
    pub(crate) reference: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) of_tasks: TaskArgs,
}

/// Scores on tasks, as lm-evaluation-harness 0.4.13 defines them.
#[derive(Args)]
#[command(next_help_heading = "Tasks, as lm-evaluation-harness 0.4.13 defines them")]
pub(crate) struct TaskArgs {
    /// Tasks, separated by commas: `arc_easy`, `arc_challenge`, boolq, hellaswag, openbookqa, piqa,
    /// winogrande, gsm8k
    #[arg(long, value_delimiter = ',', requires = "task_data")]
    pub(crate) tasks: Vec<TaskName>,
    /// Directory with a file for each task, such as `arc_easy.jsonl`
    #[arg(long, value_name = "DIR", requires = "tasks")]
    pub(crate) task_data: Option<PathBuf>,
    /// Only the first so many items of each task
    #[arg(long, value_parser = samples(1), requires = "tasks")]
    pub(crate) limit: Option<usize>,
    /// Directory to write `results.json` and each task's items to, or, if its name ends in .json, file
    /// to write the results to
    #[arg(long, value_name = "PATH", requires = "tasks", value_parser = output())]
    pub(crate) output: Option<PathBuf>,
    /// For gsm8k: put the question through the checkpoint's chat template, as training does
    #[arg(long, requires = "tasks")]
    pub(crate) chat: bool,
    /// For gsm8k: longest answer in tokens [default: 256]
    #[arg(long, value_parser = max_new_tokens(), requires = "tasks")]
    pub(crate) max_new_tokens: Option<usize>,
    /// Most tokens to run at once, padding included [default: 2048 on the CPU, 16384 on a GPU]
    #[arg(long, value_parser = batch_tokens(), requires = "tasks")]
    pub(crate) batch_tokens: Option<usize>,
    /// Run every choice from the beginning, one at a time: slower, to compare with
    #[arg(long, requires = "tasks")]
    pub(crate) no_shared_prefix: bool,
}

#[derive(Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The prompt; a user's message if the checkpoint has a chat template
    #[arg(long)]
    pub(crate) prompt: Option<String>,
    /// Do not use the checkpoint's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Longest continuation
    #[arg(long, default_value_t = 128, value_parser = max_new_tokens())]
    pub(crate) max_new_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_parser = temperature())]
    pub(crate) temperature: f32,
    /// With a temperature: draw from the k likeliest tokens
    #[arg(long, value_parser = top_k())]
    pub(crate) top_k: Option<usize>,
    /// With a temperature: draw from the likeliest tokens that make up this probability
    #[arg(long, allow_negative_numbers = true, value_parser = top_p())]
    pub(crate) top_p: Option<f32>,
    /// Above 1, makes tokens that were there before less likely
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true, value_parser = penalty())]
    pub(crate) repetition_penalty: f32,
    /// With a temperature: seed of the draw [default: 0]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

#[derive(Args)]
pub(crate) struct MergeArgs {
    /// Checkpoint directory or GGUF file; may be left out if the adapter names its base
    #[arg(long)]
    pub(crate) model: Option<PathBuf>,
    /// PEFT or mlx-lm adapter directory, a run directory, or a checkpoint of a run; needed (`convert`
    /// writes a model without one)
    #[arg(long)]
    pub(crate) adapter: Option<PathBuf>,
    #[arg(long, value_name = "FORMAT", help = QUANTIZE)]
    pub(crate) quantize: Option<Packing>,
    /// Directory to write, or, if its name ends in .gguf, file; must not exist
    #[arg(long, value_parser = output())]
    pub(crate) output: PathBuf,
    /// Number format to write, packed ones only to GGUF, `same` for what each matrix of a packed
    /// base has; the checkpoint's own if not given
    #[arg(long, value_parser = merged_format())]
    pub(crate) dtype: Option<MergedFormat>,
    /// Data by which to say what the rounding costs: the loss on it before and after. If not given,
    /// a part of the validation data of the run that the adapter is of
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// Do not measure what the rounding costs
    #[arg(long, conflicts_with = "data")]
    pub(crate) no_measure: bool,
    /// The most that one file of weights takes, such as 2GB or 500MiB; beyond it, there are several
    /// [default: 5GB]
    #[arg(long, value_parser = bytes)]
    pub(crate) shard_size: Option<u64>,
    #[arg(long, help = MODELFILE)]
    pub(crate) modelfile: bool,
    /// Device to add on
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

#[derive(Args)]
pub(crate) struct ConvertArgs {
    /// A model: checkpoint directory, GGUF file or hub name. Or adapters: directories of PEFT or
    /// mlx-lm, run directories, or checkpoints of runs; several become one
    #[arg(required = true, value_name = "MODEL|ADAPTERS")]
    pub(crate) paths: Vec<PathBuf>,
    /// Directory to write, or a file if its name ends in .gguf; must not exist
    #[arg(long, value_parser = output())]
    pub(crate) output: PathBuf,
    /// The adapters' base: a directory, a GGUF file or a hub name; may be left out if they name it
    #[arg(long)]
    pub(crate) model: Option<PathBuf>,
    #[arg(long, value_name = "FORMAT", help = QUANTIZE)]
    pub(crate) quantize: Option<Packing>,
    /// Of adapters: plain LoRA on the original base, PEFT's own form of the method, or plain LoRA as
    /// mlx-lm reads it. Of a model: transformers' directory (`plain`) or mlx-lm's, dense
    #[arg(long, default_value = "plain")]
    pub(crate) form: Form,
    /// With `--form native`, for adapters that are plain: what they were trained with
    #[arg(long)]
    pub(crate) method: Option<NativeMethod>,
    /// The rank to reduce each layer to, by singular value decomposition
    #[arg(long, value_parser = rank())]
    pub(crate) rank: Option<usize>,
    /// Number format to write. Of adapters float32 if not given; of a model its own, packed ones
    /// only to GGUF, `same` for what each of its packed matrices has
    #[arg(long, value_parser = merged_format())]
    pub(crate) dtype: Option<MergedFormat>,
    /// Of a model: the most that one file of weights takes, such as 2GB or 500MiB; beyond it, there
    /// are several [default: 5GB]
    #[arg(long, value_parser = bytes)]
    pub(crate) shard_size: Option<u64>,
    #[arg(long, help = MODELFILE)]
    pub(crate) modelfile: bool,
    /// How several adapters become one: `cat` is their exact sum, `linear` keeps the rank
    /// [default: cat]
    #[arg(long)]
    pub(crate) combine: Option<Combine>,
    /// What each adapter is multiplied by; 1 if not given
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true, value_parser = weight())]
    pub(crate) weights: Vec<f64>,
    /// Device to compute on, where the base is needed
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Plain,
    Native,
    Mlx,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum NativeMethod {
    #[default]
    Olora,
    Pissa,
}

impl From<NativeMethod> for olora_adapter::Method {
    fn from(method: NativeMethod) -> Self {
        match method {
            NativeMethod::Olora => Self::Olora,
            NativeMethod::Pissa => Self::Pissa,
        }
    }
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum Combine {
    #[default]
    Cat,
    Linear,
}

#[derive(Args)]
pub(crate) struct PushArgs {
    /// Directory of a model or an adapter, a run directory for what is in it, or a file
    pub(crate) path: PathBuf,
    /// The repository, `owner/name`; made if there is none
    #[arg(value_name = "REPOSITORY")]
    pub(crate) repository: String,
    /// List what would be sent, and ask nobody
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The commit's message
    #[arg(long, default_value = "Upload with olora")]
    pub(crate) message: String,
    /// The branch, which must be there already
    #[arg(long, default_value = "main")]
    pub(crate) branch: String,
    /// If the repository is made: let everybody see it
    #[arg(long)]
    pub(crate) public: bool,
}

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

/// Of `--quantize`.
const QUANTIZE: &str = "What the base's matrices are held in: stored (as the files have them), none (unpacked), \
    nf4, q8_0, q4_0 or q4_k; if not given, what the adapter was trained on";

/// Of `--modelfile`.
const MODELFILE: &str = "Beside a GGUF file, write Ollama's Modelfile for it, with the chat template as far \
    as it has a form there";

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum What {
    Model,
    Adapter,
    Data,
}

/// `--dtype`: a number format by its name or its short name.
fn dtype() -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(dtype_names()).try_map(|name| name.parse::<Dtype>())
}

/// `merge --dtype`: a number format of weights, or one that only GGUF has.
fn merged_format() -> impl TypedValueParser<Value = MergedFormat> {
    let packed = GgufType::ALL
        .into_iter()
        .filter(|format| format.is_packed());
    let packed = packed.map(|format| PossibleValue::new(format.name()));
    PossibleValuesParser::new(dtype_names().into_iter().chain(packed)).try_map(|name| {
        match GgufType::of_name(&name).filter(|format| format.is_packed()) {
            Some(format) => Ok(MergedFormat::Gguf(format)),
            None => name.parse().map(MergedFormat::Weights),
        }
    })
}

fn dtype_names() -> [PossibleValue; 3] {
    Dtype::ALL.map(|dtype| PossibleValue::new(dtype.name()).alias(dtype.short_name()))
}

/// A number format that a merged model can be written in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MergedFormat {
    /// In a checkpoint, or in a GGUF file.
    Weights(Dtype),
    /// In a GGUF file alone.
    Gguf(GgufType),
}

impl MergedFormat {
    /// `None` for a format that only GGUF has.
    pub(crate) fn weights(self) -> Option<Dtype> {
        match self {
            Self::Weights(dtype) => Some(dtype),
            Self::Gguf(_) => None,
        }
    }
}

/// `2GB`, `500 MiB` or a plain number of bytes.
fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("", 1),
        ("b", 1),
        ("kb", 1000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
    ];
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_lowercase();
    let size = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .and_then(|(_, factor)| number.parse::<u64>().ok()?.checked_mul(*factor));
    size.filter(|&size| size > 0)
        .ok_or_else(|| "must be a size such as 2GB, 500MiB or 100000 (bytes)".to_owned())
}

/// A whole number within bounds, and why there are such.
fn whole(least: usize, most: usize, why: &'static str) -> impl TypedValueParser<Value = usize> {
    move |text: &str| {
        let number = text.parse().ok();
        number
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| format!("must be a whole number between {least} and {most}: {why}"))
    }
}

fn batch_size() -> impl TypedValueParser<Value = usize> {
    whole(1, MAX_BATCH_SIZE, "as many sequences are computed at once")
}

fn batch_tokens() -> impl TypedValueParser<Value = usize> {
    whole(1, MAX_LENGTH, "as many tokens are computed at once")
}

fn max_length() -> impl TypedValueParser<Value = usize> {
    let why = "one token to read and one to predict at least, and no more than positions are \
               counted exactly";
    whole(2, MAX_LENGTH, why)
}

fn max_new_tokens() -> impl TypedValueParser<Value = usize> {
    whole(1, MAX_NEW_TOKENS, "as many tokens may be generated")
}

/// A number of samples or items, or of one of them.
fn samples(least: usize) -> impl TypedValueParser<Value = usize> {
    whole(least, MAX_SAMPLES, "no file has more")
}

fn rank() -> impl TypedValueParser<Value = usize> {
    let why = "a rank is no larger than the layer's smaller side";
    whole(1, MAX_RANK, why)
}

fn widen() -> impl TypedValueParser<Value = usize> {
    whole(0, 100, "each may be another run of every method")
}

fn steps() -> impl TypedValueParser<Value = usize> {
    whole(1, MAX_STEPS, "a run has at least one step")
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

fn lengths() -> impl TypedValueParser<Value = usize> {
    let why = "every operation is run at each length, attention with all its scores in memory";
    whole(1, MAX_EXAMINED, why)
}

fn top_k() -> impl TypedValueParser<Value = usize> {
    whole(1, MAX_SAMPLES, "leave it out to draw from all tokens")
}

/// A number of which `holds` says whether it can be meant.
fn number(holds: fn(f32) -> bool, expected: &'static str) -> impl TypedValueParser<Value = f32> {
    move |text: &str| {
        let number = text.parse().ok();
        number
            .filter(|number| holds(*number))
            .ok_or_else(|| format!("must be a number {expected}"))
    }
}

fn temperature() -> impl TypedValueParser<Value = f32> {
    let expected = "between 0, which takes the likeliest token, and 100";
    number(|number| (0.0..=100.0).contains(&number), expected)
}

fn top_p() -> impl TypedValueParser<Value = f32> {
    number(
        |number| number > 0.0 && number <= 1.0,
        "above 0 and at most 1, a probability",
    )
}

fn penalty() -> impl TypedValueParser<Value = f32> {
    let expected = "between 0.01 and 100: logits are divided by it";
    number(|number| (0.01..=100.0).contains(&number), expected)
}

/// What an adapter is multiplied by: 0, or what float32 can hold.
fn weight() -> impl TypedValueParser<Value = f64> {
    |text: &str| {
        let number = text.parse().ok();
        number
            .filter(|&number: &f64| is_weight(number))
            .ok_or_else(|| format!("must be {WEIGHTS}"))
    }
}

/// Where something is to be written.
fn output() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        let name = path.to_string_lossy();
        if has_control(&name) {
            return Err(format!(
                "{name:?} has line breaks or other control characters: give another name"
            ));
        }
        Ok(path)
    })
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_decimal_or_binary_or_plain() {
        assert_eq!(bytes("2GB"), Ok(2_000_000_000));
        assert_eq!(bytes(" 500 MiB "), Ok(500 << 20));
        assert_eq!(bytes("123"), Ok(123));
        for wrong in ["", "GB", "0", "2 TBs", "-1", "1.5GB", "99999999999999GB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
