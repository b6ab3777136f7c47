//! Whether a run has come to its end: what its summary says, not that it is
//! there.

use std::{fs, path::Path};

use serde::Deserialize;

/// The file, in a run directory.
pub(crate) const SUMMARY: &str = "summary.json";

/// What matters here of a summary.
#[derive(Debug, Deserialize)]
pub(crate) struct Ended {
    /// An interrupted run has a summary too.
    finished: bool,
    /// What names the samples and the base that it was started on.
    fingerprint: String,
    /// Steps made.
    pub(crate) steps: usize,
    /// Whether its patience had come to its end.
    #[serde(default)]
    pub(crate) stopped_early: bool,
}

impl Ended {
    /// That of a run which made all its steps. A summary that cannot be read is
    /// none: the run writes its result again.
    pub(crate) fn of(run: &Path) -> Option<Self> {
        let bytes = fs::read(run.join(SUMMARY)).ok()?;
        let ended: Self = serde_json::from_slice(&bytes).ok()?;
        ended.finished.then_some(ended)
    }

    /// Whether it was on these samples and this base.
    pub(crate) fn was_on(&self, fingerprint: u64) -> bool {
        self.fingerprint == printed(fingerprint)
    }
}

/// A fingerprint as summaries have it.
pub(crate) fn printed(fingerprint: u64) -> String {
    format!("{fingerprint:016x}")
}

/// Whether the run in a directory has come to its end, with its result written.
/// One that was interrupted has not.
pub fn is_finished(run: &Path) -> bool {
    Ended::of(run).is_some()
}
