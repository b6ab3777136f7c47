//! Mixtral ([arXiv 2401.04088](https://arxiv.org/abs/2401.04088)): Mistral with
//! experts in the place of each feed-forward network.

use super::{
    Family,
    shared::{WhenAbsent, rotary, silu, sliding_windows},
};
use crate::{Experts, ModelConfig, ModelError, config::Keys, naming::Naming};

pub(super) static MIXTRAL: Family = Family {
    model_type: "mixtral",
    naming: Naming {
        above: None,
        parts: &[
            ("mlp", Some("block_sparse_moe")),
            ("gate_proj", Some("w1")),
            ("down_proj", Some("w2")),
            ("up_proj", Some("w3")),
        ],
    },
    computes: &["num_local_experts"],
    read,
};

/// `configuration_mixtral.py` of transformers 5.
const ABSENT: WhenAbsent = WhenAbsent {
    num_key_value_heads: Some(8),
    max_position_embeddings: 4096 * 32,
    rms_norm_eps: 1e-5,
    rope_theta: 1e6,
    ..WhenAbsent::LLAMA
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    keys.refuse_flag("attention_bias", true)?;
    keys.refuse_flag("output_router_logits", true)?;
    let windows = sliding_windows(keys, keys.optional_size("sliding_window")?, |_| true)?;
    let config = rotary(keys, &MIXTRAL, &ABSENT, silu(keys)?, windows)?;
    let experts = Experts {
        count: keys.size_or("num_local_experts", 8)?,
        per_token: keys.size_or("num_experts_per_tok", 2)?,
        intermediate_size: config.intermediate_size,
        normalised: true,
        layers: vec![true; config.num_hidden_layers],
    };
    experts.refuse_impossible(keys)?;
    Ok(ModelConfig {
        experts: Some(experts),
        ..config
    })
}
