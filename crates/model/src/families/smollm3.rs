//! `SmolLM3`: LLaMA, of whose blocks every fourth rotates nothing.

use super::{
    Family,
    shared::{WhenAbsent, layer_types, rotary, silu, windows_of},
};
use crate::{ModelConfig, ModelError, config::Keys, naming::Naming};

pub(super) static SMOLLM3: Family = Family {
    model_type: "smollm3",
    naming: Naming::LLAMA,
    computes: &["no_rope_layers"],
    read,
};

/// `configuration_smollm3.py` of transformers 5.
const ABSENT: WhenAbsent = WhenAbsent {
    num_key_value_heads: Some(4),
    max_position_embeddings: 32_768,
    tie_word_embeddings: true,
    rope_theta: 2e6,
    ..WhenAbsent::LLAMA
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    let rotates = rotates(keys)?;
    let window = if keys.flag("use_sliding_window")? {
        keys.optional_size("sliding_window")?
    } else {
        None
    };
    let sliding = layer_types(keys, |layer_idx| {
        window.is_some() && rotates.get(layer_idx) == Some(&false)
    })?;
    let windows = match window {
        // Whatever `layer_types` says.
        None => vec![None; sliding.len()],
        window => windows_of(keys, &sliding, window)?,
    };
    let config = rotary(keys, &SMOLLM3, &ABSENT, silu(keys)?, windows)?;
    let layer_ropes = rotates.iter().map(|rotates| rotates.then_some(0)).collect();
    Ok(ModelConfig {
        layer_ropes,
        ..config
    })
}

/// For each block, whether it rotates.
fn rotates(keys: &Keys<'_>) -> Result<Vec<bool>, ModelError> {
    let n_layers = keys.layers()?;
    if let Some(listed) = keys.indices("no_rope_layers")? {
        if listed.len() < n_layers {
            return Err(keys.malformed(&format!(
                "`no_rope_layers` has {} entries for {n_layers} layers",
                listed.len()
            )));
        }
        return Ok(listed.iter().take(n_layers).map(|one| *one != 0).collect());
    }
    let interval = keys.size_or("no_rope_layer_interval", 4)?;
    let all = 0..n_layers;
    Ok(all
        .map(|layer_idx| !(layer_idx + 1).is_multiple_of(interval))
        .collect())
}
