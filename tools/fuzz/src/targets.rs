//! What is done with bytes, by what they are taken for.

pub mod gguf;
pub mod hub;
#[cfg(feature = "models")]
pub mod model;
pub mod records;
#[cfg(feature = "models")]
pub mod run;
#[cfg(feature = "data")]
pub mod text;
