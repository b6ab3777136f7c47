//! Where a run stands, and how its loop ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// Completed steps.
    pub(crate) step: usize,
    /// Consumed micro-batches: the data cursor.
    pub(crate) n_batches: usize,
    /// Unpadded input tokens so far.
    pub(crate) tokens: u64,
    /// Seconds of training so far.
    pub(crate) seconds: f64,
    /// Validation losses so far.
    pub(crate) validation: Vec<(usize, f64)>,
    /// What else the evaluations measured, beside `validation` and as long, if the
    /// objective measures anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) validation_measures: Vec<BTreeMap<String, f64>>,
    /// The measure that the best evaluation is the highest in; the loss, the lowest
    /// of which is best, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) best_by: Option<String>,
    /// What has happened since the last logged line.
    pub(crate) window: Window,
    /// Training loss of the last logged line.
    #[serde(default)]
    pub(crate) last_loss: Option<f64>,
    /// Identifies the samples and the base weights that the run was started on.
    pub(crate) fingerprint: u64,
}

/// Sums over the steps since the last logged line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) loss_sum: f64,
    /// What `loss_sum` is to be divided by.
    pub(crate) n_trained: f64,
    pub(crate) tokens: u64,
    pub(crate) seconds: f64,
    /// An objective's other sums.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) measures: BTreeMap<String, f64>,
}

impl RunState {
    /// The trained step with the lowest validation loss, the first of equals.
    ///
    /// By a task, it is the one with the highest score, with its loss.
    pub(crate) fn best(&self) -> Option<(usize, f64)> {
        let trained = self.validation.iter().zip(0..);
        let trained = trained.filter(|((step, _), _)| *step > 0);
        // What is to be low.
        let value = |place: usize, loss: f64| match &self.best_by {
            None => loss,
            Some(name) => self
                .score(place, name)
                .map_or(f64::INFINITY, |score| -score),
        };
        trained
            .map(|(&(step, loss), place)| (step, loss, value(place, loss)))
            .reduce(|best, next| if next.2 < best.2 { next } else { best })
            .map(|(step, loss, _)| (step, loss))
    }

    /// What was measured under this name at an evaluation.
    fn score(&self, place: usize, name: &str) -> Option<f64> {
        self.validation_measures.get(place)?.get(name).copied()
    }

    /// What the best evaluation is best in, for people.
    pub(crate) fn best_in_words(&self) -> String {
        let Some((step, loss)) = self.best() else {
            return "none".to_owned();
        };
        match &self.best_by {
            None => format!("a lower validation loss than {loss:.4}, after step {step}"),
            Some(name) => {
                let place = self.validation.iter().position(|(at, _)| *at == step);
                let score = place.and_then(|place| self.score(place, name));
                format!(
                    "a higher {name} than {:.4}, after step {step}",
                    score.unwrap_or(f64::NAN)
                )
            }
        }
    }
}

impl RunState {
    /// Evaluations since the one with the lowest validation loss.
    pub(crate) fn unimproved(&self) -> usize {
        let best = self.best().map_or(usize::MAX, |(step, _)| step);
        let steps = self.validation.iter().map(|(step, _)| *step);
        steps.filter(|step| *step > best).count()
    }
}

/// How a loop ended.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) state: RunState,
    pub(crate) interrupted: bool,
    /// Whether the validation loss had ceased to fall.
    pub(crate) stopped_early: bool,
    /// The most memory that the device's allocator held at a logged line.
    pub(crate) peak_device_memory: Option<u64>,
    /// What the first step took, on a device that makes kernels.
    pub(crate) first_step_seconds: Option<f64>,
}
