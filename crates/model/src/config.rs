//! `config.json` as Hugging Face transformers writes it, versions 4 and 5.

use std::{fs, path::Path};

use serde_json::{Map, Value};

use crate::{ModelError, WeightType};

/// The sub-families of the decoder. They differ only in where biases, head
/// norms and sliding windows are, which [`ModelConfig`] spells out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// LLaMA 1 to 3 and everything shaped like it (`SmolLM`, `TinyLlama`, …).
    Llama,
    /// Mistral: a sliding attention window.
    Mistral,
    /// Qwen2: biases on the query, key and value projections.
    Qwen2,
    /// Qwen3: RMS norms on each head's queries and keys.
    Qwen3,
}

/// What transformers 5 takes where `config.json` lacks a key
/// (`configuration_{llama,mistral,qwen2,qwen3}.py`).
struct WhenAbsent {
    /// `None` is as many as query heads.
    num_key_value_heads: Option<usize>,
    /// `None` is `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    sliding_window: Option<usize>,
}

impl Family {
    fn when_absent(self) -> WhenAbsent {
        let llama = WhenAbsent {
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            sliding_window: None,
        };
        match self {
            Self::Llama => llama,
            Self::Mistral => WhenAbsent {
                num_key_value_heads: Some(8),
                max_position_embeddings: 4096 * 32,
                sliding_window: Some(4096),
                ..llama
            },
            Self::Qwen2 => WhenAbsent {
                num_key_value_heads: Some(32),
                max_position_embeddings: 32_768,
                sliding_window: Some(4096),
                ..llama
            },
            Self::Qwen3 => WhenAbsent {
                num_key_value_heads: Some(32),
                head_dim: Some(128),
                max_position_embeddings: 32_768,
                sliding_window: Some(4096),
            },
        }
    }
}

/// What rescales the rotary frequencies beyond the trained context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// `rope_type: "default"`.
    None,
    /// `rope_type: "linear"`: positions divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// `rope_type: "llama3"`: low frequencies divided by the factor, high ones
    /// kept, those between interpolated.
    Llama3 {
        /// The factor for low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are scaled.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context length the base was trained with.
        original_max_position_embeddings: f64,
    },
}

/// A decoder's shape. Fields have the names of `config.json`, where it has them.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own in config.json"
)]
pub struct ModelConfig {
    /// `model_type`.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides the number of query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; `hidden_size / num_attention_heads` if not given.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Whether `lm_head` is the embedding's transpose.
    pub tie_word_embeddings: bool,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// A bias on the output projection of attention.
    pub o_bias: bool,
    /// RMS norms on each head's queries and keys.
    pub qk_norm: bool,
    /// For each block, how many positions back a token sees, itself included;
    /// `None` is all of them.
    pub sliding_windows: Vec<Option<usize>>,
    /// Longest sequence the checkpoint was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of freshly initialised weights.
    pub initializer_range: f64,
    /// `eos_token_id`, one or several; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// The file as read, to be written back with merged weights.
    pub(crate) json: Map<String, Value>,
}

impl ModelConfig {
    /// Reads `config.json` and, if it is there, the end-of-sequence ids of
    /// `generation_config.json`, which list all that a chat model may stop at.
    ///
    /// # Errors
    ///
    /// [`ModelError::Unsupported`] for any key whose value changes the
    /// computation in a way this decoder does not follow.
    pub fn from_dir(directory: &Path) -> Result<Self, ModelError> {
        let mut config = Self::from_file(&directory.join("config.json"))?;
        let generation = directory.join("generation_config.json");
        if generation.exists() {
            let json = read_object(&generation)?;
            config
                .eos_token_ids
                .extend(token_ids(json.get("eos_token_id")));
            config.eos_token_ids.sort_unstable();
            config.eos_token_ids.dedup();
        }
        Ok(config)
    }

    /// Reads one `config.json`.
    ///
    /// # Errors
    ///
    /// As [`from_dir`](Self::from_dir).
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        Self::from_json(read_object(path)?, path)
    }

    /// Takes what a `config.json` would hold; `path` is what errors call it.
    ///
    /// # Errors
    ///
    /// As [`from_dir`](Self::from_dir).
    pub fn from_json(json: Map<String, Value>, path: &Path) -> Result<Self, ModelError> {
        let keys = Keys { json: &json, path };

        let family = match keys.text("model_type")?.as_deref() {
            Some("llama") => Family::Llama,
            Some("mistral") => Family::Mistral,
            Some("qwen2") => Family::Qwen2,
            Some("qwen3") => Family::Qwen3,
            other => {
                return Err(keys.unsupported(
                    format!("`model_type: {}`", other.unwrap_or("null")),
                    "llama, mistral, qwen2 and qwen3",
                ));
            }
        };
        keys.refuse_what_we_do_not_compute()?;
        let attention_bias = keys.flag("attention_bias")?;
        if attention_bias && matches!(family, Family::Mistral) {
            return Err(keys.unsupported("`attention_bias: true` for mistral".to_owned(), ""));
        }

        let hidden_size = keys.size("hidden_size")?;
        let num_attention_heads = keys.size("num_attention_heads")?;
        let num_hidden_layers = keys.size("num_hidden_layers")?;
        let absent = family.when_absent();
        let num_key_value_heads = keys.size_or(
            "num_key_value_heads",
            absent.num_key_value_heads.unwrap_or(num_attention_heads),
        )?;
        let head_dim = match keys.optional_size("head_dim")?.or(absent.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(num_attention_heads) => {
                hidden_size / num_attention_heads
            }
            None => {
                return Err(keys.malformed(&format!(
                    "hidden_size ({hidden_size}) is not a multiple of num_attention_heads \
                     ({num_attention_heads}), and `head_dim` is not given"
                )));
            }
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
        let (rope_theta, rope_scaling) = keys.rope()?;
        let sliding_windows = keys.sliding_windows(family, num_hidden_layers)?;

        Ok(Self {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6)?,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?,
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias && family != Family::Qwen2,
            qk_norm: family == Family::Qwen3,
            sliding_windows,
            max_position_embeddings: keys
                .size_or("max_position_embeddings", absent.max_position_embeddings)?,
            initializer_range: keys.number_or("initializer_range", 0.02)?,
            eos_token_ids: token_ids(json.get("eos_token_id")),
            json,
        })
    }
}

impl ModelConfig {
    /// A configuration of the same layers under the same names, whose weights
    /// are as small as can be: for questions about the layers alone.
    #[must_use]
    pub fn miniature(&self) -> Self {
        Self {
            hidden_size: 1,
            intermediate_size: 1,
            vocab_size: 1,
            head_dim: 2,
            num_attention_heads: 1,
            num_key_value_heads: 1,
            ..self.clone()
        }
    }

    /// The number format that the checkpoint says it is stored in, if it does.
    pub fn stored_dtype(&self) -> Option<WeightType> {
        let dtype = self
            .json
            .get("dtype")
            .or_else(|| self.json.get("torch_dtype"))?;
        [WeightType::F32, WeightType::Bf16, WeightType::F16]
            .into_iter()
            .find(|weight_type| dtype.as_str() == Some(weight_type.name()))
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let bytes = fs::read(path).map_err(|source| ModelError::io("reading", path, source))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ModelError::malformed(path, "JSON configuration", &error))
}

fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Typed access to the file's keys, with errors that name them.
struct Keys<'a> {
    json: &'a Map<String, Value>,
    path: &'a Path,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn malformed(&self, reason: &str) -> ModelError {
        ModelError::malformed(self.path, "model configuration", &reason)
    }

    fn unsupported(&self, what: String, supported: &'static str) -> ModelError {
        ModelError::Unsupported {
            path: self.path.to_owned(),
            what,
            supported,
        }
    }

    fn expected(&self, key: &str, value: &Value, expected: &str) -> ModelError {
        self.malformed(&format!("`{key}` is {value}, but must be {expected}"))
    }

    fn text(&self, key: &str) -> Result<Option<String>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.expected(key, other, "a string")),
        }
    }

    fn flag(&self, key: &str) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.expected(key, other, "true or false")),
        }
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
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

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.optional_size(key)?
            .ok_or_else(|| self.malformed(&format!("`{key}` is missing")))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        self.get(key).map_or(Ok(default), |value| {
            let number = value
                .as_f64()
                .filter(|number| number.is_finite() && *number > 0.0);
            number.ok_or_else(|| self.expected(key, value, "a positive number"))
        })
    }

    fn refuse_what_we_do_not_compute(&self) -> Result<(), ModelError> {
        if self.get("quantization_config").is_some() {
            return Err(self.unsupported(
                "a quantised checkpoint (`quantization_config`)".to_owned(),
                "f32, f16 and bf16 weights",
            ));
        }
        if let Some(act) = self.text("hidden_act")?.filter(|act| act != "silu") {
            return Err(self.unsupported(format!("`hidden_act: {act}`"), "silu"));
        }
        if self.flag("mlp_bias")? {
            return Err(self.unsupported("`mlp_bias: true`".to_owned(), ""));
        }
        if let Some(share) = self
            .get("partial_rotary_factor")
            .filter(|share| share.as_f64() != Some(1.0))
        {
            return Err(self.unsupported(format!("`partial_rotary_factor: {share}`"), "1"));
        }
        Ok(())
    }

    /// Version 5 has `rope_parameters`, version 4 `rope_theta` and `rope_scaling`.
    fn rope(&self) -> Result<(f64, RopeScaling), ModelError> {
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
    fn sliding_windows(
        &self,
        family: Family,
        n_layers: usize,
    ) -> Result<Vec<Option<usize>>, ModelError> {
        let window = match family {
            Family::Llama => None,
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
