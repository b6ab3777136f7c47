//! `config.json` as Hugging Face transformers writes it, versions 4 and 5.

use std::{fs, path::Path};

use serde_json::{Map, Value};

mod keys;

use keys::Keys;

use crate::{Activation, ModelError, NormKind, WeightType};

/// The sub-families of the decoder. What they differ in, [`ModelConfig`] spells
/// out.
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
    /// The first Gemma: a gate with GELU, norms about one, scaled embeddings.
    Gemma,
    /// OPT and what has its form (Galactica): layer norms, learned positions, a
    /// feed-forward network without gate.
    Opt,
}

/// What transformers 5 takes where `config.json` lacks a key
/// (`configuration_{llama,mistral,qwen2,qwen3,gemma,opt}.py`).
struct WhenAbsent {
    /// `None` is as many as query heads.
    num_key_value_heads: Option<usize>,
    /// `None` is `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    sliding_window: Option<usize>,
    tie_word_embeddings: bool,
}

impl Family {
    fn when_absent(self) -> WhenAbsent {
        let llama = WhenAbsent {
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            sliding_window: None,
            tie_word_embeddings: false,
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
                ..llama
            },
            Self::Gemma => WhenAbsent {
                num_key_value_heads: Some(16),
                head_dim: Some(256),
                max_position_embeddings: 8192,
                tie_word_embeddings: true,
                ..llama
            },
            Self::Opt => WhenAbsent {
                tie_word_embeddings: true,
                ..llama
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

/// A decoder's shape. Fields have the names of LLaMA's `config.json`, where it
/// has them.
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
    /// Which norm there is, everywhere but on heads.
    pub norm: NormKind,
    /// Added to the mean square, or to the variance, in every norm.
    pub norm_eps: f64,
    /// The non-linearity of the feed-forward network.
    pub activation: Activation,
    /// Whether the feed-forward network has a gate.
    pub gated: bool,
    /// Biases in the feed-forward network.
    pub mlp_bias: bool,
    /// Whether embeddings are multiplied by `√hidden_size`.
    pub scaled_embeddings: bool,
    /// Whether positions are learned, and none beyond them exist, instead of
    /// rotary.
    pub learned_positions: bool,
    /// Base of the rotary frequencies; unused where positions are learned, as is
    /// their scaling.
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
            Some("gemma") => Family::Gemma,
            Some("opt") => Family::Opt,
            other => {
                return Err(keys.unsupported(
                    format!("`model_type: {}`", other.unwrap_or("null")),
                    "llama, mistral, qwen2, qwen3, gemma and opt",
                ));
            }
        };
        keys.refuse_what_no_family_computes()?;
        let facts = match family {
            Family::Opt => Self::opt(&keys)?,
            _ => Self::rotary(&keys, family)?,
        };
        Ok(Self { json, ..facts })
    }

    /// All but OPT.
    fn rotary(keys: &Keys<'_>, family: Family) -> Result<Self, ModelError> {
        keys.refuse_what_rotary_families_do_not_compute()?;
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
        let (rope_theta, rope_scaling) = keys.rope()?;
        let sliding_windows = keys.sliding_windows(family, num_hidden_layers)?;
        let is_gemma = family == Family::Gemma;

        Ok(Self {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            norm: if is_gemma {
                NormKind::RmsPlusOne
            } else {
                NormKind::Rms
            },
            norm_eps: keys.number_or("rms_norm_eps", 1e-6)?,
            activation: if is_gemma {
                keys.activation_of_gemma()?
            } else {
                keys.activation("hidden_act", &[("silu", Activation::Silu)], "silu")?
            },
            gated: true,
            mlp_bias: false,
            scaled_embeddings: is_gemma,
            learned_positions: false,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: keys.flag_or("tie_word_embeddings", absent.tie_word_embeddings)?,
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias && family != Family::Qwen2,
            qk_norm: family == Family::Qwen3,
            sliding_windows,
            max_position_embeddings: keys
                .size_or("max_position_embeddings", absent.max_position_embeddings)?,
            initializer_range: keys.number_or("initializer_range", 0.02)?,
            eos_token_ids: token_ids(keys.json.get("eos_token_id")),
            json: Map::new(),
        })
    }

    /// OPT, whose file has keys of its own. Its dropout is not followed, as no
    /// other family's is: adapters have theirs.
    fn opt(keys: &Keys<'_>) -> Result<Self, ModelError> {
        let hidden_size = keys.size("hidden_size")?;
        keys.refuse_what_opt_does_not_compute(hidden_size)?;
        let num_attention_heads = keys.size("num_attention_heads")?;
        let num_hidden_layers = keys.size("num_hidden_layers")?;
        let absent = Family::Opt.when_absent();
        let bias = keys.flag_or("enable_bias", true)?;
        let affine = keys.flag_or("layer_norm_elementwise_affine", true)?;
        Ok(Self {
            family: Family::Opt,
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
            scaled_embeddings: false,
            learned_positions: true,
            rope_theta: 0.0,
            rope_scaling: RopeScaling::None,
            tie_word_embeddings: keys.flag_or("tie_word_embeddings", absent.tie_word_embeddings)?,
            qkv_bias: bias,
            o_bias: bias,
            qk_norm: false,
            sliding_windows: vec![None; num_hidden_layers],
            max_position_embeddings: keys
                .size_or("max_position_embeddings", absent.max_position_embeddings)?,
            initializer_range: keys.number_or("init_std", 0.02)?,
            eos_token_ids: token_ids(keys.json.get("eos_token_id")),
            json: Map::new(),
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
            max_position_embeddings: 1,
            ..self.clone()
        }
    }

    /// How many positions exist at all: a longer sequence cannot be computed.
    /// `None` where the checkpoint was made for
    /// [`max_position_embeddings`](Self::max_position_embeddings), but rotary
    /// positions go on.
    pub fn position_limit(&self) -> Option<usize> {
        self.learned_positions
            .then_some(self.max_position_embeddings)
    }

    /// The file as it was read: what `config.json` holds, or would hold.
    pub fn json(&self) -> &Map<String, Value> {
        &self.json
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
