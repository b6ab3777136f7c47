//! The errors of this crate.

use std::path::{Path, PathBuf};

use olora_adapter::in_short;
use olora_pickles::PickleError;

use crate::NotFinite;

/// Why a model could not be read, written or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A GGUF file in the base's own formats is wanted of a base that has none.
    #[error(
        "no matrix of the base is in blocks of GGUF files, so that there is no format to keep: choose one, such as q8_0 or bf16"
    )]
    NotInBlocks,
    /// A device does not unpack packed weights as the CPU does.
    #[error(
        "the device does not unpack weights in {format}: {found}. Packed weights would give wrong numbers on it: unpack \
         them (`model.quantize = \"none\"`, `--quantize none`), or take another device; `olora doctor` examines it"
    )]
    NotUnpacked {
        /// The format.
        format: String,
        /// What came instead.
        found: String,
    },
    /// A file could not be read or written.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done, in words.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is not what its name says, or is cut short.
    #[error("{path} is not a valid {kind}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration asks for something that this decoder does not compute.
    #[error("{path} asks for {what}, which olora does not support{}", hint(.supported))]
    Unsupported {
        /// The configuration file.
        path: PathBuf,
        /// The key and its value.
        what: String,
        /// What is supported instead, or empty.
        supported: String,
    },
    /// The checkpoint's tensors are not those that its configuration calls for.
    #[error("the checkpoint in {directory} does not fit its configuration: {}", in_short(.problems))]
    Mismatch {
        /// The checkpoint's directory or file.
        directory: PathBuf,
        /// Every missing, unused and misshapen tensor.
        problems: Vec<String>,
    },
    /// A GGUF file could not be read or written.
    #[error(transparent)]
    Gguf(#[from] olora_gguf::GgufError),
    /// A packed matrix is damaged, or a matrix cannot be packed.
    #[error("`{tensor}` in {path}: {source}")]
    Packed {
        /// The tensor's name.
        tensor: String,
        /// The file that it is in.
        path: PathBuf,
        /// What is wrong with it.
        source: olora_packed::PackedError,
    },
    /// A directory has no weights under a name that is known.
    #[error(
        "there are no weights in {directory}: looked for model.safetensors and pytorch_model.bin, \
         each as one file or as several with an index (.index.json){hint}"
    )]
    NoWeights {
        /// The checkpoint's directory.
        directory: PathBuf,
        /// What is there instead, and what to do.
        hint: String,
    },
    /// A checkpoint lacks a tensor that was asked for by name.
    #[error("the checkpoint has no tensor `{tensor}`")]
    Missing {
        /// The tensor's name.
        tensor: String,
    },
    /// A weight is too large for the number format that it was to be written in.
    #[error(
        "`{tensor}` has values up to {largest:e}, which {dtype} cannot hold (up to {limit:e}): \
         nothing was written. Write bfloat16 or float32 instead"
    )]
    Overflow {
        /// The tensor's name.
        tensor: String,
        /// The largest finite magnitude in it.
        largest: f32,
        /// The number format.
        dtype: &'static str,
        /// The largest magnitude that the format holds.
        limit: f32,
    },
    /// A weight is too large for the number format that it was to be held in.
    #[error(
        "`{tensor}` in {path} has values up to {largest:e}, which do not fit {dtype} (its largest is \
         {}): choose {} for it (--dtype, or model.dtype in a recipe)",
        number(*.limit),
        if *.dtype == "float16" { "bfloat16 or float32" } else { "float32" }
    )]
    DoesNotFit {
        /// The tensor's name.
        tensor: String,
        /// The file that it is in.
        path: PathBuf,
        /// The largest finite magnitude in it.
        largest: f32,
        /// The number format.
        dtype: &'static str,
        /// The largest magnitude that the format holds.
        limit: f32,
    },
    /// A weight is NaN or infinite: nothing can be computed with it.
    #[error(
        "`{tensor}`{} holds {value} at {at:?}{}. Either its file is damaged, or its training diverged{}",
        .path.as_ref().map_or_else(String::new, |path| format!(" in {}", path.display())),
        if *.n > 1 { format!(", one of {} values that are not finite", .n) } else { String::new() },
        if .path.is_none() { ": nothing was written" } else { ": get the file again, or another one" }
    )]
    NotFiniteWeight {
        /// The tensor's name.
        tensor: String,
        /// The file that it is in; `None` if it was to be written.
        path: Option<PathBuf>,
        /// The first such value in it.
        value: f32,
        /// Where that is, as the file has the tensor.
        at: Vec<usize>,
        /// How many of its values are not finite.
        n: usize,
    },
    /// What would be written exists already, and is no empty directory.
    #[error("{0} exists already and is not empty: give another name, or remove it first")]
    Exists(PathBuf),
    /// A request to generate makes no sense.
    #[error("`{key}` is {found}, but must be {expected}")]
    OutOfRange {
        /// The option.
        key: &'static str,
        /// The value found.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// A model computed what is no number, from which nothing can follow.
    #[error("{what} must be finite, but {}", cause(.first.as_ref()))]
    NotFinite {
        /// What was wanted of it, such as `the logits of the next token`.
        what: String,
        /// Where it begins, which [`first_not_finite`](crate::first_not_finite)
        /// finds; `None` if that found nothing.
        first: Option<NotFinite>,
    },
    /// A tensor could not be read back from its device.
    #[error("reading `{what}` from the device: {reason}")]
    Device {
        /// What was being read.
        what: String,
        /// The backend's message.
        reason: String,
    },
}

impl ModelError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn malformed(path: &Path, kind: &'static str, reason: &impl ToString) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            kind,
            reason: reason.to_string(),
        }
    }

    /// [`ModelError::Device`]: what could not be computed, and what the device says.
    pub fn device(what: &str, reason: &impl ToString) -> Self {
        Self::Device {
            what: what.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// Whole where that is short.
fn number(number: f32) -> String {
    if number < 1e7 {
        number.to_string()
    } else {
        format!("{number:e}")
    }
}

fn cause(first: Option<&NotFinite>) -> String {
    match first {
        Some(first) => first.to_string(),
        None => "became so only when computed a second time: the device does not compute the same \
                 twice. `olora doctor` examines it"
            .to_owned(),
    }
}

fn hint(supported: &str) -> String {
    if supported.is_empty() {
        String::new()
    } else {
        format!(" (it supports {supported})")
    }
}

impl From<PickleError> for ModelError {
    fn from(error: PickleError) -> Self {
        match error {
            PickleError::Io {
                action,
                path,
                source,
            } => Self::Io {
                action,
                path,
                source,
            },
            PickleError::Malformed { path, reason } => Self::Malformed {
                path,
                kind: "PyTorch checkpoint",
                reason,
            },
            PickleError::Missing(tensor) => Self::Missing { tensor },
        }
    }
}
