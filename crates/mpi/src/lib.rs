//! Several processes of one training run, over MPI.
//!
//! [`Launch`] is what a launcher says in the environment; it needs no MPI.
//! `Mpi`, with the feature `mpi`, is an
//! [`Exchange`](olora_training::Exchange) between the processes.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(feature = "mpi")]
mod control;
#[cfg(feature = "mpi")]
mod exchange;
#[cfg(feature = "mpi")]
mod job;
mod launch;
#[cfg(feature = "mpi")]
mod service;
#[cfg(feature = "mpi")]
mod wire;

#[cfg(feature = "mpi")]
pub use exchange::{Ended, Mpi};
pub use launch::{Launch, LaunchError};

/// Has the examples of `README.md` compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
