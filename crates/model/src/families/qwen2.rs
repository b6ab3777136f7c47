//! Qwen2 and 2.5: biases on the query, key and value projections, whatever
//! `attention_bias` says.

use super::{
    Family,
    shared::{WhenAbsent, rotary, silu, sliding_windows, window_or},
};
use crate::{ModelConfig, ModelError, config::Keys, naming::Naming};

pub(super) static QWEN2: Family = Family {
    model_type: "qwen2",
    naming: Naming::LLAMA,
    computes: &[],
    read,
};

/// `configuration_qwen2.py` of transformers 5.
const ABSENT: WhenAbsent = WhenAbsent {
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    ..WhenAbsent::LLAMA
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    let rotary = rotary(keys, &QWEN2, &ABSENT, silu(keys)?, windows(keys)?)?;
    Ok(ModelConfig {
        qkv_bias: true,
        o_bias: false,
        ..rotary
    })
}

/// If `use_sliding_window`, the blocks from `max_window_layers` on; Qwen3's too.
pub(super) fn windows(keys: &Keys<'_>) -> Result<Vec<Option<usize>>, ModelError> {
    let window = if keys.flag("use_sliding_window")? {
        window_or(keys, 4096)?
    } else {
        None
    };
    let first = keys.index_or("max_window_layers", 28)?;
    sliding_windows(keys, window, |layer_idx| layer_idx >= first)
}
