//! The errors of this crate. Each names the file and record, what was expected
//! and what was found.

use std::{fmt, path::PathBuf};

use crate::Format;

/// Where a record is: what a user needs to open the file at the right place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The data file.
    pub path: PathBuf,
    /// The record's number, from 1.
    pub record: usize,
    /// Its line, from 1, where every record has a line of its own.
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

/// Why data could not be read, rendered, tokenised or put into batches.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A data file is not UTF-8 text.
    #[error("{path}, line {line}: not valid UTF-8; save the file as UTF-8")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line of the first bad byte, from 1.
        line: usize,
    },
    /// A data file holds no records.
    #[error("{0} is empty: there is nothing to train on")]
    Empty(PathBuf),
    /// A data file or one of its lines is not JSON.
    #[error(
        "{path}, line {line}, column {column}: malformed JSON: {reason} (expected a list of objects, or one object per line)"
    )]
    Json {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A record could not be used.
    #[error("{at}: {problem}")]
    Record {
        /// Which record.
        at: Location,
        /// What is wrong with it.
        problem: Box<DataError>,
    },
    /// A record is something other than a JSON object.
    #[error("expected a JSON object such as {{\"prompt\": …, \"completion\": …}}, found {0}")]
    NotAnObject(&'static str),
    /// The first record's keys fit no format.
    #[error(
        "its keys ({}) fit no known format. Known are {}",
        quoted(.found),
        Format::ALL.map(|format| format!("{format} with {}", format.keys())).join("; ")
    )]
    UnknownFormat {
        /// The keys found.
        found: Vec<String>,
    },
    /// A plain-text file was to be read as records.
    #[error(
        "{path} is read as plain text, because its name ends in neither .json nor .jsonl, \
         but the format asked for is {format}"
    )]
    PlainText {
        /// The file.
        path: PathBuf,
        /// The format asked for.
        format: Format,
    },
    /// A record or turn lacks a key.
    #[error("the key `{key}` is missing: {format} has {}; found {}", .format.keys(), quoted(.found))]
    MissingKey {
        /// The missing key.
        key: String,
        /// The format of the file.
        format: Format,
        /// The keys found.
        found: Vec<String>,
    },
    /// A value has the wrong JSON type.
    #[error("`{key}` must be {expected}, found {found}")]
    WrongType {
        /// The key.
        key: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A key asks for something this crate does not do.
    #[error(
        "`{0}` is not supported, and leaving it out would change what is trained: remove the key or the record"
    )]
    UnsupportedKey(String),
    /// A `ShareGPT` turn comes from nobody we know.
    #[error(
        "turn {turn} is from `{found}`; known are human, user, gpt, chatgpt, assistant and system"
    )]
    UnknownRole {
        /// The turn, from 1.
        turn: usize,
        /// The role found.
        found: String,
    },
    /// A record has nothing that the loss would be taken on.
    #[error("no token of this record would be trained: {0}")]
    NothingToTrain(String),
    /// Truncation left nothing to train on in the whole file.
    #[error(
        "{path}: none of its {n_records} records has anything left to train on within {max_length} tokens; \
         the longest has {longest}. Raise the maximum length"
    )]
    AllDropped {
        /// The file.
        path: PathBuf,
        /// Its records.
        n_records: usize,
        /// The limit.
        max_length: usize,
        /// The longest sample before truncation.
        longest: usize,
    },
    /// Conversations need a chat template.
    #[error(
        "the checkpoint in {dir} has no chat template (chat_template.jinja, or `chat_template` in \
         tokenizer_config.json): use an instruction-tuned checkpoint, or give the data as `prompt` and `completion`"
    )]
    NoChatTemplate {
        /// The checkpoint's directory.
        dir: PathBuf,
    },
    /// The chat template does not parse, or refuses a conversation.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// The chat template renders the first turns differently once more turns follow.
    #[error(
        "chat template: cannot tell which tokens are turn {turn}: the template renders the turns up to {what} \
         differently when more follow. Split the conversation so that each record ends with one assistant turn, \
         or use another template"
    )]
    NotAPrefix {
        /// The assistant turn, from 1.
        turn: usize,
        /// Which rendering is no prefix.
        what: &'static str,
    },
    /// No end-of-sequence token is known.
    #[error(
        "no end-of-sequence token is known for the checkpoint in {dir}: a model trained without one never stops. \
         Name `eos_token` in tokenizer_config.json"
    )]
    NoEos {
        /// The checkpoint's directory.
        dir: PathBuf,
    },
    /// A file of the checkpoint is not what its name says.
    #[error("{path}: {reason}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF file, or the tokenizer in it, could not be read.
    #[error(transparent)]
    Gguf(#[from] olora_gguf::GgufError),
    /// The tokenizer failed on a text or on ids.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A sample fits no row of a packed batch.
    #[error(
        "sample {sample} takes {n_inputs} positions, but a packed row has only {max_length}: \
         cut samples to at most {} tokens, or pack into longer rows",
        .max_length + 1
    )]
    TooLongToPack {
        /// The sample, from 1.
        sample: usize,
        /// The positions that it takes.
        n_inputs: usize,
        /// Those of a row.
        max_length: usize,
    },
    /// A number is out of range.
    #[error("`{key}` is {found}, but must be {expected}")]
    OutOfRange {
        /// The option.
        key: &'static str,
        /// The value found.
        found: String,
        /// What is allowed.
        expected: String,
    },
}

impl DataError {
    pub(crate) fn at(self, at: &Location) -> Self {
        Self::Record {
            at: at.clone(),
            problem: Box::new(self),
        }
    }
}

fn quoted(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}
