//! A training run's numbers for programs that show them: TensorBoard, by its
//! event files, and MLflow, by its REST interface.
//!
//! - [`EventFile`] writes scalars and texts as TensorBoard reads them, each
//!   event at once, so that a process that is killed has written all it had.
//! - [`Mlflow`] sends metrics from a thread of its own. Whoever logs never
//!   waits for the server: what it does not take is kept, sent when it is back,
//!   and at the end written to a file.
//!
//! ```
//! use olora_loggers::EventFile;
//!
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path();
//! let mut file = EventFile::begin(directory, 0)?;
//! file.scalars(10, &[("train/loss".to_owned(), 1.25)])?;
//! file.text(10, "note", "half of it is done")?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! This crate knows nothing of what is trained, and nothing of Burn.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod clock;
mod mlflow;
mod tensorboard;

pub use mlflow::{Mlflow, MlflowError, MlflowOptions, Pace, Server, Status, check_address};
pub use tensorboard::EventFile;

/// Has the examples of `README.md` compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
