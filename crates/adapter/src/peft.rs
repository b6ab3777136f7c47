//! Adapters as Hugging Face PEFT stores them: `adapter_config.json` and
//! `adapter_model.safetensors` in one directory.
//!
//! PEFT holds `lora_A` as `[rank, d_in]` and `lora_B` as `[d_out, rank]`, the
//! transposes of ours, in f32, under `base_model.model.<layer>.lora_A.weight`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::Module,
    tensor::{DType, Tensor, TensorData},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    AdapterConfig, AdapterError, Method, Target,
    attach::{attach_prepared, check_rank, device_error, low_rank, olora_anchors},
    factors::{Factors, factors},
    files::write_atomically,
    target::{linear_layers, linear_paths},
};

/// The name of the configuration file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The name of the tensor file.
pub const TENSOR_FILE: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// In which of PEFT's forms an adapter with an anchor is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeftForm {
    /// Plain LoRA on the original base, which every tool loads. An anchor
    /// doubles the rank: `A' = [A, A₀]`, `B' = [B; −B₀]`, alpha doubled too.
    #[default]
    Plain,
    /// `init_lora_weights: "olora"`: the factors alone. PEFT recomputes the
    /// start from the base when it loads them; few other tools do.
    Olora,
}

/// Writes the adapter on `module` to `directory`.
///
/// `base` is recorded as `base_model_name_or_path`. Each file is written under
/// a temporary name and renamed, the configuration last.
///
/// # Errors
///
/// [`AdapterError::NotAdapted`], or an [`AdapterError::Io`] that names the file.
pub fn save_peft<M: Module>(
    module: &M,
    config: &AdapterConfig,
    form: PeftForm,
    base: &str,
    directory: &Path,
) -> Result<(), AdapterError> {
    let layers = factors(module);
    if layers.is_empty() {
        return Err(AdapterError::NotAdapted);
    }
    let anchored = layers.iter().any(|layer| layer.anchor.is_some());
    let widen = anchored && form == PeftForm::Plain;

    let mut tensors = Vec::with_capacity(2 * layers.len());
    for layer in &layers {
        let (mut a, mut b) = (layer.a.clone(), layer.b.clone());
        if let (true, Some((a0, b0))) = (widen, &layer.anchor) {
            a = Tensor::cat(vec![a, a0.clone()], 1);
            b = Tensor::cat(vec![b, b0.clone().neg()], 0);
        }
        let name = |factor: &str| format!("{PREFIX}{}.{factor}.weight", layer.path);
        tensors.push((name("lora_A"), to_file(a.transpose(), &layer.path)?));
        tensors.push((name("lora_B"), to_file(b.transpose(), &layer.path)?));
    }

    let factor = if widen { 2 } else { 1 };
    let stored = StoredConfig {
        rank: factor * config.rank,
        alpha: factor as f64 * config.alpha,
        dropout: config.dropout,
        init: if anchored && !widen {
            json!("olora")
        } else {
            json!(true)
        },
        targets: target_names(&layers, module),
    };
    let json = serde_json::to_string_pretty(&stored.to_json(base)).map_err(|error| {
        AdapterError::Malformed {
            path: directory.join(CONFIG_FILE),
            kind: "JSON value",
            reason: error.to_string(),
        }
    })?;

    let path = directory.join(TENSOR_FILE);
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        TensorView::new(Dtype::F32, shape.to_vec(), bytes).map(|view| (name.as_str(), view))
    });
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    let bytes = views
        .collect::<Result<Vec<_>, _>>()
        .and_then(|views| safetensors::serialize(views, metadata))
        .map_err(|error| AdapterError::Malformed {
            path: path.clone(),
            kind: "safetensors file",
            reason: error.to_string(),
        })?;
    write(&path, &bytes)?;
    write(&directory.join(CONFIG_FILE), json.as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    write_atomically(path, |file| file.write_all(bytes)).map_err(|source| AdapterError::Io {
        action: "writing",
        path: path.to_owned(),
        source,
    })
}

/// A factor in PEFT's orientation, as little-endian f32.
fn to_file(tensor: Tensor<2>, path: &str) -> Result<([usize; 2], Vec<u8>), AdapterError> {
    let shape = tensor.dims();
    let data = tensor
        .try_into_data_as::<f32>()
        .map_err(|error| device_error(path, &error))?;
    let values = data
        .try_into_vec::<f32>()
        .map_err(|error| device_error(path, &error))?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(AdapterError::NotFinite(path.to_owned()));
    }
    Ok((
        shape,
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    ))
}

/// The shortest list of names that PEFT resolves to exactly these layers: last
/// names if no layer of the model outside the adapter shares one, else paths.
fn target_names<M: Module>(layers: &[Factors], module: &M) -> Vec<String> {
    let adapted: Vec<&str> = layers.iter().map(|layer| layer.path.as_str()).collect();
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let mut names: Vec<String> = adapted.iter().map(|path| last(path)).collect();
    names.sort();
    names.dedup();
    let ambiguous = linear_paths(module)
        .iter()
        .any(|(path, _)| !adapted.contains(&path.as_str()) && names.contains(&last(path)));
    if ambiguous {
        adapted.into_iter().map(str::to_owned).collect()
    } else {
        names
    }
}

/// The part of `adapter_config.json` that decides what the tensors mean.
struct StoredConfig {
    rank: usize,
    alpha: f64,
    dropout: f64,
    init: Value,
    targets: Vec<String>,
}

impl StoredConfig {
    /// The keys that PEFT 0.21 itself writes for LoRA and that other loaders look at.
    fn to_json(&self, base: &str) -> Value {
        // Whole numbers as integers: llama.cpp's converter and others expect `"lora_alpha": 16`.
        let alpha = if self.alpha.fract() == 0.0 {
            json!(self.alpha as i64)
        } else {
            json!(self.alpha)
        };
        json!({
            "alpha_pattern": {},
            "base_model_name_or_path": base,
            "bias": "none",
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": self.init,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": alpha,
            "lora_bias": false,
            "lora_dropout": self.dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": {},
            "revision": null,
            "target_modules": self.targets,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": false
        })
    }
}

/// What a PEFT adapter directory holds, before it meets a model.
#[derive(Debug)]
pub struct PeftAdapter {
    /// Rank, alpha, dropout and targets; `method` tells whether the factors
    /// are measured from OLoRA's start.
    pub config: AdapterConfig,
    /// `base_model_name_or_path`, if recorded.
    pub base: Option<String>,
    /// The scale of the update (`alpha / r`, or `alpha / sqrt(r)`).
    pub scale: f64,
    tensor_file: PathBuf,
    /// By layer path: `lora_A` as `[rank, d_in]` and `lora_B` as `[d_out, rank]`.
    layers: BTreeMap<String, [Option<Matrix>; 2]>,
    strangers: Vec<String>,
}

#[derive(Debug)]
struct Matrix {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl PeftAdapter {
    /// Reads a directory that PEFT, or [`save_peft`], has written.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Unsupported`] names the first key that asks for
    /// something beyond LoRA and OLoRA on linear layers.
    pub fn read(directory: &Path) -> Result<Self, AdapterError> {
        let file = directory.join(CONFIG_FILE);
        let text = fs::read(&file).map_err(|source| io("reading", &file, source))?;
        let json: Map<String, Value> = serde_json::from_slice(&text)
            .map_err(|error| malformed(&file, "adapter configuration", &error))?;
        let (config, scale) = read_config(&json, &file)?;
        let base = json
            .get("base_model_name_or_path")
            .and_then(Value::as_str)
            .map(str::to_owned);

        let tensor_file = directory.join(TENSOR_FILE);
        let bytes = fs::read(&tensor_file).map_err(|source| io("reading", &tensor_file, source))?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|error| malformed(&tensor_file, "safetensors file", &error))?;
        let mut layers: BTreeMap<String, [Option<Matrix>; 2]> = BTreeMap::new();
        let mut strangers = Vec::new();
        for (name, view) in tensors.tensors() {
            let layer = name.strip_prefix(PREFIX).and_then(|name| {
                let a = name.strip_suffix(".lora_A.weight").map(|layer| (layer, 0));
                a.or_else(|| name.strip_suffix(".lora_B.weight").map(|layer| (layer, 1)))
            });
            match layer {
                None => strangers.push(name),
                Some((layer, factor)) => {
                    let matrix = read_matrix(&view).map_err(|reason| {
                        malformed(&tensor_file, "adapter", &format!("`{name}` {reason}"))
                    })?;
                    layers.entry(layer.to_owned()).or_default()[factor] = Some(matrix);
                }
            }
        }
        Ok(Self {
            config,
            base,
            scale,
            tensor_file,
            layers,
            strangers,
        })
    }

    /// The number of values in all factors.
    pub fn num_params(&self) -> usize {
        self.layers
            .values()
            .flatten()
            .flatten()
            .map(|matrix| matrix.values.len())
            .sum()
    }

    /// The adapted layers with `lora_A`'s and `lora_B`'s shapes.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>, Vec<usize>)> {
        let shape =
            |matrix: &Option<Matrix>| matrix.as_ref().map(|m| m.shape.clone()).unwrap_or_default();
        self.layers
            .iter()
            .map(|(path, [a, b])| (path.clone(), shape(a), shape(b)))
            .collect()
    }

    /// Attaches the adapter to `module`, ready to run, merge or train on.
    ///
    /// An OLoRA adapter in PEFT's own form gets its start recomputed from the
    /// base's weights and is anchored there: the base is not changed.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] lists every tensor that is missing, unused
    /// or of the wrong shape. PEFT only warns about those.
    pub fn attach<M: Module>(self, module: M) -> Result<M, AdapterError> {
        let linears: BTreeMap<String, Target> = linear_layers(&module)
            .into_iter()
            .map(|layer| (layer.path.clone(), layer))
            .collect();
        let rank = self.config.rank;
        let mut problems: Vec<String> = self
            .strangers
            .iter()
            .map(|name| format!("unused: `{name}` is not a LoRA factor"))
            .collect();
        let mut found = Vec::new();
        for (path, [a, b]) in self.layers {
            let Some(target) = linears.get(&path) else {
                problems.push(format!("unused: the model has no linear layer `{path}`"));
                continue;
            };
            let [d_in, d_out] = target.dims();
            let mut check = |factor: &str, matrix: Option<Matrix>, expected: [usize; 2]| {
                match matrix {
                    None => {
                        problems.push(format!("missing: `{PREFIX}{path}.{factor}.weight`"));
                        None
                    }
                    Some(matrix) if matrix.shape != expected => {
                        problems.push(format!(
                        "misshapen: `{PREFIX}{path}.{factor}.weight` is {:?}, but rank {rank} on `{path}` needs {expected:?}",
                        matrix.shape
                    ));
                        None
                    }
                    Some(matrix) => Some(matrix.values),
                }
            };
            let a = check("lora_A", a, [rank, d_in]);
            let b = check("lora_B", b, [d_out, rank]);
            if let (Some(a), Some(b)) = (a, b) {
                found.push((target.clone(), a, b));
            }
        }
        if found.is_empty() && problems.is_empty() {
            problems.push("the file holds no LoRA factors".to_owned());
        }
        if !problems.is_empty() {
            return Err(AdapterError::Mismatch {
                file: self.tensor_file,
                problems,
            });
        }
        drop(linears);

        let anchors = match self.config.method {
            Method::Lora => vec![None; found.len()],
            Method::Olora => {
                let targets: Vec<_> = found.iter().map(|(target, ..)| target.clone()).collect();
                for target in &targets {
                    check_rank(target, rank)?;
                }
                olora_anchors(&targets, rank)?
                    .into_iter()
                    .map(Some)
                    .collect()
            }
        };
        let attached = found
            .into_iter()
            .zip(anchors)
            .map(|((target, a, b), anchor)| {
                let [d_in, d_out] = target.dims();
                let device = target.weight.device().inner();
                let tensor = |values, shape: [usize; 2]| {
                    Tensor::<2>::from_data(TensorData::new(values, shape), (&device, DType::F32))
                        .transpose()
                };
                let factors = (tensor(a, [rank, d_in]), tensor(b, [d_out, rank]));
                let low_rank = low_rank(
                    &target,
                    factors,
                    anchor,
                    self.scale,
                    self.config.dropout,
                    true,
                );
                (target.path, low_rank)
            })
            .collect();
        attach_prepared(module, attached)
    }
}

/// Keys that change what the tensors mean and that only PEFT's default is
/// supported for. A key that is absent has its default.
const DEFAULTS_ONLY: &[&str] = &[
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

fn read_config(
    json: &Map<String, Value>,
    file: &Path,
) -> Result<(AdapterConfig, f64), AdapterError> {
    let unsupported = |what: String| AdapterError::Unsupported {
        file: file.to_owned(),
        what,
    };
    let is_default = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    for key in DEFAULTS_ONLY {
        if let Some(value) = json.get(*key).filter(|value| !is_default(value)) {
            return Err(unsupported(format!("`{key}: {value}`")));
        }
    }
    let text = |key: &str, default: &'static str| match json.get(key) {
        None | Some(Value::Null) => default.to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let peft_type = text("peft_type", "LORA");
    if peft_type != "LORA" {
        return Err(unsupported(format!("`peft_type: {peft_type}`")));
    }
    let bias = text("bias", "none");
    if bias != "none" {
        return Err(unsupported(format!("`bias: {bias}`")));
    }
    // Only initialisations that change the base matter for an adapter that is already trained.
    let method = match text("init_lora_weights", "true").to_lowercase().as_str() {
        "olora" => Method::Olora,
        "true" | "false" | "gaussian" | "orthogonal" | "eva" => Method::Lora,
        other => return Err(unsupported(format!("`init_lora_weights: {other}`"))),
    };
    let number = |key: &str, default: f64| match json.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_f64()
            .filter(|x| x.is_finite() && *x > 0.0)
            .ok_or_else(|| {
                malformed(
                    file,
                    "adapter configuration",
                    &format!("`{key}` is {value}, but must be a positive number"),
                )
            }),
    };
    let rank = number("r", 8.0)?;
    if rank.fract() != 0.0 {
        return Err(malformed(
            file,
            "adapter configuration",
            &format!("`r` is {rank}, but must be a whole number"),
        ));
    }
    let alpha = number("lora_alpha", 8.0)?;
    let stabilised = json
        .get("use_rslora")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let scale = if stabilised {
        alpha / rank.sqrt()
    } else {
        alpha / rank
    };
    let rank = rank as usize;
    let targets = match json.get("target_modules") {
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        Some(Value::String(name)) => vec![name.clone()],
        _ => Vec::new(),
    };
    let dropout = json
        .get("lora_dropout")
        .and_then(Value::as_f64)
        .unwrap_or(0.0);
    let config = AdapterConfig {
        method,
        rank,
        // The scale is what counts; alpha follows from it.
        alpha: scale * rank as f64,
        dropout,
        targets,
        ..AdapterConfig::default()
    };
    if !(0.0..1.0).contains(&dropout) {
        let reason = format!("`lora_dropout` is {dropout}, but must be at least 0 and below 1");
        return Err(malformed(file, "adapter configuration", &reason));
    }
    config.validate()?;
    Ok((config, scale))
}

fn read_matrix(view: &TensorView<'_>) -> Result<Matrix, String> {
    let bytes = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect(),
        Dtype::F16 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|&b| half::f16::from_le_bytes(b).to_f32())
            .collect(),
        Dtype::BF16 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|&b| half::bf16::from_le_bytes(b).to_f32())
            .collect(),
        other => return Err(format!("has dtype {other:?}; expected F32, F16 or BF16")),
    };
    if values.iter().any(|value| !value.is_finite()) {
        return Err("holds values that are not finite".to_owned());
    }
    Ok(Matrix {
        shape: view.shape().to_vec(),
        values,
    })
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> AdapterError {
    AdapterError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn malformed(path: &Path, kind: &'static str, reason: &impl std::fmt::Display) -> AdapterError {
    AdapterError::Malformed {
        path: path.to_owned(),
        kind,
        reason: reason.to_string(),
    }
}
