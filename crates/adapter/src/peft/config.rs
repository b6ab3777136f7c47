//! `adapter_config.json`, in and out.

use std::{collections::BTreeMap, ops::RangeInclusive, path::Path};

use serde_json::{Map, Value, json};

use super::{CONFIG_FILE, PeftAdapter, TaskType, matching::strings, read::malformed};
use crate::{
    AdapterConfig, AdapterError, Method,
    config::{ALPHAS, MAX_RANK},
};

/// Keys that change what the tensors mean and that only PEFT's default is
/// supported for. A key that is absent has its default.
const DEFAULTS_ONLY: &[&str] = &[
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "velora_config",
    // PEFT before 0.3: LoRA on parts of a fused layer.
    "enable_lora",
];

/// Keys that are read here or beside this, or say nothing of what a trained
/// adapter computes: where it came from, how it started, how it was trained.
/// Those of PEFT 0.21 and before.
const KNOWN: &[&str] = &[
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "merge_weights",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
];

/// What a configuration says.
pub(super) struct Read {
    /// Without its patterns.
    pub(super) config: AdapterConfig,
    pub(super) notes: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// `ensure_weight_tying`: what is trained of a tied embedding is trained of
    /// both of its ends.
    pub(super) ties_weights: bool,
}

/// Power iterations beyond those that a `pissa_niter` adapter was made with:
/// PEFT's start cannot be had again, and the exact one is nearest to all.
const MORE_ITERATIONS: usize = 16;

/// PEFT's own examples have 4 to 16.
const MOST_ITERATIONS: usize = 1000;

/// Keys that are set to something and that this version does not know. A key
/// that is null, false or empty asks for nothing, whoever wrote it.
fn unknown(json: &Map<String, Value>) -> Vec<String> {
    let set = json.iter().filter(|(key, value)| {
        let key = key.as_str();
        !is_default(value) && !KNOWN.contains(&key) && !DEFAULTS_ONLY.contains(&key)
    });
    set.map(|(key, value)| {
        // A list may be as long as the file.
        let text = value.to_string();
        let shown: String = text.chars().take(80).collect();
        let more = if shown.len() < text.len() { "…" } else { "" };
        format!(
            "{CONFIG_FILE} sets `{key}: {shown}{more}`, which this version does not know and does not \
             follow: if it changes what the adapter computes, the result is not the adapter's"
        )
    })
    .collect()
}

pub(super) fn read(json: &Map<String, Value>, file: &Path) -> Result<Read, AdapterError> {
    let unsupported = |what: String| AdapterError::Unsupported {
        file: file.to_owned(),
        what,
    };
    let refuse = |reason: String| malformed(file, "adapter configuration", &reason);
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
    let flag = |key: &str| match json.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(refuse(format!(
            "`{key}` is {other}, but must be true or false"
        ))),
    };
    let peft_type = text("peft_type", "LORA");
    if peft_type != "LORA" {
        return Err(unsupported(format!("`peft_type: {peft_type}`")));
    }
    let bias = text("bias", "none");
    if bias != "none" {
        return Err(unsupported(format!("`bias: {bias}`")));
    }
    let mut notes = Vec::new();
    let init = text("init_lora_weights", "true").to_lowercase();
    let (method, iterations) = start(&init, &mut notes)
        .ok_or_else(|| unsupported(format!("`init_lora_weights: {init}`")))?;
    let number = |key: &str, default: f64, allowed: RangeInclusive<f64>| match json.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_f64()
            .filter(|number| allowed.contains(number))
            .ok_or_else(|| {
                refuse(format!(
                    "`{key}` is {value}, but must be a positive number from {:?} to {:?}",
                    allowed.start(),
                    allowed.end()
                ))
            }),
    };
    let rank = number("r", 8.0, 1.0..=MAX_RANK as f64)?;
    if rank.fract() != 0.0 {
        return Err(refuse(format!("`r` is {rank}, but must be a whole number")));
    }
    let list = |key: &str| match json.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => strings(value).ok_or_else(|| {
            refuse(format!(
                "`{key}` is {value}, but must be text or a list of it"
            ))
        }),
    };
    let dropout = match json.get("lora_dropout") {
        None | Some(Value::Null) => 0.0,
        // What is no number is out of range too.
        Some(value) => value.as_f64().unwrap_or(f64::NAN),
    };
    if !(0.0..1.0).contains(&dropout) {
        return Err(refuse(format!(
            "`lora_dropout` is {}, but must be a number of at least 0 and below 1",
            json["lora_dropout"]
        )));
    }
    let config = AdapterConfig {
        method,
        iterations,
        rank: rank as usize,
        alpha: number("lora_alpha", 8.0, ALPHAS)?,
        rslora: flag("use_rslora")?,
        dora: flag("use_dora")?,
        dropout,
        targets: list("target_modules")?,
        modules_to_save: list("modules_to_save")?,
        ..AdapterConfig::default()
    };
    config.validate()?;
    Ok(Read {
        config,
        notes,
        warnings: unknown(json),
        ties_weights: flag("ensure_weight_tying")?,
    })
}

/// What the factors are measured from, by `init_lora_weights`; `None` for what is
/// not supported. Only initialisations that change the base matter for an adapter
/// that is already trained.
fn start(init: &str, notes: &mut Vec<String>) -> Option<(Method, Option<usize>)> {
    Some(match init {
        "olora" => (Method::Olora, None),
        "pissa" => (Method::Pissa, None),
        "true" | "false" | "gaussian" | "orthogonal" | "eva" | "mica" => (Method::Lora, None),
        other => {
            let iterations = other.strip_prefix("pissa_niter_")?.parse::<usize>().ok()?;
            if iterations > MOST_ITERATIONS {
                return None;
            }
            notes.push(format!(
                "`init_lora_weights: {other}` was started from a random decomposition that nothing can \
                 repeat, PEFT neither; it is measured from one that is nearly exact"
            ));
            (Method::Pissa, Some(iterations + MORE_ITERATIONS))
        }
    })
}

fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

impl PeftAdapter {
    /// The keys that PEFT 0.21 itself writes for LoRA and that other loaders look at.
    pub(super) fn to_json(&self) -> Value {
        let config = &self.config;
        let init = match config.method {
            Method::Olora => json!("olora"),
            Method::Pissa => json!("pissa"),
            _ => json!(true),
        };
        let alphas: BTreeMap<_, _> = config
            .alpha_pattern
            .iter()
            .map(|(name, alpha)| (name, whole(*alpha)))
            .collect();
        let saved = (!config.modules_to_save.is_empty()).then_some(&config.modules_to_save);
        let mut json = json!({
            "alpha_pattern": alphas,
            "base_model_name_or_path": self.base,
            "bias": "none",
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": init,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": whole(config.alpha),
            "lora_bias": false,
            "lora_dropout": config.dropout,
            "modules_to_save": saved,
            "peft_type": "LORA",
            "r": config.rank,
            "rank_pattern": config.rank_pattern,
            "revision": null,
            "target_modules": self.target_names(),
            "task_type": self.task.as_ref().map(TaskType::name),
            "use_dora": config.dora,
            "use_rslora": config.rslora
        });
        // Only where it says something: older versions of PEFT do not know the key.
        if self.tied_embedding().is_some() {
            json["ensure_weight_tying"] = json!(true);
        }
        json
    }
}

impl PeftAdapter {
    /// What was read may name its layers by an expression, by block or by
    /// exclusion; what is written names each.
    fn target_names(&self) -> Vec<String> {
        if self.rules.is_some() {
            self.layers.keys().cloned().collect()
        } else {
            self.config.targets.clone()
        }
    }
}

/// Whole numbers as integers: llama.cpp's converter and others expect
/// `"lora_alpha": 16`.
fn whole(number: f64) -> Value {
    if number.fract() == 0.0 {
        json!(number as i64)
    } else {
        json!(number)
    }
}
