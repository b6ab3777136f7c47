//! A PEFT directory onto the host.

use std::{collections::BTreeMap, path::Path};

use olora_files::read_bounded;
use serde_json::{Map, Value};

use super::{
    CONFIG_FILE, Layer, PREFIX, PeftAdapter, TaskType, config,
    file::TensorFile,
    matching::{PatternKeys, Rules},
    mlx,
    names::{Unwrapped, Unwrapping, unwrap_configuration, unwrapped},
    token_rows,
    write::names,
};
use crate::{
    AdapterConfig, AdapterError, LayerShape,
    config::{ALPHAS, MAX_RANK},
    saved::Stored,
    target::Kind,
};

/// Bytes of the largest configuration: published ones have some kilobytes.
const MOST_BYTES: u64 = 4 << 20;

/// What a tensor of the file is to a layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    A,
    B,
    Magnitude,
}

/// The parts of one layer, as far as they were found.
#[derive(Default)]
struct Parts {
    found: BTreeMap<Part, Stored>,
    is_embedding: bool,
}

impl Parts {
    /// The layer, if both factors are there; what is amiss goes to `problems`.
    fn into_layer(
        mut self,
        path: &str,
        shape: LayerShape,
        dora: bool,
        problems: &mut Vec<String>,
    ) -> Option<Layer> {
        let kind = if self.is_embedding {
            Kind::Embedding
        } else {
            Kind::Linear
        };
        let factors = [self.found.remove(&Part::A), self.found.remove(&Part::B)];
        let [Some(a), Some(b)] = factors else {
            let missing = factors
                .iter()
                .zip(names(kind))
                .filter(|(factor, _)| factor.is_none());
            problems.extend(missing.map(|(_, name)| format!("missing: `{PREFIX}{path}.{name}`")));
            return None;
        };
        let magnitude = self.found.remove(&Part::Magnitude);
        if magnitude.is_some() != dora {
            let what = if dora { "missing" } else { "unused" };
            problems.push(format!(
                "{what}: `{PREFIX}{path}.lora_magnitude_vector`, with `use_dora: {dora}` in {CONFIG_FILE}"
            ));
        }
        Some(Layer {
            kind,
            rank: shape.rank,
            a,
            b,
            magnitude,
            scale: shape.scale,
            anchor: None,
        })
    }
}

impl PeftAdapter {
    /// Reads a directory that PEFT, mlx-lm or [`write`](Self::write) has written.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Unsupported`] names the first key that asks for
    /// something that is not supported; [`AdapterError::Malformed`] says what is
    /// wrong with a file. What does not fit together or does not fit the model
    /// is only known in [`attach`](Self::attach).
    pub fn read(directory: &Path) -> Result<Self, AdapterError> {
        let config_file = directory.join(CONFIG_FILE);
        let text = read_bounded(&config_file, MOST_BYTES)
            .map_err(|source| io("reading", &config_file, source))?;
        let mut json: Map<String, Value> = serde_json::from_slice(&text)
            .map_err(|error| malformed(&config_file, "adapter configuration", &error))?;
        if mlx::is_configuration(&json) {
            return mlx::read(directory, &json, &config_file);
        }
        unwrap_configuration(&mut json);
        let config::Read {
            mut config,
            mut notes,
            warnings,
            mut ties_weights,
        } = config::read(&json, &config_file)?;
        let rules = Rules::read(&json, &config_file)?;
        let whole = 1.0..=MAX_RANK as f64;
        let ranks = PatternKeys::read(&json, "rank_pattern", &whole, &config_file)?;
        let alphas = PatternKeys::read(&json, "alpha_pattern", &ALPHAS, &config_file)?;

        let TensorFile {
            path: file,
            tensors,
            metadata,
            note,
        } = TensorFile::of(directory)?;
        notes.extend(note);
        let rows = token_rows::combined(tensors, &json, &mut config, &config_file, &file)?;
        ties_weights |= rows.ties;
        notes.extend(rows.note);
        let Sorted {
            parts,
            saved,
            mut problems,
            inner,
            notes: of_names,
        } = sorted(rows.tensors, &config, &file)?;
        notes.extend(of_names);
        let wrong = |reason: &str| malformed(&config_file, "adapter configuration", &reason);
        let mut layers = BTreeMap::new();
        for (path, parts) in parts {
            let rank = ranks.of(&path).map_err(|reason| wrong(&reason))?;
            let rank = rank.unwrap_or(config.rank as f64);
            if rank.fract() != 0.0 {
                let reason =
                    format!("`rank_pattern` gives `{path}` the rank {rank}, no whole number");
                return Err(wrong(&reason));
            }
            let rank = rank as usize;
            let alpha = alphas.of(&path).map_err(|reason| wrong(&reason))?;
            let shape = config.shape(rank, alpha.unwrap_or(config.alpha));
            match parts.into_layer(&path, shape, config.dora, &mut problems) {
                None => {}
                Some(layer) => {
                    layers.insert(path, layer);
                }
            }
        }
        let base = json
            .get("base_model_name_or_path")
            .and_then(Value::as_str)
            .map(str::to_owned);
        let task = json.get("task_type").and_then(Value::as_str);
        let noted = |key| metadata.get(key).cloned();
        let adapter = Self {
            config,
            base,
            task: task.map(TaskType::from_name),
            notes,
            warnings,
            base_fingerprint: noted(super::write::FINGERPRINT),
            base_packing: noted(super::write::PACKING),
            ties_weights,
            file,
            layers,
            saved,
            rules,
            problems,
            inner,
            within: None,
        };
        Ok(adapter.settled())
    }

    /// With its patterns, and with a note if it changes nothing.
    pub(super) fn settled(mut self) -> Self {
        if self.ensure_sound().is_ok() {
            self.settle_patterns();
        }
        if self.is_idle() && !self.layers.is_empty() {
            self.notes.push(
                "every `lora_B` is zero: this adapter changes nothing. Was it saved before training?"
                    .to_owned(),
            );
        }
        self
    }
}

/// A file's tensors by where they belong.
#[derive(Default)]
struct Sorted {
    parts: BTreeMap<String, Parts>,
    saved: BTreeMap<String, (Stored, bool)>,
    problems: Vec<String>,
    /// Whether all had a `module.` behind the prefix.
    inner: bool,
    notes: Vec<String>,
}

fn sorted(
    tensors: Vec<(String, Stored)>,
    config: &AdapterConfig,
    file: &Path,
) -> Result<Sorted, AdapterError> {
    let mut seen = Unwrapping::default();
    let tensors: Vec<(String, Unwrapped, Stored)> = tensors
        .into_iter()
        .map(|(name, stored)| {
            let read = unwrapped(&name, &mut seen);
            (name, read, stored)
        })
        .collect();
    if seen.adapters.len() > 1 {
        let names: Vec<_> = seen
            .adapters
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        let reason = format!(
            "it holds several adapters ({}): save the one that is meant by itself, with PEFT's \
             save_pretrained(…, selected_adapters=[…])",
            names.join(", ")
        );
        return Err(malformed(file, "adapter", &reason));
    }
    // A file without the prefix is one whose factors have none; beside those that have, a name
    // without it is none of the adapter's.
    let bare = |read: &Unwrapped| !read.prefixed && is_factor(&read.path);
    let unprefixed = tensors.iter().any(|(_, read, _)| bare(read));
    if unprefixed {
        seen.without_prefix();
    }
    let mut all = Sorted {
        inner: !tensors.is_empty() && tensors.iter().all(|(_, read, _)| read.inner),
        ..Sorted::default()
    };
    let mut n_original = 0;
    let mut by_path: BTreeMap<String, (String, bool, Stored)> = BTreeMap::new();
    for (name, read, stored) in tensors {
        if read.original {
            n_original += 1;
            continue;
        }
        match by_path.get(&read.path) {
            None => {
                by_path.insert(read.path, (name, read.prefixed, stored));
            }
            // PEFT itself writes a resized embedding under two names.
            Some((_, _, other)) if *other == stored => {}
            Some((other, ..)) => {
                let reason = format!(
                    "`{other}` and `{name}` are the same tensor but for wrappers in their names, and their \
                     values differ: remove the one that is not meant"
                );
                return Err(malformed(file, "adapter", &reason));
            }
        }
    }
    for (path, (name, prefixed, stored)) in by_path {
        let place = place(&path).filter(|_| prefixed || unprefixed);
        match place {
            None => {
                let what = format!("unused: `{name}` is no part of a LoRA adapter");
                all.problems.push(what);
            }
            Some(Place::Layer(path, part, is_embedding)) => {
                let layer = all.parts.entry(path.to_owned()).or_default();
                layer.is_embedding |= is_embedding;
                layer.found.insert(part, stored);
            }
            // What PEFT has taken the start out of, which is made again from the base.
            Some(Place::Base(_)) if config.method.is_anchored() => {}
            Some(Place::Base(path)) => {
                all.saved.insert(path, (stored, false));
            }
            Some(Place::Parameter(path)) => {
                let module = path
                    .rsplit_once('.')
                    .map_or(path.as_str(), |(module, _)| module);
                // PEFT's rule: the end of the module's name, not of a part of it.
                let mut names = config.modules_to_save.iter();
                let trained = names.any(|name| module.ends_with(name) || is_under(module, name));
                all.saved.insert(path, (stored, trained));
            }
        }
    }
    all.notes.extend(seen.note());
    if n_original > 0 {
        all.notes.push(format!(
            "{n_original} tensors are what saved modules were before training (`original_module`), and are \
             not needed"
        ));
    }
    Ok(all)
}

fn is_factor(path: &str) -> bool {
    matches!(place(path), Some(Place::Layer(..)))
}

/// Where a tensor of the file belongs.
enum Place<'a> {
    /// A layer's path, the part, and whether its name is that of an embedding's.
    Layer(&'a str, Part, bool),
    /// A parameter of the base.
    Parameter(String),
    /// The weight of an adapted layer.
    Base(String),
}

/// By a name without its prefix.
fn place(name: &str) -> Option<Place<'_>> {
    const PARTS: &[(&str, Part, bool)] = &[
        (".lora_A.weight", Part::A, false),
        (".lora_B.weight", Part::B, false),
        (".lora_embedding_A", Part::A, true),
        (".lora_embedding_B", Part::B, true),
        (".lora_magnitude_vector", Part::Magnitude, false),
        // Before PEFT 0.12.
        (".lora_magnitude_vector.weight", Part::Magnitude, false),
    ];
    for (suffix, part, is_embedding) in PARTS {
        if let Some(layer) = name.strip_suffix(suffix) {
            return Some(Place::Layer(layer, *part, *is_embedding));
        }
    }
    if name.contains(".lora_") {
        return None;
    }
    // An adapted layer's own weight may come along, for embeddings and heads.
    Some(match name.split_once(".base_layer.") {
        Some((layer, name)) => Place::Base(format!("{layer}.{name}")),
        None => Place::Parameter(name.to_owned()),
    })
}

fn is_under(module: &str, name: &str) -> bool {
    module.starts_with(&format!("{name}.")) || module.contains(&format!(".{name}."))
}

pub(super) fn io(action: &'static str, path: &Path, source: std::io::Error) -> AdapterError {
    AdapterError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

pub(super) fn malformed(
    path: &Path,
    kind: &'static str,
    reason: &(impl std::fmt::Display + ?Sized),
) -> AdapterError {
    AdapterError::Malformed {
        path: path.to_owned(),
        kind,
        reason: reason.to_string(),
    }
}
