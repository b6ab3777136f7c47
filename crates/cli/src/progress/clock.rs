//! How long a run has taken, and how long it still takes.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use olora_runs::in_time;

use crate::terminal;

/// The times of one session of a run.
#[derive(Debug, Default)]
pub(super) struct Clock {
    began: Option<Instant>,
    /// Seconds that were left, and when.
    left: Option<(f64, Instant)>,
}

impl Clock {
    pub(super) fn begin(&mut self, now: Instant) {
        (self.began, self.left) = (Some(now), None);
    }

    pub(super) fn set(&mut self, left: Option<f64>, now: Instant) {
        self.left = left.map(|left| (left, now));
    }

    /// Seconds since the session began.
    pub(super) fn elapsed(&self, now: Instant) -> f64 {
        let elapsed = self.began.map(|began| now.saturating_duration_since(began));
        elapsed.unwrap_or_default().as_secs_f64()
    }

    /// Seconds left, less those that have passed since it was known.
    pub(super) fn left(&self, now: Instant) -> Option<f64> {
        let (left, then) = self.left?;
        let passed = now.saturating_duration_since(then).as_secs_f64();
        Some((left - passed).max(0.0))
    }

    /// Both: `2 min 10 s, 5 min 00 s left`.
    pub(super) fn in_words(&self, now: Instant) -> String {
        let elapsed = in_time(self.elapsed(now));
        match self.left(now) {
            Some(left) => format!("{elapsed}, {} left", in_time(left)),
            None => elapsed,
        }
    }
}

/// A bar of the run's steps, with its times, which go on between steps.
pub(super) fn bar(total_steps: usize, clock: &Arc<Mutex<Clock>>) -> ProgressBar {
    let template = "{bar:24} {pos}/{len} | {times}";
    let bar = terminal::bar(total_steps as u64, "");
    let clock = Arc::clone(clock);
    let times = move |_: &ProgressState, out: &mut dyn fmt::Write| {
        let clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to memory does not fail.
        let _ = out.write_str(&clock.in_words(Instant::now()));
    };
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.with_key("times", times));
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_runs_down_until_it_is_known_anew() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut clock = Clock::default();
        clock.begin(begin);
        assert_eq!(clock.in_words(after(5)), "5 s");
        clock.set(Some(100.0), after(10));
        assert_eq!(clock.in_words(after(30)), "30 s, 1 min 20 s left");
        assert_eq!(clock.in_words(after(200)), "3 min 20 s, 0 s left");
        clock.set(Some(9.0), after(200));
        assert_eq!(clock.in_words(after(201)), "3 min 21 s, 8 s left");
    }
}
