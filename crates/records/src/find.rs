//! From what a user writes to files.

use std::path::{Component, Path, PathBuf};

use globset::GlobBuilder;
use walkdir::WalkDir;

use crate::{RecordsError, error::quoted, kind::ending};

/// The endings by which data files are known in a directory; those of text also
/// with `.gz` or `.zst` after them.
pub const ENDINGS: [&str; 11] = [
    "jsonl",
    "ndjson",
    "jsonlines",
    "json",
    "csv",
    "tsv",
    "tab",
    "parquet",
    "pq",
    "txt",
    "md",
];

/// Endings of files that hold data too, but are not read.
const NOT_READ: [&str; 22] = [
    "7z", "arrow", "avro", "bz2", "db", "doc", "docx", "feather", "h5", "hdf5", "lz4", "orc",
    "pdf", "pickle", "pkl", "rar", "sqlite", "tar", "xls", "xlsx", "xz", "zip",
];

/// Files of a directory that describe the data.
fn is_harmless(name: &str) -> bool {
    let lower = name.to_lowercase();
    lower.starts_with("license")
        || ending(Path::new(name)) == "lock"
        || matches!(
            lower.as_str(),
            "readme.md" | "readme.txt" | "dataset_info.json" | "dataset_infos.json" | "state.json"
        )
}

/// The files that a user's words stand for.
///
/// * The name of a file, also one with brackets in it, is that file.
/// * A directory stands for the data files in it, not for those of its
///   subdirectories: files with one of [`ENDINGS`], but for hidden ones,
///   `README.md`, `LICENSE*`, `*.lock`, `dataset_info.json` and `state.json`.
/// * A pattern has `*`, `?`, `[…]` or `{…,…}` within a name, and `**` for any
///   directories. Hidden files and those named above match only where the
///   pattern names them.
///
/// Sorted by name, each once.
///
/// # Errors
///
/// Nothing is there; or a directory holds no data files, some that are not read,
/// or those of several splits, of which a user means one.
pub fn find(what: &str) -> Result<Vec<PathBuf>, RecordsError> {
    let path = Path::new(what);
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => directory(path),
        Ok(_) => Ok(vec![path.to_owned()]),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && is_pattern(what) => {
            pattern(what)
        }
        Err(source) => Err(RecordsError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn is_pattern(what: &str) -> bool {
    what.contains(['*', '?', '[', '{'])
}

fn directory(path: &Path) -> Result<Vec<PathBuf>, RecordsError> {
    let unreadable = |source| RecordsError::Read {
        path: path.to_owned(),
        source,
    };
    let refuse = |problem| {
        Err(RecordsError::Directory {
            path: path.to_owned(),
            problem,
        })
    };
    let (mut files, mut refused, mut directories) = (Vec::new(), Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || is_harmless(&name) {
            continue;
        }
        let path = entry.path();
        // Through links, as which the hub's cache keeps files.
        let is_dir = std::fs::metadata(&path).map_err(unreadable)?.is_dir();
        let ending = ending(&path);
        if is_dir {
            directories.push(name);
        } else if ENDINGS.contains(&ending.as_str()) {
            files.push(path);
        } else if NOT_READ.contains(&ending.as_str()) {
            refused.push(name);
        }
    }
    files.sort();
    refused.sort();
    directories.sort();

    if refused
        .iter()
        .any(|name| ending(Path::new(name)) == "arrow")
        && files.is_empty()
    {
        return refuse(
            "it holds Arrow files, as `datasets` saves them, which are not read: write them with \
             load_from_disk(…).to_parquet(\"train.parquet\")"
                .to_owned(),
        );
    }
    if !refused.is_empty() {
        return refuse(format!(
            "it holds files that are not read: {}. Name the files that are meant, or a pattern such as `{}`",
            some(&refused),
            path.join("*.jsonl").display()
        ));
    }
    if files.is_empty() {
        let inside = if directories.is_empty() {
            String::new()
        } else {
            format!(
                ". Its directories {} are not looked into: name one of them, or a pattern such as `{}`",
                some(&directories),
                path.join("**/*.parquet").display()
            )
        };
        return refuse(format!(
            "no data file is in it: these end in {} (text also with .gz or .zst after it){inside}",
            ENDINGS.map(|ending| format!(".{ending}")).join(", ")
        ));
    }
    let mut splits: Vec<_> = files.iter().filter_map(|file| split(file)).collect();
    splits.sort_unstable();
    splits.dedup();
    if splits.len() > 1 {
        return refuse(format!(
            "it holds files of several splits ({}), and training on all of them would train on what is for testing: \
             name the files that are meant, or a pattern such as `{}`",
            splits.join(", "),
            path.join("train*").display()
        ));
    }
    Ok(files)
}

/// The first of some names.
fn some(names: &[String]) -> String {
    const MOST: usize = 5;
    let shown = quoted(names.iter().take(MOST).map(String::as_str));
    match names.len().saturating_sub(MOST) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Which split a file's name says that it is of.
fn split(file: &Path) -> Option<&'static str> {
    let name = file.file_name()?.to_string_lossy().to_lowercase();
    let mut words = name.split(|c: char| !c.is_alphanumeric());
    words.find_map(|word| match word {
        "train" | "training" => Some("train"),
        "valid" | "validation" | "val" | "dev" | "eval" => Some("validation"),
        "test" | "testing" => Some("test"),
        _ => None,
    })
}

fn pattern(what: &str) -> Result<Vec<PathBuf>, RecordsError> {
    let none = |problem: String| RecordsError::NotFound {
        what: what.to_owned(),
        problem,
    };
    // The part without special characters is walked from; the rest is matched.
    let (mut base, mut rest) = (PathBuf::new(), Vec::new());
    for component in Path::new(what).components() {
        let text = component.as_os_str().to_string_lossy();
        let plain = !matches!(component, Component::Normal(_)) || !is_pattern(&text);
        if rest.is_empty() && plain {
            base.push(component);
        } else {
            rest.push(text.into_owned());
        }
    }
    let last = rest.last().cloned().unwrap_or_default();
    let glob = GlobBuilder::new(&rest.join("/"))
        .literal_separator(true)
        .build();
    let glob = glob.map_err(|error| none(format!("not a pattern: {}", error.kind())))?;
    let matcher = glob.compile_matcher();

    let start = if base.as_os_str().is_empty() {
        Path::new(".")
    } else {
        &base
    };
    if !start.is_dir() {
        return Err(none(format!(
            "no file matches: there is no directory {}",
            start.display()
        )));
    }
    // A pattern without `**` says how deep it goes.
    let depth = if rest.iter().any(|part| part.contains("**")) {
        usize::MAX
    } else {
        rest.len()
    };
    let hidden_asked = rest.iter().any(|part| part.starts_with('.'));
    let walk = WalkDir::new(start)
        .follow_links(true)
        .max_depth(depth)
        .into_iter()
        .filter_entry(|entry| {
            let name = entry.file_name().to_string_lossy();
            entry.depth() == 0 || hidden_asked || !name.starts_with('.')
        });
    let mut files = Vec::new();
    for entry in walk {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(start).to_owned();
            let text = error.to_string();
            let source = error
                .into_io_error()
                .unwrap_or_else(|| std::io::Error::other(text));
            RecordsError::Read { path, source }
        })?;
        let name = entry.file_name().to_string_lossy();
        let relative = entry.path().strip_prefix(start).unwrap_or(entry.path());
        if entry.file_type().is_file()
            && matcher.is_match(relative)
            && (last == name || !is_harmless(&name))
        {
            files.push(base.join(relative));
        }
    }
    files.sort();
    if files.is_empty() {
        let rest = rest.join("/");
        return Err(none(format!(
            "no file matches: nothing like `{rest}` is in {}",
            start.display()
        )));
    }
    Ok(files)
}
