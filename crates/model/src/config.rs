//! `config.json` as Hugging Face transformers writes it, versions 4 and 5.

use std::path::Path;

use olora_files::read_bounded;
use serde_json::{Map, Value};

mod keys;
mod quantization;

pub(crate) use keys::Keys;
pub(crate) use quantization::{Groups, Mlx, Quantization};

use crate::{Activation, Dtype, Family, ModelError, NormKind, Rope, RopeScaling};

/// Where norms stand around attention and the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOrder {
    /// Before each: `x + f(norm(x))`.
    Before,
    /// After each: `x + norm(f(x))` (`OLMo` 2, [arXiv 2501.00656](https://arxiv.org/abs/2501.00656)).
    After,
    /// Before and after: `x + norm(f(norm(x)))` (Gemma 2 and 3).
    Around,
}

/// What of queries and keys is normed before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Nothing.
    None,
    /// Each head by itself.
    PerHead,
    /// All heads together (`OLMo` 2).
    Whole,
}

/// The experts of a mixture ([arXiv 2101.03961](https://arxiv.org/abs/2101.03961),
/// as `modeling_mixtral.py` has it: each token through the best few, weighted).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many of them a token goes through.
    pub per_token: usize,
    /// Width inside each.
    pub intermediate_size: usize,
    /// Whether the weights of a token's experts are scaled to add up to one.
    pub normalised: bool,
    /// For each block, whether it has experts; the others have one feed-forward
    /// network.
    pub layers: Vec<bool>,
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
    /// Where the norms stand.
    pub norm_order: NormOrder,
    /// What embedded tokens are multiplied by, if by anything: `√hidden_size`
    /// (Gemma), `embedding_multiplier` (Granite).
    pub embedding_scale: Option<f64>,
    /// What attention and the feed-forward network are multiplied by before they
    /// are added to the residual stream: `residual_multiplier` (Granite), 1 else.
    pub residual_scale: f64,
    /// What logits are multiplied by: `1 / logits_scaling` (Granite), 1 else.
    pub logit_scale: f64,
    /// What bends logits `z` to `cap·tanh(z/cap)`: `final_logit_softcapping`
    /// (Gemma 2).
    pub logit_cap: Option<f64>,
    /// What products of queries and keys are multiplied by, if not by
    /// `1/√head_dim`: `query_pre_attn_scalar^-½` (Gemma 2 and 3),
    /// `attention_multiplier` (Granite).
    pub attention_scale: Option<f64>,
    /// What bends the scores of attention in the same way:
    /// `attn_logit_softcapping` (Gemma 2).
    pub attention_cap: Option<f64>,
    /// Whether positions are learned, and none beyond them exist, instead of
    /// rotary.
    pub learned_positions: bool,
    /// How queries and keys are rotated, in one way or, if blocks differ, in
    /// several; empty where positions are learned.
    pub ropes: Vec<Rope>,
    /// For each block, which of [`ropes`](Self::ropes) it has; `None` if it
    /// rotates nothing (`SmolLM3`).
    pub layer_ropes: Vec<Option<usize>>,
    /// Queries grow with their position `p`, by `1 + β·ln(1 + ⌊p / n⌋)`:
    /// `(β, n)` (`llama_4_scaling_beta`, Ministral 3).
    pub query_growth: Option<(f64, f64)>,
    /// Whether `lm_head` is the embedding's transpose.
    pub tie_word_embeddings: bool,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// A bias on the output projection of attention.
    pub o_bias: bool,
    /// RMS norms on queries and keys.
    pub qk_norm: QkNorm,
    /// Whether queries, keys and values are one projection, `qkv_proj`, and gate
    /// and up another, `gate_up_proj` (Phi-3).
    pub fused: bool,
    /// Experts in the place of the feed-forward networks.
    pub experts: Option<Experts>,
    /// For each block, how many positions back a token sees, itself included;
    /// `None` is all of them.
    pub sliding_windows: Vec<Option<usize>>,
    /// Longest sequence the checkpoint was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of freshly initialised weights.
    pub initializer_range: f64,
    /// `eos_token_id`, one or several; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// Whether this is the text model of one that reads pictures too, whose
    /// other parts are left out.
    pub with_pictures: bool,
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
        let (json, with_pictures) = text_part(json, path)?;
        let keys = Keys { json: &json, path };
        let family = Family::of(&keys)?;
        // Matrices that are packed are read, in the ways that are known.
        Quantization::of(&keys)?;
        keys.refuse_what_is_not_computed(family.computes)?;
        let config = (family.read)(&keys)?;
        config.refuse_impossible_sizes(&keys)?;
        let json = if with_pictures {
            config.filled(&json)
        } else {
            json.clone()
        };
        let keys = Keys { json: &json, path };
        Ok(Self {
            eos_token_ids: keys.token_ids("eos_token_id", config.vocab_size)?,
            with_pictures,
            json,
            ..config
        })
    }

    /// The file with the sizes that it left to its family's defaults, which
    /// other programs may not know.
    fn filled(&self, json: &Map<String, Value>) -> Map<String, Value> {
        let mut json = json.clone();
        for (key, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if json.get(key).is_none_or(Value::is_null) {
                json.insert(key.to_owned(), size.into());
            }
        }
        json
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
        let attention = 2 * queries + 2 * keys;
        let positions = self.position_limit().map_or(0, wide);
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        let outside = (wide(self.vocab_size) * heads + positions) * hidden;
        let n_layers = wide(self.num_hidden_layers);
        let (mixed, width) = match &self.experts {
            None => (0, 0),
            Some(experts) => {
                let mixed = experts.layers.iter().filter(|mixed| **mixed).count();
                let all = wide(experts.count) * (3 * wide(experts.intermediate_size) + 1);
                (wide(mixed), all)
            }
        };
        let plain = n_layers - mixed;
        (attention * n_layers)
            .saturating_add(feed_forward.saturating_mul(plain))
            .saturating_add(width.saturating_mul(mixed))
            .saturating_mul(hidden)
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
            experts: self.experts.clone().map(|experts| Experts {
                intermediate_size: 1,
                ..experts
            }),
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

    /// The longest sequence that is read: as long as the checkpoint was made for,
    /// or, with dynamic scaling, which begins there, so many times that.
    pub fn longest_sequence(&self) -> usize {
        let factor = self.ropes.iter().find_map(|rope| match rope.scaling {
            RopeScaling::Dynamic { factor, .. } => Some(factor),
            _ => None,
        });
        let longest = self.max_position_embeddings as f64 * factor.unwrap_or(1.0);
        (longest as usize).max(self.max_position_embeddings)
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

/// The decoder's own part of a configuration: that of a model of pictures and
/// text has it in `text_config`. What a whole has beside it and a decoder needs
/// is taken along. And whether it was part of a whole.
fn text_part(
    json: Map<String, Value>,
    path: &Path,
) -> Result<(Map<String, Value>, bool), ModelError> {
    let keys = Keys { json: &json, path };
    let kind = keys.text("model_type")?;
    let Some(whole) = crate::families::with_pictures(kind.as_deref()) else {
        return Ok((json, false));
    };
    let Some(Value::Object(text)) = keys.get("text_config") else {
        return Err(keys.malformed(&format!(
            "`model_type: {}` has its text model in `text_config`, which is missing",
            whole.model_type
        )));
    };
    let mut text = text.clone();
    text.entry("model_type")
        .or_insert_with(|| whole.text_model_type.into());
    for key in [
        "dtype",
        "torch_dtype",
        "eos_token_id",
        "bos_token_id",
        "pad_token_id",
    ] {
        if let Some(value) = json.get(key).filter(|value| !value.is_null()) {
            text.entry(key).or_insert_with(|| value.clone());
        }
    }
    for key in ["tie_word_embeddings", "quantization_config", "quantization"] {
        // The whole decides these.
        if let Some(value) = json.get(key) {
            text.insert(key.to_owned(), value.clone());
        }
    }
    let architecture = Value::from(vec![whole.text_class]);
    text.insert("architectures".to_owned(), architecture);
    Ok((text, true))
}
