//! The log-probability of each token, without the logits of all positions.
//!
//! What objectives other than [cross-entropy](crate::loss) are made of: a
//! preference loss takes sums of these by sequence (DPO,
//! [arXiv 2305.18290](https://arxiv.org/abs/2305.18290), equation 7), so that
//! the gradient that comes back differs from token to token. For a hidden state
//! `h`, target `t`, `p = softmax(h·W)` and upstream gradient `g`,
//! `dh = g·W·(onehot(t) − p)` and `dW = Σ h·g·(onehot(t) − p)ᵀ`.
//!
//! Where the weight is a constant, `dh` without `g` is made in the forward pass
//! while the logits are there, and the backward pass only scales its rows. Where
//! the weight trains, `g` stands inside a sum over the rows: only the inputs are
//! kept, and the backward pass computes the logits again, some rows at a time.

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
    tensor::{Tensor, activation::log_softmax, module::linear},
};

use crate::{
    OutputHead,
    logits::{LogitsWay, WantedGradients, check, ids, portable_pass},
    portable::Portable,
    stored::Stored,
    support::{for_backends, supports, to_dtype},
    weight::soft_capped,
};

/// The log-probability of each row's target under `softmax(hidden·weight)`.
///
/// # Shapes
///
/// - hidden: `[n, width]`, any float dtype
/// - head: a weight `[width, vocab]`, of the same dtype or packed, with or
///   without a cap
/// - targets: `n` token ids, each below `vocab`
/// - output: `[n]`, f32, natural logarithms
///
/// # Panics
///
/// If these do not fit each other, or a target is no token.
pub fn token_log_likelihoods(
    hidden: Tensor<2>,
    head: impl Into<OutputHead>,
    targets: &[i32],
) -> Tensor<1> {
    let head = head.into();
    let rows = head.weight.rows_at_once();
    token_log_likelihoods_in_chunks(hidden, head, targets, rows)
}

/// [`token_log_likelihoods`], with the logits of at most `rows` rows at once.
///
/// # Panics
///
/// As [`token_log_likelihoods`].
pub fn token_log_likelihoods_in_chunks(
    hidden: Tensor<2>,
    head: impl Into<OutputHead>,
    targets: &[i32],
    rows: usize,
) -> Tensor<1> {
    let OutputHead { weight, soft_cap } = head.into();
    check(&hidden, &weight, targets);
    if !supports(&hidden.device()) {
        let weight = weight.dense(&hidden.device(), hidden.dtype());
        let logits = soft_capped(linear(hidden, weight, None), soft_cap);
        return composed(logits, targets);
    }
    let ids = ids(targets, &hidden.device());
    let weight = weight.stored(&hidden.device());
    Tensor::from_dispatch(
        <burn::backend::Dispatch as LikelihoodExtension>::likelihood_extension(
            hidden.into_dispatch(),
            weight,
            ids.into_dispatch(),
            LogitsWay {
                soft_cap,
                rows: rows.max(1),
            },
        ),
    )
}

/// The same from logits, as a composition of Burn's operations.
///
/// # Shapes
///
/// - logits: `[n, vocab]`, any float dtype
/// - targets: `n` token ids
/// - output: `[n]`, f32
pub fn composed(logits: Tensor<2>, targets: &[i32]) -> Tensor<1> {
    let n = targets.len();
    let targets = ids(targets, &logits.device()).reshape([n, 1]);
    log_softmax(to_dtype(logits, DType::F32), 1)
        .gather(1, targets)
        .reshape([n])
}

/// The log-likelihoods as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait LikelihoodExtension: Backend {
    /// See [`token_log_likelihoods_in_chunks`].
    fn likelihood_extension(
        hidden: FloatTensor<Self>,
        #[extension_type] weight: Stored<Self>,
        targets: IntTensor<Self>,
        way: LogitsWay,
    ) -> FloatTensor<Self>;
}

/// Forward and backward of the log-likelihoods, which a backend may do in its
/// own way.
pub(crate) trait LikelihoodKernel: Backend {
    /// The log-likelihoods, `[n]` in f32, and, if wanted, the gradient of minus
    /// their sum by the hidden states.
    fn likelihood_forward(
        hidden: FloatTensor<Self>,
        weight: Stored<Self>,
        targets: IntTensor<Self>,
        way: LogitsWay,
        with_grad_hidden: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        portable_forward::<Self>(hidden, &weight, &targets, way, with_grad_hidden)
    }

    /// The gradients of hidden states and weight that are wanted, from that of
    /// the log-likelihoods, `[n]` in f32.
    fn likelihood_backward(
        hidden: FloatTensor<Self>,
        weight: Stored<Self>,
        targets: IntTensor<Self>,
        way: LogitsWay,
        grad: FloatTensor<Self>,
        wanted: WantedGradients,
    ) -> [Option<FloatTensor<Self>>; 2] {
        portable_backward::<Self>(hidden, &weight, &targets, way, grad, wanted)
    }
}

#[cfg(feature = "cube")]
impl LikelihoodKernel for burn::backend::Cube {}

for_backends!(LikelihoodExtension {
    fn likelihood_extension(
        hidden: FloatTensor<Self>,
        weight: Stored<Self>,
        targets: IntTensor<Self>,
        way: LogitsWay,
    ) -> FloatTensor<Self> {
        Self::likelihood_forward(hidden, weight, targets, way, false).0
    }
});

pub(crate) fn portable_forward<B: Backend>(
    hidden: FloatTensor<B>,
    weight: &Stored<B>,
    targets: &IntTensor<B>,
    way: LogitsWay,
    with_grad_hidden: bool,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let n = hidden.shape()[0];
    let wanted = WantedGradients {
        hidden: with_grad_hidden,
        weight: false,
    };
    let found = portable_pass::<B>(hidden, weight, targets, None, way, wanted);
    (found.log_likelihoods.reshape([n]).0, found.grad_hidden)
}

pub(crate) fn portable_backward<B: Backend>(
    hidden: FloatTensor<B>,
    weight: &Stored<B>,
    targets: &IntTensor<B>,
    way: LogitsWay,
    grad: FloatTensor<B>,
    wanted: WantedGradients,
) -> [Option<FloatTensor<B>>; 2] {
    let scales = minus_column::<B>(grad);
    let found = portable_pass::<B>(hidden, weight, targets, Some(&scales), way, wanted);
    [found.grad_hidden, found.grad_weight]
}

/// What each row's `−log-likelihood` counts, `[n, 1]` in f32, from the gradient
/// of its log-likelihood.
fn minus_column<B: Backend>(grad: FloatTensor<B>) -> Portable<B> {
    let n = grad.shape()[0];
    Portable::<B>(grad).f32().reshape([n, 1]).neg()
}

impl<B: LikelihoodKernel, C: CheckpointStrategy> LikelihoodExtension for Autodiff<B, C> {
    fn likelihood_extension(
        hidden: FloatTensor<Self>,
        weight: Stored<Self>,
        targets: IntTensor<Self>,
        way: LogitsWay,
    ) -> FloatTensor<Self> {
        match weight {
            Stored::Dense(weight) if weight.is_tracked() => {
                with_trained_weight::<B, C>(hidden, weight, targets, way)
            }
            frozen => with_frozen_weight::<B, C>(hidden, frozen, targets, way),
        }
    }
}

/// Makes the gradient of the hidden states in the forward pass.
fn with_frozen_weight<B: LikelihoodKernel, C: CheckpointStrategy>(
    hidden: FloatTensor<Autodiff<B, C>>,
    weight: Stored<Autodiff<B, C>>,
    targets: IntTensor<B>,
    way: LogitsWay,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct ScaleRows;

    impl<B: Backend> Backward<B, 1> for ScaleRows {
        type State = Option<FloatTensor<B>>;

        fn backward(
            self,
            ops: Ops<Self::State, 1>,
            grads: &mut Gradients,
            _checkpointer: &mut Checkpointer,
        ) {
            let [node] = ops.parents;
            let grad = grads.consume::<B>(&ops.node);
            if let (Some(node), Some(unscaled)) = (node, ops.state) {
                let dtype = unscaled.dtype();
                // In f32, so that half precision rounds the product once.
                let scaled = Portable::<B>(unscaled).f32() * minus_column::<B>(grad);
                grads.register::<B>(node.id, scaled.cast(dtype).0);
            }
        }
    }

    let (tracked, nodes) = (hidden.is_tracked(), [hidden.node()]);
    let (hidden, weight) = (hidden.into_primitive(), weight.into_primitive());
    let (output, unscaled) = B::likelihood_forward(hidden, weight, targets, way, tracked);
    match ScaleRows.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(unscaled, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

/// Keeps the inputs, and computes the logits again in the backward pass.
fn with_trained_weight<B: LikelihoodKernel, C: CheckpointStrategy>(
    hidden: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    targets: IntTensor<B>,
    way: LogitsWay,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct ComputeAgain;

    impl<B: LikelihoodKernel> Backward<B, 2> for ComputeAgain {
        type State = ([FloatTensor<B>; 2], IntTensor<B>, LogitsWay);

        fn backward(
            self,
            ops: Ops<Self::State, 2>,
            grads: &mut Gradients,
            _checkpointer: &mut Checkpointer,
        ) {
            let grad = grads.consume::<B>(&ops.node);
            let ([hidden, weight], targets, way) = ops.state;
            let weight = Stored::Dense(weight);
            let wanted = WantedGradients {
                hidden: ops.parents[0].is_some(),
                weight: ops.parents[1].is_some(),
            };
            let found = B::likelihood_backward(hidden, weight, targets, way, grad, wanted);
            for (node, gradient) in ops.parents.into_iter().zip(found) {
                if let (Some(node), Some(gradient)) = (node, gradient) {
                    grads.register::<B>(node.id, gradient);
                }
            }
        }
    }

    let nodes = [hidden.node(), weight.node()];
    let inputs = [hidden, weight].map(|tensor| tensor.into_primitive());
    let [hidden, weight] = inputs.clone();
    let weight = Stored::Dense(weight);
    let (output, _) = B::likelihood_forward(hidden, weight, targets.clone(), way, false);
    match ComputeAgain.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((inputs, targets, way), output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}
