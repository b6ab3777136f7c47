//! Ministral 3: Mistral with `YaRN`, and queries that grow with their position
//! beyond the context that the model was trained with.

use super::{
    Family,
    shared::{WhenAbsent, rotary, silu, sliding_windows},
};
use crate::{ModelConfig, ModelError, RopeScaling, config::Keys, naming::Naming};

pub(super) static MINISTRAL3: Family = Family {
    model_type: "ministral3",
    naming: Naming::LLAMA,
    computes: &[GROWTH],
    read,
};

/// What queries grow by; within the rope parameters.
pub(super) const GROWTH: &str = "llama_4_scaling_beta";

/// `configuration_ministral3.py` of transformers 5.
const ABSENT: WhenAbsent = WhenAbsent {
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    max_position_embeddings: 262_144,
    rms_norm_eps: 1e-5,
    ..WhenAbsent::LLAMA
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    keys.refuse_flag("attention_bias", true)?;
    let windows = sliding_windows(keys, keys.optional_size("sliding_window")?, |_| true)?;
    let config = rotary(keys, &MINISTRAL3, &ABSENT, silu(keys)?, windows)?;
    let parameters = match keys.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => keys.object("rope_scaling")?,
    };
    let Some(parameters) = parameters else {
        // transformers 5 takes a whole set of them then; files of version 5 have them.
        return Err(keys.malformed("`rope_parameters` is missing"));
    };
    let beta = keys.within(parameters).optional_number(GROWTH)?;
    let trained = match config.ropes.first().map(|rope| &rope.scaling) {
        Some(RopeScaling::Yarn {
            original_max_position_embeddings,
            ..
        }) => *original_max_position_embeddings,
        _ => config.max_position_embeddings as f64,
    };
    Ok(ModelConfig {
        query_growth: beta.map(|beta| (beta, trained)),
        ..config
    })
}
