//! The rotary embeddings of a `config.json`.

use serde_json::{Map, Value};

use super::shape::{Shape, number, optional_size};
use crate::{GgufError, config::YARN, families::Own, rope::Llama3};

/// How queries and keys are rotated, in the blocks without a window if others
/// differ.
pub(super) struct Rope {
    pub(super) theta: f64,
    pub(super) scaling: Scaling,
    /// The base in blocks with a window, where the configuration gives it.
    pub(super) local_theta: Option<f64>,
}

pub(super) enum Scaling {
    None,
    Linear(f64),
    Llama3(Llama3),
    Yarn(Yarn),
    LongRope { long: Vec<f32>, short: Vec<f32> },
}

pub(super) struct Yarn {
    pub(super) factor: f64,
    pub(super) original: f64,
    /// What the configuration gives beside: keys of the metadata.
    pub(super) given: Vec<(&'static str, f64)>,
    /// `mscale_all_dim`, if it is given and not zero.
    pub(super) all: Option<f64>,
}

impl Shape<'_> {
    /// transformers 5 has `rope_parameters`, before it there were `rope_theta`
    /// and `rope_scaling`. Where blocks differ, version 5 has parameters by the
    /// kind of block.
    pub(super) fn rope(&self) -> Result<Rope, GgufError> {
        let config = self.config;
        let object = |key| config.get(key).and_then(Value::as_object);
        let parameters = object("rope_parameters");
        let of = |key| parameters?.get(key)?.as_object();
        let (whole, local) = (of("full_attention"), of("sliding_attention"));
        let inner = whole.or(parameters).or(object("rope_scaling"));
        let empty = Map::new();
        let inner = inner.unwrap_or(&empty);
        let theta = match number(inner, "rope_theta")? {
            Some(theta) => theta,
            None => number(config, "rope_theta")?.unwrap_or(self.family.theta),
        };
        let local_theta = match local {
            Some(local) => number(local, "rope_theta")?,
            None => number(config, "rope_local_base_freq")?,
        };
        let kind = inner.get("rope_type").or(inner.get("type"));
        let kind = kind.and_then(Value::as_str);
        let is_phi3 = self.family.own == Own::Phi3;
        let scaling = match kind {
            None | Some("default") => Scaling::None,
            Some("longrope" | "su" | "yarn") if is_phi3 => Self::longrope(inner)?,
            Some("linear") => Scaling::Linear(required(inner, "factor")?),
            Some("llama3") => Scaling::Llama3(Llama3 {
                factor: required(inner, "factor")?,
                low_freq_factor: required(inner, "low_freq_factor")?,
                high_freq_factor: required(inner, "high_freq_factor")?,
                original: required(inner, ORIGINAL)?,
            }),
            Some("yarn") => Scaling::Yarn(self.yarn(inner)?),
            Some(other) => {
                return Err(GgufError::unwritable(
                    format!("`rope_type: {other}`"),
                    "only default, linear, llama3 and yarn can be, and longrope for phi3",
                ));
            }
        };
        Ok(Rope {
            theta,
            scaling,
            local_theta,
        })
    }

    /// How many features of a head rotate.
    pub(super) fn rotated(&self) -> Result<usize, GgufError> {
        const PART: &str = "partial_rotary_factor";
        let inner = self
            .config
            .get("rope_parameters")
            .and_then(Value::as_object);
        let part = match inner
            .map(|inner| number(inner, PART))
            .transpose()?
            .flatten()
        {
            Some(part) => part,
            None => number(self.config, PART)?.unwrap_or(1.0),
        };
        Ok((self.head_dim as f64 * part) as usize)
    }

    /// The trained context of a scaling.
    pub(super) fn original(&self, inner: &Map<String, Value>) -> Result<f64, GgufError> {
        let beside = optional_size(self.config, ORIGINAL)?.map(|size| size as f64);
        let given = match beside {
            Some(beside) => Some(beside),
            None => number(inner, ORIGINAL)?,
        };
        match given {
            Some(given) => Ok(given),
            None => required(self.config, "max_position_embeddings"),
        }
    }

    /// llama.cpp computes `YaRN` with fixed bounds, but for Ministral 3.
    fn yarn(&self, inner: &Map<String, Value>) -> Result<Yarn, GgufError> {
        let original = self.original(inner)?;
        let factor = match number(inner, "factor")? {
            Some(factor) => factor,
            None => required(self.config, "max_position_embeddings")? / original,
        };
        let refused = |what: String| GgufError::unwritable(what, "llama.cpp computes another YaRN");
        let mut given = Vec::new();
        for (key, stored) in YARN {
            if let Some(value) = number(inner, key)? {
                given.push((stored, value));
            }
        }
        if inner.get("truncate") == Some(&Value::Bool(false)) {
            return Err(refused("`truncate: false`".to_owned()));
        }
        let own = self.family.own == Own::Ministral3;
        for (key, fixed) in [("beta_fast", 32.0), ("beta_slow", 1.0)] {
            let value = number(inner, key)?;
            if let Some(other) = value.filter(|value| *value != fixed && !own) {
                return Err(refused(format!("`{key}: {other}`")));
            }
        }
        let grown = |by: f64| {
            1.0 + if factor > 1.0 {
                0.1 * by * factor.ln()
            } else {
                0.0
            }
        };
        let scales = [
            number_or_zero(inner, "mscale")?,
            number_or_zero(inner, "mscale_all_dim")?,
        ];
        let wanted = match (number(inner, "attention_factor")?, scales) {
            (Some(wanted), _) => wanted,
            (None, [scale, all]) if scale > 0.0 && all > 0.0 => grown(scale) / grown(all),
            _ => grown(1.0),
        };
        let all = Some(scales[1]).filter(|all| own && *all > 0.0);
        let computed = grown(1.0) / all.map_or(1.0, grown);
        if (wanted - computed).abs() > 1e-5 * computed {
            return Err(refused(format!("an attention factor of {wanted}")));
        }
        Ok(Yarn {
            factor,
            original,
            given,
            all,
        })
    }

    fn longrope(inner: &Map<String, Value>) -> Result<Scaling, GgufError> {
        let factors = |key: &str| {
            let numbers = |list: &Vec<Value>| -> Option<Vec<f32>> {
                let each = list
                    .iter()
                    .map(|value| value.as_f64().map(|value| value as f32));
                each.collect()
            };
            let list = inner.get(key).and_then(Value::as_array).and_then(numbers);
            list.ok_or_else(|| {
                GgufError::unwritable(SCALING, format!("`{key}` is no list of numbers"))
            })
        };
        Ok(Scaling::LongRope {
            long: factors("long_factor")?,
            short: factors("short_factor")?,
        })
    }
}

pub(super) const ORIGINAL: &str = "original_max_position_embeddings";
const SCALING: &str = "the scaling of the rotary embeddings";

fn required(object: &Map<String, Value>, key: &str) -> Result<f64, GgufError> {
    number(object, key)?
        .ok_or_else(|| GgufError::unwritable(SCALING, format!("`{key}` is missing")))
}

/// Zero is as good as no number.
fn number_or_zero(object: &Map<String, Value>, key: &str) -> Result<f64, GgufError> {
    match object.get(key).and_then(Value::as_f64) {
        Some(0.0) => Ok(0.0),
        _ => Ok(number(object, key)?.unwrap_or(0.0)),
    }
}
