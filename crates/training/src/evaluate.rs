//! Loss over held-out data, without autodiff.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use olora_adapter::switched_off;
use olora_data::Batch;
use olora_model::{Llama, first_not_finite};
use serde::{Serialize, Serializer};

use crate::{
    Exchange, ExchangeError, Local, TrainError,
    header::Bytes,
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
    evaluate_together(&Local, objective, llama, batches)
}

/// The same with the batches shared out among ranks: `batches` are every
/// `n_ranks`-th one from this rank's number on. What they give is added in the
/// order of all batches, so the result is that of one process.
///
/// # Errors
///
/// Those of [`evaluate`]; [`TrainError::Exchange`] if another rank has failed.
pub fn evaluate_together<E: ToString>(
    exchange: &dyn Exchange,
    objective: &dyn Objective,
    llama: &Llama,
    batches: impl IntoIterator<Item = Result<Batch, E>>,
) -> Result<Evaluation, TrainError> {
    let compares = objective.needs_reference();
    let base = compares.then(|| switched_off(llama.clone())).transpose()?;
    evaluate_beside(exchange, objective, llama, base.as_ref(), batches)
}

/// The same, compared with any model.
pub(crate) fn evaluate_beside<E: ToString>(
    exchange: &dyn Exchange,
    objective: &dyn Objective,
    llama: &Llama,
    reference: Option<&Llama>,
    batches: impl IntoIterator<Item = Result<Batch, E>>,
) -> Result<Evaluation, TrainError> {
    let mut mine = Vec::new();
    for batch in batches {
        exchange.check()?;
        let batch = batch.map_err(|error| TrainError::burn(&error))?;
        let found = forward(objective, llama, reference, &batch);
        let loss = read(found.sum)?;
        if !loss.is_finite() {
            return Err(TrainError::NotFinite {
                value: loss,
                first: first(llama, &batch)?,
            });
        }
        let measures = found.measures.into_iter();
        let measures = measures.map(|(name, sum)| Ok((name.to_owned(), read(sum)?)));
        mine.push(OfBatch {
            loss,
            count: objective.count(&batch),
            measures: measures.collect::<Result<_, TrainError>>()?,
        });
    }
    let (mut sum, mut count) = (0.0, 0.0);
    let mut measures = BTreeMap::<String, f64>::new();
    for of_batch in gathered(exchange, mine)? {
        sum += of_batch.loss;
        count += of_batch.count;
        for (name, sum) in of_batch.measures {
            *measures.entry(name).or_default() += sum;
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

/// The sums of one batch.
struct OfBatch {
    loss: f64,
    count: f64,
    measures: Vec<(String, f64)>,
}

/// The batches of all ranks, in the order that one process would take them.
fn gathered(exchange: &dyn Exchange, mine: Vec<OfBatch>) -> Result<Vec<OfBatch>, TrainError> {
    if exchange.n_ranks() == 1 {
        return Ok(mine);
    }
    let mut bytes = Vec::new();
    for of_batch in &mine {
        bytes.extend(of_batch.loss.to_le_bytes());
        bytes.extend(of_batch.count.to_le_bytes());
        bytes.extend((of_batch.measures.len() as u64).to_le_bytes());
        for (name, sum) in &of_batch.measures {
            bytes.extend((name.len() as u64).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(sum.to_le_bytes());
        }
    }
    let all = exchange.gather(bytes)?;
    let mut of_ranks = Vec::with_capacity(all.len());
    for (rank, bytes) in all.iter().enumerate() {
        let mut rest = Bytes(bytes);
        let mut of_rank = Vec::new();
        while !rest.0.is_empty() {
            of_rank.push(OfBatch::take(&mut rest).ok_or_else(|| {
                let who = exchange.name(rank);
                ExchangeError::Differ(format!("{who} sent an evaluation that is cut short"))
            })?);
        }
        of_ranks.push(of_rank.into_iter());
    }
    let mut ordered = Vec::new();
    loop {
        let before = ordered.len();
        for of_rank in &mut of_ranks {
            ordered.extend(of_rank.next());
        }
        if ordered.len() == before {
            return Ok(ordered);
        }
    }
}

impl OfBatch {
    fn take(bytes: &mut Bytes<'_>) -> Option<Self> {
        let loss = f64::from_bits(bytes.u64()?);
        let count = f64::from_bits(bytes.u64()?);
        let n = bytes.u64()?;
        let mut measures = Vec::new();
        for _ in 0..n {
            let length = usize::try_from(bytes.u64()?).ok()?;
            let name = String::from_utf8(bytes.take(length)?.to_vec()).ok()?;
            measures.push((name, f64::from_bits(bytes.u64()?)));
        }
        Some(Self {
            loss,
            count,
            measures,
        })
    }
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
