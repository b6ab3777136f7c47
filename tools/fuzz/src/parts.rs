//! Inputs of several files, and directories to put them in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// What stands between the files of an input.
pub const SEPARATOR: &[u8] = b"\n---8<---\n";

/// The files of an input.
pub(crate) fn split(mut data: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some(at) = data
        .windows(SEPARATOR.len())
        .position(|window| window == SEPARATOR)
    {
        parts.push(&data[..at]);
        data = &data[at + SEPARATOR.len()..];
    }
    parts.push(data);
    parts
}

/// A directory of its own, gone with the value; in memory where there is such a
/// place.
pub(crate) fn scratch() -> TempDir {
    let given = std::env::var_os("OLORA_FUZZ_SCRATCH").map(PathBuf::from);
    let memory = PathBuf::from("/dev/shm");
    let place = given
        .or_else(|| memory.is_dir().then_some(memory))
        .unwrap_or_else(std::env::temp_dir);
    tempfile::Builder::new()
        .prefix("olora-fuzz-")
        .tempdir_in(place)
        .expect("a place for files")
}

/// Writes a file, with the directories that it lies in.
pub(crate) fn put(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).expect("a place for files");
    }
    fs::write(&path, bytes).expect("a place for files");
    path
}

/// Every path below a directory, for comparing what was there before and after.
pub(crate) fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// The same twice: what differs between two readings of one input is a finding.
#[track_caller]
pub(crate) fn twice<T, E: ToString>(
    what: &str,
    read: impl Fn() -> Result<T, E>,
    same: impl Fn(&T, &T) -> bool,
) -> Result<T, String> {
    let (first, second) = both(what, read, same);
    if let (Err(one), Some(other)) = (&first, &second) {
        assert_eq!(one, other, "{what} is refused in other words twice");
    }
    first
}

/// [`twice`] of what names the first of several faults that it finds, by the order of a hash map:
/// the `safetensors` crate does.
#[track_caller]
pub(crate) fn twice_in_any_words<T, E: ToString>(
    what: &str,
    read: impl Fn() -> Result<T, E>,
    same: impl Fn(&T, &T) -> bool,
) -> Result<T, String> {
    both(what, read, same).0
}

#[track_caller]
fn both<T, E: ToString>(
    what: &str,
    read: impl Fn() -> Result<T, E>,
    same: impl Fn(&T, &T) -> bool,
) -> (Result<T, String>, Option<String>) {
    let first = read().map_err(|error| error.to_string());
    let second = read().map_err(|error| error.to_string());
    match (&first, second) {
        (Ok(one), Ok(other)) => {
            assert!(same(one, &other), "{what} is read as another thing twice");
            (first, None)
        }
        (Err(one), Err(other)) => {
            // What a user sees must say something.
            assert!(!one.trim().is_empty(), "{what} is refused without a word");
            (first, Some(other))
        }
        _ => panic!("{what} is read once and refused once"),
    }
}
