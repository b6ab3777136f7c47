//! What a device's failure means to the person in front of it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use olora_adapter::AdapterError;
use olora_model::ModelError;

use crate::{TrainError, panics};

/// What is known about some work when its device fails.
#[derive(Clone, Debug)]
pub struct FailureContext {
    /// Whether the device is one that can fail by itself.
    accelerator: bool,
    /// The device's memory.
    memory: Option<u64>,
    /// What to lower when it is out of memory.
    advice: String,
    /// What the work is expected to take, for people, as soon as it is known.
    expected: Arc<Mutex<Option<String>>>,
    /// How many panics had been heard before.
    n_heard: usize,
    /// The step that was being made, if the loop had begun.
    step: Option<usize>,
    /// The newest checkpoint.
    last_good: Option<PathBuf>,
}

/// Runs something on a device. A panic in it, or an error that comes from the
/// device, is told as what it is; `advice` is what to do when memory runs out.
///
/// # Errors
///
/// Those of `part`, and [`TrainError::OutOfMemory`], [`TrainError::DeviceFailed`]
/// and [`TrainError::Device`].
pub fn on_device<T, E: DeviceErrors>(
    accelerator: bool,
    memory: Option<u64>,
    advice: &str,
    part: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    FailureContext::new(accelerator, memory, advice).guard(part)
}

/// An error type that the errors of computing are part of.
pub trait DeviceErrors: From<TrainError> {
    /// The error of computing that this is.
    ///
    /// # Errors
    ///
    /// Itself, if it is another one.
    fn into_train(self) -> Result<TrainError, Self>;
}

impl DeviceErrors for TrainError {
    fn into_train(self) -> Result<TrainError, Self> {
        Ok(self)
    }
}

impl FailureContext {
    /// Of a device that can fail by itself if it is an `accelerator`, with
    /// `memory` bytes where that is known; `advice` is what to do when those do
    /// not suffice.
    pub fn new(accelerator: bool, memory: Option<u64>, advice: &str) -> Self {
        Self {
            accelerator,
            memory,
            advice: advice.to_owned(),
            expected: Arc::default(),
            n_heard: panics::n_heard(),
            step: None,
            last_good: None,
        }
    }

    /// The same, in the middle of a run.
    #[must_use]
    pub fn at_step(&self, step: usize, last_good: Option<PathBuf>) -> Self {
        Self {
            step: Some(step),
            last_good,
            ..self.clone()
        }
    }

    /// Notes what the work is expected to take, for every copy of this.
    pub fn expect(&self, memory: &impl ToString) {
        let memory = memory.to_string();
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
    }

    /// Runs a part of the work; a panic in it, or an error that comes from the
    /// device, is told as what it is.
    ///
    /// # Errors
    ///
    /// Those of `part`, explained.
    pub fn guard<T, E: DeviceErrors>(&self, part: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        panics::caught(part)
            .unwrap_or_else(|said| Err(TrainError::Device(said).into()))
            .map_err(|error| match error.into_train() {
                Ok(error) => self.explain(error).into(),
                Err(other) => other,
            })
    }

    /// Recognises a device's failure in an error's text, and in what threads
    /// that serve the device have said since the work began.
    pub fn explain(&self, error: TrainError) -> TrainError {
        let reason = match &error {
            TrainError::Device(reason) => reason.clone(),
            TrainError::Adapter(error @ AdapterError::Device { .. }) => error.to_string(),
            TrainError::Model(error @ ModelError::Device { .. }) => error.to_string(),
            _ => return error,
        };
        let heard = panics::heard_since(self.n_heard);
        let out_of_memory = std::iter::once(&reason)
            .chain(&heard)
            .find(|text| is_out_of_memory(text));
        if let Some(text) = out_of_memory {
            let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
            return TrainError::OutOfMemory {
                asked: allocation(text),
                expected: expected.clone(),
                memory: self.memory,
                advice: self.advice.clone(),
                step: self.step,
                last_good: self.last_good.clone(),
            };
        }
        if !self.accelerator {
            return error;
        }
        // The caller often sees only that a thread is gone; that thread has said why.
        let said = heard.last().filter(|said| !reason.contains(said.as_str()));
        TrainError::DeviceFailed {
            reason: match said {
                Some(said) => format!("{reason}: {said}"),
                None => reason,
            },
            step: self.step,
            last_good: self.last_good.clone(),
        }
    }
}

/// The ways in which CubeCL 0.11, wgpu 30 and CUDA say it.
fn is_out_of_memory(text: &str) -> bool {
    let text = text.to_lowercase();
    [
        "out of device memory",
        "out of memory",
        "can't allocate buffer",
        "error_out_of_memory",
        "was never allocated",
        "not enough memory",
        "exceeds the max buffer size",
        "buffer size limit",
    ]
    .iter()
    .any(|sign| text.contains(sign))
}

/// How many bytes were asked for, where the text says it.
fn allocation(text: &str) -> Option<u64> {
    ["allocating ", "buffer of size: ", "buffer of size "]
        .iter()
        .find_map(|before| {
            let rest = &text[text.find(before)? + before.len()..];
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu() -> FailureContext {
        FailureContext::new(true, Some(8_000_000_000), "Lower training.batch_size")
    }

    #[test]
    fn the_sentences_of_the_drivers_are_understood() {
        let cases = [
            (
                "Caused by: An IO error happened\nout of device memory allocating 536870912 bytes",
                Some(536_870_912),
            ),
            (
                "can't allocate buffer of size: 17179869184",
                Some(17_179_869_184),
            ),
            ("wgpu error: Out of Memory", None),
            (
                "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
                None,
            ),
        ];
        let context = gpu().at_step(3, None);
        for (text, expected) in cases {
            let error = context.explain(TrainError::Device(text.to_owned()));
            let TrainError::OutOfMemory { asked, .. } = &error else {
                panic!("{text}: {error}");
            };
            assert_eq!(*asked, expected, "{text}");
            let message = error.to_string();
            assert!(message.contains("training.batch_size"), "{message}");
            assert!(message.contains("8.00 GB"), "{message}");
        }
        let error = context.explain(TrainError::Device("The device is poisoned".to_owned()));
        assert!(
            matches!(error, TrainError::DeviceFailed { step: Some(3), .. }),
            "{error}"
        );
        // What is not the device's is left as it is, and so is everything on the CPU.
        let error = context.explain(TrainError::Burn("out of memory".to_owned()));
        assert!(matches!(error, TrainError::Burn(_)), "{error}");
        let cpu = FailureContext::new(false, None, "");
        let error = cpu.explain(TrainError::Device("something else".to_owned()));
        assert!(matches!(error, TrainError::Device(_)), "{error}");
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let error = gpu()
            .guard::<(), TrainError>(|| panic!("out of device memory allocating 12 bytes"))
            .unwrap_err();
        let asked = match &error {
            TrainError::OutOfMemory { asked, .. } => *asked,
            _ => None,
        };
        assert_eq!(asked, Some(12), "{error}");
    }
}
