//! Leaving the adapter behind: merged into the weights, or removed.

use std::collections::BTreeSet;

use burn::{
    module::{Module, Reparameterization},
    tensor::{Tensor, TensorData},
};

use crate::{
    AdapterError, Kind, LowRank, Role,
    error::device_error,
    factors::{LayerFactors, factors, replace},
    packed::{PackedBase, bare, held, packed_weights, put_on, taken_off},
    params::{Parameter, params},
};

/// A new module with every update added to its weight and no adapter left.
///
/// The sum is taken in f32 and rounded once to the weight's dtype. The
/// module given up is unchanged wherever else it is held. Packed weights become
/// dense, all of them: [`merged_params`] has one at a time.
///
/// # Errors
///
/// [`AdapterError::NotAdapted`] if there is nothing to merge, and
/// [`AdapterError::NotFinite`] naming the first layer whose factors hold NaN
/// or infinity: merging those would destroy the weight for good.
pub fn merge<M: Module>(module: M) -> Result<M, AdapterError> {
    let factors = factors(&module);
    if factors.is_empty() {
        return Err(AdapterError::NotAdapted);
    }
    check_finite(&factors)?;
    Ok(module.materialize())
}

fn check_finite(factors: &[LayerFactors]) -> Result<(), AdapterError> {
    for layer in factors {
        let magnitude = layer.magnitude.clone().map(|(now, _)| now.unsqueeze());
        for factor in [&layer.a, &layer.b].into_iter().chain(&magnitude) {
            if !is_finite(factor, &layer.path)? {
                return Err(AdapterError::NotFinite(layer.path.clone()));
            }
        }
    }
    Ok(())
}

/// A parameter as it is once the adapter, if there is one, is merged.
#[derive(Debug)]
pub struct MergedParameter {
    param: Parameter,
    update: Option<LowRank>,
}

impl MergedParameter {
    /// The parameter, without the update.
    pub fn param(&self) -> &Parameter {
        &self.param
    }

    /// Whether an update is added.
    pub fn is_adapted(&self) -> bool {
        self.update.is_some()
    }

    /// The packed matrix that it is, if it is one and nothing is added.
    pub fn packed(&self) -> Option<&PackedBase> {
        self.param.packed().filter(|_| self.update.is_none())
    }

    /// The values, on the host: those that [`merge`] gives.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Device`] if they cannot be read back.
    pub fn data(&self) -> Result<TensorData, AdapterError> {
        let update = self.update.as_ref();
        let Some((update, weight)) = update.zip(self.param.param::<2>()) else {
            return self.param.data();
        };
        let merged = update.apply(weight.base()).without_autodiff();
        merged
            .try_into_data()
            .map_err(|error| device_error(self.param.path(), &error))
    }
}

/// The parameters of a module as they are once its adapter, if it has one, is
/// merged: each is made when its values are asked for, so that no more than
/// one is there, whatever the base is packed in.
///
/// # Errors
///
/// [`AdapterError::NotFinite`], as for [`merge`].
pub fn merged_params<M: Module>(module: &M) -> Result<Vec<MergedParameter>, AdapterError> {
    let factors = factors(module);
    check_finite(&factors)?;
    // A packed weight to which nothing is added stays as it is packed: it is not rounded again.
    let mut idle = BTreeSet::new();
    for layer in factors {
        if !has_layer_moved(&layer)? {
            idle.insert(layer.path);
        }
    }
    let mut held = held(module);
    let all = params(module).into_iter();
    let own = all.filter(|param| !param.role().is_adapter());
    Ok(own
        .map(|param| {
            let is_weight = param.place().name() == "weight";
            let held = is_weight.then(|| held.remove(param.layer())).flatten();
            let is_idle = param.packed().is_some() && idle.contains(param.layer());
            MergedParameter {
                update: held.and_then(|held| held.low_rank).filter(|_| !is_idle),
                param,
            }
        })
        .collect())
}

/// A new module without its adapter: the base model.
///
/// For LoRA and for anchored adapters the weights are the original ones, bit
/// for bit. A residual adapter has changed its base; there `W_res + s·A₀·B₀`
/// gives it back up to rounding.
///
/// # Errors
///
/// [`AdapterError::NotAdapted`] if there is none.
pub fn without_adapter<M: Module>(module: M) -> Result<M, AdapterError> {
    let module = at_start(module)?;
    if packed_weights(&module).is_empty() {
        return Ok(module.materialize());
    }
    // Packed weights stay packed: with the update at its start, they are the base.
    let (module, packed) = taken_off(module);
    Ok(put_on(module, packed))
}

/// The module as if its adapter had not moved from where it started, so that it
/// computes what the base does; weights are shared, not copied.
///
/// For LoRA and for anchored adapters that is the base's output bit for bit:
/// the update is exactly zero there, so the adapter is taken off, and nothing of it
/// is computed. A residual adapter, or one with magnitudes, is put back to its start.
///
/// # Errors
///
/// [`AdapterError::NotAdapted`] if there is no adapter, and
/// [`AdapterError::Impossible`] if modules train whole beside it: what they
/// were is not kept.
pub fn switched_off<M: Module>(module: M) -> Result<M, AdapterError> {
    if let Some(saved) = params(&module)
        .iter()
        .find(|param| param.role() == Role::Saved)
    {
        return Err(AdapterError::Impossible {
            path: saved.path().to_owned(),
            what: "comparing with the base".to_owned(),
            reason:
                "it trains whole (`modules_to_save`), and what it was in the base is not kept: \
                     put an adapter on it instead"
                    .to_owned(),
        });
    }
    match bare(&module) {
        Some(bare) => Ok(bare),
        None => at_start(module),
    }
}

/// With every update back where it was zero.
fn at_start<M: Module>(module: M) -> Result<M, AdapterError> {
    let at_start = factors(&module)
        .into_iter()
        .map(|layer| {
            // The update is measured from the anchor, so back there it is zero.
            let (a, b) = match &layer.anchor {
                Some(anchor) => anchor.clone(),
                None => (layer.a.clone(), layer.b.zeros_like()),
            };
            let start = layer.magnitude.clone().map(|(_, start)| start);
            LayerFactors {
                a,
                b,
                magnitude: start.clone().zip(start),
                ..layer
            }
        })
        .collect();
    replace(module, at_start)
}

/// Whether any update has moved away from its start; if not, the module still
/// computes what its base does.
///
/// # Errors
///
/// [`AdapterError::Device`] if a factor cannot be read back.
pub fn has_moved<M: Module>(module: &M) -> Result<bool, AdapterError> {
    for layer in factors(module) {
        if has_layer_moved(&layer)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_layer_moved(layer: &LayerFactors) -> Result<bool, AdapterError> {
    let same = |now: &Tensor<2>, start: &Tensor<2>| {
        let equal = now.clone().equal(start.clone()).all();
        equal
            .try_into_scalar::<bool>()
            .map_err(|error| device_error(&layer.path, &error))
    };
    let at_start = match (&layer.anchor, layer.kind) {
        (Some((a, b)), _) => same(&layer.a, a)? && same(&layer.b, b)?,
        (None, Kind::Linear) => same(&layer.b, &layer.b.zeros_like())? || is_zero_product(layer)?,
        (None, Kind::Embedding) => same(&layer.a, &layer.a.zeros_like())?,
    };
    let magnitude = match &layer.magnitude {
        None => true,
        Some((now, start)) => same(&now.clone().unsqueeze(), &start.clone().unsqueeze())?,
    };
    Ok(!(at_start && magnitude))
}

/// Whether factors that are not zero have a product that is, up to rounding:
/// those of the orthogonal start.
fn is_zero_product(layer: &LayerFactors) -> Result<bool, AdapterError> {
    let size = |tensor: Tensor<2>| {
        let size = tensor.square().sum().sqrt().try_into_scalar::<f32>();
        size.map_err(|error| device_error(&layer.path, &error))
    };
    let product = size(layer.a.clone().matmul(layer.b.clone()))?;
    Ok(product <= 1e-6 * size(layer.a.clone())? * size(layer.b.clone())?)
}

fn is_finite(tensor: &Tensor<2>, path: &str) -> Result<bool, AdapterError> {
    let all = tensor.clone().is_finite().all();
    all.try_into_scalar::<bool>()
        .map_err(|error| device_error(path, &error))
}
