//! A `config.json` as metadata.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    container::Metadata,
    key,
    rope::{Rope, Scaling},
};
use crate::{
    GgufError,
    families::{Family, Own, Stack, Window},
    names::Heads,
    read::{LONG_FACTORS, ROPE_FREQUENCIES},
};

/// What of a configuration decides how tensors are written.
pub(super) struct Shape<'a> {
    pub(super) config: &'a Map<String, Value>,
    pub(super) family: &'static Family,
    pub(super) heads: Heads,
    pub(super) tied: bool,
    pub(super) head_dim: usize,
    pub(super) layers: usize,
}

impl<'a> Shape<'a> {
    pub(super) fn new(config: &'a Map<String, Value>) -> Result<Self, GgufError> {
        let model_type = config.get("model_type").and_then(Value::as_str);
        let family = model_type.and_then(Family::of_model_type).ok_or_else(|| {
            GgufError::unwritable(
                format!("a model of the type `{}`", model_type.unwrap_or("null")),
                format!("only {} can be", Family::model_types()),
            )
        })?;
        // Gemma's newer key goes before the older.
        let activation = config.get("hidden_activation").or(config.get("hidden_act"));
        let activation = activation.and_then(Value::as_str);
        let computed = family.activations;
        if let Some(other) = activation.filter(|name| !computed.contains(name)) {
            return Err(GgufError::unwritable(
                format!("a model with `hidden_act: {other}`"),
                format!("llama.cpp computes {} for these models", computed[0]),
            ));
        }
        let heads = size(config, "num_attention_heads")?;
        let tied = config.get("tie_word_embeddings").and_then(Value::as_bool);
        // Absent keys mean what transformers takes them for.
        let kv_heads = optional_size(config, "num_key_value_heads")?;
        let head_dim = match optional_size(config, "head_dim")?.or(family.head_dim) {
            Some(head_dim) => head_dim,
            None => size(config, "hidden_size")? / heads,
        };
        Ok(Self {
            config,
            family,
            heads: Heads {
                queries: heads,
                keys: kv_heads.or(family.kv_heads).unwrap_or(heads),
            },
            tied: tied.unwrap_or(family.tied),
            head_dim,
            layers: size(config, "num_hidden_layers")?,
        })
    }

    pub(super) fn vocab_size(&self) -> Result<usize, GgufError> {
        size(self.config, "vocab_size")
    }

    /// Where the model came from, if the configuration says.
    pub(super) fn model_name(&self) -> Option<&str> {
        self.config
            .get("_name_or_path")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
    }

    pub(super) fn describe(&self, metadata: &mut Metadata) -> Result<(), GgufError> {
        let name = |key: &str| format!("{}.{key}", self.family.architecture);
        let get = |key| size(self.config, key);
        let mut set = |key: &str, value: usize| -> Result<(), GgufError> {
            let value = u32::try_from(value).map_err(|_| {
                GgufError::unwritable(format!("`{key}: {value}`"), "it has more than 32 bits")
            })?;
            metadata.u32(&name(key), value);
            Ok(())
        };
        set("block_count", self.layers)?;
        set("context_length", get("max_position_embeddings")?)?;
        set("embedding_length", get("hidden_size")?)?;
        set("feed_forward_length", get("intermediate_size")?)?;
        set("attention.head_count", self.heads.queries)?;
        set("attention.head_count_kv", self.heads.keys)?;
        set("attention.key_length", self.head_dim)?;
        set("attention.value_length", self.head_dim)?;
        set("rope.dimension_count", self.rotated()?)?;
        set("vocab_size", self.vocab_size()?)?;
        if let Some(window) = self.window()? {
            set("attention.sliding_window", window)?;
        }
        let Rope { theta, scaling, .. } = self.rope()?;
        metadata.f32(&name("rope.freq_base"), theta as f32);
        let eps = number(self.config, "rms_norm_eps")?.unwrap_or(self.family.eps);
        metadata.f32(&name("attention.layer_norm_rms_epsilon"), eps as f32);
        match scaling {
            Scaling::None | Scaling::LongRope { .. } => {}
            Scaling::Linear(factor) => {
                metadata.text(&name("rope.scaling.type"), "linear");
                metadata.f32(&name("rope.scaling.factor"), factor as f32);
            }
            // The converter leaves it at the factors; with this, the four numbers
            // behind them can be told again.
            Scaling::Llama3(scaling) => metadata.u32(
                &name("rope.scaling.original_context_length"),
                scaling.original as u32,
            ),
            Scaling::Yarn(yarn) => {
                metadata.text(&name("rope.scaling.type"), "yarn");
                metadata.f32(&name("rope.scaling.factor"), yarn.factor as f32);
                metadata.u32(
                    &name("rope.scaling.original_context_length"),
                    yarn.original as u32,
                );
                for (key, value) in yarn.given {
                    metadata.f32(&name(key), value as f32);
                }
            }
        }
        self.describe_own(metadata)
    }

    /// The window that is written.
    fn window(&self) -> Result<Option<usize>, GgufError> {
        let uses = self.config.get("use_sliding_window");
        match self.family.window {
            Window::Kept => {
                let window = optional_size(self.config, "sliding_window")?;
                let absent = !self.config.contains_key("sliding_window");
                Ok(match self.family.own {
                    Own::Gemma2 | Own::Gemma3 | Own::Olmo3 if absent => Some(4096),
                    _ => window,
                })
            }
            Window::Refused if uses.and_then(Value::as_bool) == Some(true) => {
                Err(GgufError::unwritable(
                    key("use_sliding_window"),
                    "llama.cpp has no sliding window for these models",
                ))
            }
            Window::Refused | Window::Absent => Ok(None),
        }
    }

    /// The tensors of factors that the model needs.
    pub(super) fn rope_factors(&self) -> Result<Vec<(&'static str, Vec<f32>)>, GgufError> {
        let Rope { theta, scaling, .. } = self.rope()?;
        Ok(match scaling {
            Scaling::Llama3(scaling) => {
                vec![(ROPE_FREQUENCIES, scaling.factors(self.head_dim, theta))]
            }
            Scaling::LongRope { long, short } => {
                let [of_long, of_short] = LONG_FACTORS;
                vec![(of_long, long), (of_short, short)]
            }
            Scaling::None | Scaling::Linear(_) | Scaling::Yarn(_) => Vec::new(),
        })
    }

    /// llama.cpp does not load a model with tensors missing.
    pub(super) fn check_complete<'b>(
        &self,
        given: impl Iterator<Item = &'b str>,
    ) -> Result<(), GgufError> {
        let given: BTreeSet<_> = given.collect();
        let mut needed = vec![
            "model.embed_tokens.weight".to_owned(),
            "model.norm.weight".to_owned(),
        ];
        if !self.tied {
            needed.push("lm_head.weight".to_owned());
        }
        let weights = self.family.inside();
        let mut inside: Vec<_> = weights.map(|(name, _)| format!("{name}.weight")).collect();
        inside.extend(self.family.biases.iter().map(|name| (*name).to_owned()));
        for stack in self.family.stacks {
            let Stack {
                experts, matrix, ..
            } = stack;
            let all = 0..self.experts()?;
            inside.extend(all.map(|expert| format!("{experts}.{expert}.{matrix}.weight")));
        }
        for layer in 0..self.layers {
            needed.extend(
                inside
                    .iter()
                    .map(|name| format!("model.layers.{layer}.{name}")),
            );
        }
        match needed.iter().find(|name| !given.contains(name.as_str())) {
            None => Ok(()),
            Some(missing) => Err(GgufError::unwritable(
                "the model",
                format!("the tensor `{missing}` is missing"),
            )),
        }
    }
}

pub(super) fn optional_size(
    config: &Map<String, Value>,
    name: &str,
) -> Result<Option<usize>, GgufError> {
    match config.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_u64()
            .filter(|&size| size > 0)
            .map(|size| Some(size as usize))
            .ok_or_else(|| {
                GgufError::unwritable(
                    key(name),
                    format!("it is {value}, but must be a positive whole number"),
                )
            }),
    }
}

pub(super) fn size(config: &Map<String, Value>, name: &str) -> Result<usize, GgufError> {
    optional_size(config, name)?.ok_or_else(|| GgufError::unwritable(key(name), "it is missing"))
}

pub(super) fn number(config: &Map<String, Value>, name: &str) -> Result<Option<f64>, GgufError> {
    match config.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_f64()
            .filter(|number| number.is_finite() && *number > 0.0)
            .map(Some)
            .ok_or_else(|| {
                GgufError::unwritable(
                    key(name),
                    format!("it is {value}, but must be a positive number"),
                )
            }),
    }
}
