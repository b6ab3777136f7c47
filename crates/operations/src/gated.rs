//! The last product of a feed-forward network, of `silu(gate)·up`, as one operation.
//!
//! An adapted layer needs its input again in the backward pass, for the gradient of A. Of this one it is
//! made again, from gate and up, which the gate's own backward pass needs: one of the three tensors of its width
//! that a block would keep is not kept, and all bits stay as they are.

use burn::{
    backend::{
        Autodiff, Backend,
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
    LowRankFactors, Weight,
    projection::{Layer, ProjectionExtension, ProjectionKernel, fits, project},
    stored::{Maybe, Stored},
    support::{for_backends, supports},
    swiglu::{SwigluExtension, SwigluKernel, swiglu},
};

/// [`project`] of [`swiglu`] with factors, in less memory.
///
/// # Shapes
///
/// - gate, up: `[.., d_in]`, of one dtype
/// - weight: `[d_in, d_out]`, if dense of their dtype; bias: `[d_out]`, of their dtype
/// - output: `[.., d_out]`, in their dtype
///
/// # Panics
///
/// If these do not fit each other.
pub fn project_gated<const D: usize>(
    gate: Tensor<D>,
    up: Tensor<D>,
    weight: impl Into<Weight>,
    bias: Option<Tensor<1>>,
    factors: LowRankFactors,
) -> Tensor<D> {
    let (weight, device) = (weight.into(), gate.device());
    // Without autodiff nothing is kept.
    if !gate.is_autodiff() || !supports(&device) {
        return project(swiglu(gate, up), weight, bias, Some(factors));
    }
    assert_eq!(gate.dims(), up.dims(), "the shapes of gate and up");
    assert!(
        fits(&gate, &weight, bias.as_ref(), Some(&factors)),
        "a gate of {:?}, a weight of {:?}, its bias and its factors do not fit each other",
        gate.dims(),
        weight.dims()
    );
    let weight = weight.stored(&device);
    let [a0, b0] = match factors.anchor {
        None => [Maybe::Nothing, Maybe::Nothing],
        Some(anchor) => anchor.map(|factor| Maybe::Tensor(factor.into_dispatch())),
    };
    Tensor::from_dispatch(
        <burn::backend::Dispatch as GatedExtension>::gated_extension(
            gate.into_dispatch(),
            up.into_dispatch(),
            weight,
            Maybe::new(bias.map(Tensor::into_dispatch)),
            factors.a.into_dispatch(),
            factors.b.into_dispatch(),
            a0,
            b0,
            factors.scale,
        ),
    )
}

/// The product as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait GatedExtension: Backend {
    /// See [`project_gated`].
    #[allow(
        clippy::too_many_arguments,
        reason = "tensors, which the macro takes one by one"
    )]
    fn gated_extension(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        #[extension_type] weight: Stored<Self>,
        #[extension_type] bias: Maybe<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        #[extension_type] a0: Maybe<Self>,
        #[extension_type] b0: Maybe<Self>,
        scale: f64,
    ) -> FloatTensor<Self>;
}

for_backends!(GatedExtension {
    fn gated_extension(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        weight: Stored<Self>,
        bias: Maybe<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        a0: Maybe<Self>,
        b0: Maybe<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        let x = Self::swiglu_forward(gate, up);
        Self::adapted_extension(x, weight, bias, a, b, a0, b0, scale)
    }
});

impl<B: ProjectionKernel + SwigluKernel, C: CheckpointStrategy> GatedExtension for Autodiff<B, C> {
    fn gated_extension(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        weight: Stored<Self>,
        bias: Maybe<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        a0: Maybe<Self>,
        b0: Maybe<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct GatedBackward;

        impl<B: ProjectionKernel + SwigluKernel> Backward<B, 4> for GatedBackward {
            /// The layer; gate, up and, if there is one, `s·x·A`.
            type State = (Layer<B>, [FloatTensor<B>; 2], Option<FloatTensor<B>>);

            fn backward(
                self,
                ops: Ops<Self::State, 4>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let [node_gate, node_up, node_a, node_b] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (layer, [gate, up], down) = ops.state;
                let kept = down.map(|down| [B::swiglu_forward(gate.clone(), up.clone()), down]);
                let for_x = node_gate.is_some() || node_up.is_some();
                let found = B::projection_backward(&layer, kept, grad, for_x);
                if let Some(grad_x) = found.grad_x {
                    let (grad_gate, grad_up) = B::swiglu_backward(gate, up, grad_x);
                    if let Some(node) = node_gate {
                        grads.register::<B>(node.id, grad_gate);
                    }
                    if let Some(node) = node_up {
                        grads.register::<B>(node.id, grad_up);
                    }
                }
                if let Some([grad_a, grad_b]) = found.grad_factors {
                    if let Some(node) = node_a {
                        grads.register::<B>(node.id, grad_a);
                    }
                    if let Some(node) = node_b {
                        grads.register::<B>(node.id, grad_b);
                    }
                }
            }
        }

        let is_tracked = |tensor: &Maybe<Self>| match tensor {
            Maybe::Tensor(tensor) => tensor.is_tracked(),
            Maybe::Nothing => false,
        };
        if weight.is_tracked() || [&bias, &a0, &b0].into_iter().any(is_tracked) {
            let x = Self::swiglu_extension(gate, up);
            return Self::adapted_extension(x, weight, bias, a, b, a0, b0, scale);
        }
        let nodes = [gate.node(), up.node(), a.node(), b.node()];
        let (gate, up) = (gate.into_primitive(), up.into_primitive());
        let constant = |tensor: Maybe<Self>| {
            let tensor = tensor.into_option();
            tensor.map(|tensor| tensor.into_primitive())
        };
        let layer = Layer {
            weight: weight.into_primitive(),
            bias: constant(bias),
            factors: Some([a.into_primitive(), b.into_primitive()]),
            anchor: constant(a0).zip(constant(b0)).map(|(a0, b0)| [a0, b0]),
            scale,
        };
        let x = B::swiglu_forward(gate.clone(), up.clone());
        let (output, down) = B::projection_forward(x, &layer);
        match GatedBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((layer, [gate, up], down), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}
