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
//! (The file is a download, which is why this example is not run.) A LoRA adapter
//! of one layer, written for llama.cpp:
//!
//! ```
//! use olora_gguf::{GgufError, GgufFile, LoraLayer, write_adapter};
//!
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("adapter.gguf");
//! let config = serde_json::json!({
//!     "model_type": "llama", "hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": 1,
//! });
//! let (a, b) = ([1.0; 4], [0.5; 8]);
//! let layer = LoraLayer {
//!     module: "model.layers.0.mlp.up_proj",
//!     a: &a, // [rank, in]
//!     b: &b, // [out, rank]
//!     rank: 1,
//!     scale: 16.0,
//! };
//! let config = config.as_object().ok_or("not an object")?;
//! write_adapter(&path, config, 16.0, &[layer])?;
//! // An adapter is no model, and is refused as one.
//! assert!(matches!(GgufFile::open(&path), Err(GgufError::Unsupported { .. })));
//! # Ok::<(), Box<dyn std::error::Error>>(())
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
mod slow;
mod split;
mod tokenizer;
mod types;
mod write;

use std::path::Path;

pub use error::GgufError;
pub use read::GgufFile;
pub use slow::{SlowTokenizer, slow_tokenizer};
pub use tokenizer::Tokenizer;
pub use write::{
    GgufType, LoraLayer, TensorSpec, TensorValues, TokenizerFiles, write_adapter, write_model,
};

/// Whether a path that names a model names a GGUF file, not a directory.
pub fn is_gguf(path: &Path) -> bool {
    let named_so = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    path.is_file() || (named_so && !path.is_dir())
}

/// Has the examples of `README.md` compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
