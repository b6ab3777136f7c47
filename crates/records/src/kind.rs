//! What a file is, by its first bytes before its name.

use std::{fmt, path::Path};

use crate::{
    RecordsError,
    open::{self, Content},
    shape::{self, Shape},
};

/// What a file is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileKind {
    /// How its records are written.
    pub form: Form,
    /// How the whole file is compressed. What Parquet compresses within is not meant.
    pub compression: Option<Compression>,
}

/// How records are written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Plain text: one record with the key `text`.
    Text,
    /// JSON objects one after another.
    JsonLines,
    /// One JSON value that holds the records.
    Json,
    /// A table with a header, separated by commas or semicolons.
    Csv,
    /// A table with a header, separated by tabs.
    Tsv,
    /// Apache Parquet.
    Parquet,
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip, of one or more members (RFC 1952).
    Gzip,
    /// Zstandard, of one or more frames (RFC 8878).
    Zstd,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.form)?;
        match self.compression {
            Some(compression) => write!(f, ", compressed with {compression}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "plain text",
            Self::JsonLines => "JSON Lines",
            Self::Json => "JSON",
            Self::Csv => "CSV",
            Self::Tsv => "TSV",
            Self::Parquet => "Parquet",
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

impl Compression {
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        // Frames of zstd that only hold metadata may come first.
        let skippable = head.get(1..4) == Some(b"\x2a\x4d\x18")
            && head.first().is_some_and(|byte| byte & 0xF0 == 0x50);
        if head.starts_with(b"\x1f\x8b") {
            Some(Self::Gzip)
        } else if head.starts_with(b"\x28\xb5\x2f\xfd") || skippable {
            Some(Self::Zstd)
        } else {
            None
        }
    }
}

/// What a file is read as, by its name and by looking into it. Of a file that
/// begins with a JSON object, the whole first object is read, which of a list
/// in a wrapper is the whole file.
///
/// # Errors
///
/// The file cannot be read, is empty, or is of a kind that is not read.
pub fn kind(path: &Path) -> Result<FileKind, RecordsError> {
    let opened = open::open(path)?;
    let mut kind = opened.kind;
    if let (Form::JsonLines, Content::Text(text)) = (kind.form, opened.content)
        && shape::shape(path, text, crate::LONGEST)? != Shape::Lines
    {
        kind.form = Form::Json;
    }
    Ok(kind)
}

/// The last ending of a name, in lower case, without that of a compression.
pub(crate) fn ending(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_lowercase();
    let name = [".gz", ".gzip", ".zst", ".zstd"]
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(&name);
    match name.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() => ending.to_owned(),
        _ => String::new(),
    }
}

/// The form of a text file that ends in `ending` and begins with `head`.
pub(crate) fn form(ending: &str, head: &str) -> Form {
    let looks = Looks::of(head);
    match ending {
        "json" | "jsonl" | "ndjson" | "jsonlines" => {
            if head.trim_start().starts_with('[') {
                Form::Json
            } else {
                Form::JsonLines
            }
        }
        _ if looks == Looks::Object => Form::JsonLines,
        _ if looks == Looks::List => Form::Json,
        "csv" => Form::Csv,
        "tsv" | "tab" => Form::Tsv,
        _ => Form::Text,
    }
}

/// What a text begins like. Prose that begins with a brace, a quote, a word, a
/// quote and a colon is taken for JSON, which is then said to be malformed: to
/// train on broken JSON as prose would be worse.
#[derive(PartialEq)]
enum Looks {
    Object,
    List,
    Prose,
}

impl Looks {
    fn of(head: &str) -> Self {
        let head = head.trim_start();
        if let Some(inside) = head.strip_prefix('[') {
            return match Self::of(inside) {
                Self::Object => Self::List,
                _ => Self::Prose,
            };
        }
        let Some(inside) = head.strip_prefix('{') else {
            return Self::Prose;
        };
        let inside = inside.trim_start();
        // Python's own quotes are an error that JSON's reader explains.
        let Some(quote) = inside.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            return Self::Prose;
        };
        match inside[1..].split_once(quote) {
            Some((_, after)) if after.trim_start().starts_with(':') => Self::Object,
            _ => Self::Prose,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_is_the_last_without_that_of_a_compression() {
        for (name, expected) in [
            ("a/train.JSONL", "jsonl"),
            ("train.jsonl.gz", "jsonl"),
            ("train.csv.Zst", "csv"),
            ("train.gz", ""),
            ("train", ""),
            (".hidden", ""),
            ("v1.2/train", ""),
            ("train.v1.txt", "txt"),
        ] {
            assert_eq!(ending(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn json_is_told_from_prose_by_its_first_key() {
        for (ending, head, expected) in [
            ("txt", "\n {\"prompt\": 1", Form::JsonLines),
            ("", "{ \"prompt\" :1", Form::JsonLines),
            ("md", "{'prompt': 'Where is Alder?'}", Form::JsonLines),
            ("csv", "{\"prompt\": 1", Form::JsonLines),
            ("txt", "[\n  {\"prompt\": 1", Form::Json),
            ("json", "[1", Form::Json),
            ("json", "Alder", Form::JsonLines),
            ("txt", "{Alder}", Form::Text),
            ("txt", "[Alder, {\"a\": 1}]", Form::Text),
            ("txt", "{\"Alder\", said Zora", Form::Text),
            ("txt", "Where is Alder?", Form::Text),
            ("csv", "prompt,completion", Form::Csv),
            ("tab", "prompt\tcompletion", Form::Tsv),
        ] {
            assert_eq!(form(ending, head), expected, "{head}");
        }
    }
}
