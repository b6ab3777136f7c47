//! `evaluate` and `generate`: a model, and what it is to do.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use olora_data::DEFAULT_MAX_LENGTH;
use olora_model::{Dtype, Packing};
use olora_tasks::TaskName;

use super::values::{
    QUANTIZE, batch_size, batch_tokens, dtype, max_length, output, parse_max_new_tokens,
    parse_temperature, penalty, samples, top_k, top_p,
};

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
    /// Print JSON; with --tasks, a line for each event, the last of which is the result
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
    #[arg(long, value_parser = parse_max_new_tokens, requires = "tasks")]
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
    /// The prompt; a user's message if the checkpoint has a chat template. `-` reads it from
    /// stdin, and so does leaving it out where stdin is no terminal
    #[arg(long)]
    pub(crate) prompt: Option<String>,
    /// Do not use the checkpoint's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// What the model is told before the conversation, through its chat template
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Longest continuation
    #[arg(long, default_value_t = 128, value_parser = parse_max_new_tokens)]
    pub(crate) max_new_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_parser = parse_temperature)]
    pub(crate) temperature: f32,
    /// With a temperature: draw from the k likeliest tokens
    #[arg(long, value_parser = top_k())]
    pub(crate) top_k: Option<usize>,
    /// With a temperature: draw from the likeliest tokens that make up this probability
    #[arg(long, allow_negative_numbers = true, value_parser = top_p)]
    pub(crate) top_p: Option<f32>,
    /// Above 1, makes tokens that were there before less likely
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true, value_parser = penalty)]
    pub(crate) repetition_penalty: f32,
    /// With a temperature: seed of the draw [default: 0]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}
