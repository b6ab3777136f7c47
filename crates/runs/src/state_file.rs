//! `state.json` of a checkpoint: where the run stands, and hashes by which what
//! a disk has changed is found.
//!
//! ```text
//! { …the state…,
//!   "files": {"trained.bpk": "<SHA-256>", "optimizer.bpk": "<SHA-256>"},
//!   "sha256": "<of all above, as JSON without white space>" }
//! ```
//!
//! Numbers with a fraction are written as text. A reader of JSON may give
//! another last digit (`serde_json` does, unless all of a program pays for its
//! exact parser), and a resumed run is to log what it would have logged.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::state::RunState;

const FILES: &str = "files";
const OWN: &str = "sha256";

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("state.json is damaged: {0}")]
    Malformed(String),
    #[error("{name}: {source}")]
    Unreadable { name: String, source: io::Error },
    #[error("{name} is damaged: it is not what was written")]
    Changed { name: String },
}

impl StateError {
    /// Whether this process may not read a file that is there.
    pub(crate) fn is_forbidden(&self) -> bool {
        let kind = match self {
            Self::Unreadable { source, .. } => source.kind(),
            _ => return false,
        };
        kind == io::ErrorKind::PermissionDenied
    }
}

impl From<StateError> for io::Error {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Unreadable { source, .. } => source,
            other => Self::other(other),
        }
    }
}

/// The text of `state.json` beside files of these names, which are in
/// `directory` already.
pub(crate) fn write(state: &RunState, directory: &Path, names: &[&str]) -> io::Result<Vec<u8>> {
    let mut json = serde_json::to_value(state)?;
    numbers_to_text(&mut json);
    let mut files = Map::new();
    for &name in names {
        files.insert(name.to_owned(), hash_file(&directory.join(name))?.into());
    }
    json[FILES] = files.into();
    let own = hash(&serde_json::to_vec(&json)?);
    json[OWN] = own.into();
    Ok(serde_json::to_vec_pretty(&json)?)
}

/// Reads it back, and compares the files beside it with their hashes. Returns
/// whether there were any: earlier versions wrote none.
pub(crate) fn read(bytes: &[u8], directory: &Path) -> Result<(RunState, bool), StateError> {
    let malformed = |reason: &dyn std::fmt::Display| StateError::Malformed(reason.to_string());
    let mut json: Value = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
    let object = json
        .as_object_mut()
        .ok_or_else(|| malformed(&"it is no object"))?;
    let own = object.remove(OWN);
    let is_checked = own.is_some() || object.contains_key(FILES);
    if is_checked {
        let found = serde_json::to_vec(&*object).map_err(|error| malformed(&error))?;
        if own != Some(hash(&found).into()) {
            return Err(malformed(&"it is not what was written"));
        }
        let files = object.remove(FILES);
        for (name, expected) in files.iter().filter_map(Value::as_object).flatten() {
            let found = hash_file(&directory.join(name)).map_err(|source| {
                let name = name.clone();
                StateError::Unreadable { name, source }
            })?;
            if *expected != found {
                return Err(StateError::Changed { name: name.clone() });
            }
        }
        text_to_numbers(&mut json);
    }
    let state = serde_json::from_value(json).map_err(|error| malformed(&error))?;
    Ok((state, is_checked))
}

/// Writes every number with a fraction as the shortest text that is read as it.
fn numbers_to_text(json: &mut Value) {
    match json {
        Value::Number(number) if number.is_f64() => {
            if let Some(number) = number.as_f64() {
                *json = format!("{number:?}").into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(numbers_to_text),
        Value::Object(values) => values.values_mut().for_each(numbers_to_text),
        _ => {}
    }
}

fn text_to_numbers(json: &mut Value) {
    match json {
        Value::String(text) => {
            if let Ok(number) = text.parse::<f64>() {
                *json = number.into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(text_to_numbers),
        Value::Object(values) => values.values_mut().for_each(text_to_numbers),
        _ => {}
    }
}

fn hash(bytes: &[u8]) -> String {
    printed(Sha256::new_with_prefix(bytes))
}

fn hash_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(printed(hash)),
            Ok(n) => hash.update(&buffer[..n]),
            // A signal came, as the one that asks for a checkpoint.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn printed(hash: Sha256) -> String {
    use std::fmt::Write;
    let bytes = hash.finalize();
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::state::Window;

    /// Numbers of which the usual parser of JSON gets the last digit wrong.
    fn awkward() -> Vec<f64> {
        let mut word = 42_u64;
        let mut numbers = Vec::new();
        while numbers.len() < 50 {
            word = word
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Of 17 digits: fewer are read exactly.
            let number = (word >> 11) as f64 / (1_u64 << 53) as f64 * 7.3;
            let read: f64 = serde_json::from_str(&format!("{number:?}")).unwrap();
            if read != number {
                numbers.push(number);
            }
        }
        numbers
    }

    fn state() -> RunState {
        let numbers = awkward();
        RunState {
            step: 7,
            seconds: numbers[0],
            validation: numbers[3..].iter().map(|&loss| (4, loss)).collect(),
            window: Window {
                loss_sum: numbers[1],
                n_trained: 12.0,
                measures: [("accuracy".to_owned(), numbers[2])].into(),
                ..Window::default()
            },
            last_loss: Some(1e300),
            fingerprint: u64::MAX - 1,
            ..RunState::default()
        }
    }

    fn written() -> (tempfile::TempDir, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "Alder").unwrap();
        fs::write(directory.path().join("b"), "Oxmere").unwrap();
        let bytes = write(&state(), directory.path(), &["a", "b"]).unwrap();
        (directory, bytes)
    }

    #[test]
    fn every_number_comes_back_as_it_was() {
        let (directory, bytes) = written();
        let (read, is_checked) = read(&bytes, directory.path()).unwrap();
        assert_eq!(read, state());
        assert!(is_checked);
    }

    #[test]
    fn the_hash_is_the_one_that_other_tools_print() {
        let (_directory, bytes) = written();
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        // printf Alder | sha256sum
        assert_eq!(
            json["files"]["a"],
            "12c89d7c77e391f705d92fea3f3ba9455952a74a0dbd443be17887d7e2363069"
        );
    }

    #[test]
    fn a_bit_that_flips_in_a_file_is_found_by_its_name() {
        let (directory, bytes) = written();
        fs::write(directory.path().join("b"), "Oxmerd").unwrap();
        let error = read(&bytes, directory.path()).unwrap_err().to_string();
        assert_eq!(error, "b is damaged: it is not what was written");
        fs::remove_file(directory.path().join("b")).unwrap();
        let error = read(&bytes, directory.path()).unwrap_err().to_string();
        assert!(error.starts_with("b: "), "{error}");
    }

    #[test]
    fn no_bit_of_the_state_can_flip_and_change_it() {
        let (directory, bytes) = written();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                if let Ok((read, is_checked)) = read(&flipped, directory.path()) {
                    // In white space between values.
                    assert!(is_checked && read == state(), "bit {bit} of byte {at}");
                }
            }
        }
    }

    #[test]
    fn a_state_of_before_the_hashes_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let mut old = serde_json::to_value(state()).unwrap();
        old.as_object_mut().unwrap().remove("last_loss");
        let (read, is_checked) =
            read(&serde_json::to_vec(&old).unwrap(), directory.path()).unwrap();
        assert_eq!((read.step, read.last_loss, is_checked), (7, None, false));
    }
}
