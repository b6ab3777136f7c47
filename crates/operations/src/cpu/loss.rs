//! Cross-entropy from hidden states, some rows of logits at a time.

use burn::backend::{DType, Flex, flex::FlexTensor};
use rayon::prelude::*;

use super::{
    all_f32, contiguous,
    matrix::{Before, Matrix, add_product, multiply},
    tensor, values,
    vector::{exponentials, highest, vectorised},
};
use crate::loss::{LossAndGradients, LossKernel, Wanted, portable};

impl LossKernel for Flex {
    fn loss_and_gradients(
        hidden: FlexTensor,
        weight: FlexTensor,
        targets: FlexTensor,
        n_trained: usize,
        rows: usize,
        wanted: Wanted,
    ) -> LossAndGradients<Self> {
        let Some(ids) = host_ids(&targets).filter(|_| all_f32([&hidden, &weight])) else {
            return portable::<Self>(hidden, weight, &targets, n_trained, rows, wanted);
        };
        let hidden = contiguous(hidden);
        let weight_matrix = Matrix::of(&weight);
        let (width, vocab) = (
            weight_matrix.transposed().columns(),
            weight_matrix.columns(),
        );
        let states = values(&hidden);
        let n = ids.len();
        let with_gradient = wanted.hidden || wanted.weight;
        let mut logits = vec![0.0_f32; rows.min(n) * vocab];
        // Rows that are padding have no gradient, so what is not written must be zero.
        let mut of_hidden = wanted.hidden.then(|| vec![0.0_f32; n * width]);
        let mut of_weight = wanted.weight.then(|| vec![0.0_f32; width * vocab]);
        let mut loss = 0.0_f64;
        for start in (0..n_trained).step_by(rows) {
            let end = (start + rows).min(n_trained);
            let chunk = Matrix::of_rows(&states[start * width..end * width], width);
            let logits = &mut logits[..(end - start) * vocab];
            // SAFETY: `logits` has the product's size and is exclusively ours.
            unsafe {
                let (at, before) = (logits.as_mut_ptr(), Before::Overwritten);
                multiply(at, vocab, before, 1.0, chunk, weight_matrix);
            }
            let losses: Vec<f32> = logits
                .par_chunks_exact_mut(vocab)
                .zip(&ids[start..end])
                .map(|(row, id)| vectorised(|| of_row(row, *id, with_gradient)))
                .collect();
            loss += losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
            let of_logits = Matrix::of_rows(logits, vocab);
            if let Some(of_weight) = &mut of_weight {
                add_product(of_weight, 1.0, chunk.transposed(), of_logits);
            }
            if let Some(of_hidden) = &mut of_hidden {
                let part = &mut of_hidden[start * width..end * width];
                // SAFETY: `part` has the product's size and is exclusively ours.
                unsafe {
                    let (at, before) = (part.as_mut_ptr(), Before::Overwritten);
                    multiply(
                        at,
                        width,
                        before,
                        1.0,
                        of_logits,
                        weight_matrix.transposed(),
                    );
                }
            }
        }
        LossAndGradients {
            loss: tensor(vec![loss as f32], [1]),
            of_hidden: of_hidden.map(|of| tensor(of, [n, width])),
            of_weight: of_weight.map(|of| tensor(of, [width, vocab])),
        }
    }
}

/// Token ids, whichever integers they are kept in.
fn host_ids(ids: &FlexTensor) -> Option<Vec<usize>> {
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

/// The loss of one row of logits, which become their gradient if wanted.
#[inline(always)]
fn of_row(row: &mut [f32], target: usize, with_gradient: bool) -> f32 {
    let highest = highest(row);
    let of_target = row[target] - highest;
    let sum = exponentials(row, highest);
    if with_gradient {
        let scale = 1.0 / sum;
        for value in row.iter_mut() {
            *value *= scale;
        }
        row[target] -= 1.0;
    }
    sum.ln() - of_target
}
