//! Attention of one query for each head: what a token of a text is made of.
//!
//! The keys are divided, so that all threads have as much to do, and the softmaxes of the parts
//! are put together at the end
//! ([flash decoding](https://crfm.stanford.edu/2023/10/12/flashdecoding.html)).

use std::ops::Range;

use super::{ForwardInputs, Heads};
use crate::cpu::{
    matrix::ROW_WORTH_THREADS,
    row::{add_some_rows, dot},
    team::hand_out_pieces,
    vector::{exp, exponentials, highest, tanh, vectorised},
};

/// Keys of a piece of work.
const KEYS: usize = 64;

/// What is known of a part of the keys beside the weighted sum of their values: the largest score, and
/// the sum of the exponentials.
const MORE: usize = 2;

/// Keys that the query heads of one key head see.
struct Piece {
    row: usize,
    kv_head: usize,
    keys: Range<usize>,
}

/// The output, `[batch, n_heads, head_dim]`, and of each head the logarithm of its softmax's
/// denominator.
pub(super) fn attend(given: &ForwardInputs) -> [Vec<f32>; 2] {
    let (sizes, mask) = (given.sizes, given.mask);
    let (head_dim, groups) = (sizes.head_dim, sizes.groups());
    let n_heads = sizes.batch * sizes.n_heads;
    let scale = mask.scale(head_dim) as f32;
    let mut queries = Vec::with_capacity(n_heads * head_dim);
    for head in 0..n_heads {
        let (row, head) = (head / sizes.n_heads, head % sizes.n_heads);
        let query = given.queries.position(row, head, 0);
        queries.extend(query.iter().map(|value| value * scale));
    }
    let mut pieces = Vec::new();
    for row in 0..sizes.batch {
        let seen = mask.keys(row, 0, 1, sizes.keys);
        for kv_head in 0..sizes.kv_heads {
            for range in [&seen.shared, &seen.own] {
                pieces.extend(range.clone().step_by(KEYS).map(|start| Piece {
                    row,
                    kv_head,
                    keys: start..(start + KEYS).min(range.end),
                }));
            }
        }
    }
    let width = groups * (head_dim + MORE);
    let mut parts = vec![0.0; pieces.len() * width];
    let attend = |i: usize, part: &mut [f32]| {
        let first = pieces[i].row * sizes.n_heads + pieces[i].kv_head * groups;
        let queries = &queries[first * head_dim..][..groups * head_dim];
        attend_piece(given, queries, &pieces[i], part);
    };
    if n_heads * sizes.keys * head_dim < ROW_WORTH_THREADS {
        let parts = parts.chunks_exact_mut(width).enumerate();
        parts.for_each(|(i, part)| attend(i, part));
    } else {
        // As the products before and after it.
        hand_out_pieces(&mut parts, width, attend);
    }
    put_together(given, &pieces, &parts)
}

/// One piece, for each query head: the values' weighted sum, the largest score and the sum of the
/// exponentials.
fn attend_piece(given: &ForwardInputs, queries: &[f32], piece: &Piece, part: &mut [f32]) {
    let Piece { row, kv_head, keys } = piece;
    let from = |heads: &Heads| heads.start(*row, *kv_head) + keys.start * heads.strides[2];
    let (n, head_dim) = (keys.len(), given.sizes.head_dim);
    let cap = given.mask.soft_cap().map(|cap| cap as f32);
    let (keys, values) = (
        &given.keys.values[from(&given.keys)..],
        &given.values.values[from(&given.values)..],
    );
    let strides = [given.keys.strides[2], given.values.strides[2]];
    vectorised!(<'a>(
        queries: &'a [f32],
        keys: &'a [f32],
        values: &'a [f32],
        strides: [usize; 2],
        n: usize,
        head_dim: usize,
        cap: Option<f32>,
        part: &'a mut [f32],
    ) {
        let parts = part.chunks_exact_mut(head_dim + MORE);
        for (query, part) in queries.chunks_exact(head_dim).zip(parts) {
            // What fills up whole registers adds e⁻⁸⁷ to a sum of at least one, which is nothing.
            let mut scores = [f32::NEG_INFINITY; KEYS];
            // Of most widths, so that the compiler keeps the query and the sums in registers.
            match head_dim {
                64 => narrow_scores::<64>(&mut scores[..n], query, keys, strides[0]),
                128 => narrow_scores::<128>(&mut scores[..n], query, keys, strides[0]),
                _ => {
                    for (i, score) in scores[..n].iter_mut().enumerate() {
                        *score = dot(query, &keys[i * strides[0]..][..head_dim]);
                    }
                }
            }
            if let Some(cap) = cap {
                for score in &mut scores[..n] {
                    *score = cap * tanh(*score / cap);
                }
            }
            let best = highest(&scores);
            let (output, more) = part.split_at_mut(head_dim);
            if scores[..n].iter().all(|score| *score == f32::NEG_INFINITY) {
                // Without weight beside any other piece.
                more.copy_from_slice(&[best, 0.0]);
                continue;
            }
            let sum = exponentials(&mut scores[..n.next_multiple_of(32)], best);
            add_some_rows(output, &scores[..n], values, strides[1]);
            more.copy_from_slice(&[best, sum]);
        }
    });
}

/// [`dot`] of a query with keys of a width that is known, with its bits.
#[inline(always)]
fn narrow_scores<const WIDTH: usize>(
    scores: &mut [f32],
    query: &[f32],
    keys: &[f32],
    stride: usize,
) {
    let Some(query) = query.first_chunk::<WIDTH>() else {
        return;
    };
    for (i, score) in scores.iter_mut().enumerate() {
        let key = &keys[i * stride..][..WIDTH];
        *score = dot(query, key);
    }
}

/// The softmax over all keys, from those of the pieces, which lie in the order of rows and key heads.
fn put_together(given: &ForwardInputs, pieces: &[Piece], parts: &[f32]) -> [Vec<f32>; 2] {
    let (sizes, groups) = (given.sizes, given.sizes.groups());
    let (head_dim, n_heads) = (sizes.head_dim, sizes.batch * sizes.n_heads);
    let width = head_dim + MORE;
    let mut output = vec![0.0; n_heads * head_dim];
    let mut log_sums = vec![0.0; n_heads];
    let same = |a: &Piece, b: &Piece| (a.row, a.kv_head) == (b.row, b.kv_head);
    let mut parts = parts.chunks_exact(groups * width);
    for pieces in pieces.chunk_by(same) {
        let first = pieces[0].row * sizes.n_heads + pieces[0].kv_head * groups;
        let parts: Vec<_> = parts.by_ref().take(pieces.len()).collect();
        for group in 0..groups {
            let of_head = parts.iter().map(|part| &part[group * width..][..width]);
            let best = of_head
                .clone()
                .fold(f32::NEG_INFINITY, |best, part| best.max(part[head_dim]));
            let output = &mut output[(first + group) * head_dim..][..head_dim];
            let mut sum = 0.0;
            for part in of_head {
                let rescale = if part[head_dim] == best {
                    1.0
                } else {
                    exp(part[head_dim] - best)
                };
                sum += rescale * part[head_dim + 1];
                for (output, value) in output.iter_mut().zip(part) {
                    *output += rescale * value;
                }
            }
            let scale = 1.0 / sum;
            for value in output {
                *value *= scale;
            }
            log_sums[first + group] = best + sum.ln();
        }
    }
    [output, log_sums]
}
