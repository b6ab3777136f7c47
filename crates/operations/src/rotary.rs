//! Rotary position embedding in the half-split form of Hugging Face
//! checkpoints ([arXiv 2104.09864](https://arxiv.org/abs/2104.09864)): feature
//! `i` rotates with feature `i + head_dim / 2`.
//!
//! A rotation's gradient is the rotation by the opposite angle: nothing but
//! the table is kept.

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
    portable::Portable,
    support::{for_backends, supports},
};

/// Rotates queries or keys by the angles of a table.
///
/// # Shapes
///
/// - x: `[batch, heads, seq, 2 · pairs]`
/// - cos, sin: `[1, 1, seq, pairs]`, or `[batch, 1, seq, pairs]` if the rows'
///   positions differ; of x's dtype, constants
/// - output: as x
///
/// # Panics
///
/// If the tables are not of these shapes.
pub fn rotate(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let [batch, _, seq, head_dim] = x.dims();
    let [rows, one, positions, pairs] = cos.dims();
    assert!(
        sin.dims() == cos.dims()
            && (rows == 1 || rows == batch)
            && [one, positions, 2 * pairs] == [1, seq, head_dim],
        "tables of {:?} and {:?} do not fit {:?}",
        cos.dims(),
        sin.dims(),
        x.dims()
    );
    if !supports(&x.device()) {
        return composed(x, cos, sin);
    }
    Tensor::from_dispatch(
        <burn::backend::Dispatch as RotaryExtension>::rotate_extension(
            x.into_dispatch(),
            cos.into_dispatch(),
            sin.into_dispatch(),
        ),
    )
}

/// [`rotate`] as a composition of Burn's operations.
pub fn composed(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let pairs = cos.dims()[3];
    let first = x.clone().narrow(3, 0, pairs);
    let second = x.narrow(3, pairs, pairs);
    Tensor::cat(
        vec![
            first.clone() * cos.clone() - second.clone() * sin.clone(),
            second * cos + first * sin,
        ],
        3,
    )
}

/// Rotation as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait RotaryExtension: Backend {
    /// See [`rotate`].
    fn rotate_extension(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// Rotation, which a backend may do in its own way.
pub(crate) trait RotaryKernel: Backend {
    /// By the angles of the table, or back.
    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        back: bool,
    ) -> FloatTensor<Self> {
        portable_rotate::<Self>(x, cos, sin, back)
    }
}

#[cfg(feature = "cube")]
impl RotaryKernel for burn::backend::Cube {}

for_backends!(RotaryExtension {
    fn rotate_extension(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::rotate(x, cos, sin, false)
    }
});

pub(crate) fn portable_rotate<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    back: bool,
) -> FloatTensor<B> {
    let (x, cos, sin) = (Portable::<B>(x), Portable::<B>(cos), Portable::<B>(sin));
    let sin = if back { sin.neg() } else { sin };
    let pairs = cos.shape()[3];
    let first = x.clone().narrow(3, 0..pairs);
    let second = x.narrow(3, pairs..2 * pairs);
    let rotated = vec![
        first.clone() * cos.clone() - second.clone() * sin.clone(),
        second * cos + first * sin,
    ];
    Portable::cat(rotated, 3).0
}

impl<B: RotaryKernel, C: CheckpointStrategy> RotaryExtension for Autodiff<B, C> {
    fn rotate_extension(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct RotateBack;

        impl<B: RotaryKernel> Backward<B, 1> for RotateBack {
            type State = (FloatTensor<B>, FloatTensor<B>);

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let [node] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (cos, sin) = ops.state;
                if let Some(node) = node {
                    grads.register::<B>(node.id, B::rotate(grad, cos, sin, true));
                }
            }
        }

        let nodes = [x.node()];
        let x = x.into_primitive();
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        match RotateBack.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let output = B::rotate(x, cos.clone(), sin.clone(), false);
                prep.finish((cos, sin), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rotate(x, cos, sin, false)),
        }
    }
}
