//! Loss over held-out data, without autodiff.

use olora_adapter::switched_off;
use olora_data::Batch;
use olora_model::{Llama, first_not_finite};
use serde::Serialize;

use crate::{
    TrainError,
    objective::Objective,
    passes::{embedded, forward},
};

/// Loss over a whole data set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The mean of the objective: for cross-entropy, by trained token, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// What the sum was divided by: for cross-entropy, the trained tokens.
    pub n_trained_tokens: usize,
}

/// The loss of `llama`, which must not be on an autodiff device, over every
/// batch. Every token counts once, whatever batch it is in.
///
/// # Errors
///
/// When a batch cannot be read, or the device fails; and
/// [`TrainError::NotFinite`] if a batch's loss is no number, with the first
/// tensor or layer that is not finite.
pub fn evaluate<E: ToString>(
    objective: &dyn Objective,
    llama: &Llama,
    batches: impl IntoIterator<Item = Result<Batch, E>>,
) -> Result<Evaluation, TrainError> {
    let compares = objective.needs_reference();
    let base = compares.then(|| switched_off(llama.clone())).transpose()?;
    let (mut sum, mut count) = (0.0, 0);
    for batch in batches {
        let batch = batch.map_err(|error| TrainError::burn(&error))?;
        let loss = forward(objective, llama, base.as_ref(), &batch).sum;
        let loss = loss.try_into_scalar::<f32>();
        let loss = f64::from(loss.map_err(|error| TrainError::device(&error))?);
        if !loss.is_finite() {
            return Err(TrainError::NotFinite {
                value: loss,
                first: first(llama, &batch)?,
            });
        }
        sum += loss;
        count += objective.count(&batch);
    }
    let loss = sum / count.max(1) as f64;
    Ok(Evaluation {
        loss,
        perplexity: loss.exp(),
        n_trained_tokens: count,
    })
}

/// Where a batch stops being finite, in a sentence.
fn first(llama: &Llama, batch: &Batch) -> Result<String, TrainError> {
    let (embedded, positions) = embedded(llama, batch, &llama.device());
    Ok(match first_not_finite(llama, embedded, &positions)? {
        Some(found) => found.to_string(),
        None => {
            "computed a second time, everything is finite: the device does not compute the same \
                 twice. `olora doctor` examines it"
                .to_owned()
        }
    })
}
