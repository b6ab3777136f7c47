//! Cross-entropy from hidden states, without the logits of all positions.
//!
//! The vocabulary projection, the softmax and their gradient are computed for
//! some rows at a time (`logits.rs`); what is kept for the backward pass is the
//! gradient of the hidden states, made while the logits were there (Liger
//! Kernel's `fused_linear_cross_entropy`,
//! [arXiv 2410.10989](https://arxiv.org/abs/2410.10989), section 3.2).

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
    tensor::{Tensor, TensorData, module::linear},
};

pub use crate::logits::{PACKED_ROWS, rows_at_once};
use crate::{
    OutputHead, likelihood,
    logits::{LogitsWay, WantedGradients, check, ids, portable_pass},
    portable::Portable,
    stored::Stored,
    support::{cast, for_backends, supports},
    weight::soft_capped,
};

/// The cross-entropy of `hidden·weight`, summed over the first `n_trained`
/// rows, in f32; the rows after them are padding.
///
/// # Shapes
///
/// - hidden: `[n, width]`, any float dtype
/// - head: a weight `[width, vocab]`, of the same dtype or packed, with or
///   without a cap
/// - targets: `n` token ids, each below `vocab`
/// - output: `[1]`
///
/// # Panics
///
/// If these do not fit each other, or a target is no token.
pub fn cross_entropy(
    hidden: Tensor<2>,
    head: impl Into<OutputHead>,
    targets: &[i32],
    n_trained: usize,
) -> Tensor<1> {
    let head = head.into();
    let rows = head.weight.rows_at_once();
    cross_entropy_in_chunks(hidden, head, targets, n_trained, rows)
}

/// [`cross_entropy`], with the logits of at most `rows` rows at once.
///
/// # Panics
///
/// As [`cross_entropy`].
pub fn cross_entropy_in_chunks(
    hidden: Tensor<2>,
    head: impl Into<OutputHead>,
    targets: &[i32],
    n_trained: usize,
    rows: usize,
) -> Tensor<1> {
    let OutputHead { weight, soft_cap } = head.into();
    check(&hidden, &weight, targets);
    assert!(
        n_trained <= targets.len(),
        "{n_trained} targets that count and {} targets do not fit each other",
        targets.len()
    );
    if !supports(&hidden.device()) {
        let weight = weight.dense(&hidden.device(), hidden.dtype());
        let logits = soft_capped(linear(hidden, weight, None), soft_cap);
        return composed(logits, targets, n_trained);
    }
    let ids = ids(targets, &hidden.device());
    let weight = weight.stored(&hidden.device());
    Tensor::from_dispatch(<burn::backend::Dispatch as LossExtension>::loss_extension(
        hidden.into_dispatch(),
        weight,
        ids.into_dispatch(),
        n_trained,
        soft_cap,
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
    let mut log_likelihoods = likelihood::composed(logits, targets);
    if n_trained < n {
        let counts = TensorData::new(counts(n, n_trained), [n]);
        log_likelihoods = log_likelihoods * Tensor::from_data(counts, (&device, DType::F32));
    }
    log_likelihoods.sum().neg()
}

/// One for each row that counts, zero for padding.
fn counts(n: usize, n_trained: usize) -> Vec<f32> {
    (0..n).map(|i| f32::from(i < n_trained)).collect()
}

/// The loss as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait LossExtension: Backend {
    /// See [`cross_entropy_in_chunks`].
    fn loss_extension(
        hidden: FloatTensor<Self>,
        #[extension_type] weight: Stored<Self>,
        targets: IntTensor<Self>,
        n_trained: usize,
        soft_cap: Option<f64>,
        rows: usize,
    ) -> FloatTensor<Self>;
}

/// A loss and its gradients.
pub(crate) struct LossAndGradients<B: Backend> {
    /// `[1]`, f32.
    pub loss: FloatTensor<B>,
    /// As the hidden states, if wanted.
    pub grad_hidden: Option<FloatTensor<B>>,
    /// As the weight, if wanted.
    pub grad_weight: Option<FloatTensor<B>>,
}

/// The loss, which a backend may compute in its own way.
pub(crate) trait LossKernel: Backend {
    /// The loss and what is wanted beside it.
    fn loss_and_gradients(
        hidden: FloatTensor<Self>,
        weight: Stored<Self>,
        targets: IntTensor<Self>,
        n_trained: usize,
        soft_cap: Option<f64>,
        rows: usize,
        wanted: WantedGradients,
    ) -> LossAndGradients<Self> {
        portable::<Self>(hidden, &weight, &targets, n_trained, soft_cap, rows, wanted)
    }
}

#[cfg(feature = "cube")]
impl LossKernel for burn::backend::Cube {}

for_backends!(LossExtension {
    fn loss_extension(
        hidden: FloatTensor<Self>,
        weight: Stored<Self>,
        targets: IntTensor<Self>,
        n_trained: usize,
        soft_cap: Option<f64>,
        rows: usize,
    ) -> FloatTensor<Self> {
        let none = WantedGradients::NONE;
        Self::loss_and_gradients(hidden, weight, targets, n_trained, soft_cap, rows, none).loss
    }
});

pub(crate) fn portable<B: Backend>(
    hidden: FloatTensor<B>,
    weight: &Stored<B>,
    targets: &IntTensor<B>,
    n_trained: usize,
    soft_cap: Option<f64>,
    rows: usize,
    wanted: WantedGradients,
) -> LossAndGradients<B> {
    let device = hidden.device();
    let n = hidden.shape()[0];
    let counts = (n_trained < n).then(|| {
        let counts = TensorData::new(counts(n, n_trained), [n, 1]);
        Portable::<B>(B::float_from_data(counts, &device)).f32()
    });
    let way = LogitsWay { soft_cap, rows };
    let found = portable_pass::<B>(hidden, weight, targets, counts.as_ref(), way, wanted);
    let loss = if n == 0 {
        let shape = burn::backend::Shape::from(vec![1]);
        B::float_zeros(shape, &device, burn::backend::FloatDType::F32)
    } else {
        let mut log_likelihoods = found.log_likelihoods;
        if let Some(counts) = counts {
            log_likelihoods = log_likelihoods * counts;
        }
        let sum = Portable::<B>(B::float_sum(log_likelihoods.0));
        sum.reshape([1]).neg().0
    };
    LossAndGradients {
        loss,
        grad_hidden: found.grad_hidden,
        grad_weight: found.grad_weight,
    }
}

impl<B: LossKernel, C: CheckpointStrategy> LossExtension for Autodiff<B, C> {
    fn loss_extension(
        hidden: FloatTensor<Self>,
        weight: Stored<Self>,
        targets: IntTensor<Self>,
        n_trained: usize,
        soft_cap: Option<f64>,
        rows: usize,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LossBackward;

        impl<B: Backend, const N: usize> Backward<B, N> for LossBackward {
            type State = [Option<FloatTensor<B>>; N];

            fn backward(
                self,
                ops: Ops<Self::State, N>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                for (node, made) in ops.parents.into_iter().zip(ops.state) {
                    if let (Some(node), Some(made)) = (node, made) {
                        let grad = Portable::<B>(cast::<B>(grad.clone(), made.dtype()));
                        let product = Portable::<B>(made) * grad.reshape([1, 1]);
                        grads.register::<B>(node.id, product.0);
                    }
                }
            }
        }

        let wanted = WantedGradients {
            hidden: hidden.is_tracked(),
            weight: weight.is_tracked(),
        };
        let run = |hidden: FloatTensor<Self>, weight: Stored<B>| {
            let hidden = hidden.into_primitive();
            B::loss_and_gradients(hidden, weight, targets, n_trained, soft_cap, rows, wanted)
        };
        match weight {
            Stored::Dense(weight) => {
                let nodes = [hidden.node(), weight.node()];
                let found = run(hidden, Stored::Dense(weight.into_primitive()));
                match LossBackward.prepare::<C>(nodes).compute_bound().stateful() {
                    OpsKind::Tracked(prep) => {
                        prep.finish([found.grad_hidden, found.grad_weight], found.loss)
                    }
                    OpsKind::UnTracked(prep) => prep.finish(found.loss),
                }
            }
            packed => {
                let nodes = [hidden.node()];
                let found = run(hidden, packed.into_primitive());
                match LossBackward.prepare::<C>(nodes).compute_bound().stateful() {
                    OpsKind::Tracked(prep) => prep.finish([found.grad_hidden], found.loss),
                    OpsKind::UnTracked(prep) => prep.finish(found.loss),
                }
            }
        }
    }
}
