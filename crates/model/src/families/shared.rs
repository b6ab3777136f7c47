//! What several families read alike: LLaMA's keys, rotary positions, windows.

use serde_json::{Map, Value};

use super::Family;
use crate::{Activation, ModelConfig, ModelError, NormKind, RopeScaling, config::Keys};

/// What transformers 5 takes where `config.json` lacks a key, of the keys in
/// which families differ.
pub(super) struct WhenAbsent {
    /// `None` is as many as query heads.
    pub(super) num_key_value_heads: Option<usize>,
    /// `None` is `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: usize,
    pub(super) tie_word_embeddings: bool,
}

impl WhenAbsent {
    /// `configuration_llama.py` of transformers 5.
    pub(super) const LLAMA: Self = Self {
        num_key_value_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        tie_word_embeddings: false,
    };
}

/// A configuration with LLaMA's keys, and LLaMA's computation but for the
/// activation and the windows: what a family has otherwise, it sets itself.
pub(super) fn rotary(
    keys: &Keys<'_>,
    family: &'static Family,
    absent: &WhenAbsent,
    activation: Activation,
    sliding_windows: Vec<Option<usize>>,
) -> Result<ModelConfig, ModelError> {
    keys.refuse_flag("mlp_bias", true)?;
    keys.refuse_flag("use_bidirectional_attention", true)?;
    refuse_partial_rotation(keys)?;

    let hidden_size = keys.size("hidden_size")?;
    let num_attention_heads = keys.size("num_attention_heads")?;
    let num_key_value_heads = keys.size_or(
        "num_key_value_heads",
        absent.num_key_value_heads.unwrap_or(num_attention_heads),
    )?;
    let head_dim = match keys.optional_size("head_dim")?.or(absent.head_dim) {
        Some(head_dim) => head_dim,
        None => keys.share_of_a_head(hidden_size, num_attention_heads)?,
    };
    if !num_attention_heads.is_multiple_of(num_key_value_heads) {
        return Err(keys.malformed(&format!(
            "num_attention_heads ({num_attention_heads}) is not a multiple of num_key_value_heads ({num_key_value_heads})"
        )));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(keys.malformed(&format!(
            "head_dim is {head_dim}, but rotary embeddings need an even number"
        )));
    }
    let (rope_theta, rope_scaling) = rope(keys)?;
    let attention_bias = keys.flag("attention_bias")?;

    Ok(ModelConfig {
        family,
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        num_hidden_layers: keys.layers()?,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        norm: NormKind::Rms,
        norm_eps: keys.number_or("rms_norm_eps", 1e-6)?,
        activation,
        gated: true,
        mlp_bias: false,
        scaled_embeddings: false,
        learned_positions: false,
        rope_theta,
        rope_scaling,
        tie_word_embeddings: keys.flag_or("tie_word_embeddings", absent.tie_word_embeddings)?,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        qk_norm: false,
        sliding_windows,
        max_position_embeddings: keys
            .size_or("max_position_embeddings", absent.max_position_embeddings)?,
        initializer_range: keys.number_or("initializer_range", 0.02)?,
        eos_token_ids: Vec::new(),
        json: Map::new(),
    })
}

/// The gate of LLaMA and of most that came after it.
pub(super) fn silu(keys: &Keys<'_>) -> Result<Activation, ModelError> {
    keys.activation("hidden_act", &[("silu", Activation::Silu)], "silu")
}

/// Version 5 has `rope_parameters`, version 4 `rope_theta` and `rope_scaling`.
fn rope(keys: &Keys<'_>) -> Result<(f64, RopeScaling), ModelError> {
    const DEFAULT_THETA: f64 = 10_000.0;
    let empty = Map::new();
    let object = |key: &str| match keys.get(key) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(keys.expected(key, other, "an object")),
    };
    let theta = keys.number_or("rope_theta", DEFAULT_THETA)?;
    let (parameters, theta) = match object("rope_parameters")? {
        Some(parameters) => {
            let inner = keys.within(parameters);
            (inner, inner.number_or("rope_theta", theta)?)
        }
        None => {
            let scaling = object("rope_scaling")?.unwrap_or(&empty);
            (keys.within(scaling), theta)
        }
    };
    if parameters.json.values().any(Value::is_object) {
        return Err(keys.unsupported(
            "rotary parameters that differ from layer to layer".to_owned(),
            "",
        ));
    }
    refuse_partial_rotation(&parameters)?;
    let number = |key: &str| {
        let value = parameters.number_or(key, f64::NAN)?;
        if value.is_nan() {
            Err(keys.malformed(&format!("the rope scaling lacks `{key}`")))
        } else {
            Ok(value)
        }
    };
    // Before `rope_type`, the key was `type`.
    let kind = parameters.text("rope_type")?.or(parameters.text("type")?);
    let scaling = match kind.as_deref() {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear {
            factor: number("factor")?,
        },
        Some("llama3") => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: number("original_max_position_embeddings")?,
        },
        Some(other) => {
            return Err(keys.unsupported(
                format!("`rope_type: {other}`"),
                "default, linear and llama3",
            ));
        }
    };
    Ok((theta, scaling))
}

fn refuse_partial_rotation(keys: &Keys<'_>) -> Result<(), ModelError> {
    let share = keys.get("partial_rotary_factor");
    match share.filter(|share| share.as_f64() != Some(1.0)) {
        Some(share) => Err(keys.unsupported(format!("`partial_rotary_factor: {share}`"), "1")),
        None => Ok(()),
    }
}

/// `sliding_window`: `null` is no window, an absent key the family's default.
pub(super) fn window_or(keys: &Keys<'_>, default: usize) -> Result<Option<usize>, ModelError> {
    if keys.json.contains_key("sliding_window") {
        return keys.optional_size("sliding_window");
    }
    Ok(Some(default))
}

/// One window per block. `layer_types` decides where it is given, and before
/// there was that key, the family's rule: `by_rule`, of a block's index.
pub(super) fn sliding_windows(
    keys: &Keys<'_>,
    window: Option<usize>,
    by_rule: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, ModelError> {
    let n_layers = keys.layers()?;
    let Some(Value::Array(types)) = keys.get("layer_types") else {
        return Ok((0..n_layers)
            .map(|layer_idx| window.filter(|_| by_rule(layer_idx)))
            .collect());
    };
    if types.len() != n_layers {
        return Err(keys.malformed(&format!(
            "`layer_types` has {} entries for {n_layers} layers",
            types.len()
        )));
    }
    types
        .iter()
        .map(|layer| match (layer.as_str(), window) {
            (Some("full_attention"), _) => Ok(None),
            (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
            (Some("sliding_attention"), None) => Err(keys.malformed(
                "`layer_types` has sliding attention, but `sliding_window` is not in use",
            )),
            _ => Err(keys.unsupported(
                format!("`layer_types: {layer}`"),
                "full_attention and sliding_attention",
            )),
        })
        .collect()
}

/// Of a family that has none.
pub(super) fn no_windows(keys: &Keys<'_>) -> Result<Vec<Option<usize>>, ModelError> {
    sliding_windows(keys, None, |_| false)
}
