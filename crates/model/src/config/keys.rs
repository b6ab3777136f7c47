//! Typed access to the keys of `config.json`, and the refusal of what no family
//! computes.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Activation, ModelError};

/// The largest size that a model has in any direction: what is beyond does not
/// come from a model, and products of two such still fit 64 bits.
const LARGEST: u64 = u32::MAX as u64;
/// Blocks of the deepest model; published ones have up to a few hundred.
const MOST_LAYERS: usize = 10_000;

/// Typed access to the file's keys, with errors that name them.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) json: &'a Map<String, Value>,
    pub(crate) path: &'a Path,
}

impl<'a> Keys<'a> {
    /// The keys of an object in the file.
    pub(crate) fn within<'b>(&self, json: &'b Map<String, Value>) -> Keys<'b>
    where
        'a: 'b,
    {
        Keys {
            json,
            path: self.path,
        }
    }

    /// The value of a key; `null` is as good as no key.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn malformed(&self, reason: &str) -> ModelError {
        ModelError::malformed(self.path, "model configuration", &reason)
    }

    pub(crate) fn unsupported(&self, what: String, supported: impl Into<String>) -> ModelError {
        ModelError::Unsupported {
            path: self.path.to_owned(),
            what,
            supported: supported.into(),
        }
    }

    pub(crate) fn expected(&self, key: &str, value: &Value, expected: &str) -> ModelError {
        let shown = shortened(value);
        self.malformed(&format!("`{key}` is {shown}, but must be {expected}"))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<String>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.expected(key, other, "a string")),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<bool, ModelError> {
        self.flag_or(key, false)
    }

    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.expected(key, other, "true or false")),
        }
    }

    pub(crate) fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.get(key)
            .map(|value| {
                let size = value
                    .as_u64()
                    .filter(|size| (1..=LARGEST).contains(size))
                    .map(|size| size as usize);
                size.ok_or_else(|| {
                    let expected = format!("a positive whole number up to {LARGEST}");
                    self.expected(key, value, &expected)
                })
            })
            .transpose()
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.optional_size(key)?
            .ok_or_else(|| self.malformed(&format!("`{key}` is missing")))
    }

    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    /// How many blocks there are. Lists are made of that many, so that it is
    /// bounded before anything else is known.
    pub(crate) fn layers(&self) -> Result<usize, ModelError> {
        let key = "num_hidden_layers";
        let n_layers = self.size(key)?;
        if n_layers > MOST_LAYERS {
            let expected = format!("at most {MOST_LAYERS}");
            return Err(self.expected(key, &n_layers.into(), &expected));
        }
        Ok(n_layers)
    }

    /// A whole number that may be zero.
    pub(crate) fn index_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        self.get(key).map_or(Ok(default), |value| {
            let index = value.as_u64().filter(|&index| index <= LARGEST);
            let index = index.map(|index| index as usize);
            index.ok_or_else(|| self.expected(key, value, "a whole number of 0 or more"))
        })
    }

    /// The numbers enter computations in f32, where they must be neither zero nor
    /// infinite.
    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        self.get(key).map_or(Ok(default), |value| {
            let number = value.as_f64().filter(|number| {
                let number = *number as f32;
                number.is_finite() && number > 0.0
            });
            number.ok_or_else(|| self.expected(key, value, "a positive number of float32"))
        })
    }

    /// The tokens that a key names: one, a list or none. Each must be one of the
    /// vocabulary, since a wrong one would be a stop that never comes.
    pub(crate) fn token_ids(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let one = std::slice::from_ref(value);
        let all = value.as_array().map_or(one, Vec::as_slice);
        all.iter()
            .map(|id| {
                let known = id.as_u64().filter(|&id| id < vocab_size as u64);
                known.and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                    let expected = format!(
                        "a token, or a list of tokens, from 0 to {}",
                        vocab_size.saturating_sub(1)
                    );
                    self.expected(key, value, &expected)
                })
            })
            .collect()
    }

    /// The width of a head where the file does not give it.
    pub(crate) fn share_of_a_head(
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
    pub(crate) fn activation(
        &self,
        key: &str,
        known: &[(&str, Activation)],
        supported: impl Into<String>,
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

    /// Refuses a flag that is `refused`; that it is absent means the opposite.
    pub(crate) fn refuse_flag(&self, key: &str, refused: bool) -> Result<(), ModelError> {
        if self.flag_or(key, !refused)? == refused {
            return Err(self.unsupported(format!("`{key}: {refused}`"), ""));
        }
        Ok(())
    }

    /// Refuses keys that some families compute, where this one does not list
    /// them in `computed`, unless their value changes nothing.
    pub(crate) fn refuse_what_is_not_computed(&self, computed: &[&str]) -> Result<(), ModelError> {
        for (key, changes_nothing) in NOT_COMPUTED_BY_ALL {
            if computed.contains(key) {
                continue;
            }
            if let Some(value) = self.get(key).filter(|value| !changes_nothing(value)) {
                return Err(self.unsupported(
                    format!("`{key}: {}`", shortened(value)),
                    "models of this family without it",
                ));
            }
        }
        Ok(())
    }

    /// A list of whole numbers, or `None` without one.
    pub(crate) fn indices(&self, key: &str) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let index = |value: &Value| {
            let index = value.as_u64().filter(|&index| index <= LARGEST);
            index.map(|index| index as usize)
        };
        let all = value
            .as_array()
            .and_then(|all| all.iter().map(index).collect());
        all.map(Some)
            .ok_or_else(|| self.expected(key, value, "a list of whole numbers of 0 or more"))
    }

    /// A list of as many positive numbers as are `wanted`.
    pub(crate) fn numbers(&self, key: &str, wanted: usize) -> Result<Vec<f64>, ModelError> {
        let number = |value: &Value| {
            let number = value.as_f64();
            number.filter(|number| (*number as f32).is_finite() && *number as f32 > 0.0)
        };
        let value = self.get(key).unwrap_or(&Value::Null);
        let all: Option<Vec<f64>> = value
            .as_array()
            .and_then(|all| all.iter().map(number).collect());
        all.filter(|all| all.len() == wanted).ok_or_else(|| {
            let expected = format!("a list of {wanted} positive numbers");
            self.expected(key, value, &expected)
        })
    }

    /// A positive number, or `None` where the key is absent or null.
    pub(crate) fn optional_number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        Ok(Some(self.number_or(key, f64::NAN)?).filter(|number| !number.is_nan()))
    }

    /// An object, or `None` where the key is absent or null.
    pub(crate) fn object(&self, key: &str) -> Result<Option<&Map<String, Value>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.expected(key, other, "an object")),
        }
    }
}

/// A value as messages show it: it may be as long as the file.
fn shortened(value: &Value) -> String {
    let mut shown = value.to_string();
    if let Some((end, _)) = shown.char_indices().nth(100) {
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

/// What changes nothing.
type Neutral = fn(&Value) -> bool;

/// Keys that change the computation of some families, and which value of each
/// changes nothing.
const NOT_COMPUTED_BY_ALL: &[(&str, Neutral)] = &[
    ("final_logit_softcapping", never),
    ("attn_logit_softcapping", never),
    ("query_pre_attn_scalar", never),
    ("attention_multiplier", never),
    ("residual_multiplier", is_one),
    ("embedding_multiplier", is_one),
    ("logits_scaling", is_one),
    ("partial_rotary_factor", is_one),
    ("no_rope_layers", all_rotate),
    ("num_experts", is_zero),
    ("num_local_experts", is_zero),
    ("n_routed_experts", is_zero),
    ("clip_qkv", never),
    ("use_qk_norm", is_false),
    ("qk_layernorm", is_false),
];

fn never(_value: &Value) -> bool {
    false
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn is_false(value: &Value) -> bool {
    value.as_bool() == Some(false)
}

/// One for each block that rotates.
fn all_rotate(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|layers| layers.iter().all(|layer| layer.as_u64() == Some(1)))
}
