//! One pass over the logits of all rows, some rows at a time.

use std::ops::Range;

use burn::backend::{DType, flex::FlexTensor};
use rayon::prelude::*;

use super::{
    frozen::Frozen,
    matrix::{Matrix, add_product},
    vector::{exp, exponentials, highest, sum, tanh, vectorised},
};
use crate::logits::{LogitsWay, WantedGradients};

/// What a pass gives, for the rows that it was given ids of.
pub(super) struct Pass {
    /// The log-probability of each row's target.
    pub log_likelihoods: Vec<f32>,
    /// The gradient of `−Σ scale·log-likelihood` by the hidden states, if
    /// wanted.
    pub grad_hidden: Option<Vec<f32>>,
    /// The same by the weight, if wanted.
    pub grad_weight: Option<Vec<f32>>,
}

/// A pass over the first `ids.len()` of the hidden states, one after the other
/// in `hidden`, with some rows of logits at a time. Rows after those are
/// padding, whose gradient is zero. `scales` is what each row counts in the
/// gradients: one each if there are none.
pub(super) fn pass(
    hidden: &[f32],
    weight: Frozen,
    ids: &[usize],
    scales: Option<&[f32]>,
    way: LogitsWay,
    wanted: WantedGradients,
) -> Pass {
    let rows = way.rows;
    let cap = way.soft_cap.map(|cap| cap as f32);
    let (width, vocab) = (weight.d_in(), weight.d_out());
    let n = ids.len();
    let mut logits = vec![0.0_f32; rows.min(n) * vocab];
    // Rows that are padding have no gradient, so what is not written must be zero.
    let mut grad_hidden = wanted.hidden.then(|| vec![0.0_f32; hidden.len()]);
    let mut grad_weight = wanted.weight.then(|| vec![0.0_f32; width * vocab]);
    let mut log_likelihoods = Vec::with_capacity(n);
    for start in (0..n).step_by(rows) {
        let end = (start + rows).min(n);
        let chunk = Matrix::of_rows(&hidden[start * width..end * width], width);
        let logits = &mut logits[..(end - start) * vocab];
        weight.write_product(logits, chunk);
        let of_chunk: Vec<f32> = logits
            .par_chunks_exact_mut(vocab)
            .zip(start..end)
            .map(|(row, i)| {
                let scale = scales.map_or(1.0, |scales| scales[i]);
                let grad_scale = wanted.any().then_some(scale);
                let target = ids[i];
                vectorised!(<'a>(
                    row: &'a mut [f32],
                    target: usize,
                    grad_scale: Option<f32>,
                    cap: Option<f32>,
                ) -> f32 {
                    match cap {
                        None => one_row(row, target, grad_scale),
                        Some(cap) => one_capped_row(row, target, grad_scale, cap),
                    }
                })
            })
            .collect();
        log_likelihoods.extend(of_chunk);
        let grad_logits = Matrix::of_rows(logits, vocab);
        if let Some(grad_weight) = &mut grad_weight {
            add_product(grad_weight, 1.0, chunk.transposed(), grad_logits);
        }
        if let Some(grad_hidden) = &mut grad_hidden {
            let part = &mut grad_hidden[start * width..end * width];
            weight.write_back_in_slices(part, grad_logits, slices(vocab));
        }
    }
    Pass {
        log_likelihoods,
        grad_hidden,
        grad_weight,
    }
}

/// Tokens of the vocabulary that a gradient is summed over at once, in as even
/// parts as there can be. With a packed weight, so many times some of the width
/// are unpacked at once; a dense one keeps the same order of sums.
const SLICE: usize = 4096;

fn slices(vocab: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = vocab.div_ceil(SLICE);
    (0..parts).map(move |i| i * vocab / parts..(i + 1) * vocab / parts)
}

/// The log-likelihood of one row's target; its logits become the gradient of
/// minus that, times `grad_scale`, if there is one.
#[inline(always)]
fn one_row(row: &mut [f32], target: usize, grad_scale: Option<f32>) -> f32 {
    let highest = highest(row);
    let of_target = row[target] - highest;
    let sum = exponentials(row, highest);
    if let Some(grad_scale) = grad_scale {
        let scale = 1.0 / sum * grad_scale;
        for value in row.iter_mut() {
            *value *= scale;
        }
        row[target] -= grad_scale;
    }
    of_target - sum.ln()
}

/// [`one_row`] where a cap bends the logits. They stay as they are until the
/// gradient is made of them, so that exponentials are computed twice.
#[inline(always)]
fn one_capped_row(row: &mut [f32], target: usize, grad_scale: Option<f32>, cap: f32) -> f32 {
    for value in row.iter_mut() {
        *value = cap * tanh(*value / cap);
    }
    let highest = highest(row);
    let of_target = row[target] - highest;
    let sum = {
        let row: &[f32] = row;
        sum(row.len(), |i| exp(row[i] - highest))
    };
    if let Some(grad_scale) = grad_scale {
        let scale = 1.0 / sum * grad_scale;
        let bent = row[target] / cap;
        let of_hot = grad_scale * (1.0 - bent * bent);
        for value in row.iter_mut() {
            let bent = *value / cap;
            *value = exp(*value - highest) * scale * (1.0 - bent * bent);
        }
        row[target] -= of_hot;
    }
    of_target - sum.ln()
}

/// Token ids, whichever integers they are kept in.
pub(super) fn host_ids(ids: &FlexTensor) -> Option<Vec<usize>> {
    let ids = ids.to_contiguous();
    let range =
        ids.layout().start_offset()..ids.layout().start_offset() + ids.layout().num_elements();
    match ids.dtype() {
        DType::I32 => Some(
            ids.storage::<i32>()[range]
                .iter()
                .map(|id| *id as usize)
                .collect(),
        ),
        DType::I64 => Some(
            ids.storage::<i64>()[range]
                .iter()
                .map(|id| *id as usize)
                .collect(),
        ),
        _ => None,
    }
}
