//! Cross-entropy from hidden states, without the logits of all positions.
//!
//! The vocabulary projection, the softmax and their gradient are computed for
//! some rows at a time; what is kept for the backward pass is the gradient of
//! the hidden states, made while the logits were there (Liger Kernel's
//! `fused_linear_cross_entropy`, [arXiv 2410.10989](https://arxiv.org/abs/2410.10989),
//! section 3.2).

use burn::{
    backend::{
        Autodiff, Backend, DType, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{IndexingUpdateOp, Int, Tensor, TensorData, activation::log_softmax, module::linear},
};

use crate::{
    portable::Portable,
    support::{cast, for_backends, supports, to_dtype},
};

/// Bytes of f32 logits that are there at once.
const LOGITS_BYTES: usize = 32 << 20;

/// The cross-entropy of `hidden·weight`, summed over the first `n_trained`
/// rows, in f32; the rows after them are padding.
///
/// # Shapes
///
/// - hidden: `[n, width]`, any float dtype
/// - weight: `[width, vocab]`, of the same dtype
/// - targets: `n` token ids, each below `vocab`
/// - output: `[1]`
///
/// # Panics
///
/// If these do not fit each other, or a target is no token.
pub fn cross_entropy(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: &[i32],
    n_trained: usize,
) -> Tensor<1> {
    let rows = rows_at_once(weight.dims()[1]);
    cross_entropy_in_chunks(hidden, weight, targets, n_trained, rows)
}

/// How many rows of logits [`cross_entropy`] has at once.
pub fn rows_at_once(vocab: usize) -> usize {
    (LOGITS_BYTES / 4 / vocab.max(1)).clamp(16, 1 << 16)
}

/// [`cross_entropy`], with the logits of at most `rows` rows at once.
///
/// # Panics
///
/// As [`cross_entropy`].
pub fn cross_entropy_in_chunks(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: &[i32],
    n_trained: usize,
    rows: usize,
) -> Tensor<1> {
    let ([n, width], [rows_of_weight, vocab]) = (hidden.dims(), weight.dims());
    assert!(
        width == rows_of_weight && targets.len() == n && n_trained <= n,
        "{n} hidden states of width {width}, {} targets of which {n_trained} count, and a weight \
         of {rows_of_weight} × {vocab} do not fit each other",
        targets.len()
    );
    // A device would read and write beyond the logits.
    let stray = targets
        .iter()
        .find(|target| usize::try_from(**target).map_or(true, |target| target >= vocab));
    assert!(
        stray.is_none(),
        "the target {} is not a token of a vocabulary of {vocab}",
        stray.copied().unwrap_or_default()
    );
    if !supports(&hidden.device()) {
        let logits = linear(hidden, weight, None);
        return composed(logits, targets, n_trained);
    }
    let device = hidden.device();
    let ids =
        Tensor::<1, Int>::from_data(TensorData::new(targets.to_vec(), [targets.len()]), &device);
    Tensor::from_dispatch(<burn::backend::Dispatch as LossExtension>::loss_extension(
        hidden.into_dispatch(),
        weight.into_dispatch(),
        ids.into_dispatch(),
        n_trained,
        rows.max(1),
    ))
}

/// The same from logits, as a composition of Burn's operations.
///
/// # Shapes
///
/// - logits: `[n, vocab]`, any float dtype
/// - targets: `n` token ids
/// - output: `[1]`, f32
pub fn composed(logits: Tensor<2>, targets: &[i32], n_trained: usize) -> Tensor<1> {
    let n = targets.len();
    let device = logits.device();
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets.to_vec(), [n, 1]), &device);
    let logits = to_dtype(logits, DType::F32);
    let mut log_likelihoods = log_softmax(logits, 1).gather(1, targets);
    if n_trained < n {
        let counts = Tensor::from_data(counted(n, n_trained), (&device, DType::F32));
        log_likelihoods = log_likelihoods * counts;
    }
    log_likelihoods.sum().neg()
}

/// One for each row that counts, zero for padding, `[n, 1]`.
fn counted(n: usize, n_trained: usize) -> TensorData {
    let counts: Vec<f32> = (0..n).map(|i| f32::from(i < n_trained)).collect();
    TensorData::new(counts, [n, 1])
}

/// The loss as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait LossExtension: Backend {
    /// See [`cross_entropy_in_chunks`].
    fn loss_extension(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        n_trained: usize,
        rows: usize,
    ) -> FloatTensor<Self>;
}

/// What is wanted beside the loss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The gradient of the hidden states.
    pub hidden: bool,
    /// The gradient of the weight.
    pub weight: bool,
}

/// A loss and its gradients.
pub(crate) struct LossAndGradients<B: Backend> {
    /// `[1]`, f32.
    pub loss: FloatTensor<B>,
    /// As the hidden states, if wanted.
    pub of_hidden: Option<FloatTensor<B>>,
    /// As the weight, if wanted.
    pub of_weight: Option<FloatTensor<B>>,
}

/// The loss, which a backend may compute in its own way.
pub(crate) trait LossKernel: Backend {
    /// The loss and what is wanted beside it.
    fn loss_and_gradients(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        n_trained: usize,
        rows: usize,
        wanted: Wanted,
    ) -> LossAndGradients<Self> {
        portable::<Self>(hidden, weight, &targets, n_trained, rows, wanted)
    }
}

#[cfg(feature = "cube")]
impl LossKernel for burn::backend::Cube {}

for_backends!(LossExtension {
    fn loss_extension(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        n_trained: usize,
        rows: usize,
    ) -> FloatTensor<Self> {
        let nothing = Wanted { hidden: false, weight: false };
        Self::loss_and_gradients(hidden, weight, targets, n_trained, rows, nothing).loss
    }
});

pub(crate) fn portable<B: Backend>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: &IntTensor<B>,
    n_trained: usize,
    rows: usize,
    wanted: Wanted,
) -> LossAndGradients<B> {
    let hidden = Portable::<B>(hidden);
    let weight = Portable::<B>(weight);
    let (dtype, device) = (hidden.dtype(), hidden.device());
    let n = hidden.shape()[0];
    let counts = (n_trained < n).then(|| {
        let counts = B::float_from_data(counted(n, n_trained), &device);
        Portable::<B>(counts).f32()
    });
    let mut all_targets = Vec::new();
    let mut of_hidden = Vec::new();
    let mut of_weight: Option<Portable<B>> = None;
    let mut start = 0;
    while start < n {
        let range = start..(start + rows).min(n);
        start = range.end;
        let chunk = hidden.clone().narrow(0, range.clone());
        let ids = B::int_slice(targets.clone(), &[range.clone().into()]);
        let ids = B::int_reshape(ids, burn::backend::Shape::from(vec![range.len(), 1]));
        let logits = chunk.clone().matmul(weight.clone()).f32();
        // As Burn's own log-softmax and then a gather, which fusion gets right. From the sums
        // themselves, `log Σ − x[target]`, it does not: see BENCHMARKS.md, "On software Vulkan".
        let shifted = logits.clone() - logits.max_dim(1);
        let sums = shifted.clone().exp().sum_dim(1);
        let log_probabilities = shifted - sums.log();
        let of_target = B::float_gather(1, log_probabilities.0.clone(), ids.clone());
        all_targets.push(Portable::<B>(of_target));
        let counts = counts.clone().map(|counts| counts.narrow(0, range.clone()));
        if !(wanted.hidden || wanted.weight) {
            continue;
        }
        let probabilities = log_probabilities.exp();
        let minus_one = B::float_full(
            burn::backend::Shape::from(vec![range.len(), 1]),
            (-1.0_f32).into(),
            &device,
            burn::backend::FloatDType::F32,
        );
        let mut of_logits = Portable::<B>(B::float_scatter(
            1,
            probabilities.0,
            ids,
            minus_one,
            IndexingUpdateOp::Add,
        ));
        if let Some(counts) = counts {
            of_logits = of_logits * counts;
        }
        let of_logits = of_logits.cast(dtype);
        if wanted.weight {
            let part = chunk.transpose().matmul(of_logits.clone());
            // Added in f32, so that not every chunk rounds.
            let part = part.f32();
            of_weight = Some(match of_weight {
                None => part,
                Some(sum) => sum + part,
            });
        }
        if wanted.hidden {
            of_hidden.push(of_logits.matmul(weight.clone().transpose()));
        }
    }
    let loss = if all_targets.is_empty() {
        let shape = burn::backend::Shape::from(vec![1]);
        B::float_zeros(shape, &device, burn::backend::FloatDType::F32)
    } else {
        let mut log_likelihoods = Portable::cat(all_targets, 0);
        if let Some(counts) = counts {
            log_likelihoods = log_likelihoods * counts;
        }
        let sum = Portable::<B>(B::float_sum(log_likelihoods.0));
        sum.reshape([1]).neg().0
    };
    LossAndGradients {
        loss,
        of_hidden: (!of_hidden.is_empty()).then(|| Portable::cat(of_hidden, 0).0),
        of_weight: of_weight.map(|sum| sum.cast(dtype).0),
    }
}

impl<B: LossKernel, C: CheckpointStrategy> LossExtension for Autodiff<B, C> {
    fn loss_extension(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        n_trained: usize,
        rows: usize,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LossBackward;

        impl<B: Backend> Backward<B, 2> for LossBackward {
            type State = [Option<FloatTensor<B>>; 2];

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                for (node, of) in ops.parents.into_iter().zip(ops.state) {
                    if let (Some(node), Some(of)) = (node, of) {
                        let grad = Portable::<B>(cast::<B>(grad.clone(), of.dtype()));
                        let product = Portable::<B>(of) * grad.reshape([1, 1]);
                        grads.register::<B>(node.id, product.0);
                    }
                }
            }
        }

        let wanted = Wanted {
            hidden: hidden.is_tracked(),
            weight: weight.is_tracked(),
        };
        let nodes = [hidden.node(), weight.node()];
        let (hidden, weight) = (hidden.into_primitive(), weight.into_primitive());
        let found = B::loss_and_gradients(hidden, weight, targets, n_trained, rows, wanted);
        match LossBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish([found.of_hidden, found.of_weight], found.loss),
            OpsKind::UnTracked(prep) => prep.finish(found.loss),
        }
    }
}
