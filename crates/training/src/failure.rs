//! What a device's failure means to the person in front of it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use olora_adapter::AdapterError;
use olora_model::ModelError;

use crate::{DeviceTraits, MemoryEstimate, TrainError, panics};

/// What is known about a run when its device fails.
#[derive(Clone, Debug)]
pub(crate) struct Circumstances {
    /// Whether the device is one that can fail by itself.
    accelerator: bool,
    /// The device's memory.
    memory: Option<u64>,
    /// What to lower when it is out of memory.
    advice: String,
    /// What the run is expected to take, as soon as it is known.
    estimate: Arc<Mutex<Option<MemoryEstimate>>>,
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
pub fn on_device<T>(
    device: &DeviceTraits,
    advice: &str,
    part: impl FnOnce() -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    Circumstances::new(device, advice).guard(part)
}

impl Circumstances {
    pub(crate) fn new(device: &DeviceTraits, advice: &str) -> Self {
        Self {
            accelerator: device.accelerator,
            memory: device.memory,
            advice: advice.to_owned(),
            estimate: Arc::default(),
            n_heard: panics::n_heard(),
            step: None,
            last_good: None,
        }
    }

    /// The same, in the middle of a run.
    pub(crate) fn at_step(&self, step: usize, last_good: Option<PathBuf>) -> Self {
        Self {
            step: Some(step),
            last_good,
            ..self.clone()
        }
    }

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
            .unwrap_or_else(|said| Err(TrainError::Device(said)))
            .map_err(|error| self.explain(error))
    }

    /// Recognises a device's failure in an error's text, and in what threads
    /// that serve the device have said since the run began.
    pub(crate) fn explain(&self, error: TrainError) -> TrainError {
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
            let estimate = *self.estimate.lock().unwrap_or_else(PoisonError::into_inner);
            return TrainError::OutOfMemory {
                asked: allocation(text),
                estimate: estimate.map(Box::new),
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

    fn gpu() -> Circumstances {
        let device = DeviceTraits {
            accelerator: true,
            memory: Some(8_000_000_000),
            ..DeviceTraits::default()
        };
        Circumstances::new(&device, "Lower training.batch_size")
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
        let circumstances = gpu().at_step(3, None);
        for (text, expected) in cases {
            let error = circumstances.explain(TrainError::Device(text.to_owned()));
            let TrainError::OutOfMemory { asked, .. } = &error else {
                panic!("{text}: {error}");
            };
            assert_eq!(*asked, expected, "{text}");
            let message = error.to_string();
            assert!(message.contains("training.batch_size"), "{message}");
            assert!(message.contains("8.00 GB"), "{message}");
        }
        let error = circumstances.explain(TrainError::Device("The device is poisoned".to_owned()));
        assert!(
            matches!(error, TrainError::DeviceFailed { step: Some(3), .. }),
            "{error}"
        );
        // What is not the device's is left as it is, and so is everything on the CPU.
        let error = circumstances.explain(TrainError::Burn("out of memory".to_owned()));
        assert!(matches!(error, TrainError::Burn(_)), "{error}");
        let cpu = Circumstances::new(&DeviceTraits::default(), "");
        let error = cpu.explain(TrainError::Device("something else".to_owned()));
        assert!(matches!(error, TrainError::Device(_)), "{error}");
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let error = gpu()
            .guard::<()>(|| panic!("out of device memory allocating 12 bytes"))
            .unwrap_err();
        let asked = match &error {
            TrainError::OutOfMemory { asked, .. } => *asked,
            _ => None,
        };
        assert_eq!(asked, Some(12), "{error}");
    }
}
