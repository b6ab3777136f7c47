//! Attention by tiles of queries, one head of one row at a time.

mod single;

use std::{mem::MaybeUninit, ops::Range};

use burn::backend::{Flex, flex::FlexTensor};
use rayon::prelude::*;

use super::{
    all_f32,
    bf16::{self, Kernel, rounded},
    by_heads, dense_last,
    matrix::{Before, Matrix, ROW_WORTH_THREADS, multiply_alone},
    rows::{SharedRoom, build_shared},
    shape, strided, tensor, values,
    vector::{exp, exponentials, highest, sum, tanh, vectorised},
};
use crate::{
    Products,
    attention::{
        Attended, AttentionKernel, AttentionMask, Seen, Sizes, Summed, portable_backward,
        portable_forward,
    },
};

/// Queries of a tile.
const QUERIES: usize = 64;
/// The score of a hidden key between others: finite, and no weight is left of it.
const HIDDEN: f32 = -1e30;
/// Keys of a tile: with the queries, scores of 128 KiB, which stay in a core's cache.
const KEYS: usize = 512;

/// Heads of `[batch, heads, seq, head_dim]`, wherever they lie.
struct Heads<'a> {
    values: &'a [f32],
    strides: [usize; 3],
    head_dim: usize,
}

impl<'a> Heads<'a> {
    /// Of a tensor that [`dense_last`] gave.
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
    fn positions(&self, row: usize, head: usize, range: &Range<usize>) -> Matrix<'a> {
        let start = self.start(row, head) + range.start * self.strides[2];
        Matrix::new(
            &self.values[start..],
            range.len(),
            self.head_dim,
            self.strides[2],
        )
    }

    fn position(&self, row: usize, head: usize, position: usize) -> &'a [f32] {
        &self.values[self.start(row, head) + position * self.strides[2]..][..self.head_dim]
    }
}

/// From the first of both to the last.
fn both(one: Option<Range<usize>>, other: Range<usize>) -> Range<usize> {
    match one {
        None => other,
        Some(one) => one.start.min(other.start)..one.end.max(other.end),
    }
}

/// The keys that a tile of queries sees, in tiles: at least one.
fn key_tiles(
    mask: &AttentionMask,
    sizes: Sizes,
    row: usize,
    queries: &Range<usize>,
) -> impl Iterator<Item = Range<usize>> {
    let seen = queries
        .clone()
        .map(|query| mask.keys(row, query, sizes.seq, sizes.keys));
    let [mut shared, mut own] = [None, None];
    for keys in seen {
        own = Some(both(own, keys.own));
        if !keys.shared.is_empty() {
            shared = Some(both(shared, keys.shared));
        }
    }
    let own = own.unwrap_or(0..0);
    // What lies between what all continue and what is their own is passed over.
    let [apart, own] = match shared {
        None => [0..0, own],
        Some(shared) if shared.end < own.start => [shared, own],
        Some(shared) => [0..0, both(Some(shared), own)],
    };
    [apart, own].into_iter().flat_map(|range| {
        let end = range.end;
        range.step_by(KEYS).map(move |at| at..(at + KEYS).min(end))
    })
}

/// The keys of a tile that a query sees: all of `part` but `hole`.
struct Within {
    part: Range<usize>,
    hole: Range<usize>,
}

impl Within {
    fn of(seen: &Seen, tile: &Range<usize>) -> Self {
        let [shared, own] = [&seen.shared, &seen.own].map(|range| {
            let start = range.start.clamp(tile.start, tile.end);
            let end = range.end.clamp(start, tile.end);
            start - tile.start..end - tile.start
        });
        match (shared.is_empty(), own.is_empty()) {
            (true, _) => Self {
                hole: own.start..own.start,
                part: own,
            },
            (false, true) => Self {
                hole: shared.end..shared.end,
                part: shared,
            },
            (false, false) => Self {
                part: shared.start..own.end,
                hole: shared.end..own.start,
            },
        }
    }

    /// The hole, from the beginning of the part.
    fn hole_in_part(&self) -> Range<usize> {
        self.hole.start - self.part.start..self.hole.end - self.part.start
    }
}

/// Where `[batch, seq, n_heads, head_dim]` has one head of one position.
fn position_of(sizes: Sizes, row: usize, head: usize, position: usize) -> Range<usize> {
    let start = ((row * sizes.seq + position) * sizes.n_heads + head) * sizes.head_dim;
    start..start + sizes.head_dim
}

/// Whether all of `[batch, heads, seq, head_dim]` are finite numbers.
fn is_finite(tensor: &FlexTensor) -> bool {
    let (heads, shape) = (Heads::of(tensor), shape(tensor));
    let [batch, n_heads, seq] = [0, 1, 2].map(|axis| shape[axis]);
    (0..batch * n_heads).into_par_iter().all(|item| {
        let (row, head) = (item / n_heads, item % n_heads);
        let heads = &heads;
        vectorised!(<'a>(heads: &'a Heads<'a>, row: usize, head: usize, seq: usize) -> bool {
            for position in 0..seq {
                let values = heads.position(row, head, position);
                // Zero times what is not finite is not zero.
                if sum(values.len(), |i| values[i] * 0.0) != 0.0 {
                    return false;
                }
            }
            true
        })
    })
}

/// A tensor as a product that sums over its positions is given it. To look
/// whether there is anything to take out costs less than taking it out.
fn summed(tensor: &FlexTensor, mask: &AttentionMask) -> Summed<Flex> {
    let apart = mask.has_documents() && !is_finite(tensor);
    let mut summed = Summed::<Flex>::new(tensor.clone(), apart);
    summed.finite.0 = dense_last(summed.finite.0);
    summed
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
        let Sizes {
            batch,
            n_heads,
            seq,
            head_dim,
            ..
        } = sizes;
        let n = batch * n_heads * seq;
        let summed_v = summed(&v, mask);
        let given = ForwardInputs {
            multiply: multiply_for(products(mask, sizes)),
            sizes,
            mask,
            queries: Heads::of(&q),
            keys: Heads::of(&k),
            values: Heads::of(&summed_v.finite.0),
        };
        let tiles = seq.div_ceil(QUERIES);
        let fill = |[output, log_sums]: [SharedRoom; 2]| {
            let attend = |tile_memory: &mut ForwardTile, item: usize| {
                // The last tiles see the most keys: they come first, so that none is left over.
                let tile = tiles - 1 - item % tiles;
                let (row, head) = (item / tiles / n_heads, item / tiles % n_heads);
                let queries = tile * QUERIES..((tile + 1) * QUERIES).min(seq);
                tile_memory.attend(&given, row, head, &queries);
                for (i, position) in queries.enumerate() {
                    let to = position_of(sizes, row, head, position);
                    let at = (row * n_heads + head) * seq + position;
                    // SAFETY: no other item has this position of this head, and this is the
                    // only time that this one asks for it.
                    let (to, log_sum) = unsafe { (output.part(to), log_sums.part(at..at + 1)) };
                    tile_memory.write(i, to, &mut log_sum[0]);
                }
            };
            let new_tile = || ForwardTile::new(QUERIES.min(seq), head_dim);
            let items = batch * n_heads * tiles;
            if n * sizes.keys * head_dim < ROW_WORTH_THREADS {
                let mut tile_memory = new_tile();
                (0..items).for_each(|item| attend(&mut tile_memory, item));
            } else {
                let items = (0..items).into_par_iter();
                items.for_each_init(new_tile, attend);
            }
        };
        let [output, log_sums] = if seq == 1 {
            single::attend(&given)
        } else {
            // SAFETY: rows, heads and tiles are gone through, the tiles' queries are all positions,
            // and `write` writes all that it is given.
            unsafe { build_shared([n * head_dim, n], fill) }
        };
        let output = by_heads(output, [batch, n_heads, seq, head_dim]);
        Attended {
            output: summed_v.finish(output, || mask.keys_of_queries(sizes)),
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
        let output = dense_last(forward.output);
        let sizes = Sizes::of(&shape(&q), &shape(&k));
        let Sizes {
            batch,
            n_heads,
            kv_heads,
            seq,
            keys: n_keys,
            head_dim,
        } = sizes;
        let [summed_q, summed_k, summed_grad] = [&q, &k, &grad].map(|x| summed(x, mask));
        let given = BackwardInputs {
            sizes,
            mask,
            queries: Heads::of(&q),
            keys: Heads::of(&k),
            values: Heads::of(&v),
            outputs: Heads::of(&output),
            grads: Heads::of(&grad),
            summed_queries: Heads::of(&summed_q.finite.0),
            summed_keys: Heads::of(&summed_k.finite.0),
            summed_grads: Heads::of(&summed_grad.finite.0),
            log_sums: values(&forward.log_sums),
        };
        let n = batch * n_heads * seq * head_dim;
        let width = n_keys * head_dim;
        // Each query head has gradients of its own for the keys and values that it shares, and
        // they are added in order: the result does not depend on who finishes first.
        let mut parts: Vec<[Vec<f32>; 2]> = Vec::new();
        let fill = |[grad_q]: [SharedRoom; 1]| {
            (0..batch * n_heads)
                .into_par_iter()
                .map(|item| {
                    let (row, head) = (item / n_heads, item % n_heads);
                    given.backward_head(row, head, |position, found| {
                        // SAFETY: no other item has this head of this row, and it is given each
                        // position once.
                        let room = unsafe { grad_q.part(position_of(sizes, row, head, position)) };
                        for (room, found) in room.iter_mut().zip(found) {
                            room.write(*found);
                        }
                    })
                })
                .collect_into_vec(&mut parts);
        };
        // SAFETY: rows and heads are gone through, `backward_head` gives all positions of each, and
        // what it gives is as long as the room, `head_dim`.
        let [grad_q] = unsafe { build_shared([n], fill) };
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
        let grad_q = by_heads(grad_q, [batch, n_heads, seq, head_dim]);
        [
            summed_k.finish(grad_q, || mask.keys_of_queries(sizes)),
            summed_q.finish(grad_k, || mask.queries_of_keys(sizes)),
            summed_grad.finish(grad_v, || mask.queries_of_keys(sizes)),
        ]
    }
}

/// `output = [output +] scale·left·right` on one thread.
type Multiply = fn(&mut [f32], Before, f32, Matrix, Matrix);

/// How a mask has products computed, forwards and back: of a single query, as what makes a token
/// has, always exactly.
fn products(mask: &AttentionMask, sizes: Sizes) -> Products {
    if sizes.seq == 1 {
        Products::Exact
    } else {
        mask.products()
    }
}

fn multiply_for(products: Products) -> Multiply {
    match products {
        Products::Exact => multiply_alone,
        Products::Rounded => |output, before, scale, left, right| {
            bf16::multiply_alone(Kernel::best(), output, before, scale, left, right);
        },
    }
}

/// What the forward pass works from.
struct ForwardInputs<'a> {
    multiply: Multiply,
    sizes: Sizes,
    mask: &'a AttentionMask,
    queries: Heads<'a>,
    keys: Heads<'a>,
    values: Heads<'a>,
}

/// One tile of queries, in memory that one thread uses for tile after tile.
struct ForwardTile {
    /// Room for the scores with a tile of keys.
    scores: Vec<f32>,
    /// The output so far, not yet divided by the sums, `[queries, head_dim]`.
    output: Vec<f32>,
    head_dim: usize,
    /// The largest score of each query.
    best: [f32; QUERIES],
    /// The sum of each query's exponentials.
    sums: [f32; QUERIES],
}

impl ForwardTile {
    /// For tiles of at most `queries`.
    fn new(queries: usize, head_dim: usize) -> Self {
        Self {
            scores: vec![0.0; queries * KEYS],
            output: vec![0.0; queries * head_dim],
            head_dim,
            best: [0.0; QUERIES],
            sums: [0.0; QUERIES],
        }
    }

    /// Softmax over tiles of keys, rescaled as larger scores turn up.
    fn attend(&mut self, given: &ForwardInputs, row: usize, head: usize, queries: &Range<usize>) {
        let &ForwardInputs { sizes, mask, .. } = given;
        let head_dim = self.head_dim;
        let kv_head = head / sizes.groups();
        let tile = given.queries.positions(row, head, queries);
        self.best = [f32::NEG_INFINITY; QUERIES];
        self.sums = [0.0; QUERIES];
        let output = &mut self.output[..queries.len() * head_dim];
        let cap = mask.soft_cap().map(|cap| cap as f32);
        let multiply = given.multiply;
        let mut before = Before::Overwritten;
        for key_range in key_tiles(mask, sizes, row, queries) {
            let n = key_range.len();
            let scores = &mut self.scores[..queries.len() * n];
            let key_tile = given.keys.positions(row, kv_head, &key_range);
            let scale = mask.scale(head_dim) as f32;
            multiply(
                scores,
                Before::Overwritten,
                scale,
                tile,
                key_tile.transposed(),
            );
            let (best, sums) = (&mut self.best, &mut self.sums);
            for (i, scores) in scores.chunks_exact_mut(n).enumerate() {
                let seen = mask.keys(row, queries.start + i, sizes.seq, sizes.keys);
                let within = Within::of(&seen, &key_range);
                let (part, hole) = (within.part.clone(), within.hole_in_part());
                scores[..part.start].fill(0.0);
                scores[part.end..].fill(0.0);
                if part.is_empty() {
                    continue;
                }
                let scores = &mut scores[part];
                let (best, sum) = (&mut best[i], &mut sums[i]);
                let so_far = match before {
                    Before::Kept => Some(&mut output[i * head_dim..][..head_dim]),
                    Before::Overwritten => None,
                };
                vectorised!(<'a>(
                    scores: &'a mut [f32],
                    best: &'a mut f32,
                    sum: &'a mut f32,
                    so_far: Option<&'a mut [f32]>,
                    cap: Option<f32>,
                    hole: Range<usize>,
                ) {
                    if let Some(cap) = cap {
                        for score in scores.iter_mut() {
                            *score = cap * tanh(*score / cap);
                        }
                    }
                    scores[hole.clone()].fill(HIDDEN);
                    add_scores(scores, best, sum, so_far);
                    scores[hole].fill(0.0);
                });
            }
            let value_tile = given.values.positions(row, kv_head, &key_range);
            let weights = Matrix::of_rows(scores, n);
            multiply(output, before, 1.0, weights, value_tile);
            before = Before::Kept;
        }
    }

    /// Writes the output of the tile's query `i`, and the logarithm of its
    /// softmax's denominator.
    fn write(&self, i: usize, output: &mut [MaybeUninit<f32>], log_sum: &mut MaybeUninit<f32>) {
        log_sum.write(self.best[i] + self.sums[i].ln());
        let scale = 1.0 / self.sums[i];
        let found = &self.output[i * self.head_dim..][..output.len()];
        for (output, found) in output.iter_mut().zip(found) {
            output.write(found * scale);
        }
    }
}

/// Takes one query's scores with a tile of keys into its softmax, and leaves
/// their exponentials. `so_far` is the output of tiles before, if any.
#[inline(always)]
fn add_scores(scores: &mut [f32], best: &mut f32, sum: &mut f32, so_far: Option<&mut [f32]>) {
    let higher = highest(scores).max(*best);
    let rescale = if so_far.is_some() && *best > f32::NEG_INFINITY {
        exp(*best - higher)
    } else {
        1.0
    };
    *best = higher;
    *sum = *sum * rescale + exponentials(scores, higher);
    if rescale != 1.0 {
        for out in so_far.into_iter().flatten() {
            *out *= rescale;
        }
    }
}

/// Makes scores the weights that they became, with the logarithm of their sum, and
/// the gradients of those weights the scores' own.
#[inline(always)]
fn back_through_softmax(
    weights: &mut [f32],
    grad_scores: &mut [f32],
    [along, log_sum, scale]: [f32; 3],
    cap: Option<f32>,
) {
    let both = weights.iter_mut().zip(grad_scores);
    match cap {
        Some(cap) => {
            for (weight, grad_score) in both {
                let bent = tanh(*weight / cap);
                *weight = exp(cap * bent - log_sum);
                let slope = 1.0 - bent * bent;
                *grad_score = *weight * (*grad_score - along) * scale * slope;
            }
        }
        None => {
            for (weight, grad_score) in both {
                *weight = exp(*weight - log_sum);
                *grad_score = *weight * (*grad_score - along) * scale;
            }
        }
    }
}

/// What the backward pass works from.
struct BackwardInputs<'a> {
    sizes: Sizes,
    mask: &'a AttentionMask,
    queries: Heads<'a>,
    keys: Heads<'a>,
    values: Heads<'a>,
    outputs: Heads<'a>,
    grads: Heads<'a>,
    /// The queries, keys and gradients for products that sum over positions.
    summed_queries: Heads<'a>,
    summed_keys: Heads<'a>,
    summed_grads: Heads<'a>,
    log_sums: &'a [f32],
}

impl BackwardInputs<'_> {
    /// One head of one row: hands out the gradient of each of its queries, with
    /// its position, and returns its parts of those of keys and values.
    fn backward_head(
        &self,
        row: usize,
        head: usize,
        mut write_grad_query: impl FnMut(usize, &[f32]),
    ) -> [Vec<f32>; 2] {
        let Sizes {
            n_heads,
            seq,
            keys: n_keys,
            head_dim,
            ..
        } = self.sizes;
        let kv_head = head / self.sizes.groups();
        let products = products(self.mask, self.sizes);
        let multiply = multiply_for(products);
        let scale = self.mask.scale(head_dim) as f32;
        let cap = self.mask.soft_cap().map(|cap| cap as f32);
        let mut grad_keys = vec![0.0_f32; n_keys * head_dim];
        let mut grad_values = vec![0.0_f32; n_keys * head_dim];
        let mut grad_queries = vec![0.0_f32; QUERIES * head_dim];
        let mut weights = vec![0.0_f32; QUERIES * KEYS];
        let mut grad_scores = vec![0.0_f32; QUERIES * KEYS];
        for start in (0..seq).step_by(QUERIES) {
            let range = start..(start + QUERIES).min(seq);
            let tile = self.queries.positions(row, head, &range);
            let grad_tile = self.grads.positions(row, head, &range);
            let summed_tile = self.summed_queries.positions(row, head, &range);
            let summed_grad_tile = self.summed_grads.positions(row, head, &range);
            let grad_queries = &mut grad_queries[..range.len() * head_dim];
            let mut along = [0.0_f32; QUERIES];
            for (along, position) in along.iter_mut().zip(range.clone()) {
                let output = self.outputs.position(row, head, position);
                let grad = self.grads.position(row, head, position);
                *along = match products {
                    Products::Exact => {
                        vectorised!(<'a>(output: &'a [f32], grad: &'a [f32]) -> f32 {
                            sum(output.len(), |i| output[i] * grad[i])
                        })
                    }
                    // Of what it is subtracted from, as much was rounded: where a query sees one
                    // key, nothing must be left.
                    Products::Rounded => sum(output.len(), |i| output[i] * rounded(grad[i])),
                };
            }
            let log_sums = &self.log_sums[(row * n_heads + head) * seq + start..][..range.len()];
            let mut before = Before::Overwritten;
            for key_range in key_tiles(self.mask, self.sizes, row, &range) {
                let n = key_range.len();
                let weights = &mut weights[..range.len() * n];
                let grad_scores = &mut grad_scores[..range.len() * n];
                let key_tile = self.keys.positions(row, kv_head, &key_range);
                let summed_key_tile = self.summed_keys.positions(row, kv_head, &key_range);
                let value_tile = self.values.positions(row, kv_head, &key_range);
                let fresh = Before::Overwritten;
                multiply(weights, fresh, scale, tile, key_tile.transposed());
                multiply(grad_scores, fresh, 1.0, grad_tile, value_tile.transposed());
                let rows = weights
                    .chunks_exact_mut(n)
                    .zip(grad_scores.chunks_exact_mut(n));
                for (i, (weights, grad_scores)) in rows.enumerate() {
                    let seen = self.mask.keys(row, start + i, seq, n_keys);
                    let within = Within::of(&seen, &key_range);
                    let (part, hole) = (within.part.clone(), within.hole_in_part());
                    for outside in [0..part.start, part.end..n] {
                        weights[outside.clone()].fill(0.0);
                        grad_scores[outside].fill(0.0);
                    }
                    let (along, log_sum) = (along[i], log_sums[i]);
                    let weights = &mut weights[part.clone()];
                    let grad_scores = &mut grad_scores[part];
                    vectorised!(<'a>(
                        weights: &'a mut [f32],
                        grad_scores: &'a mut [f32],
                        along: f32,
                        log_sum: f32,
                        scale: f32,
                        cap: Option<f32>,
                        hole: Range<usize>,
                    ) {
                        back_through_softmax(weights, grad_scores, [along, log_sum, scale], cap);
                        weights[hole.clone()].fill(0.0);
                        grad_scores[hole].fill(0.0);
                    });
                }
                let weights = Matrix::of_rows(weights, n);
                let grad_scores = Matrix::of_rows(grad_scores, n);
                for (sums, tile, weights) in [
                    (&mut grad_values, summed_grad_tile, weights),
                    (&mut grad_keys, summed_tile, grad_scores),
                ] {
                    self.add_to_keys(sums, &key_range, tile, weights);
                }
                multiply(grad_queries, before, 1.0, grad_scores, summed_key_tile);
                before = Before::Kept;
            }
            for (i, position) in range.enumerate() {
                write_grad_query(position, &grad_queries[i * head_dim..][..head_dim]);
            }
        }
        if products == Products::Exact {
            return [grad_keys, grad_values];
        }
        [grad_keys, grad_values].map(|sums| Matrix::of_rows(&sums, n_keys).transposed().to_vec())
    }

    /// Adds `weightsᵀ·tile` to the gradients of some keys or values, `[keys, head_dim]`; for rounded
    /// products `tileᵀ·weights` to their transpose, so that what is small is turned.
    fn add_to_keys(&self, sums: &mut [f32], keys: &Range<usize>, tile: Matrix, weights: Matrix) {
        let Sizes {
            keys: n_keys,
            head_dim,
            ..
        } = self.sizes;
        let kept = Before::Kept;
        match products(self.mask, self.sizes) {
            Products::Exact => {
                let sums = &mut sums[keys.start * head_dim..keys.end * head_dim];
                multiply_alone(sums, kept, 1.0, weights.transposed(), tile);
            }
            Products::Rounded => {
                let (kernel, sums) = (Kernel::best(), &mut sums[keys.start..]);
                let turned = tile.transposed();
                bf16::multiply_strided(kernel, sums, n_keys, kept, 1.0, turned, weights);
            }
        }
    }
}
