//! Low-rank adapters for any [Burn](burn) module.
//!
//! Three verbs: [`attach`] freezes a module and puts trainable factors on its
//! linear layers, [`merge`] adds them into the weights, [`save_peft`] and
//! [`PeftAdapter`] exchange them with Hugging Face PEFT. The module's type
//! does not change; where it calls `linear.forward(x)` it may call
//! [`linear.project(x)`](Project), which computes `x·W + s·(x·A)·B` without
//! ever forming a weight-sized product.
//!
//! ```
//! use burn::{nn::LinearConfig, tensor::{Device, Tensor}};
//! use olora_adapter::{AdapterConfig, Project, attach};
//!
//! let device = Device::flex();
//! // Any module will do; here, one linear layer inside a tuple struct of one.
//! let model = vec![LinearConfig::new(32, 16).init(&device)];
//! let x = Tensor::<2>::ones([4, 32], &device);
//! let before = model[0].project(x.clone());
//!
//! let config = AdapterConfig { rank: 4, alpha: 4.0, ..AdapterConfig::default() };
//! let model = attach(model, &config, 42, &mut |_done, _all| {})?;
//! // OLoRA starts from nonzero factors, and still the first output is the base's.
//! assert_eq!(model[0].project(x).into_data(), before.into_data());
//! # Ok::<(), olora_adapter::AdapterError>(())
//! ```
//!
//! What a module holds, what of it trains and where adapters are is listed by
//! [`params`](fn@params) and printed by [`summary`](fn@summary).
//!
//! This crate knows no model, no tokenizer and no training loop, and names no
//! backend: the device that a module lives on decides. Layers that call
//! `Linear::forward` inside (as burn-nn's attention does) still compute the
//! right values, through the composed weight, only slower and without dropout.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

/// The examples of the read-me are compiled with those of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod attach;
mod config;
mod convert;
mod dora;
mod error;
mod eva;
mod factors;
mod gradient;
mod header;
pub mod init;
mod low_rank;
mod merge;
mod packed;
pub mod params;
mod peft;
mod planned;
mod project;
mod saved;
mod summary;
mod target;
mod watch;

pub use attach::{attach, attach_along, attach_along_gradient, attach_empty};
pub use config::{AdapterConfig, LayerShape, MAX_ITERATIONS, MAX_RANK, Method, Placement};
pub use convert::{Combination, Reduction, WEIGHTS, is_weight};
pub use dora::Dora;
pub use error::{AdapterError, in_short};
pub use eva::{Directions, Rows};
pub use factors::{LayerFactors, factors};
pub use gradient::{GradientDirections, ProbedLayer, Probes, is_probed, probed};
pub use header::{UniqueMap, check_header};
pub use low_rank::{Anchor, LowRank, to_dtype};
pub use merge::{MergedParameter, has_moved, merge, merged_params, switched_off, without_adapter};
pub use packed::{
    PackedBase, PackedWeight, hollow, packed_of, packed_weights, put_on, stored_weight, tied_weight,
};
pub use params::{
    MapParams, Parameter, Place, Role, VisitParams, map_params, params, visit_params,
};
pub use peft::{
    CONFIG_FILE, MLX_TENSOR_FILE, NamedTensor, PeftAdapter, PeftForm, PlainLayer, TENSOR_FILE,
    TaskType, WriteOptions, save_peft,
};
pub use planned::planned;
pub use project::{Embed, Project, has_dropout, is_adapted, project_each};
pub use saved::{is_saved_with, parameters_to_save};
pub use summary::{AdaptedLayer, AdapterSummary, summary};
pub use target::{ALL_LINEAR, Kind, Target, linear_layers, linear_paths, resolve};
