//! How long a run still takes, by what its steps, evaluations and checkpoints have
//! taken so far.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A step, and the seconds of training when it was done.
#[derive(Clone, Copy, Debug)]
struct Mark {
    step: usize,
    seconds: f64,
}

/// What comes with every so many steps, and with the last one.
#[derive(Clone, Copy, Debug)]
struct Recurring {
    /// With 0, the last step alone has it.
    every: usize,
    /// The last step that had it, or where the session began.
    last: usize,
    /// What it took then.
    seconds: Option<f64>,
}

impl Recurring {
    /// How often it is still to come.
    fn left(&self, total: usize) -> usize {
        if self.last >= total {
            return 0;
        }
        let multiples = (total / self.every.max(1)) - (self.last / self.every.max(1));
        let multiples = if self.every == 0 { 0 } else { multiples };
        multiples + usize::from(self.every == 0 || !total.is_multiple_of(self.every))
    }

    fn seconds_left(&self, total: usize) -> f64 {
        self.seconds.unwrap_or(0.0) * self.left(total) as f64
    }
}

/// The pace of one session of a run.
#[derive(Debug)]
pub(crate) struct Pace {
    total: usize,
    begin: Mark,
    /// After the session's first stretch, in which kernels are made and memory is
    /// asked for.
    first: Option<Mark>,
    last: Option<Mark>,
    /// `None` where there is nothing to evaluate on.
    evaluations: Option<Recurring>,
    checkpoints: Recurring,
}

impl Pace {
    /// Of a session that begins after `step`, and `seconds` of training.
    pub(crate) fn new(
        step: usize,
        seconds: f64,
        total: usize,
        evaluate_every: Option<usize>,
        checkpoint_every: usize,
    ) -> Self {
        let recurring = |every| Recurring {
            every,
            last: step,
            seconds: None,
        };
        Self {
            total,
            begin: Mark { step, seconds },
            first: None,
            last: None,
            evaluations: evaluate_every.map(recurring),
            checkpoints: recurring(checkpoint_every),
        }
    }

    /// A step is known to be done, after so many seconds of training since the run
    /// began.
    pub(crate) fn stepped(&mut self, step: usize, seconds: f64) {
        let mark = Mark { step, seconds };
        self.first.get_or_insert(mark);
        self.last = Some(mark);
    }

    pub(crate) fn evaluated(&mut self, step: usize, seconds: f64) {
        if let Some(evaluations) = &mut self.evaluations {
            (evaluations.last, evaluations.seconds) = (step, Some(seconds));
        }
    }

    pub(crate) fn saved(&mut self, step: usize, seconds: f64) {
        (self.checkpoints.last, self.checkpoints.seconds) = (step, Some(seconds));
    }

    /// Seconds until the last step is done, with the evaluations and checkpoints
    /// that are still to come at the time that the last of them took; `None` before
    /// a step is done. Of the steps of this session the first stretch counts only
    /// while there is no other.
    pub(crate) fn seconds_left(&self) -> Option<f64> {
        let last = self.last?;
        let first = self.first.filter(|first| first.step < last.step);
        let from = first.unwrap_or(self.begin);
        let n_steps = last.step.checked_sub(from.step).filter(|n| *n > 0)?;
        let per_step = (last.seconds - from.seconds) / n_steps as f64;
        let steps = per_step * self.total.saturating_sub(last.step) as f64;
        let evaluations = self
            .evaluations
            .map_or(0.0, |evaluations| evaluations.seconds_left(self.total));
        Some(steps + evaluations + self.checkpoints.seconds_left(self.total))
    }
}

/// The seconds left, where the thread that draws can read them.
#[derive(Clone, Debug)]
pub(crate) struct SecondsLeft(Arc<AtomicU64>);

impl Default for SecondsLeft {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(f64::NAN.to_bits())))
    }
}

impl SecondsLeft {
    pub(crate) fn set(&self, seconds: Option<f64>) {
        let seconds = seconds.unwrap_or(f64::NAN);
        self.0.store(seconds.to_bits(), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Option<f64> {
        let seconds = f64::from_bits(self.0.load(Ordering::Relaxed));
        (!seconds.is_nan()).then_some(seconds)
    }
}

/// A time for people, to two units: `45 s`, `12 min 05 s`, `3 h 20 min`, `2 d 04 h`.
pub fn in_time(seconds: f64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    // What is no time at all, NaN included, is 0.
    let seconds = seconds.max(0.0).round() as u64;
    match seconds {
        0..MINUTE => format!("{seconds} s"),
        MINUTE..HOUR => format!("{} min {:02} s", seconds / MINUTE, seconds % MINUTE),
        HOUR..DAY => format!("{} h {:02} min", seconds / HOUR, seconds % HOUR / MINUTE),
        _ => format!("{} d {:02} h", seconds / DAY, seconds % DAY / HOUR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stretch_counts_only_while_there_is_no_other() {
        let mut pace = Pace::new(0, 0.0, 11, None, 0);
        assert_eq!(pace.seconds_left(), None);
        pace.stepped(1, 30.0);
        assert_eq!(pace.seconds_left(), Some(300.0));
        pace.stepped(3, 34.0);
        assert_eq!(pace.seconds_left(), Some(16.0));
    }

    #[test]
    fn a_session_that_goes_on_has_a_pace_of_its_own() {
        let mut pace = Pace::new(100, 5000.0, 110, None, 0);
        pace.stepped(101, 5009.0);
        pace.stepped(105, 5011.0);
        assert_eq!(pace.seconds_left(), Some(2.5));
    }

    #[test]
    fn what_is_still_to_come_is_counted_with_the_last_step() {
        let left = |every, last, total| {
            Recurring {
                every,
                last,
                seconds: None,
            }
            .left(total)
        };
        for (every, last, total, expected) in [
            (10, 0, 25, 3),
            (10, 10, 25, 2),
            (10, 0, 20, 2),
            (10, 20, 20, 0),
            (0, 0, 20, 1),
            (0, 20, 20, 0),
            (50, 0, 20, 1),
        ] {
            assert_eq!(left(every, last, total), expected, "{every} {last} {total}");
        }
    }

    #[test]
    fn evaluations_and_checkpoints_are_part_of_the_time_left() {
        let mut pace = Pace::new(0, 0.0, 20, Some(10), 5);
        pace.evaluated(0, 7.0);
        pace.stepped(5, 5.0);
        pace.stepped(6, 6.0);
        // 14 steps, two evaluations, and no checkpoint that was timed.
        assert_eq!(pace.seconds_left(), Some(14.0 + 14.0));
        pace.saved(5, 0.5);
        assert_eq!(pace.seconds_left(), Some(14.0 + 14.0 + 1.5));
    }

    #[test]
    fn times_have_two_units() {
        for (seconds, expected) in [
            (0.4, "0 s"),
            (59.4, "59 s"),
            (59.6, "1 min 00 s"),
            (725.0, "12 min 05 s"),
            (3600.0, "1 h 00 min"),
            (12_345.0, "3 h 25 min"),
            (187_200.0, "2 d 04 h"),
            (f64::NAN, "0 s"),
        ] {
            assert_eq!(in_time(seconds), expected);
        }
    }
}
