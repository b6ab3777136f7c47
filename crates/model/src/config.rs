//! `config.json` as Hugging Face transformers writes it, versions 4 and 5.

use std::{fs, path::Path};

use serde_json::{Map, Value};

mod keys;

pub(crate) use keys::Keys;

use crate::{Activation, Dtype, Family, ModelError, NormKind};

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
    /// What `model_type` names.
    pub family: &'static Family,
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
        let family = Family::of(&keys)?;
        keys.refuse_what_no_family_computes()?;
        let config = (family.read)(&keys)?;
        Ok(Self {
            eos_token_ids: token_ids(json.get("eos_token_id")),
            json,
            ..config
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
    pub fn stored_dtype(&self) -> Option<Dtype> {
        let dtype = self
            .json
            .get("dtype")
            .or_else(|| self.json.get("torch_dtype"))?;
        [Dtype::F32, Dtype::Bf16, Dtype::F16]
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
