//! The recipe: everything that decides a run, in one TOML file.

mod adapter;
pub mod bounds;
mod checks;
mod data;
mod differences;
mod logging;
mod objective;
mod parse;
mod rate;
mod resize;
mod resuming;
mod tasks;

use std::{path::PathBuf, sync::Arc};

use olora_adapter::Placement;
use olora_data::DataOptions;
use olora_model::{Dtype, Packing};
use olora_training::{Decay, LearningRate, Objective, Recompute};
use serde::{Deserialize, Serialize};

pub use self::{
    adapter::{AdapterSection, Given, Trained},
    data::{DataSection, Located, Paths, Places, SourceSection},
    differences::differences,
    logging::{LoggingSection, MlflowSection, TensorBoard},
    objective::{Method as ObjectiveMethod, ObjectiveSection, PairLoss},
    rate::Rate,
    resize::ResizeEmbeddings,
    tasks::{BestBy, TasksSection},
};
pub(crate) use self::{
    differences::{Change, changes, flat},
    resuming::MAY_CHANGE,
};

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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A Hugging Face checkpoint directory or a GGUF file, relative to the working
    /// directory; on the command line also a name on the Hugging Face hub.
    pub path: PathBuf,
    /// What an adapter records as its base; the path if not given, and for a
    /// model that was named as on the hub, that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_name: Option<String>,
    /// The number format that the base is held in. If not given: float32 on the
    /// CPU and for a model of which every weight trains; on a GPU bfloat16 for
    /// a half-precision checkpoint, if the device computes in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// The number format of activations and matrix products; the base's own if
    /// not given. Factors, optimiser, norms, softmax and loss are float32
    /// whatever this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_dtype: Option<Dtype>,
    /// Whether a device without the number formats asked for may use float32
    /// in their place; if not, the run is refused.
    #[serde(default)]
    pub dtype_fallback: bool,
    /// In what few bits the base's matrices are held, which are then not
    /// [`dtype`](Self::dtype).
    #[serde(default, skip_serializing_if = "Packing::is_stored")]
    pub quantize: Packing,
    /// How many rows embedding and vocabulary projection get, for tokens that were
    /// added to the tokenizer; as many as the model has if not given.
    #[serde(default, skip_serializing_if = "ResizeEmbeddings::is_no")]
    pub resize_embeddings: ResizeEmbeddings,
    /// Whether weights come from the checkpoint or are drawn afresh.
    #[serde(default)]
    pub weights: Weights,
}

/// Where the base weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The highest learning rate, or `"auto"`.
    pub learning_rate: Rate,
    /// Where the schedule ends.
    pub min_learning_rate: f64,
    /// `LoRA+` (Hayou et al. 2024, arXiv 2402.12354): `B` learns at this many
    /// times the learning rate; 1 if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loraplus_ratio: Option<f64>,
    /// Steps of linear warm-up. If the run has no more than these, a tenth of
    /// the run's, so that the learning rate is reached.
    pub warmup_steps: usize,
    /// The decay after warm-up.
    pub schedule: Decay,
    /// Steps of decay at the end, with `schedule = "wsd"`; a fifth of the run's if
    /// not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<usize>,
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
    /// Training stops after so many evaluations without a better one; never if not
    /// given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// What an evaluation is better by, for `patience` and `output.keep = "best"`.
    #[serde(skip_serializing_if = "BestBy::is_loss")]
    pub best_by: BestBy,
    /// Steps between checkpoints; 0 writes only the last.
    pub checkpoint_every: usize,
    /// How many checkpoints to keep.
    pub keep_checkpoints: usize,
    /// Sequences are padded to a multiple of this length, so that a device that
    /// chooses kernels by shape sees few shapes. If not given: 1 on the CPU,
    /// 64 on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad_to_multiple_of: Option<usize>,
    /// What is computed again in the backward pass rather than kept.
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
    /// Those with the lowest validation loss, or the highest score on the task of
    /// `training.best_by`, of all evaluations after the first step. Samples are
    /// still of the last step.
    Best,
}

/// `[output]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSection {
    /// Runs are made in here, relative to the working directory.
    pub directory: PathBuf,
    /// Which weights are the result; see [`Recipe::keep`] for what it is if not
    /// given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// With `adapter.method = "none"`: the number format of the saved model;
    /// float32 if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
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
