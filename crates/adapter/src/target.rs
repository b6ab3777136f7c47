//! Which linear layers an adapter goes on.

use std::collections::BTreeSet;

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::Tensor,
};
use globset::{GlobBuilder, GlobMatcher};

use crate::AdapterError;

/// The keyword that names every linear layer.
pub const ALL_LINEAR: &str = "all-linear";

/// A linear layer of a module.
#[derive(Clone, Debug)]
pub struct Target {
    /// The layer's path, without `.weight`: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// The stored weight, `[d_in, d_out]`. A handle, not a copy.
    pub weight: Tensor<2>,
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
/// Exclusions follow the same rules.
///
/// # Errors
///
/// [`AdapterError::UnmatchedTargets`] if any pattern, an exclusion too, matches
/// no linear layer, and [`AdapterError::NoTargets`] if nothing is left. An
/// embedding is never a linear layer, though its weight has two axes.
pub fn resolve<M: Module>(
    module: &M,
    include: &[String],
    exclude: &[String],
) -> Result<Vec<Target>, AdapterError> {
    let layers = linear_layers(module);
    let included = Patterns::new(include)?;
    let excluded = Patterns::new(exclude)?;

    let mut unmatched = included.unmatched(&layers);
    unmatched.extend(excluded.unmatched(&layers));
    if !unmatched.is_empty() {
        let names: BTreeSet<_> = layers
            .iter()
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
            .any(|layer| matches(pattern, &layer.path) && !excluded.matches(&layer.path));
        if !left {
            return Err(AdapterError::NoTargets(format!(
                "every layer that `{}` names is excluded",
                pattern.0
            )));
        }
    }
    let targets: Vec<_> = layers
        .into_iter()
        .filter(|layer| included.matches(&layer.path) && !excluded.matches(&layer.path))
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
    let mut layers = Vec::new();
    let mut visit = |path: String, shape: [usize; 2], weight: &dyn Fn() -> Tensor<2>| {
        debug_assert_eq!(weight().dims(), shape);
        layers.push(Target {
            path,
            weight: weight(),
        });
    };
    module.visit(&mut LinearVisitor::new(&mut visit));
    layers
}

/// The path and `[d_in, d_out]` of every linear layer, without touching a
/// weight.
pub fn linear_paths<M: Module>(module: &M) -> Vec<(String, [usize; 2])> {
    let mut paths = Vec::new();
    let mut visit = |path, shape, _: &dyn Fn() -> Tensor<2>| paths.push((path, shape));
    module.visit(&mut LinearVisitor::new(&mut visit));
    paths
}

type Visit<'a> = &'a mut dyn FnMut(String, [usize; 2], &dyn Fn() -> Tensor<2>);

/// Calls back for each weight whose container is Burn's `Linear`.
struct LinearVisitor<'a> {
    path: Vec<String>,
    containers: Vec<String>,
    visit: Visit<'a>,
}

impl<'a> LinearVisitor<'a> {
    fn new(visit: Visit<'a>) -> Self {
        Self {
            path: Vec::new(),
            containers: Vec::new(),
            visit,
        }
    }
}

impl ModuleVisitor for LinearVisitor<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push(name.to_owned());
        self.containers.push(container_type.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let is_linear_weight = D == 2
            && self.path.last().is_some_and(|name| name == "weight")
            && self
                .containers
                .last()
                .is_some_and(|container| container == "Struct:Linear");
        if is_linear_weight {
            let shape = param.lazy_shape();
            let shape = [shape[0], shape[1]];
            let path = self.path[..self.path.len() - 1].join(".");
            // D is 2 here; the reshape only tells the compiler.
            (self.visit)(path, shape, &|| param.base().reshape(shape));
        }
    }
}

/// The patterns of one list, each either a suffix or a glob.
struct Patterns(Vec<(String, Option<GlobMatcher>)>);

impl Patterns {
    fn new(patterns: &[String]) -> Result<Self, AdapterError> {
        patterns
            .iter()
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

    fn matches(&self, path: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, path))
    }

    fn unmatched(&self, layers: &[Target]) -> Vec<String> {
        let unmatched = self
            .0
            .iter()
            .filter(|pattern| !layers.iter().any(|layer| matches(pattern, &layer.path)));
        unmatched.map(|(text, _)| text.clone()).collect()
    }
}

fn matches((text, glob): &(String, Option<GlobMatcher>), path: &str) -> bool {
    match glob {
        Some(glob) => glob.is_match(path.replace('.', "/")),
        None if text == ALL_LINEAR => true,
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
