//! The recipe: everything that decides a run, in one TOML file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use olora_adapter::{AdapterConfig, PeftForm};
use olora_data::Format;
use olora_model::WeightType;
use serde::{Deserialize, Serialize};

use crate::{LearningRate, TrainError};

/// A whole recipe. Unknown keys are refused; the run directory gets it back
/// with every default written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Names the run directory, `<output.directory>/<name>`.
    pub name: String,
    /// Seeds weights, factors, data order and dropout.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// `cpu`, `cuda`, `cuda:1`, `wgpu`, …; what is allowed depends on the build.
    #[serde(default = "default_device")]
    pub device: String,
    /// The base model.
    pub model: ModelSection,
    /// The adapter; left out when `training.mode` is `full`.
    #[serde(default)]
    pub adapter: Option<AdapterSection>,
    /// Training and validation data.
    pub data: DataSection,
    /// The loop.
    #[serde(default)]
    pub training: TrainingSection,
    /// Prompts answered before and after.
    #[serde(default)]
    pub samples: SamplesSection,
    /// Where results go.
    #[serde(default)]
    pub output: OutputSection,
}

fn default_seed() -> u64 {
    42
}

fn default_device() -> String {
    "cpu".to_owned()
}

/// `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A Hugging Face checkpoint directory, relative to the working directory.
    pub path: PathBuf,
    /// The number format that the base is held in.
    #[serde(default)]
    pub dtype: BaseType,
    /// Whether weights come from the checkpoint or are drawn afresh.
    #[serde(default)]
    pub weights: Weights,
}

/// The number format of the base weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseType {
    /// 32-bit.
    #[default]
    Float32,
    /// bfloat16.
    Bfloat16,
    /// IEEE half.
    Float16,
}

impl From<BaseType> for WeightType {
    fn from(dtype: BaseType) -> Self {
        match dtype {
            BaseType::Float32 => Self::F32,
            BaseType::Bfloat16 => Self::Bf16,
            BaseType::Float16 => Self::F16,
        }
    }
}

/// Where the base weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// Loaded from the directory.
    #[default]
    Checkpoint,
    /// Drawn at random; only `config.json` and the tokenizer are read.
    Random,
}

/// `[adapter]`: [`AdapterConfig`] and the form it is saved in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterSection {
    /// `lora` or `olora`.
    #[serde(default)]
    pub method: olora_adapter::Method,
    /// `anchored` or `residual`.
    #[serde(default)]
    pub placement: olora_adapter::Placement,
    /// The rank of the update.
    #[serde(default = "default_rank")]
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    #[serde(default = "default_alpha")]
    pub alpha: f64,
    /// Dropout on the adapter's input.
    #[serde(default)]
    pub dropout: f64,
    /// Names, paths, globs, or `all-linear`.
    #[serde(default = "default_targets")]
    pub targets: Vec<String>,
    /// Layers to leave out.
    #[serde(default = "default_exclude")]
    pub exclude: Vec<String>,
    /// `plain` or `olora`, as PEFT is to find it.
    #[serde(default)]
    pub form: PeftForm,
}

fn default_rank() -> usize {
    AdapterConfig::default().rank
}

fn default_alpha() -> f64 {
    AdapterConfig::default().alpha
}

fn default_targets() -> Vec<String> {
    AdapterConfig::default().targets
}

/// PEFT's `all-linear` leaves out the output embedding too.
fn default_exclude() -> Vec<String> {
    vec!["lm_head".to_owned()]
}

impl AdapterSection {
    /// The part that the adapter crate knows. An exclusion of `lm_head` falls
    /// away for models that have none (tied embeddings).
    pub fn config(&self, has_lm_head: bool) -> AdapterConfig {
        let exclude = self
            .exclude
            .iter()
            .filter(|name| has_lm_head || *name != "lm_head");
        AdapterConfig {
            method: self.method,
            placement: self.placement,
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            targets: self.targets.clone(),
            exclude: exclude.cloned().collect(),
        }
    }
}

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// JSONL, JSON or plain text, relative to the working directory.
    pub train: PathBuf,
    /// Data that the model is evaluated on and never trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// Without `validation`: the number of training samples to hold out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_samples: Option<usize>,
    /// The records' layout; detected from the keys if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Longest sequence in tokens; longer ones are cut at the end.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// Whether the loss covers the prompt too.
    #[serde(default)]
    pub train_on_prompt: bool,
}

fn default_max_length() -> usize {
    512
}

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The adapter alone.
    #[default]
    Adapter,
    /// Every weight of the model.
    Full,
}

/// The shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine down to `min_learning_rate`.
    #[default]
    Cosine,
    /// A straight line down to `min_learning_rate`.
    Linear,
    /// No decay.
    Constant,
}

/// The update rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    #[default]
    Adamw,
    /// Plain gradient descent.
    Sgd,
}

/// `[training]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingSection {
    /// `adapter` or `full`.
    pub mode: Mode,
    /// Optimiser steps; give this or `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<usize>,
    /// Passes over the data; 1 if neither is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Sequences per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step; the result is that of one large batch.
    pub accumulation: usize,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Where the schedule ends.
    pub min_learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// The decay after warm-up.
    pub schedule: Schedule,
    /// The update rule.
    pub optimizer: OptimizerKind,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Adam's first decay rate.
    pub beta1: f64,
    /// Adam's second decay rate.
    pub beta2: f64,
    /// Adam's denominator offset.
    pub epsilon: f64,
    /// Gradients are scaled down to this global norm; 0 leaves them alone.
    pub max_grad_norm: f64,
    /// Steps between logged lines.
    pub log_every: usize,
    /// Steps between evaluations; 0 evaluates only before and after.
    pub evaluate_every: usize,
    /// Steps between checkpoints; 0 writes only the last.
    pub checkpoint_every: usize,
    /// How many checkpoints to keep.
    pub keep_checkpoints: usize,
}

impl Default for TrainingSection {
    fn default() -> Self {
        Self {
            mode: Mode::Adapter,
            max_steps: None,
            epochs: None,
            batch_size: 4,
            accumulation: 1,
            learning_rate: 2e-4,
            min_learning_rate: 0.0,
            warmup_steps: 10,
            schedule: Schedule::Cosine,
            optimizer: OptimizerKind::Adamw,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            max_grad_norm: 1.0,
            log_every: 10,
            evaluate_every: 100,
            checkpoint_every: 100,
            keep_checkpoints: 2,
        }
    }
}

impl TrainingSection {
    /// The learning rate over a run of `total_steps`.
    pub fn learning_rate(&self, total_steps: usize) -> LearningRate {
        LearningRate {
            peak: self.learning_rate,
            min: self.min_learning_rate,
            warmup_steps: self.warmup_steps,
            total_steps,
            schedule: self.schedule,
        }
    }
}

/// `[samples]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplesSection {
    /// Texts to continue, or user messages if the checkpoint has a chat
    /// template.
    pub prompts: Vec<String>,
    /// Longest continuation.
    pub max_new_tokens: usize,
}

impl Default for SamplesSection {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            max_new_tokens: 48,
        }
    }
}

/// Which weights are the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Those of the last step.
    #[default]
    Last,
    /// Those with the lowest validation loss.
    Best,
}

/// `[output]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSection {
    /// Runs are made in here, relative to the working directory.
    pub directory: PathBuf,
    /// Which weights are the result.
    pub keep: Keep,
}

impl Default for OutputSection {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("runs"),
            keep: Keep::Last,
        }
    }
}

impl Recipe {
    /// Reads a recipe and applies `key=value` overrides to it.
    ///
    /// A key is dotted (`training.learning_rate`), a value is TOML; one that
    /// is not valid TOML is taken as a string, so `name=second` works.
    ///
    /// # Errors
    ///
    /// [`TrainError::Recipe`] names the file or override, the key, and what
    /// was expected.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, TrainError> {
        let text =
            fs::read_to_string(path).map_err(|source| TrainError::io("reading", path, source))?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// As [`load`](Self::load), from text; `origin` is what errors call it.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self, TrainError> {
        let refuse = |recipe: &str, reason: String| TrainError::Recipe {
            recipe: recipe.to_owned(),
            reason,
        };
        // Deserialised from the text itself first, for errors with line numbers.
        let mut table: toml::Table =
            toml::from_str(text).map_err(|error| refuse(origin, error.to_string()))?;
        if overrides.is_empty() {
            let recipe: Self =
                toml::from_str(text).map_err(|error| refuse(origin, error.to_string()))?;
            recipe.validate(origin)?;
            return Ok(recipe);
        }
        for setting in overrides {
            let origin = format!("--set {setting}");
            let (key, value) = setting.split_once('=').ok_or_else(|| {
                refuse(
                    &origin,
                    "expected key=value, such as training.max_steps=50".to_owned(),
                )
            })?;
            set(&mut table, key.trim(), value.trim()).map_err(|reason| refuse(&origin, reason))?;
        }
        let origin = format!(
            "{origin} with {}",
            overrides
                .iter()
                .map(|s| format!("--set {s}"))
                .collect::<Vec<_>>()
                .join(" ")
        );
        let recipe: Self = table
            .try_into()
            .map_err(|error: toml::de::Error| refuse(&origin, error.to_string()))?;
        recipe.validate(&origin)?;
        Ok(recipe)
    }

    /// The recipe as TOML, with every default written out.
    ///
    /// # Errors
    ///
    /// [`TrainError::Recipe`] if a value has no TOML form, such as a seed
    /// above 2⁶³.
    pub fn to_toml(&self) -> Result<String, TrainError> {
        toml::to_string_pretty(self).map_err(|error| TrainError::Recipe {
            recipe: self.name.clone(),
            reason: error.to_string(),
        })
    }

    /// `<output.directory>/<name>`.
    pub fn run_directory(&self) -> PathBuf {
        self.output.directory.join(&self.name)
    }

    fn validate(&self, origin: &str) -> Result<(), TrainError> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        let training = &self.training;
        check(
            !self.name.is_empty()
                && !self.name.contains(['/', '\\'])
                && self.name != "."
                && self.name != "..",
            "`name` must be a directory name",
        );
        check(
            training.max_steps.is_none() || training.epochs.is_none(),
            "give `training.max_steps` or `training.epochs`, not both",
        );
        check(
            training.max_steps != Some(0),
            "`training.max_steps` must be at least 1",
        );
        check(
            training
                .epochs
                .is_none_or(|epochs| epochs.is_finite() && epochs > 0.0),
            "`training.epochs` must be above 0",
        );
        check(
            training.batch_size > 0,
            "`training.batch_size` must be at least 1",
        );
        check(
            training.accumulation > 0,
            "`training.accumulation` must be at least 1",
        );
        check(
            training.log_every > 0,
            "`training.log_every` must be at least 1",
        );
        check(
            training.keep_checkpoints > 0,
            "`training.keep_checkpoints` must be at least 1",
        );
        check(
            training.learning_rate.is_finite() && training.learning_rate > 0.0,
            "`training.learning_rate` must be above 0",
        );
        check(
            (0.0..=training.learning_rate).contains(&training.min_learning_rate),
            "`training.min_learning_rate` must be between 0 and `training.learning_rate`",
        );
        check(
            training.weight_decay >= 0.0,
            "`training.weight_decay` must not be negative",
        );
        check(
            training.max_grad_norm >= 0.0,
            "`training.max_grad_norm` must not be negative",
        );
        check(
            (0.0..1.0).contains(&training.beta1) && (0.0..1.0).contains(&training.beta2),
            "`training.beta1` and `training.beta2` must be at least 0 and below 1",
        );
        check(
            training.optimizer == OptimizerKind::Adamw || training.weight_decay == 0.0,
            "`training.weight_decay` has no use with `optimizer = \"sgd\"`: remove it",
        );
        check(
            self.data.max_length >= 2,
            "`data.max_length` must be at least 2",
        );
        check(
            self.data.validation.is_none() || self.data.validation_samples.is_none(),
            "give `data.validation` or `data.validation_samples`, not both",
        );
        let has_validation =
            self.data.validation.is_some() || self.data.validation_samples.is_some();
        check(
            self.output.keep == Keep::Last || has_validation,
            "`output.keep = \"best\"` needs validation data: set `data.validation` or `data.validation_samples`",
        );
        match (training.mode, &self.adapter) {
            (Mode::Adapter, None) => check(
                false,
                "the table `[adapter]` is missing (or set `training.mode = \"full\"`)",
            ),
            (Mode::Full, Some(_)) => check(
                false,
                "`[adapter]` has no use with `training.mode = \"full\"`: remove one",
            ),
            _ => {}
        }
        check(
            training.mode == Mode::Full || self.model.weights == Weights::Checkpoint,
            "`model.weights = \"random\"` with an adapter would train an adapter on noise: set `training.mode = \"full\"`",
        );
        check(
            training.mode == Mode::Adapter || self.model.dtype == BaseType::Float32,
            "`training.mode = \"full\"` needs `model.dtype = \"float32\"`: small updates vanish in half precision",
        );
        if let Some(adapter) = &self.adapter
            && let Err(error) = adapter.config(true).validate()
        {
            problems.push(format!("[adapter]: {error}"));
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(TrainError::Recipe {
            recipe: origin.to_owned(),
            reason: problems.join("; "),
        })
    }
}

/// Sets a dotted key, making tables on the way.
fn set(table: &mut toml::Table, key: &str, value: &str) -> Result<(), String> {
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut names: Vec<&str> = key.split('.').collect();
    let last = names
        .pop()
        .filter(|name| !name.is_empty())
        .ok_or("the key is empty")?;
    let mut inner = table;
    for name in names {
        let entry = inner
            .entry(name)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        inner = entry
            .as_table_mut()
            .ok_or_else(|| format!("`{name}` is not a table"))?;
    }
    // Where the recipe has a string, `name=7` means "7".
    let expects_text = inner.get(last).is_some_and(toml::Value::is_str) && !parsed.is_str();
    let parsed = if expects_text {
        toml::Value::String(value.to_owned())
    } else {
        parsed
    };
    inner.insert(last.to_owned(), parsed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        name = "run"
        [model]
        path = "base"
        [adapter]
        [data]
        train = "train.jsonl"
    "#;

    fn error(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<_> = overrides.iter().map(|s| (*s).to_owned()).collect();
        Recipe::parse(text, "recipe.toml", &overrides)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn defaults_are_written_back_and_read_again() {
        let recipe = Recipe::parse(MINIMAL, "recipe.toml", &[]).unwrap();
        let text = recipe.to_toml().unwrap();
        assert!(
            text.contains("learning_rate = 0.0002") && text.contains("method = \"olora\""),
            "{text}"
        );
        assert_eq!(Recipe::parse(&text, "resolved", &[]).unwrap(), recipe);
    }

    #[test]
    fn overrides_take_toml_values_and_bare_strings() {
        let overrides = [
            "training.max_steps=7",
            "name=second",
            "adapter.targets=[\"q_proj\"]",
            "adapter.method=lora",
        ];
        let recipe = Recipe::parse(MINIMAL, "recipe.toml", &overrides.map(str::to_owned)).unwrap();
        assert_eq!(recipe.training.max_steps, Some(7));
        assert_eq!(recipe.name, "second");
        let adapter = recipe.adapter.unwrap();
        assert_eq!(adapter.targets, ["q_proj"]);
        assert_eq!(adapter.method, olora_adapter::Method::Lora);
        let numbered = Recipe::parse(MINIMAL, "recipe.toml", &["name=7".to_owned()]).unwrap();
        assert_eq!(numbered.name, "7");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let text = format!("{MINIMAL}\n[training]\nlearnig_rate = 1.0\n");
        let message = error(&text, &[]);
        assert!(
            message.contains("learnig_rate") && message.contains("line"),
            "{message}"
        );
        let message = error(MINIMAL, &["training.learnig_rate=1"]);
        assert!(message.contains("learnig_rate"), "{message}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let cases = [
            (["training.max_steps=1", "training.epochs=1"], "not both"),
            (["training.mode=full", "name=x"], "has no use"),
            (["adapter.rank=0", "name=x"], "rank"),
            (
                ["adapter.method=lora", "adapter.placement=residual"],
                "placement",
            ),
            (["output.keep=best", "name=x"], "validation"),
            (["model.weights=random", "name=x"], "noise"),
            (["name=a/b", "seed=1"], "`name`"),
            (
                ["training.optimizer=sgd", "training.weight_decay=0.1"],
                "weight_decay",
            ),
        ];
        for (overrides, expected) in cases {
            let message = error(MINIMAL, &overrides);
            assert!(message.contains(expected), "{overrides:?}: {message}");
        }
    }
}
