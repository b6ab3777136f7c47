//! Granite 3: LLaMA with four multipliers.

use super::{
    Family,
    shared::{WhenAbsent, no_windows, rotary, silu},
};
use crate::{ModelConfig, ModelError, config::Keys, naming::Naming};

pub(super) static GRANITE: Family = Family {
    model_type: "granite",
    naming: Naming::LLAMA,
    computes: &[
        "embedding_multiplier",
        "residual_multiplier",
        "attention_multiplier",
        "logits_scaling",
    ],
    read,
};

/// Defaults are those of `configuration_granite.py` of transformers 5.
fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    let absent = &WhenAbsent::LLAMA;
    Ok(ModelConfig {
        embedding_scale: Some(keys.number_or("embedding_multiplier", 1.0)?)
            .filter(|scale| *scale != 1.0),
        residual_scale: keys.number_or("residual_multiplier", 1.0)?,
        attention_scale: Some(keys.number_or("attention_multiplier", 1.0)?),
        logit_scale: 1.0 / keys.number_or("logits_scaling", 1.0)?,
        ..rotary(keys, &GRANITE, absent, silu(keys)?, no_windows(keys)?)?
    })
}
