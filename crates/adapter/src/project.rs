//! The fast forward pass of an adapted linear layer.

use burn::{
    nn::Linear,
    tensor::{Tensor, module::linear},
};
use olora_operations::project;

use crate::{LowRank, to_dtype};

/// A linear layer applied in factored form.
///
/// Burn's own `Linear::forward` gives the same values through the composed
/// weight, but builds it anew in every forward pass and makes autodiff compute
/// a full weight gradient; `project` needs neither. A model calls
/// `layer.project(x)` where it would call `layer.forward(x)`.
pub trait Project {
    /// `x·W + bias`, plus the low-rank update if an adapter is attached.
    /// Weight and bias are cast to the dtype of `x` where theirs is another.
    ///
    /// # Shapes
    ///
    /// - x: `[.., d_in]`
    /// - output: `[.., d_out]`, in the dtype of `x`
    fn project<const D: usize>(&self, x: Tensor<D>) -> Tensor<D>;
}

impl Project for Linear {
    fn project<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let bias = self.bias.as_ref().map(|bias| to_dtype(bias.val(), dtype));
        match self.weight.reparameterization::<LowRank>() {
            None => project(x, to_dtype(self.weight.val(), dtype), bias, None),
            Some(adapter) => {
                let weight = to_dtype(self.weight.base(), dtype);
                if adapter.drops(&x.device()) {
                    // The adapter's input is then another than the layer's.
                    linear(x.clone(), weight, bias) + adapter.forward(x)
                } else {
                    project(x, weight, bias, Some(adapter.factors()))
                }
            }
        }
    }
}
