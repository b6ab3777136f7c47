//! Training: a [`Recipe`] goes in, a run directory comes out.
//!
//! [`train`] does all of it through Burn's `Learner`, with a loop of steps in
//! the place of its loop of epochs. [`evaluate`] is the loss over held-out
//! data. Whoever calls gets [`Event`]s; this crate prints nothing and chooses no
//! backend, though it knows how they fail and log.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod card;
mod checkpoint;
mod compare;
mod doctor;
mod error;
mod estimate;
mod evaluate;
mod failure;
#[cfg(test)]
mod golden_tests;
mod gradients;
mod learning_rate;
mod memory;
mod observer;
mod panics;
mod passes;
mod plan;
mod plot;
mod precision;
mod prepare;
mod quiet;
pub mod recipe;
mod run;
mod run_data;
mod run_directory;
mod run_log;
mod sampler;
mod strategy;
mod summary;
mod trainee;

pub use compare::{CompareOptions, Comparison, Report, Variant};
pub use doctor::{Case, Doctor, Finding, LENGTHS, Verdict};
pub use error::TrainError;
pub use estimate::{MemoryEstimate, size};
pub use evaluate::{Evaluation, evaluate};
pub use failure::on_device;
pub use gradients::normalise as clip_gradients;
pub use learning_rate::LearningRate;
pub use memory::{device_reserved_bytes, peak_resident_bytes};
pub use observer::{Event, Observer, Plan, StepReport};
pub use panics::{caught, listening, record_panics};
pub use passes::{loss_and_gradients, loss_sum};
pub use plan::{Forecast, Probe, plan};
pub use precision::{Precision, choose_dtype, padding_multiple};
pub use recipe::Recipe;
pub use run::{DeviceTraits, TrainOptions, train};
pub use run_data::check_samples;
pub use sampler::{encode_prompt, stop_ids};
pub use summary::Summary;

/// The CPU backend has one random generator per process: tests that make random
/// weights share it, a test that needs its numbers in order has it alone.
#[cfg(test)]
static GENERATOR: std::sync::RwLock<()> = std::sync::RwLock::new(());
