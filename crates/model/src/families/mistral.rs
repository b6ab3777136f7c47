//! Mistral: a sliding attention window in every block.

use super::{
    Family,
    shared::{WhenAbsent, rotary, silu, sliding_windows, window_or},
};
use crate::{ModelConfig, ModelError, config::Keys, naming::Naming};

pub(super) static MISTRAL: Family = Family {
    model_type: "mistral",
    naming: Naming::LLAMA,
    computes: &[],
    read,
};

/// `configuration_mistral.py` of transformers 5.
const ABSENT: WhenAbsent = WhenAbsent {
    num_key_value_heads: Some(8),
    max_position_embeddings: 4096 * 32,
    ..WhenAbsent::LLAMA
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    if keys.flag("attention_bias")? {
        return Err(keys.unsupported("`attention_bias: true` for mistral".to_owned(), ""));
    }
    let windows = sliding_windows(keys, window_or(keys, 4096)?, |_| true)?;
    rotary(keys, &MISTRAL, &ABSENT, silu(keys)?, windows)
}
