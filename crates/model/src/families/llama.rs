//! LLaMA 1 to 3 and everything shaped like it (`SmolLM`, `TinyLlama`, …): the
//! family that the others differ from.

use super::{
    Family,
    shared::{WhenAbsent, no_windows, rotary, silu},
};
use crate::{ModelConfig, ModelError, config::Keys, naming::Naming};

pub(super) static LLAMA: Family = Family {
    model_type: "llama",
    naming: Naming::LLAMA,
    computes: &[],
    read,
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    rotary(
        keys,
        &LLAMA,
        &WhenAbsent::LLAMA,
        silu(keys)?,
        no_windows(keys)?,
    )
}
