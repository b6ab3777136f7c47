//! What is below a directory, as it is now.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    BoardError,
    comparison::Comparison,
    details::Details,
    find::Found,
    list::{self, ComparisonEntry, Entries, RunEntry},
    place::Place,
    tracked::Tracked,
};

/// How old a list may be that is given out.
const FRESH: Duration = Duration::from_millis(500);

/// How many runs' curves are kept.
const MOST_TRACKED: usize = 128;

/// A directory whose runs and comparisons are shown.
#[derive(Debug)]
pub struct Board {
    root: Arc<Path>,
    listing: Mutex<Lister>,
    tracked: Mutex<HashMap<String, Kept>>,
}

/// What is in the list.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Listing {
    pub(crate) directory: PathBuf,
    pub(crate) runs: Vec<RunEntry>,
    pub(crate) comparisons: Vec<ComparisonEntry>,
    /// Whether there are more directories than were looked into.
    pub(crate) is_cut: bool,
}

#[derive(Debug, Default)]
struct Lister {
    entries: Entries,
    found: Found,
    listing: Arc<Listing>,
    made: Option<Instant>,
}

/// A run that somebody looked at, and when.
#[derive(Debug)]
struct Kept {
    tracked: Arc<Mutex<Tracked>>,
    used: Instant,
}

impl Board {
    /// A board of what is below a directory.
    ///
    /// # Errors
    ///
    /// [`BoardError::Directory`] if it is not there, or is none.
    pub fn new(directory: &Path) -> Result<Self, BoardError> {
        let wrong = |source| BoardError::Directory {
            path: directory.to_owned(),
            source,
        };
        let root = fs::canonicalize(directory).map_err(wrong)?;
        fs::read_dir(&root).map_err(wrong)?;
        Ok(Self {
            root: root.into(),
            listing: Mutex::default(),
            tracked: Mutex::default(),
        })
    }

    /// The list, half a second old at most.
    pub(crate) fn listing(&self) -> Arc<Listing> {
        Arc::clone(&self.lister(FRESH).listing)
    }

    fn lister(&self, age: Duration) -> MutexGuard<'_, Lister> {
        let mut lister = held(&self.listing);
        if lister.made.is_none_or(|made| made.elapsed() >= age) {
            lister.make(&self.root);
        }
        lister
    }

    /// Where a run or comparison is that goes by a name. A name that is not in the list
    /// is looked for once more, since what it names may just have been made.
    fn find(&self, find: impl Fn(&Found) -> Option<Place>) -> Option<Place> {
        let known = find(&self.lister(FRESH).found);
        known.or_else(|| find(&self.lister(Duration::ZERO).found))
    }

    pub(crate) fn run(&self, path: &str) -> Option<Place> {
        self.find(|found| found.runs.get(path).cloned())
    }

    pub(crate) fn comparison(&self, path: &str) -> Option<Place> {
        self.find(|found| found.comparisons.get(path).cloned())
    }

    /// A run with its curves as they are now.
    pub(crate) fn tracked(&self, path: &str, place: &Place) -> Arc<Mutex<Tracked>> {
        let tracked = {
            let mut all = held(&self.tracked);
            if all.len() >= MOST_TRACKED && !all.contains_key(path) {
                let oldest = all.iter().min_by_key(|(_, kept)| kept.used);
                if let Some(oldest) = oldest.map(|(path, _)| path.clone()) {
                    all.remove(&oldest);
                }
            }
            let kept = all.entry(path.to_owned()).or_insert_with(|| Kept {
                tracked: Arc::default(),
                used: Instant::now(),
            });
            kept.used = Instant::now();
            Arc::clone(&kept.tracked)
        };
        // What cannot be read is said in the list; what was read stays.
        let _ = held(&tracked).advance(place);
        tracked
    }

    /// All that is shown of a run.
    pub(crate) fn details(&self, path: &str) -> Option<Details> {
        let place = self.run(path)?;
        let entry = held(&self.listing).entries.run(path, &place);
        let tracked = self.tracked(path, &place);
        let tracked = held(&tracked);
        Some(Details::of(entry, &place, tracked.metrics()))
    }

    /// All that is shown of a comparison but its pictures.
    pub(crate) fn compared(&self, path: &str) -> Option<Comparison> {
        let place = self.comparison(path)?;
        Some(Comparison::of(list::comparison(path, &place), &place))
    }
}

impl Lister {
    fn make(&mut self, root: &Arc<Path>) {
        let found = Found::below(root);
        self.entries.retain(|path| found.runs.contains_key(path));
        let runs = found.runs.iter();
        let comparisons = found.comparisons.iter();
        self.listing = Arc::new(Listing {
            directory: root.to_path_buf(),
            runs: runs
                .map(|(path, place)| self.entries.run(path, place))
                .collect(),
            comparisons: comparisons
                .map(|(path, place)| list::comparison(path, place))
                .collect(),
            is_cut: found.is_cut,
        });
        self.found = found;
        self.made = Some(Instant::now());
    }
}

/// What a mutex holds, though a thread may have ended with it: what is kept here is
/// read from files again.
pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_hundred_runs_are_listed_in_no_time() {
        let root = tempfile::tempdir().unwrap();
        for index in 0..500 {
            let run = root.path().join(format!("run-{index}"));
            fs::create_dir(&run).unwrap();
            fs::write(run.join("recipe.toml"), "name = \"x\"\n").unwrap();
            fs::write(run.join("metrics.jsonl"), "{\"step\":1,\"loss\":1}\n").unwrap();
        }
        let board = Board::new(root.path()).unwrap();
        let began = Instant::now();
        assert_eq!(board.listing().runs.len(), 500);
        // Some 20 ms on an idle machine, and this one may not be.
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
    }

    #[test]
    fn a_run_that_has_just_been_made_is_found() {
        let root = tempfile::tempdir().unwrap();
        let board = Board::new(root.path()).unwrap();
        assert!(board.run("alder").is_none());
        fs::create_dir(root.path().join("alder")).unwrap();
        fs::write(root.path().join("alder/metrics.jsonl"), "").unwrap();
        assert!(board.run("alder").is_some());
    }

    #[test]
    fn a_name_that_is_no_runs_reaches_nothing() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("metrics.jsonl"), "").unwrap();
        let root = outside.path().join("runs");
        fs::create_dir(&root).unwrap();
        let board = Board::new(&root).unwrap();
        for path in [
            "..",
            "../",
            "./..",
            outside.path().to_str().unwrap(),
            "",
            ".",
        ] {
            assert!(board.run(path).is_none(), "{path}");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = Board::new(Path::new("/no/such/runs")).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/runs: "), "{error}");
    }
}
