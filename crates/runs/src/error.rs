//! The errors of runs.

use std::path::{Path, PathBuf};

use olora_adapter::AdapterError;
use olora_data::DataError;
use olora_doctor::WrongDevice;
use olora_files::Holder;
use olora_model::ModelError;
use olora_pictures::PngError;
use olora_training::{DeviceErrors, TrainError};

use crate::recipe::MAY_CHANGE;

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
         give another with --output or --set name=…, or remove it"
    )]
    RunExists(PathBuf),
    /// There is nothing to resume.
    #[error(
        "there is no checkpoint to resume from in {0}, and no run. Start it without --resume, or with \
         --auto-resume, which starts a run or goes on with it"
    )]
    NothingToResume(PathBuf),
    /// The directory holds something, but no run.
    #[error(
        "{0} is no run directory: it holds files, but no recipe.toml, and nothing is written into it. \
         Give another name with --set name=…, or empty it"
    )]
    NoRun(PathBuf),
    /// The run directory was taken away while the run trained.
    #[error(
        "the run directory {0} is gone, or has no recipe.toml any more: it was removed, renamed or emptied \
         while the run trained. Put it back to go on from its last checkpoint, or start the run again"
    )]
    Vanished(PathBuf),
    /// Another process works in the run directory.
    #[error(
        "{holder} is training in {directory}: wait until it has ended, or stop it. Nothing was changed"
    )]
    InUse {
        /// The run directory.
        directory: PathBuf,
        /// Which process.
        holder: Holder,
    },
    /// The newest checkpoint of a run that was to go on is damaged.
    #[error("the checkpoint {path} cannot be used: {reason}. {}", instead(.older.as_deref()))]
    Damaged {
        /// The checkpoint's directory.
        path: PathBuf,
        /// What is damaged, and how.
        reason: String,
        /// The newest one that is whole.
        older: Option<PathBuf>,
    },
    /// The run is complete.
    #[error(
        "the run in {directory} is complete, with {steps} steps: there is nothing to resume. To lengthen it: --resume \
         --set training.max_steps=… (or training.epochs=…)"
    )]
    Complete {
        /// The run directory.
        directory: PathBuf,
        /// Steps made.
        steps: usize,
    },
    /// The recipe asks for fewer steps than the run has made.
    #[error(
        "cannot resume {directory}: it has made {made} steps, and the recipe asks for {asked} in all. A run can be \
         lengthened and not shortened: set training.max_steps (or training.epochs) to more"
    )]
    Shorter {
        /// The run directory.
        directory: PathBuf,
        /// Steps made.
        made: usize,
        /// Steps asked for.
        asked: usize,
    },
    /// A finished run is to go on, and its checkpoints are gone.
    #[error(
        "cannot lengthen the run in {0}: it is finished, and none of its checkpoints is left, which hold the \
         optimiser's state. Bring one back from a copy, or start another run from its result, with the optimiser \
         afresh: --from {0} --set name=… without --resume"
    )]
    NoLastCheckpoint(PathBuf),
    /// The recipe is not the one that the run was started with.
    #[error(
        "cannot resume {directory}: the recipe differs from the one it was started with:{}\nSet these back. What may \
         change on resuming: {MAY_CHANGE}. To train its result further, in other ways or on other data, start \
         another run from it: --from {directory} --set name=… without --resume",
        listed(.differences)
    )]
    RecipeChanged {
        /// The run directory.
        directory: PathBuf,
        /// The keys that differ, with both values.
        differences: Vec<String>,
    },
    /// A run that is given as an adapter has none.
    #[error("the run in {directory} has no adapter: {reason}")]
    NoAdapter {
        /// The run directory.
        directory: PathBuf,
        /// Why, and what to do.
        reason: String,
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
    /// A picture could not be drawn.
    #[error(transparent)]
    Drawing(#[from] PngError),
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

fn instead(older: Option<&Path>) -> String {
    match older {
        Some(older) => format!(
            "{} is whole: give --auto-resume in the place of --resume to go on from there. \
             The damaged one is then renamed, not removed",
            older.display()
        ),
        None => "No checkpoint of the run is whole. Bring one back from a copy, or remove \
                 the checkpoints to have the run start again with --resume"
            .to_owned(),
    }
}

fn listed(lines: &[String]) -> String {
    lines
        .iter()
        .fold(String::new(), |list, line| list + "\n  " + line)
}
