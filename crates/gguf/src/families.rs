//! How each family of models is kept in GGUF files: one row each, and the only
//! place in this crate that knows one family from another.
//!
//! A new family is a row of [`FAMILIES`]. What `config.json` means without a key
//! is here as in `olora-model`, because tokenizers and adapters are read and
//! written without a model.

/// One family of models: a `model_type` of `config.json`, and what of it is in
/// a file.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own about a family"
)]
pub(crate) struct Family {
    /// `model_type`.
    pub(crate) model_type: &'static str,
    /// The first of `architectures`.
    pub(crate) class: &'static str,
    /// `general.architecture`, and what the keys of the shape begin with.
    pub(crate) architecture: &'static str,
    /// What a file of the architecture has if it is of this family and not of
    /// another.
    told_by: Option<Mark>,
    /// What it has that others have not, and keys of its own.
    pub(crate) own: Own,
    /// Names within a block, in groups that families share.
    inside: &'static [Names],
    /// Matrices of experts, which a file has one above the other in one tensor.
    pub(crate) stacks: &'static [Stack],
    /// What becomes of a sliding window.
    pub(crate) window: Window,
    /// Values of `hidden_act` that are what llama.cpp computes; the first is the
    /// one that is read.
    pub(crate) activations: &'static [&'static str],
    /// `num_key_value_heads` where it is absent; `None` is as many as query heads.
    pub(crate) kv_heads: Option<usize>,
    /// `head_dim` where it is absent; `None` is `hidden_size / num_attention_heads`.
    pub(crate) head_dim: Option<usize>,
    /// `rms_norm_eps` where it is absent.
    pub(crate) eps: f64,
    /// `rope_theta` where it is absent.
    pub(crate) theta: f64,
    /// `tie_word_embeddings` where it is absent.
    pub(crate) tied: bool,
    /// Whether `attention_bias` and `mlp_bias` are keys of the configuration,
    /// and are told by the tensors.
    pub(crate) optional_biases: bool,
    /// Keys of the configuration that always have one value.
    pub(crate) constants: &'static [(&'static str, bool)],
    /// Biases that a block must have.
    pub(crate) biases: &'static [&'static str],
    /// Whether the rows of queries and keys are interleaved: llama.cpp rotates
    /// neighbours, Hugging Face the first half of a head with its second.
    pub(crate) interleaved: bool,
    /// Whether norms are written as 1 + w.
    pub(crate) norms_plus_one: bool,
    /// Whether a `SentencePiece` token's score follows from its place.
    pub(crate) scores_by_position: bool,
}

/// One matrix of each expert of a block: Hugging Face has them apart,
/// `{experts}.{number}.{matrix}`.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) experts: &'static str,
    pub(crate) matrix: &'static str,
    pub(crate) gguf: &'static str,
}

/// What tells families of one architecture from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// A sliding window.
    Window,
    /// Queries that grow with their position.
    Growth,
    /// Experts.
    Experts,
}

/// Keys, and what llama.cpp takes for granted, that only some families have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// LLaMA's keys alone.
    Nothing,
    /// Caps, a window in every other block, a scale of its own.
    Gemma2,
    /// Two bases of the rotary frequencies, a window in five blocks of six.
    Gemma3,
    /// Rotation of a part of each head, by factors for short and long contexts.
    Phi3,
    /// Every fourth block rotates nothing.
    SmolLm3,
    /// Four multipliers.
    Granite,
    /// A window in three blocks of four.
    Olmo3,
    /// `YaRN` with a scale of its own, and queries that grow.
    Ministral3,
    /// `YaRN` with a scale of its own.
    MistralWithin,
    /// Experts as wide as the feed-forward network would be.
    Mixtral,
    /// Experts of a width of their own, whose weights add up to one.
    Qwen3Moe,
}

/// (Hugging Face, GGUF) names within a block.
type Names = &'static [(&'static str, &'static str)];

/// Norms before attention and before the feed-forward network.
const NORMS_BEFORE: Names = &[
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// Norms before each and after.
const NORMS_AROUND: Names = &[
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// Norms after each only.
const NORMS_AFTER: Names = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// A projection each.
const ATTENTION: Names = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
];

/// Norms of queries and keys.
const QK_NORMS: Names = &[
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
];

/// A feed-forward network with a gate.
const GATED: Names = &[
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Fused projections, of attention and of the feed-forward network.
const FUSED: Names = &[
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// What chooses among experts: always in f32.
pub(crate) const ROUTER: &str = "ffn_gate_inp";

const STACKS_MIXTRAL: &[Stack] = &[
    Stack {
        experts: "block_sparse_moe.experts",
        matrix: "w1",
        gguf: "ffn_gate_exps",
    },
    Stack {
        experts: "block_sparse_moe.experts",
        matrix: "w2",
        gguf: "ffn_down_exps",
    },
    Stack {
        experts: "block_sparse_moe.experts",
        matrix: "w3",
        gguf: "ffn_up_exps",
    },
];

const STACKS_QWEN3_MOE: &[Stack] = &[
    Stack {
        experts: "mlp.experts",
        matrix: "down_proj",
        gguf: "ffn_down_exps",
    },
    Stack {
        experts: "mlp.experts",
        matrix: "gate_proj",
        gguf: "ffn_gate_exps",
    },
    Stack {
        experts: "mlp.experts",
        matrix: "up_proj",
        gguf: "ffn_up_exps",
    },
];

/// What becomes of a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// It is written and read. llama.cpp takes no notice of Mistral's; the key
    /// keeps it for others.
    Kept,
    /// llama.cpp has none for these models: one in use is refused.
    Refused,
    /// These models have none.
    Absent,
}

/// What the others are told apart from.
const LLAMA: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    architecture: "llama",
    told_by: None,
    own: Own::Nothing,
    inside: &[NORMS_BEFORE, ATTENTION, GATED],
    stacks: &[],
    window: Window::Kept,
    activations: &["silu"],
    kv_heads: None,
    head_dim: None,
    eps: 1e-6,
    theta: 10_000.0,
    tied: false,
    optional_biases: true,
    constants: &[],
    biases: &[],
    interleaved: true,
    norms_plus_one: false,
    scores_by_position: false,
};

/// All families that there are rows for.
static FAMILIES: [Family; 15] = [
    LLAMA,
    // Before Mistral: a file with a window too is this one's.
    Family {
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        told_by: Some(Mark::Experts),
        own: Own::Mixtral,
        inside: &[
            NORMS_BEFORE,
            ATTENTION,
            &[("block_sparse_moe.gate", ROUTER)],
        ],
        stacks: STACKS_MIXTRAL,
        kv_heads: Some(8),
        eps: 1e-5,
        theta: 1e6,
        optional_biases: false,
        ..LLAMA
    },
    Family {
        model_type: "mistral",
        class: "MistralForCausalLM",
        told_by: Some(Mark::Window),
        kv_heads: Some(8),
        ..LLAMA
    },
    Family {
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        architecture: "qwen2",
        window: Window::Refused,
        kv_heads: Some(32),
        optional_biases: false,
        constants: &[("use_sliding_window", false)],
        biases: &[
            "self_attn.q_proj.bias",
            "self_attn.k_proj.bias",
            "self_attn.v_proj.bias",
        ],
        interleaved: false,
        ..LLAMA
    },
    Family {
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        architecture: "qwen3",
        window: Window::Refused,
        kv_heads: Some(32),
        head_dim: Some(128),
        optional_biases: false,
        constants: &[("use_sliding_window", false), ("attention_bias", false)],
        inside: &[NORMS_BEFORE, ATTENTION, QK_NORMS, GATED],
        interleaved: false,
        ..LLAMA
    },
    Family {
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        architecture: "qwen3moe",
        own: Own::Qwen3Moe,
        inside: &[NORMS_BEFORE, ATTENTION, QK_NORMS, &[("mlp.gate", ROUTER)]],
        stacks: STACKS_QWEN3_MOE,
        window: Window::Refused,
        kv_heads: Some(4),
        optional_biases: false,
        constants: &[("use_sliding_window", false), ("attention_bias", false)],
        interleaved: false,
        ..LLAMA
    },
    Family {
        model_type: "gemma",
        class: "GemmaForCausalLM",
        architecture: "gemma",
        window: Window::Absent,
        activations: &["gelu_pytorch_tanh", "gelu"],
        kv_heads: Some(16),
        head_dim: Some(256),
        tied: true,
        optional_biases: false,
        interleaved: false,
        norms_plus_one: true,
        scores_by_position: true,
        ..LLAMA
    },
    Family {
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        architecture: "gemma2",
        own: Own::Gemma2,
        inside: &[NORMS_AROUND, ATTENTION, GATED],
        activations: &["gelu_pytorch_tanh"],
        kv_heads: Some(4),
        head_dim: Some(256),
        ..GEMMA
    },
    Family {
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        architecture: "gemma3",
        own: Own::Gemma3,
        theta: 1e6,
        inside: &[NORMS_AROUND, ATTENTION, QK_NORMS, GATED],
        activations: &["gelu_pytorch_tanh"],
        kv_heads: Some(4),
        head_dim: Some(256),
        ..GEMMA
    },
    Family {
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        architecture: "phi3",
        own: Own::Phi3,
        eps: 1e-5,
        inside: &[NORMS_BEFORE, FUSED],
        optional_biases: false,
        interleaved: false,
        ..LLAMA
    },
    Family {
        model_type: "smollm3",
        class: "SmolLM3ForCausalLM",
        architecture: "smollm3",
        own: Own::SmolLm3,
        theta: 2e6,
        window: Window::Refused,
        kv_heads: Some(4),
        tied: true,
        constants: &[("use_sliding_window", false)],
        ..LLAMA
    },
    Family {
        model_type: "granite",
        class: "GraniteForCausalLM",
        architecture: "granite",
        own: Own::Granite,
        window: Window::Absent,
        ..LLAMA
    },
    Family {
        window: Window::Absent,
        ..OLMO
    },
    Family {
        model_type: "olmo3",
        class: "Olmo3ForCausalLM",
        told_by: Some(Mark::Window),
        own: Own::Olmo3,
        theta: 5e5,
        ..OLMO
    },
    Family {
        model_type: "ministral3",
        class: "Ministral3ForCausalLM",
        architecture: "mistral3",
        own: Own::Ministral3,
        eps: 1e-5,
        told_by: Some(Mark::Growth),
        window: Window::Kept,
        kv_heads: Some(8),
        head_dim: Some(128),
        optional_biases: false,
        ..LLAMA
    },
];

/// What later Gemmas have of the first.
const GEMMA: Family = Family {
    window: Window::Kept,
    tied: true,
    optional_biases: false,
    interleaved: false,
    norms_plus_one: true,
    scores_by_position: true,
    ..LLAMA
};

const OLMO: Family = Family {
    model_type: "olmo2",
    class: "Olmo2ForCausalLM",
    architecture: "olmo2",
    inside: &[NORMS_AFTER, ATTENTION, QK_NORMS, GATED],
    eps: 1e-5,
    optional_biases: false,
    interleaved: false,
    ..LLAMA
};

/// What a file is of that says `mistral3`, and has no [`Mark`] of Ministral 3:
/// Mistral Small 3's text model.
const MISTRAL3: Family = Family {
    model_type: "mistral",
    class: "MistralForCausalLM",
    architecture: "mistral3",
    own: Own::MistralWithin,
    kv_heads: Some(8),
    ..LLAMA
};
static MISTRAL_WITHIN: Family = MISTRAL3;

impl Family {
    /// (Hugging Face, GGUF) names within a block.
    pub(crate) fn inside(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.inside.iter().copied().flatten().copied()
    }

    /// The family of a file that has this `general.architecture`, and these marks.
    pub(crate) fn of_file(architecture: &str, marks: &[Mark]) -> Option<&'static Self> {
        let all = || {
            FAMILIES
                .iter()
                .chain([&MISTRAL_WITHIN])
                .filter(|family| family.architecture == architecture)
        };
        let marked = |family: &&Self| family.told_by.is_some_and(|mark| marks.contains(&mark));
        all()
            .find(marked)
            .or_else(|| all().find(|family| family.told_by.is_none()))
    }

    /// The family of a `model_type` of `config.json`.
    pub(crate) fn of_model_type(model_type: &str) -> Option<&'static Self> {
        FAMILIES
            .iter()
            .find(|family| family.model_type == model_type)
    }

    /// The architectures that are read, for messages.
    pub(crate) fn architectures() -> String {
        let mut names: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
        names.dedup();
        listed(&names)
    }

    /// The `model_type`s that are written, for messages.
    pub(crate) fn model_types() -> String {
        let names: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
        listed(&names)
    }
}

fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_families_of_one_architecture_apart() {
        let found =
            |name, marks: &[Mark]| Family::of_file(name, marks).map(|found| found.model_type);
        assert_eq!(found("llama", &[]), Some("llama"));
        assert_eq!(found("llama", &[Mark::Window]), Some("mistral"));
        assert_eq!(
            found("llama", &[Mark::Window, Mark::Experts]),
            Some("mixtral")
        );
        assert_eq!(found("gemma", &[Mark::Window]), Some("gemma"));
        assert_eq!(found("qwen2", &[Mark::Window]), Some("qwen2"));
        assert_eq!(found("mistral", &[]), None);
        assert_eq!(found("olmo2", &[]), Some("olmo2"));
        assert_eq!(found("olmo2", &[Mark::Window]), Some("olmo3"));
        assert_eq!(found("mistral3", &[Mark::Growth]), Some("ministral3"));
        assert_eq!(found("mistral3", &[]), Some("mistral"));
    }

    #[test]
    fn messages_list_each_name_once() {
        assert_eq!(
            Family::architectures(),
            "llama, qwen2, qwen3, qwen3moe, gemma, gemma2, gemma3, phi3, smollm3, granite, olmo2 and mistral3"
        );
        assert!(
            Family::model_types().starts_with("llama, mixtral, mistral, qwen2, qwen3, qwen3_moe")
        );
    }
}
