//! What only some families have in their metadata, or what llama.cpp takes for
//! granted of them, as keys of `config.json`.

use serde_json::{Map, Value, json};

use super::{Factors, Keys};
use crate::{GgufError, families::Own, read::LONG_FACTORS};

/// Blocks of the deepest model that is written out block by block; deeper ones
/// are refused when the configuration is read.
const MOST_LAYERS: u64 = 10_000;

/// Adds a family's own keys to a configuration that has those of all.
pub(super) fn read(
    keys: &Keys<'_>,
    config: &mut Map<String, Value>,
    factors: &Factors<'_>,
) -> Result<(), GgufError> {
    match keys.family.own {
        Own::Nothing => {}
        Own::Gemma2 => {
            let caps = [
                ("attn_logit_softcapping", 50.0),
                ("final_logit_softcapping", 30.0),
            ];
            for (key, default) in caps {
                let cap = keys.number(key)?.unwrap_or(default);
                config.insert(key.to_owned(), json!(cap));
            }
            config.entry("sliding_window").or_insert(json!(4096));
            later_gemma(keys, config, 46, 2)?;
        }
        Own::Gemma3 => {
            if let Some(cap) = keys.number("final_logit_softcapping")? {
                let what = format!("a Gemma 3 model with logits capped at {cap}");
                return Err(keys.unsupported(what, "Gemma 3 without caps"));
            }
            config.entry("sliding_window").or_insert(Value::Null);
            let local = keys.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
            config.insert("rope_local_base_freq".to_owned(), json!(local));
            later_gemma(keys, config, 62, 6)?;
        }
        Own::Phi3 => phi3(keys, config, factors)?,
        Own::SmolLm3 => drop(config.insert("no_rope_layer_interval".to_owned(), json!(4))),
        Own::Granite => {
            for (key, stored) in GRANITE {
                if let Some(value) = keys.number(stored)? {
                    config.insert(key.to_owned(), json!(value));
                }
            }
        }
        Own::Olmo3 => {
            let sliding = layer_types(keys, config, 4)?;
            config.insert("layer_types".to_owned(), sliding);
        }
        Own::Ministral3 => ministral3(keys, config)?,
        Own::MistralWithin => {
            // Without the key there is none, whatever a configuration without it means.
            config.entry("sliding_window").or_insert(Value::Null);
            if let Some(all) = log_multiplier(keys)?
                && let Some(Value::Object(scaling)) = config.get_mut("rope_scaling")
            {
                scaling.insert("mscale".to_owned(), json!(1.0));
                scaling.insert("mscale_all_dim".to_owned(), json!(all));
            }
        }
        Own::Mixtral => {
            let count = keys.required("expert_count")?;
            config.insert("num_local_experts".to_owned(), json!(count));
            let used = keys.required("expert_used_count")?;
            config.insert("num_experts_per_tok".to_owned(), json!(used));
            config.entry("sliding_window").or_insert(Value::Null);
        }
        Own::Qwen3Moe => {
            for (key, stored) in [
                ("num_experts", "expert_count"),
                ("num_experts_per_tok", "expert_used_count"),
                ("moe_intermediate_size", "expert_feed_forward_length"),
            ] {
                config.insert(key.to_owned(), json!(keys.required(stored)?));
            }
            // llama.cpp knows no others.
            config.insert("norm_topk_prob".to_owned(), json!(true));
            config.insert("decoder_sparse_step".to_owned(), json!(1));
            config.insert("mlp_only_layers".to_owned(), json!([]));
        }
    }
    Ok(())
}

/// Granite's multipliers: key in `config.json`, key in the metadata.
pub(crate) const GRANITE: [(&str, &str); 4] = [
    ("attention_multiplier", "attention.scale"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("logits_scaling", "logit_scale"),
];

/// What Gemma 2 and 3 have in common. Queries are scaled by the root of a
/// head's width, but in the largest of each, which is told by its number of
/// blocks.
fn later_gemma(
    keys: &Keys<'_>,
    config: &mut Map<String, Value>,
    largest: u64,
    every: u64,
) -> Result<(), GgufError> {
    let size = |key: &str| config.get(key).and_then(Value::as_u64).unwrap_or(1);
    let scalar = if size("num_hidden_layers") == largest {
        size("hidden_size") / size("num_attention_heads").max(1)
    } else {
        size("head_dim")
    };
    let sliding = layer_types(keys, config, every)?;
    let activation = config.get("hidden_act").cloned().unwrap_or_default();
    config.insert("hidden_activation".to_owned(), activation);
    config.insert("query_pre_attn_scalar".to_owned(), json!(scalar));
    config.insert("layer_types".to_owned(), sliding);
    Ok(())
}

/// Which blocks have a window: by a list, or all but the last of every so many.
fn layer_types(
    keys: &Keys<'_>,
    config: &Map<String, Value>,
    every: u64,
) -> Result<Value, GgufError> {
    let n_layers = config.get("num_hidden_layers").and_then(Value::as_u64);
    let n_layers = n_layers.unwrap_or(0).min(MOST_LAYERS + 1);
    let has_window = config
        .get("sliding_window")
        .is_some_and(|window| !window.is_null());
    let key = keys.key("attention.sliding_window_pattern");
    let sliding: Vec<bool> = match keys.metadata.flags(&key) {
        Some(listed) => listed,
        None => {
            let every = keys.metadata.size(&key)?.unwrap_or(every);
            (0..n_layers)
                .map(|layer| every > 0 && layer % every < every - 1)
                .collect()
        }
    };
    let name = |sliding: &bool| {
        if *sliding && has_window {
            "sliding_attention"
        } else {
            "full_attention"
        }
    };
    Ok(sliding.iter().map(name).collect())
}

fn phi3(
    keys: &Keys<'_>,
    config: &mut Map<String, Value>,
    factors: &Factors<'_>,
) -> Result<(), GgufError> {
    let size = |key: &str| config.get(key).and_then(Value::as_u64).unwrap_or(1);
    let (longest, head_dim) = (size("max_position_embeddings"), size("head_dim"));
    if let Some(rotated) = keys
        .size("rope.dimension_count")?
        .filter(|n| *n != head_dim)
    {
        let part = rotated as f64 / head_dim as f64;
        config.insert("partial_rotary_factor".to_owned(), json!(part));
    }
    let original = keys.size("rope.scaling.original_context_length")?;
    let original = original.unwrap_or(longest);
    config.insert(
        "original_max_position_embeddings".to_owned(),
        json!(original),
    );
    let [long, short] = LONG_FACTORS.map(factors);
    let (long, short) = match (long, short) {
        (Some(long), Some(short)) => (long, short),
        (None, None) => return Ok(()),
        _ => {
            return Err(keys.malformed(format!(
                "it has one of `{}` and `{}`, and not the other",
                LONG_FACTORS[0], LONG_FACTORS[1]
            )));
        }
    };
    // As decimal fractions that give these f32 again.
    let list = |factors: Vec<f32>| -> Value {
        let decimal = factors
            .iter()
            .map(|factor| factor.to_string().parse::<f64>().ok());
        decimal.map(|factor| json!(factor)).collect()
    };
    let mut scaling = json!({
        "rope_type": "longrope", "long_factor": list(long), "short_factor": list(short),
    });
    let longer = longest as f64 / original as f64;
    let own = if longer > 1.0 {
        (1.0 + longer.ln() / (original as f64).ln()).sqrt()
    } else {
        1.0
    };
    // What follows from the lengths is left to those.
    if let Some(given) = keys.number("rope.scaling.attn_factor")?
        && (given - own).abs() > 1e-6 * own
    {
        scaling["attention_factor"] = json!(given);
    }
    config.insert("rope_scaling".to_owned(), scaling);
    Ok(())
}

/// `mscale_all_dim` of `YaRN`, if it is given and not zero.
fn log_multiplier(keys: &Keys<'_>) -> Result<Option<f64>, GgufError> {
    let all = keys.number("rope.scaling.yarn_log_multiplier")?;
    Ok(all.filter(|all| *all != 0.0))
}

/// transformers 5's `rope_parameters`, which this family came with.
fn ministral3(keys: &Keys<'_>, config: &mut Map<String, Value>) -> Result<(), GgufError> {
    let mut rope = match config.remove("rope_scaling") {
        Some(Value::Object(scaling)) => scaling,
        _ => Map::new(),
    };
    rope.entry("rope_type").or_insert(json!("default"));
    if let Some(theta) = config.remove("rope_theta") {
        rope.insert("rope_theta".to_owned(), theta);
    }
    if let Some(all) = log_multiplier(keys)? {
        rope.insert("mscale".to_owned(), json!(1.0));
        rope.insert("mscale_all_dim".to_owned(), json!(all));
    }
    if let Some(beta) = keys.number("attention.temperature_scale")? {
        rope.insert("llama_4_scaling_beta".to_owned(), json!(beta));
    }
    config.insert("rope_parameters".to_owned(), Value::Object(rope));
    Ok(())
}
