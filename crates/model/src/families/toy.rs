//! A family that only tests know: what it takes to add one.

use super::{
    Family,
    shared::{WhenAbsent, no_windows, rotary, silu, window_or},
};
use crate::{ModelConfig, ModelError, config::Keys, naming::Naming};

pub(super) static TOY: Family = Family {
    model_type: "toy",
    naming: Naming {
        above: None,
        parts: &[("down_proj", Some("out"))],
    },
    computes: &[],
    read,
};

const ABSENT: WhenAbsent = WhenAbsent {
    max_position_embeddings: 96,
    tie_word_embeddings: true,
    ..WhenAbsent::LLAMA
};

/// Every other block has a window.
fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    keys.refuse_flag("use_memory", true)?;
    let window = window_or(keys, 8)?;
    let rotary = rotary(keys, &TOY, &ABSENT, silu(keys)?, no_windows(keys)?)?;
    let windows = (0..rotary.num_hidden_layers)
        .map(|layer_idx| window.filter(|_| layer_idx % 2 == 0))
        .collect();
    Ok(ModelConfig {
        sliding_windows: windows,
        ..rotary
    })
}
