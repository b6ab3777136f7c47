//! Causal attention that keeps no scores.
//!
//! The forward pass keeps, beside its inputs and output, one number per query:
//! the logarithm of its softmax's denominator. The backward pass computes the
//! scores again, a stretch of queries at a time (`FlashAttention`,
//! [arXiv 2205.14135](https://arxiv.org/abs/2205.14135), algorithm 4): with
//! `P = exp(s·q·kᵀ − L)` and `D = Σ g·o`, `dv = Pᵀ·g`, `dS = P·(g·vᵀ − D)`,
//! `dq = s·dS·k`, `dk = s·dSᵀ·q`.
//!
//! Query heads that share a key head are stacked along the sequence, so that
//! keys and values are never repeated.

mod documents;

use std::{ops::Range, sync::Arc};

use burn::{
    backend::{
        Autodiff, Backend, DType,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        tensor::{BoolTensor, Device, FloatTensor},
    },
    tensor::{Tensor, TensorData, activation::softmax},
};

pub(crate) use self::documents::Summed;
use crate::{
    Products,
    portable::Portable,
    support::{for_backends, supports, to_dtype},
};

/// Bytes of f32 scores that portable code has at once.
const SCORES_BYTES: usize = 64 << 20;

/// The keys that a query sees: two ranges, of which the first may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// What its document continues, wherever before it that lies.
    pub(crate) shared: Range<usize>,
    /// Those of its document, up to the query's own.
    pub(crate) own: Range<usize>,
}

impl Seen {
    fn contains(&self, key: usize) -> bool {
        self.shared.contains(&key) || self.own.contains(&key)
    }

    /// The first of them.
    pub(crate) fn start(&self) -> usize {
        if self.shared.is_empty() {
            self.own.start
        } else {
            self.shared.start
        }
    }

    /// What lies between the two ranges; empty where there is one.
    fn hole(&self) -> Range<usize> {
        if self.shared.is_empty() {
            self.own.start..self.own.start
        } else {
            self.shared.end..self.own.start
        }
    }
}

/// Which keys a query sees: those up to its own position, the queries being
/// the last positions of the keys. And what becomes of its scores with them.
#[derive(Clone, Debug, Default)]
pub struct AttentionMask {
    window: Option<usize>,
    scale: Option<f64>,
    soft_cap: Option<f64>,
    /// For each row and query, the first key of its document.
    starts: Option<Arc<[usize]>>,
    /// For each row and query, keys before its document that it continues.
    shared: Option<Arc<[Range<usize>]>>,
    tile: Option<usize>,
    products: Products,
}

impl AttentionMask {
    /// All earlier keys, or the last `window` of them, its own included: at
    /// least that one.
    pub fn causal(window: Option<usize>) -> Self {
        Self::default().within_window(window)
    }

    /// Only the last `window` keys, if there is a window.
    #[must_use]
    pub fn within_window(mut self, window: Option<usize>) -> Self {
        self.window = window.map(|window| window.max(1));
        self
    }

    /// Scores multiplied by `scale` in the place of `1/√head_dim`, if there is
    /// one.
    #[must_use]
    pub fn with_scale(mut self, scale: Option<f64>) -> Self {
        self.scale = scale;
        self
    }

    /// Scaled scores `s` bent to `cap·tanh(s/cap)` before the softmax, if there
    /// is a cap (Gemma 2, [arXiv 2408.00118](https://arxiv.org/abs/2408.00118),
    /// section 2).
    #[must_use]
    pub fn with_soft_cap(mut self, cap: Option<f64>) -> Self {
        self.soft_cap = cap;
        self
    }

    /// How the CPU multiplies: with [`Products::Rounded`], all that goes into a product of several
    /// queries is rounded to bf16, softmax and sums staying in f32, as PyTorch's fused attention
    /// does in bf16. Other devices have ways of their own.
    #[must_use]
    pub fn with_products(mut self, products: Products) -> Self {
        self.products = products;
        self
    }

    #[cfg(feature = "flex")]
    pub(crate) fn products(&self) -> Products {
        self.products
    }

    /// What products of queries and keys are multiplied by.
    pub(crate) fn scale(&self, head_dim: usize) -> f64 {
        self.scale.unwrap_or_else(|| 1.0 / (head_dim as f64).sqrt())
    }

    /// What bends scaled scores, if anything does.
    pub(crate) fn soft_cap(&self) -> Option<f64> {
        self.soft_cap
    }

    /// Only keys of the same document, for rows that hold several: `lengths`
    /// gives each row's, in order; what follows the last is a document too.
    /// Nothing passes from one to another, infinity and NaN included.
    #[must_use]
    pub fn within_documents(mut self, lengths: &[Vec<usize>], seq: usize) -> Self {
        let starts = lengths.iter().flat_map(|lengths| {
            let mut starts = Vec::with_capacity(seq);
            for length in lengths {
                let start = starts.len();
                starts.resize((start + length).min(seq), start);
            }
            let start = starts.len();
            starts.resize(seq, start);
            starts
        });
        self.starts = Some(starts.collect());
        self
    }

    /// For rows of documents that continue others: for each row and query, the
    /// keys that come right before its document's first, though other documents
    /// may lie between. So the answers to one prompt share its keys, which are
    /// computed once, and do not see each other. A window reaches back into them
    /// as if nothing lay between.
    ///
    /// # Panics
    ///
    /// Without [`within_documents`](Self::within_documents) before it, or where a
    /// document would continue itself or a later one.
    #[must_use]
    pub fn continuing(mut self, shared: Vec<Range<usize>>) -> Self {
        let starts = self.starts.as_deref().unwrap_or_default();
        let fits = |(start, shared): (&usize, &Range<usize>)| shared.end <= *start;
        assert!(
            starts.len() == shared.len() && starts.iter().zip(&shared).all(fits),
            "what documents continue does not fit them"
        );
        self.shared = Some(shared.into());
        self
    }

    /// The portable code's stretches of `rows` queries, rather than as many as
    /// fit its budget.
    #[must_use]
    pub fn in_stretches_of(mut self, rows: usize) -> Self {
        self.tile = Some(rows.max(1));
        self
    }

    /// The keys that query `query` of row `row` sees.
    pub(crate) fn keys(&self, row: usize, query: usize, seq: usize, keys: usize) -> Seen {
        let end = keys - seq + query + 1;
        let at = row * seq + query;
        let start = self.starts.as_ref().map_or(0, |starts| starts[at]);
        let shared = self
            .shared
            .as_ref()
            .map_or(0..0, |shared| shared[at].clone());
        let window = self.window.unwrap_or(usize::MAX);
        let own = start.max(end.saturating_sub(window))..end;
        let left = window - own.len();
        let first = shared.start.max(shared.end.saturating_sub(left));
        Seen {
            shared: first..shared.end,
            own,
        }
    }

    /// The keys that any of some queries of any row sees.
    fn keys_of(&self, queries: &Range<usize>, seq: usize, keys: usize) -> Range<usize> {
        let end = keys - seq + queries.end;
        let first = keys - seq + queries.start + 1;
        let start = match self.window {
            // What is continued may lie anywhere before.
            Some(window) if self.shared.is_none() => first.saturating_sub(window),
            _ => 0,
        };
        start..end
    }

    fn tile(&self, scores_per_query: usize, seq: usize) -> usize {
        let fitting = SCORES_BYTES / 4 / scores_per_query.max(1);
        self.tile.unwrap_or(fitting).clamp(1, seq.max(1))
    }
}

/// `softmax(q·kᵀ / √head_dim)·v` over the keys that each query sees, with the
/// softmax in f32; the mask may say otherwise of the scale, and cap the scores.
///
/// # Shapes
///
/// - q: `[batch, kv_heads · groups, seq, head_dim]`
/// - k, v: `[batch, kv_heads, keys, head_dim]`, `keys` at least `seq`
/// - output: as q
///
/// # Panics
///
/// If these do not fit each other, or the documents are those of another batch.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: &AttentionMask) -> Tensor<4> {
    let ([batch, n_heads, seq, head_dim], [batch_of_k, kv_heads, keys, _]) = (q.dims(), k.dims());
    assert!(
        k.dims() == v.dims()
            && [batch_of_k, k.dims()[3]] == [batch, head_dim]
            && n_heads.is_multiple_of(kv_heads.max(1))
            && seq <= keys,
        "queries {:?}, keys {:?} and values {:?} do not fit each other",
        q.dims(),
        k.dims(),
        v.dims()
    );
    if let Some(starts) = &mask.starts {
        assert_eq!(
            starts.len(),
            batch * seq,
            "documents are those of another batch"
        );
    }
    if !supports(&q.device()) {
        return composed(q, k, v, mask);
    }
    Tensor::from_dispatch(
        <burn::backend::Dispatch as AttentionExtension>::attention_extension(
            q.into_dispatch(),
            k.into_dispatch(),
            v.into_dispatch(),
            mask.clone(),
        ),
    )
}

/// [`attention`] as a composition of Burn's operations, with all scores at
/// once. Here an infinity or NaN passes from one document to another, since
/// hidden values are multiplied by zero.
pub fn composed(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: &AttentionMask) -> Tensor<4> {
    let [batch, n_heads, seq, head_dim] = q.dims();
    let [_, kv_heads, keys, _] = k.dims();
    let groups = n_heads / kv_heads;
    let (dtype, device) = (q.dtype(), q.device());
    let q = q.reshape([batch, kv_heads, groups * seq, head_dim]);
    let mut scores = q.mul_scalar(mask.scale(head_dim)).matmul(k.transpose());
    if let Some(cap) = mask.soft_cap {
        scores = scores.div_scalar(cap).tanh().mul_scalar(cap);
    }
    // Finite, so that no backend ever computes infinity minus infinity.
    const HIDDEN: f32 = -1e30;
    let shifts: Vec<f32> = (0..batch)
        .flat_map(|row| (0..seq).map(move |query| (row, query)))
        .flat_map(|(row, query)| {
            let seen = mask.keys(row, query, seq, keys);
            (0..keys).map(move |key| if seen.contains(key) { 0.0 } else { HIDDEN })
        })
        .collect();
    let shifts = TensorData::new(shifts, [batch, 1, seq, keys]);
    let shifts = Tensor::<4>::from_data(shifts, (&device, DType::F32)).repeat_dim(2, groups);
    let weights = softmax(to_dtype(scores, DType::F32) + shifts, 3);
    to_dtype(weights, dtype)
        .matmul(v)
        .reshape([batch, n_heads, seq, head_dim])
}

/// Attention as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait AttentionExtension: Backend {
    /// See [`attention`].
    fn attention_extension(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: AttentionMask,
    ) -> FloatTensor<Self>;
}

/// What the forward pass gives.
#[derive(Clone, Debug)]
pub(crate) struct Attended<B: Backend> {
    /// As the queries.
    pub output: FloatTensor<B>,
    /// The logarithm of each softmax's denominator, in f32, shaped as the
    /// backend likes.
    pub log_sums: FloatTensor<B>,
}

/// Forward and backward of attention, which a backend may do in its own way.
pub(crate) trait AttentionKernel: Backend {
    /// The output and the softmax's denominators.
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: &AttentionMask,
    ) -> Attended<Self> {
        portable_forward::<Self>(q, k, v, mask)
    }

    /// The gradients of queries, keys and values.
    fn attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: &AttentionMask,
        forward: Attended<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3] {
        portable_backward::<Self>(q, k, v, mask, forward, grad)
    }
}

#[cfg(feature = "cube")]
impl AttentionKernel for burn::backend::Cube {}

for_backends!(AttentionExtension {
    fn attention_extension(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: AttentionMask,
    ) -> FloatTensor<Self> {
        Self::attention_forward(q, k, v, &mask).output
    }
});

/// The sizes of one call.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) n_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) seq: usize,
    pub(crate) keys: usize,
    pub(crate) head_dim: usize,
}

impl Sizes {
    pub(crate) fn of(q: &[usize], k: &[usize]) -> Self {
        Self {
            batch: q[0],
            n_heads: q[1],
            kv_heads: k[1],
            seq: q[2],
            keys: k[2],
            head_dim: q[3],
        }
    }

    pub(crate) fn groups(self) -> usize {
        self.n_heads / self.kv_heads
    }
}

/// One stretch of queries in the portable code.
struct Stretch {
    sizes: Sizes,
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Stretch {
    /// All of them, in order.
    fn all(sizes: Sizes, mask: &AttentionMask) -> Vec<Self> {
        let tile = mask.tile(sizes.batch * sizes.n_heads * sizes.keys, sizes.seq);
        (0..sizes.seq)
            .step_by(tile)
            .map(|start| {
                let queries = start..(start + tile).min(sizes.seq);
                let keys = mask.keys_of(&queries, sizes.seq, sizes.keys);
                Self {
                    sizes,
                    queries,
                    keys,
                }
            })
            .collect()
    }

    /// Its part of something shaped `[batch, n_heads, seq, n]`, as
    /// `[batch, kv_heads, groups · queries, n]`.
    fn rows<B: Backend>(&self, whole: &Portable<B>) -> Portable<B> {
        let last = whole.shape()[3];
        let Sizes {
            batch, kv_heads, ..
        } = self.sizes;
        let stacked = self.sizes.groups() * self.queries.len();
        whole
            .clone()
            .narrow(2, self.queries.clone())
            .reshape([batch, kv_heads, stacked, last])
    }

    /// Back from there.
    fn unstacked<B: Backend>(&self, rows: Portable<B>) -> Portable<B> {
        let last = rows.shape()[3];
        rows.reshape([
            self.sizes.batch,
            self.sizes.n_heads,
            self.queries.len(),
            last,
        ])
    }

    /// Scaled scores in f32, `[batch, kv_heads, groups · queries, keys]`, capped
    /// if there is a cap, those of hidden keys among them.
    fn scores<B: Backend>(
        &self,
        q: &Portable<B>,
        k: &Portable<B>,
        mask: &AttentionMask,
    ) -> Portable<B> {
        let k = k.clone().narrow(2, self.keys.clone());
        let scale = mask.scale(self.sizes.head_dim);
        let scores = self.rows(q).scale(scale).matmul(k.transpose()).f32();
        match mask.soft_cap {
            Some(cap) => scores.soft_capped(cap),
            None => scores,
        }
    }

    /// Masks of what is not seen, each `[1 or batch, 1, groups · queries, keys]`.
    fn hidden<B: Backend>(&self, mask: &AttentionMask, device: &Device<B>) -> Vec<BoolTensor<B>> {
        let Sizes {
            batch, seq, keys, ..
        } = self.sizes;
        let (n_queries, n_keys, groups) =
            (self.queries.len(), self.keys.len(), self.sizes.groups());
        // Positions fit f32 exactly: they are far below 2²⁴.
        let at = || {
            let queries = self.queries.start + keys - seq..self.queries.end + keys - seq;
            Portable::<B>::count(queries, device).reshape([1, 1, n_queries, 1])
        };
        let key = || Portable::<B>::count(self.keys.clone(), device).reshape([1, 1, 1, n_keys]);
        let stack = |rows: Portable<B>| Portable::cat(vec![rows; groups], 2);
        let mut hidden = Vec::new();
        if n_queries > 1 {
            hidden.push(stack(at()).lower(key()));
        }
        let column = |of: &dyn Fn(usize, usize) -> usize| {
            let rows = (0..batch).flat_map(|row| self.queries.clone().map(move |at| (row, at)));
            let values: Vec<f32> = rows.map(|(row, query)| of(row, query) as f32).collect();
            let values = TensorData::new(values, [batch, 1, n_queries, 1]);
            stack(Portable::<B>(B::float_from_data(values, device)).f32())
        };
        if mask.shared.is_some() {
            let seen = |row, query| mask.keys(row, query, seq, keys);
            hidden.push(key().lower(column(&|row, query| seen(row, query).start())));
            let begin = column(&|row, query| seen(row, query).hole().start);
            let end = column(&|row, query| seen(row, query).hole().end);
            let after_begin = begin.add_scalar(-0.5).lower(key());
            hidden.push(B::bool_and(after_begin, key().lower(end)));
            return hidden;
        }
        if let Some(window) = mask.window {
            hidden.push(key().lower(stack(at().add_scalar(1.0 - window as f64))));
        }
        if let Some(starts) = mask.starts.as_ref().filter(|_| mask.has_documents()) {
            hidden.push(key().lower(column(&|row, query| starts[row * seq + query])));
        }
        hidden
    }
}

/// The score of a hidden key. Finite, so that no backend ever computes infinity
/// minus infinity.
const HIDDEN: f64 = -1e30;

/// Fills what any of the masks covers.
fn fill<B: Backend>(values: Portable<B>, masks: Vec<BoolTensor<B>>, with: f64) -> Portable<B> {
    let shape = burn::backend::Shape::from(values.shape());
    masks.into_iter().fold(values, |values, mask| {
        let mask = B::bool_expand(mask, shape.clone());
        values.fill_where(mask, with)
    })
}

pub(crate) fn portable_forward<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    mask: &AttentionMask,
) -> Attended<B> {
    let (q, k) = (Portable::<B>(q), Portable::<B>(k));
    let apart = mask.has_documents();
    let v = Summed::<B>::new(v, apart);
    let sizes = Sizes::of(&q.shape(), &k.shape());
    let (dtype, device) = (q.dtype(), q.device());
    let (mut outputs, mut log_sums) = (Vec::new(), Vec::new());
    for stretch in Stretch::all(sizes, mask) {
        let hidden = stretch.hidden::<B>(mask, &device);
        // Not kept where it is not needed, so that it can be fused away.
        let hidden_again = apart.then(|| hidden.clone());
        let scores = fill(stretch.scores(&q, &k, mask), hidden, HIDDEN);
        let highest = scores.clone().max_dim(3);
        let mut exponentials = (scores - highest.clone()).exp();
        if let Some(hidden) = hidden_again {
            // Zero already, unless the query's own scores are lower still, or not numbers.
            exponentials = fill(exponentials, hidden, 0.0);
        }
        let sums = exponentials.clone().sum_dim(3);
        let weights = (exponentials * sums.clone().recip()).cast(dtype);
        let output = weights.matmul(v.finite.clone().narrow(2, stretch.keys.clone()));
        outputs.push(stretch.unstacked(output));
        log_sums.push(stretch.unstacked(sums.log() + highest));
    }
    let output = Portable::cat(outputs, 2).0;
    Attended {
        output: v.finish(output, || mask.keys_of_queries(sizes)),
        log_sums: Portable::cat(log_sums, 2).0,
    }
}

pub(crate) fn portable_backward<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    mask: &AttentionMask,
    forward: Attended<B>,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 3] {
    let [q, k, v, grad] = [q, k, v, grad].map(Portable::<B>);
    let sizes = Sizes::of(&q.shape(), &k.shape());
    let (dtype, device) = (q.dtype(), q.device());
    let (output, log_sums) = (
        Portable::<B>(forward.output),
        Portable::<B>(forward.log_sums),
    );
    let along = (output.f32() * grad.clone().f32()).sum_dim(3);
    let apart = mask.has_documents();
    let [summed_q, summed_k, summed_grad] =
        [&q, &k, &grad].map(|tensor| Summed::<B>::new(tensor.0.clone(), apart));
    let mut grad_q = Vec::new();
    let mut grad_k = Sum::new(&k);
    let mut grad_v = Sum::new(&v);
    for stretch in Stretch::all(sizes, mask) {
        let hidden = stretch.hidden::<B>(mask, &device);
        // Not kept where it is not needed, so that it can be fused away.
        let hidden_again = apart.then(|| hidden.clone());
        let scores = stretch.scores(&q, &k, mask);
        let slope = mask.soft_cap.map(|cap| scores.clone().slope_of_cap(cap));
        let scores = fill(scores, hidden, HIDDEN);
        let mut weights = (scores - stretch.rows(&log_sums)).exp();
        if let Some(hidden) = hidden_again.clone() {
            weights = fill(weights, hidden, 0.0);
        }
        let seen = |whole: &Portable<B>| whole.clone().narrow(2, stretch.keys.clone());
        let grad = stretch.rows(&grad);
        let summed = if apart {
            stretch.rows(&summed_grad.finite)
        } else {
            grad.clone()
        };
        let part = weights.clone().cast(dtype).transpose();
        grad_v.add(&stretch, part.matmul(summed));
        let grad_weights = grad.matmul(seen(&v).transpose()).f32();
        let mut grad_scores = weights * (grad_weights - stretch.rows(&along));
        if let Some(slope) = slope {
            grad_scores = grad_scores * slope;
        }
        if let Some(hidden) = hidden_again {
            grad_scores = fill(grad_scores, hidden, 0.0);
        }
        let scale = mask.scale(sizes.head_dim);
        let grad_scores = grad_scores.scale(scale).cast(dtype);
        let part = grad_scores.clone().matmul(seen(&summed_k.finite));
        grad_q.push(stretch.unstacked(part));
        let part = grad_scores.transpose();
        grad_k.add(&stretch, part.matmul(stretch.rows(&summed_q.finite)));
    }
    [
        summed_k.finish(Portable::cat(grad_q, 2).0, || mask.keys_of_queries(sizes)),
        summed_q.finish(grad_k.0.cast(dtype).0, || mask.queries_of_keys(sizes)),
        summed_grad.finish(grad_v.0.cast(dtype).0, || mask.queries_of_keys(sizes)),
    ]
}

/// The gradient of keys or values, summed over stretches of queries.
struct Sum<B: Backend>(Portable<B>);

impl<B: Backend> Sum<B> {
    fn new(like: &Portable<B>) -> Self {
        let shape = burn::backend::Shape::from(like.shape());
        // In f32, so that not every stretch rounds.
        let dtype = burn::backend::FloatDType::F32;
        Self(Portable(B::float_zeros(shape, &like.device(), dtype)))
    }

    fn add(&mut self, stretch: &Stretch, part: Portable<B>) {
        let shape = self.0.shape();
        let slices: Vec<burn::backend::Slice> = shape
            .iter()
            .enumerate()
            .map(|(axis, len)| {
                let range = if axis == 2 {
                    stretch.keys.clone()
                } else {
                    0..*len
                };
                range.into()
            })
            .collect();
        let so_far = self.0.clone().narrow(2, stretch.keys.clone());
        self.0 = Portable(B::float_slice_assign(
            self.0.0.clone(),
            &slices,
            (so_far + part.f32()).0,
        ));
    }
}

impl<B: AttentionKernel, C: CheckpointStrategy> AttentionExtension for Autodiff<B, C> {
    fn attention_extension(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: AttentionMask,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct AttentionBackward;

        impl<B: AttentionKernel> Backward<B, 3> for AttentionBackward {
            type State = ([FloatTensor<B>; 3], AttentionMask, Attended<B>);

            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let ([q, k, v], mask, forward) = ops.state;
                let found = B::attention_backward(q, k, v, &mask, forward, grad);
                for (node, gradient) in ops.parents.into_iter().zip(found) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, gradient);
                    }
                }
            }
        }

        let nodes = [q.node(), k.node(), v.node()];
        let [q, k, v] = [q, k, v].map(|tensor| tensor.into_primitive());
        match AttentionBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let forward = B::attention_forward(q.clone(), k.clone(), v.clone(), &mask);
                let output = forward.output.clone();
                prep.finish(([q, k, v], mask, forward), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::attention_forward(q, k, v, &mask).output),
        }
    }
}
