//! The fast forward pass of an adapted linear layer.

use burn::{
    module::Param,
    nn::Linear,
    tensor::{Tensor, module::linear},
};

use crate::LowRank;

/// A linear layer applied in factored form.
///
/// Burn's own `Linear::forward` gives the same values through the composed
/// weight, but builds it anew in every forward pass and makes autodiff compute
/// a full weight gradient; `project` needs neither. A model calls
/// `layer.project(x)` where it would call `layer.forward(x)`.
pub trait Project {
    /// `x·W + bias`, plus the low-rank update if an adapter is attached.
    ///
    /// # Shapes
    ///
    /// - x: `[.., d_in]`
    /// - output: `[.., d_out]`, in the dtype of `x`
    fn project<const D: usize>(&self, x: Tensor<D>) -> Tensor<D>;
}

impl Project for Linear {
    fn project<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let bias = self.bias.as_ref().map(Param::val);
        match self.weight.reparameterization::<LowRank>() {
            None => linear(x, self.weight.val(), bias),
            Some(adapter) => linear(x.clone(), self.weight.base(), bias) + adapter.forward(x),
        }
    }
}
