//! Gemma 3 ([arXiv 2503.19786](https://arxiv.org/abs/2503.19786)), its text
//! model: Gemma 2's norms without its caps, norms of queries and keys, and five
//! blocks with a window and a rotation of their own to one without.

use super::{
    Family,
    gemma2::{NORMS_AROUND, around},
    shared::{
        Thetas, WhenAbsent, gelu_tanh, layer_types, rotary_in_two_ways, window_or, windows_of,
    },
};
use crate::{ModelConfig, ModelError, QkNorm, config::Keys};

pub(super) static GEMMA3: Family = Family {
    model_type: "gemma3_text",
    naming: NORMS_AROUND,
    computes: &["query_pre_attn_scalar"],
    read,
};

/// `configuration_gemma3.py` of transformers 5. Published configurations of
/// models with pictures leave out what is the default.
const ABSENT: WhenAbsent = WhenAbsent {
    vocab_size: Some(262_208),
    hidden_size: Some(2304),
    intermediate_size: Some(9216),
    num_attention_heads: Some(8),
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 131_072,
    tie_word_embeddings: true,
    rope_theta: 1e6,
    ..WhenAbsent::LLAMA
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    let pattern = keys.size_or("sliding_window_pattern", 6)?;
    let sliding = layer_types(keys, |layer_idx| (layer_idx + 1) % pattern != 0)?;
    let windows = windows_of(keys, &sliding, window_or(keys, 4096)?)?;
    let thetas = Thetas {
        local_key: "rope_local_base_freq",
        local: 1e4,
    };
    let activation = gelu_tanh(keys)?;
    let rotary = rotary_in_two_ways(
        keys, &GEMMA3, &ABSENT, activation, windows, &sliding, &thetas,
    )?;
    Ok(ModelConfig {
        qk_norm: QkNorm::PerHead,
        ..around(keys, rotary)?
    })
}
