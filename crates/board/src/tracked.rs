//! A run whose curves are kept, and go on when its file does.

use std::{collections::VecDeque, io};

use crate::{
    lines::{New, Tail},
    metrics::{Added, Curves, METRICS, Metrics},
    place::Place,
};

/// How many of the last lines are kept for those who watch.
const MOST_RECENT: usize = 256;

/// A run's metrics so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tracked {
    tail: Tail,
    metrics: Metrics,
    /// How often the file began anew.
    beginning: u64,
    /// Lines since it did.
    n_lines: u64,
    recent: VecDeque<Added>,
}

/// How far somebody has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    beginning: u64,
    n_lines: u64,
}

/// What somebody has not been told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum News {
    Nothing,
    /// Points that come behind those that are known.
    Points(Added),
    /// All curves, in the place of those that are known.
    All(Curves),
}

impl Tracked {
    /// Reads what the file has got.
    pub(crate) fn advance(&mut self, place: &Place) -> io::Result<()> {
        let Self {
            tail,
            metrics,
            beginning,
            n_lines,
            recent,
        } = self;
        tail.read(place, METRICS, |new| match new {
            New::Again => {
                *metrics = Metrics::default();
                *beginning += 1;
                *n_lines = 0;
                recent.clear();
            }
            New::Line(line) => {
                *n_lines += 1;
                if recent.len() == MOST_RECENT {
                    recent.pop_front();
                }
                recent.push_back(metrics.add(line));
            }
        })
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark {
            beginning: self.beginning,
            n_lines: self.n_lines,
        }
    }

    /// What is new to one who knows what there was at a mark, or nothing so far.
    pub(crate) fn since(&self, mark: Option<Mark>) -> News {
        let known = mark.filter(|mark| mark.beginning == self.beginning);
        let Some(known) = known else {
            return News::All(self.metrics.drawn());
        };
        let n = self.n_lines.saturating_sub(known.n_lines) as usize;
        if n > self.recent.len() {
            return News::All(self.metrics.drawn());
        }
        let lines = self.recent.iter().skip(self.recent.len() - n);
        let points: Added = lines.flatten().cloned().collect();
        if points.is_empty() {
            News::Nothing
        } else {
            News::Points(points)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn place(directory: &Path) -> Place {
        let root = fs::canonicalize(directory).unwrap();
        Place::new(&root.as_path().into(), root)
    }

    fn write(directory: &Path, steps: std::ops::Range<usize>) {
        let lines = steps.map(|step| format!("{{\"step\":{step},\"loss\":{step}.5}}\n"));
        fs::write(directory.join(METRICS), lines.collect::<String>()).unwrap();
    }

    #[test]
    fn who_knows_the_curves_is_told_the_points_behind_them() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        let mut tracked = Tracked::default();
        write(directory.path(), 0..3);
        tracked.advance(&place).unwrap();
        assert!(matches!(tracked.since(None), News::All(_)));
        let mark = tracked.mark();
        assert_eq!(tracked.since(Some(mark)), News::Nothing);
        write(directory.path(), 0..4);
        tracked.advance(&place).unwrap();
        let News::Points(points) = tracked.since(Some(mark)) else {
            panic!("no points");
        };
        assert_eq!(points.len(), 1);
        assert_eq!((points[0].0.as_str(), points[0].1.value), ("loss", 3.5));
    }

    #[test]
    fn who_is_far_behind_is_told_all() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        let mut tracked = Tracked::default();
        write(directory.path(), 0..1);
        tracked.advance(&place).unwrap();
        let mark = tracked.mark();
        write(directory.path(), 0..1000);
        tracked.advance(&place).unwrap();
        assert!(matches!(tracked.since(Some(mark)), News::All(_)));
    }

    #[test]
    fn who_knows_a_file_that_was_cut_is_told_all() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        let mut tracked = Tracked::default();
        write(directory.path(), 0..5);
        tracked.advance(&place).unwrap();
        let mark = tracked.mark();
        write(directory.path(), 0..2);
        tracked.advance(&place).unwrap();
        assert!(matches!(tracked.since(Some(mark)), News::All(_)));
    }
}
