//! Adapters as mlx-lm stores them: `adapters.safetensors` beside its own
//! `adapter_config.json`, in and out.
//!
//! By mlx-lm's `tuner/lora.py`, `tuner/dora.py` and `tuner/utils.py` (version
//! 0.32): a layer computes `y + scale · (x·lora_a)·lora_b` with `lora_a`
//! `[in, rank]` and `lora_b` `[rank, out]`, the transposes of PEFT's, and `scale`
//! as it stands, not divided by the rank. `DoRA` multiplies what its weight and
//! the factors give by `m / ‖W + scale·(lora_a·lora_b)ᵀ‖`, rows by rows, before
//! the bias: PEFT's arithmetic, with `m` as its magnitudes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    path::Path,
};

use serde_json::{Map, Value, json};

use super::{
    CONFIG_FILE, Layer, PeftAdapter, WriteOptions,
    file::TensorFile,
    read::malformed,
    tensors::{self, Written},
    write::write_file,
};
use crate::{
    AdapterConfig, AdapterError, Method,
    config::{ALPHAS, MAX_RANK},
    saved::Stored,
    target::Kind,
};

/// The name of mlx-lm's tensor file.
pub const MLX_TENSOR_FILE: &str = "adapters.safetensors";

/// Whether an `adapter_config.json` is mlx-lm's: its training options, as they
/// were.
pub(super) fn is_configuration(json: &Map<String, Value>) -> bool {
    !json.contains_key("peft_type")
        && ["lora_parameters", "fine_tune_type", "lora_layers"]
            .iter()
            .any(|key| json.contains_key(*key))
}

/// What the configuration says of the factors.
struct Options {
    rank: usize,
    scale: f64,
    dropout: f64,
    dora: bool,
    /// Blocks from the last on; `None` for all.
    blocks: Option<usize>,
}

impl Options {
    fn read(json: &Map<String, Value>, file: &Path) -> Result<Self, AdapterError> {
        let wrong = |reason: String| malformed(file, "configuration of an mlx-lm adapter", &reason);
        let kind = match json.get("fine_tune_type") {
            // Before there was such a key.
            None | Some(Value::Null) if json.get("use_dora") == Some(&Value::Bool(true)) => "dora",
            None | Some(Value::Null) => "lora",
            Some(Value::String(kind)) => kind,
            Some(other) => {
                return Err(wrong(format!(
                    "`fine_tune_type` is {other}, but must be text"
                )));
            }
        };
        if !["lora", "dora"].contains(&kind) {
            return Err(wrong(format!(
                "`fine_tune_type` is {kind:?}, but only \"lora\" and \"dora\" are read. With \"full\" the file \
                 holds weights of whole layers and no adapter: `mlx_lm.fuse` makes a checkpoint of them"
            )));
        }
        let Some(parameters) = json.get("lora_parameters").and_then(Value::as_object) else {
            return Err(wrong(
                "it has no `lora_parameters`, where rank and scale are".to_owned(),
            ));
        };
        let number = |key: &str, default: Option<f64>, allowed: RangeInclusive<f64>| {
            let found = match parameters.get(key) {
                None | Some(Value::Null) => default,
                Some(value) => value.as_f64(),
            };
            found
                .filter(|number| allowed.contains(number))
                .ok_or_else(|| {
                    wrong(format!(
                        "`lora_parameters.{key}` is {}, but must be a number from {:?} to {:?}",
                        parameters.get(key).unwrap_or(&Value::Null),
                        allowed.start(),
                        allowed.end()
                    ))
                })
        };
        let rank = number("rank", None, 1.0..=MAX_RANK as f64)?;
        if rank.fract() != 0.0 {
            return Err(wrong(format!(
                "`lora_parameters.rank` is {rank}, no whole number"
            )));
        }
        let scale = number("scale", None, ALPHAS)?;
        // Up to 0.14.2 (June 2024) the scale was multiplied by alpha / rank. Later versions wrote the
        // key on for a year, and did not follow it; those after 0.18.2 wrote `fine_tune_type` too.
        if let Some(alpha) = parameters.get("alpha").and_then(Value::as_f64)
            && alpha != rank
            && !json.contains_key("fine_tune_type")
        {
            return Err(wrong(format!(
                "`lora_parameters.alpha` is {alpha}. mlx-lm once multiplied the scale by alpha / rank, to {} \
                 here, and later versions leave it at {scale}: write the one that is meant as `scale`, and \
                 remove `alpha`",
                scale * alpha / rank
            )));
        }
        let dropout = number("dropout", Some(0.0), 0.0..=0.999)?;
        let blocks = json.get("num_layers").or_else(|| json.get("lora_layers"));
        let blocks = blocks.and_then(Value::as_u64).filter(|n| *n > 0);
        Ok(Self {
            rank: rank as usize,
            scale,
            dropout,
            dora: kind == "dora",
            blocks: blocks.map(|n| n as usize),
        })
    }
}

/// The factors of one layer, as far as they were found.
#[derive(Default)]
struct Parts {
    a: Option<Stored>,
    b: Option<Stored>,
    m: Option<Stored>,
}

pub(super) fn read(
    directory: &Path,
    json: &Map<String, Value>,
    config_file: &Path,
) -> Result<PeftAdapter, AdapterError> {
    let options = Options::read(json, config_file)?;
    let file = directory.join(MLX_TENSOR_FILE);
    if !file.exists() {
        return Err(missing(directory));
    }
    let TensorFile {
        path: file,
        tensors,
        ..
    } = TensorFile::safetensors(&file)?;
    let mut parts: BTreeMap<String, Parts> = BTreeMap::new();
    let mut problems = Vec::new();
    for (name, stored) in tensors {
        let Some((path, leaf)) = name.rsplit_once('.') else {
            problems.push(format!(
                "unused: `{name}` is no part of an adapter of mlx-lm"
            ));
            continue;
        };
        if stored.shape.len() == 3 {
            return Err(AdapterError::Unsupported {
                file,
                what: format!(
                    "`{name}` of shape {:?}, LoRA on the experts of a mixture,",
                    stored.shape
                ),
            });
        }
        let layer = match leaf {
            "lora_a" | "lora_b" | "m" => parts.entry(path.to_owned()).or_default(),
            _ => {
                problems.push(format!(
                    "unused: `{name}` is no part of an adapter of mlx-lm"
                ));
                continue;
            }
        };
        match leaf {
            "lora_a" => layer.a = Some(transposed(stored)),
            "lora_b" => layer.b = Some(transposed(stored)),
            _ => layer.m = Some(stored),
        }
    }
    let layers = whole(parts, &options, &mut problems);
    let mut notes = vec!["an adapter of mlx-lm".to_owned()];
    let blocks: BTreeSet<usize> = layers.keys().filter_map(|path| block_of(path)).collect();
    if let Some(expected) = options
        .blocks
        .filter(|n| !blocks.is_empty() && *n != blocks.len())
    {
        notes.push(format!(
            "{CONFIG_FILE} says that {expected} blocks were adapted, and the file has factors for {}",
            blocks.len()
        ));
    }
    let adapter = PeftAdapter {
        config: AdapterConfig {
            method: Method::Lora,
            rank: options.rank,
            alpha: options.scale * options.rank as f64,
            dora: options.dora,
            dropout: options.dropout,
            targets: layers.keys().cloned().collect(),
            ..AdapterConfig::default()
        },
        base: json.get("model").and_then(Value::as_str).map(str::to_owned),
        task: Some(super::TaskType::CausalLm),
        notes,
        warnings: Vec::new(),
        base_fingerprint: None,
        base_packing: None,
        // A tied embedding of mlx-lm's is one module, whose factors work at both ends.
        ties_weights: true,
        file,
        layers,
        saved: BTreeMap::new(),
        rules: None,
        problems,
        inner: false,
        within: None,
    };
    adapter.config.validate()?;
    Ok(adapter.settled())
}

/// The layers of which both factors are there; what is amiss goes to `problems`.
fn whole(
    parts: BTreeMap<String, Parts>,
    options: &Options,
    problems: &mut Vec<String>,
) -> BTreeMap<String, Layer> {
    let mut layers = BTreeMap::new();
    for (path, parts) in parts {
        if parts.m.is_some() != options.dora {
            let what = if options.dora { "missing" } else { "unused" };
            problems.push(format!("{what}: `{path}.m`, DoRA's magnitudes"));
        }
        match (parts.a, parts.b) {
            (Some(a), Some(b)) => {
                let layer = Layer {
                    kind: kind_of(&path),
                    rank: options.rank,
                    a,
                    b,
                    magnitude: parts.m,
                    scale: options.scale,
                    anchor: None,
                };
                layers.insert(path, layer);
            }
            (a, _) => {
                let leaf = if a.is_some() { "lora_b" } else { "lora_a" };
                problems.push(format!("missing: `{path}.{leaf}`"));
            }
        }
    }
    layers
}

/// mlx-lm gives factors on an embedding the names of those on a linear layer;
/// the module's name tells.
fn kind_of(path: &str) -> Kind {
    let name = path.rsplit('.').next().unwrap_or(path);
    if name.starts_with("embed") || name == "wte" {
        Kind::Embedding
    } else {
        Kind::Linear
    }
}

/// The number of the block that a layer is in.
fn block_of(path: &str) -> Option<usize> {
    path.split('.').find_map(|part| part.parse().ok())
}

fn missing(directory: &Path) -> AdapterError {
    let entries = directory.read_dir().into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    // `0000100_adapters.safetensors`, saved along the way.
    let last = names
        .filter(|name| name.ends_with("_adapters.safetensors"))
        .max();
    let reason = match last {
        Some(name) => format!(
            "it has no {MLX_TENSOR_FILE}; {name} was saved along the way: copy it to that name to use it"
        ),
        None if directory.join("adapters.npz").exists() => format!(
            "it has adapters.npz, which mlx-lm wrote before safetensors and which is not read: load and \
             save it with mlx (mx.load, mx.save_safetensors) as {MLX_TENSOR_FILE}"
        ),
        None => format!("it has no {MLX_TENSOR_FILE}, only the configuration of an mlx-lm adapter"),
    };
    AdapterError::Malformed {
        path: directory.to_owned(),
        kind: "adapter directory of mlx-lm",
        reason,
    }
}

fn transposed(stored: Stored) -> Stored {
    let &[rows, columns] = stored.shape.as_slice() else {
        // Of no use, as a check of shapes says.
        return stored;
    };
    let mut values = Vec::with_capacity(stored.values.len());
    for column in 0..columns {
        values.extend((0..rows).map(|row| stored.values[row * columns + column]));
    }
    Stored {
        shape: vec![columns, rows],
        values,
    }
}

impl PeftAdapter {
    /// Writes the adapter as mlx-lm reads it. Each file is written under a
    /// temporary name and renamed, the configuration last.
    ///
    /// mlx-lm has one rank and one scale for all layers: where they differ,
    /// factors of smaller rank get rows of zeros, and `lora_b` takes the rest of
    /// the scale.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Impossible`] names what such a file cannot hold: a start
    /// that is made from the base, modules that are saved whole, `DoRA` on an
    /// embedding. Those of [`write`](Self::write) too.
    pub fn write_mlx(&self, directory: &Path, options: &WriteOptions) -> Result<(), AdapterError> {
        self.ensure_sound()?;
        let refuse = |path: &str, reason: &str| {
            Err(AdapterError::Impossible {
                path: path.to_owned(),
                what: "a place in an adapter of mlx-lm".to_owned(),
                reason: reason.to_owned(),
            })
        };
        if self.config.method.is_anchored() {
            return refuse(
                "the adapter",
                "it is measured from a start that is made from the base: convert it to plain LoRA \
                 first, with its base at hand",
            );
        }
        if let Some(path) = self.saved.keys().find(|path| !self.is_base_weight(path)) {
            return refuse(
                path,
                "it is saved whole beside the factors: merge the adapter instead, and convert the \
                 checkpoint with mlx_lm.convert",
            );
        }
        let most = self.layers.values().map(|layer| layer.rank).max();
        let (Some(rank), Some(first)) = (most, self.layers.values().next()) else {
            return Err(AdapterError::NotAdapted);
        };
        let scale = first.scale;
        let mut keys = BTreeSet::new();
        let mut written = Vec::new();
        for (path, layer) in &self.layers {
            if layer.kind == Kind::Embedding && !self.ties_weights {
                return refuse(
                    path,
                    "LoRA on an embedding works at both ends of a tied one there, and at its own alone here",
                );
            }
            keys.insert(key_of(path));
            let a = widened(&layer.a, rank, 0);
            let mut b = widened(&layer.b, rank, 1);
            let rest = layer.scale / scale;
            if rest != 1.0 {
                b.values
                    .iter_mut()
                    .for_each(|value| *value = (f64::from(*value) * rest) as f32);
            }
            written.push((format!("{path}.lora_a"), transposed(a)));
            written.push((format!("{path}.lora_b"), transposed(b)));
            if let Some(magnitude) = &layer.magnitude {
                written.push((format!("{path}.m"), magnitude.clone()));
            }
        }
        let tensors = written
            .iter()
            .map(|(name, stored)| Written {
                name: name.clone(),
                shape: &stored.shape,
                values: &stored.values,
                dtype: options.dtype,
            })
            .collect();
        // Blocks are counted from the last, of which nothing is known here: all, then, of which those
        // without factors in the file compute what they did.
        let configuration = json!({
            "fine_tune_type": if self.config.dora { "dora" } else { "lora" },
            "num_layers": -1,
            "lora_parameters": {
                "rank": rank,
                "scale": scale,
                "dropout": self.config.dropout,
                "keys": keys,
            },
            "model": self.base,
        });
        let config_file = directory.join(CONFIG_FILE);
        let text = serde_json::to_string_pretty(&configuration)
            .map_err(|error| malformed(&config_file, "JSON value", &error))?;
        tensors::write(&directory.join(MLX_TENSOR_FILE), tensors, &[])?;
        if let Some(card) = &options.card {
            write_file(&directory.join("README.md"), card.as_bytes())?;
        }
        write_file(&config_file, text.as_bytes())
    }
}

/// mlx-lm calls the layers of a block by their path in it, and all others by
/// their whole path.
fn key_of(path: &str) -> &str {
    let mut at = 0;
    for part in path.split('.') {
        at += part.len() + 1;
        if part.parse::<usize>().is_ok() {
            return path.get(at..).unwrap_or(path);
        }
    }
    path
}

/// Zeros along one axis, up to a rank: they add nothing to the product.
fn widened(stored: &Stored, rank: usize, axis: usize) -> Stored {
    let &[rows, columns] = stored.shape.as_slice() else {
        return stored.clone();
    };
    let mut values = Vec::new();
    if axis == 0 {
        values.clone_from(&stored.values);
        values.resize(rank * columns, 0.0);
        return Stored {
            shape: vec![rank, columns],
            values,
        };
    }
    for row in stored.values.chunks(columns.max(1)) {
        values.extend_from_slice(row);
        values.resize(values.len() + rank - columns, 0.0);
    }
    Stored {
        shape: vec![rows, rank],
        values,
    }
}
