//! OPT ([arXiv 2205.01068](https://arxiv.org/abs/2205.01068)) and what has its
//! form (Galactica): layer norms, learned positions, a feed-forward network
//! without gate.
//!
//! Its file has keys of its own. Its dropout is not followed, as no other
//! family's is: adapters have theirs.

use super::Family;
use crate::{
    Activation, ModelConfig, ModelError, NormKind, NormOrder, QkNorm, config::Keys, naming::Naming,
};

pub(super) static OPT: Family = Family {
    model_type: "opt",
    naming: NAMING,
    computes: &[],
    read,
};

/// The names of `OPTForCausalLM`.
const NAMING: Naming = Naming {
    above: Some("decoder"),
    parts: &[
        ("mlp", None),
        ("up_proj", Some("fc1")),
        ("down_proj", Some("fc2")),
        ("o_proj", Some("out_proj")),
        ("input_layernorm", Some("self_attn_layer_norm")),
        // A block's second norm and the decoder's last are namesakes.
        ("post_attention_layernorm", Some("final_layer_norm")),
        ("norm", Some("final_layer_norm")),
    ],
};

/// Defaults are those of `configuration_opt.py` of transformers 5.
fn read(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    let hidden_size = keys.size("hidden_size")?;
    refuse_what_is_not_computed(keys, hidden_size)?;
    let num_attention_heads = keys.size("num_attention_heads")?;
    let num_hidden_layers = keys.layers()?;
    let bias = keys.flag_or("enable_bias", true)?;
    let affine = keys.flag_or("layer_norm_elementwise_affine", true)?;
    Ok(ModelConfig {
        family: &OPT,
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        intermediate_size: keys.size("ffn_dim")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: num_attention_heads,
        head_dim: keys.share_of_a_head(hidden_size, num_attention_heads)?,
        norm: if affine {
            NormKind::Layer
        } else {
            NormKind::PlainLayer
        },
        norm_eps: 1e-5,
        activation: keys.activation(
            "activation_function",
            &[("relu", Activation::Relu), ("gelu", Activation::Gelu)],
            "relu and gelu",
        )?,
        gated: false,
        mlp_bias: bias,
        norm_order: NormOrder::Before,
        embedding_scale: None,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_cap: None,
        attention_scale: None,
        attention_cap: None,
        learned_positions: true,
        ropes: Vec::new(),
        layer_ropes: vec![None; num_hidden_layers],
        query_growth: None,
        tie_word_embeddings: keys.flag_or("tie_word_embeddings", true)?,
        qkv_bias: bias,
        o_bias: bias,
        qk_norm: QkNorm::None,
        fused: false,
        experts: None,
        sliding_windows: vec![None; num_hidden_layers],
        max_position_embeddings: keys.size_or("max_position_embeddings", 2048)?,
        initializer_range: keys.number_or("init_std", 0.02)?,
        eos_token_ids: Vec::new(),
        with_pictures: false,
        json: serde_json::Map::new(),
    })
}

/// Norms after the residual sum and embeddings of another width are opt-350m's
/// alone; without a last norm are checkpoints of before transformers 4.20.
fn refuse_what_is_not_computed(keys: &Keys<'_>, hidden_size: usize) -> Result<(), ModelError> {
    keys.refuse_flag("do_layer_norm_before", false)?;
    keys.refuse_flag("_remove_final_layer_norm", true)?;
    match keys.optional_size("word_embed_proj_dim")? {
        Some(width) if width != hidden_size => Err(keys.unsupported(
            format!("`word_embed_proj_dim: {width}`"),
            "embeddings as wide as `hidden_size`",
        )),
        _ => Ok(()),
    }
}
