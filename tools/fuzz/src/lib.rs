//! Everything of Olora that reads bytes of others, as functions of bytes.
//!
//! A [`Target`] takes any bytes, gives them to the functions that the commands
//! use, and asserts what must hold whatever the bytes are: nothing panics, what
//! is read twice is the same, what was read and written again is the same, and no
//! size that a file claims is believed beyond the file's own. Time and memory are
//! for whoever calls it: [`trial`] measures both.
//!
//! Three callers share the targets:
//!
//! - `cargo fuzz run NAME` in the root of the repository, guided by coverage; it
//!   needs a nightly toolchain (`fuzz/`);
//! - the program `olora-fuzz`, which makes its inputs with [`mutate`] from the same
//!   corpus, on stable Rust;
//! - `cargo test`, with every input of the corpus, every finding of the past, and
//!   some hundred new inputs from a seed.
//!
//! An input of several files has their contents one after the other, with
//! [`SEPARATOR`] between.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a panic is how a target says that it has found something"
)]

#[cfg(feature = "models")]
pub mod corpus;
pub mod memory;
pub mod mutate;
mod parts;
pub mod targets;
pub mod trial;
#[cfg(feature = "models")]
mod village;

pub use parts::SEPARATOR;

/// A name, and what is done with bytes under it.
#[derive(Clone, Copy)]
pub struct Target {
    /// As on the command line, and as the directory of its corpus.
    pub name: &'static str,
    /// Panics if anything does not hold.
    pub run: fn(&[u8]),
}

/// All targets of this build, the cheapest to compile first.
pub const TARGETS: &[Target] = &[
    target("gguf", targets::gguf::run),
    target("records", targets::records::run),
    target("hub-cache", targets::hub::cache),
    target("hub-answers", targets::hub::answers),
    #[cfg(feature = "data")]
    target("tokenizer", targets::text::tokenizer),
    #[cfg(feature = "data")]
    target("template", targets::text::template),
    #[cfg(feature = "data")]
    target("samples", targets::text::samples),
    #[cfg(feature = "data")]
    target("token-cache", targets::text::token_cache),
    #[cfg(feature = "models")]
    target("config", targets::model::config),
    #[cfg(feature = "models")]
    target("safetensors", targets::model::safetensors),
    #[cfg(feature = "models")]
    target("packed", targets::model::packed),
    #[cfg(feature = "models")]
    target("pytorch", targets::model::pytorch),
    #[cfg(feature = "models")]
    target("adapter", targets::model::adapter),
    #[cfg(feature = "models")]
    target("recipe", targets::run::recipe),
    #[cfg(feature = "models")]
    target("checkpoint", targets::run::checkpoint),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// The target of a name.
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().find(|target| target.name == name).copied()
}
