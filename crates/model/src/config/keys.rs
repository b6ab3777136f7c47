//! Typed access to the keys of `config.json`, and the refusal of what the
//! decoder does not compute.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Family, RopeScaling};
use crate::{Activation, ModelError};

/// Typed access to the file's keys, with errors that name them.
pub(super) struct Keys<'a> {
    pub(super) json: &'a Map<String, Value>,
    pub(super) path: &'a Path,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn malformed(&self, reason: &str) -> ModelError {
        ModelError::malformed(self.path, "model configuration", &reason)
    }

    pub(super) fn unsupported(&self, what: String, supported: &'static str) -> ModelError {
        ModelError::Unsupported {
            path: self.path.to_owned(),
            what,
            supported,
        }
    }

    fn expected(&self, key: &str, value: &Value, expected: &str) -> ModelError {
        self.malformed(&format!("`{key}` is {value}, but must be {expected}"))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<String>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.expected(key, other, "a string")),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, ModelError> {
        self.flag_or(key, false)
    }

    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.expected(key, other, "true or false")),
        }
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.get(key)
            .map(|value| {
                let size = value
                    .as_u64()
                    .filter(|&size| size > 0)
                    .map(|size| size as usize);
                size.ok_or_else(|| self.expected(key, value, "a positive whole number"))
            })
            .transpose()
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.optional_size(key)?
            .ok_or_else(|| self.malformed(&format!("`{key}` is missing")))
    }

    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    pub(super) fn number_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        self.get(key).map_or(Ok(default), |value| {
            let number = value
                .as_f64()
                .filter(|number| number.is_finite() && *number > 0.0);
            number.ok_or_else(|| self.expected(key, value, "a positive number"))
        })
    }

    /// The width of a head where the file does not give it.
    pub(super) fn share_of_a_head(
        &self,
        hidden_size: usize,
        num_attention_heads: usize,
    ) -> Result<usize, ModelError> {
        if hidden_size.is_multiple_of(num_attention_heads) {
            return Ok(hidden_size / num_attention_heads);
        }
        Err(self.malformed(&format!(
            "hidden_size ({hidden_size}) is not a multiple of num_attention_heads \
             ({num_attention_heads}), and `head_dim` is not given"
        )))
    }

    /// The activation that `key` names, one of `known`; the first if it is absent.
    pub(super) fn activation(
        &self,
        key: &str,
        known: &[(&str, Activation)],
        supported: &'static str,
    ) -> Result<Activation, ModelError> {
        let name = self.text(key)?;
        let mut known = known.iter();
        let found = match &name {
            None => known.next(),
            Some(name) => known.find(|(known, _)| known == name),
        };
        found.map(|(_, activation)| *activation).ok_or_else(|| {
            let name = name.unwrap_or_default();
            self.unsupported(format!("`{key}: {name}`"), supported)
        })
    }

    /// Before transformers 5, `hidden_activation` decided, and its absence was
    /// the approximation, whatever `hidden_act` said. The first checkpoints have
    /// `hidden_act: "gelu"` and mean the approximation: so read it all versions.
    pub(super) fn activation_of_gemma(&self) -> Result<Activation, ModelError> {
        const APPROXIMATE: &str = "gelu_pytorch_tanh";
        let known = [
            (APPROXIMATE, Activation::GeluTanh),
            ("gelu", Activation::GeluTanh),
        ];
        if self.get("hidden_activation").is_some() {
            return self.activation("hidden_activation", &known[..1], APPROXIMATE);
        }
        self.activation("hidden_act", &known, APPROXIMATE)
    }

    fn refuse_flag(&self, key: &str, refused: bool) -> Result<(), ModelError> {
        if self.flag_or(key, !refused)? == refused {
            return Err(self.unsupported(format!("`{key}: {refused}`"), ""));
        }
        Ok(())
    }

    pub(super) fn refuse_what_no_family_computes(&self) -> Result<(), ModelError> {
        if self.get("quantization_config").is_some() {
            return Err(self.unsupported(
                "a quantised checkpoint (`quantization_config`)".to_owned(),
                "f32, f16 and bf16 weights",
            ));
        }
        for key in ["final_logit_softcapping", "attn_logit_softcapping"] {
            if let Some(cap) = self.get(key) {
                return Err(self.unsupported(format!("`{key}: {cap}`"), "logits without a cap"));
            }
        }
        Ok(())
    }

    pub(super) fn refuse_what_rotary_families_do_not_compute(&self) -> Result<(), ModelError> {
        self.refuse_flag("mlp_bias", true)?;
        self.refuse_flag("use_bidirectional_attention", true)?;
        if let Some(share) = self
            .get("partial_rotary_factor")
            .filter(|share| share.as_f64() != Some(1.0))
        {
            return Err(self.unsupported(format!("`partial_rotary_factor: {share}`"), "1"));
        }
        Ok(())
    }

    /// Norms after the residual sum and embeddings of another width are opt-350m's
    /// alone; without a last norm are checkpoints of before transformers 4.20.
    pub(super) fn refuse_what_opt_does_not_compute(
        &self,
        hidden_size: usize,
    ) -> Result<(), ModelError> {
        self.refuse_flag("do_layer_norm_before", false)?;
        self.refuse_flag("_remove_final_layer_norm", true)?;
        match self.optional_size("word_embed_proj_dim")? {
            Some(width) if width != hidden_size => Err(self.unsupported(
                format!("`word_embed_proj_dim: {width}`"),
                "embeddings as wide as `hidden_size`",
            )),
            _ => Ok(()),
        }
    }

    /// Version 5 has `rope_parameters`, version 4 `rope_theta` and `rope_scaling`.
    pub(super) fn rope(&self) -> Result<(f64, RopeScaling), ModelError> {
        const DEFAULT_THETA: f64 = 10_000.0;
        let empty = Map::new();
        let object = |key: &str| match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map.clone())),
            Some(other) => Err(self.expected(key, other, "an object")),
        };
        let (parameters, theta) = match object("rope_parameters")? {
            Some(parameters) => {
                let inner = Keys {
                    json: &parameters,
                    path: self.path,
                };
                let theta =
                    inner.number_or("rope_theta", self.number_or("rope_theta", DEFAULT_THETA)?)?;
                (parameters, theta)
            }
            None => {
                let scaling = object("rope_scaling")?.unwrap_or(empty);
                (scaling, self.number_or("rope_theta", DEFAULT_THETA)?)
            }
        };
        if parameters.values().any(Value::is_object) {
            return Err(self.unsupported(
                "rotary parameters that differ from layer to layer".to_owned(),
                "",
            ));
        }
        let inner = Keys {
            json: &parameters,
            path: self.path,
        };
        if let Some(share) = inner
            .get("partial_rotary_factor")
            .filter(|share| share.as_f64() != Some(1.0))
        {
            return Err(self.unsupported(format!("`partial_rotary_factor: {share}`"), "1"));
        }
        let number = |key: &str| {
            let value = inner.number_or(key, f64::NAN)?;
            if value.is_nan() {
                Err(self.malformed(&format!("the rope scaling lacks `{key}`")))
            } else {
                Ok(value)
            }
        };
        // Before `rope_type`, the key was `type`.
        let kind = inner.text("rope_type")?.or(inner.text("type")?);
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
                return Err(self.unsupported(
                    format!("`rope_type: {other}`"),
                    "default, linear and llama3",
                ));
            }
        };
        Ok((theta, scaling))
    }

    /// `null` is no window; an absent key is the family's default.
    fn window(&self, family: Family) -> Result<Option<usize>, ModelError> {
        if self.json.contains_key("sliding_window") {
            return self.optional_size("sliding_window");
        }
        Ok(family.when_absent().sliding_window)
    }

    /// One window per block. `layer_types` decides where it is given; before
    /// it, Mistral windowed every layer and Qwen those from
    /// `max_window_layers` on, if `use_sliding_window`.
    pub(super) fn sliding_windows(
        &self,
        family: Family,
        n_layers: usize,
    ) -> Result<Vec<Option<usize>>, ModelError> {
        let window = match family {
            Family::Llama | Family::Gemma | Family::Opt => None,
            Family::Mistral => self.window(family)?,
            Family::Qwen2 | Family::Qwen3 if self.flag("use_sliding_window")? => {
                self.window(family)?
            }
            Family::Qwen2 | Family::Qwen3 => None,
        };
        if let Some(Value::Array(types)) = self.get("layer_types") {
            if types.len() != n_layers {
                return Err(self.malformed(&format!(
                    "`layer_types` has {} entries for {n_layers} layers",
                    types.len()
                )));
            }
            return types
                .iter()
                .map(|layer| match (layer.as_str(), window) {
                    (Some("full_attention"), _) => Ok(None),
                    (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
                    (Some("sliding_attention"), None) => Err(self.malformed(
                        "`layer_types` has sliding attention, but `sliding_window` is not in use",
                    )),
                    _ => Err(self.unsupported(
                        format!("`layer_types: {layer}`"),
                        "full_attention and sliding_attention",
                    )),
                })
                .collect();
        }
        let first_windowed = match family {
            Family::Qwen2 | Family::Qwen3 => self
                .get("max_window_layers")
                .and_then(Value::as_u64)
                .unwrap_or(28) as usize,
            _ => 0,
        };
        Ok((0..n_layers)
            .map(|layer| window.filter(|_| layer >= first_windowed))
            .collect())
    }
}
