//! Directories that are either there whole or not at all.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{atomic::parent, leftovers};

/// What a directory is called while another takes its place, before its name.
const ASIDE: &str = ".replaced-";

/// A directory that appears at its place when it is complete.
///
/// It is written at [`path`](Self::path), below a temporary directory beside
/// its place, so that it is on the same disk. [`commit`](Self::commit) or
/// [`replace`](Self::replace) sync every file in it and rename it. Dropped
/// without either, after an error, it is gone and its place is as it was.
///
/// One process at a time may write to a place. A killed one leaves what it had
/// staged, which the next that writes to the place removes.
#[derive(Debug)]
pub struct StagedDirectory {
    /// Removed with everything in it when it is dropped.
    temporary: TempDir,
    /// Locked, so that others see that it is being written.
    _lock: File,
    staged: PathBuf,
    place: PathBuf,
}

impl StagedDirectory {
    /// Makes an empty directory that is to be at `place`, and the directory
    /// that `place` lies in.
    ///
    /// If a process was killed in the middle of [`replace`](Self::replace), the
    /// old directory is put back first. What a killed process had written for
    /// the place is removed.
    ///
    /// # Errors
    ///
    /// When the directory that `place` lies in cannot be written to, or `place`
    /// has no name of its own, such as `..`.
    pub fn new(place: &Path) -> io::Result<Self> {
        let name = name(place)?;
        let parent = parent(place);
        fs::create_dir_all(parent)?;
        put_back(place)?;
        leftovers::clear_leftovers(place);
        let (temporary, lock) = leftovers::directory(place)?;
        // One level further down, with the permissions that directories usually
        // get: the temporary one is for its owner alone.
        let staged = temporary.path().join(name);
        fs::create_dir(&staged)?;
        Ok(Self {
            temporary,
            _lock: lock,
            staged,
            place: place.to_owned(),
        })
    }

    /// Where to write the directory's files.
    pub fn path(&self) -> &Path {
        &self.staged
    }

    /// Where the directory will be.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Syncs everything to disk and puts the directory at its place, where there
    /// must be nothing, or an empty directory.
    ///
    /// # Errors
    ///
    /// When something else is there, which stays as it is, or the disk refuses.
    pub fn commit(self) -> io::Result<()> {
        sync(&self.staged)?;
        fs::rename(&self.staged, &self.place)?;
        self.temporary.close()
    }

    /// As [`commit`](Self::commit), but what is at the place goes: it is renamed
    /// aside, the new directory takes its place, and then it is removed.
    ///
    /// # Errors
    ///
    /// When the place is taken by something that is no directory, or the disk
    /// refuses. If only removing the old directory fails, the new one is at its
    /// place all the same.
    pub fn replace(self) -> io::Result<()> {
        let there = self.place.symlink_metadata().is_ok();
        if there && !self.place.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                format!("{} is no directory", self.place.display()),
            ));
        }
        sync(&self.staged)?;
        if there {
            swap(&self.staged, &self.place)?;
        } else {
            fs::rename(&self.staged, &self.place)?;
        }
        self.temporary.close()
    }
}

/// Puts `new` in the place of the directory there, which goes, or stays if that
/// fails.
fn swap(new: &Path, place: &Path) -> io::Result<()> {
    let aside = aside(place)?;
    fs::rename(place, &aside)?;
    if let Err(error) = fs::rename(new, place) {
        fs::rename(&aside, place)?;
        return Err(error);
    }
    fs::remove_dir_all(&aside)
}

/// After a process that was killed while it replaced a directory: the old one
/// comes back if there is nothing at its place, and goes if there is.
fn put_back(place: &Path) -> io::Result<()> {
    let aside = aside(place)?;
    if aside.symlink_metadata().is_err() {
        return Ok(());
    }
    // Nothing, or an empty directory: the old one is all that there is.
    let is_free =
        fs::read_dir(place).map_or(!place.exists(), |mut entries| entries.next().is_none());
    if is_free {
        fs::rename(&aside, place)
    } else {
        fs::remove_dir_all(&aside)
    }
}

fn aside(place: &Path) -> io::Result<PathBuf> {
    let mut aside = OsString::from(ASIDE);
    aside.push(name(place)?);
    Ok(parent(place).join(aside))
}

fn name(place: &Path) -> io::Result<&OsStr> {
    place.file_name().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{} has no name that a directory could be given",
                place.display()
            ),
        )
    })
}

/// Syncs every file below `directory` to disk.
fn sync(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync(&entry.path())?;
        } else if kind.is_file() {
            // Windows syncs only what was opened for writing; elsewhere a file
            // may be one that nobody may write to, as one copied from a cache.
            File::options()
                .read(true)
                .write(cfg!(windows))
                .open(entry.path())?
                .sync_all()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every name in a directory, sorted.
    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn staged(place: &Path, content: &str) -> StagedDirectory {
        let staged = StagedDirectory::new(place).unwrap();
        fs::create_dir(staged.path().join("inner")).unwrap();
        fs::write(staged.path().join("inner/file"), content).unwrap();
        staged
    }

    fn content(place: &Path) -> String {
        fs::read_to_string(place.join("inner/file")).unwrap()
    }

    #[test]
    fn it_appears_with_its_commit_and_nothing_else_is_left() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("made/when needed");
        let staged = staged(&place, "new");
        assert!(!place.exists());
        staged.commit().unwrap();
        assert_eq!(content(&place), "new");
        assert_eq!(names(&parent.path().join("made")), ["when needed"]);
    }

    #[test]
    fn without_a_commit_nothing_is_left_and_the_old_stays() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("place");
        staged(&place, "old").commit().unwrap();
        drop(staged(&place, "half"));
        assert_eq!(content(&place), "old");
        assert_eq!(names(parent.path()), ["place"]);
    }

    #[test]
    fn a_commit_refuses_what_is_there_and_keeps_it() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("place");
        staged(&place, "old").commit().unwrap();
        staged(&place, "new").commit().unwrap_err();
        assert_eq!(content(&place), "old");
        assert_eq!(names(parent.path()), ["place"]);
    }

    #[test]
    fn an_empty_directory_is_no_obstacle() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("place");
        fs::create_dir(&place).unwrap();
        staged(&place, "new").commit().unwrap();
        assert_eq!(content(&place), "new");
    }

    #[test]
    fn replacing_takes_the_place_of_all_that_was_there() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("place");
        staged(&place, "old").replace().unwrap();
        fs::write(place.join("only in the old"), "").unwrap();
        staged(&place, "new").replace().unwrap();
        assert_eq!(content(&place), "new");
        assert_eq!(names(&place), ["inner"]);
        assert_eq!(names(parent.path()), ["place"]);
    }

    #[test]
    fn a_replacement_that_fails_brings_the_old_back() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("place");
        staged(&place, "old").commit().unwrap();
        let new = staged(&place, "new");
        swap(&new.path().join("not there"), &place).unwrap_err();
        drop(new);
        assert_eq!(content(&place), "old");
        assert_eq!(names(parent.path()), ["place"]);
    }

    #[test]
    fn a_file_is_not_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("place");
        fs::write(&place, "a file").unwrap();
        let error = staged(&place, "new").replace().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
        assert_eq!(fs::read(&place).unwrap(), b"a file");
        assert_eq!(names(parent.path()), ["place"]);
    }

    #[test]
    fn the_old_comes_back_after_a_process_was_killed_between_the_renames() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("place");
        staged(&place, "old").commit().unwrap();
        fs::rename(&place, aside(&place).unwrap()).unwrap();
        drop(StagedDirectory::new(&place).unwrap());
        assert_eq!(content(&place), "old");
        assert_eq!(names(parent.path()), ["place"]);
    }

    #[test]
    fn the_old_goes_after_a_process_was_killed_before_it_was_removed() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("place");
        staged(&place, "new").commit().unwrap();
        fs::create_dir(aside(&place).unwrap()).unwrap();
        drop(StagedDirectory::new(&place).unwrap());
        assert_eq!(content(&place), "new");
        assert_eq!(names(parent.path()), ["place"]);
    }

    #[test]
    fn a_place_needs_a_name() {
        let error = StagedDirectory::new(Path::new("..")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    #[cfg(unix)]
    fn others_may_look_into_the_result_as_into_any_directory() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        let (place, usual) = (parent.path().join("place"), parent.path().join("usual"));
        StagedDirectory::new(&place).unwrap().commit().unwrap();
        fs::create_dir(&usual).unwrap();
        assert_eq!(mode(&place), mode(&usual));
    }
}
