//! A directory that was found, and the one way to its files.

use std::{
    fs::{self, Metadata},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use olora_files::read_bounded;
use serde::Serialize;

/// A directory below the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Without links in it.
    root: Arc<Path>,
    path: PathBuf,
}

/// What tells that a file is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) modified: Option<SystemTime>,
    pub(crate) length: u64,
    /// Its device and number, where files have such.
    pub(crate) identity: Option<(u64, u64)>,
}

/// What a file of a directory holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Content<T> {
    /// It is not there.
    Missing,
    /// It cannot be read, or is not what its name says; and why.
    Error(String),
    /// What it holds.
    Value(T),
}

impl<T> Content<T> {
    /// Makes something else of what it holds, unless that fails.
    pub(crate) fn and_then<U>(self, make: impl FnOnce(T) -> Result<U, String>) -> Content<U> {
        match self {
            Self::Missing => Content::Missing,
            Self::Error(reason) => Content::Error(reason),
            Self::Value(value) => match make(value) {
                Ok(value) => Content::Value(value),
                Err(reason) => Content::Error(reason),
            },
        }
    }

    pub(crate) fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            _ => None,
        }
    }
}

impl Stamp {
    pub(crate) fn of(about: &Metadata) -> Self {
        Self {
            modified: about.modified().ok(),
            length: about.len(),
            identity: identity(about),
        }
    }
}

#[cfg(unix)]
#[expect(clippy::unnecessary_wraps, reason = "not every system has them")]
fn identity(about: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((about.dev(), about.ino()))
}

#[cfg(not(unix))]
fn identity(_about: &Metadata) -> Option<(u64, u64)> {
    None
}

impl Place {
    pub(crate) fn new(root: &Arc<Path>, path: PathBuf) -> Self {
        Self {
            root: Arc::clone(root),
            path,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file is and what the system says of it. A link is followed if it
    /// stays below the root: a run that was sent by somebody else must not show
    /// this machine's files.
    pub(crate) fn file(&self, name: &str) -> io::Result<(PathBuf, Metadata)> {
        let refused = |reason: String| Err(io::Error::new(ErrorKind::InvalidData, reason));
        // Any part of it may be a link.
        let path = fs::canonicalize(self.path.join(name))?;
        if !path.starts_with(&self.root) {
            let root = self.root.display();
            return refused(format!("it is a link that leads out of {root}"));
        }
        let about = fs::metadata(&path)?;
        if !about.is_file() {
            return refused("it is no file".to_owned());
        }
        Ok((path, about))
    }

    pub(crate) fn stamp(&self, name: &str) -> Option<Stamp> {
        self.file(name).ok().map(|(_, about)| Stamp::of(&about))
    }

    /// All of a file that has at most so many bytes.
    pub(crate) fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        read_bounded(&self.file(name)?.0, most)
    }

    /// The same as text.
    pub(crate) fn text(&self, name: &str, most: u64) -> Content<String> {
        match self.read(name, most) {
            Err(error) if error.kind() == ErrorKind::NotFound => Content::Missing,
            Err(error) => Content::Error(format!("{name} cannot be read: {error}")),
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Content::Value(text),
                Err(_) => Content::Error(format!("{name} is not UTF-8 text")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_out_is_not_followed() {
        use std::os::unix::fs::symlink;
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "of this machine").unwrap();
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("shared"), "of the runs").unwrap();
        let run = root.path().join("run");
        fs::create_dir(&run).unwrap();
        symlink(outside.path().join("secret"), run.join("summary.json")).unwrap();
        symlink(root.path().join("shared"), run.join("data.json")).unwrap();
        let root: Arc<Path> = fs::canonicalize(root.path()).unwrap().into();
        let place = Place::new(&root, run);
        let Content::Error(reason) = place.text("summary.json", 100) else {
            panic!("it was followed");
        };
        assert!(reason.contains("leads out"), "{reason}");
        let within = Content::Value("of the runs".to_owned());
        assert_eq!(place.text("data.json", 100), within);
        assert_eq!(place.text("recipe.toml", 100), Content::Missing);
    }
}
