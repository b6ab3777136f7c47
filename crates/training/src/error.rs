//! The errors of this crate.

use std::path::{Path, PathBuf};

use olora_adapter::AdapterError;
use olora_data::DataError;
use olora_model::ModelError;

use crate::estimate::{MemoryEstimate, size};

/// Why a run could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe is wrong.
    #[error("{recipe}: {reason}")]
    Recipe {
        /// The recipe file, or `--set`.
        recipe: String,
        /// What is wrong, where, and what is allowed.
        reason: String,
    },
    /// A run of this name exists.
    #[error(
        "the run directory {0} exists already. Continue it with --resume, \
         give another name with --set name=…, or remove it"
    )]
    RunExists(PathBuf),
    /// There is nothing to resume.
    #[error(
        "there is no checkpoint to resume from in {0}. Remove the directory if it is there, \
         and start the run without --resume"
    )]
    NothingToResume(PathBuf),
    /// The run is complete.
    #[error("the run in {0} is complete: there is nothing to resume")]
    Complete(PathBuf),
    /// The recipe is not the one that the run was started with.
    #[error("cannot resume {directory}: the recipe differs from the one it was started with:{}", listed(.differences))]
    RecipeChanged {
        /// The run directory.
        directory: PathBuf,
        /// The keys that differ, with both values.
        differences: Vec<String>,
    },
    /// Model, tokenizer and data do not belong together.
    #[error("{0}")]
    Mismatch(String),
    /// The loss or a gradient is no longer a number.
    #[error(
        "the {what} became {value} at step {step}. Training stopped; {}. \
         Try a lower learning_rate, or more warmup_steps",
        kept(.last_good.as_deref())
    )]
    NotFinite {
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// NaN or infinity.
        value: f32,
        /// The first step that was affected.
        step: usize,
        /// The last checkpoint written before it.
        last_good: Option<PathBuf>,
    },
    /// An update made a weight infinite or NaN.
    #[error(
        "`{path}` is no longer finite after step {step}. Training stopped; {}. \
         Try a lower learning_rate, or more warmup_steps",
        kept(.last_good.as_deref())
    )]
    Diverged {
        /// The first such parameter.
        path: String,
        /// The step whose update did it.
        step: usize,
        /// The last checkpoint written before it.
        last_good: Option<PathBuf>,
    },
    /// A checkpoint is damaged or belongs to another model.
    #[error("the checkpoint {path} cannot be used: {reason}")]
    Checkpoint {
        /// The checkpoint's directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Runs cannot be compared.
    #[error("the comparison in {path}: {reason}")]
    Comparison {
        /// The comparison's directory, or the file in it.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
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
    /// The device does not compute in the number format asked for.
    #[error(
        "{key}: this device does not compute in {wanted}; it offers {}. Ask for one of these{}",
        .offered.join(", "),
        if .key.starts_with("model.") {
            ", or set `model.dtype_fallback = true` to let float32 take its place"
        } else {
            ""
        }
    )]
    Precision {
        /// The key or option that asked for it.
        key: &'static str,
        /// What was asked for.
        wanted: &'static str,
        /// What there is.
        offered: Vec<&'static str>,
    },
    /// The device does not compute what the CPU computes.
    #[error(
        "this device computes wrong gradients, so nothing was trained on it:{}\n\
         `olora doctor --device …` tells which operation it is, and whether --no-autotune or \
         --no-fusion mends it; --no-check trains nevertheless",
        listed(.0)
    )]
    WrongDevice(Vec<String>),
    /// The device's memory does not hold the run.
    #[error(
        "{}the device is out of memory{}{}. {advice}{}",
        during(*.step),
        .asked.map(|bytes| format!(": it could not allocate {}", size(bytes))).unwrap_or_default(),
        needs(.estimate.as_deref(), *.memory),
        after(*.step, .last_good.as_deref())
    )]
    OutOfMemory {
        /// The allocation that failed, in bytes.
        asked: Option<u64>,
        /// What the run was expected to take.
        estimate: Option<Box<MemoryEstimate>>,
        /// What the device has, in bytes.
        memory: Option<u64>,
        /// What to lower.
        advice: String,
        /// The step that was being made.
        step: Option<usize>,
        /// The last checkpoint written before it.
        last_good: Option<PathBuf>,
    },
    /// The device stopped answering.
    #[error(
        "{}the device failed: {reason}{}. It cannot be used again in this process",
        during(*.step),
        after(*.step, .last_good.as_deref())
    )]
    DeviceFailed {
        /// What its driver said.
        reason: String,
        /// The step that was being made.
        step: Option<usize>,
        /// The last checkpoint written before it.
        last_good: Option<PathBuf>,
    },
    /// An operation on the device failed.
    #[error("computing failed: {0}")]
    Device(String),
    /// Burn's learner or a worker thread failed.
    #[error("training failed: {0}")]
    Burn(String),
    /// The adapter could not be attached, saved or loaded.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The data could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model could not be read or written.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl TrainError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn burn(error: &impl ToString) -> Self {
        Self::Burn(error.to_string())
    }

    pub(crate) fn device(error: &impl ToString) -> Self {
        Self::Device(error.to_string())
    }
}

fn kept(last_good: Option<&Path>) -> String {
    match last_good {
        Some(path) => format!("the last good checkpoint is {}", path.display()),
        None => "no checkpoint had been written yet".to_owned(),
    }
}

/// Reading losses waits until several steps are done, so a failure has come up
/// to this step, not necessarily in it.
fn during(step: Option<usize>) -> String {
    step.map_or_else(String::new, |step| format!("by step {step} "))
}

fn needs(estimate: Option<&MemoryEstimate>, memory: Option<u64>) -> String {
    match (estimate, memory) {
        (None, None) => String::new(),
        (None, Some(memory)) => format!(". The device has {}", size(memory)),
        (Some(estimate), None) => format!(". By estimate this run takes {estimate}"),
        (Some(estimate), Some(memory)) => format!(
            ". By estimate this run takes {estimate}, and the device has {}",
            size(memory)
        ),
    }
}

fn after(step: Option<usize>, last_good: Option<&Path>) -> String {
    match step {
        None => String::new(),
        Some(_) => format!("; {}", kept(last_good)),
    }
}

fn listed(lines: &[String]) -> String {
    lines
        .iter()
        .fold(String::new(), |list, line| list + "\n  " + line)
}
