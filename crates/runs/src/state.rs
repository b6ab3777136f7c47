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
    pub(crate) fn best(&self) -> Option<(usize, f64)> {
        self.validation
            .iter()
            .copied()
            .filter(|(step, _)| *step > 0)
            .reduce(|best, next| if next.1 < best.1 { next } else { best })
    }
}

/// How a loop ended.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) state: RunState,
    pub(crate) interrupted: bool,
    /// The most memory that the device's allocator held at a logged line.
    pub(crate) peak_device_memory: Option<u64>,
    /// What the first step took, on a device that makes kernels.
    pub(crate) first_step_seconds: Option<f64>,
}
