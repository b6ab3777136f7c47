//! The errors of this crate, and what carries them through readers of others.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Where a record is: what a user needs to open the file at the right place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The data file.
    pub path: PathBuf,
    /// The record's number in the file, from 1.
    pub record: usize,
    /// The line on which it begins, from 1. `None` where a file has no lines
    /// (Parquet), is one record (plain text) or has its records across its
    /// lines (columns in JSON).
    pub line: Option<usize>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, record {}", self.path.display(), self.record)?;
        match self.line {
            Some(line) => write!(f, " (line {line})"),
            None => Ok(()),
        }
    }
}

/// Why files could not be found, or read as records. Each names the file, and
/// the record or line where there is one.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// There are no files behind a name or pattern.
    #[error("{what}: {problem}")]
    NotFound {
        /// What the user wrote.
        what: String,
        /// What was looked for, and what to do.
        problem: String,
    },
    /// A directory's files cannot all be meant.
    #[error("{path}: {problem}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file holds no records.
    #[error("{0} is empty: there is nothing to train on")]
    Empty(PathBuf),
    /// A file is of a kind that is not read.
    #[error("{path} is {found}: {remedy}")]
    NotRead {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A file is not text in an encoding that is read.
    #[error("{path}, line {line}: {problem}")]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line of the first bad byte, from 1.
        line: usize,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A compressed file is damaged or cut off.
    #[error(
        "{path}: the {compression} data are damaged or cut off after record {records} (line {line}): {reason}; \
         get the file again"
    )]
    Compressed {
        /// The file.
        path: PathBuf,
        /// How it is compressed.
        compression: crate::Compression,
        /// How many records came before.
        records: usize,
        /// The line that was reached, from 1.
        line: usize,
        /// What the decompressor says.
        reason: String,
    },
    /// A file or one of its records is not JSON.
    #[error(
        "{path}, line {line}, column {column}: malformed JSON: {reason} (expected a list of objects, or one object per line)"
    )]
    Json {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in bytes, from 1.
        column: usize,
        /// What is wrong.
        reason: String,
    },
    /// A record is something other than a JSON object.
    #[error(
        "{at}: expected a JSON object such as {{\"prompt\": …, \"completion\": …}}, found {found}"
    )]
    NotAnObject {
        /// Which record.
        at: Location,
        /// What it is.
        found: &'static str,
    },
    /// An object around the records has something that would be lost.
    #[error("{path}: {problem}")]
    Wrapper {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        problem: String,
    },
    /// A record is not whole.
    #[error("{at}: {problem}")]
    Record {
        /// Which record.
        at: Location,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A table in text is malformed.
    #[error("{path}, line {line}: {problem}")]
    Table {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What was expected and found.
        problem: String,
    },
    /// A Parquet file is malformed or uses what is not supported.
    #[error("{path}: {problem}")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong; with the row where one was reached.
        problem: String,
    },
    /// A line or record is too long to be one.
    #[error(
        "{path}, line {line}: a single record of more than {limit} bytes; is the file what it should be? \
         A list of records may be longer, a record or a plain text may not: split it"
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The line on which the record begins, from 1.
        line: usize,
        /// The most bytes that a record may have.
        limit: usize,
    },
    /// A file is not the one that reading began with.
    #[error("{0} changed while it was read: wait until it is written, and begin again")]
    Changed(PathBuf),
}

/// What goes wrong beneath the formats. It goes through their libraries within
/// an [`io::Error`], and is taken out again by [`from_io`].
#[derive(Debug)]
pub(crate) enum Fault {
    File(io::Error),
    NotText {
        line: usize,
        problem: String,
    },
    Compressed {
        compression: crate::Compression,
        line: usize,
        reason: String,
    },
    Table {
        line: usize,
        problem: String,
    },
    TooLong {
        line: usize,
        limit: usize,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        io::Error::other(fault)
    }
}

/// The error of a file, of which `records` had been read.
pub(crate) fn from_io(path: &Path, records: usize, error: io::Error) -> RecordsError {
    let path = path.to_owned();
    match error.downcast::<Fault>() {
        Ok(Fault::File(source)) | Err(source) => RecordsError::Read { path, source },
        Ok(Fault::NotText { line, problem }) => RecordsError::NotText {
            path,
            line,
            problem,
        },
        Ok(Fault::Compressed {
            compression,
            line,
            reason,
        }) => RecordsError::Compressed {
            path,
            compression,
            records,
            line,
            reason,
        },
        Ok(Fault::Table { line, problem }) => RecordsError::Table {
            path,
            line,
            problem,
        },
        Ok(Fault::TooLong { line, limit }) => RecordsError::TooLong { path, line, limit },
    }
}

/// Names in backticks, in a row.
pub(crate) fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names
        .into_iter()
        .map(|name| format!("`{}`", clipped(name)))
        .collect();
    names.join(", ")
}

/// The beginning of a text that may be long, for an error.
pub(crate) fn clipped(text: &str) -> String {
    const MOST: usize = 60;
    if text.chars().count() <= MOST {
        return text.escape_debug().collect();
    }
    let start: String = text.chars().take(MOST).collect();
    format!("{}…", start.escape_debug())
}
