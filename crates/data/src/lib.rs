//! Text files to tokens to batches, for fine-tuning language models with
//! [Burn](burn).
//!
//! - [`Tokenizer`] loads a checkpoint's tokenizer, special tokens and chat
//!   template.
//! - [`load_samples`] reads JSON, JSONL or plain text, tells the [`Format`] from
//!   the keys, and gives [`Sample`]s: tokens, and by position which of them the
//!   loss is taken on. The prompt is masked and the end-of-sequence is trained
//!   unless asked otherwise; [`describe_sample`] shows the outcome.
//! - [`Schedule`] is the order of a whole run as a pure function of its seed: a
//!   Burn `Dataset` whose item `i` is micro-batch `i`. [`loader`] turns it into
//!   a Burn `DataLoader` of [`Batch`]es, and resuming at `k` is a `slice`.
//!
//! ```no_run
//! use olora_data::{DataOptions, Schedule, Tokenizer, load_samples, loader};
//!
//! let tokenizer = Tokenizer::from_dir("SmolLM2-135M-Instruct".as_ref())?;
//! let data = load_samples("train.jsonl".as_ref(), &tokenizer, &DataOptions::default())?;
//! println!("{}", data.report);
//! let schedule = Schedule::new(data.samples, 8, 42, 1_000)?;
//! for batch in loader(schedule, tokenizer.pad_id()).iter() {
//!     let batch = batch?;
//!     println!("{} rows of {}", batch.n_rows, batch.seq_len);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This crate knows no model and makes no tensors: batches are host vectors. It
//! reads a file into memory whole and downloads nothing.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod batch;
mod cache;
mod chat;
mod clock;
mod error;
mod format;
mod load;
mod pack;
mod read;
mod report;
mod sample;
mod schedule;
mod tokenizer;

pub use batch::{Batch, BatchCollator, Padding};
pub use cache::{MIN_CACHED_BYTES, TokenCache};
pub use chat::Message;
pub use error::{DataError, Location};
pub use format::{Format, alpaca_prompt};
pub use load::{DEFAULT_MAX_LENGTH, DataOptions, Samples, load_samples, load_samples_cached};
pub use pack::pack;
pub use report::{DataReport, PromptStyle};
pub use sample::{Sample, ValidationSplit, describe_sample, split};
pub use schedule::{MicroBatch, Schedule, loader};
pub use tokenizer::{DecodeStream, Tokenizer};
