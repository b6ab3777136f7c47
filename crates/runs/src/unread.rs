//! Numbers of steps that are still on the device.

use burn::tensor::Tensor;
use olora_training::StepResult;

use crate::{RunError, state::Window};

/// A step that the host has not looked at yet.
pub(crate) struct Unread {
    pub(crate) step: usize,
    pub(crate) result: StepResult,
}

/// Brings the losses of some steps to the host and adds them up. Returns the last
/// gradient norm.
///
/// # Errors
///
/// [`RunError::NotFinite`] if one is not a number, and those of the device.
pub(crate) fn read(unread: &[Unread], window: &mut Window) -> Result<f64, RunError> {
    if unread.is_empty() {
        return Ok(0.0);
    }
    // One reading, since each waits for the device.
    let all = unread
        .iter()
        .flat_map(|Unread { result, .. }| {
            let measures = result.measures.iter().map(|(_, sum)| sum.clone());
            [result.loss.clone(), result.norm.clone()]
                .into_iter()
                .chain(measures)
        })
        .collect();
    let values = Tensor::cat(all, 0)
        .try_into_data()
        .map_err(|error| RunError::device(&error))?
        .try_to_vec::<f32>()
        .map_err(|error| RunError::device(&error))?;
    let mut values = values.into_iter();
    let mut next = || f64::from(values.next().unwrap_or(f32::NAN));
    let mut last_norm = 0.0;
    for Unread { step, result } in unread {
        let (loss, norm) = (next(), next());
        for (what, value) in [("loss", loss), ("gradient norm", norm)] {
            if !value.is_finite() {
                return Err(RunError::NotFinite {
                    what,
                    first: None,
                    value: value as f32,
                    step: *step,
                    last_good: None,
                });
            }
        }
        for (name, _) in &result.measures {
            *window.measures.entry((*name).to_owned()).or_default() += next();
        }
        window.loss_sum += loss;
        window.n_trained += result.count;
        last_norm = norm;
    }
    Ok(last_norm)
}
