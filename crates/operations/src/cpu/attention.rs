//! Attention by tiles of queries, one head of one row at a time.

use burn::backend::{Flex, flex::FlexTensor};
use rayon::prelude::*;

use super::{
    all_f32, by_heads, dense_last,
    matrix::{Before, Matrix, multiply_alone},
    rows::Shared,
    shape, strided, tensor, values,
    vector::{exp, exponentials, highest, sum, vectorised},
};
use crate::attention::{
    Attended, AttentionKernel, AttentionMask, Sizes, portable_backward, portable_forward,
};

/// Queries of a tile.
const QUERIES: usize = 64;
/// Keys of a tile: with the queries, scores of 128 KiB, which stay in a core's cache.
const KEYS: usize = 512;

/// Heads of `[batch, heads, seq, head_dim]`, wherever they lie.
struct Heads<'a> {
    values: &'a [f32],
    strides: [usize; 3],
    head_dim: usize,
}

impl<'a> Heads<'a> {
    fn of(tensor: &'a FlexTensor) -> Self {
        Self {
            values: strided(tensor),
            strides: [0, 1, 2].map(|axis| tensor.layout().strides()[axis] as usize),
            head_dim: shape(tensor)[3],
        }
    }

    fn start(&self, row: usize, head: usize) -> usize {
        row * self.strides[0] + head * self.strides[1]
    }

    /// Some positions of one head.
    fn positions(&self, row: usize, head: usize, range: &std::ops::Range<usize>) -> Matrix {
        let start = self.start(row, head) + range.start * self.strides[2];
        Matrix::new(
            &self.values[start..],
            range.len(),
            self.head_dim,
            self.strides[2],
        )
    }

    fn position(&self, row: usize, head: usize, position: usize) -> &[f32] {
        &self.values[self.start(row, head) + position * self.strides[2]..][..self.head_dim]
    }
}

/// The keys that a tile of queries sees, in tiles.
fn key_tiles(
    mask: &AttentionMask,
    sizes: Sizes,
    row: usize,
    queries: &std::ops::Range<usize>,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let seen = queries
        .clone()
        .map(|query| mask.keys(row, query, sizes.seq, sizes.keys));
    let (mut start, mut end) = (usize::MAX, 0);
    for keys in seen {
        start = start.min(keys.start);
        end = end.max(keys.end);
    }
    (start..end)
        .step_by(KEYS)
        .map(move |at| at..(at + KEYS).min(end))
}

/// Part of a tile's row: the keys that its query sees.
fn within(seen: &std::ops::Range<usize>, tile: &std::ops::Range<usize>) -> std::ops::Range<usize> {
    let start = seen.start.clamp(tile.start, tile.end);
    let end = seen.end.clamp(start, tile.end);
    start - tile.start..end - tile.start
}

impl AttentionKernel for Flex {
    fn attention_forward(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        mask: &AttentionMask,
    ) -> Attended<Self> {
        if !all_f32([&q, &k, &v]) {
            return portable_forward::<Self>(q, k, v, mask);
        }
        let [q, k, v] = [q, k, v].map(dense_last);
        let sizes = Sizes::of(&shape(&q), &shape(&k));
        let (queries, keys, vals) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
        let Sizes {
            batch,
            n_heads,
            seq,
            head_dim,
            ..
        } = sizes;
        let n = batch * n_heads * seq;
        let mut output: Vec<f32> = Vec::with_capacity(n * head_dim);
        let mut log_sums: Vec<f32> = Vec::with_capacity(n);
        let (out, sums) = (
            Shared::new(output.as_mut_ptr()),
            Shared::new(log_sums.as_mut_ptr()),
        );
        let tiles = seq.div_ceil(QUERIES);
        (0..batch * n_heads * tiles).into_par_iter().for_each_init(
            || vec![0.0_f32; QUERIES * KEYS],
            |scores, item| {
                // The last tiles see the most keys: they come first, so that none is left over.
                let tile = tiles - 1 - item % tiles;
                let (row, head) = (item / tiles / n_heads, item / tiles % n_heads);
                let range = tile * QUERIES..((tile + 1) * QUERIES).min(seq);
                // SAFETY: output and sums are as large as all items together, and the positions
                // of this head are this item's alone.
                unsafe {
                    let out = out.at(((row * seq + range.start) * n_heads + head) * head_dim);
                    let sums = sums.at((row * n_heads + head) * seq + range.start);
                    let sums = std::slice::from_raw_parts_mut(
                        sums.cast::<std::mem::MaybeUninit<f32>>(),
                        range.len(),
                    );
                    let heads = (&queries, &keys, &vals);
                    forward_tile(sizes, mask, heads, (row, head), range, scores, out, sums);
                }
            },
        );
        // SAFETY: every tile has written its output and its sums.
        unsafe {
            output.set_len(n * head_dim);
            log_sums.set_len(n);
        }
        Attended {
            output: by_heads(output, [batch, n_heads, seq, head_dim]),
            log_sums: tensor(log_sums, [batch, n_heads, seq]),
        }
    }

    fn attention_backward(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        mask: &AttentionMask,
        forward: Attended<Self>,
        grad: FlexTensor,
    ) -> [FlexTensor; 3] {
        if !all_f32([&q, &k, &v, &grad]) {
            return portable_backward::<Self>(q, k, v, mask, forward, grad);
        }
        let [q, k, v, grad] = [q, k, v, grad].map(dense_last);
        let sizes = Sizes::of(&shape(&q), &shape(&k));
        let Sizes {
            batch,
            n_heads,
            kv_heads,
            seq,
            keys: n_keys,
            head_dim,
        } = sizes;
        let given = Given {
            sizes,
            mask,
            queries: Heads::of(&q),
            keys: Heads::of(&k),
            values: Heads::of(&v),
            outputs: Heads::of(&forward.output),
            grads: Heads::of(&grad),
            log_sums: values(&forward.log_sums),
        };
        let n = batch * n_heads * seq * head_dim;
        let mut grad_q: Vec<f32> = Vec::with_capacity(n);
        let out = Shared::new(grad_q.as_mut_ptr());
        let width = n_keys * head_dim;
        // Each query head has gradients of its own for the keys and values that it shares, and
        // they are added in order: the result does not depend on who finishes first.
        let parts: Vec<[Vec<f32>; 2]> = (0..batch * n_heads)
            .into_par_iter()
            .map(|item| {
                let (row, head) = (item / n_heads, item % n_heads);
                // SAFETY: `grad_q` is as large as all items together, and the positions of this
                // head are this item's alone.
                unsafe {
                    let out = out.at((row * seq * n_heads + head) * head_dim);
                    given.backward_head(row, head, out)
                }
            })
            .collect();
        // SAFETY: every head has written all of its positions.
        unsafe { grad_q.set_len(n) };
        let groups = sizes.groups();
        let gather = |which: usize| {
            let mut whole = vec![0.0_f32; batch * n_keys * kv_heads * head_dim];
            whole
                .par_chunks_mut((kv_heads * width).max(1))
                .enumerate()
                .for_each(|(row, whole)| {
                    for head in 0..n_heads {
                        let part = &parts[row * n_heads + head][which];
                        let at = head / groups * head_dim;
                        for (i, part) in part.chunks_exact(head_dim).enumerate() {
                            let to = &mut whole[i * kv_heads * head_dim + at..][..head_dim];
                            for (to, part) in to.iter_mut().zip(part) {
                                *to += part;
                            }
                        }
                    }
                });
            by_heads(whole, [batch, kv_heads, n_keys, head_dim])
        };
        let (grad_k, grad_v) = rayon::join(|| gather(0), || gather(1));
        [
            by_heads(grad_q, [batch, n_heads, seq, head_dim]),
            grad_k,
            grad_v,
        ]
    }
}

/// One tile of queries: softmax over tiles of keys, rescaled as larger scores
/// turn up.
///
/// # Safety
///
/// `out` must be valid for the tile's positions, `n_heads · head_dim` apart,
/// and nothing else may touch them.
#[allow(clippy::too_many_arguments, reason = "all of one tile")]
unsafe fn forward_tile(
    sizes: Sizes,
    mask: &AttentionMask,
    (queries, keys, values): (&Heads, &Heads, &Heads),
    (row, head): (usize, usize),
    range: std::ops::Range<usize>,
    scores: &mut [f32],
    out: *mut f32,
    log_sums: &mut [std::mem::MaybeUninit<f32>],
) {
    let head_dim = sizes.head_dim;
    let stride = sizes.n_heads * head_dim;
    let kv_head = head / sizes.groups();
    let tile = queries.positions(row, head, &range);
    let mut best = [f32::NEG_INFINITY; QUERIES];
    let mut sums = [0.0_f32; QUERIES];
    let mut before = Before::Overwritten;
    for key_range in key_tiles(mask, sizes, row, &range) {
        let n = key_range.len();
        let scores = &mut scores[..range.len() * n];
        let key_tile = keys.positions(row, kv_head, &key_range);
        // SAFETY: `scores` has the product's size.
        unsafe {
            let at = scores.as_mut_ptr();
            let scale = sizes.scale() as f32;
            multiply_alone(
                at,
                n,
                Before::Overwritten,
                scale,
                tile,
                key_tile.transposed(),
            );
        }
        vectorised(|| {
            for (i, scores) in scores.chunks_exact_mut(n).enumerate() {
                let seen = mask.keys(row, range.start + i, sizes.seq, sizes.keys);
                let part = within(&seen, &key_range);
                scores[..part.start].fill(0.0);
                scores[part.end..].fill(0.0);
                if part.is_empty() {
                    continue;
                }
                let scores = &mut scores[part];
                let higher = highest(scores).max(best[i]);
                let rescale = if before == Before::Kept && best[i] > f32::NEG_INFINITY {
                    exp(best[i] - higher)
                } else {
                    1.0
                };
                best[i] = higher;
                sums[i] = sums[i] * rescale + exponentials(scores, higher);
                if rescale != 1.0 {
                    // SAFETY: the caller's; earlier tiles have written this position.
                    let out =
                        unsafe { std::slice::from_raw_parts_mut(out.add(i * stride), head_dim) };
                    for out in out {
                        *out *= rescale;
                    }
                }
            }
        });
        let value_tile = values.positions(row, kv_head, &key_range);
        // SAFETY: the caller's.
        unsafe {
            let weights = Matrix::of_rows(scores, n);
            multiply_alone(out, stride, before, 1.0, weights, value_tile);
        }
        before = Before::Kept;
    }
    for (i, log_sum) in log_sums.iter_mut().enumerate() {
        log_sum.write(best[i] + sums[i].ln());
        // SAFETY: the caller's; the tiles have written this position.
        let out = unsafe { std::slice::from_raw_parts_mut(out.add(i * stride), head_dim) };
        let scale = 1.0 / sums[i];
        for out in out {
            *out *= scale;
        }
    }
}

/// What the backward pass works from.
struct Given<'a> {
    sizes: Sizes,
    mask: &'a AttentionMask,
    queries: Heads<'a>,
    keys: Heads<'a>,
    values: Heads<'a>,
    outputs: Heads<'a>,
    grads: Heads<'a>,
    log_sums: &'a [f32],
}

impl Given<'_> {
    /// One head of one row: writes the gradient of its queries, returns its
    /// parts of those of keys and values.
    ///
    /// # Safety
    ///
    /// `out` must be valid for the head's positions, `n_heads · head_dim`
    /// apart, and nothing else may touch them.
    unsafe fn backward_head(&self, row: usize, head: usize, out: *mut f32) -> [Vec<f32>; 2] {
        let Sizes {
            n_heads,
            seq,
            keys: n_keys,
            head_dim,
            ..
        } = self.sizes;
        let stride = n_heads * head_dim;
        let kv_head = head / self.sizes.groups();
        let scale = self.sizes.scale() as f32;
        let mut grad_keys = vec![0.0_f32; n_keys * head_dim];
        let mut grad_values = vec![0.0_f32; n_keys * head_dim];
        let mut weights = vec![0.0_f32; QUERIES * KEYS];
        let mut grad_scores = vec![0.0_f32; QUERIES * KEYS];
        for start in (0..seq).step_by(QUERIES) {
            let range = start..(start + QUERIES).min(seq);
            let tile = self.queries.positions(row, head, &range);
            let grad_tile = self.grads.positions(row, head, &range);
            let mut along = [0.0_f32; QUERIES];
            vectorised(|| {
                for (along, position) in along.iter_mut().zip(range.clone()) {
                    let output = self.outputs.position(row, head, position);
                    let grad = self.grads.position(row, head, position);
                    *along = sum(head_dim, |i| output[i] * grad[i]);
                }
            });
            let log_sums = &self.log_sums[(row * n_heads + head) * seq + start..][..range.len()];
            let mut before = Before::Overwritten;
            for key_range in key_tiles(self.mask, self.sizes, row, &range) {
                let n = key_range.len();
                let weights = &mut weights[..range.len() * n];
                let grad_scores = &mut grad_scores[..range.len() * n];
                let key_tile = self.keys.positions(row, kv_head, &key_range);
                let value_tile = self.values.positions(row, kv_head, &key_range);
                // SAFETY: both have the products' size.
                unsafe {
                    let fresh = Before::Overwritten;
                    let at = weights.as_mut_ptr();
                    multiply_alone(at, n, fresh, scale, tile, key_tile.transposed());
                    let at = grad_scores.as_mut_ptr();
                    multiply_alone(at, n, fresh, 1.0, grad_tile, value_tile.transposed());
                }
                vectorised(|| {
                    let rows = weights
                        .chunks_exact_mut(n)
                        .zip(grad_scores.chunks_exact_mut(n));
                    for (i, (weights, grad_scores)) in rows.enumerate() {
                        let seen = self.mask.keys(row, start + i, seq, n_keys);
                        let part = within(&seen, &key_range);
                        for outside in [0..part.start, part.end..n] {
                            weights[outside.clone()].fill(0.0);
                            grad_scores[outside].fill(0.0);
                        }
                        let (along, log_sum) = (along[i], log_sums[i]);
                        let both = weights[part.clone()].iter_mut().zip(&mut grad_scores[part]);
                        for (weight, grad_score) in both {
                            *weight = exp(*weight - log_sum);
                            *grad_score = *weight * (*grad_score - along) * scale;
                        }
                    }
                });
                let weights = Matrix::of_rows(weights, n);
                let grad_scores = Matrix::of_rows(grad_scores, n);
                let at = key_range.start * head_dim;
                // SAFETY: the parts of keys and values are as large as the products; the queries'
                // is the caller's.
                unsafe {
                    let kept = Before::Kept;
                    let to = grad_values[at..].as_mut_ptr();
                    multiply_alone(to, head_dim, kept, 1.0, weights.transposed(), grad_tile);
                    let to = grad_keys[at..].as_mut_ptr();
                    multiply_alone(to, head_dim, kept, 1.0, grad_scores.transposed(), tile);
                    let to = out.add(start * stride);
                    multiply_alone(to, stride, before, 1.0, grad_scores, key_tile);
                }
                before = Before::Kept;
            }
        }
        [grad_keys, grad_values]
    }
}
