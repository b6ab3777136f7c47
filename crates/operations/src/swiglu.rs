//! The gate of the feed-forward network, `silu(gate)·up`
//! ([arXiv 2002.05202](https://arxiv.org/abs/2002.05202)).
//!
//! With `σ = 1 / (1 + exp(−gate))`, `d gate = g·up·σ·(1 + gate·(1 − σ))` and
//! `d up = g·gate·σ`: gate and up are all that is kept.

use burn::{
    backend::{
        Autodiff, Backend, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        tensor::FloatTensor,
    },
    tensor::{Tensor, activation::silu},
};

use crate::{
    portable::Portable,
    support::{for_backends, supports},
};

/// `silu(gate)·up`.
///
/// # Shapes
///
/// - gate, up, output: the same, of one dtype
///
/// # Panics
///
/// If the shapes differ.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "the shapes of gate and up");
    if !supports(&gate.device()) {
        return composed(gate, up);
    }
    Tensor::from_dispatch(
        <burn::backend::Dispatch as SwigluExtension>::swiglu_extension(
            gate.into_dispatch(),
            up.into_dispatch(),
        ),
    )
}

/// [`swiglu`] as a composition of Burn's operations.
pub fn composed<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    silu(gate) * up
}

/// The gate as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait SwigluExtension: Backend {
    /// See [`swiglu`].
    fn swiglu_extension(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Forward and backward of the gate, which a backend may do in its own way.
pub(crate) trait SwigluKernel: Backend {
    /// `silu(gate)·up`.
    fn swiglu_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        portable_forward::<Self>(gate, up)
    }

    /// The gradients of gate and up.
    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable_backward::<Self>(gate, up, grad)
    }
}

#[cfg(feature = "cube")]
impl SwigluKernel for burn::backend::Cube {}

for_backends!(SwigluExtension {
    fn swiglu_extension(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::swiglu_forward(gate, up)
    }
});

fn sigmoid<B: Backend>(x: Portable<B>) -> Portable<B> {
    x.neg().exp().add_scalar(1.0).recip()
}

pub(crate) fn portable_forward<B: Backend>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
) -> FloatTensor<B> {
    let dtype = gate.dtype();
    let (gate, up) = (Portable::<B>(gate), Portable::<B>(up));
    let wide = gate.clone().f32();
    let active = wide.clone() * sigmoid(wide);
    (active.cast(dtype) * up).0
}

pub(crate) fn portable_backward<B: Backend>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = gate.dtype();
    let gate = Portable::<B>(gate).f32();
    let up = Portable::<B>(up).f32();
    let grad = Portable::<B>(grad).f32();
    let sigma = sigmoid(gate.clone());
    let active = gate.clone() * sigma.clone();
    // σ·(1 + gate·(1 − σ)) = σ + active·(1 − σ)
    let slope = sigma.clone() + active.clone() * sigma.neg().add_scalar(1.0);
    let grad_gate = grad.clone() * up * slope;
    let grad_up = grad * active;
    (grad_gate.cast(dtype).0, grad_up.cast(dtype).0)
}

impl<B: SwigluKernel, C: CheckpointStrategy> SwigluExtension for Autodiff<B, C> {
    fn swiglu_extension(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct SwigluBackward;

        impl<B: SwigluKernel> Backward<B, 2> for SwigluBackward {
            type State = (FloatTensor<B>, FloatTensor<B>);

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let [node_gate, node_up] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (gate, up) = ops.state;
                let (grad_gate, grad_up) = B::swiglu_backward(gate, up, grad);
                if let Some(node) = node_gate {
                    grads.register::<B>(node.id, grad_gate);
                }
                if let Some(node) = node_up {
                    grads.register::<B>(node.id, grad_up);
                }
            }
        }

        let nodes = [gate.node(), up.node()];
        let (gate, up) = (gate.into_primitive(), up.into_primitive());
        match SwigluBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let output = B::swiglu_forward(gate.clone(), up.clone());
                prep.finish((gate, up), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::swiglu_forward(gate, up)),
        }
    }
}
