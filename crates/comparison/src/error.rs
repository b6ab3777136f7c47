//! The errors of comparisons.

use std::path::{Path, PathBuf};

use olora_adapter::AdapterError;
use olora_data::DataError;
use olora_model::ModelError;
use olora_pictures::PngError;
use olora_runs::RunError;
use olora_tasks::TaskError;

/// Why runs could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// A method's name is none.
    #[error("{given}: {reason}")]
    Methods {
        /// What was given.
        given: String,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// What is asked for cannot be compared, whatever is in the files.
    #[error("cannot compare: {0}")]
    Refused(String),
    /// Runs cannot be compared, or a file of a comparison is damaged.
    #[error("the comparison in {path}: {reason}")]
    Comparison {
        /// The comparison's directory, or the file in it.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A picture could not be drawn.
    #[error(transparent)]
    Drawing(#[from] PngError),
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
    /// A run failed.
    #[error(transparent)]
    Run(Box<RunError>),
    /// A model could not be scored.
    #[error(transparent)]
    Task(Box<TaskError>),
}

impl ComparisonError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn json(error: &serde_json::Error) -> Self {
        RunError::from(olora_training::TrainError::burn(error)).into()
    }
}

impl From<RunError> for ComparisonError {
    fn from(error: RunError) -> Self {
        Self::Run(Box::new(error))
    }
}

impl From<TaskError> for ComparisonError {
    fn from(error: TaskError) -> Self {
        Self::Task(Box::new(error))
    }
}

macro_rules! through_run_error {
    ($($error:ty),*) => {$(
        impl From<$error> for ComparisonError {
            fn from(error: $error) -> Self {
                RunError::from(error).into()
            }
        }
    )*};
}

through_run_error!(AdapterError, DataError, ModelError);
