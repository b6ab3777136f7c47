//! How the factors start, one small piece for each method.

mod qr;
mod random;
mod sketch;
mod start;
mod svd;

pub use qr::thin_q;
pub(crate) use random::generator;
#[cfg(test)]
pub(crate) use random::normal_matrix;
pub(crate) use sketch::{Sketched, randomised};
pub(crate) use start::{InitialFactors, PlannedLayer, along, initial_factors};
pub use svd::{Svd, Which, svd};
