//! The errors of runs.

use std::path::{Path, PathBuf};

use olora_adapter::AdapterError;
use olora_data::DataError;
use olora_doctor::WrongDevice;
use olora_model::ModelError;
use olora_training::{DeviceErrors, TrainError};

/// Why a run could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
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
    /// The loss or a gradient is no longer a number.
    #[error(
        "the {what} became {value} at step {step}{}. Training stopped; {}. \
         Try a lower learning_rate, or more warmup_steps",
        .first.as_ref().map(|first| format!(" ({first})")).unwrap_or_default(),
        kept(.last_good.as_deref())
    )]
    NotFinite {
        /// `loss`, `validation loss` or `gradient norm`.
        what: &'static str,
        /// NaN or infinity.
        value: f32,
        /// The first step that was affected.
        step: usize,
        /// The first tensor or layer that is not finite, where it was looked for.
        first: Option<String>,
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
    #[error(transparent)]
    WrongDevice(#[from] WrongDevice),
    /// Computing failed, or what it needs does not fit together.
    #[error(transparent)]
    Train(#[from] TrainError),
}

impl RunError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn burn(error: &impl ToString) -> Self {
        TrainError::burn(error).into()
    }

    pub(crate) fn device(error: &impl ToString) -> Self {
        TrainError::device(error).into()
    }

    pub(crate) fn mismatch(reason: impl Into<String>) -> Self {
        TrainError::Mismatch(reason.into()).into()
    }
}

impl DeviceErrors for RunError {
    fn into_train(self) -> Result<TrainError, Self> {
        match self {
            Self::Train(error) => Ok(error),
            other => Err(other),
        }
    }
}

macro_rules! through_train_error {
    ($($error:ty),*) => {$(
        impl From<$error> for RunError {
            fn from(error: $error) -> Self {
                TrainError::from(error).into()
            }
        }
    )*};
}

through_train_error!(AdapterError, DataError, ModelError);

fn kept(last_good: Option<&Path>) -> String {
    match last_good {
        Some(path) => format!("the last good checkpoint is {}", path.display()),
        None => "no checkpoint had been written yet".to_owned(),
    }
}

fn listed(lines: &[String]) -> String {
    lines
        .iter()
        .fold(String::new(), |list, line| list + "\n  " + line)
}
