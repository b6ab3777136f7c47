//! What several families read alike: LLaMA's keys, rotary positions, windows.

use serde_json::{Map, Value};

use super::{Family, ministral3::GROWTH};
use crate::{
    Activation, Experts, ModelConfig, ModelError, NormKind, NormOrder, QkNorm, Rope, RopeScaling,
    config::Keys,
};

/// What transformers 5 takes where `config.json` lacks a key, of the keys in
/// which families differ.
pub(super) struct WhenAbsent {
    /// `None` is that it must be there.
    pub(super) vocab_size: Option<usize>,
    /// `None` is that it must be there.
    pub(super) hidden_size: Option<usize>,
    /// `None` is that it must be there.
    pub(super) intermediate_size: Option<usize>,
    /// `None` is that it must be there.
    pub(super) num_attention_heads: Option<usize>,
    /// `None` is as many as query heads.
    pub(super) num_key_value_heads: Option<usize>,
    /// `None` is `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: usize,
    /// What a scaling that asks for it takes before it looks at its own
    /// parameters; `None` is `max_position_embeddings`, after those.
    pub(super) original_max_position_embeddings: Option<usize>,
    pub(super) tie_word_embeddings: bool,
    pub(super) rms_norm_eps: f64,
    pub(super) rope_theta: f64,
    /// Whether `rope_type: "yarn"` and `"su"` are older names of longrope.
    pub(super) yarn_is_longrope: bool,
}

impl WhenAbsent {
    /// `configuration_llama.py` of transformers 5.
    pub(super) const LLAMA: Self = Self {
        vocab_size: None,
        hidden_size: None,
        intermediate_size: None,
        num_attention_heads: None,
        num_key_value_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        original_max_position_embeddings: None,
        tie_word_embeddings: false,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        yarn_is_longrope: false,
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
    let config = without_ropes(keys, family, absent, activation, sliding_windows)?;
    let rope = rope(keys, absent, &config)?;
    Ok(ModelConfig {
        layer_ropes: vec![Some(0); config.num_hidden_layers],
        ropes: vec![rope],
        ..config
    })
}

fn without_ropes(
    keys: &Keys<'_>,
    family: &'static Family,
    absent: &WhenAbsent,
    activation: Activation,
    sliding_windows: Vec<Option<usize>>,
) -> Result<ModelConfig, ModelError> {
    keys.refuse_flag("mlp_bias", true)?;
    keys.refuse_flag("use_bidirectional_attention", true)?;
    refuse_two_scalings(keys)?;

    let size = |key: &str, absent: Option<usize>| match absent {
        None => keys.size(key),
        Some(default) => keys.size_or(key, default),
    };
    let hidden_size = size("hidden_size", absent.hidden_size)?;
    let num_attention_heads = size("num_attention_heads", absent.num_attention_heads)?;
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
    let attention_bias = keys.flag("attention_bias")?;

    Ok(ModelConfig {
        family,
        vocab_size: size("vocab_size", absent.vocab_size)?,
        hidden_size,
        intermediate_size: size("intermediate_size", absent.intermediate_size)?,
        num_hidden_layers: keys.layers()?,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        norm: NormKind::Rms,
        norm_eps: keys.number_or("rms_norm_eps", absent.rms_norm_eps)?,
        norm_order: NormOrder::Before,
        activation,
        gated: true,
        mlp_bias: false,
        embedding_scale: None,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_cap: None,
        attention_scale: None,
        attention_cap: None,
        learned_positions: false,
        ropes: Vec::new(),
        layer_ropes: Vec::new(),
        query_growth: None,
        tie_word_embeddings: keys.flag_or("tie_word_embeddings", absent.tie_word_embeddings)?,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        qk_norm: QkNorm::None,
        fused: false,
        experts: None,
        sliding_windows,
        max_position_embeddings: keys
            .size_or("max_position_embeddings", absent.max_position_embeddings)?,
        initializer_range: keys.number_or("initializer_range", 0.02)?,
        eos_token_ids: Vec::new(),
        with_pictures: false,
        json: Map::new(),
    })
}

/// Where the blocks with a window find the base of their frequencies.
pub(super) struct Thetas {
    /// The key of files of transformers 4.
    pub(super) local_key: &'static str,
    /// Where that is absent.
    pub(super) local: f64,
}

/// [`rotary`], where blocks with a window (`sliding`) rotate in a way of their
/// own. Version 5 has both ways in `rope_parameters`, by the kind of block;
/// version 4 has `rope_theta` and `rope_scaling` for those without a window.
pub(super) fn rotary_in_two_ways(
    keys: &Keys<'_>,
    family: &'static Family,
    absent: &WhenAbsent,
    activation: Activation,
    sliding_windows: Vec<Option<usize>>,
    sliding: &[bool],
    thetas: &Thetas,
) -> Result<ModelConfig, ModelError> {
    let config = without_ropes(keys, family, absent, activation, sliding_windows)?;
    let empty = Map::new();
    let theta = keys.number_or("rope_theta", absent.rope_theta)?;
    let local_theta = keys.number_or(thetas.local_key, thetas.local)?;
    let (whole, local) = match keys.object("rope_parameters")? {
        Some(both) => {
            let both = keys.within(both);
            if both.get("rope_type").or(both.get("rope_theta")).is_some() {
                return Err(keys.unsupported(
                    "`rope_parameters` for all blocks".to_owned(),
                    "parameters for `full_attention` and for `sliding_attention`",
                ));
            }
            let whole = both.object("full_attention")?;
            let local = both.object("sliding_attention")?;
            (
                whole.cloned().unwrap_or_default(),
                local.cloned().unwrap_or_default(),
            )
        }
        None => {
            let whole = keys.object("rope_scaling")?.unwrap_or(&empty);
            (whole.clone(), empty)
        }
    };
    let way = |parameters: &Map<String, Value>, theta| {
        let parameters = keys.within(parameters);
        let theta = parameters.number_or("rope_theta", theta)?;
        scaled_rope(keys, &parameters, theta, absent, &config)
    };
    let ropes = vec![way(&whole, theta)?, way(&local, local_theta)?];
    Ok(ModelConfig {
        layer_ropes: sliding
            .iter()
            .map(|sliding| Some(usize::from(*sliding)))
            .collect(),
        ropes,
        ..config
    })
}

/// The gate of LLaMA and of most that came after it.
pub(super) fn silu(keys: &Keys<'_>) -> Result<Activation, ModelError> {
    keys.activation("hidden_act", &[("silu", Activation::Silu)], "silu")
}

/// Refuses a `rope_scaling` that says something else than `rope_parameters`:
/// transformers would take the one and forget the other's base.
fn refuse_two_scalings(keys: &Keys<'_>) -> Result<(), ModelError> {
    let (Some(parameters), Some(scaling)) = (
        keys.object("rope_parameters")?,
        keys.object("rope_scaling")?,
    ) else {
        return Ok(());
    };
    let whole = parameters.get("full_attention").and_then(Value::as_object);
    let parameters = whole.unwrap_or(parameters);
    let named = |json: &Map<String, Value>, key: &str| {
        let other = if key == "type" { "rope_type" } else { key };
        json.get(other).or(json.get(key)).cloned()
    };
    let same = |(key, value): (&String, &Value)| named(parameters, key).as_ref() == Some(value);
    if scaling.iter().all(same) {
        return Ok(());
    }
    Err(keys.malformed(
        "it has `rope_parameters` and `rope_scaling`, which differ: put the scaling into \
         `rope_parameters`, beside `rope_theta`, and take `rope_scaling` out",
    ))
}

/// The gate of the later Gemmas.
pub(super) fn gelu_tanh(keys: &Keys<'_>) -> Result<Activation, ModelError> {
    const NAME: &str = "gelu_pytorch_tanh";
    keys.activation("hidden_activation", &[(NAME, Activation::GeluTanh)], NAME)
}

/// Version 5 has `rope_parameters`, version 4 `rope_theta` and `rope_scaling`.
fn rope(keys: &Keys<'_>, absent: &WhenAbsent, config: &ModelConfig) -> Result<Rope, ModelError> {
    let empty = Map::new();
    let theta = keys.number_or("rope_theta", absent.rope_theta)?;
    let (parameters, theta) = match keys.object("rope_parameters")? {
        Some(parameters) => {
            let inner = keys.within(parameters);
            (inner, inner.number_or("rope_theta", theta)?)
        }
        None => {
            let scaling = keys.object("rope_scaling")?.unwrap_or(&empty);
            (keys.within(scaling), theta)
        }
    };
    if parameters.json.values().any(Value::is_object) {
        return Err(keys.unsupported(
            "rotary parameters that differ from layer to layer".to_owned(),
            "",
        ));
    }
    scaled_rope(keys, &parameters, theta, absent, config)
}

/// One way of rotating, from its parameters.
fn scaled_rope(
    keys: &Keys<'_>,
    parameters: &Keys<'_>,
    theta: f64,
    absent: &WhenAbsent,
    config: &ModelConfig,
) -> Result<Rope, ModelError> {
    let computes = config.family.computes;
    parameters.refuse_what_is_not_computed(computes)?;
    if let Some(growth) = parameters
        .get(GROWTH)
        .filter(|_| !computes.contains(&GROWTH))
    {
        let what = format!("`{GROWTH}: {growth}`");
        return Err(keys.unsupported(what, "models of this family without it"));
    }
    const PART: &str = "partial_rotary_factor";
    let part = parameters.number_or(PART, keys.number_or(PART, 1.0)?)?;
    let rotary_dim = (config.head_dim as f64 * part) as usize;
    if part > 1.0 || rotary_dim < 2 || !rotary_dim.is_multiple_of(2) {
        return Err(keys.malformed(&format!(
            "`{PART}: {part}` makes {rotary_dim} of {} features of a head rotate, which must be an \
             even number of them",
            config.head_dim
        )));
    }
    Ok(Rope {
        theta,
        rotary_dim,
        scaling: scaling(keys, parameters, absent, config, rotary_dim)?,
    })
}

fn scaling(
    keys: &Keys<'_>,
    parameters: &Keys<'_>,
    absent: &WhenAbsent,
    config: &ModelConfig,
    rotary_dim: usize,
) -> Result<RopeScaling, ModelError> {
    let number = |key: &str| {
        parameters
            .optional_number(key)?
            .ok_or_else(|| keys.malformed(&format!("the rope scaling lacks `{key}`")))
    };
    let longest = config.max_position_embeddings as f64;
    // Beside the parameters it goes before them, since Phi-3's stand there.
    let original = || {
        const KEY: &str = "original_max_position_embeddings";
        let beside = match keys.optional_size(KEY)? {
            Some(original) => Some(original),
            None => absent.original_max_position_embeddings,
        };
        match beside {
            Some(original) => Ok(original as f64),
            None => parameters.number_or(KEY, longest),
        }
    };
    // Before `rope_type`, the key was `type`.
    let kind = parameters.text("rope_type")?.or(parameters.text("type")?);
    let kind = match kind.as_deref() {
        Some("su" | "yarn") if absent.yarn_is_longrope => Some("longrope"),
        kind => kind,
    };
    Ok(match kind {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear {
            factor: number("factor")?,
        },
        Some("dynamic") => {
            if rotary_dim < 4 {
                return Err(
                    keys.malformed("dynamic rope scaling needs heads of 4 features at least")
                );
            }
            let factor = number("factor")?;
            if factor < 1.0 {
                return Err(keys.malformed("dynamic rope scaling needs a `factor` of 1 at least"));
            }
            RopeScaling::Dynamic {
                factor,
                max_position_embeddings: longest,
            }
        }
        Some("llama3") => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: original()?,
        },
        Some("yarn") => yarn(parameters, original()?, longest)?,
        Some("longrope") => {
            let original = original()?;
            let factor = parameters.number_or("factor", longest / original)?;
            let own = if factor <= 1.0 {
                1.0
            } else {
                (1.0 + factor.ln() / original.ln()).sqrt()
            };
            RopeScaling::LongRope {
                short_factor: parameters.numbers("short_factor", rotary_dim / 2)?,
                long_factor: parameters.numbers("long_factor", rotary_dim / 2)?,
                original_max_position_embeddings: original,
                attention_factor: parameters.number_or("attention_factor", own)?,
            }
        }
        Some(other) => {
            return Err(keys.unsupported(
                format!("`rope_type: {other}`"),
                "default, linear, dynamic, llama3, yarn and longrope",
            ));
        }
    })
}

fn yarn(parameters: &Keys<'_>, original: f64, longest: f64) -> Result<RopeScaling, ModelError> {
    let factor = parameters.number_or("factor", longest / original)?;
    let grown = |by: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * by * factor.ln() + 1.0
        }
    };
    let scales = [
        parameters.optional_number("mscale")?,
        parameters.optional_number("mscale_all_dim")?,
    ];
    let own = match scales {
        [Some(scale), Some(all)] => grown(scale) / grown(all),
        _ => grown(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast: parameters.number_or("beta_fast", 32.0)?,
        beta_slow: parameters.number_or("beta_slow", 1.0)?,
        truncate: parameters.flag_or("truncate", true)?,
        attention_factor: parameters.number_or("attention_factor", own)?,
    })
}

impl Experts {
    pub(super) fn refuse_impossible(&self, keys: &Keys<'_>) -> Result<(), ModelError> {
        // Lists are made of that many for each block.
        const MOST: usize = 4096;
        if self.count > MOST || self.per_token > self.count {
            return Err(keys.malformed(&format!(
                "it asks for {} of {} experts, of which there must be {MOST} at most",
                self.per_token, self.count
            )));
        }
        Ok(())
    }
}

/// `sliding_window`: `null` is no window, an absent key the family's default.
pub(super) fn window_or(keys: &Keys<'_>, default: usize) -> Result<Option<usize>, ModelError> {
    if keys.json.contains_key("sliding_window") {
        return keys.optional_size("sliding_window");
    }
    Ok(Some(default))
}

/// For each block, whether it has a window. `layer_types` decides where it is
/// given, and before there was that key, the family's rule: `by_rule`, of a
/// block's index.
pub(super) fn layer_types(
    keys: &Keys<'_>,
    by_rule: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ModelError> {
    let n_layers = keys.layers()?;
    let Some(Value::Array(types)) = keys.get("layer_types") else {
        return Ok((0..n_layers).map(by_rule).collect());
    };
    if types.len() != n_layers {
        return Err(keys.malformed(&format!(
            "`layer_types` has {} entries for {n_layers} layers",
            types.len()
        )));
    }
    types
        .iter()
        .map(|layer| match layer.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(keys.unsupported(
                format!("`layer_types: {layer}`"),
                "full_attention and sliding_attention",
            )),
        })
        .collect()
}

/// The window of each block that has one.
pub(super) fn windows_of(
    keys: &Keys<'_>,
    sliding: &[bool],
    window: Option<usize>,
) -> Result<Vec<Option<usize>>, ModelError> {
    if window.is_none() && keys.get("layer_types").is_some() && sliding.contains(&true) {
        return Err(keys
            .malformed("`layer_types` has sliding attention, but `sliding_window` is not in use"));
    }
    Ok(sliding
        .iter()
        .map(|sliding| window.filter(|_| *sliding))
        .collect())
}

/// One window per block, by [`layer_types`].
pub(super) fn sliding_windows(
    keys: &Keys<'_>,
    window: Option<usize>,
    by_rule: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, ModelError> {
    windows_of(keys, &layer_types(keys, by_rule)?, window)
}

/// Of a family that has none.
pub(super) fn no_windows(keys: &Keys<'_>) -> Result<Vec<Option<usize>>, ModelError> {
    sliding_windows(keys, None, |_| false)
}
