//! Whether a device computes right: every operation that training uses, forward
//! and backward, against the CPU.
//!
//! Open reports tell of devices whose gradients are NaN, zero or wildly off
//! while nothing fails (<https://github.com/tracel-ai/burn/issues/5162>,
//! <https://github.com/tracel-ai/burn/issues/5351>). A loss curve shows such a
//! fault late or never, so it is looked for directly: the same numbers go
//! through the same code on the device and on the CPU, and values and gradients
//! are compared.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod inputs;
mod operations;
mod packed;
mod tiny;

use burn::tensor::Device;
use olora_model::Dtype;
use olora_training::caught;
use serde::{Deserialize, Serialize};

/// Sequence lengths that lie on both sides of where kernels switch: odd, a
/// multiple of everything, one beyond that, and long.
pub const LENGTHS: [usize; 4] = [7, 64, 129, 1024];

/// The device does not compute what the CPU computes; what was found, in lines.
#[derive(Debug, thiserror::Error)]
#[error(
    "this device computes wrong gradients, so nothing was trained on it:{}\n\
     `olora doctor --device …` tells which operation it is, and whether --no-autotune or \
     --no-fusion mends it; --no-check trains nevertheless",
    listed(.0)
)]
pub struct WrongDevice(pub Vec<String>);

fn listed(lines: &[String]) -> String {
    lines
        .iter()
        .fold(String::new(), |list, line| list + "\n  " + line)
}

/// Named tensors of one operation, values and gradients, on the host.
type Outputs = Vec<(String, Vec<f32>)>;

/// A device under examination.
#[derive(Clone, Debug)]
pub struct Doctor {
    device: Device,
    reference: Device,
    lengths: Vec<usize>,
    fault: Option<String>,
}

/// One operation in one number format, over all lengths that were tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// The operation.
    pub operation: String,
    /// The number format: `float32`, `bfloat16` or `float16`.
    pub dtype: String,
    /// The largest difference from Burn's own operations on the CPU in f32, relative to the largest
    /// value of the tensor it is in; `None` if something was not finite.
    pub worst: Option<f64>,
    /// The tensor and sequence length with that difference.
    pub place: String,
    /// What rounding may explain.
    pub tolerance: f64,
    /// What follows from it.
    pub verdict: Verdict,
    /// What the device said, if the operation failed.
    pub reason: Option<String>,
}

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As exact as the number format allows.
    Right,
    /// Right to about three digits: f32 products computed in TF32 or alike.
    Coarse,
    /// Not what the CPU computes.
    Wrong,
    /// The operation could not be run.
    Failed,
}

impl Verdict {
    /// Whether training may rely on it.
    pub fn is_good(self) -> bool {
        matches!(self, Self::Right | Self::Coarse)
    }
}

/// What there is to compare, from the smallest part to a whole training run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One operation, values and gradients.
    Operation,
    /// The loss and every adapter gradient of a tiny model.
    Model,
    /// Ten losses of that model in training.
    Training,
}

impl Kind {
    /// The largest relative error that rounding explains. The half-precision
    /// figures are several times what the CPU's own half precision shows
    /// against its f32 (a test holds them to that); f32 leaves room for TF32,
    /// whose products carry ten bits.
    fn tolerance(self, dtype: Dtype) -> f64 {
        match (dtype, self) {
            (Dtype::F32, Self::Operation) => 3e-3,
            (Dtype::F32, Self::Model | Self::Training) => 1e-2,
            (Dtype::Bf16, Self::Operation) => 5e-2,
            (Dtype::Bf16, Self::Model) => 6e-2,
            (Dtype::Bf16, Self::Training) => 1e-2,
            (Dtype::F16, Self::Operation) => 5e-3,
            (Dtype::F16, Self::Model) => 1e-2,
            (Dtype::F16, Self::Training) => 2e-3,
        }
    }

    fn judge(self, dtype: Dtype, worst: Option<f64>) -> Verdict {
        // Full f32 stays below this by an order of magnitude.
        const EXACT: f64 = 2e-4;
        match worst {
            Some(worst) if worst <= self.tolerance(dtype) => {
                if dtype == Dtype::F32 && worst > EXACT {
                    Verdict::Coarse
                } else {
                    Verdict::Right
                }
            }
            _ => Verdict::Wrong,
        }
    }
}

/// An operation: its name, what kind it is, in which formats and at which
/// length it is run, and how.
#[derive(Debug)]
struct Operation {
    name: &'static str,
    kind: Kind,
    formats: Formats,
    /// What a model's weights are held in, if not in what is computed in.
    base: Option<Dtype>,
    /// The one length it is run at; each of the doctor's if there is none.
    length: Option<usize>,
    run: fn(&Bench, usize) -> Outputs,
}

/// Which number formats an operation is different in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Formats {
    All,
    /// It works in f32 whatever the model's format is.
    Full,
    /// It is nothing in f32.
    Half,
}

impl Formats {
    fn has(self, dtype: Dtype) -> bool {
        match self {
            Self::All => true,
            Self::Full => dtype == Dtype::F32,
            Self::Half => dtype != Dtype::F32,
        }
    }
}

/// Something to examine.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    operation: &'static Operation,
    dtype: Dtype,
}

impl Case {
    /// The operation's name.
    pub fn operation(&self) -> &'static str {
        self.operation.name
    }

    /// The number format's name.
    pub fn dtype(&self) -> &'static str {
        self.dtype.name()
    }
}

/// Where an operation is run: on which device, in which number format, and
/// with which fault.
struct Bench<'a> {
    device: &'a Device,
    /// What is computed in.
    dtype: Dtype,
    /// What a model's weights are held in.
    base: Dtype,
    /// Whether operations that have a composition are computed by that.
    composed: bool,
    fault: Option<&'a str>,
}

impl Doctor {
    /// Examines `device` by comparison with `reference`, the CPU.
    pub fn new(device: &Device, reference: &Device) -> Self {
        Self {
            device: device.clone().inner(),
            reference: reference.clone().inner(),
            lengths: LENGTHS.to_vec(),
            fault: None,
        }
    }

    /// Other sequence lengths than [`LENGTHS`].
    #[must_use]
    pub fn with_lengths(mut self, lengths: Vec<usize>) -> Self {
        self.lengths = lengths;
        self
    }

    /// Breaks one operation on the device, though not on the reference: its
    /// values stay, its gradient grows by a quarter. For tests of whoever
    /// relies on a finding.
    #[cfg(any(test, feature = "test-hooks"))]
    #[must_use]
    pub fn with_fault(mut self, operation: &str) -> Self {
        self.fault = Some(operation.to_owned());
        self
    }

    /// The names of all operations, which are those that a test may break.
    #[cfg(any(test, feature = "test-hooks"))]
    pub fn operations() -> Vec<&'static str> {
        operations::ALL
            .iter()
            .map(|operation| operation.name)
            .collect()
    }

    /// The number formats that the device computes in.
    pub fn dtypes(&self) -> Vec<Dtype> {
        Dtype::offered_by(&self.device)
    }

    /// Everything there is to examine: each operation in each number format
    /// that the device offers and in which it is different.
    pub fn cases(&self) -> Vec<Case> {
        self.dtypes()
            .into_iter()
            .flat_map(|dtype| {
                operations::ALL
                    .iter()
                    .map(move |operation| Case { operation, dtype })
            })
            .filter(|case| case.operation.formats.has(case.dtype))
            .collect()
    }

    /// Runs one operation on the device and on the reference.
    pub fn examine(&self, case: Case) -> Finding {
        let base = case.operation.base.unwrap_or(case.dtype);
        self.compare(case.operation, case.dtype, base)
    }

    /// The short form, in a second or two: a tiny model held in `base` and
    /// computing in `compute`, its loss, the gradient of everything that trains
    /// (every weight if `full`, else the adapters), and the losses of a few
    /// steps.
    ///
    /// # Errors
    ///
    /// [`WrongDevice`] with what was found.
    pub fn quick_check(
        &self,
        base: Dtype,
        compute: Dtype,
        full: bool,
    ) -> Result<Vec<Finding>, WrongDevice> {
        let quick = if full {
            operations::QUICK_FULL
        } else {
            operations::QUICK
        };
        let findings: Vec<Finding> = quick
            .iter()
            .map(|operation| self.compare(operation, compute, base))
            .collect();
        if findings.iter().all(|finding| finding.verdict.is_good()) {
            return Ok(findings);
        }
        Err(WrongDevice(
            findings
                .iter()
                .filter(|finding| !finding.verdict.is_good())
                .map(ToString::to_string)
                .collect(),
        ))
    }

    fn compare(&self, operation: &Operation, dtype: Dtype, base: Dtype) -> Finding {
        let mut finding = Finding {
            operation: operation.name.to_owned(),
            dtype: dtype.name().to_owned(),
            worst: Some(0.0),
            place: String::new(),
            tolerance: operation.kind.tolerance(dtype),
            verdict: Verdict::Failed,
            reason: None,
        };
        let lengths = match operation.length {
            Some(length) => vec![length],
            None => self.lengths.clone(),
        };
        for length in lengths {
            let expected = Bench {
                device: &self.reference,
                dtype: Dtype::F32,
                base: Dtype::F32,
                composed: true,
                fault: None,
            };
            let found = Bench {
                device: &self.device,
                dtype,
                base,
                composed: false,
                fault: self.fault.as_deref(),
            };
            let expected = caught(|| (operation.run)(&expected, length));
            let found = caught(|| (operation.run)(&found, length));
            match (expected, found) {
                (Ok(expected), Ok(found)) => {
                    let (worst, tensor) = worst_difference(&expected, &found);
                    let is_worse = match (worst, finding.worst) {
                        (None, Some(_)) => true,
                        (Some(worst), Some(so_far)) => worst >= so_far,
                        (_, None) => false,
                    };
                    if is_worse {
                        finding.worst = worst;
                        finding.place = format!("{tensor}, length {length}");
                    }
                }
                (Err(reason), _) => {
                    finding.reason = Some(format!("the reference failed: {reason}"));
                    return finding;
                }
                (_, Err(reason)) => {
                    finding.worst = None;
                    finding.place = format!("length {length}");
                    finding.reason = Some(reason);
                    return finding;
                }
            }
        }
        finding.verdict = operation.kind.judge(dtype, finding.worst);
        finding
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            operation,
            dtype,
            place,
            tolerance,
            ..
        } = self;
        write!(f, "{operation} in {dtype}: ")?;
        match (&self.reason, self.worst) {
            (Some(reason), _) => write!(f, "failed at {place}: {reason}"),
            (None, Some(worst)) => write!(
                f,
                "off by {worst:.1e} of the largest value ({place}), where rounding explains {tolerance:.0e}"
            ),
            (None, None) => write!(f, "not a number ({place})"),
        }
    }
}

/// The largest difference between two results, relative to the largest
/// expected value of the tensor it is in, and that tensor's name. `None` if
/// anything found is not finite.
fn worst_difference(expected: &Outputs, found: &Outputs) -> (Option<f64>, String) {
    let mut worst = (Some(-1.0), String::new());
    if expected.len() != found.len() {
        let sizes = format!("{} tensors, expected {}", found.len(), expected.len());
        return (None, sizes);
    }
    for ((name, expected), (_, found)) in expected.iter().zip(found) {
        let largest = expected
            .iter()
            .fold(0.0_f64, |largest, x| largest.max(f64::from(x.abs())));
        let difference = expected
            .iter()
            .zip(found)
            .map(|(expected, found)| f64::from((expected - found).abs()))
            .fold(0.0_f64, f64::max);
        let relative = difference / if largest > 0.0 { largest } else { 1.0 };
        // `f64::max` drops NaN.
        let finite = found.iter().all(|x| x.is_finite()) && relative.is_finite();
        if expected.len() != found.len() || !finite {
            return (None, name.clone());
        }
        if worst.0.is_some_and(|so_far| relative > so_far) {
            worst = (Some(relative), name.clone());
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use super::*;

    /// The CPU backend has one random generator per process: tests that make random weights share
    /// it.
    static GENERATOR: RwLock<()> = RwLock::new(());

    fn cpu() -> Doctor {
        let device = Device::flex();
        Doctor::new(&device, &device)
    }

    #[test]
    fn the_cpu_agrees_with_the_compositions_and_its_half_precision_within_bounds() {
        let _shared = GENERATOR.read();
        for case in cpu().cases() {
            let finding = cpu().examine(case);
            assert!(finding.verdict.is_good(), "{finding}");
            let worst = finding.worst.unwrap();
            if finding.dtype == "float32" {
                assert!(worst < 1e-5, "{finding}");
            } else {
                // Half precision has to differ, or nothing was tested (the embedding's sums fit into
                // float16); and the bound must leave room for a device that rounds elsewhere.
                assert!(worst > 0.0 || finding.operation == "embedding", "{finding}");
                assert!(worst < 0.5 * finding.tolerance, "{finding}");
            }
        }
    }

    #[test]
    fn a_gradient_a_quarter_too_large_is_found_and_named() {
        let _shared = GENERATOR.read();
        for operation in operations::ALL {
            let dtype = if operation.formats.has(Dtype::F32) {
                Dtype::F32
            } else {
                Dtype::F16
            };
            let doctor = cpu().with_lengths(vec![64]).with_fault(operation.name);
            let finding = doctor.compare(operation, dtype, dtype);
            assert_eq!(finding.verdict, Verdict::Wrong, "{finding}");
            let other = operations::ALL
                .iter()
                .find(|other| other.name != operation.name)
                .unwrap();
            let finding = doctor.compare(other, Dtype::F32, Dtype::F32);
            assert!(finding.verdict.is_good(), "{finding}");
        }
    }

    #[test]
    fn the_quick_check_passes_and_refuses() {
        use Dtype::{Bf16, F32};
        let _shared = GENERATOR.read();
        for (base, compute, full) in [(F32, F32, false), (F32, Bf16, true), (Bf16, Bf16, false)] {
            assert_eq!(cpu().quick_check(base, compute, full).unwrap().len(), 2);
        }
        let error = cpu()
            .with_fault("model")
            .quick_check(F32, F32, false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("model in float32: off by"), "{error}");
        assert!(error.contains("olora doctor"), "{error}");
    }

    #[test]
    fn what_is_not_finite_or_of_another_size_is_never_right() {
        let outputs = |values: &[f32]| vec![("x".to_owned(), values.to_vec())];
        let of = |found: &[f32]| worst_difference(&outputs(&[1.0, -2.0]), &outputs(found)).0;
        assert_eq!(of(&[1.0, -2.0]), Some(0.0));
        assert_eq!(of(&[1.0, -1.0]), Some(0.5));
        assert_eq!(of(&[f32::NAN, -2.0]), None);
        assert_eq!(of(&[1.0, f32::INFINITY]), None);
        assert_eq!(of(&[1.0]), None);
        assert_eq!(worst_difference(&outputs(&[1.0]), &Vec::new()).0, None);
        assert_eq!(Kind::Model.judge(Dtype::F32, None), Verdict::Wrong);
        assert_eq!(Kind::Model.judge(Dtype::F32, Some(1e-3)), Verdict::Coarse);
    }
}
