//! From what a user writes as a model or as data to local paths, downloaded
//! from the [Hugging Face hub](https://huggingface.co) if need be.
//!
//! ```no_run
//! use olora_hub::{HubOptions, resolve};
//!
//! let options = HubOptions::from_env();
//! let model = resolve("HuggingFaceTB/SmolLM2-135M", &options, &mut |progress| {
//!     println!("{}: {} bytes", progress.file, progress.done);
//! })?;
//! println!("{}", model.path.display());
//! # Ok::<(), olora_hub::HubError>(())
//! ```
//!
//! Which form a name has is told apart without the network:
//!
//! ```
//! use olora_hub::ModelName;
//!
//! let ModelName::Hub(name) = ModelName::parse("owner/name@v1:tiny.Q8_0.gguf")? else {
//!     panic!("there is no such directory or file");
//! };
//! assert_eq!((name.repository.as_str(), name.revision()), ("owner/name", "v1"));
//! assert_eq!(name.file.as_deref(), Some("tiny.Q8_0.gguf"));
//! assert!(ModelName::parse("./not/there").is_err());
//! # Ok::<(), olora_hub::HubError>(())
//! ```
//!
//! [`ModelName`] says which forms are understood, and [`DatasetName`] which are
//! as data; [`resolve_dataset`] makes the files of a data set's configuration
//! and split present. What is downloaded lies in the cache that Python's
//! `huggingface_hub`, `transformers` and `datasets` use, in their layout
//! (`models--owner--name/{blobs,refs,snapshots}`, `datasets--owner--name/…`) and
//! under their locks, so each side finds what the other has fetched.
//!
//! A file appears in a snapshot only when it is whole: it is written beside the
//! blobs, its length and, for large files, its SHA-256 are compared with what
//! the hub announced, and only then is it renamed and linked. A download that
//! was cut off goes on where it stopped.
//!
//! [`push`] is the other way: files into a repository, as one commit, which goes
//! on where it was cut off.
//!
//! This crate knows nothing about models, data or Burn. Environment variables are
//! read in one place, [`HubOptions::from_env`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod agent;
mod cache;
mod card;
mod client;
mod dataset;
mod dataset_name;
mod download;
mod error;
mod layout;
mod name;
mod options;
mod push;
mod resolve;
mod select;

pub use dataset::{Dataset, resolve_dataset};
pub use dataset_name::{DatasetName, HubDataset};
pub use error::HubError;
pub use name::{HubName, ModelName, RepositoryKind};
pub use options::{HubOptions, Token};
pub use push::{
    LocalFile, LocalFiles, PushError, PushEvent, PushTarget, Pushed, local_files, push,
};
pub use resolve::{Progress, Resolved, resolve};

/// Has the examples of `README.md` compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
