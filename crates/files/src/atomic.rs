//! Writing files so that they are either there whole or not at all.

use std::{
    fs, io,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::leftovers;

/// Enough that a file which is written number by number costs few calls of the
/// system.
const BUFFER: usize = 256 << 10;

/// A file that appears at its path when it is complete.
///
/// Until [`commit`](Self::commit) it is a temporary file in the same directory.
/// Dropped without it, after an error, the temporary file is gone and what was
/// at the path before is still there. That of a killed process is removed by
/// the next that writes to the path. Writes are buffered.
#[derive(Debug)]
pub struct AtomicFile {
    output: BufWriter<NamedTempFile>,
    path: PathBuf,
}

impl AtomicFile {
    /// Begins the file that is to be at `path`, in a directory that is made
    /// where it is missing.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made or not be written to.
    pub fn create(path: &Path) -> io::Result<Self> {
        let directory = parent(path);
        fs::create_dir_all(directory)?;
        leftovers::clear_leftovers(path);
        let file = leftovers::file(path)?;
        Ok(Self {
            output: BufWriter::with_capacity(BUFFER, file),
            path: path.to_owned(),
        })
    }

    /// Syncs the file to disk and gives it its name, in the place of whatever
    /// file has that name.
    ///
    /// # Errors
    ///
    /// When the rest cannot be written (a full disk, often), or the path is a
    /// directory.
    pub fn commit(self) -> io::Result<()> {
        let file = self
            .output
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        make_readable(file.as_file())?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Writes `path` through a temporary file in the same directory: written,
/// synced to disk, then renamed. On any error, a full disk included, what was
/// at `path` before is still there and the temporary file is gone.
///
/// # Errors
///
/// Those of `write`, and those of [`AtomicFile`].
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    write(&mut file)?;
    file.commit()
}

/// Makes a result readable for everyone whom its directory lets in; temporary
/// files are made for their owner alone.
///
/// # Errors
///
/// When the file system refuses.
#[cfg(unix)]
pub fn make_readable(file: &fs::File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

/// Makes a result readable for everyone whom its directory lets in.
///
/// # Errors
///
/// None: here files are not made for their owner alone.
#[cfg(not(unix))]
pub fn make_readable(_file: &fs::File) -> io::Result<()> {
    Ok(())
}

/// The directory that a path lies in, also of a path that is a name alone.
pub(crate) fn parent(path: &Path) -> &Path {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or_else(|| Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write_atomically(&path, |file| file.write_all(b"old")).unwrap();
        let error = write_atomically(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_appears_with_its_commit_in_a_directory_that_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/when needed");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"all of it").unwrap();
        assert!(!path.exists());
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"all of it");
    }

    #[test]
    #[cfg(unix)]
    fn others_may_read_the_result() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write_atomically(&path, |_| Ok(())).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }
}
