//! The norms of all families, over the last axis.

use burn::{
    module::{Initializer, Module, Param},
    tensor::{DType, Device, Tensor},
};
use olora_adapter::to_dtype;
use olora_operations::rms_norm;

/// Which norm a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square ([arXiv 1910.07467](https://arxiv.org/abs/1910.07467)),
    /// times the weight in the input's dtype.
    Rms,
    /// The same, but the product with the weight is rounded, not its input
    /// (`OLMo` 2).
    RmsRoundedOnce,
    /// Root mean square, times `1 + weight`, all of it in f32 (Gemma).
    RmsPlusOne,
    /// Layer norm ([arXiv 1607.06450](https://arxiv.org/abs/1607.06450)), with
    /// weight and bias (OPT).
    Layer,
    /// Layer norm without weight and bias (OPT with
    /// `layer_norm_elementwise_affine: false`).
    PlainLayer,
}

/// A norm over the last axis, computed in f32.
#[derive(Module, Debug)]
pub struct Norm {
    /// `[width]`; `None` if the kind has none.
    pub weight: Option<Param<Tensor<1>>>,
    /// `[width]`; `None` if the kind has none.
    pub bias: Option<Param<Tensor<1>>>,
    /// Added to the mean square, or to the variance.
    pub eps: f64,
    #[module(skip)]
    kind: NormKind,
}

impl Norm {
    /// A norm that only normalises until its weights are loaded.
    pub(crate) fn new(kind: NormKind, width: usize, eps: f64, device: &Device) -> Self {
        let filled = |with: Initializer| Some(with.init([width], device));
        let (weight, bias) = match kind {
            NormKind::Rms | NormKind::RmsRoundedOnce => (filled(Initializer::Ones), None),
            NormKind::RmsPlusOne => (filled(Initializer::Zeros), None),
            NormKind::Layer => (filled(Initializer::Ones), filled(Initializer::Zeros)),
            NormKind::PlainLayer => (None, None),
        };
        Self {
            weight,
            bias,
            eps,
            kind,
        }
    }

    /// The normalised input, as `LlamaRMSNorm`, `GemmaRMSNorm` and torch's
    /// `LayerNorm` have it, rounding included.
    ///
    /// # Shapes
    ///
    /// - x: `[.., width]`
    /// - output: the same, in the dtype of x
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let wide = |x: Tensor<D>| to_dtype(x, DType::F32);
        match (self.kind, &self.weight) {
            (NormKind::Rms, Some(weight)) => rms_norm(x, weight.val(), self.eps),
            (NormKind::RmsRoundedOnce, Some(weight)) => {
                let weight = to_dtype(weight.val(), DType::F32);
                to_dtype(rms_norm(wide(x), weight, self.eps), dtype)
            }
            (NormKind::RmsPlusOne, Some(weight)) => {
                let weight = to_dtype(weight.val(), DType::F32).add_scalar(1.0);
                to_dtype(rms_norm(wide(x), weight, self.eps), dtype)
            }
            _ => to_dtype(self.layer_norm(wide(x)), dtype),
        }
    }

    /// Of `x` in f32.
    fn layer_norm<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let row = |param: &Param<Tensor<1>>| to_dtype(param.val(), DType::F32).unsqueeze();
        let centred = x.clone() - x.mean_dim(D - 1);
        let variance = centred.clone().square().mean_dim(D - 1);
        let mut normed = centred * variance.add_scalar(self.eps).sqrt().recip();
        if let Some(weight) = &self.weight {
            normed = normed * row(weight);
        }
        if let Some(bias) = &self.bias {
            normed = normed + row(bias);
        }
        normed
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;

    /// Rounds once, after the weight, where LLaMA's norm rounds before it too.
    #[test]
    fn all_but_llamas_norm_round_at_the_end_only() {
        let device = Device::flex();
        let normal = Distribution::Normal(0.0, 1.0);
        let x = Tensor::<2>::random([16, 96], normal, &device).cast(DType::BF16);
        let weight = Tensor::<1>::random([96], normal, &device).cast(DType::BF16);
        for (kind, rounds_once) in [
            (NormKind::Rms, false),
            (NormKind::RmsRoundedOnce, true),
            (NormKind::RmsPlusOne, true),
            (NormKind::Layer, true),
            (NormKind::PlainLayer, true),
        ] {
            let mut norm = Norm::new(kind, 96, 1e-5, &device);
            norm.weight = norm.weight.map(|_| Param::from_tensor(weight.clone()));
            let ours = norm.forward(x.clone());
            assert_eq!(ours.dtype(), DType::BF16, "{kind:?}");
            let exact = norm.forward(x.clone().cast(DType::F32)).cast(DType::BF16);
            assert_eq!(
                ours.into_data() == exact.into_data(),
                rounds_once,
                "{kind:?}"
            );
        }
    }
}
