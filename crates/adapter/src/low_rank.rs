//! The low-rank update itself, as something Burn can store inside a parameter.

use burn::{
    module::{Content, DisplaySettings, Module, ModuleDisplay, Param, Reparameterization},
    nn::Dropout,
    tensor::{DType, Device, Tensor},
};
use olora_operations::{LowRankFactors, projection};

use crate::{
    Dora, Role,
    dora::column_squares,
    packed::{Held, Mode, PackedBase, deposit},
};

/// The trainable low-rank update of one frozen weight:
/// `ΔW = scale · (A·B − A₀·B₀)`, the second product only when the adapter is anchored.
///
/// With [`Dora`], the sum of the weight and this is then brought to the trained
/// magnitudes.
///
/// Factors are f32 whatever the weight's dtype is, as in PEFT
/// (`autocast_adapter_dtype`), and are laid out for Burn's `[d_in, d_out]`
/// weights: transposes of PEFT's `lora_A` and `lora_B`.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct LowRank {
    /// Down-projection, `[d_in, rank]`.
    pub a: Param<Tensor<2>>,
    /// Up-projection, `[rank, d_out]`.
    pub b: Param<Tensor<2>>,
    /// Where the factors started, if that was not a zero update.
    pub anchor: Option<Anchor>,
    /// The trained magnitudes, if the update is weight-decomposed.
    pub dora: Option<Dora>,
    /// Applied to the adapter's input during training only.
    pub dropout: Dropout,
    /// `alpha / rank`, or `alpha / √rank` when rank-stabilised.
    pub scale: f64,
    /// Whether the anchor's product is subtracted here (*anchored*), rather
    /// than taken out of the stored weight (*residual*).
    pub subtract_anchor: bool,
    /// The weight, if it is packed and the parameter hollow.
    #[module(skip)]
    pub packed: Option<PackedBase>,
}

/// The frozen factors at initialisation. Their product is what the update is
/// measured from, so that step 0 reproduces the base model.
#[derive(Module, Debug)]
pub struct Anchor {
    /// `A₀`, `[d_in, rank]`.
    pub a: Param<Tensor<2>>,
    /// `B₀`, `[rank, d_out]`.
    pub b: Param<Tensor<2>>,
}

impl LowRank {
    /// What the parameter is that these fields lead to, by the names that Burn
    /// visits them under; `None` if there is no such parameter.
    ///
    /// This is the one place that knows them by name.
    pub(crate) fn role(fields: &[&str]) -> Option<Role> {
        Some(match fields {
            ["a"] => Role::A,
            ["b"] => Role::B,
            ["anchor", "a"] => Role::AnchorA,
            ["anchor", "b"] => Role::AnchorB,
            ["dora", "magnitude"] => Role::Magnitude,
            ["dora", "start"] => Role::MagnitudeStart,
            ["dora", "weight_squares"] => Role::WeightSquares,
            _ => return None,
        })
    }

    /// The rank of `A·B`.
    pub fn rank(&self) -> usize {
        self.a.lazy_shape()[1]
    }

    /// The update applied to `x`, never forming the `[d_in, d_out]` product:
    /// `scale · ((x·A)·B − (x·A₀)·B₀)`.
    ///
    /// The anchor's product is computed by the same two calls as the trained
    /// one and on the same (dropped-out) input, so at step 0 the two are equal
    /// bit for bit and the difference is exactly zero. One matmul over
    /// concatenated factors would be cheaper but would only nearly cancel.
    ///
    /// # Shapes
    ///
    /// - x: `[.., d_in]`, any float dtype
    /// - output: `[.., d_out]`, in the dtype of `x`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        projection::update(self.dropout.forward(x), &self.factors())
    }

    /// The factors as operations take them.
    pub(crate) fn factors(&self) -> LowRankFactors {
        let anchor = self.anchor.as_ref().filter(|_| self.subtract_anchor);
        LowRankFactors {
            a: self.a.val(),
            b: self.b.val(),
            anchor: anchor.map(|anchor| [anchor.a.val(), anchor.b.val()]),
            scale: self.scale,
        }
    }

    /// Whether dropout changes the adapter's input, on such a device.
    pub(crate) fn drops(&self, device: &Device) -> bool {
        self.dropout.prob > 0.0 && self.dropout.training.is_enabled() && device.is_autodiff()
    }

    /// The update as a dense `[d_in, d_out]` tensor in f32, before any magnitude.
    pub fn dense(&self) -> Tensor<2> {
        let product = self.a.val().matmul(self.b.val());
        let update = match &self.anchor {
            Some(anchor) if self.subtract_anchor => product - anchor.a.val().matmul(anchor.b.val()),
            _ => product,
        };
        update.mul_scalar(self.scale)
    }
}

/// Prints what the adapter is in one line: `LowRank {d_in: 8, rank: 2, …}`.
impl ModuleDisplay for LowRank {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_new_line_after_attribute(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let anchor = self.anchor.as_ref().map_or("none", |_| {
            if self.subtract_anchor {
                "subtracted"
            } else {
                "in the weight"
            }
        });
        content
            .add("d_in", &self.a.lazy_shape()[0])
            .add("rank", &self.rank())
            .add("d_out", &self.b.lazy_shape()[1])
            .add("scale", &self.scale)
            .add("anchor", anchor)
            .add("dora", &self.dora.is_some())
            .add("dropout", &self.dropout.prob)
            .optional()
    }
}

/// The slow, obviously right form: what `Param::val`, Burn's own
/// `Linear::forward` and `materialize` use, and the oracle for
/// [`Project`](crate::Project).
impl Reparameterization for LowRank {
    const NAME: &'static str = "low_rank";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let held = || Held {
            low_rank: Some(self.clone()),
            packed: self.packed.clone(),
        };
        let base = match (deposit(held), &self.packed) {
            (Mode::Look, _) | (Mode::TakeOff, Some(_)) => return base,
            (_, Some(packed)) => packed.in_place_of(&base),
            (_, None) => base,
        };
        let (dtype, shape) = (base.dtype(), base.shape());
        let sum = as_f32(base) + self.dense().reshape(shape.clone());
        let Some(dora) = &self.dora else {
            return to_dtype(sum, dtype);
        };
        let sum = sum.reshape([shape[0], shape[1]]);
        let norms = column_squares(sum.clone())
            .clamp_min(f32::MIN_POSITIVE)
            .sqrt()
            .detach();
        let ratio = (dora.magnitude.val() / norms).reshape([1, shape[1]]);
        to_dtype((sum * ratio).reshape(shape), dtype)
    }
}

/// Casts only where there is something to cast: on some backends a cast to the
/// same dtype still copies.
pub fn to_dtype<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    if tensor.dtype() == dtype {
        tensor
    } else {
        tensor.cast(dtype)
    }
}

pub(crate) fn as_f32<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    to_dtype(tensor, DType::F32)
}
