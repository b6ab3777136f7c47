//! `merge`, `convert` and `push`: files that others use.

use std::path::PathBuf;

use clap::{
    Args, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use olora_gguf::GgufType;
use olora_model::{Dtype, Packing};

use super::values::{QUANTIZE, bytes, dtype_names, output, rank, weight};

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
    /// Print a line of JSON for each event, and nothing else, on stdout
    #[arg(long)]
    pub(crate) json: bool,
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
    /// Print a line of JSON for each event, and nothing else, on stdout
    #[arg(long)]
    pub(crate) json: bool,
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
    /// Print a line of JSON for each event, and nothing else, on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

/// Of `--modelfile`.
const MODELFILE: &str = "Beside a GGUF file, write Ollama's Modelfile for it, with the chat template as far \
    as it has a form there";

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
