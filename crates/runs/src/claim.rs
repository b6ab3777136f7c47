//! A run directory for this process alone, and whether its run begins or goes
//! on.

use std::{fs, path::Path};

use olora_files::{DirectoryLock, LockError};
use olora_training::Decay;

use crate::{
    Event, Observer, Recipe, RunError, Start,
    checkpoint::{self, Damaged, Whole},
    finished::Ended,
    recipe::Change,
    run_directory::RunDirectory,
    start_from::started_on,
    steps::Steps,
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
    GoOn {
        from: Box<Whole>,
        /// Steps in all.
        total: usize,
        /// Whether the recipe is not quite the one that the run has had so far.
        changed: bool,
    },
}

/// What a recipe asks for that its run is to go on with.
pub(crate) struct Asked<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) steps: &'a Steps,
    /// Names the samples and the base.
    pub(crate) fingerprint: u64,
    /// As [`Claim::check`] found it.
    pub(crate) changes: Option<Vec<Change>>,
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

    /// The recipe of a run that has begun.
    pub(crate) fn known(&self) -> Result<Option<Recipe>, RunError> {
        if self.found != Contents::Something {
            return Ok(None);
        }
        self.directory.known()
    }

    /// What has changed in the recipe of a run that has begun; `None` if it has
    /// not. To be asked before anything is read.
    ///
    /// # Errors
    ///
    /// [`RunError::RecipeChanged`] names what may not change.
    pub(crate) fn check(&self, recipe: &Recipe) -> Result<Option<Vec<Change>>, RunError> {
        if self.found != Contents::Something {
            return Ok(None);
        }
        self.directory.check_recipe(recipe)
    }

    /// Where the run is to go on, with the samples and the base that it was
    /// started with.
    pub(crate) fn next(
        &self,
        asked: &Asked<'_>,
        observer: &dyn Observer,
    ) -> Result<Next, RunError> {
        let Asked {
            recipe,
            fingerprint,
            ..
        } = *asked;
        if self.found != Contents::Something {
            return Ok(Next::Begin);
        }
        let path = self.directory.path();
        let began = asked.changes.is_some();
        let changes = asked.changes.as_deref().unwrap_or_default();
        let other_length = changes.iter().any(Change::is_length);
        // Whoever removes the last checkpoints has the run go on from the one that is left.
        let newest = self.directory.newest_checkpoint()?;
        let goes_back = |ended: &Ended| newest.is_some_and(|(step, _)| step < ended.steps);
        let ended = Ended::of(path).filter(|ended| !goes_back(ended));
        let (whole, damaged) = match ended {
            Some(_) if !other_length => (None, Vec::new()),
            _ => checkpoint::newest_whole(&self.directory.checkpoints())?,
        };
        let was_on = match (&ended, &whole) {
            (Some(ended), _) => ended.was_on(fingerprint),
            (None, Some(whole)) => whole.state.fingerprint == fingerprint,
            (None, None) => true,
        };
        if !was_on {
            return Err(RunError::mismatch(format!(
                "cannot resume {}: {} are not what the run was started on",
                path.display(),
                started_on(recipe)
            )));
        }
        let keep = recipe.training.keep_checkpoints;
        let complete = |steps| RunError::Complete {
            directory: path.to_owned(),
            steps,
        };
        if let Some(ended) = &ended {
            if !other_length {
                if self.start == Start::Auto {
                    self.tidy(keep, observer);
                }
                return Err(complete(ended.steps));
            }
            if whole.is_none() && damaged.is_empty() {
                return Err(RunError::NoLastCheckpoint(path.to_owned()));
            }
        }
        let mut total = asked.steps.total;
        if let Some(whole) = &whole {
            let made = whole.state.step;
            let accumulation = recipe.training.accumulation;
            total = asked
                .steps
                .total_after(&whole.state, accumulation)
                .ok_or_else(|| RunError::Shorter {
                    directory: path.to_owned(),
                    made,
                    asked: total,
                })?;
            if ended.is_some() && total == made {
                return Err(complete(made));
            }
        }
        let whole = self.without_damaged(whole, damaged, observer)?;
        self.tidy(keep, observer);
        if let (Some(_), false) = (&whole, changes.is_empty()) {
            let changes: Vec<_> = changes.iter().map(ToString::to_string).collect();
            observer.on(&Event::Note(format!(
                "the run goes on with another recipe than so far: {}",
                changes.join("; ")
            )));
        }
        Ok(match whole {
            Some(from) => {
                if changes.iter().any(Change::is_steps) {
                    // One that stopped early was to be longer.
                    let ended = ended.as_ref().is_some_and(|ended| !ended.stopped_early);
                    tell_rate(recipe, &from, total, ended, observer);
                }
                Next::GoOn {
                    from: Box::new(from),
                    total,
                    changed: !changes.is_empty(),
                }
            }
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

/// Says what a learning rate that follows the run's length does to a run of
/// another length.
fn tell_rate(recipe: &Recipe, from: &Whole, total: usize, ended: bool, observer: &dyn Observer) {
    let training = &recipe.training;
    let step = from.state.step;
    let next = training.learning_rate(total).at(step + 1);
    let warmup = training.warmup(total);
    // The warm-up of a run that was too short for it was shortened.
    let warmed_up = step + 1 >= warmup && (!ended || training.warmup(step) == warmup);
    let same = training.schedule == Decay::Constant && warmed_up;
    if same || step == total {
        return;
    }
    let had = if ended {
        let before = training.learning_rate(step).at(step);
        format!("; the shorter run ended at {before:.3e}")
    } else {
        String::new()
    };
    observer.on(&Event::Note(format!(
        "the learning rate follows the length of the run, and is computed over {total} steps from here on: {next:.3e} \
         at step {}{had}. With training.schedule = \"constant\", a run that is lengthened is the same as one of \
         that length from the start",
        step + 1
    )));
}

/// What is said where something that is no longer needed cannot be removed.
pub(crate) fn untidy(error: &RunError) -> Event {
    Event::Note(format!(
        "something that is no longer needed stays for now: {error}. The run does without its removal"
    ))
}
