//! A LLaMA-family decoder on [Burn](burn): read a Hugging Face checkpoint, run
//! it, generate from it, write it back.
//!
//! [`llama`] is the model, to be read from top to bottom; [`ModelConfig`] is
//! `config.json`; [`load`] and [`save`] are checkpoints; [`generate`] is
//! text. What one family of models has otherwise than LLaMA, its file in
//! `families/` says: [`Family`]. This crate knows no tokenizer, no data and no training loop, and
//! names no backend: the [`Device`](burn::tensor::Device) given to [`load`]
//! decides.
//!
//! A model with random weights, and what it makes of three tokens:
//!
//! ```
//! use std::{ops::ControlFlow, path::Path};
//!
//! use burn::tensor::Device;
//! use olora_model::{ModelConfig, Sampling, generate};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let json = serde_json::from_str(
//!     r#"{"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
//!         "num_hidden_layers": 2, "num_attention_heads": 2}"#,
//! )?;
//! let config = ModelConfig::from_json(json, Path::new("config.json"))?;
//! let model = config.init(&Device::flex());
//! let greedy = Sampling::default();
//! let tokens = generate(&model, &[1, 2, 3], 5, &greedy, &[], |_| ControlFlow::Continue(()))?;
//! assert_eq!(tokens.len(), 5);
//! # Ok(())
//! # }
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod activation;
mod adapt;
mod attention;
mod cache;
mod checkpoint;
mod config;
mod continuation;
mod error;
mod families;
mod feed_forward;
mod finite;
mod generate;
pub mod llama;
mod naming;
mod norm;
mod quantize;
mod resize;
mod rope;
mod sampling;

pub use activation::Activation;
pub use adapt::adapted_vocabulary;
pub use attention::{Apart, Attention, Fused, Projections};
pub use cache::KvCache;
pub use checkpoint::{
    Companions, Layout, PackedMatrix, SaveOptions, StoredModel, config_bytes, drawn_matrices,
    hold_in_bf16, load, load_as, packed_matrices, sample_weights, save, save_gguf, save_gguf_with,
    weight_files, weights_fingerprint,
};
pub use config::{Experts, ModelConfig, NormOrder, QkNorm};
pub use continuation::{Continuation, next_logits_of_all};
pub use error::ModelError;
pub use families::Family;
pub use feed_forward::{Alone, Expert, FeedForward, FusedMlp, Mixture, Mlp, Plain};
pub use finite::{NotFinite, first_not_finite};
pub use generate::generate;
pub use llama::{Llama, Positions};
pub use naming::Named;
pub use norm::{Norm, NormKind};
pub use olora_operations::{Dtype, Products, is_host};
pub use quantize::{Dense, Matrices, Packing, Quantize, UnknownQuantize};
pub use resize::NewRows;
pub use rope::{Rope, RopeScaling, Rotation};
pub use sampling::Sampling;
