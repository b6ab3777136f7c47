//! The errors of this crate.

use std::path::{Path, PathBuf};

use olora_data::DataError;
use olora_model::ModelError;
use olora_training::TrainError;

/// Why a model could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A file of a task is missing, or not what the task needs.
    #[error("{}{}: {reason}", .file.display(), .line.map_or_else(String::new, |line| format!(", line {line}")))]
    Data {
        /// The file, or the directory that it should be in.
        file: PathBuf,
        /// The line, from 1.
        line: Option<usize>,
        /// What is wrong, what was expected and what was found.
        reason: String,
    },
    /// Model, tokenizer, options and tasks do not belong together.
    #[error("{0}")]
    Mismatch(String),
    /// A file could not be written.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done, in words.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The device failed, or the model or the tokenizer did.
    #[error(transparent)]
    Train(#[from] TrainError),
}

impl TaskError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn device(error: &impl ToString) -> Self {
        TrainError::device(error).into()
    }
}

impl From<DataError> for TaskError {
    fn from(error: DataError) -> Self {
        TrainError::from(error).into()
    }
}

impl From<ModelError> for TaskError {
    fn from(error: ModelError) -> Self {
        TrainError::from(error).into()
    }
}
