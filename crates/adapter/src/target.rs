//! Which layers an adapter goes on.

use std::collections::BTreeSet;

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::Tensor,
};
use globset::{GlobBuilder, GlobMatcher};

use crate::AdapterError;

/// The keyword that names every linear layer.
pub const ALL_LINEAR: &str = "all-linear";

/// What a layer computes with its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Burn's `Linear`: `x·W`.
    Linear,
    /// Burn's `Embedding`: rows of `W`, so that `d_in` is the vocabulary.
    Embedding,
}

/// A layer of a module.
#[derive(Clone, Debug)]
pub struct Target {
    /// The layer's path, without `.weight`: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// The stored weight, `[d_in, d_out]`. A handle, not a copy.
    pub weight: Tensor<2>,
    /// What the layer is.
    pub kind: Kind,
}

impl Target {
    /// `[d_in, d_out]`.
    pub fn dims(&self) -> [usize; 2] {
        self.weight.dims()
    }
}

/// Finds the layers that `include` names and `exclude` does not, in the
/// module's own order.
///
/// A pattern is [`ALL_LINEAR`], a name or path that a layer's path equals or
/// ends with at a dot (`q_proj`, `self_attn.q_proj`; the rule of PEFT's
/// `target_modules` lists), or a glob over the whole path in which `*` stops
/// at a dot and `**` does not (`model.layers.{0,1}.*.q_proj`).
/// Exclusions follow the same rules. An embedding is a target only if its name
/// or path is given: neither [`ALL_LINEAR`] nor a glob finds it.
///
/// # Errors
///
/// [`AdapterError::UnmatchedTargets`] if any pattern, an exclusion too, matches
/// no layer, and [`AdapterError::NoTargets`] if nothing is left.
pub fn resolve<M: Module>(
    module: &M,
    include: &[String],
    exclude: &[String],
) -> Result<Vec<Target>, AdapterError> {
    let layers = layers(module);
    let included = Patterns::new(include)?;
    let excluded = Patterns::new(exclude)?;

    let mut unmatched = included.unmatched(&layers);
    unmatched.extend(excluded.unmatched(&layers));
    if !unmatched.is_empty() {
        let names: BTreeSet<_> = layers
            .iter()
            .filter(|layer| layer.kind == Kind::Linear)
            .map(|layer| last_name(&layer.path).to_owned())
            .collect();
        return Err(AdapterError::UnmatchedTargets {
            unmatched,
            available: names.into_iter().collect(),
        });
    }
    // A target that was asked for and is then excluded to the last layer was not meant.
    for pattern in &included.0 {
        let left = layers
            .iter()
            .any(|layer| matches(pattern, &layer.path, layer.kind) && !excluded.matches(layer));
        if !left {
            return Err(AdapterError::NoTargets(format!(
                "every layer that `{}` names is excluded",
                pattern.0
            )));
        }
    }
    let targets: Vec<_> = layers
        .into_iter()
        .filter(|layer| included.matches(layer) && !excluded.matches(layer))
        .collect();
    if targets.is_empty() {
        return Err(AdapterError::NoTargets(
            "the list of targets is empty".to_owned(),
        ));
    }
    Ok(targets)
}

/// Every linear layer of a module, in its own order.
///
/// Initialises weights that are still lazy; [`linear_paths`] does not.
pub fn linear_layers<M: Module>(module: &M) -> Vec<Target> {
    let mut all = layers(module);
    all.retain(|layer| layer.kind == Kind::Linear);
    all
}

/// The same, embeddings included.
pub(crate) fn layers<M: Module>(module: &M) -> Vec<Target> {
    let mut layers = Vec::new();
    let mut visit = |found: Found<'_>| {
        let weight = (found.weight)();
        debug_assert_eq!(weight.dims(), found.dims);
        layers.push(Target {
            path: found.path,
            weight,
            kind: found.kind,
        });
    };
    module.visit(&mut LayerVisitor::new(&mut visit));
    layers
}

/// The path and `[d_in, d_out]` of every linear layer, without touching a
/// weight.
pub fn linear_paths<M: Module>(module: &M) -> Vec<(String, [usize; 2])> {
    let mut paths = Vec::new();
    let mut visit = |found: Found<'_>| {
        if found.kind == Kind::Linear {
            paths.push((found.path, found.dims));
        }
    };
    module.visit(&mut LayerVisitor::new(&mut visit));
    paths
}

/// A layer that a visit has come to.
struct Found<'a> {
    path: String,
    dims: [usize; 2],
    kind: Kind,
    weight: &'a dyn Fn() -> Tensor<2>,
}

type Visit<'a> = &'a mut dyn FnMut(Found<'_>);

/// Calls back for each weight whose container is Burn's `Linear` or `Embedding`.
struct LayerVisitor<'a> {
    path: Vec<String>,
    containers: Vec<String>,
    visit: Visit<'a>,
}

impl<'a> LayerVisitor<'a> {
    fn new(visit: Visit<'a>) -> Self {
        Self {
            path: Vec::new(),
            containers: Vec::new(),
            visit,
        }
    }
}

impl ModuleVisitor for LayerVisitor<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push(name.to_owned());
        self.containers.push(container_type.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if D != 2 || self.path.last().is_none_or(|name| name != "weight") {
            return;
        }
        let kind = match self.containers.last().map(String::as_str) {
            Some("Struct:Linear") => Kind::Linear,
            Some("Struct:Embedding") => Kind::Embedding,
            _ => return,
        };
        let shape = param.lazy_shape();
        let dims = [shape[0], shape[1]];
        (self.visit)(Found {
            path: self.path[..self.path.len() - 1].join("."),
            dims,
            kind,
            // D is 2 here; the reshape only tells the compiler.
            weight: &|| param.base().reshape(dims),
        });
    }
}

/// The patterns of one list, each either a suffix or a glob.
pub(crate) struct Patterns(Vec<(String, Option<GlobMatcher>)>);

impl Patterns {
    pub(crate) fn new<'a>(
        patterns: impl IntoIterator<Item = &'a String>,
    ) -> Result<Self, AdapterError> {
        patterns
            .into_iter()
            .map(|pattern| {
                if !pattern.contains(['*', '?', '[', '{']) {
                    return Ok((pattern.clone(), None));
                }
                // globset's separator is `/`: paths are matched with dots turned into it.
                let glob = GlobBuilder::new(&pattern.replace('.', "/"))
                    .literal_separator(true)
                    .build()
                    .map_err(|error| AdapterError::BadPattern {
                        pattern: pattern.clone(),
                        reason: error.kind().to_string(),
                    })?;
                Ok((pattern.clone(), Some(glob.compile_matcher())))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn matches(&self, layer: &Target) -> bool {
        let mut patterns = self.0.iter();
        patterns.any(|pattern| matches(pattern, &layer.path, layer.kind))
    }

    /// The patterns that a layer matches, in the list's order.
    pub(crate) fn matching(&self, path: &str, kind: Kind) -> impl Iterator<Item = &str> {
        let all = self.0.iter();
        all.filter(move |pattern| matches(pattern, path, kind))
            .map(|(text, _)| text.as_str())
    }

    pub(crate) fn unmatched(&self, layers: &[Target]) -> Vec<String> {
        let found = |pattern: &_| {
            let mut layers = layers.iter();
            layers.any(|layer| matches(pattern, &layer.path, layer.kind))
        };
        let unmatched = self.0.iter().filter(|pattern| !found(pattern));
        unmatched.map(|(text, _)| text.clone()).collect()
    }
}

fn matches((text, glob): &(String, Option<GlobMatcher>), path: &str, kind: Kind) -> bool {
    let linear = kind == Kind::Linear;
    match glob {
        Some(glob) => linear && glob.is_match(path.replace('.', "/")),
        None if text == ALL_LINEAR => linear,
        None => {
            path == text
                || path
                    .strip_suffix(text.as_str())
                    .is_some_and(|rest| rest.ends_with('.'))
        }
    }
}

fn last_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}
