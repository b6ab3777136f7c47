//! The fast forward pass of an adapted layer.

use burn::{
    module::Param,
    nn::{Embedding, Linear},
    tensor::{Int, Tensor, module::embedding},
};
use olora_operations::{Weight, project, project_gated, project_together, swiglu};

use crate::{
    LowRank,
    packed::{packed_of, stored_weight},
    to_dtype,
    watch::Watch,
};

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

    /// The same of `silu(gate)·up`, which is not kept for the backward pass where that can be helped.
    ///
    /// # Shapes
    ///
    /// - gate, up: `[.., d_in]`, of one dtype
    /// - output: `[.., d_out]`, in that dtype
    fn project_gated<const D: usize>(&self, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D>;
}

impl Project for Linear {
    fn project<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let bias = self.bias.as_ref().map(|bias| to_dtype(bias.val(), dtype));
        let Some(adapter) = self.weight.reparameterization::<LowRank>() else {
            let weight = match packed_of(&self.weight) {
                Some(packed) => Weight::Packed(packed.tensor.clone()),
                None => Weight::Dense(to_dtype(self.weight.val(), dtype)),
            };
            let run = |x| project(x, weight, bias, None);
            return match self.weight.reparameterization::<Watch>() {
                Some(watch) => watch.through(x, run),
                None => run(x),
            };
        };
        let stored = stored_weight(&self.weight);
        let weight = stored.clone().to_dtype(dtype);
        let drops = adapter.drops(&x.device());
        let Some(ratio) = adapter.magnitude_ratio(&stored) else {
            return if drops {
                // The adapter's input is then another than the layer's.
                project(x.clone(), weight, bias, None) + adapter.forward(x)
            } else {
                project(x, weight, bias, Some(adapter.factors()))
            };
        };
        let ratio = to_dtype(ratio, dtype).unsqueeze::<D>();
        if drops {
            // What the adapter changes is computed on its own input, the rest on the whole one;
            // at ratio 1 and without an update, that is the base (PEFT's `DoraLinearLayer`).
            let dropped = adapter.dropout.forward(x.clone());
            let base = project(dropped.clone(), weight.clone(), None, None);
            let decomposed = project(dropped, weight.clone(), None, Some(adapter.factors()));
            return project(x, weight, bias, None) + (decomposed * ratio - base);
        }
        let y = project(x, weight, None, Some(adapter.factors())) * ratio;
        match bias {
            None => y,
            Some(bias) => y + bias.unsqueeze(),
        }
    }

    fn project_gated<const D: usize>(&self, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
        match self.weight.reparameterization::<LowRank>() {
            Some(adapter) if adapter.dora.is_none() && !adapter.drops(&gate.device()) => {
                let dtype = gate.dtype();
                let bias = self.bias.as_ref().map(|bias| to_dtype(bias.val(), dtype));
                let weight = stored_weight(&self.weight).to_dtype(dtype);
                project_gated(gate, up, weight, bias, adapter.factors())
            }
            _ => self.project(swiglu(gate, up)),
        }
    }
}

/// [`Project::project`] of several layers on the same input: where tokens are generated on the CPU, all at
/// once, with the same results.
///
/// # Shapes
///
/// - x: `[.., d_in]`
/// - outputs: `[.., d_out]` of each layer, in the dtype of `x`
///
/// # Panics
///
/// If a layer does not fit the input.
pub fn project_each<const D: usize, const N: usize>(
    layers: [&Linear; N],
    x: &Tensor<D>,
) -> [Tensor<D>; N] {
    let plain = layers.map(|layer| packed_of(&layer.weight).filter(|_| !is_adapted(layer)));
    let weights: Vec<_> = plain
        .iter()
        .flatten()
        .map(|packed| &packed.tensor)
        .collect();
    let outputs = <[_; N]>::try_from(weights)
        .ok()
        .and_then(|weights| project_together(x, weights));
    let Some(mut outputs) = outputs else {
        return layers.map(|layer| layer.project(x.clone()));
    };
    for (output, layer) in outputs.iter_mut().zip(layers) {
        if let Some(bias) = &layer.bias {
            let bias = to_dtype(bias.val(), output.dtype()).unsqueeze();
            *output = output.clone() + bias;
        }
    }
    outputs
}

/// Whether something is attached to a layer that only [`Project`] does right, so
/// that its weight must not be used by itself.
pub fn is_adapted(layer: &Linear) -> bool {
    layer.weight.reparameterization::<LowRank>().is_some()
        || layer.weight.reparameterization::<Watch>().is_some()
}

/// Whether the adapter on a weight, if there is one, drops some of its input in
/// training.
pub fn has_dropout(weight: &Param<Tensor<2>>) -> bool {
    let adapter = weight.reparameterization::<LowRank>();
    adapter.is_some_and(|adapter| adapter.dropout.prob > 0.0)
}

/// An embedding applied in factored form.
pub trait Embed {
    /// The rows of the tokens, plus those of the low-rank update if an adapter
    /// is attached.
    ///
    /// # Shapes
    ///
    /// - ids: `[batch, seq]`
    /// - output: `[batch, seq, width]`, in the weight's dtype
    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3>;
}

impl Embed for Embedding {
    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let rows = |ids| match packed_of(&self.weight) {
            Some(packed) => {
                let hollow = self.weight.base();
                let rows = packed.tensor.embedding(ids, hollow.dtype());
                if hollow.is_autodiff() {
                    Tensor::from_inner(rows)
                } else {
                    rows
                }
            }
            None => embedding(self.weight.base(), ids),
        };
        let Some(adapter) = self.weight.reparameterization::<LowRank>() else {
            return match packed_of(&self.weight) {
                Some(_) => rows(ids),
                None => self.forward(ids),
            };
        };
        let rows = rows(ids.clone());
        let down = embedding(adapter.a.val(), ids).mul_scalar(adapter.scale);
        let update = project(down, adapter.b.val(), None, None);
        let dtype = rows.dtype();
        rows + to_dtype(update, dtype)
    }
}
