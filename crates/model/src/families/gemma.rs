//! The first Gemma ([arXiv 2403.08295](https://arxiv.org/abs/2403.08295)): a
//! gate with GELU, norms about one, scaled embeddings.

use super::{
    Family,
    shared::{WhenAbsent, no_windows, rotary},
};
use crate::{Activation, ModelConfig, ModelError, NormKind, config::Keys, naming::Naming};

pub(super) static GEMMA: Family = Family {
    model_type: "gemma",
    naming: Naming::LLAMA,
    computes: &[],
    read,
};

/// `configuration_gemma.py` of transformers 5.
const ABSENT: WhenAbsent = WhenAbsent {
    num_key_value_heads: Some(16),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    ..WhenAbsent::LLAMA
};

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    let activation = activation(keys)?;
    let rotary = rotary(keys, &GEMMA, &ABSENT, activation, no_windows(keys)?)?;
    Ok(about_one(rotary))
}

/// What all Gemmas have: norms about one, and embeddings times the root of the
/// width.
pub(super) fn about_one(config: ModelConfig) -> ModelConfig {
    ModelConfig {
        norm: NormKind::RmsPlusOne,
        embedding_scale: Some((config.hidden_size as f64).sqrt()),
        ..config
    }
}

/// Before transformers 5, `hidden_activation` decided, and its absence was the
/// approximation, whatever `hidden_act` said. The first checkpoints have
/// `hidden_act: "gelu"` and mean the approximation: so read it all versions.
fn activation(keys: &Keys<'_>) -> Result<Activation, ModelError> {
    const APPROXIMATE: &str = "gelu_pytorch_tanh";
    let known = [
        (APPROXIMATE, Activation::GeluTanh),
        ("gelu", Activation::GeluTanh),
    ];
    if keys.get("hidden_activation").is_some() {
        return keys.activation("hidden_activation", &known[..1], APPROXIMATE);
    }
    keys.activation("hidden_act", &known, APPROXIMATE)
}
