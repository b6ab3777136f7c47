//! Reading and replacing the factors of an adapted module.

use std::collections::BTreeMap;

use burn::{
    module::{Module, Param, ParamId},
    tensor::Tensor,
};
use olora_files::fnv1a;

use crate::{
    AdapterError,
    params::{MapParams, Parameter, Place, Role, map_params, params},
    target::Kind,
};

/// What is attached to one layer, without autodiff.
#[derive(Clone, Debug)]
pub struct LayerFactors {
    /// The adapted layer's path, without `.weight`.
    pub path: String,
    /// `[d_in, rank]`.
    pub a: Tensor<2>,
    /// `[rank, d_out]`.
    pub b: Tensor<2>,
    /// `A₀` and `B₀`, if the adapter has an anchor.
    pub anchor: Option<(Tensor<2>, Tensor<2>)>,
    /// The magnitudes now and at the start, `[d_out]`, if the update is
    /// weight-decomposed.
    pub magnitude: Option<(Tensor<1>, Tensor<1>)>,
    /// What the layer is.
    pub kind: Kind,
}

/// The factors of every adapted layer, in the module's own order; empty if no
/// adapter is attached.
pub fn factors<M: Module>(module: &M) -> Vec<LayerFactors> {
    let mut all = params(module);
    all.retain(|param| param.role().is_adapter());
    // A layer's parameters are listed one after another.
    let layers = all.chunk_by(|a, b| a.layer() == b.layer());
    layers.filter_map(LayerFactors::of).collect()
}

impl LayerFactors {
    /// From what an adapter holds.
    fn of(params: &[Parameter]) -> Option<Self> {
        let by_role = |role| params.iter().find(move |param| param.role() == role);
        let matrix = |role| Some(by_role(role)?.tensor::<2>()?.without_autodiff());
        let vector = |role| Some(by_role(role)?.tensor::<1>()?.without_autodiff());
        let a = by_role(Role::A)?;
        Some(Self {
            path: a.layer().to_owned(),
            kind: a.kind()?,
            a: matrix(Role::A)?,
            b: matrix(Role::B)?,
            anchor: matrix(Role::AnchorA).zip(matrix(Role::AnchorB)),
            magnitude: vector(Role::Magnitude).zip(vector(Role::MagnitudeStart)),
        })
    }
}

/// Puts the given factors in the place of those with the same path.
///
/// # Errors
///
/// [`AdapterError::NotAdapted`] if the module carries no adapter. Shapes and
/// paths are the caller's to have checked.
pub(crate) fn replace<M: Module>(module: M, factors: Vec<LayerFactors>) -> Result<M, AdapterError> {
    let mut tensors = BTreeMap::new();
    let flat = |tensor: Tensor<2>| {
        let n = tensor.shape().num_elements();
        tensor.reshape([n])
    };
    for layer in factors {
        let mut put = |role, tensor| tensors.insert((layer.path.clone(), role), tensor);
        put(Role::A, flat(layer.a));
        put(Role::B, flat(layer.b));
        if let Some((a, b)) = layer.anchor {
            put(Role::AnchorA, flat(a));
            put(Role::AnchorB, flat(b));
        }
        if let Some((magnitude, _)) = layer.magnitude {
            put(Role::Magnitude, magnitude);
        }
    }
    if tensors.is_empty() {
        return Err(AdapterError::NotAdapted);
    }
    Ok(map_params(module, &mut Replacer(tensors)))
}

/// An identity for the optimiser that does not change from one process to the
/// next, so that its saved state finds its parameter again (64-bit FNV-1a of
/// the path).
pub(crate) fn param_id(path: &str) -> ParamId {
    ParamId::from(fnv1a(path.as_bytes()))
}

/// New values, flattened, by layer and role.
struct Replacer(BTreeMap<(String, Role), Tensor<1>>);

impl MapParams for Replacer {
    fn map<const D: usize>(&mut self, place: &Place, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(tensor) = self.0.remove(&(place.layer().to_owned(), place.role)) else {
            return param;
        };
        param.map(|old| {
            let tensor: Tensor<D> = tensor.reshape(old.shape());
            let tracked = old.is_require_grad();
            let tensor = if old.is_autodiff() {
                Tensor::from_inner(tensor)
            } else {
                tensor
            };
            if tracked {
                tensor.require_grad()
            } else {
                tensor
            }
        })
    }
}
