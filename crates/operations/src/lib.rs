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
//! A frozen weight of [`project()`], [`cross_entropy()`] and
//! [`token_log_likelihoods()`] may be packed ([`Weight`]): panels of it are
//! unpacked, multiplied and forgotten.
//!
//! Each is an extension of Burn's backends: portable code in tensor operations
//! runs on all of them, and the CPU backend (`flex`) has kernels of its own for
//! f32. Each module has a function `composed`, the obvious composition of
//! Burn's operations, which is the oracle that tests compare with, and what
//! runs on a backend that this crate was not built for.
//!
//! ```
//! use burn::tensor::{DType, Device, Distribution, Tensor};
//! use olora_operations::{cross_entropy, token_log_likelihoods};
//!
//! let device = Device::flex().autodiff();
//! let random = |shape| Tensor::<2>::random(shape, Distribution::Default, (&device, DType::F32));
//! let hidden = random([4, 8]).require_grad(); // [n, width]
//! let weight = random([8, 16]); // [width, vocab], a constant
//! let targets = [3, 0, 15, 7];
//!
//! let log_likelihoods = token_log_likelihoods(hidden.clone(), weight.clone(), &targets); // [n]
//! let loss = cross_entropy(hidden.clone(), weight, &targets, 4); // [1], their sum with a minus
//! let sum: f32 = (log_likelihoods.clone().sum() + loss).into_scalar();
//! assert!(sum.abs() < 1e-5);
//!
//! // An objective of one's own: the third token counts twice, the last not at all.
//! let counts = Tensor::<1>::from_data([1.0_f32, 1.0, 2.0, 0.0], (&device, DType::F32));
//! let gradients = (log_likelihoods * counts).sum().neg().backward();
//! assert_eq!(hidden.grad(&gradients).unwrap().dims(), [4, 8]);
//! ```
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

mod apart;
pub mod attention;
#[cfg(feature = "flex")]
#[allow(
    clippy::inline_always,
    reason = "what is not inlined is compiled for the oldest instruction set"
)]
mod cpu;
mod dtype;
#[cfg(all(test, feature = "flex"))]
#[path = "../tests/formats/mod.rs"]
mod formats;
mod gated;
pub mod likelihood;
mod logits;
pub mod loss;
pub mod norm;
mod placed;
#[cfg(all(test, feature = "flex"))]
mod placed_tests;
mod portable;
#[cfg(all(test, feature = "flex"))]
mod portable_tests;
pub mod projection;
pub mod rotary;
mod stored;
mod support;
pub mod swiglu;
mod together;
pub mod weight;

/// Has no more than `n` threads compute a token's products on the CPU, the caller's
/// among them; to be said before the first. Without it they are as many as
/// `RAYON_NUM_THREADS` says, or as there are cores. Of no effect in a build without
/// the CPU's kernels.
pub fn limit_threads(n: usize) {
    #[cfg(feature = "flex")]
    cpu::limit_threads(n);
    #[cfg(not(feature = "flex"))]
    let _ = n;
}

/// What `work` makes of each item, in their order, several at once on the threads that compute a
/// token's products: for work that comes between those, as `rayon`'s threads would first have to
/// wake. In a build without the CPU's kernels, one after the other.
pub fn at_once<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    #[cfg(feature = "flex")]
    return cpu::at_once(items, work);
    #[cfg(not(feature = "flex"))]
    items.into_iter().map(work).collect()
}

pub use apart::rows_apart;
pub use attention::{AttentionMask, attention};
pub use dtype::{Dtype, UnknownDtype};
pub use gated::project_gated;
pub use likelihood::token_log_likelihoods;
pub use loss::cross_entropy;
pub use norm::rms_norm;
pub use projection::{LowRankFactors, project};
pub use rotary::rotate;
pub use support::{supports, use_compositions};
pub use swiglu::swiglu;
pub use together::project_together;
pub use weight::{OutputHead, PackedTensor, Products, Weight, is_host};
