//! Directories that one process at a time works in.

use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    process,
};

use crate::atomic::parent;

/// How often the lock file may vanish under us before that is an error.
const TRIES: usize = 100;

/// Keeps other processes out of a directory, until it is dropped or its process
/// ends, however it ends.
///
/// It is a lock of the system on the file [`NAME`](Self::NAME) in the
/// directory, which says who holds it. The file of a process that was killed
/// means nothing: the lock has gone with its process.
///
/// The directory is made where it is missing. If it is still empty when the
/// lock is dropped, what was made goes again.
#[derive(Debug)]
pub struct DirectoryLock {
    file: File,
    path: PathBuf,
    /// The directories that were made for it, outermost first.
    made: Vec<PathBuf>,
    is_exclusive: bool,
}

/// Who works in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Its process, if it has said so.
    pub pid: Option<u32>,
    /// The machine that it runs on, if that has a name.
    pub host: Option<String>,
}

/// Why a directory could not be locked.
#[derive(Debug)]
pub enum LockError {
    /// Another process works in it.
    Held(Holder),
    /// It cannot be made or written to.
    Io(io::Error),
}

impl DirectoryLock {
    /// The name of the file in the directory.
    pub const NAME: &str = "lock";

    /// Locks `directory`, without waiting.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] if another process, or this one, has it locked.
    pub fn take(directory: &Path) -> Result<Self, LockError> {
        let path = directory.join(Self::NAME);
        let mut made = Vec::new();
        for _ in 0..TRIES {
            make(directory, &mut made)?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let mut file = match options.open(&path) {
                // Whoever held it has just removed the directory that it had made.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            let is_exclusive = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => return Err(LockError::Held(read(&mut file))),
                // Some network file systems have no locks. That is no reason not to work on them.
                Err(TryLockError::Error(error)) if has_no_locks(&error) => false,
                Err(TryLockError::Error(error)) => return Err(error.into()),
            };
            // Whoever held it may have removed it after we had opened it.
            if is_at(&file, &path)? {
                file.set_len(0)?;
                writeln!(file, "{}", Holder::this())?;
                return Ok(Self {
                    file,
                    path,
                    made,
                    is_exclusive,
                });
            }
        }
        Err(io::Error::other(format!("{} keeps vanishing", path.display())).into())
    }

    /// Who has locked `directory`, if anyone has. Nothing is written.
    pub fn holder(directory: &Path) -> Option<Holder> {
        let mut file = File::open(directory.join(Self::NAME)).ok()?;
        let is_held = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        is_held.then(|| read(&mut file))
    }

    /// Whether others are kept out: the file system may have no locks.
    pub fn is_exclusive(&self) -> bool {
        self.is_exclusive
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // While it is locked, so that nobody else's is removed. What fails leaves a file that means
        // nothing, or a directory that is not empty.
        if is_at(&self.file, &self.path).unwrap_or(false) {
            let _ = fs::remove_file(&self.path);
        }
        for made in self.made.iter().rev() {
            let _ = fs::remove_dir(made);
        }
    }
}

impl Holder {
    fn this() -> Self {
        Self {
            pid: Some(process::id()),
            host: host(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}")?,
            None => write!(f, "another process")?,
        }
        match &self.host {
            Some(host) => write!(f, " on {host}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(holder) => write!(f, "{holder} works in it"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LockError {}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Makes a directory, and notes it and those above it that were not there.
fn make(directory: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    match fs::create_dir(directory) {
        Ok(()) => {
            made.push(directory.to_owned());
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(parent(directory), made)?;
            make(directory, made)
        }
        Err(_) if directory.is_dir() => Ok(()),
        // It was there, and has just been removed by whoever had made it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is_taken(directory) => {
            make(directory, made)
        }
        Err(error) => Err(error),
    }
}

fn is_taken(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// What stands in a lock file; nothing, if its process has not come to write it.
fn read(file: &mut File) -> Holder {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        ["process", pid, ..] => Holder {
            pid: pid.parse().ok(),
            host: words.get(3).map(|&host| host.to_owned()),
        },
        _ => Holder::default(),
    }
}

fn host() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| fs::read_to_string("/etc/hostname"))
        .ok()?;
    name.split_whitespace().next().map(str::to_owned)
}

/// The errors of file systems without locks: unsupported, or, on Linux, no
/// locks available (`ENOLCK`).
fn has_no_locks(error: &io::Error) -> bool {
    const ENOLCK: i32 = 37;
    error.kind() == io::ErrorKind::Unsupported
        || cfg!(target_os = "linux") && error.raw_os_error() == Some(ENOLCK)
}

/// Whether the open file is the one at the path.
#[cfg(unix)]
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let opened = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the open file is the one at the path: here an open one stays.
#[cfg(not(unix))]
pub(crate) fn is_at(_file: &File, _path: &Path) -> io::Result<bool> {
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_with_the_name_of_the_first() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("run");
        let lock = DirectoryLock::take(&directory).unwrap();
        assert!(lock.is_exclusive());
        let error = DirectoryLock::take(&directory).unwrap_err();
        let LockError::Held(holder) = error else {
            panic!("{error}")
        };
        assert_eq!(holder.pid, Some(process::id()));
        assert_eq!(DirectoryLock::holder(&directory), Some(holder));
        drop(lock);
        assert_eq!(DirectoryLock::holder(&directory), None);
        DirectoryLock::take(&directory).unwrap();
    }

    #[test]
    fn what_was_made_for_it_goes_if_nothing_came_of_it() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("runs/alder");
        drop(DirectoryLock::take(&directory).unwrap());
        assert!(!parent.path().join("runs").exists());
        let lock = DirectoryLock::take(&directory).unwrap();
        fs::write(directory.join("recipe.toml"), "").unwrap();
        drop(lock);
        let left: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["recipe.toml"]);
    }

    #[test]
    fn the_file_of_a_process_that_was_killed_is_no_lock() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(DirectoryLock::NAME);
        fs::write(&file, "process 1 on thornby\nand more than we write").unwrap();
        assert_eq!(DirectoryLock::holder(directory.path()), None);
        let lock = DirectoryLock::take(directory.path()).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, format!("{}\n", Holder::this()));
        drop(lock);
        // The directory was there before.
        assert!(directory.path().exists() && !file.exists());
    }

    #[test]
    fn of_many_that_start_at_once_one_at_a_time_gets_it() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static INSIDE: AtomicUsize = AtomicUsize::new(0);
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("run");
        let taken = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        match DirectoryLock::take(&directory) {
                            Ok(_lock) => {
                                assert_eq!(INSIDE.fetch_add(1, Ordering::SeqCst), 0);
                                taken.fetch_add(1, Ordering::SeqCst);
                                INSIDE.fetch_sub(1, Ordering::SeqCst);
                            }
                            Err(LockError::Held(_)) => {}
                            Err(LockError::Io(error)) => panic!("{error}"),
                        }
                    }
                });
            }
        });
        assert!(taken.load(Ordering::SeqCst) > 0);
        assert_eq!(DirectoryLock::holder(&directory), None);
    }

    #[test]
    fn a_holder_that_has_not_said_who_it_is_is_another_process() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(read(&mut file).to_string(), "another process");
        writeln!(file, "process 12 on oxmere").unwrap();
        assert_eq!(read(&mut file).to_string(), "process 12 on oxmere");
    }
}
