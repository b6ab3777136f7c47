//! `OLMo` 2 ([arXiv 2501.00656](https://arxiv.org/abs/2501.00656)): norms after
//! attention and feed-forward network in the place of before them, and over all
//! heads of queries and keys.

use super::{
    Family,
    shared::{WhenAbsent, no_windows, rotary, silu},
};
use crate::{ModelConfig, ModelError, NormKind, NormOrder, QkNorm, config::Keys, naming::Naming};

pub(super) static OLMO2: Family = Family {
    model_type: "olmo2",
    naming: NORMS_AFTER,
    computes: &[],
    read,
};

/// The names of `Olmo2DecoderLayer`'s norms, and `OLMo` 3's.
pub(super) const NORMS_AFTER: Naming = Naming {
    above: None,
    parts: &[
        ("attention_output_norm", Some("post_attention_layernorm")),
        ("mlp_output_norm", Some("post_feedforward_layernorm")),
    ],
};

/// `configuration_olmo2.py` of transformers 5.
pub(super) const ABSENT: WhenAbsent = WhenAbsent {
    rms_norm_eps: 1e-5,
    ..WhenAbsent::LLAMA
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    let config = rotary(keys, &OLMO2, &ABSENT, silu(keys)?, no_windows(keys)?)?;
    Ok(after(config))
}

/// What `OLMo` 2 and 3 have in common.
pub(super) fn after(config: ModelConfig) -> ModelConfig {
    ModelConfig {
        norm: NormKind::RmsRoundedOnce,
        norm_order: NormOrder::After,
        qk_norm: QkNorm::Whole,
        ..config
    }
}
