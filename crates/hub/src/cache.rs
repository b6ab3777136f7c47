//! One repository in the cache that Python's `huggingface_hub` lays out.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tempfile::Builder;

use crate::{HubError, client::is_commit, name::Target};

/// `models--owner--name` or `datasets--owner--name` in the cache, and its locks.
pub(crate) struct Repository {
    root: PathBuf,
    locks: PathBuf,
}

impl Repository {
    pub(crate) fn new(cache: &Path, target: &Target) -> Self {
        let folder = format!(
            "{}--{}",
            target.kind.plural(),
            target.repository.replace('/', "--")
        );
        Self {
            locks: cache.join(".locks").join(&folder),
            root: cache.join(folder),
        }
    }

    /// The directory that shows the files of a commit under their names.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The directory of the files' contents.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// The contents with this `ETag`, there or not.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.blobs().join(etag)
    }

    /// Opens the file that Python locks, too, while it downloads these contents.
    pub(crate) fn lock_file(&self, etag: &str) -> Result<File, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        fs::create_dir_all(&self.locks)
            .and_then(|()| File::options().create(true).append(true).open(&path))
            .map_err(|source| HubError::io("cannot write", &path, source))
    }

    /// The commit that a revision was when it was last downloaded.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Remembers which commit a revision is.
    pub(crate) fn remember(&self, revision: &str, commit: &str) -> io::Result<()> {
        if self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        self.put(&self.root.join("refs").join(revision), commit.as_bytes())
    }

    /// What a commit consists of, if that was [kept](Self::keep).
    pub(crate) fn inventory(&self, commit: &str) -> Option<Inventory> {
        let text = fs::read(self.inventory_path(commit)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Remembers what a commit consists of. Python knows nothing of it, and removes it with
    /// the repository.
    pub(crate) fn keep(&self, commit: &str, inventory: &Inventory) -> io::Result<()> {
        if self.inventory(commit).as_ref() == Some(inventory) {
            return Ok(());
        }
        // A commit without files here still has a directory: Python takes a reference to one
        // that has none for a damaged cache.
        fs::create_dir_all(self.snapshot(commit))?;
        let text = serde_json::to_vec(inventory)?;
        self.put(&self.inventory_path(commit), &text)
    }

    fn inventory_path(&self, commit: &str) -> PathBuf {
        self.root.join("olora").join(format!("{commit}.json"))
    }

    /// Whether Python has found that a commit has no such file.
    pub(crate) fn is_known_absent(&self, commit: &str, file: &str) -> bool {
        self.root.join(".no_exist").join(commit).join(file).exists()
    }

    /// Writes a small file, whole or not at all.
    fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let directory = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(directory)?;
        // As `File::create` would: temporary files are otherwise for their owner alone.
        let temporary = Builder::new().make_in(directory, |path| File::create_new(path))?;
        fs::write(temporary.path(), bytes)?;
        temporary.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Shows the contents with this `ETag`, which are whole, as a file of a commit.
    pub(crate) fn link(&self, etag: &str, commit: &str, file: &str) -> Result<(), HubError> {
        let pointer = self.snapshot(commit).join(file);
        let failed = |source| HubError::io("cannot write", &pointer, source);
        fs::create_dir_all(pointer.parent().unwrap_or(&self.root)).map_err(failed)?;
        let up = "../".repeat(file.matches('/').count() + 2);
        let target = format!("{up}blobs/{etag}");
        // Renamed into place: what was there, such as a link to nothing, is replaced.
        let linked = Builder::new()
            .make_in(self.blobs(), |path| symlink(Path::new(&target), path))
            .and_then(|link| Ok(link.into_temp_path().persist(&pointer)?));
        match linked {
            Ok(()) => Ok(()),
            // Without symbolic links, the file itself; so does Python.
            Err(_) => fs::rename(self.blob(etag), &pointer).map_err(failed),
        }
    }
}

/// What a commit of a data set consists of. Without it, a snapshot does not show whether
/// files are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inventory {
    /// The paths of all files.
    pub(crate) files: Vec<String>,
    /// Where the data set is made by a program: the commit of the hub's conversion, or an
    /// empty text if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) conversion: Option<String>,
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
