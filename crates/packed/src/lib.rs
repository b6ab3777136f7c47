//! Matrices in 4 to 16 bits, as files hold them.
//!
//! A [`Packed`] is a matrix `[rows, columns]`, `[d_out, d_in]` for a layer, in one
//! [`Format`]. Its bytes are owned or lie in a file that is mapped ([`Bytes`]), and
//! are checked once, when it is made. Then rows and panels of it are turned into
//! `f32` ([`Packed::unpack_row`], [`Packed::unpack`]), or rows are multiplied with a
//! vector ([`Packed::dot_rows`]). [`Packed::pack`] makes one of `f32`.
//!
//! ```
//! use olora_packed::{BlockFormat, Packed};
//!
//! let weights: Vec<f32> = (0..4 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
//! let packed = Packed::pack(BlockFormat::Q8_0, [4, 64], &weights)?;
//! // Columns 10 to 20 of rows 1 and 2, in rows of 10.
//! let mut panel = vec![0.0; 20];
//! packed.unpack(1..3, 10..20, &mut panel, 10)?;
//! assert!((panel[0] - weights[64 + 10]).abs() < 0.01);
//! // A row is a sum of products without a row of `f32`.
//! let mut sums = [0.0; 4];
//! packed.dot_rows(0..4, &[1.0; 64], &mut sums)?;
//! # Ok::<(), olora_packed::PackedError>(())
//! ```
//!
//! Each format is written twice: [`unpack_blocks`] is the slow, obvious one, with the
//! numbers of `ggml-quants.c`; the kernels behind [`Packed`], for AVX2 and AVX-512 too, give
//! the same bits.

#![allow(
    clippy::inline_always,
    reason = "what is not inlined is compiled for the oldest instruction set"
)]

mod affine;
mod blocks;
mod bytes;
mod codes;
mod dot;
mod error;
mod floats;
mod format;
mod interleaved;
mod kernels;
mod nf4;
mod pack;
mod packed;
mod several;
mod transposed;
mod unpack;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use affine::{Affine, ScaleType};
pub use blocks::{BlockFormat, unpack_blocks};
pub use bytes::Bytes;
pub use codes::{CodeLayout, Codes};
pub use error::PackedError;
pub use format::Format;
pub use nf4::{NestedScales, dynamic_code, nf4_code};
pub use pack::{PackedRows, pack_blocks};
pub use packed::Packed;
pub use several::{ROWS_TOGETHER, Vectors};
pub use transposed::{GptqZeros, TransposedParts};

/// Has the examples of `README.md` compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
