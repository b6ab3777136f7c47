//! What a device's failure means to the person in front of it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{MemoryEstimate, TrainError, panics};

/// What is known about a run when its device fails.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circumstances {
    /// Whether the device is one that can fail by itself.
    pub(crate) accelerator: bool,
    /// The step that was being made, if the loop had begun.
    pub(crate) step: Option<usize>,
    /// The newest checkpoint.
    pub(crate) last_good: Option<PathBuf>,
    /// What the run is expected to take, as soon as it is known.
    pub(crate) estimate: Arc<Mutex<Option<MemoryEstimate>>>,
    /// The device's memory.
    pub(crate) memory: Option<u64>,
}

impl Circumstances {
    /// Notes what the run is expected to take, for every copy of this.
    pub(crate) fn expect(&self, estimate: MemoryEstimate) {
        *self.estimate.lock().unwrap_or_else(PoisonError::into_inner) = Some(estimate);
    }

    /// Runs a part of the run; a panic in it, or an error that comes from the
    /// device, is told as what it is.
    pub(crate) fn guard<T>(
        &self,
        part: impl FnOnce() -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        panics::caught(part)
            .unwrap_or_else(|said| Err(TrainError::Burn(said)))
            .map_err(|error| self.explain(error))
    }

    /// Recognises a device's failure in an error's text, and in what threads
    /// that serve the device have said since the process began.
    pub(crate) fn explain(&self, error: TrainError) -> TrainError {
        let reason = match &error {
            TrainError::Burn(reason) => reason.clone(),
            TrainError::Adapter(error) => error.to_string(),
            TrainError::Model(error) => error.to_string(),
            // Told already.
            _ => return error,
        };
        let heard = panics::heard();
        let out_of_memory = std::iter::once(&reason)
            .chain(&heard)
            .find(|text| is_out_of_memory(text));
        if let Some(text) = out_of_memory {
            return TrainError::OutOfMemory {
                asked: allocation(text),
                estimate: self
                    .estimate
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .map(Box::new),
                memory: self.memory,
                step: self.step,
                last_good: self.last_good.clone(),
            };
        }
        if self.accelerator && matches!(error, TrainError::Burn(_)) {
            // The caller often sees only that a thread is gone; that thread has said why.
            let said = heard.last().filter(|said| !reason.contains(said.as_str()));
            let reason = match said {
                Some(said) => format!("{reason}: {said}"),
                None => reason,
            };
            return TrainError::DeviceFailed {
                reason,
                step: self.step,
                last_good: self.last_good.clone(),
            };
        }
        error
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
        let circumstances = Circumstances {
            accelerator: true,
            step: Some(3),
            memory: Some(8_000_000_000),
            ..Circumstances::default()
        };
        for (text, expected) in cases {
            let error = circumstances.explain(TrainError::Burn(text.to_owned()));
            let TrainError::OutOfMemory { asked, .. } = &error else {
                panic!("{text}: {error}");
            };
            assert_eq!(*asked, expected, "{text}");
            let message = error.to_string();
            assert!(message.contains("training.batch_size"), "{message}");
            assert!(message.contains("8.00 GB"), "{message}");
        }
        let error = circumstances.explain(TrainError::Burn("The device is poisoned".to_owned()));
        assert!(
            matches!(error, TrainError::DeviceFailed { step: Some(3), .. }),
            "{error}"
        );
        let cpu = Circumstances::default();
        let error = cpu.explain(TrainError::Burn("something else".to_owned()));
        assert!(matches!(error, TrainError::Burn(_)), "{error}");
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let circumstances = Circumstances {
            accelerator: true,
            ..Circumstances::default()
        };
        let error = circumstances
            .guard::<()>(|| panic!("out of device memory allocating 12 bytes"))
            .unwrap_err();
        assert!(
            matches!(
                error,
                TrainError::OutOfMemory {
                    asked: Some(12),
                    ..
                }
            ),
            "{error}"
        );
    }
}
