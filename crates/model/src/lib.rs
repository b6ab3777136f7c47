//! A LLaMA-family decoder on [Burn](burn): read a Hugging Face checkpoint, run
//! it, generate from it, write it back.
//!
//! [`llama`] is the model, to be read from top to bottom; [`ModelConfig`] is
//! `config.json`; [`load`] and [`save`] are checkpoints; [`generate`] is
//! text. This crate knows no tokenizer, no data and no training loop, and
//! names no backend: the [`Device`](burn::tensor::Device) given to [`load`]
//! decides.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod activation;
mod cache;
mod checkpoint;
mod config;
mod error;
mod generate;
pub mod llama;
mod naming;
mod norm;
mod rope;

pub use activation::Activation;
pub use cache::KvCache;
pub use checkpoint::{
    SaveOptions, WeightType, config_bytes, load, sample_weights, save, save_gguf, weight_files,
    weights_fingerprint,
};
pub use config::{Family, ModelConfig, RopeScaling};
pub use error::ModelError;
pub use generate::{Sampling, generate};
pub use llama::{Llama, Positions};
pub use naming::Named;
pub use norm::{Norm, NormKind};
pub use rope::Rotation;
