//! Typed access to the keys of `config.json`, and the refusal of what no family
//! computes.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Activation, ModelError};

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
        self.malformed(&format!("`{key}` is {value}, but must be {expected}"))
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
                    .filter(|&size| size > 0)
                    .map(|size| size as usize);
                size.ok_or_else(|| self.expected(key, value, "a positive whole number"))
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

    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        self.get(key).map_or(Ok(default), |value| {
            let number = value
                .as_f64()
                .filter(|number| number.is_finite() && *number > 0.0);
            number.ok_or_else(|| self.expected(key, value, "a positive number"))
        })
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

    pub(crate) fn refuse_what_no_family_computes(&self) -> Result<(), ModelError> {
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
}
