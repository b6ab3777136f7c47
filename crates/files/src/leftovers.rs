//! What killed processes have left: files and directories that were being
//! written, under names of their own.
//!
//! Their names hold that of the place that they were for, and whoever writes
//! one has it locked. So the next that writes to the same place can tell what
//! is left from what is being written. What is not locked is removed by whoever
//! has locked it himself; so a writer looks, once it has the lock, whether what
//! it has begun is still there, and else begins again.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    path::Path,
};

use tempfile::{Builder, NamedTempFile, TempDir};

use crate::{atomic::parent, lock::is_at};

/// What names of files and directories that are being written begin with.
const STAGED: &str = ".staged-";
/// What files were called by earlier versions: this and six more characters.
const TEMPORARY: &str = ".tmp";
/// How many random characters end a name.
const RANDOM: usize = 6;
/// Longer names of places are not repeated: names are limited to 255 bytes.
const LONGEST: usize = 200;
/// The file in a staged directory that is locked while it is written.
const LOCK: &str = "lock";
/// What the random characters are of a directory that is removed.
const REMOVED: &str = "remove";
/// How often what was begun may be cleared away before it is locked.
const TRIES: usize = 100;

/// What names of what is written for `name` begin with.
fn prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(STAGED);
    if name.len() <= LONGEST {
        prefix.push(name);
        prefix.push("-");
    }
    prefix
}

/// Makes something with a name for what is written for `place`, until nobody has
/// cleared it away before it was locked.
fn begin<R, L>(
    place: &Path,
    make: impl Fn(&Builder<'_, '_>, &Path) -> io::Result<R>,
    lock: impl Fn(&R) -> io::Result<Option<L>>,
) -> io::Result<(R, L)> {
    let prefix = prefix(place.file_name().unwrap_or_default());
    let mut builder = Builder::new();
    builder.prefix(&prefix).rand_bytes(RANDOM);
    for _ in 0..TRIES {
        let made = make(&builder, parent(place))?;
        if let Some(lock) = lock(&made)? {
            return Ok((made, lock));
        }
    }
    let what = format!("what is written for {} keeps vanishing", place.display());
    Err(io::Error::other(what))
}

/// Begins a file for `place`, locked.
pub(crate) fn file(place: &Path) -> io::Result<NamedTempFile> {
    let (file, ()) = begin(
        place,
        |builder, parent| builder.tempfile_in(parent),
        |file| {
            lock(file.as_file());
            Ok(is_at(file.as_file(), file.path())?.then_some(()))
        },
    )?;
    Ok(file)
}

/// Begins a directory for `place`, with a locked file in it.
pub(crate) fn directory(place: &Path) -> io::Result<(TempDir, File)> {
    begin(
        place,
        |builder, parent| builder.tempdir_in(parent),
        |directory| {
            let path = directory.path().join(LOCK);
            match File::create_new(&path) {
                Ok(file) => {
                    lock(&file);
                    Ok(is_at(&file, &path)?.then_some(file))
                }
                // Whoever clears it away has come first.
                Err(error) if cleared(&error) => Ok(None),
                Err(error) => Err(error),
            }
        },
    )
}

fn cleared(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound
    )
}

/// Locks a file for as long as it is written, where files can be locked.
fn lock(file: &File) {
    // Elsewhere a locked file cannot be renamed by everyone, and nothing is cleared away.
    if cfg!(unix) {
        // Whoever has it locked to clear it away lets go soon.
        let _ = file.lock();
    }
}

/// Removes what killed processes were writing for `place`, a file or a
/// directory; what is being written stays. What cannot be read or removed stays
/// too: it is in nobody's way.
///
/// [`StagedDirectory`](crate::StagedDirectory) and
/// [`AtomicFile`](crate::AtomicFile) begin with it. It is for whoever refuses a
/// place before they are made.
pub fn clear_leftovers(place: &Path) {
    let Some(name) = place.file_name().filter(|name| name.len() <= LONGEST) else {
        return;
    };
    let prefix = prefix(name);
    let Ok(entries) = fs::read_dir(parent(place)) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let random = name
            .as_encoded_bytes()
            .strip_prefix(prefix.as_encoded_bytes());
        if random.is_some_and(is_random) {
            // Locked while it is removed, so that a process which has just begun it takes notice.
            if let Ok(Some(_lock)) = taken(&entry.path()) {
                let _ = remove(&entry.path());
            }
        }
    }
}

fn is_random(bytes: &[u8]) -> bool {
    bytes.len() == RANDOM && bytes.iter().all(u8::is_ascii_alphanumeric)
}

/// The lock of what was written at `path`, if its writer does not have it.
fn taken(path: &Path) -> io::Result<Option<File>> {
    if !cfg!(unix) {
        return Ok(None);
    }
    let kind = path.symlink_metadata()?.file_type();
    let (file, path) = if kind.is_dir() {
        // Its writer may have been killed before it made the lock, or after it had removed it.
        let path = path.join(LOCK);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        (options.open(&path)?, path)
    } else if kind.is_file() {
        (File::open(path)?, path.to_owned())
    } else {
        return Ok(None);
    };
    Ok((file.try_lock().is_ok() && is_at(&file, &path)?).then_some(file))
}

fn remove(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

/// Removes a directory with all that is in it: renamed first, so that there is
/// never a part of it under its name. What is left of it if this process is
/// killed, [`remove_leftovers`] and [`clear_leftovers`] remove.
///
/// # Errors
///
/// When it cannot be renamed, or something in it not be removed.
pub fn remove_directory(path: &Path) -> io::Result<()> {
    let mut aside = prefix(path.file_name().unwrap_or_default());
    aside.push(REMOVED);
    let aside = parent(path).join(aside);
    if aside.symlink_metadata().is_ok() {
        remove(&aside)?;
    }
    fs::rename(path, &aside)?;
    fs::remove_dir_all(&aside)
}

/// Removes all that killed processes were writing in `directory`, for whatever
/// place in it. Only for whoever knows that no other process is writing there:
/// what that one has begun would go too.
///
/// # Errors
///
/// When the directory cannot be read or a leftover not be removed.
pub fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let is_temporary = || {
            name.strip_prefix(TEMPORARY.as_bytes())
                .is_some_and(is_random)
        };
        if name.starts_with(STAGED.as_bytes()) || is_temporary() {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AtomicFile, StagedDirectory, write_atomically};

    /// Every name in a directory, sorted.
    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// As a killed process leaves it: nothing is dropped, but the lock is gone.
    fn dead_directory(place: &Path) {
        let directory = parent(place).join(format!(
            ".staged-{}-dEad12",
            place.file_name().unwrap().display()
        ));
        fs::create_dir_all(directory.join("inner")).unwrap();
        fs::write(directory.join("inner/weights"), [1; 100]).unwrap();
        fs::write(directory.join(LOCK), "").unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn the_next_writer_of_a_place_removes_what_was_left_for_it_alone() {
        let parent = tempfile::tempdir().unwrap();
        let (merged, other) = (parent.path().join("merged"), parent.path().join("merged-b"));
        dead_directory(&merged);
        dead_directory(&other);
        fs::write(parent.path().join(".staged-merged-dead34"), "half").unwrap();
        fs::write(parent.path().join(".staged-notes"), "not ours").unwrap();
        drop(StagedDirectory::new(&merged).unwrap());
        assert_eq!(
            names(parent.path()),
            [".staged-merged-b-dEad12", ".staged-notes"]
        );
        write_atomically(&other, |file| file.write_all(b"whole")).unwrap();
        assert_eq!(names(parent.path()), [".staged-notes", "merged-b"]);
    }

    #[test]
    #[cfg(unix)]
    fn what_is_being_written_stays() {
        let parent = tempfile::tempdir().unwrap();
        let (model, file) = (
            parent.path().join("model"),
            parent.path().join("model.gguf"),
        );
        let first = StagedDirectory::new(&model).unwrap();
        fs::write(first.path().join("weights"), "all").unwrap();
        let mut second = AtomicFile::create(&file).unwrap();
        io::Write::write_all(&mut second, &vec![1; 1 << 20]).unwrap();
        assert_eq!(names(parent.path()).len(), 2);
        clear_leftovers(&model);
        clear_leftovers(&file);
        assert_eq!(names(parent.path()).len(), 2);
        second.commit().unwrap();
        first.commit().unwrap();
        assert_eq!(names(parent.path()), ["model", "model.gguf"]);
    }

    /// As processes leave it that were killed between the making and the lock, or while they removed it.
    #[test]
    #[cfg(unix)]
    fn what_is_not_locked_goes_at_once() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir(parent.path().join(".staged-model-begun1")).unwrap();
        fs::write(parent.path().join(".staged-model-begun2"), "").unwrap();
        clear_leftovers(&parent.path().join("model"));
        assert!(names(parent.path()).is_empty());
    }

    #[test]
    #[cfg(unix)]
    fn what_is_cleared_away_before_it_is_locked_is_begun_again() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("model");
        let tries = std::cell::Cell::new(0);
        let (directory, ()) = begin(
            &place,
            |builder, parent| builder.tempdir_in(parent),
            |directory| {
                tries.set(tries.get() + 1);
                if tries.get() == 1 {
                    clear_leftovers(&place);
                }
                Ok(directory.path().exists().then_some(()))
            },
        )
        .unwrap();
        assert_eq!((tries.get(), directory.path().exists()), (2, true));
    }

    /// They begin and clear away what they have not begun, all at the same time.
    #[test]
    #[cfg(unix)]
    fn many_writers_of_one_place_do_not_take_each_others() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("model");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let staged = StagedDirectory::new(&place).unwrap();
                        fs::write(staged.path().join("weights"), "all").unwrap();
                        write_atomically(&place.with_extension("gguf"), |file| {
                            file.write_all(b"whole")
                        })
                        .unwrap();
                        assert!(staged.path().join("weights").exists());
                    }
                });
            }
        });
        assert_eq!(names(parent.path()), ["model.gguf"]);
    }

    #[test]
    fn a_directory_that_is_removed_is_never_a_part_of_itself() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("step-000002");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("state.json"), "{}").unwrap();
        // What a killed process has left of another in its place.
        let aside = parent.path().join(".staged-step-000002-remove");
        fs::create_dir(&aside).unwrap();
        fs::write(aside.join("trained.bpk"), "half").unwrap();
        remove_directory(&place).unwrap();
        assert!(names(parent.path()).is_empty());
        fs::create_dir(&aside).unwrap();
        remove_leftovers(parent.path()).unwrap();
        assert!(names(parent.path()).is_empty());
    }

    #[test]
    fn the_owner_of_a_directory_removes_all_of_it() {
        let parent = tempfile::tempdir().unwrap();
        dead_directory(&parent.path().join("step-000002"));
        for name in [".staged-old", ".tmpAb12Cd", ".staged-card-Ab12Cd"] {
            fs::write(parent.path().join(name), "half").unwrap();
        }
        for name in [".tmp", ".tmpfiles-of-mine", "place"] {
            fs::write(parent.path().join(name), "whole").unwrap();
        }
        remove_leftovers(parent.path()).unwrap();
        assert_eq!(names(parent.path()), [".tmp", ".tmpfiles-of-mine", "place"]);
    }

    #[test]
    fn a_name_as_long_as_names_can_be_is_written() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("n".repeat(240));
        write_atomically(&place, |file| file.write_all(b"whole")).unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"whole");
    }
}
