//! The errors of this crate.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

/// Why a GGUF file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// A file could not be read or written.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done, in words.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file does not begin as GGUF files do.
    #[error("{path} is not a GGUF file: {reason}")]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        reason: String,
    },
    /// A file ends before what it declares.
    #[error(
        "{path} is cut short: {what} needs bytes up to {expected}, but the file has {found}. Copy or download it again"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The tensor or part of the header that is not all there.
        what: String,
        /// Bytes the file must have at least.
        expected: u64,
        /// Bytes it has.
        found: u64,
    },
    /// A file contradicts itself or lacks something.
    #[error("{path} is not a valid GGUF file: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file holds something that this crate does not read.
    #[error("{path} has {what}, which olora does not support. Supported: {supported}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it has.
        what: String,
        /// What is supported instead.
        supported: String,
    },
    /// A file is one part of a model, and another is not there.
    #[error("{path} is not a whole model: {reason}")]
    Part {
        /// The file.
        path: PathBuf,
        /// Which other is missing.
        reason: String,
    },
    /// A file of a tokenizer is damaged, or not of a kind that is read.
    #[error("{path}: {reason}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A tensor was asked for that the file does not have.
    #[error("{path} has no tensor `{name}`")]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in Hugging Face terms.
        name: String,
    },
    /// Something has no form in a GGUF file, or none that llama.cpp would
    /// compute the same from.
    #[error("{what} cannot be written to a GGUF file: {reason}")]
    Unwritable {
        /// The configuration key, tokenizer part or tensor.
        what: String,
        /// Why not, and what would do.
        reason: String,
    },
    /// Whoever supplies the tensors to be written failed.
    #[error("reading `{name}` to write it to a GGUF file: {source}")]
    Source {
        /// The tensor.
        name: String,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl GgufError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn part(path: &Path, reason: String) -> Self {
        Self::Part {
            path: path.to_owned(),
            reason,
        }
    }

    pub(crate) fn tokenizer(path: &Path, reason: String) -> Self {
        Self::Tokenizer {
            path: path.to_owned(),
            reason,
        }
    }

    pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn unsupported(
        path: &Path,
        what: impl Into<String>,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            what: what.into(),
            supported: supported.into(),
        }
    }

    pub(crate) fn unwritable(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unwritable {
            what: what.into(),
            reason: reason.into(),
        }
    }
}
