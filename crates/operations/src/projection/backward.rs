//! The projection under autodiff.

use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::{Layer, ProjectionExtension, ProjectionKernel, portable_forward};
use crate::{
    portable::Portable,
    stored::{Maybe, Stored},
};

impl<B: ProjectionKernel, C: CheckpointStrategy> ProjectionExtension for Autodiff<B, C> {
    fn frozen_extension(
        x: FloatTensor<Self>,
        weight: Stored<Self>,
        bias: Maybe<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct FrozenBackward;

        impl<B: ProjectionKernel> Backward<B, 1> for FrozenBackward {
            type State = Layer<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let [node] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let Some(node) = node else { return };
                let found = B::projection_backward(&ops.state, None, grad, true);
                if let Some(grad_x) = found.grad_x {
                    grads.register::<B>(node.id, grad_x);
                }
            }
        }

        let bias = bias.into_option();
        let bias = match bias {
            Some(bias) if bias.is_tracked() && weight.dense().is_none() => {
                let output = Self::frozen_extension(x, weight, Maybe::Nothing);
                return with_bias::<B, C>(output, bias);
            }
            other => other,
        };
        if weight.is_tracked() || bias.as_ref().is_some_and(|bias| bias.is_tracked()) {
            let layer = Layer {
                weight,
                bias,
                factors: None,
                anchor: None,
                scale: 0.0,
            };
            return portable_forward::<Self>(x, &layer).0;
        }
        let nodes = [x.node()];
        let x = x.into_primitive();
        let layer = Layer {
            weight: weight.into_primitive(),
            bias: bias.map(|bias| bias.into_primitive()),
            factors: None,
            anchor: None,
            scale: 0.0,
        };
        let (output, _) = B::projection_forward(x, &layer);
        match FrozenBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish(layer, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn adapted_extension(
        x: FloatTensor<Self>,
        weight: Stored<Self>,
        bias: Maybe<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        a0: Maybe<Self>,
        b0: Maybe<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct AdaptedBackward;

        impl<B: ProjectionKernel> Backward<B, 3> for AdaptedBackward {
            type State = (Layer<B>, Option<[FloatTensor<B>; 2]>);

            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let [node_x, node_a, node_b] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (layer, kept) = ops.state;
                let found = B::projection_backward(&layer, kept, grad, node_x.is_some());
                if let (Some(node), Some(grad_x)) = (node_x, found.grad_x) {
                    grads.register::<B>(node.id, grad_x);
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

        let bias = bias.into_option();
        let bias = match bias {
            Some(bias) if bias.is_tracked() && weight.dense().is_none() => {
                let none = Maybe::Nothing;
                let output = Self::adapted_extension(x, weight, none, a, b, a0, b0, scale);
                return with_bias::<B, C>(output, bias);
            }
            other => other,
        };
        let anchor = a0
            .into_option()
            .zip(b0.into_option())
            .map(|(a0, b0)| [a0, b0]);
        let mut constants = bias.iter().chain(anchor.iter().flatten());
        if weight.is_tracked() || constants.any(|tensor| tensor.is_tracked()) {
            let layer = Layer {
                weight,
                bias,
                factors: Some([a, b]),
                anchor,
                scale,
            };
            return portable_forward::<Self>(x, &layer).0;
        }
        let nodes = [x.node(), a.node(), b.node()];
        let x = x.into_primitive();
        let layer = Layer {
            weight: weight.into_primitive(),
            bias: bias.map(|bias| bias.into_primitive()),
            factors: Some([a.into_primitive(), b.into_primitive()]),
            anchor: anchor.map(|anchor| anchor.map(|factor| factor.into_primitive())),
            scale,
        };
        let (output, down) = B::projection_forward(x.clone(), &layer);
        match AdaptedBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((layer, down.map(|down| [x, down])), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

/// Adds a bias that trains to what a packed weight gives, which would otherwise
/// be kept as floats for the sake of the bias.
fn with_bias<B: ProjectionKernel, C: CheckpointStrategy>(
    output: FloatTensor<Autodiff<B, C>>,
    bias: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let output = Portable::<Autodiff<B, C>>(output);
    let mut shape = vec![1; output.shape().len()];
    if let (Some(last), Some(width)) = (shape.last_mut(), output.shape().last()) {
        *last = *width;
    }
    let bias = Portable::<Autodiff<B, C>>(bias).reshape(shape);
    (output + bias).0
}
