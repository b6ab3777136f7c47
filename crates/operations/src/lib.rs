//! A decoder's operations on [Burn](burn), each with a backward pass written by
//! hand.
//!
//! Burn's autodiff keeps what every elementary operation needs for its own
//! backward pass. Written as one operation, a norm keeps its input and nothing
//! else, attention never keeps a score, and a loss never holds the logits of
//! all positions:
//!
//! | operation | kept for the backward pass |
//! |---|---|
//! | [`attention()`] | queries, keys, values, output and one number per row |
//! | [`cross_entropy()`] | the gradients of the hidden states and, if it trains, of the weight, made in the forward pass |
//! | [`token_log_likelihoods()`] | the gradient of the hidden states, made in the forward pass; if the weight trains, its inputs |
//! | [`rms_norm()`] | its input |
//! | [`rotate()`] | the table of angles |
//! | [`swiglu()`] | gate and up |
//! | [`project()`] | its input and `x·A` |
//!
//! Each is an extension of Burn's backends: portable code in tensor operations
//! runs on all of them, and the CPU backend (`flex`) has kernels of its own for
//! f32. Each module has a function `composed`, the obvious composition of
//! Burn's operations, which is the oracle that tests compare with, and what
//! runs on a backend that this crate was not built for.
//!
//! What is deliberately absent: modules, parameters, models. This crate takes
//! tensors and returns tensors.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![cfg_attr(
    not(any(feature = "flex", feature = "cube")),
    allow(unused, reason = "without a backend, compositions are all there is")
)]
#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "Burn's autodiff tensor has no public name"
)]

pub mod attention;
#[cfg(feature = "flex")]
#[allow(
    clippy::inline_always,
    reason = "what is not inlined is compiled for the oldest instruction set"
)]
mod cpu;
pub mod likelihood;
mod logits;
pub mod loss;
pub mod norm;
mod portable;
#[cfg(all(test, feature = "flex"))]
mod portable_tests;
pub mod projection;
pub mod rotary;
mod support;
pub mod swiglu;

pub use attention::{Sight, attention};
pub use likelihood::token_log_likelihoods;
pub use loss::cross_entropy;
pub use norm::rms_norm;
pub use projection::{Factors, project};
pub use rotary::rotate;
pub use support::{supports, use_compositions};
pub use swiglu::swiglu;
