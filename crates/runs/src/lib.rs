//! Runs: a [`Recipe`] goes in, a run directory comes out.
//!
//! [`train`] does all of it, one stage after another, through Burn's `Learner`
//! with a loop of steps in the place of its loop of epochs; [`plan`] says
//! beforehand what it would take. Whoever calls gets [`Event`]s; this crate
//! prints nothing and chooses no backend.
//!
//! ```no_run
//! use std::{path::Path, sync::Arc};
//!
//! use burn::tensor::Device;
//! use olora_runs::{Event, Observer, Recipe, TrainOptions, train};
//!
//! struct Quiet;
//! impl Observer for Quiet {
//!     fn on(&self, _event: &Event) {}
//! }
//!
//! let overrides = ["training.max_steps=10".to_owned()];
//! let recipe = Recipe::load(Path::new("recipes/quickstart.toml"), &overrides)?;
//! let observer: Arc<dyn Observer> = Arc::new(Quiet);
//! let summary = train(&recipe, &Device::flex(), TrainOptions::default(), &observer)?;
//! assert!(summary.result.join("adapter_model.safetensors").exists());
//! # Ok::<(), olora_runs::RunError>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod attach;
mod base;
mod by_steps;
mod card;
mod checkpoint;
mod claim;
mod counts;
mod epochs;
mod error;
mod estimate;
mod events;
mod failure;
mod find_rate;
mod finished;
#[cfg(test)]
mod golden_tests;
mod judge;
mod learner;
mod logging;
mod measures;
mod memory;
mod options;
mod pace;
#[cfg(test)]
mod packed_golden_tests;
mod plan;
mod plot;
mod precision;
mod prepare;
mod quiet;
mod rank_times;
mod ranks;
pub mod recipe;
mod resize;
mod run;
mod run_data;
mod run_directory;
mod run_log;
mod run_plan;
mod sampler;
mod save;
mod session;
mod shown;
mod stages;
mod start_from;
mod state;
mod state_file;
mod step_work;
mod steps;
mod strategy;
mod summary;
mod trained_run;
mod trainee;
mod unread;

pub use base::load_base;
pub use checkpoint::has_checkpoint;
pub use error::RunError;
pub use estimate::MemoryEstimate;
pub use events::{Event, Observer, Progress, RanksReport, StepReport};
pub use finished::is_finished;
pub use measures::in_words;
pub use memory::{device_reserved_bytes, forget_peak, peak_resident_bytes};
pub use options::{Start, TrainOptions};
pub use pace::in_time;
pub use plan::{Forecast, Probe, plan, plan_share};
pub use precision::{Precision, choose_dtype};
pub use ranks::Ranks;
pub use recipe::{DataSection, Located, Paths, Places, Recipe, SourceSection, differences};
pub use run::train;
pub use run_data::{Data, DataRead, check_ends, check_samples, fingerprint};
pub use run_directory::whole;
pub use run_plan::RunPlan;
pub use summary::Summary;
pub use trained_run::TrainedRun;
