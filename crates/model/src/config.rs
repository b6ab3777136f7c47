//! `config.json` as Hugging Face transformers writes it, versions 4 and 5.

use std::path::Path;

use olora_files::read_bounded;
use serde_json::{Map, Value};

mod keys;
mod quantization;

pub(crate) use keys::Keys;
pub(crate) use quantization::{Groups, Mlx, Quantization};

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
            let keys = Keys {
                json: &json,
                path: &generation,
            };
            let ids = keys.token_ids("eos_token_id", config.vocab_size)?;
            config.eos_token_ids.extend(ids);
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
        config.refuse_impossible_sizes(&keys)?;
        Ok(Self {
            eos_token_ids: keys.token_ids("eos_token_id", config.vocab_size)?,
            json,
            ..config
        })
    }

    /// Refuses what would be too large before anything is made of it, each size
    /// being possible by itself.
    fn refuse_impossible_sizes(&self, keys: &Keys<'_>) -> Result<(), ModelError> {
        // The frequencies of a head are a list.
        const WIDEST_HEAD: usize = 1 << 16;
        if self.head_dim > WIDEST_HEAD {
            return Err(keys.malformed(&format!(
                "its heads have {} dimensions, but must have at most {WIDEST_HEAD}",
                self.head_dim
            )));
        }
        let n_params = self.least_params();
        if n_params > MOST_PARAMS {
            return Err(keys.malformed(&format!(
                "it asks for {:.1e} parameters, more than any model has (vocab_size {}, hidden_size {}, \
                 intermediate_size {}, num_hidden_layers {}, num_attention_heads {}, head_dim {}, \
                 max_position_embeddings {})",
                n_params as f64,
                self.vocab_size,
                self.hidden_size,
                self.intermediate_size,
                self.num_hidden_layers,
                self.num_attention_heads,
                self.head_dim,
                self.max_position_embeddings,
            )));
        }
        Ok(())
    }

    /// Elements of all matrices, without biases and norms: what a checkpoint
    /// must have at least.
    pub(crate) fn least_params(&self) -> u128 {
        let wide = |size: usize| size as u128;
        let hidden = wide(self.hidden_size);
        let head_dim = wide(self.head_dim);
        let queries = wide(self.num_attention_heads) * head_dim;
        let keys = wide(self.num_key_value_heads) * head_dim;
        let feed_forward = wide(self.intermediate_size) * if self.gated { 3 } else { 2 };
        let block = (2 * queries + 2 * keys + feed_forward).saturating_mul(hidden);
        let positions = self.position_limit().map_or(0, wide);
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        let outside = (wide(self.vocab_size) * heads + positions) * hidden;
        block
            .saturating_mul(wide(self.num_hidden_layers))
            .saturating_add(outside)
    }
}

/// Two hundred times the largest model that is known; counts in bytes and in
/// parameters of a model within it cannot overflow.
const MOST_PARAMS: u128 = 1 << 48;

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

/// Bytes of the largest configuration: published ones have some kilobytes.
pub(crate) const MOST_BYTES: u64 = 4 << 20;

pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let bytes =
        read_bounded(path, MOST_BYTES).map_err(|source| ModelError::io("reading", path, source))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ModelError::malformed(path, "JSON configuration", &error))
}
