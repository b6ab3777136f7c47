//! The errors of what computes.

use std::path::{Path, PathBuf};

use olora_adapter::AdapterError;
use olora_data::DataError;
use olora_files::size;
use olora_model::ModelError;

use crate::ExchangeError;

/// Why something could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Model, tokenizer and data do not belong together.
    #[error("{0}")]
    Mismatch(String),
    /// A loss over data is no number.
    #[error("the loss is {value}: {first}")]
    NotFinite {
        /// NaN or infinity.
        value: f64,
        /// The first tensor or layer that is not finite, in a sentence.
        first: String,
    },
    /// The device's memory does not hold the work.
    #[error(
        "{}the device is out of memory{}{}. {advice}{}",
        during(*.step),
        .asked.map(|bytes| format!(": it could not allocate {}", size(bytes))).unwrap_or_default(),
        needs(.expected.as_deref(), *.memory),
        after(*.step, .last_good.as_deref())
    )]
    OutOfMemory {
        /// The allocation that failed, in bytes.
        asked: Option<u64>,
        /// What the work was expected to take, for people.
        expected: Option<String>,
        /// What the device has, in bytes.
        memory: Option<u64>,
        /// What to lower.
        advice: String,
        /// The step that was being made.
        step: Option<usize>,
        /// The last checkpoint written before it.
        last_good: Option<PathBuf>,
    },
    /// The device stopped answering.
    #[error(
        "{}the device failed: {reason}{}. It cannot be used again in this process",
        during(*.step),
        after(*.step, .last_good.as_deref())
    )]
    DeviceFailed {
        /// What its driver said.
        reason: String,
        /// The step that was being made.
        step: Option<usize>,
        /// The last checkpoint written before it.
        last_good: Option<PathBuf>,
    },
    /// An operation on the device failed.
    #[error("computing failed: {0}")]
    Device(String),
    /// Burn's learner or a worker thread failed.
    #[error("training failed: {0}")]
    Burn(String),
    /// The adapter could not be attached, saved or loaded.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The data could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model could not be read or written.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Another process of the run has failed, or is gone.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

impl TrainError {
    /// What Burn said.
    pub fn burn(error: &impl ToString) -> Self {
        Self::Burn(error.to_string())
    }

    /// What a device said.
    pub fn device(error: &impl ToString) -> Self {
        Self::Device(error.to_string())
    }
}

/// Reading losses waits until several steps are done, so a failure has come up
/// to this step, not necessarily in it.
fn during(step: Option<usize>) -> String {
    step.map_or_else(String::new, |step| format!("by step {step} "))
}

fn needs(expected: Option<&str>, memory: Option<u64>) -> String {
    match (expected, memory) {
        (None, None) => String::new(),
        (None, Some(memory)) => format!(". The device has {}", size(memory)),
        (Some(expected), None) => format!(". By estimate this run takes {expected}"),
        (Some(expected), Some(memory)) => format!(
            ". By estimate this run takes {expected}, and the device has {}",
            size(memory)
        ),
    }
}

fn after(step: Option<usize>, last_good: Option<&Path>) -> String {
    match (step, last_good) {
        (None, _) => String::new(),
        (Some(_), Some(path)) => format!("; the last good checkpoint is {}", path.display()),
        (Some(_), None) => "; no checkpoint had been written yet".to_owned(),
    }
}
