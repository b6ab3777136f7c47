//! Which number formats a model is held in and computes in.

use burn::tensor::{DType, Device};
use olora_adapter::Placement;
use olora_data::Padding;
use olora_model::{Dense, Dtype, Matrices, ModelConfig, Packing, Products, is_host};
use serde::Serialize;

use crate::{Recipe, RunError};

/// The number formats of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Precision {
    /// Of the base weights.
    pub base: Dtype,
    /// Of activations and matrix products.
    pub compute: Dtype,
    /// On the CPU, how matrices that are held in bfloat16 are multiplied with. All that
    /// is no matrix product is float32 there.
    #[serde(skip)]
    pub in_bf16: Option<Products>,
    /// What was asked for and could not be had, where the recipe allows that:
    /// the key and the number format.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fallback: Vec<(&'static str, &'static str)>,
}

impl Precision {
    /// What tensors of weights are in: all of them, or those that are no matrices.
    pub fn of_weights(&self) -> Dtype {
        self.in_bf16.map_or(self.base, |_| Dtype::F32)
    }

    /// What activations are in.
    pub fn of_activations(&self) -> Dtype {
        self.in_bf16.map_or(self.compute, |_| Dtype::F32)
    }

    /// In what form matrices are held that are `packing`.
    pub fn matrices(&self, packing: Packing) -> Matrices {
        Matrices {
            packing,
            dense: self.in_bf16.map_or(Dense::Tensors, Dense::Bf16),
            interleaved: false,
        }
    }
}

/// The number format for a checkpoint that is stored as `stored`, on `device`.
///
/// Asked for nothing, the CPU gets float32, which it computes fastest in; an
/// `accelerator` gets bfloat16 for a half-precision checkpoint where it can,
/// also for one stored in float16, whose small range is no safe place for
/// gradients.
///
/// # Errors
///
/// [`RunError::Precision`], naming `key`, if `requested` is not among what
/// the device computes in.
pub fn choose_dtype(
    key: &'static str,
    requested: Option<Dtype>,
    stored: Option<Dtype>,
    device: &Device,
    accelerator: bool,
) -> Result<Dtype, RunError> {
    let can = |dtype: Dtype| device.supports_dtype(DType::from(dtype));
    if let Some(dtype) = requested {
        return if can(dtype) {
            Ok(dtype)
        } else {
            Err(RunError::Precision {
                key,
                wanted: dtype.name(),
                offered: Dtype::offered_by(device)
                    .into_iter()
                    .map(Dtype::name)
                    .collect(),
            })
        };
    }
    let half = matches!(stored, Some(Dtype::Bf16 | Dtype::F16));
    Ok(if accelerator && half && can(Dtype::Bf16) {
        Dtype::Bf16
    } else {
        Dtype::F32
    })
}

impl Recipe {
    /// The recipe with everything decided that depends on the device and the
    /// checkpoint, as it is written to the run directory.
    ///
    /// # Errors
    ///
    /// [`RunError::Precision`] if the device does not compute in what is asked for.
    pub fn resolved(
        &self,
        config: &ModelConfig,
        device: &Device,
        accelerator: bool,
    ) -> Result<(Self, Precision), RunError> {
        let mut fallback = Vec::new();
        let mut choose = |key, requested: Option<Dtype>, stored| match choose_dtype(
            key,
            requested,
            stored,
            device,
            accelerator,
        ) {
            Err(RunError::Precision { wanted, .. }) if self.model.dtype_fallback => {
                fallback.push((key, wanted));
                Ok(Dtype::F32)
            }
            other => other,
        };
        let full = self.adapter.everything;
        // What trains is held in float32.
        let trains = full || !self.adapter.config.modules_to_save.is_empty();
        let stored = if trains { None } else { config.stored_dtype() };
        let in_place = self.adapter.config.placement == Placement::Residual;
        // Matrices that the CPU multiplies with in bfloat16 are not tensors: they do not train, and
        // nothing is written over them.
        let can_hold = is_host(device) && !full && !in_place;
        let asks = self.model.compute_dtype == Some(Dtype::Bf16);
        let base = match self.model.dtype {
            None if can_hold && asks => Dtype::Bf16,
            asked => choose("model.dtype", asked, stored)?,
        };
        // Left out, the compute format is the base's own, on the CPU too.
        let compute = self.model.compute_dtype.unwrap_or(base);
        let compute = choose("model.compute_dtype", Some(compute), None)?;
        let in_bf16 = match (base, compute) {
            (Dtype::Bf16, Dtype::Bf16) if can_hold => Some(Products::Rounded),
            (Dtype::Bf16, Dtype::F32) if can_hold => Some(Products::Exact),
            _ => None,
        };
        let mut recipe = self.clone();
        recipe.model.dtype = Some(base);
        recipe.model.compute_dtype = Some(compute);
        recipe.output.keep = Some(self.keep());
        recipe
            .training
            .pad_to_multiple_of
            .get_or_insert(Padding::default_multiple(accelerator));
        let precision = Precision {
            base,
            compute,
            in_bf16,
            fallback,
        };
        Ok((recipe, precision))
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Dtype::name;
        write!(f, "{} weights", name(self.base))?;
        if self.compute != self.base {
            write!(f, ", computing in {}", name(self.compute))?;
        }
        for (key, wanted) in &self.fallback {
            write!(
                f,
                " ({key} = {wanted} is not to be had here: float32 instead)"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_follows_from_checkpoint_and_device() {
        let device = Device::flex();
        let choose = |requested, stored, accelerator| {
            choose_dtype("model.dtype", requested, stored, &device, accelerator).unwrap()
        };
        use Dtype::{Bf16, F16, F32};
        assert_eq!(choose(None, Some(Bf16), false), F32);
        assert_eq!(choose(None, Some(Bf16), true), Bf16);
        assert_eq!(choose(None, Some(F16), true), Bf16);
        assert_eq!(choose(None, Some(F32), true), F32);
        assert_eq!(choose(None, None, true), F32);
        assert_eq!(choose(Some(F16), Some(Bf16), false), F16);
    }
}
