//! Phi-3, 3.5 and 4 ([arXiv 2404.14219](https://arxiv.org/abs/2404.14219)):
//! queries, keys and values in one projection, gate and up in another; rotation
//! of a part of each head (Phi-4-mini), with factors of its own beyond the
//! trained context.
//!
//! Its dropouts are not followed, as no other family's are: adapters have theirs.

use super::{
    Family,
    shared::{WhenAbsent, rotary, silu, sliding_windows},
};
use crate::{ModelConfig, ModelError, RopeScaling, config::Keys, naming::Naming};

pub(super) static PHI3: Family = Family {
    model_type: "phi3",
    naming: Naming::LLAMA,
    computes: &["partial_rotary_factor"],
    read,
};

/// `configuration_phi3.py` of transformers 5.
const ABSENT: WhenAbsent = WhenAbsent {
    max_position_embeddings: 4096,
    original_max_position_embeddings: Some(4096),
    rms_norm_eps: 1e-5,
    yarn_is_longrope: true,
    ..WhenAbsent::LLAMA
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    keys.refuse_flag("attention_bias", true)?;
    let windows = sliding_windows(keys, keys.optional_size("sliding_window")?, |_| true)?;
    let config = rotary(keys, &PHI3, &ABSENT, silu(keys)?, windows)?;
    let scaling = config.ropes.first().map(|rope| &rope.scaling);
    if !matches!(
        scaling,
        Some(RopeScaling::None | RopeScaling::LongRope { .. })
    ) {
        return Err(keys.unsupported(
            "a scaling of the rotary frequencies that phi3 does not have".to_owned(),
            "default and longrope",
        ));
    }
    Ok(ModelConfig {
        fused: true,
        ..config
    })
}
