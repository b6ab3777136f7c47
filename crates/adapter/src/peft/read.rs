//! A PEFT directory onto the host.

use std::{collections::BTreeMap, fs, path::Path};

use olora_files::read_bounded;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Map, Value};

use super::{
    CONFIG_FILE, Layer, PREFIX, PeftAdapter, TENSOR_FILE, TaskType, config,
    matching::{PatternKeys, Rules},
    write::names,
};
use crate::{
    AdapterError, LayerShape, check_header,
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
        })
    }
}

impl PeftAdapter {
    /// Reads a directory that PEFT, or [`write`](Self::write), has written.
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
        let json: Map<String, Value> = serde_json::from_slice(&text)
            .map_err(|error| malformed(&config_file, "adapter configuration", &error))?;
        let (config, notes) = config::read(&json, &config_file)?;
        let rules = Rules::read(&json, &config_file)?;
        let whole = 1.0..=MAX_RANK as f64;
        let ranks = PatternKeys::read(&json, "rank_pattern", &whole, &config_file)?;
        let alphas = PatternKeys::read(&json, "alpha_pattern", &ALPHAS, &config_file)?;

        let file = directory.join(TENSOR_FILE);
        let bytes = fs::read(&file).map_err(|source| io("reading", &file, source))?;
        check_header(&bytes).map_err(|reason| malformed(&file, "safetensors file", &reason))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| malformed(&file, "safetensors file", &error))?;
        let noted = |key| header.metadata().as_ref()?.get(key).cloned();
        let base_fingerprint = noted(super::write::FINGERPRINT);
        let base_packing = noted(super::write::PACKING);
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|error| malformed(&file, "safetensors file", &error))?;

        let mut parts: BTreeMap<String, Parts> = BTreeMap::new();
        let mut saved = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, view) in tensors.tensors() {
            let stored = stored(&view)
                .map_err(|reason| malformed(&file, "adapter", &format!("`{name}` {reason}")))?;
            match place(&name) {
                None => problems.push(format!("unused: `{name}` is no part of a LoRA adapter")),
                Some(Place::Layer(path, part, is_embedding)) => {
                    let layer = parts.entry(path.to_owned()).or_default();
                    layer.is_embedding |= is_embedding;
                    layer.found.insert(part, stored);
                }
                // What PEFT has taken the start out of, which is made again from the base.
                Some(Place::Base(_)) if config.method.is_anchored() => {}
                Some(Place::Base(path)) => {
                    saved.insert(path, (stored, false));
                }
                Some(Place::Parameter(path)) => {
                    let module = path
                        .rsplit_once('.')
                        .map_or(path.as_str(), |(module, _)| module);
                    // PEFT's rule: the end of the module's name, not of a part of it.
                    let mut names = config.modules_to_save.iter();
                    let trained =
                        names.any(|name| module.ends_with(name) || is_under(module, name));
                    saved.insert(path, (stored, trained));
                }
            }
        }
        let mut layers = BTreeMap::new();
        for (path, parts) in parts {
            let rank = ranks.of(&path).unwrap_or(config.rank as f64);
            if rank.fract() != 0.0 {
                let reason =
                    format!("`rank_pattern` gives `{path}` the rank {rank}, no whole number");
                return Err(malformed(&config_file, "adapter configuration", &reason));
            }
            let rank = rank as usize;
            let shape = config.shape(rank, alphas.of(&path).unwrap_or(config.alpha));
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
        let mut adapter = Self {
            config,
            base,
            task: task.map(TaskType::from_name),
            notes,
            base_fingerprint,
            base_packing,
            file,
            layers,
            saved,
            rules,
            problems,
        };
        if adapter.ensure_sound().is_ok() {
            adapter.settle_patterns();
        }
        if adapter.is_idle() && !adapter.layers.is_empty() {
            adapter.notes.push(
                "every `lora_B` is zero: this adapter changes nothing. Was it saved before training?"
                    .to_owned(),
            );
        }
        Ok(adapter)
    }
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
    let path = name.strip_prefix(PREFIX)?;
    for (suffix, part, is_embedding) in PARTS {
        if let Some(layer) = path.strip_suffix(suffix) {
            return Some(Place::Layer(layer, *part, *is_embedding));
        }
    }
    if path.contains(".lora_") {
        return None;
    }
    // An adapted layer's own weight may come along, for embeddings and heads.
    Some(match path.split_once(".base_layer.") {
        Some((layer, name)) => Place::Base(format!("{layer}.{name}")),
        None => Place::Parameter(path.to_owned()),
    })
}

fn is_under(module: &str, name: &str) -> bool {
    module.starts_with(&format!("{name}.")) || module.contains(&format!(".{name}."))
}

fn stored(view: &TensorView<'_>) -> Result<Stored, String> {
    let bytes = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => {
            let all = bytes.as_chunks::<4>().0.iter();
            all.map(|&b| f32::from_le_bytes(b)).collect()
        }
        Dtype::F16 => {
            let all = bytes.as_chunks::<2>().0.iter();
            all.map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
        }
        Dtype::BF16 => {
            let all = bytes.as_chunks::<2>().0.iter();
            all.map(|&b| half::bf16::from_le_bytes(b).to_f32())
                .collect()
        }
        other => return Err(format!("has dtype {other:?}; expected F32, F16 or BF16")),
    };
    let mut odd = values.iter().enumerate();
    if let Some((first, value)) = odd.find(|(_, value)| !value.is_finite()) {
        return Err(format!(
            "holds values that are not finite, the first of them {value} at element {first} of {:?}. Either \
             the file is damaged, or its training diverged",
            view.shape()
        ));
    }
    Ok(Stored {
        shape: view.shape().to_vec(),
        values,
    })
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
    reason: &impl std::fmt::Display,
) -> AdapterError {
    AdapterError::Malformed {
        path: path.to_owned(),
        kind,
        reason: reason.to_string(),
    }
}
