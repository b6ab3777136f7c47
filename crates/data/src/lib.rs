//! Text files to tokens to batches, for fine-tuning language models with
//! [Burn](burn).
//!
//! - [`Tokenizer`] loads a checkpoint's tokenizer, special tokens and chat
//!   template.
//! - [`load_samples`] reads JSON, CSV, Parquet or text, tells the [`Format`] from
//!   the keys, and gives a [`Corpus`] of [`Sample`]s: tokens, and by position
//!   which of them the loss is taken on. The prompt is masked and the end-of-sequence is trained
//!   unless asked otherwise; [`describe_sample`] shows the outcome.
//! - [`load_files`] does so with several files, which may be larger than memory,
//!   and a [`Mixture`] takes several sources together, each with a weight.
//! - [`Schedule`] is the order of a whole run as a pure function of its seed: a
//!   Burn `Dataset` whose item `i` is micro-batch `i`. [`loader`] turns it into
//!   a Burn `DataLoader` of [`Batch`]es, and resuming at `k` is a `slice`.
//!
//! ```
//! use olora_data::{DataOptions, Schedule, Tokenizer, load_samples, loader};
//!
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path();
//! # std::fs::write(directory.join("tokenizer.json"), r#"{"version": "1.0", "added_tokens": [],
//! #     "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
//! #     "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "</s>": 1, "In": 2, "Rook": 3}}}"#)?;
//! # std::fs::write(directory.join("tokenizer_config.json"), r#"{"eos_token": "</s>"}"#)?;
//! let record = r#"{"instruction": "Where does Alder live?", "output": "In Rook"}"#;
//! std::fs::write(directory.join("train.jsonl"), record)?;
//! // `directory` is a checkpoint's, with its tokenizer.json.
//! let tokenizer = Tokenizer::from_dir(directory)?;
//! let data = load_samples(&directory.join("train.jsonl"), &tokenizer, &DataOptions::default())?;
//! // The answer and the end of the sequence.
//! assert_eq!(data.samples.n_trained(0), 3);
//!
//! // A run of 10 micro-batches of up to 8 rows, in an order that the seed 42 decides.
//! let schedule = Schedule::new(data.samples, 8, 42, 10)?;
//! for batch in loader(schedule, tokenizer.pad_id()).iter() {
//!     let batch = batch?;
//!     assert_eq!((batch.n_rows, batch.targets.as_slice()), (1, &[2, 3, 1][..]));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This crate knows no model and makes no tensors: batches are host vectors. It
//! downloads nothing.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod batch;
mod cache;
mod chat;
mod clock;
mod contexts;
mod corpus;
mod encode;
mod error;
mod example;
mod format;
mod load;
mod message;
mod mixture;
mod omitted;
mod options;
mod pack;
mod panics;
mod report;
mod sample;
mod schedule;
mod share;
mod split;
mod tokenizer;

pub use batch::{Batch, BatchCollator, BatchSize, Padding, Pairs};
pub use cache::{MIN_CACHED_BYTES, TokenCache};
pub use chat::ChatTemplate;
pub use corpus::Corpus;
pub use encode::{AdaptationReport, KeyReport, OmissionReport, ReadReport};
pub use error::{DataError, OmittedPart, UnusedKey};
pub use example::Example;
pub use format::{Answers, Format, HARMLESS, KeyUse, alpaca_prompt};
pub use load::{Samples, load_files, load_samples, load_samples_cached};
pub use message::{Conversation, Message};
pub use mixture::Mixture;
pub use olora_records::{ENDINGS, Location, RecordsError, find};
pub use options::{DEFAULT_MAX_LENGTH, DEFAULT_MAX_SKIPPED, DataOptions, FirstTurn, SystemTurn};
pub use pack::pack;
pub use report::{DataReport, PromptStyle};
pub use sample::{Piece, Sample, describe_sample};
pub use schedule::{MicroBatch, RowKind, Schedule, loader};
pub use share::Share;
pub use split::{ValidationSplit, split};
pub use tokenizer::{DecodeStream, Decoded, Tokenizer, has_tokenizer};

/// Has the examples of `README.md` compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
