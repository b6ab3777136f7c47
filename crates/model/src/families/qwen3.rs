//! Qwen3, dense: RMS norms on each head's queries and keys, and Qwen2's windows.

use super::{
    Family,
    qwen2::windows,
    shared::{WhenAbsent, rotary, silu},
};
use crate::{ModelConfig, ModelError, QkNorm, config::Keys, naming::Naming};

pub(super) static QWEN3: Family = Family {
    model_type: "qwen3",
    naming: Naming::LLAMA,
    computes: &[],
    read,
};

/// `configuration_qwen3.py` of transformers 5.
const ABSENT: WhenAbsent = WhenAbsent {
    num_key_value_heads: Some(32),
    head_dim: Some(128),
    max_position_embeddings: 32_768,
    ..WhenAbsent::LLAMA
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    Ok(ModelConfig {
        qk_norm: QkNorm::PerHead,
        ..rotary(keys, &QWEN3, &ABSENT, silu(keys)?, windows(keys)?)?
    })
}
