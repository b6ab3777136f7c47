//! Loss over held-out data, without autodiff.

use burn::data::dataloader::DataLoader;
use olora_data::Batch;
use olora_model::Llama;
use serde::Serialize;

use crate::{TrainError, passes::loss_sum};

/// Loss over a whole data set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean cross-entropy over trained tokens, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// The number of trained tokens.
    pub n_trained_tokens: usize,
}

/// The loss of `llama`, which must not be on an autodiff device, over every
/// batch. Every token counts once, whatever batch it is in.
///
/// # Errors
///
/// When a batch cannot be read, or the device fails.
pub fn evaluate(llama: &Llama, batches: &dyn DataLoader<Batch>) -> Result<Evaluation, TrainError> {
    let (mut loss, mut n_trained_tokens) = (0.0, 0);
    for batch in batches.iter() {
        let batch = batch.map_err(|error| TrainError::burn(&error))?;
        let sum = loss_sum(llama, &batch).try_into_scalar::<f32>();
        loss += f64::from(sum.map_err(|error| TrainError::device(&error))?);
        n_trained_tokens += batch.n_trained;
    }
    let loss = loss / n_trained_tokens.max(1) as f64;
    Ok(Evaluation {
        loss,
        perplexity: loss.exp(),
        n_trained_tokens,
    })
}
