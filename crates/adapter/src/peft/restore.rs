//! A PEFT adapter onto a module.

use std::collections::{BTreeMap, BTreeSet};

use burn::{
    module::Module,
    tensor::{DType, Device, Tensor, TensorData},
};

use super::{Layer, PREFIX, PeftAdapter, Within, write::names};
use crate::{
    AdapterError, Placement, Target,
    attach::{Attached, Magnitude, attach_prepared, check_kind, check_rank, low_rank, refuse_both},
    init::{PlannedLayer, initial_factors},
    saved::{SavedModules, Stored},
    target::{Kind, layers},
};

/// The level at which transformers holds the text model of one that reads
/// pictures too: `model.language_model.layers`, and before version 5
/// `language_model.model.layers`.
const TEXT_MODEL: &str = "language_model.";

impl PeftAdapter {
    /// Attaches the adapter to `module`, ready to run, merge or train on.
    ///
    /// An adapter in PEFT's own form of `OLoRA` or `PiSSA` gets its start made again
    /// from the base's weights and is anchored there: the base is not changed. One
    /// that holds what it started from is measured from that, in the placement of
    /// its configuration.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] lists every tensor that is missing, unused
    /// or of the wrong shape. PEFT only warns about those.
    pub fn attach<M: Module>(mut self, module: M) -> Result<M, AdapterError> {
        let targets: BTreeMap<String, Target> = layers(&module)
            .into_iter()
            .map(|layer| (layer.path.clone(), layer))
            .collect();
        self.find_own_names(&targets);
        let (saved, problems) = self.compare(&module, &targets);
        if !problems.is_empty() {
            return Err(AdapterError::Mismatch {
                file: self.file,
                problems,
            });
        }
        refuse_both(self.layers.keys().map(String::as_str), &saved)?;

        let config = &self.config;
        let mut planned = Vec::with_capacity(self.layers.len());
        let mut values = Vec::with_capacity(self.layers.len());
        for (path, layer) in self.layers {
            let Some(target) = targets.get(&path).cloned() else {
                continue;
            };
            let rank = layer.rank;
            if config.method.is_anchored() {
                check_kind(&target, config.method, config.dora)?;
                check_rank(&target, rank)?;
            }
            let mut shape = config.shape(rank, 1.0);
            shape.scale = layer.scale;
            planned.push(PlannedLayer { target, shape });
            values.push(layer);
        }
        drop(targets);
        let kept: Option<Vec<_>> = values.iter_mut().map(|layer| layer.anchor.take()).collect();
        let anchors = if let Some(kept) = kept {
            let devices = planned.iter().map(|layer| layer.target.device());
            let kept = kept.into_iter().zip(devices);
            kept.map(|([a, b], device)| Some((matrix(a, &device), matrix(b, &device))))
                .collect()
        } else if config.method.is_anchored() {
            let starts = initial_factors(
                config.method,
                config.iterations,
                &planned,
                0,
                &mut |_, _| {},
            )?;
            starts
                .into_iter()
                .map(|start| Some((start.a, start.b)))
                .collect()
        } else {
            vec![None; planned.len()]
        };
        let attached = planned
            .into_iter()
            .zip(values)
            .zip(anchors)
            .map(|((PlannedLayer { target, .. }, layer), anchor)| {
                let device = target.device();
                let scale = layer.scale;
                let factors = (matrix(layer.a, &device), matrix(layer.b, &device));
                let magnitude = match layer.magnitude {
                    None => Magnitude::None,
                    Some(magnitude) => {
                        let data = TensorData::new(magnitude.values, magnitude.shape);
                        Magnitude::Trained(Box::new(Tensor::from_data(data, (&device, DType::F32))))
                    }
                };
                let low_rank = low_rank(
                    &target,
                    factors,
                    anchor,
                    scale,
                    config.dropout,
                    config.placement == Placement::Anchored,
                );
                let attached = Attached {
                    low_rank,
                    magnitude,
                };
                (target.path, attached)
            })
            .collect();
        attach_prepared(module, attached, saved)
    }

    /// Where no layer of the file is one of the module's, and all would be with one
    /// more name before them, or with one less, takes them for those: an adapter
    /// that was trained on the part of a model that another holds, or the other
    /// way around. Gives what to say then.
    pub fn settle_prefix<M: Module>(&mut self, module: &M) -> Option<String> {
        let paths: BTreeSet<String> = layers(module).into_iter().map(|layer| layer.path).collect();
        if self.layers.keys().any(|path| paths.contains(path)) {
            return None;
        }
        if let Some(note) = self.settle_text_part(&paths) {
            return Some(note);
        }
        let first = self.layers.keys().next()?;
        let all = |renamed: &dyn Fn(&str) -> Option<String>| {
            let mut layers = self.layers.keys();
            layers.all(|path| renamed(path).is_some_and(|path| paths.contains(&path)))
        };
        let longer: BTreeSet<&str> = paths
            .iter()
            .filter_map(|path| path.strip_suffix(first.as_str()))
            .filter(|prefix| prefix.ends_with('.'))
            .filter(|prefix| all(&|path| Some(format!("{prefix}{path}"))))
            .collect();
        let shorter: BTreeSet<&str> = first
            .match_indices('.')
            .map(|(at, _)| &first[..=at])
            .filter(|prefix| all(&|path| path.strip_prefix(*prefix).map(str::to_owned)))
            .collect();
        let (prefix, longer) = match (longer.first(), shorter.first()) {
            (Some(prefix), None) if longer.len() == 1 => ((*prefix).to_owned(), true),
            (None, Some(prefix)) if shorter.len() == 1 => ((*prefix).to_owned(), false),
            _ => return None,
        };
        let renamed = |path: String| match path.strip_prefix(&prefix) {
            _ if longer => format!("{prefix}{path}"),
            Some(rest) => rest.to_owned(),
            None => path,
        };
        self.rename(renamed);
        let how = if longer { "lack" } else { "begin with" };
        Some(format!(
            "the adapter's names {how} `{prefix}`, other than this model's, and are read as if they were its"
        ))
    }

    /// Takes an adapter of a model that reads pictures too for one of its text
    /// model, whose layers have these paths. Layers of other parts to which it
    /// adds nothing are left out; the others stay, and do not fit.
    fn settle_text_part(&mut self, paths: &BTreeSet<String>) -> Option<String> {
        let renamed = |path: &str| path.replacen(TEXT_MODEL, "", 1);
        let is_text = |path: &str| path.contains(TEXT_MODEL);
        let first = self.layers.keys().find(|path| is_text(path))?;
        let is_older = first.starts_with(TEXT_MODEL);
        let mut text = self.layers.keys().filter(|path| is_text(path));
        if !text.all(|path| paths.contains(&renamed(path))) {
            return None;
        }
        let before = self.layers.len();
        self.layers.retain(|path, layer| {
            let adds = layer.magnitude.is_some() || layer.b.values.iter().any(|b| *b != 0.0);
            is_text(path) || adds
        });
        let left_out = before - self.layers.len();
        self.rename(|path| renamed(&path));
        self.within = Some(if is_older {
            Within::Older
        } else {
            Within::Newer
        });
        let others = if left_out > 0 {
            format!(
                ", and {left_out} layers of other parts, to which it adds nothing, are left out"
            )
        } else {
            String::new()
        };
        Some(format!(
            "the adapter was made for a model of which this is the text part: its names are read without \
             `{TEXT_MODEL}`{others}"
        ))
    }

    /// What the configuration's rules are to be held against for a layer: its
    /// name in the model that the adapter was made for.
    fn name_as_made(&self, path: &str) -> String {
        match self.within {
            None => path.to_owned(),
            Some(Within::Older) => format!("{TEXT_MODEL}{path}"),
            Some(Within::Newer) => path.replacen("model.", &format!("model.{TEXT_MODEL}"), 1),
        }
    }

    /// Gives all layers and all that is saved whole other paths.
    fn rename(&mut self, renamed: impl Fn(String) -> String) {
        let layers = std::mem::take(&mut self.layers).into_iter();
        self.layers = layers.map(|(path, layer)| (renamed(path), layer)).collect();
        let saved = std::mem::take(&mut self.saved).into_iter();
        self.saved = saved.map(|(path, value)| (renamed(path), value)).collect();
    }

    /// What only the model can tell of names: whether its outermost module is
    /// called as a wrapper would be.
    fn find_own_names(&mut self, targets: &BTreeMap<String, Target>) {
        const OUTER: &str = "module.";
        if self.inner && targets.keys().all(|path| path.starts_with(OUTER)) {
            let layers = std::mem::take(&mut self.layers).into_iter();
            self.layers = layers
                .map(|(path, layer)| (format!("{OUTER}{path}"), layer))
                .collect();
            let saved = std::mem::take(&mut self.saved).into_iter();
            self.saved = saved
                .map(|(path, value)| (format!("{OUTER}{path}"), value))
                .collect();
        }
    }

    /// What the file puts in the place of the model's own parameters, and
    /// everything that does not fit.
    fn compare<M: Module>(
        &self,
        module: &M,
        targets: &BTreeMap<String, Target>,
    ) -> (SavedModules, Vec<String>) {
        let mut problems = self.problems.clone();
        for (path, target) in targets {
            let named = match &self.rules {
                None => Ok(true),
                Some(rules) => rules.name(&self.name_as_made(path), target.kind),
            };
            let named = match named {
                Ok(named) => named,
                Err(reason) => {
                    problems.push(reason);
                    break;
                }
            };
            match (self.rules.is_some() && named, self.layers.contains_key(path)) {
                (true, false) => problems.push(format!(
                    "missing: `{PREFIX}{path}.{}`, a layer that the configuration names",
                    names(target.kind)[0]
                )),
                (false, true) if !named => problems.push(format!(
                    "unused: the file has factors for `{path}`, which the configuration does not name"
                )),
                _ => {}
            }
        }
        for (path, layer) in &self.layers {
            match targets.get(path) {
                None => problems.push(format!("unused: the model has no linear layer `{path}`")),
                Some(target) => problems.extend(misfits(path, layer, target)),
            }
        }
        let mut names = self.config.modules_to_save.clone();
        names.extend(self.saved.keys().cloned());
        let mut saved = match SavedModules::new(module, &names) {
            Ok(saved) => saved,
            Err(error) => {
                problems.push(format!("unused: {error}"));
                SavedModules::default()
            }
        };
        for (path, (value, trained)) in &self.saved {
            problems.extend(saved.set(path, value.clone(), *trained).err());
        }
        let unset = saved.unset();
        problems.extend(
            unset.map(|path| format!("missing: `{PREFIX}{path}`, which is in `modules_to_save`")),
        );
        if self.layers.is_empty() && problems.is_empty() {
            problems.push("the file holds no LoRA factors".to_owned());
        }
        (saved, problems)
    }
}

/// A factor as Burn lays it out.
fn matrix(stored: Stored, device: &Device) -> Tensor<2> {
    let data = TensorData::new(stored.values, stored.shape);
    Tensor::<2>::from_data(data, (device, DType::F32)).transpose()
}

/// What of a layer in the file does not fit the model's.
fn misfits(path: &str, layer: &Layer, target: &Target) -> Vec<String> {
    let [d_in, d_out] = target.dims();
    let rank = layer.rank;
    if layer.kind != target.kind {
        let kind = match target.kind {
            Kind::Linear => "a linear layer",
            Kind::Embedding => "an embedding",
        };
        return vec![format!(
            "misshapen: `{path}` is {kind}, and the factors' names are not for one"
        )];
    }
    if layer.kind == Kind::Embedding && layer.magnitude.is_some() {
        return vec![format!(
            "unused: `{PREFIX}{path}.lora_magnitude_vector`: DoRA on an embedding is not supported"
        )];
    }
    let check = |name: &str, found: &[usize], expected: &[usize]| {
        let differs = found != expected;
        differs.then(|| {
            format!(
                "misshapen: `{PREFIX}{path}.{name}` is {found:?}, but rank {rank} on `{path}` needs \
                 {expected:?}"
            )
        })
    };
    let [name_a, name_b] = names(layer.kind);
    let a = check(name_a, &layer.a.shape, &[rank, d_in]);
    let b = check(name_b, &layer.b.shape, &[d_out, rank]);
    let magnitude = layer
        .magnitude
        .as_ref()
        .and_then(|m| check("lora_magnitude_vector", &m.shape, &[d_out]));
    [a, b, magnitude].into_iter().flatten().collect()
}
