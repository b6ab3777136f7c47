//! Gemma 2 ([arXiv 2408.00118](https://arxiv.org/abs/2408.00118)): norms before
//! and after, capped scores and logits, every other block with a window.

use super::{
    Family,
    gemma::about_one,
    shared::{WhenAbsent, gelu_tanh, layer_types, rotary, window_or, windows_of},
};
use crate::{ModelConfig, ModelError, NormOrder, config::Keys, naming::Naming};

pub(super) static GEMMA2: Family = Family {
    model_type: "gemma2",
    naming: NORMS_AROUND,
    computes: &[
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ],
    read,
};

/// The names of `Gemma2DecoderLayer`'s norms, and Gemma 3's.
pub(super) const NORMS_AROUND: Naming = Naming {
    above: None,
    parts: &[
        ("attention_output_norm", Some("post_attention_layernorm")),
        (
            "post_attention_layernorm",
            Some("pre_feedforward_layernorm"),
        ),
        ("mlp_output_norm", Some("post_feedforward_layernorm")),
    ],
};

/// `configuration_gemma2.py` of transformers 5.
const ABSENT: WhenAbsent = WhenAbsent {
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    ..WhenAbsent::LLAMA
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    let sliding = layer_types(keys, |layer_idx| layer_idx % 2 == 0)?;
    let windows = windows_of(keys, &sliding, window_or(keys, 4096)?)?;
    let rotary = rotary(keys, &GEMMA2, &ABSENT, gelu_tanh(keys)?, windows)?;
    Ok(ModelConfig {
        attention_cap: cap(keys, "attn_logit_softcapping", 50.0)?,
        logit_cap: cap(keys, "final_logit_softcapping", 30.0)?,
        ..around(keys, rotary)?
    })
}

/// What Gemma 2 and 3 have in common.
pub(super) fn around(keys: &Keys<'_>, config: ModelConfig) -> Result<ModelConfig, ModelError> {
    let scalar = keys.number_or("query_pre_attn_scalar", 256.0)?;
    Ok(ModelConfig {
        norm_order: NormOrder::Around,
        attention_scale: Some(1.0 / scalar.sqrt()),
        ..about_one(config)
    })
}

/// A cap: `null` is none, an absent key the default.
fn cap(keys: &Keys<'_>, key: &str, default: f64) -> Result<Option<f64>, ModelError> {
    if keys.json.contains_key(key) {
        return keys.optional_number(key);
    }
    Ok(Some(default))
}
