//! Data files as people have them, read into records, one at a time.
//!
//! [`find`] turns what a user writes (a file, a directory, a pattern) into
//! files, [`kind`] says what a file is read as, and [`for_each`] gives its
//! records in order. Only a few records are in memory at a time, whatever the
//! file's size; the exceptions are named below.
//!
//! ```
//! use olora_records::{RecordsError, for_each};
//!
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("village.csv");
//! std::fs::write(&path, "prompt,completion\nWhere is Alder?,\"In Oxmere,\nby the mill.\"\n")?;
//! let mut answers = Vec::new();
//! for_each::<RecordsError>(&path, &mut |record| {
//!     answers.push(record.fields["completion"].clone());
//!     Ok(())
//! })?;
//! assert_eq!(answers, ["In Oxmere,\nby the mill."]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is read
//!
//! What a file is follows from its first bytes before its name.
//!
//! | form | how it is known | records |
//! |---|---|---|
//! | JSON Lines | `.jsonl`, `.ndjson`, `.jsonlines`, `.json`, or any file that begins like a JSON object | objects one after another, on a line each or not |
//! | JSON | the same names, or a file that begins like a list of objects | the objects of the list |
//! | | one object whose only list of objects is in `data`, `train`, `rows`, … | the objects of that list |
//! | | one object of equally long lists, or of columns by index as pandas writes them | one for each place in the lists; held in memory |
//! | CSV, TSV | `.csv`, `.tsv`, `.tab` | a row each, all values texts; separated by commas, semicolons or tabs, as the header is |
//! | Parquet | its magic bytes | a row each |
//! | plain text | anything else that is text | one with the key `text`; held in memory |
//!
//! Text is UTF-8, with or without a byte order mark, or UTF-16 with one. All
//! text forms may be compressed with gzip or zstd, which is known by magic bytes.
//!
//! # What values become
//!
//! JSON values are what they are; a key twice in one object, `NaN` and other
//! things that are not JSON are errors. A cell of a CSV file is a text, also
//! when it is empty. In Parquet, nulls stay nulls, maps become objects; what
//! JSON has no type for becomes text: dates, times (but nanoseconds, which stay
//! integers), decimals, and floats that are not finite. Binary values are texts
//! where they are UTF-8, and `{"bytes": n}` otherwise, so that whoever uses the
//! record can refuse the key by name.
//!
//! # What is beside the records
//!
//! In an object around a list of records, the keys of
//! [`HARMLESS`] are left out; any other key is an error.

mod cursor;
mod error;
mod find;
mod json;
mod kind;
mod open;
mod parquet;
mod refused;
mod shape;
mod table;
mod text;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

pub use error::{Location, RecordsError};
pub use find::{ENDINGS, find};
pub use json::parse;
pub use kind::{Compression, FileKind, Form, kind};
pub use shape::HARMLESS;

use open::{Content, Opened};
use shape::Shape;

/// Has the example of `README.md` compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The most bytes that one record may have; beyond it a file is taken for
/// something else, before it fills the memory.
pub(crate) const LONGEST: usize = 1 << 30;

/// One record and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where it is.
    pub at: Location,
    /// Its keys and values, in the order of the file.
    pub fields: Map<String, Value>,
}

/// Gives each record of a file in order. Stops at once when the sink returns an
/// error, and returns that.
///
/// Errors in a file are found where they are: the records before them have been
/// given by then.
///
/// # Errors
///
/// The sink's, or a [`RecordsError`]: the file cannot be read, is of a kind that
/// is not read, is malformed, is empty, or changed meanwhile.
pub fn for_each<E: From<RecordsError>>(
    path: &Path,
    sink: &mut dyn FnMut(Record) -> Result<(), E>,
) -> Result<(), E> {
    let mut refusal = None;
    let mut give = |record| match sink(record) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            refusal = Some(error);
            ControlFlow::Break(())
        }
    };
    let result = read(path, &mut give);
    match (refusal, result) {
        (Some(refusal), _) => Err(refusal),
        (None, Err(Halt::Failed(error))) => Err(error.into()),
        (None, Ok(()) | Err(Halt::Stopped)) => Ok(()),
    }
}

fn read(path: &Path, give: &mut dyn FnMut(Record) -> ControlFlow<()>) -> Result<(), Halt> {
    let Opened {
        kind,
        content,
        stamp,
    } = open::open(path)?;
    let mut out = Out {
        path,
        give,
        n_records: 0,
    };
    match content {
        Content::Parquet(file) => parquet::read(file, &mut out)?,
        Content::Text(text) => match kind.form {
            Form::Csv | Form::Tsv => table::read(text, kind.form, &mut out)?,
            Form::JsonLines => {
                let shape = shape::shape(path, text, LONGEST)?;
                json::read(open::text(path)?, &shape, &mut out, LONGEST)?;
            }
            Form::Json => json::read(text, &Shape::List, &mut out, LONGEST)?,
            // Parquet is never opened as text.
            Form::Text | Form::Parquet => whole_text(text, &mut out, LONGEST)?,
        },
    }
    stamp.check(path)?;
    if out.n_records == 0 {
        return Err(RecordsError::Empty(path.to_owned()).into());
    }
    Ok(())
}

fn whole_text(mut text: text::Text, out: &mut Out<'_>, limit: usize) -> Result<(), Halt> {
    let mut whole = Vec::new();
    let read = text::take(&mut text, limit + 1, &mut whole);
    read.map_err(|error| out.fault(error))?;
    if whole.len() > limit {
        return Err(out.fault(error::Fault::TooLong { line: 1, limit }.into()));
    }
    // The reader gives valid text only.
    let whole = String::from_utf8_lossy(&whole).into_owned();
    if whole.trim().is_empty() {
        return Ok(());
    }
    let fields = [("text".to_owned(), whole.into())].into_iter().collect();
    out.give(fields, None)
}

/// Why reading ends before the file does.
enum Halt {
    /// The sink wants no more.
    Stopped,
    /// The file has a fault.
    Failed(RecordsError),
}

impl From<RecordsError> for Halt {
    fn from(error: RecordsError) -> Self {
        Self::Failed(error)
    }
}

/// Where records go: the sink, and what the file's errors need.
struct Out<'a> {
    path: &'a Path,
    give: &'a mut dyn FnMut(Record) -> ControlFlow<()>,
    /// How many have been given.
    n_records: usize,
}

impl Out<'_> {
    /// The location of the record that is to come.
    fn next(&self, line: Option<usize>) -> Location {
        Location {
            path: self.path.to_owned(),
            record: self.n_records + 1,
            line,
        }
    }

    fn give(&mut self, fields: Map<String, Value>, line: Option<usize>) -> Result<(), Halt> {
        let at = self.next(line);
        self.n_records += 1;
        match (self.give)(Record { at, fields }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Halt::Stopped),
        }
    }

    fn fault(&self, error: std::io::Error) -> Halt {
        error::from_io(self.path, self.n_records, error).into()
    }

    fn path(&self) -> PathBuf {
        self.path.to_owned()
    }
}
