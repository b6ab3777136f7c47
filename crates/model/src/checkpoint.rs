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
mod pytorch;
mod safetensors;
mod save;
mod save_gguf;
mod source;

use ::safetensors::Dtype;
use burn::tensor::DType;

pub use config::config_bytes;
pub use identity::{sample_weights, weights_fingerprint};
pub use load::load;
pub use save::{SaveOptions, save};
pub use save_gguf::save_gguf;
pub use source::weight_files;

/// The number format that weights are held or written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// 32-bit.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl WeightType {
    fn safetensors(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    /// As `config.json` and the command line spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// Bytes of one weight.
    fn size(self) -> usize {
        DType::from(self).size()
    }

    /// The largest magnitude that it holds.
    fn limit(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::Bf16 => half::bf16::MAX.to_f32(),
            Self::F16 => half::f16::MAX.to_f32(),
        }
    }
}

impl From<WeightType> for DType {
    fn from(dtype: WeightType) -> Self {
        match dtype {
            WeightType::F32 => Self::F32,
            WeightType::Bf16 => Self::BF16,
            WeightType::F16 => Self::F16,
        }
    }
}
