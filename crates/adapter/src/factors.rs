//! Reading and replacing the factors of an adapted module.

use std::collections::{BTreeMap, BTreeSet};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    tensor::Tensor,
};

use crate::AdapterError;

/// The factors attached to one weight, without autodiff.
#[derive(Clone, Debug)]
pub struct Factors {
    /// The adapted layer's path, without `.weight`.
    pub path: String,
    /// `[d_in, rank]`.
    pub a: Tensor<2>,
    /// `[rank, d_out]`.
    pub b: Tensor<2>,
    /// `A₀` and `B₀`, if the adapter has an anchor.
    pub anchor: Option<(Tensor<2>, Tensor<2>)>,
}

/// The factors of every adapted layer, in the module's own order; empty if no
/// adapter is attached.
pub fn factors<M: Module>(module: &M) -> Vec<Factors> {
    let mut collector = Collector::default();
    module.visit(&mut collector);
    let Collector { order, tensors, .. } = collector;
    let take = |layer: &str, name: &str| tensors.get(&format!("{layer}.{name}")).cloned();
    order
        .iter()
        .filter_map(|layer| {
            Some(Factors {
                path: layer.clone(),
                a: take(layer, "a")?,
                b: take(layer, "b")?,
                anchor: take(layer, "anchor.a").zip(take(layer, "anchor.b")),
            })
        })
        .collect()
}

/// Puts the given factors in the place of those with the same path.
///
/// # Errors
///
/// [`AdapterError::NotAdapted`] if the module carries no adapter. Shapes and
/// paths are the caller's to have checked.
pub(crate) fn replace<M: Module>(module: M, factors: Vec<Factors>) -> Result<M, AdapterError> {
    let mut tensors = BTreeMap::new();
    for layer in factors {
        tensors.insert(format!("{}.a", layer.path), layer.a);
        tensors.insert(format!("{}.b", layer.path), layer.b);
        if let Some((a, b)) = layer.anchor {
            tensors.insert(format!("{}.anchor.a", layer.path), a);
            tensors.insert(format!("{}.anchor.b", layer.path), b);
        }
    }
    if tensors.is_empty() {
        return Err(AdapterError::NotAdapted);
    }
    Ok(module.map(&mut Replacer {
        path: Vec::new(),
        tensors,
    }))
}

/// An identity for the optimiser that does not change from one process to the
/// next, so that its saved state finds its parameter again (64-bit FNV-1a of
/// the path).
pub(crate) fn param_id(path: &str) -> ParamId {
    let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    ParamId::from(hash)
}

/// `model.layers.0.q_proj.weight.low_rank.anchor.a` →
/// (`model.layers.0.q_proj`, `anchor.a`).
fn split(path: &[String]) -> Option<(String, String)> {
    let at = path.iter().position(|name| name == "low_rank")?;
    let layer = path.get(..at.checked_sub(1)?)?.join(".");
    Some((layer, path.get(at + 1..)?.join(".")))
}

#[derive(Default)]
struct Collector {
    path: Vec<String>,
    order: Vec<String>,
    seen: BTreeSet<String>,
    tensors: BTreeMap<String, Tensor<2>>,
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if D != 2 {
            return;
        }
        if let Some((layer, name)) = split(&self.path) {
            let tensor = param.base().without_autodiff();
            let shape = tensor.shape();
            self.tensors.insert(
                format!("{layer}.{name}"),
                tensor.reshape([shape[0], shape[1]]),
            );
            if self.seen.insert(layer.clone()) {
                self.order.push(layer);
            }
        }
    }
}

struct Replacer {
    path: Vec<String>,
    tensors: BTreeMap<String, Tensor<2>>,
}

impl ModuleMapper for Replacer {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let replacement = split(&self.path)
            .filter(|_| D == 2)
            .and_then(|(layer, name)| self.tensors.remove(&format!("{layer}.{name}")));
        match replacement {
            None => param,
            Some(tensor) => param.map(|old| {
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
            }),
        }
    }
}
