//! `OLMo` 3: `OLMo` 2 with a window in three blocks of four, which rotate without
//! the scaling that the others have.

use super::{
    Family,
    olmo2::{ABSENT, NORMS_AFTER, after},
    shared::{Thetas, WhenAbsent, layer_types, rotary_in_two_ways, silu, window_or, windows_of},
};
use crate::{ModelConfig, ModelError, config::Keys};

pub(super) static OLMO3: Family = Family {
    model_type: "olmo3",
    naming: NORMS_AFTER,
    computes: &[],
    read,
};

/// `configuration_olmo3.py` of transformers 5.
const DEFAULTS: WhenAbsent = WhenAbsent {
    rope_theta: 5e5,
    ..ABSENT
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    let sliding = layer_types(keys, |layer_idx| (layer_idx + 1) % 4 != 0)?;
    let windows = windows_of(keys, &sliding, window_or(keys, 4096)?)?;
    let thetas = Thetas {
        local_key: "rope_theta",
        local: DEFAULTS.rope_theta,
    };
    let activation = silu(keys)?;
    let config = rotary_in_two_ways(
        keys, &OLMO3, &DEFAULTS, activation, windows, &sliding, &thetas,
    )?;
    Ok(after(config))
}
