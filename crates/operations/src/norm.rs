//! Root-mean-square norm (`LlamaRMSNorm`;
//! [arXiv 1910.07467](https://arxiv.org/abs/1910.07467)).
//!
//! With `r = 1 / √(mean(x²) + eps)` and `y = x·r·w`, the gradient is
//! `dx = r·(g·w) − x·r³·mean(g·w·x)` and `dw = Σ g·x·r`: the input is all that
//! is kept.

use burn::{
    backend::{
        Autodiff, Backend, DType, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        tensor::FloatTensor,
    },
    tensor::Tensor,
};

use crate::{
    portable::Portable,
    support::{for_backends, supports, to_dtype},
};

/// Normalises in f32 over the last axis, and multiplies by the weight in the
/// input's dtype.
///
/// # Shapes
///
/// - x: `[.., width]`
/// - weight: `[width]`
/// - output: as x, in its dtype
///
/// # Panics
///
/// If the weight is of another width.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let (width, width_of_weight) = (x.dims()[D - 1], weight.dims()[0]);
    assert_eq!(
        width, width_of_weight,
        "the width of the input and of the norm's weight"
    );
    if !supports(&x.device()) {
        return composed(x, weight, eps);
    }
    Tensor::from_dispatch(
        <burn::backend::Dispatch as NormExtension>::rms_norm_extension(
            x.into_dispatch(),
            weight.into_dispatch(),
            eps,
        ),
    )
}

/// [`rms_norm`] as a composition of Burn's operations.
pub fn composed<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let dtype = x.dtype();
    let x = to_dtype(x, DType::F32);
    let mean_square = x.clone().square().mean_dim(D - 1);
    let normed = x * mean_square.add_scalar(eps).sqrt().recip();
    to_dtype(normed, dtype) * to_dtype(weight, dtype).unsqueeze()
}

/// The norm as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait NormExtension: Backend {
    /// See [`rms_norm`].
    fn rms_norm_extension(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
}

/// Forward and backward of the norm, which a backend may do in its own way.
pub(crate) trait NormKernel: Backend {
    /// `x·r·w`.
    fn norm_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        portable_forward::<Self>(x, weight, eps)
    }

    /// The gradients of `x` and, if wanted, of the weight.
    fn norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        grad: FloatTensor<Self>,
        for_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        portable_backward::<Self>(x, weight, eps, grad, for_weight)
    }
}

#[cfg(feature = "cube")]
impl NormKernel for burn::backend::Cube {}

for_backends!(NormExtension {
    fn rms_norm_extension(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        Self::norm_forward(x, weight, eps)
    }
});

/// `1 / √(mean(x²) + eps)`, `[.., 1]`, of `x` in f32.
fn reciprocal_rms<B: Backend>(x: Portable<B>, eps: f64) -> Portable<B> {
    let last = x.shape().len() - 1;
    (x.clone() * x)
        .mean_dim(last)
        .add_scalar(eps)
        .sqrt()
        .recip()
}

/// `[width]` as `[1, .., 1, width]`.
fn as_row<B: Backend>(weight: Portable<B>, rank: usize) -> Portable<B> {
    let mut shape = vec![1; rank];
    shape[rank - 1] = weight.shape()[0];
    weight.reshape(shape)
}

pub(crate) fn portable_forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
) -> FloatTensor<B> {
    let (dtype, rank) = (x.dtype(), x.rank());
    let x = Portable::<B>(x).f32();
    let weight = as_row(Portable::<B>(weight).cast(dtype), rank);
    let normed = x.clone() * reciprocal_rms(x, eps);
    (normed.cast(dtype) * weight).0
}

pub(crate) fn portable_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
    grad: FloatTensor<B>,
    for_weight: bool,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let (dtype, weight_dtype, rank) = (x.dtype(), weight.dtype(), x.rank());
    let x = Portable::<B>(x).f32();
    let grad = Portable::<B>(grad).f32();
    let weight = as_row(Portable::<B>(weight).f32(), rank);
    let r = reciprocal_rms(x.clone(), eps);
    let normed = x * r.clone();
    let grad_weight = for_weight.then(|| {
        let shape = normed.shape();
        let (width, rows) = (shape[rank - 1], shape[..rank - 1].iter().product::<usize>());
        let products = (grad.clone() * normed.clone()).reshape([rows, width]);
        products.sum_dim(0).reshape([width]).cast(weight_dtype).0
    });
    let weighted = grad * weight;
    let along = (weighted.clone() * normed.clone()).mean_dim(rank - 1);
    let grad_x = (weighted - normed * along) * r;
    (grad_x.cast(dtype).0, grad_weight)
}

impl<B: NormKernel, C: CheckpointStrategy> NormExtension for Autodiff<B, C> {
    fn rms_norm_extension(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct NormBackward;

        impl<B: NormKernel> Backward<B, 2> for NormBackward {
            type State = (FloatTensor<B>, FloatTensor<B>, f64);

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let [node_x, node_weight] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (x, weight, eps) = ops.state;
                let (grad_x, grad_weight) =
                    B::norm_backward(x, weight, eps, grad, node_weight.is_some());
                if let Some(node) = node_x {
                    grads.register::<B>(node.id, grad_x);
                }
                if let (Some(node), Some(grad_weight)) = (node_weight, grad_weight) {
                    grads.register::<B>(node.id, grad_weight);
                }
            }
        }

        let nodes = [x.node(), weight.node()];
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        match NormBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let output = B::norm_forward(x.clone(), weight.clone(), eps);
                prep.finish((x, weight, eps), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::norm_forward(x, weight, eps)),
        }
    }
}
