//! Burn's terminal interface, told of a run that goes by steps.
//!
//! Burn 0.22.1's view counts what it is given: each number takes the next place of
//! the axis, an evaluation's total becomes that of training, and epochs are those of
//! the learner, which here has one. So the view is given what makes it right: empty
//! places for the steps that are not logged, the epoch of the step, and the training
//! split again after an evaluation.
//!
//! What cannot be right from here, by the files of burn-train 0.22.1:
//!
//! - Training and validation share one counter of places (`renderer/tui/full_history.rs:89`,
//!   `recent_history.rs:63`). A validation loss stands one step to the right of its own, and
//!   with `log_every = 1` each evaluation moves what comes after it by one.
//! - A line is thinned by its place on the axis (`full_history.rs:155`): after 250 evaluations
//!   those on odd places are left out.
//! - The lower bar and the time beside it take all epochs for whole and equally long, so that
//!   they end early where the last is cut short, and take a run that goes on for one that began
//!   now (`renderer/tui/progress.rs:211`). The title says steps and time as they are.
//! - A number is a mean over the steps since the one before, which the view calls `batch`, and
//!   its mean since the epoch began `epoch` (`metric/state.rs`).

use std::{collections::HashMap, error::Error};

use burn::train::{
    LearnerSummary,
    logger::{EvaluationProgressLogger, TrainingProgressLogger},
    metric::{MetricDefinition, MetricId, NumericEntry},
    renderer::{
        EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
        MetricsRendererTraining,
    },
};

use crate::{
    epochs::Epochs,
    pace::{SecondsLeft, in_time},
};

/// More empty places than these at once are left out: the axis then begins later.
const MOST_EMPTY: usize = 1 << 18;

/// A renderer that is told of steps, by [`Shown`](crate::shown::Shown): the items of a
/// split are those of the whole run.
pub(crate) struct BySteps {
    inner: Box<dyn MetricsRenderer>,
    epochs: Epochs,
    left: SecondsLeft,
    /// Numbers that have come, and whether they are of an evaluation. Their step comes
    /// after them.
    waiting: Vec<(bool, MetricState)>,
    /// The next place on the axis of each metric.
    places: HashMap<MetricId, usize>,
    step: usize,
    is_evaluating: bool,
}

impl BySteps {
    /// Of a run that stands after `step`.
    pub(crate) fn new(
        inner: Box<dyn MetricsRenderer>,
        epochs: Epochs,
        left: SecondsLeft,
        step: usize,
    ) -> Self {
        Self {
            inner,
            epochs,
            left,
            waiting: Vec::new(),
            places: HashMap::new(),
            step,
            is_evaluating: false,
        }
    }

    /// Keeps a number until its step is known. What ends a split is no point of a line.
    fn take(&mut self, is_valid: bool, state: MetricState) {
        match state {
            MetricState::Numeric(_, Some(NumericEntry::Final(_))) | MetricState::Generic(_) => {
                self.give(is_valid, state);
            }
            MetricState::Numeric(..) => self.waiting.push((is_valid, state)),
        }
    }

    fn give(&mut self, is_valid: bool, state: MetricState) {
        if is_valid {
            self.inner.update_valid(state);
        } else {
            self.inner.update_train(state);
        }
    }

    /// Puts the numbers that wait at the step that they are of.
    fn place(&mut self) {
        for (is_valid, state) in std::mem::take(&mut self.waiting) {
            let MetricState::Numeric(entry, value) = state else {
                continue;
            };
            let place = self.places.get(&entry.metric_id).copied().unwrap_or(0);
            let empty = self.step.saturating_sub(place);
            let empty = Some(empty).filter(|empty| *empty <= MOST_EMPTY);
            for _ in 0..empty.unwrap_or(0) {
                self.give(is_valid, MetricState::Numeric(entry.clone(), None));
            }
            self.places
                .insert(entry.metric_id.clone(), place.max(self.step) + 1);
            self.give(is_valid, MetricState::Numeric(entry, value));
        }
    }

    /// Says which step of which epoch training stands at.
    fn tell(&mut self) {
        let epoch = self.epochs.of(self.step);
        let mut label = format!("step {} of {}", self.step, self.epochs.total_steps);
        if let Some(seconds) = self.left.get() {
            label = format!("{label}, {} left", in_time(seconds));
        }
        self.inner
            .start(self.epochs.count(), epoch, None, Some(&label));
        self.inner
            .start_split("train", self.epochs.steps_per_epoch());
        self.inner.update_split(self.epochs.place(self.step));
    }
}

impl MetricsRendererTraining for BySteps {
    fn update_train(&mut self, state: MetricState) {
        self.take(false, state);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.take(true, state);
    }

    fn on_train_end(&mut self, summary: Option<LearnerSummary>) -> Result<(), Box<dyn Error>> {
        self.inner.on_train_end(summary)
    }
}

impl TrainingProgressLogger for BySteps {
    fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {
        self.inner.start(self.epochs.count(), 1, None, None);
        // The first total of a validation split is the one that the view keeps; known before that
        // of training, it does not thin the line of validation by the ratio of the two.
        self.inner.start_split("valid", 1);
        self.inner.update_split(0);
        self.tell();
    }

    /// Follows from the step.
    fn update_epoch(&mut self, _epoch: usize) {}

    fn start_split(&mut self, split: &str, _total_items: usize) {
        self.is_evaluating = split != "train";
        if self.is_evaluating {
            self.inner.start_split(split, 1);
            self.inner.update_split(0);
        }
    }

    fn update_split(&mut self, items_processed: usize) {
        self.step = items_processed;
        self.place();
        if self.is_evaluating {
            self.inner.update_split(1);
        } else {
            self.tell();
        }
    }

    fn end_split(&mut self) {
        self.inner.end_split();
        if std::mem::take(&mut self.is_evaluating) {
            self.tell();
        }
    }

    fn end(&mut self) {
        self.inner.end();
    }

    /// Burn counts each number that is given as an iteration, which is several steps here.
    fn log_event_training(&mut self, event: String) {
        if event != "Iteration" {
            self.inner.log_event_training(event);
        }
    }
}

impl MetricsRendererEvaluation for BySteps {
    fn update_test(&mut self, name: EvaluationName, state: MetricState) {
        self.inner.update_test(name, state);
    }

    fn on_test_end(&mut self, summary: Option<LearnerSummary>) -> Result<(), Box<dyn Error>> {
        self.inner.on_test_end(summary)
    }
}

impl EvaluationProgressLogger for BySteps {
    fn start_global_progress(&mut self, total_tests: usize) {
        self.inner.start_global_progress(total_tests);
    }

    fn start_test(&mut self, name: &str, total_items: usize) {
        self.inner.start_test(name, total_items);
    }

    fn update_test_progress(&mut self, items_processed: usize) {
        self.inner.update_test_progress(items_processed);
    }

    fn end_test(&mut self) {
        self.inner.end_test();
    }

    fn end_global_progress(&mut self) {
        self.inner.end_global_progress();
    }

    fn log_event_evaluation(&mut self, event: String) {
        self.inner.log_event_evaluation(event);
    }
}

impl MetricsRenderer for BySteps {
    fn manual_close(&mut self) {
        self.inner.manual_close();
    }

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.inner.register_metric(definition);
    }
}

#[cfg(test)]
mod tests;
