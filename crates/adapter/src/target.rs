//! Which layers an adapter goes on.

use std::collections::BTreeSet;

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use globset::{GlobBuilder, GlobMatcher};

use olora_operations::Weight;

use crate::{
    AdapterError,
    packed::PackedBase,
    params::{Parameter, params},
};

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
    /// The parameter's tensor, `[d_in, d_out]`; hollow where the weight is
    /// packed. A handle, not a copy.
    pub(crate) stored: Tensor<2>,
    /// The weight, if it is packed.
    pub(crate) packed: Option<PackedBase>,
    /// What the layer is.
    pub kind: Kind,
}

impl Target {
    /// `[d_in, d_out]`.
    pub fn dims(&self) -> [usize; 2] {
        self.stored.dims()
    }

    /// The weight as stored, `[d_in, d_out]`, in its own dtype and without
    /// autodiff; a packed one unpacked, which is as large as a dense one: to be
    /// used one layer at a time.
    pub fn weight(&self) -> Tensor<2> {
        let stored = self.stored.clone().without_autodiff();
        match &self.packed {
            None => stored,
            Some(packed) => packed.dense(&stored.device(), stored.dtype()),
        }
    }

    /// The weight as operations take it.
    pub(crate) fn operand(&self) -> Weight {
        match &self.packed {
            Some(packed) => Weight::Packed(packed.tensor.clone()),
            None => Weight::Dense(self.weight()),
        }
    }

    /// The device that it is on, without autodiff.
    pub(crate) fn device(&self) -> Device {
        self.stored.device().inner()
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
    let weights = weights(module);
    weights
        .filter_map(|(param, kind)| {
            Some(Target {
                path: param.layer().to_owned(),
                stored: param.param::<2>()?.base(),
                packed: param.packed().cloned(),
                kind,
            })
        })
        .collect()
}

/// The path and `[d_in, d_out]` of every linear layer, without touching a
/// weight.
pub fn linear_paths<M: Module>(module: &M) -> Vec<(String, [usize; 2])> {
    let weights = weights(module).filter(|(_, kind)| *kind == Kind::Linear);
    weights
        .filter_map(|(param, _)| Some((param.layer().to_owned(), param.shape().try_into().ok()?)))
        .collect()
}

/// The weights that can have an adapter.
fn weights<M: Module>(module: &M) -> impl Iterator<Item = (Parameter, Kind)> {
    params(module).into_iter().filter_map(|param| {
        let kind = param.kind()?;
        let is_weight = param.place().name() == "weight" && param.shape().len() == 2;
        (is_weight && !param.role().is_adapter()).then_some((param, kind))
    })
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
        None => is_or_ends_with(path, text),
    }
}

/// Whether a path is this name or path, or ends with it at a dot.
pub(crate) fn is_or_ends_with(path: &str, name: &str) -> bool {
    let rest = path.strip_suffix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn last_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}
