//! TensorBoard's event files.

mod event;
mod record;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicUsize, Ordering},
};

use prost::Message;

use self::{
    event::{Event, What},
    record::framed,
};
use crate::clock::now;

/// How the names of all event files begin; the second that the file was begun
/// in follows.
const PREFIX: &str = "events.out.tfevents.";

/// Event files that this process has begun: no two have one name.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

/// An event file that is being written.
///
/// Every event is handed to the system as soon as it is there. A process that
/// is killed leaves at most one event cut off, which readers stop at; a disk
/// that is full leaves none, since what was written of it is taken back.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    path: PathBuf,
    /// Bytes of the events that are there whole.
    whole: u64,
    /// Whether there may be a part of another after them.
    torn: bool,
}

impl EventFile {
    /// Begins a file in a directory, which is made where it is missing.
    ///
    /// Where there are event files already, the new one is read after them, and
    /// takes back what they say of `next_step` and later steps: those will be
    /// written again.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn begin(directory: &Path, next_step: u64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let newest = newest(directory)?;
        // Readers take files by name. Two within a second would be in the order of their processes' numbers.
        let second = newest.map_or(0, |newest| newest + 1).max(now().as_secs());
        let path = directory.join(format!(
            "{PREFIX}{second:010}.{}.{}.{}",
            host(),
            process::id(),
            BEGUN.fetch_add(1, Ordering::Relaxed)
        ));
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(&path)?;
        let mut begun = Self {
            file,
            path,
            whole: 0,
            torn: false,
        };
        begun.append(0, What::version())?;
        if newest.is_some() {
            begun.append(next_step, What::start())?;
        }
        Ok(begun)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes values of one step by their tags. They are rounded to 32 bits,
    /// as TensorBoard has them.
    ///
    /// # Errors
    ///
    /// Those of the file system. The values are then not there, and later ones
    /// can be.
    pub fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> io::Result<()> {
        self.append(step, What::scalars(values))
    }

    /// Writes a text in Markdown under a tag.
    ///
    /// # Errors
    ///
    /// As for [`scalars`](Self::scalars).
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> io::Result<()> {
        self.append(step, What::text(tag, text))
    }

    fn append(&mut self, step: u64, what: What) -> io::Result<()> {
        let event = Event {
            wall_time: now().as_secs_f64(),
            step: step as i64,
            what: Some(what),
        };
        let frame = framed(&event.encode_to_vec());
        if self.torn {
            // Behind a part of an event, no reader would find the next one.
            self.file.set_len(self.whole)?;
            self.torn = false;
        }
        if let Err(error) = self.file.write_all(&frame) {
            self.torn = self.file.set_len(self.whole).is_err();
            return Err(error);
        }
        self.whole += frame.len() as u64;
        Ok(())
    }
}

/// The second in the name of the newest event file of a directory.
fn newest(directory: &Path) -> io::Result<Option<u64>> {
    let mut newest = None;
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let second = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('.').next())
            .and_then(|second| second.parse().ok());
        newest = newest.max(second);
    }
    Ok(newest)
}

/// The machine's name, as a part of a file's.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| fs::read_to_string("/etc/hostname"))
        .unwrap_or_default();
    let name: String = name
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(64)
        .collect();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_written_whole_is_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = EventFile::begin(directory.path(), 0).unwrap();
        file.scalars(1, &[("a".to_owned(), 1.0)]).unwrap();
        let whole = fs::read(file.path()).unwrap();
        // As a full disk leaves it: some bytes of an event, which could not be taken back at once.
        file.file.write_all(&[1, 2, 3]).unwrap();
        file.torn = true;
        file.scalars(2, &[("a".to_owned(), 2.0)]).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        assert!(bytes.starts_with(&whole), "the events before have changed");
        let next = &bytes[whole.len()..];
        let length = u64::from_le_bytes(next[..8].try_into().unwrap());
        assert_eq!(next.len() as u64, length + 16);
    }
}
