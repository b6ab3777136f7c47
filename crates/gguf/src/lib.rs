//! GGUF files, the format of llama.cpp, as Hugging Face checkpoints.
//!
//! [`GgufFile`] opens one and gives what a checkpoint's directory would hold:
//! the configuration, the tokenizer and the tensors, with Hugging Face's names,
//! orientation and order of rows, quantised ones turned into `f32`.
//! [`write_model`] and [`write_adapter`] write models and LoRA adapters that
//! llama.cpp loads.
//!
//! ```no_run
//! # fn main() -> Result<(), olora_gguf::GgufError> {
//! let file = olora_gguf::GgufFile::open("SmolLM2-135M-Instruct.Q4_1.gguf".as_ref())?;
//! assert_eq!(file.config()["model_type"], "llama");
//! for name in file.names() {
//!     println!("{name}: {:?}, {} values", file.shape(name), file.read(name)?.len());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The format is described in `docs/gguf.md` of
//! [ggml](https://github.com/ggml-org/ggml); what is stored under which key, and
//! how tensors are rearranged, is what llama.cpp's `convert_hf_to_gguf.py` and
//! `convert_lora_to_gguf.py` do.

mod config;
mod error;
mod families;
mod header;
mod metadata;
mod names;
mod read;
mod rope;
mod tokenizer;
mod types;
mod write;

use std::path::Path;

pub use error::GgufError;
pub use read::GgufFile;
pub use tokenizer::Tokenizer;
pub use write::{GgufType, LoraLayer, TensorSpec, TokenizerFiles, write_adapter, write_model};

/// Whether a path that names a model names a GGUF file, not a directory.
pub fn is_gguf(path: &Path) -> bool {
    let named_so = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    path.is_file() || (named_so && !path.is_dir())
}
