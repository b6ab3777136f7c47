//! What the feed-forward networks bend their inputs with.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use burn::{
    nn::Linear,
    tensor::{
        DType, Tensor,
        activation::{gelu, relu, silu},
    },
};
use olora_adapter::{Project, to_dtype};
use olora_operations::swiglu;

/// The non-linearity of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x·σ(x)`.
    Silu,
    /// `x·Φ(x)` ([arXiv 1606.08415](https://arxiv.org/abs/1606.08415)).
    Gelu,
    /// The same with Φ approximated by a hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// The activation, computed in f32.
    ///
    /// # Shapes
    ///
    /// - x, output: the same, in the dtype of x
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        if self == Self::Relu {
            return relu(x);
        }
        let x = to_dtype(x, DType::F32);
        let bent = match self {
            Self::Silu => silu(x),
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_tanh(x),
            Self::Relu => relu(x),
        };
        to_dtype(bent, dtype)
    }

    /// The activation of `gate`, times `up`.
    ///
    /// # Shapes
    ///
    /// - gate, up, output: the same, of one dtype
    pub fn gated<const D: usize>(self, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Silu => swiglu(gate, up),
            other => other.forward(gate) * up,
        }
    }

    /// What [`gated`](Self::gated) gives, through a layer.
    ///
    /// # Shapes
    ///
    /// - gate, up: `[.., d_in]` of the layer, of one dtype
    /// - output: `[.., d_out]`, in that dtype
    pub fn projected<const D: usize>(
        self,
        gate: Tensor<D>,
        up: Tensor<D>,
        layer: &Linear,
    ) -> Tensor<D> {
        match self {
            Self::Silu => layer.project_gated(gate, up),
            other => layer.project(other.gated(gate, up)),
        }
    }
}

/// `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, as Burn's `gelu_approximate`, but
/// with the cube as a product: a power of a negative number is not a number on
/// some devices.
fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let cubic = x.clone().square().mul_scalar(0.044_715).add_scalar(1.0);
    let inner = (x.clone() * cubic).mul_scalar(FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
    (x * inner.tanh().add_scalar(1.0)).mul_scalar(0.5)
}
