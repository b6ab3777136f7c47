//! Whether a run is still running.
//!
//! A run that is trained is locked by its process (`DirectoryLock` of `olora-files`).
//! To ask the system for the lock would be to have it for a moment, in which a run that
//! starts would be refused. So what the lock's file says is read and nothing more: the
//! process and its machine. Whether that process lives is known on this machine, on
//! Linux; elsewhere a file that was written lately has to do.

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    time::{Duration, SystemTime},
};

use olora_files::DirectoryLock;
use serde::Serialize;

use crate::place::Place;

/// A run whose process cannot be asked for is running for so long after it has last
/// written: some steps of a large model, with an evaluation.
const PATIENCE: Duration = Duration::from_mins(15);

/// The same of a run without a lock, such as one that is copied here while it runs.
const FRESH: Duration = Duration::from_secs(30);

/// By how much the clocks of a machine and of the disks that it writes to may differ.
const SLACK: Duration = Duration::from_mins(1);

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Standing {
    Running,
    /// Its summary says so.
    Finished,
    /// Neither.
    Interrupted,
}

impl Standing {
    /// Of a run whose summary, if it has one, says whether it is finished, and whose
    /// metrics were last written at a time.
    pub(crate) fn of(place: &Place, finished: Option<bool>, written: Option<SystemTime>) -> Self {
        match finished {
            Some(true) => Self::Finished,
            Some(false) => Self::Interrupted,
            None if is_locked(place, written) || is_within(written, FRESH) => Self::Running,
            None => Self::Interrupted,
        }
    }
}

fn is_within(written: Option<SystemTime>, time: Duration) -> bool {
    // A time that is to come is of another clock, and of now.
    written.is_some_and(|written| written.elapsed().map_or(true, |elapsed| elapsed <= time))
}

fn is_locked(place: &Place, written: Option<SystemTime>) -> bool {
    let bytes = match place.read(DirectoryLock::NAME, 4096) {
        Ok(bytes) => bytes,
        // Windows lets nobody read what is locked.
        Err(error) => return cfg!(windows) && error.kind() != ErrorKind::NotFound,
    };
    let text = String::from_utf8_lossy(&bytes);
    let locked = place
        .stamp(DirectoryLock::NAME)
        .and_then(|stamp| stamp.modified);
    let words: Vec<&str> = text.split_whitespace().collect();
    if let ["process", pid, "on", machine, ..] = words[..]
        && this_machine().as_deref() == Some(machine)
        && let Ok(pid) = pid.parse()
        && let Some(lives) = lives(pid, locked)
    {
        return lives;
    }
    is_within(written.max(locked), PATIENCE)
}

fn this_machine() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}

/// Whether a process of this machine lives that was there at a time; `None` where the
/// system does not say. Numbers of processes are given again, so that one which began
/// later is another.
fn lives(pid: u32, at: Option<SystemTime>) -> Option<bool> {
    if !Path::new("/proc/self").exists() {
        return None;
    }
    if !Path::new(&format!("/proc/{pid}")).exists() {
        return Some(false);
    }
    Some(match (began(pid), at) {
        (Some(began), Some(at)) => began <= at + SLACK,
        _ => true,
    })
}

/// When a process began, by `proc(5)`.
fn began(pid: u32) -> Option<SystemTime> {
    /// The unit of these files, on every Linux.
    const TICKS_PER_SECOND: u64 = 100;
    let system = fs::read_to_string("/proc/stat").ok()?;
    let boot = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    let boot: u64 = boot.trim().parse().ok()?;
    let process = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may have anything in it; the time is the twentieth word after it.
    let (_, words) = process.rsplit_once(')')?;
    let ticks: u64 = words.split_whitespace().nth(19)?.parse().ok()?;
    let seconds = boot + ticks / TICKS_PER_SECOND;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Run(tempfile::TempDir);

    impl Run {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn lock(&self, text: &str) {
            fs::write(self.0.path().join(DirectoryLock::NAME), text).unwrap();
        }

        fn standing(&self, finished: Option<bool>, ago: u64) -> Standing {
            let root = fs::canonicalize(self.0.path()).unwrap();
            let place = Place::new(&root.as_path().into(), root);
            let written = SystemTime::now() - Duration::from_secs(ago);
            Standing::of(&place, finished, Some(written))
        }
    }

    #[test]
    fn what_a_summary_says_counts() {
        let run = Run::new();
        assert_eq!(run.standing(Some(true), 0), Standing::Finished);
        assert_eq!(run.standing(Some(false), 0), Standing::Interrupted);
    }

    #[test]
    fn without_a_lock_what_was_just_written_is_running() {
        let run = Run::new();
        assert_eq!(run.standing(None, 1), Standing::Running);
        assert_eq!(run.standing(None, 60), Standing::Interrupted);
    }

    #[test]
    fn a_lock_of_a_machine_that_cannot_be_asked_counts_for_a_while() {
        let run = Run::new();
        run.lock("process 1 on another-machine\n");
        assert_eq!(run.standing(None, 60), Standing::Running);
        let lock = fs::File::open(run.0.path().join(DirectoryLock::NAME)).unwrap();
        let old = SystemTime::now() - Duration::from_hours(1);
        lock.set_modified(old).unwrap();
        assert_eq!(run.standing(None, 3600), Standing::Interrupted);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_lock_is_worth_what_its_process_is() {
        let run = Run::new();
        let machine = this_machine().unwrap();
        let lock = |pid: u32| run.lock(&format!("process {pid} on {machine}\n"));
        lock(std::process::id());
        assert_eq!(run.standing(None, 3600), Standing::Running);
        // No system has a process of this number.
        lock(u32::MAX);
        assert_eq!(run.standing(None, 3600), Standing::Interrupted);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_began_after_the_lock_is_another() {
        let pid = std::process::id();
        assert_eq!(lives(pid, Some(SystemTime::now())), Some(true));
        let yesterday = SystemTime::now() - Duration::from_hours(24);
        assert_eq!(lives(pid, Some(yesterday)), Some(false));
    }
}
