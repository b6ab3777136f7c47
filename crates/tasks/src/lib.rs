//! Multiple-choice tasks and GSM8K, as `EleutherAI`'s lm-evaluation-harness
//! 0.4.13 defines them: prompts, tokens, scores and standard errors.
//!
//! [`load`] reads the files of tasks, [`score`] puts a model to them. A choice's
//! score is the sum of the log-probabilities of its tokens after the prompt;
//! what the choices of an item have in common is run once, and each continues
//! it ([`TaskOptions::share_prefix`]). All of it is zero-shot.
//!
//! What the harness reports, and these too: `acc`, the largest sum wins;
//! `acc_norm`, the largest sum per character of the choice wins, where the
//! harness has it for the task. `acc_bytes` is `acc_norm` per byte instead,
//! another metric of the harness, which differs where choices are not ASCII.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod encode;
mod error;
mod files;
mod finite;
mod generation;
mod item;
mod layout;
mod name;
mod number;
mod output;
mod python;
mod result;
mod score;
mod share;
mod spread;

pub use error::TaskError;
pub use files::load;
pub use item::{Items, MultipleChoice, OpenQuestion, Task};
pub use name::TaskName;
pub use output::{files_of, write_items};
pub use result::{ChoiceResult, GenerationResult, ItemResults, Score, TaskResult};
pub use score::{TaskOptions, TaskProgress, score, score_together};

/// The harness whose definitions these are.
pub const DEFINITION: &str = "lm-evaluation-harness 0.4.13, zero-shot";
