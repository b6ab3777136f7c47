//! Files to records.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{DataError, Location, format::kind};

/// One record and where it came from.
#[derive(Debug)]
pub(crate) struct Record {
    pub at: Location,
    pub fields: Map<String, Value>,
}

/// Whether the file holds JSON, by its name. Anything else is plain text.
pub(crate) fn is_json(path: &Path) -> bool {
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    ["json", "jsonl", "ndjson"]
        .iter()
        .any(|json| extension.eq_ignore_ascii_case(json))
}

pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, DataError> {
    std::fs::read(path).map_err(|source| DataError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads a JSON list of objects, one JSON object per line, or plain text as one
/// record with the key `text`.
pub(crate) fn records(path: &Path, bytes: Vec<u8>) -> Result<Vec<Record>, DataError> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error
            .as_bytes()
            .iter()
            .take(error.utf8_error().valid_up_to());
        let line = 1 + valid.filter(|&&byte| byte == b'\n').count();
        DataError::NotUtf8 {
            path: path.to_owned(),
            line,
        }
    })?;
    // Windows editors begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);

    let at = |i: usize, line| Location {
        path: path.to_owned(),
        record: i + 1,
        line,
    };
    let records: Vec<_> = if !is_json(path) {
        let fields = [("text".to_owned(), text.into())].into_iter().collect();
        if text.trim().is_empty() {
            Vec::new()
        } else {
            vec![Record {
                at: at(0, None),
                fields,
            }]
        }
    } else if text.trim_start().starts_with('[') {
        let list: Vec<Value> =
            serde_json::from_str(text).map_err(|error| malformed(path, 0, &error))?;
        let record = |(i, value)| object(value, at(i, None));
        list.into_iter()
            .enumerate()
            .map(record)
            .collect::<Result<_, _>>()?
    } else {
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty());
        let record = |(i, (line, text)): (usize, (usize, &str))| {
            let value =
                serde_json::from_str(text).map_err(|error| malformed(path, line, &error))?;
            object(value, at(i, Some(line + 1)))
        };
        lines.enumerate().map(record).collect::<Result<_, _>>()?
    };
    if records.is_empty() {
        Err(DataError::Empty(path.to_owned()))
    } else {
        Ok(records)
    }
}

fn object(value: Value, at: Location) -> Result<Record, DataError> {
    match value {
        Value::Object(fields) => Ok(Record { at, fields }),
        other => Err(DataError::NotAnObject(kind(&other)).at(&at)),
    }
}

fn malformed(path: &Path, lines_before: usize, error: &serde_json::Error) -> DataError {
    // serde_json appends the position within what it was given.
    let reason = error.to_string();
    let reason = reason
        .split(" at line ")
        .next()
        .unwrap_or_default()
        .to_owned();
    DataError::Json {
        path: path.to_owned(),
        line: lines_before + error.line(),
        column: error.column(),
        reason,
    }
}
