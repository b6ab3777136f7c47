//! Where the time of several processes goes, and which of them is slow.

use std::collections::BTreeSet;

use olora_training::{Exchange, StepResult};

use crate::RanksReport;

/// A process is named as slow if its shares take this many times as long as
/// those of the median one.
const SLOW: f64 = 1.5;

/// Seconds that each rank has taken over some steps.
#[derive(Debug, Default)]
pub(crate) struct RankTimes {
    seconds: Vec<f64>,
    exchange_seconds: f64,
}

impl RankTimes {
    pub(crate) fn add(&mut self, step: &StepResult) {
        self.seconds.resize(step.ranks.len(), 0.0);
        for (seconds, rank) in self.seconds.iter_mut().zip(&step.ranks) {
            *seconds += rank.seconds;
        }
        self.exchange_seconds += step.exchange_seconds;
    }

    /// `None` where there is one process alone.
    pub(crate) fn report(&self, exchange: &dyn Exchange) -> Option<RanksReport> {
        let n = self.seconds.len();
        let (slowest, slowest_seconds) = self
            .seconds
            .iter()
            .copied()
            .enumerate()
            .max_by(|(_, a), (_, b)| a.total_cmp(b))?;
        if n < 2 {
            return None;
        }
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        Some(RanksReport {
            n,
            exchange_seconds: self.exchange_seconds,
            slowest: exchange.name(slowest),
            slowest_seconds,
            // Of two, the faster.
            median_seconds: sorted[(n - 1) / 2],
        })
    }
}

/// The processes that have been named as slow, each once.
#[derive(Debug, Default)]
pub(crate) struct Slow(BTreeSet<String>);

impl Slow {
    /// What is to be told of a stretch.
    pub(crate) fn note(&mut self, report: Option<&RanksReport>) -> Option<String> {
        let RanksReport {
            slowest,
            slowest_seconds,
            median_seconds,
            ..
        } = report?;
        // Differences of less than a second are nobody's concern: of a first step, or of short rows.
        let is_slow =
            *slowest_seconds > SLOW * median_seconds && *slowest_seconds > median_seconds + 1.0;
        if !is_slow || !self.0.insert(slowest.clone()) {
            return None;
        }
        Some(format!(
            "{slowest} is slow: its shares of the last steps took {slowest_seconds:.1} s, those of the median rank \
             {median_seconds:.1} s, and all wait for it. Is something else running there, or is its device another?"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(slowest_seconds: f64) -> RanksReport {
        RanksReport {
            n: 4,
            exchange_seconds: 0.0,
            slowest: "rank 2 on node1".to_owned(),
            slowest_seconds,
            median_seconds: 4.0,
        }
    }

    #[test]
    fn a_slow_rank_is_named_once() {
        let mut slow = Slow::default();
        assert_eq!(slow.note(Some(&report(5.9))), None);
        let note = slow.note(Some(&report(8.0))).unwrap();
        assert!(
            note.contains("rank 2 on node1") && note.contains("8.0 s"),
            "{note}"
        );
        assert_eq!(slow.note(Some(&report(9.0))), None);
    }
}
