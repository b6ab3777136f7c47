//! Files and directories that are there whole or not at all, and a hash that
//! stays the same.
//!
//! - [`write_atomically`] and [`AtomicFile`] write one file, [`StagedDirectory`]
//!   a directory of several: under another name beside the place that they are
//!   for, synced to disk, then renamed. Whoever looks sees what was there
//!   before or all of what is new; a full disk or a killed process changes
//!   nothing.
//! - [`read_bounded`] reads a small file that somebody else made, and refuses one that is not small.
//! - [`refuse_pointer`] tells what git leaves of a large file without git-lfs; [`read_bounded`] does so too.
//! - [`DirectoryLock`] keeps other processes out of a directory, as long as its
//!   process lives.
//! - [`Fnv1a`] and [`fnv1a`] are 64-bit FNV-1a, for identities that are stored:
//!   they are equal on every machine and in every version.
//!
//! ```
//! use std::fs;
//! use olora_files::{StagedDirectory, write_atomically};
//!
//! # let parent = tempfile::tempdir()?;
//! # let parent = parent.path();
//! let place = parent.join("result");
//! let staged = StagedDirectory::new(&place)?;
//! fs::write(staged.path().join("weights"), [1, 2, 3])?;
//! write_atomically(&staged.path().join("about.txt"), |out| writeln!(out, "three bytes"))?;
//! assert!(!place.exists());
//! staged.commit()?;
//! assert_eq!(fs::read(place.join("weights"))?, [1, 2, 3]);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! This crate knows nothing of what the files hold, and nothing of Burn.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod atomic;
mod bounded;
mod fnv;
mod leftovers;
mod lock;
mod pointer;
mod size;
mod staged;

pub use atomic::{AtomicFile, make_readable, write_atomically};
pub use bounded::read_bounded;
pub use fnv::{Fnv1a, fnv1a};
pub use leftovers::{clear_leftovers, remove_directory, remove_leftovers};
pub use lock::{DirectoryLock, Holder, LockError};
pub use pointer::refuse_pointer;
pub use size::size;
pub use staged::StagedDirectory;

/// Has the examples of `README.md` compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
