//! Loss over held-out data, without autodiff.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use olora_adapter::switched_off;
use olora_data::Batch;
use olora_model::{Llama, first_not_finite};
use serde::{Serialize, Serializer};

use crate::{
    TrainError,
    objective::{Objective, means},
    passes::{embedded, forward},
};

/// Loss over a whole data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The mean of the objective: for cross-entropy, by trained token, in nats.
    pub loss: f64,
    /// `exp(loss)`, where the loss is the cross-entropy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// What the sum was divided by: for cross-entropy, the trained tokens, or the
    /// sum of their weights.
    #[serde(serialize_with = "whole_if_it_is")]
    pub count: f64,
    /// The objective's other means, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub measures: BTreeMap<String, f64>,
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
    evaluate_beside(objective, llama, base.as_ref(), batches)
}

/// The same, compared with any model.
pub(crate) fn evaluate_beside<E: ToString>(
    objective: &dyn Objective,
    llama: &Llama,
    reference: Option<&Llama>,
    batches: impl IntoIterator<Item = Result<Batch, E>>,
) -> Result<Evaluation, TrainError> {
    let (mut sum, mut count) = (0.0, 0.0);
    let mut measures = BTreeMap::<String, f64>::new();
    for batch in batches {
        let batch = batch.map_err(|error| TrainError::burn(&error))?;
        let found = forward(objective, llama, reference, &batch);
        let loss = read(found.sum)?;
        if !loss.is_finite() {
            return Err(TrainError::NotFinite {
                value: loss,
                first: first(llama, &batch)?,
            });
        }
        sum += loss;
        count += objective.count(&batch);
        for (name, sum) in found.measures {
            *measures.entry(name.to_owned()).or_default() += read(sum)?;
        }
    }
    let divisor = if count > 0.0 { count } else { 1.0 };
    let loss = sum / divisor;
    Ok(Evaluation {
        loss,
        perplexity: objective.is_cross_entropy().then(|| loss.exp()),
        count,
        measures: means(&measures, divisor),
    })
}

/// A count of tokens is written without a point.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "for serde")]
fn whole_if_it_is<S: Serializer>(count: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if count.fract() == 0.0 {
        serializer.serialize_u64(*count as u64)
    } else {
        serializer.serialize_f64(*count)
    }
}

fn read(sum: Tensor<1>) -> Result<f64, TrainError> {
    let value = sum.try_into_scalar::<f32>();
    value
        .map(f64::from)
        .map_err(|error| TrainError::device(&error))
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
