//! Checkpoints as Hugging Face directories, `config.json` beside the weights in
//! one file or in shards with an index, or as one GGUF file.
//!
//! A parameter's path is its name in the file, so there is no table of names.
//! The one difference is orientation: PyTorch holds a linear weight as
//! `[d_out, d_in]`, Burn as `[d_in, d_out]`.

mod config;
mod convert;
mod identity;
mod load;
mod packing;
#[cfg(test)]
mod packing_tests;
mod quantised;
mod safetensors;
mod save;
mod save_gguf;
mod source;
mod stored;

use olora_operations::Dtype;

pub use config::config_bytes;
pub use identity::{sample_weights, weights_fingerprint};
pub use load::{PackedMatrix, drawn_matrices, hold_in_bf16, load, load_as, packed_matrices};
pub use save::{Companions, Layout, SaveOptions, save};
pub use save_gguf::{save_gguf, save_gguf_with};
pub use source::weight_files;
pub use stored::StoredModel;

/// What safetensors calls a number format.
fn stored(dtype: Dtype) -> ::safetensors::Dtype {
    match dtype {
        Dtype::F32 => ::safetensors::Dtype::F32,
        Dtype::Bf16 => ::safetensors::Dtype::BF16,
        Dtype::F16 => ::safetensors::Dtype::F16,
    }
}
