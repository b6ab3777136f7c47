//! The metadata about a model's shape as a `config.json`.

use serde_json::{Map, Value, json};

mod own;

use crate::{
    GgufError,
    families::{Family, Mark, Own, Window},
    metadata::Metadata,
    names::Heads,
    read::ROPE_FREQUENCIES,
    rope,
    types::TensorType,
};

pub(crate) use own::GRANITE;

/// Tensors with factors of the rotary frequencies, by name.
pub(crate) type Factors<'a> = dyn Fn(&str) -> Option<Vec<f32>> + 'a;

/// The keys of one architecture: `llama.block_count` and so on.
struct Keys<'a> {
    metadata: Metadata<'a>,
    family: &'static Family,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.family.architecture)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.metadata.size(&self.key(key))
    }

    /// A size of one or more that must be there.
    fn required(&self, key: &str) -> Result<u64, GgufError> {
        let key = self.key(key);
        match self.metadata.required_size(&key)? {
            0 => Err(self.malformed(format!("`{key}` is 0"))),
            size => Ok(size),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.metadata.number(&self.key(key))
    }

    fn malformed(&self, reason: String) -> GgufError {
        GgufError::malformed(self.metadata.path, reason)
    }

    fn unsupported(&self, what: String, supported: &str) -> GgufError {
        GgufError::unsupported(self.metadata.path, what, supported)
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.metadata.header.tensors.contains_key(name)
    }
}

/// Special tokens: key in `config.json`, key in the metadata.
const TOKENS: [(&str, &str); 3] = [
    ("bos_token_id", "tokenizer.ggml.bos_token_id"),
    ("eos_token_id", "tokenizer.ggml.eos_token_id"),
    ("pad_token_id", "tokenizer.ggml.padding_token_id"),
];

/// The configuration, with the keys that transformers writes.
pub(crate) fn read(
    metadata: Metadata<'_>,
    family: &'static Family,
    factors: &Factors<'_>,
) -> Result<Map<String, Value>, GgufError> {
    let keys = Keys { metadata, family };
    let hidden_size = keys.required("embedding_length")?;
    let heads = keys.required("attention.head_count")?;
    let kv_heads = match keys.size("attention.head_count_kv")? {
        Some(0) => return Err(keys.malformed("its key heads are 0 in number".to_owned())),
        kv_heads => kv_heads.unwrap_or(heads),
    };
    let head_dim = head_dim(&keys, hidden_size, heads)?;
    let window = window(metadata, family.architecture)?;
    let eps = "attention.layer_norm_rms_epsilon";
    let rms_norm_eps = keys
        .number(eps)?
        .ok_or_else(|| metadata.missing(&keys.key(eps)))?;

    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    set("architectures", json!([family.class]));
    set("model_type", json!(family.model_type));
    set("vocab_size", json!(vocab_size(&keys)?));
    set("hidden_size", json!(hidden_size));
    set(
        "intermediate_size",
        json!(keys.required("feed_forward_length")?),
    );
    set("num_hidden_layers", json!(keys.required("block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(kv_heads));
    set("head_dim", json!(head_dim));
    set("hidden_act", json!(family.activations[0]));
    set("rms_norm_eps", json!(rms_norm_eps));
    set(
        "max_position_embeddings",
        json!(keys.required("context_length")?),
    );
    set(
        "tie_word_embeddings",
        json!(!keys.has_tensor("output.weight")),
    );
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let rope_factors = factors(ROPE_FREQUENCIES);
    let scaling = rope_scaling(&keys, head_dim, theta, rope_factors.as_deref())?;
    set("rope_theta", json!(theta));
    if let Some(scaling) = scaling {
        set("rope_scaling", Value::Object(scaling));
    }
    match (window, family.window) {
        (Some(window), Window::Kept) => drop(set("sliding_window", json!(window))),
        (Some(window), Window::Refused) => {
            return Err(keys.unsupported(
                format!(
                    "a sliding window of {window} in a {} model",
                    family.model_type
                ),
                &format!("{} models without one", family.model_type),
            ));
        }
        (None, _) | (Some(_), Window::Absent) => {}
    }
    if family.optional_biases {
        set(
            "attention_bias",
            json!(keys.has_tensor("blk.0.attn_q.bias")),
        );
        set("mlp_bias", json!(keys.has_tensor("blk.0.ffn_up.bias")));
    }
    for (key, value) in family.constants {
        set(key, json!(value));
    }
    for (key, source) in TOKENS {
        if let Some(id) = metadata.size(source)? {
            set(key, json!(id));
        }
    }
    set("dtype", json!(dtype(&metadata)));
    own::read(&keys, &mut config, factors)?;
    Ok(config)
}

/// What tells the family of a file of this architecture.
pub(crate) fn marks(metadata: Metadata<'_>, architecture: &str) -> Result<Vec<Mark>, GgufError> {
    let growth = format!("{architecture}.attention.temperature_scale");
    let mut marks = Vec::new();
    if window(metadata, architecture)?.is_some() {
        marks.push(Mark::Window);
    }
    if metadata.number(&growth)?.is_some_and(|scale| scale != 0.0) {
        marks.push(Mark::Growth);
    }
    let experts = metadata.size(&format!("{architecture}.expert_count"))?;
    if experts.is_some_and(|experts| experts > 0) {
        marks.push(Mark::Experts);
    }
    Ok(marks)
}

/// Refuses experts in models of which none are known.
pub(crate) fn refuse_unknown_experts(
    metadata: Metadata<'_>,
    family: &'static Family,
) -> Result<(), GgufError> {
    let keys = Keys { metadata, family };
    let experts = keys.size("expert_count")?.filter(|experts| *experts > 0);
    if experts.is_some() && family.stacks.is_empty() {
        let what = format!(
            "a mixture of experts of the architecture `{}`",
            family.architecture
        );
        return Err(keys.unsupported(
            what,
            "those of llama (Mixtral) and qwen3moe, and dense models",
        ));
    }
    Ok(())
}

/// How many positions back a token sees, if that is limited.
fn window(metadata: Metadata<'_>, architecture: &str) -> Result<Option<u64>, GgufError> {
    let window = metadata.size(&format!("{architecture}.attention.sliding_window"))?;
    Ok(window.filter(|&window| window > 0))
}

/// The heads of a configuration that [`read`] made.
pub(crate) fn heads(config: &Map<String, Value>) -> Heads {
    let size = |key| config.get(key).and_then(Value::as_u64).unwrap_or(0) as usize;
    Heads {
        queries: size("num_attention_heads"),
        keys: size("num_key_value_heads"),
    }
}

fn head_dim(keys: &Keys<'_>, hidden_size: u64, heads: u64) -> Result<u64, GgufError> {
    let rotated = keys.size("rope.dimension_count")?;
    let whole = rotated.filter(|_| keys.family.own != Own::Phi3);
    let head_dim = match keys.size("attention.key_length")?.or(whole) {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(keys.malformed(format!(
                "its {hidden_size} dimensions cannot be divided among {heads} heads, and `{}` is not given",
                keys.key("attention.key_length")
            )));
        }
    };
    if let Some(values) = keys
        .size("attention.value_length")?
        .filter(|&n| n != head_dim)
    {
        let what = format!("keys of {head_dim} dimensions and values of {values}");
        return Err(keys.unsupported(what, "heads with as many of each"));
    }
    let in_parts = keys.family.own == Own::Phi3;
    if let Some(rotated) = rotated.filter(|&rotated| rotated != head_dim && !in_parts) {
        let what = format!("rotary embeddings of {rotated} of {head_dim} dimensions");
        return Err(keys.unsupported(what, "rotary embeddings of whole heads"));
    }
    Ok(head_dim)
}

/// As many as the embedding has rows; the tokenizer may know fewer.
fn vocab_size(keys: &Keys<'_>) -> Result<usize, GgufError> {
    let embedding = keys.metadata.header.tensors.get("token_embd.weight");
    match embedding.map(|info| info.shape.as_slice()) {
        Some(&[rows, _]) => Ok(rows),
        Some(_) => Err(keys.malformed("`token_embd.weight` is not a matrix".to_owned())),
        None => Err(keys.malformed("it has no tensor `token_embd.weight`".to_owned())),
    }
}

fn rope_scaling(
    keys: &Keys<'_>,
    head_dim: u64,
    theta: f64,
    factors: Option<&[f32]>,
) -> Result<Option<Map<String, Value>>, GgufError> {
    let kind = keys.metadata.text(&keys.key("rope.scaling.type"))?;
    let original = keys.number_or_size("rope.scaling.original_context_length")?;
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        // What linear scaling was called before there were other kinds.
        None => keys.number("rope.scale_linear")?.filter(|&f| f != 1.0),
    };
    if let Some(factors) = factors {
        if kind.is_some_and(|kind| kind != "none") {
            return Err(keys.unsupported(
                "both `rope_freqs.weight` and another scaling of the rotary embeddings".to_owned(),
                "either",
            ));
        }
        let scaling = rope::from_factors(factors, head_dim as usize, theta, original);
        return scaling.ok_or_else(|| {
            keys.unsupported(
                "scaling factors of the rotary embeddings (`rope_freqs.weight`) of unknown kind"
                    .to_owned(),
                "those of Llama 3.1 and later",
            )
        });
    }
    let lacks = || keys.metadata.missing(&keys.key("rope.scaling.factor"));
    match kind {
        None | Some("none") if factor.is_none() || kind.is_some() => Ok(None),
        None | Some("linear") => {
            let factor = factor.ok_or_else(lacks)?;
            Ok(json!({"rope_type": "linear", "factor": factor})
                .as_object()
                .cloned())
        }
        Some("yarn") => yarn(keys, factor.ok_or_else(lacks)?, original).map(Some),
        Some(other) => Err(keys.unsupported(
            format!("rotary embeddings with `rope.scaling.type: {other}`"),
            "none, linear, yarn and Llama 3's",
        )),
    }
}

fn yarn(
    keys: &Keys<'_>,
    factor: f64,
    original: Option<f64>,
) -> Result<Map<String, Value>, GgufError> {
    let mut scaling = Map::new();
    scaling.insert("rope_type".to_owned(), json!("yarn"));
    scaling.insert("factor".to_owned(), json!(factor));
    if let Some(original) = original {
        let key = "original_max_position_embeddings".to_owned();
        scaling.insert(key, json!(original as u64));
    }
    for (key, stored) in YARN {
        if let Some(value) = keys.number(stored)? {
            scaling.insert(key.to_owned(), json!(value));
        }
    }
    Ok(scaling)
}

/// Parameters of `YaRN` that need not be there: key in `config.json`, key in the
/// metadata.
pub(crate) const YARN: [(&str, &str); 3] = [
    ("attention_factor", "rope.scaling.yarn_attn_factor"),
    ("beta_fast", "rope.scaling.yarn_beta_fast"),
    ("beta_slow", "rope.scaling.yarn_beta_slow"),
];

impl Keys<'_> {
    /// Converters disagree on whether this is a whole number.
    fn number_or_size(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.size(key) {
            Ok(size) => Ok(size.map(|size| size as f64)),
            Err(_) => self.number(key),
        }
    }
}

/// transformers' name for the format in which most of the numbers are.
fn dtype(metadata: &Metadata<'_>) -> &'static str {
    let mut bytes = [0_usize; 3];
    for info in metadata.header.tensors.values() {
        let count = info.shape.iter().product::<usize>();
        match info.kind {
            TensorType::F32 => bytes[0] += count,
            TensorType::F16 => bytes[1] += count,
            _ => bytes[2] += count,
        }
    }
    match bytes {
        [single, half, other] if single > half && single > other => "float32",
        [_, half, other] if half > other => "float16",
        _ => "bfloat16",
    }
}
