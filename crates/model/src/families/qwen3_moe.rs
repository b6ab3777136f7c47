//! Qwen3 with experts: Qwen3's attention, and experts in the place of most
//! feed-forward networks.

use super::{
    Family,
    shared::{WhenAbsent, rotary, silu, sliding_windows, window_or},
};
use crate::{Experts, ModelConfig, ModelError, QkNorm, config::Keys, naming::Naming};

pub(super) static QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    naming: Naming::LLAMA,
    computes: &["num_experts", "num_local_experts"],
    read,
};

/// `configuration_qwen3_moe.py` of transformers 5.
const ABSENT: WhenAbsent = WhenAbsent {
    num_key_value_heads: Some(4),
    max_position_embeddings: 32_768,
    ..WhenAbsent::LLAMA
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    keys.refuse_flag("output_router_logits", true)?;
    let window = if keys.flag("use_sliding_window")? {
        window_or(keys, 4096)?
    } else {
        None
    };
    let windows = sliding_windows(keys, window, |_| true)?;
    let config = rotary(keys, &QWEN3_MOE, &ABSENT, silu(keys)?, windows)?;
    let every = keys.size_or("decoder_sparse_step", 1)?;
    let dense = keys.indices("mlp_only_layers")?.unwrap_or_default();
    // What transformers 5 writes, and what stood there before.
    let count = match keys.optional_size("num_local_experts")? {
        Some(count) => count,
        None => keys.size_or("num_experts", 128)?,
    };
    let mixed =
        |layer_idx: usize| (layer_idx + 1).is_multiple_of(every) && !dense.contains(&layer_idx);
    let experts = Experts {
        count,
        per_token: keys.size_or("num_experts_per_tok", 8)?,
        intermediate_size: keys.size_or("moe_intermediate_size", 768)?,
        normalised: keys.flag("norm_topk_prob")?,
        layers: (0..config.num_hidden_layers).map(mixed).collect(),
    };
    experts.refuse_impossible(keys)?;
    Ok(ModelConfig {
        qk_norm: QkNorm::PerHead,
        experts: Some(experts),
        ..config
    })
}
