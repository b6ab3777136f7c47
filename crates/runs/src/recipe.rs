//! The recipe: everything that decides a run, in one TOML file.

mod adapter;
pub mod bounds;
mod checks;
mod data;
mod differences;
mod logging;
mod objective;
mod parse;
mod paths;
mod rate;
mod resize;
mod resuming;
mod schema;
mod tasks;
mod unknown;

use std::{path::PathBuf, sync::Arc};

use olora_adapter::Placement;
use olora_data::DataOptions;
use olora_model::{Dtype, Packing};
use olora_training::{Decay, LearningRate, Objective, Recompute};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    adapter::{AdapterSection, Given, Trained},
    data::{DataSection, Located, Paths, Places, SourceSection},
    differences::differences,
    logging::{LoggingSection, MlflowSection, TensorBoard},
    objective::{Method as ObjectiveMethod, ObjectiveSection, PairLoss},
    paths::written_beside,
    rate::Rate,
    resize::ResizeEmbeddings,
    schema::{schema, tables},
    tasks::{BestBy, TasksSection},
};
pub(crate) use self::{
    differences::{Change, changes, flat},
    resuming::MAY_CHANGE,
};

/// A whole recipe. Unknown keys are refused; the run directory gets it back
/// with every default written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run, a directory name: at most 200 bytes, no `/`, `\`, line breaks or other
    /// control characters. Its directory is `<output.directory>/<name>`.
    #[schemars(length(min = 1, max = bounds::MAX_NAME), regex(pattern = r"^[^/\\\x00-\x1f\x7f]*$"))]
    pub name: String,
    /// Seeds random weights, the factors' start, the order of the data and dropout.
    #[serde(default = "default_seed")]
    #[schemars(range(min = 0, max = bounds::MAX_SEED))]
    pub seed: u64,
    /// `cpu`, `cuda`, `cuda:1`, `wgpu`, `vulkan`, `metal`, `rocm`. Which of them work depends on
    /// the build.
    #[serde(default = "default_device")]
    #[schemars(extend("x-see" = "devices.md"))]
    pub device: String,
    /// The base model.
    pub model: ModelSection,
    /// What trains.
    #[serde(default)]
    pub adapter: AdapterSection,
    /// What is minimised.
    #[serde(default, skip_serializing_if = "ObjectiveSection::is_default")]
    pub objective: ObjectiveSection,
    /// Training and validation data.
    pub data: DataSection,
    /// The loop.
    #[serde(default)]
    pub training: TrainingSection,
    /// What the run is scored on at each evaluation.
    #[serde(default, skip_serializing_if = "TasksSection::is_default")]
    pub tasks: TasksSection,
    /// Prompts answered before and after.
    #[serde(default)]
    pub samples: SamplesSection,
    /// Where results go.
    #[serde(default)]
    pub output: OutputSection,
    /// Programs that show the run.
    #[serde(default, skip_serializing_if = "LoggingSection::is_default")]
    pub logging: LoggingSection,
}

impl Recipe {
    /// What becomes of the base's matrices: where every weight trains, or is
    /// rewritten for a residual adapter, they are unpacked whatever the file has
    /// them in.
    pub fn packing(&self) -> Packing {
        let rewrites = self.adapter.config.placement == Placement::Residual;
        if self.adapter.everything || rewrites {
            Packing::None
        } else {
            self.model.quantize
        }
    }

    /// Which weights are the result: those of the last step, or, if training stops
    /// early, the best.
    pub fn keep(&self) -> Keep {
        self.output.keep.unwrap_or(match self.training.patience {
            None => Keep::Last,
            Some(_) => Keep::Best,
        })
    }

    /// What is minimised.
    pub fn objective(&self) -> Arc<dyn Objective> {
        let multiple = self.training.pad_to_multiple_of.unwrap_or(1);
        self.objective.objective(self.data.max_length, multiple)
    }

    /// How a source is read, or validation data without one.
    pub fn data_options(&self, source: Option<&SourceSection>) -> DataOptions {
        let options = self.data.options(source);
        let answers = self.objective.answers();
        // ORPO takes the cross-entropy of the chosen answer with its prompt.
        let of_prompts = self.objective.method == ObjectiveMethod::Orpo;
        DataOptions {
            answers,
            train_on_prompt: options.train_on_prompt || of_prompts,
            ..options
        }
    }
}

fn default_seed() -> u64 {
    42
}

fn default_device() -> String {
    "cpu".to_owned()
}

/// `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A Hugging Face checkpoint directory or a GGUF file. On the command line also a name on the
    /// Hugging Face hub.
    #[schemars(extend("x-see" = "models.md"))]
    pub path: PathBuf,
    /// What the adapter records as its base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "`path`, or the hub name"))]
    pub base_name: Option<String>,
    /// Number format that the base weights are held in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::dtype", extend("x-default" = "see below"))]
    pub dtype: Option<Dtype>,
    /// Number format of activations and matrix products; on the CPU `bfloat16` is that of products
    /// alone, and the base is held in it. Factors, optimiser state, norms, softmax and loss are
    /// float32 in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::dtype", extend("x-default" = "`model.dtype`"), extend("x-see" = "devices.md#precision"))]
    pub compute_dtype: Option<Dtype>,
    /// If the device lacks a number format asked for: use float32 (`true`) or stop with an error
    /// (`false`).
    #[serde(default)]
    pub dtype_fallback: bool,
    /// What the base's matrices are held in: as the files have them, all unpacked, or packed as
    /// they are read.
    #[serde(default, skip_serializing_if = "Packing::is_stored")]
    #[schemars(schema_with = "schema::packing", extend("x-see" = "models.md#packed-weights"), extend("default" = "stored"))]
    pub quantize: Packing,
    /// Adds rows to embedding and `lm_head` for tokens that were added to the tokenizer: as many as
    /// it has tokens, at least so many, or up to a multiple. The new rows start as in transformers
    /// and train.
    #[serde(default, skip_serializing_if = "ResizeEmbeddings::is_no")]
    #[schemars(schema_with = "schema::resize_embeddings", extend("x-see" = "models.md#tokens-that-were-added"), extend("default" = false))]
    pub resize_embeddings: ResizeEmbeddings,
    /// `checkpoint` loads the weights. `random` draws them at random and reads only `config.json`
    /// and the tokenizer; it needs `adapter.method = "none"`. `timing` is `random` with an adapter
    /// allowed, for measuring speed and memory: nothing useful is learned.
    #[serde(default)]
    pub weights: Weights,
}

/// Where the base weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// Loaded from the checkpoint.
    #[default]
    Checkpoint,
    /// Drawn at random; only `config.json` and the tokenizer are read.
    Random,
    /// Drawn at random, for measuring speed and memory: an adapter may be
    /// trained on them, which teaches it nothing.
    Timing,
}

/// The update rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    #[default]
    Adamw,
    /// Plain gradient descent.
    Sgd,
}

/// `[training]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingSection {
    /// Length of the run in optimiser steps. Give this or `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = bounds::MAX_STEPS))]
    pub max_steps: Option<usize>,
    /// Length of the run in passes over the data, if `max_steps` is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = bounds::MAX_EPOCHS), extend("exclusiveMinimum" = 0), extend("x-default" = "1"))]
    pub epochs: Option<f64>,
    /// Sequences (rows, with `packing`; pairs, with an objective of pairs) per micro-batch. At
    /// least 2 with `kto`.
    #[schemars(range(min = 1, max = bounds::MAX_BATCH_SIZE))]
    pub batch_size: usize,
    /// Micro-batches per step. The result is that of one large batch: loss and gradients are summed
    /// over trained tokens and divided once. Several processes share them out, so it counts those
    /// of all.
    #[schemars(range(min = 1, max = bounds::MAX_ACCUMULATION), extend("x-see" = "parallel.md"))]
    pub accumulation: usize,
    /// The highest learning rate. `"auto"` finds one for method, rank, data and batch before the
    /// first step; not with `optimizer = "sgd"`, `adapter.method = "none"` or several processes.
    #[schemars(schema_with = "schema::rate", extend("x-see" = "methods.md#the-learning-rate"))]
    pub learning_rate: Rate,
    /// Learning rate at the last step. Not with `schedule = "constant"`, nor with `learning_rate =
    /// "auto"`.
    pub min_learning_rate: f64,
    /// LoRA+ (arXiv 2402.12354): `B` learns at this many times the learning rate. Not with
    /// `adapter.method = "none"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0), extend("x-default" = "1"))]
    pub loraplus_ratio: Option<f64>,
    /// Steps of linear warm-up. If the run has no more steps than these, a tenth of the run
    /// (rounded up) is taken instead, so that `learning_rate` is reached; a note says so.
    #[schemars(range(max = bounds::MAX_STEPS))]
    pub warmup_steps: usize,
    /// Learning-rate decay after warm-up. `wsd` (warm-up, stable, decay) stays at the highest rate
    /// and goes down in a straight line over the last `decay_steps`.
    #[schemars(schema_with = "schema::decay")]
    pub schedule: Decay,
    /// With `wsd` only: steps of decay at the end of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = bounds::MAX_STEPS), extend("x-default" = "a fifth of the run"))]
    pub decay_steps: Option<usize>,
    /// AdamW, or plain gradient descent. `weight_decay`, `beta1`, `beta2` and `epsilon` are for
    /// AdamW only.
    pub optimizer: OptimizerKind,
    /// Decoupled weight decay. Its product with `learning_rate`, the share of each weight that a
    /// step takes away, must be below 1.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Adam's first decay rate.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub beta1: f64,
    /// Adam's second decay rate.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub beta2: f64,
    /// Adam's denominator offset.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub epsilon: f64,
    /// Gradients are clipped to this global norm. 0 does not clip.
    #[schemars(range(min = 0.0))]
    pub max_grad_norm: f64,
    /// Steps between logged lines.
    #[schemars(range(min = 1, max = bounds::MAX_STEPS))]
    pub log_every: usize,
    /// Steps between evaluations. 0 evaluates only before and after.
    #[schemars(range(max = bounds::MAX_STEPS))]
    pub evaluate_every: usize,
    /// Training stops after so many evaluations without a better one than the best so far. Needs
    /// validation data and `evaluate_every`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = bounds::MAX_STEPS), extend("x-default" = "never"))]
    pub patience: Option<usize>,
    /// What an evaluation is better by, for `patience` and `output.keep = "best"`: a lower
    /// validation loss, or a higher score on the task.
    #[serde(skip_serializing_if = "BestBy::is_loss")]
    #[schemars(schema_with = "schema::best_by", extend("default" = "loss"))]
    pub best_by: BestBy,
    /// Steps between checkpoints. 0 writes only the last.
    #[schemars(range(max = bounds::MAX_STEPS))]
    pub checkpoint_every: usize,
    /// How many checkpoints are kept.
    #[schemars(range(min = 1, max = bounds::MAX_STEPS))]
    pub keep_checkpoints: usize,
    /// Sequences are padded to a multiple of this length, so that a GPU sees few shapes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = bounds::MAX_PADDING), extend("x-default" = "1 on the CPU, 64 on a GPU"))]
    pub pad_to_multiple_of: Option<usize>,
    /// `blocks` keeps only each block's input and computes the block again in the backward pass:
    /// less memory, a third more work, the same gradients.
    #[schemars(schema_with = "schema::recompute")]
    pub recompute: Recompute,
}

impl Default for TrainingSection {
    fn default() -> Self {
        Self {
            max_steps: None,
            epochs: None,
            batch_size: 4,
            accumulation: 1,
            learning_rate: Rate::Value(2e-4),
            min_learning_rate: 0.0,
            loraplus_ratio: None,
            warmup_steps: 10,
            schedule: Decay::Cosine,
            decay_steps: None,
            optimizer: OptimizerKind::Adamw,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            max_grad_norm: 1.0,
            log_every: 10,
            evaluate_every: 100,
            patience: None,
            best_by: BestBy::Loss,
            checkpoint_every: 100,
            keep_checkpoints: 2,
            pad_to_multiple_of: None,
            recompute: Recompute::None,
        }
    }
}

impl TrainingSection {
    /// The learning rate over a run of `total_steps`.
    pub fn learning_rate(&self, total_steps: usize) -> LearningRate {
        LearningRate {
            peak: self.learning_rate.or_usual(),
            min: self.min_learning_rate,
            warmup_steps: self.warmup(total_steps),
            total_steps,
            decay: self.schedule,
            decay_steps: self.decay(total_steps),
        }
    }

    /// Steps of decay at the end of a run of `total_steps`, with `schedule = "wsd"`.
    pub fn decay(&self, total_steps: usize) -> usize {
        self.decay_steps.unwrap_or(total_steps.div_ceil(5))
    }

    /// Steps of warm-up in a run of `total_steps`: those asked for, if the run
    /// goes on after them, and a tenth of it otherwise.
    pub fn warmup(&self, total_steps: usize) -> usize {
        if self.warmup_steps < total_steps || self.warmup_steps <= 1 {
            self.warmup_steps
        } else {
            total_steps.div_ceil(10)
        }
    }
}

/// `[samples]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SamplesSection {
    /// Prompts that are answered before and after training. User messages if the checkpoint has a
    /// chat template, texts to continue otherwise.
    pub prompts: Vec<String>,
    /// Longest answer.
    #[schemars(range(max = bounds::MAX_NEW_TOKENS))]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Those of the last step.
    #[default]
    Last,
    /// Those with the lowest validation loss, or the highest score on the task of
    /// `training.best_by`, of all evaluations after the first step. Samples are
    /// still of the last step.
    Best,
}

/// `[output]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSection {
    /// Run directories are made in here.
    #[schemars(extend("x-type" = "path"))]
    pub directory: PathBuf,
    /// Which weights are the result: those of the last step, or those with the lowest validation
    /// loss (or what `training.best_by` says) of all evaluations after the first step. Samples are
    /// of the last step either way. `best` needs validation data.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "`\"last\"`; with `patience` `\"best\"`"))]
    pub keep: Option<Keep>,
    /// Only with `adapter.method = "none"`: number format of the saved model. Adapters are saved in
    /// float32.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::dtype", extend("x-default" = "float32"))]
    pub dtype: Option<Dtype>,
}

impl Default for OutputSection {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("runs"),
            keep: None,
            dtype: None,
        }
    }
}
