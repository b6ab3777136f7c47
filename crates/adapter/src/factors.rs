//! Reading and replacing the factors of an adapted module.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    tensor::Tensor,
};
use olora_files::fnv1a;

use crate::{AdapterError, target::Kind};

/// What is attached to one weight, without autodiff.
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
    /// The magnitudes now and at the start, `[d_out]`, if the update is
    /// weight-decomposed.
    pub magnitude: Option<(Tensor<1>, Tensor<1>)>,
    /// What the layer is.
    pub kind: Kind,
}

/// The factors of every adapted layer, in the module's own order; empty if no
/// adapter is attached.
pub fn factors<M: Module>(module: &M) -> Vec<Factors> {
    let mut collector = Collector::default();
    module.visit(&mut collector);
    let layers = collector.layers.into_iter();
    layers.filter_map(Layer::into_factors).collect()
}

/// Puts the given factors in the place of those with the same path.
///
/// # Errors
///
/// [`AdapterError::NotAdapted`] if the module carries no adapter. Shapes and
/// paths are the caller's to have checked.
pub(crate) fn replace<M: Module>(module: M, factors: Vec<Factors>) -> Result<M, AdapterError> {
    let mut tensors: BTreeMap<String, Tensor<1>> = BTreeMap::new();
    let flat = |tensor: Tensor<2>| {
        let n = tensor.shape().num_elements();
        tensor.reshape([n])
    };
    for layer in factors {
        tensors.insert(format!("{}.a", layer.path), flat(layer.a));
        tensors.insert(format!("{}.b", layer.path), flat(layer.b));
        if let Some((a, b)) = layer.anchor {
            tensors.insert(format!("{}.anchor.a", layer.path), flat(a));
            tensors.insert(format!("{}.anchor.b", layer.path), flat(b));
        }
        if let Some((magnitude, _)) = layer.magnitude {
            tensors.insert(format!("{}.dora.magnitude", layer.path), magnitude);
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
    ParamId::from(fnv1a(path.as_bytes()))
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
    containers: Vec<String>,
    layers: Vec<Layer>,
}

/// What has been seen of one layer.
struct Layer {
    path: String,
    kind: Kind,
    /// By name, flattened, with their first axis.
    tensors: BTreeMap<String, (Tensor<1>, usize)>,
}

impl Layer {
    fn into_factors(mut self) -> Option<Factors> {
        let mut matrix = |name: &str| {
            let (tensor, rows) = self.tensors.remove(name)?;
            let n = tensor.shape().num_elements();
            Some(tensor.reshape([rows, n / rows.max(1)]))
        };
        let (a, b) = (matrix("a")?, matrix("b")?);
        let anchor = matrix("anchor.a").zip(matrix("anchor.b"));
        let mut vector = |name: &str| Some(self.tensors.remove(name)?.0);
        let magnitude = vector("dora.magnitude").zip(vector("dora.start"));
        Some(Factors {
            path: self.path,
            kind: self.kind,
            a,
            b,
            anchor,
            magnitude,
        })
    }
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push(name.to_owned());
        self.containers.push(container_type.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
        self.containers.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some((layer, name)) = split(&self.path) else {
            return;
        };
        let is_embedding = self
            .containers
            .iter()
            .any(|name| name == "Struct:Embedding");
        let tensor = param.base().without_autodiff();
        let rows = tensor.shape()[0];
        let n = tensor.shape().num_elements();
        // A layer's tensors are visited one after another.
        if self.layers.last().is_none_or(|last| last.path != layer) {
            self.layers.push(Layer {
                path: layer,
                kind: if is_embedding {
                    Kind::Embedding
                } else {
                    Kind::Linear
                },
                tensors: BTreeMap::new(),
            });
        }
        if let Some(last) = self.layers.last_mut() {
            last.tensors.insert(name, (tensor.reshape([n]), rows));
        }
    }
}

struct Replacer {
    path: Vec<String>,
    tensors: BTreeMap<String, Tensor<1>>,
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
