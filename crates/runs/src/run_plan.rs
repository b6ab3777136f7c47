//! What is said of a run before it begins.

use std::path::PathBuf;

use serde::Serialize;

use crate::{MemoryEstimate, Precision};

/// What a run is going to do.
#[derive(Clone, Debug, Serialize)]
pub struct RunPlan {
    /// The run directory.
    pub directory: PathBuf,
    /// All parameters, adapter included.
    pub n_params: usize,
    /// Those that train.
    pub n_trained_params: usize,
    /// Adapted layers.
    pub n_adapted_layers: usize,
    /// Seconds spent initialising the adapter.
    pub attach_seconds: f64,
    /// Steps in all.
    pub total_steps: usize,
    /// Micro-batches in one pass over the data.
    pub batches_per_epoch: usize,
    /// Passes over the data.
    pub epochs: f64,
    /// Sequences per step.
    pub sequences_per_step: usize,
    /// Whether these are pairs of sequences, and samples pairs of answers.
    pub in_pairs: bool,
    /// Training sequences.
    pub n_samples: usize,
    /// The number formats.
    pub precision: Precision,
    /// The memory that the run is expected to take.
    pub memory: MemoryEstimate,
    /// The memory that the device has, in bytes, where it is known.
    pub device_memory: Option<u64>,
}
