//! A run directory for this process alone, and whether its run begins or goes
//! on.

use std::{fs, path::Path};

use olora_files::{DirectoryLock, LockError};

use crate::{
    Event, Observer, Recipe, RunError, Start,
    checkpoint::{self, Damaged, Whole},
    finished::Ended,
    run_directory::RunDirectory,
};

/// A run directory that is locked until this is dropped. Nothing has been
/// written but the lock, and what was made for it goes if nothing follows.
pub(crate) struct Claim {
    start: Start,
    directory: RunDirectory,
    /// What was there before.
    found: Contents,
    _lock: DirectoryLock,
}

/// What a run directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contents {
    /// Nothing, or it is not there.
    Nothing,
    /// The lock of a process that was killed before it wrote anything.
    OnlyLock,
    Something,
}

/// How a run is to go on.
pub(crate) enum Next {
    /// From its first step.
    Begin,
    /// From a checkpoint.
    GoOn(Whole),
}

impl Contents {
    fn of(path: &Path) -> Self {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name());
        names.fold(Self::Nothing, |found, name| match found {
            Self::Nothing if name == DirectoryLock::NAME => Self::OnlyLock,
            _ => Self::Something,
        })
    }
}

impl Claim {
    /// Locks the directory of a recipe's run. A new run is refused one that
    /// holds anything.
    pub(crate) fn new(
        recipe: &Recipe,
        start: Start,
        observer: &dyn Observer,
    ) -> Result<Self, RunError> {
        let path = recipe.run_directory();
        let in_use = |holder| RunError::InUse {
            directory: path.clone(),
            holder,
        };
        let found = Contents::of(&path);
        match (start, found) {
            (Start::New, Contents::Something) => {
                // Nothing is written to what is refused, not even a lock.
                return Err(match DirectoryLock::holder(&path) {
                    Some(holder) => in_use(holder),
                    None => RunError::RunExists(path),
                });
            }
            (Start::Resume, Contents::Nothing) => return Err(RunError::NothingToResume(path)),
            _ => {}
        }
        let lock = DirectoryLock::take(&path).map_err(|error| match error {
            LockError::Held(holder) => in_use(holder),
            LockError::Io(source) => RunError::io("locking", &path, source),
        })?;
        // Another process may have come and gone meanwhile.
        let found = match Contents::of(&path) {
            Contents::Something => Contents::Something,
            _ => found,
        };
        if (start, found) == (Start::New, Contents::Something) {
            return Err(RunError::RunExists(path));
        }
        if !lock.is_exclusive() {
            observer.on(&Event::Note(format!(
                "the file system of {} has no locks: nothing keeps a second process from training in it",
                path.display()
            )));
        }
        Ok(Self {
            start,
            directory: RunDirectory::at(path),
            found,
            _lock: lock,
        })
    }

    pub(crate) fn directory(&self) -> &RunDirectory {
        &self.directory
    }

    /// Where the run is to go on, with the recipe, the samples and the base that
    /// it was started with.
    pub(crate) fn next(
        &self,
        recipe: &Recipe,
        fingerprint: u64,
        observer: &dyn Observer,
    ) -> Result<Next, RunError> {
        if self.found != Contents::Something {
            return Ok(Next::Begin);
        }
        let path = self.directory.path();
        let began = self.directory.check_recipe(recipe)?;
        // Whoever removes the last checkpoints has the run go on from the one that is left.
        let newest = self.directory.newest_checkpoint()?;
        let goes_back = |ended: &Ended| newest.is_some_and(|(step, _)| step < ended.steps);
        let ended = Ended::of(path).filter(|ended| !goes_back(ended));
        let (whole, damaged) = match ended {
            Some(_) => (None, Vec::new()),
            None => checkpoint::newest_whole(&self.directory.checkpoints())?,
        };
        let was_on = match (&ended, &whole) {
            (Some(ended), _) => ended.was_on(fingerprint),
            (None, Some(whole)) => whole.state.fingerprint == fingerprint,
            (None, None) => true,
        };
        if !was_on {
            return Err(RunError::mismatch(format!(
                "cannot resume {}: {} or the weights in {} are not what the run was started on",
                path.display(),
                recipe.data.described(),
                recipe.model.path.display()
            )));
        }
        let keep = recipe.training.keep_checkpoints;
        if ended.is_some() {
            if self.start == Start::Auto {
                self.tidy(keep, observer);
            }
            return Err(RunError::Complete(path.to_owned()));
        }
        let whole = self.without_damaged(whole, damaged, observer)?;
        self.tidy(keep, observer);
        Ok(match whole {
            Some(whole) => Next::GoOn(whole),
            None => {
                if began {
                    observer.on(&Event::Note(format!(
                        "the run in {} was stopped before its first checkpoint: it starts again",
                        path.display()
                    )));
                }
                Next::Begin
            }
        })
    }

    /// The checkpoint to go on from, if nothing newer is lost by it without
    /// being asked for.
    fn without_damaged(
        &self,
        whole: Option<Whole>,
        damaged: Vec<Damaged>,
        observer: &dyn Observer,
    ) -> Result<Option<Whole>, RunError> {
        let older = whole.as_ref().map(|whole| whole.path.clone());
        if let Some(newest) = damaged.first()
            && (older.is_none() || self.start != Start::Auto)
        {
            return Err(RunError::Damaged {
                path: newest.path.clone(),
                reason: newest.reason.clone(),
                older,
            });
        }
        for Damaged { path, reason } in damaged {
            let aside = checkpoint::put_aside(&path)?;
            observer.on(&Event::Note(format!(
                "the checkpoint {} cannot be used: {reason}. It is now {}, and the run goes on from the \
                 one before it",
                path.display(),
                aside.display()
            )));
        }
        Ok(whole)
    }

    /// What killed processes were writing or removing goes. What stays is in
    /// nobody's way.
    fn tidy(&self, keep: usize, observer: &dyn Observer) {
        if let Err(error) = self.directory.tidy(keep) {
            observer.on(&untidy(&error));
        }
    }
}

/// What is said where something that is no longer needed cannot be removed.
pub(crate) fn untidy(error: &RunError) -> Event {
    Event::Note(format!(
        "something that is no longer needed stays for now: {error}. The run does without its removal"
    ))
}
