//! An adapter as a training run keeps it: factors with their anchors, not yet
//! in a form of PEFT's.

use std::collections::BTreeMap;

use olora_files::Fnv1a;

use super::{Layer, PeftAdapter, PeftForm};
use crate::{
    AdapterConfig, AdapterError, LowRank, Role,
    planned::Shapes,
    saved::{Stored, is_saved_with},
    target::Kind,
};

/// A tensor by the path that its parameter has in the module, as
/// [`params`](fn@crate::params) lists it, in Burn's orientation.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// `model.layers.0.self_attn.q_proj.weight.low_rank.a`.
    pub path: String,
    /// `[d_in, rank]`.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// The parts of one layer, as far as they were found.
type Parts = BTreeMap<Role, Stored>;

impl PeftAdapter {
    /// From what a run trains, and the anchors beside it.
    ///
    /// `config` is what was attached; `is_embedding` tells a layer by its path
    /// from a linear one. What an anchored adapter is measured from stays beside
    /// its factors: [`widened`](Self::widened) puts it among them.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Impossible`] names a tensor that is no part of the
    /// adapter, or a layer that lacks one.
    pub fn of_tensors(
        config: &AdapterConfig,
        tensors: Vec<NamedTensor>,
        is_embedding: &dyn Fn(&str) -> bool,
    ) -> Result<Self, AdapterError> {
        let kind = |path: &str| {
            if is_embedding(path) {
                Kind::Embedding
            } else {
                Kind::Linear
            }
        };
        let mut parts: BTreeMap<String, Parts> = BTreeMap::new();
        let mut saved = BTreeMap::new();
        for tensor in tensors {
            let path = tensor.path.clone();
            if let Some((layer, role)) = part(&path) {
                let factor = matches!(role, Role::A | Role::B | Role::AnchorA | Role::AnchorB);
                let stored = tensor.stored(factor, &path)?;
                let layer = parts.entry(layer.to_owned()).or_default();
                layer.insert(role, stored);
                continue;
            }
            let mut names = config.modules_to_save.iter();
            if !names.any(|name| is_saved_with(&path, name)) {
                return Err(impossible(&path, "the configuration does not name it"));
            }
            let module = path
                .rsplit_once('.')
                .map_or(path.as_str(), |(module, _)| module);
            let transposed = tensor.shape.len() == 2 && kind(module) == Kind::Linear;
            saved.insert(path.clone(), (tensor.stored(transposed, &path)?, true));
        }
        if parts.is_empty() {
            return Err(AdapterError::NotAdapted);
        }
        let shapes = Shapes::new(config)?;
        let mut layers = BTreeMap::new();
        for (path, mut parts) in parts {
            let mut take = |role| parts.remove(&role);
            let (Some(a), Some(b)) = (take(Role::A), take(Role::B)) else {
                return Err(impossible(&path, "one of its factors is missing"));
            };
            let anchor = match (take(Role::AnchorA), take(Role::AnchorB)) {
                (Some(a0), Some(b0)) if a0.shape == a.shape && b0.shape == b.shape => {
                    Some([a0, b0])
                }
                (None, None) if !config.method.is_anchored() => None,
                _ => {
                    return Err(impossible(
                        &path,
                        "what it is measured from is missing, or of another shape",
                    ));
                }
            };
            let kind = kind(&path);
            let rank = a.shape.first().copied().unwrap_or_default();
            let layer = Layer {
                kind,
                rank,
                a,
                b,
                magnitude: take(Role::Magnitude),
                scale: shapes.scale(&path, kind, rank)?,
                anchor,
            };
            layers.insert(path, layer);
        }
        let targets = layers.keys().cloned().collect();
        let mut adapter = Self::assembled(config, targets, layers, saved);
        adapter.ensure_sound()?;
        adapter.settle_patterns();
        Ok(adapter)
    }

    /// As plain LoRA on the original base: what the factors are measured from
    /// becomes further ranks, `A' = [A, A₀]` and `B' = [B; −B₀]`. Without
    /// anchors, nothing changes.
    #[must_use]
    pub fn widened(mut self) -> Self {
        if self.layers.values().all(|layer| layer.anchor.is_none()) {
            return self;
        }
        for layer in self.layers.values_mut() {
            let Some([a0, b0]) = layer.anchor.take() else {
                continue;
            };
            layer.a.values.extend(a0.values);
            layer.b = beside(&layer.b, &b0, layer.rank);
            layer.rank *= 2;
            layer.a.shape[0] = layer.rank;
        }
        self.become_plain();
        self.settle_patterns();
        self
    }

    /// That the adapter is in the plain form.
    pub(super) fn become_plain(&mut self) {
        PeftForm::Plain.settle(&mut self.config);
    }

    /// A number that changes when the adapter does: 64-bit FNV-1a over every
    /// value, its place, and what it is scaled by.
    pub fn content(&self) -> u64 {
        let mut hash = Fnv1a::default();
        let mut add = |path: &str, stored: &Stored| {
            hash.add(path.as_bytes());
            for side in &stored.shape {
                hash.add(&(*side as u64).to_le_bytes());
            }
            for value in &stored.values {
                hash.add(&value.to_le_bytes());
            }
        };
        for (path, layer) in &self.layers {
            let scale = Stored {
                shape: Vec::new(),
                values: vec![layer.scale as f32],
            };
            let anchor = layer.anchor.iter().flatten();
            let all = [&layer.a, &layer.b, &scale].into_iter();
            for stored in all.chain(anchor).chain(&layer.magnitude) {
                add(path, stored);
            }
        }
        for (path, (stored, _)) in &self.saved {
            add(path, stored);
        }
        hash.value()
    }
}

impl NamedTensor {
    /// In PyTorch's orientation, if `transposed` is what it is not in.
    fn stored(self, transposed: bool, path: &str) -> Result<Stored, AdapterError> {
        let Self { shape, values, .. } = self;
        if values.len() != shape.iter().product::<usize>() {
            return Err(impossible(
                path,
                "it has another number of values than its shape",
            ));
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err(AdapterError::NotFinite(path.to_owned()));
        }
        if !transposed {
            return Ok(Stored { shape, values });
        }
        let [rows, columns] = shape[..] else {
            return Err(impossible(path, "it is no matrix"));
        };
        let mut turned = Vec::with_capacity(values.len());
        for column in 0..columns {
            turned.extend((0..rows).map(|row| values[row * columns + column]));
        }
        Ok(Stored {
            shape: vec![columns, rows],
            values: turned,
        })
    }
}

/// The layer and the part that a path leads to, if to one of an adapter.
fn part(path: &str) -> Option<(&str, Role)> {
    let within = format!(
        ".weight.{}.",
        <LowRank as burn::module::Reparameterization>::NAME
    );
    let (layer, fields) = path.split_once(&within)?;
    let fields: Vec<&str> = fields.split('.').collect();
    Some((layer, LowRank::role(&fields)?))
}

/// `[B, −B₀]`, in PyTorch's orientation, where each row is an output.
fn beside(b: &Stored, b0: &Stored, rank: usize) -> Stored {
    let rows = b.values.chunks_exact(rank.max(1));
    let values = rows
        .zip(b0.values.chunks_exact(rank.max(1)))
        .flat_map(|(row, start)| row.iter().copied().chain(start.iter().map(|value| -value)))
        .collect();
    Stored {
        shape: vec![b.shape[0], 2 * rank],
        values,
    }
}

fn impossible(path: &str, reason: &str) -> AdapterError {
    AdapterError::Impossible {
        path: path.to_owned(),
        what: "a part of an adapter".to_owned(),
        reason: reason.to_owned(),
    }
}
