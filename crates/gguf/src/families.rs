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
    /// Whether a file of the architecture is of this family where it has a
    /// sliding window, and not where it has none.
    told_by_window: bool,
    /// What becomes of a sliding window.
    pub(crate) window: Window,
    /// Values of `hidden_act` that are what llama.cpp computes; the first is the
    /// one that is read.
    pub(crate) activations: &'static [&'static str],
    /// `num_key_value_heads` where it is absent; `None` is as many as query heads.
    pub(crate) kv_heads: Option<usize>,
    /// `head_dim` where it is absent; `None` is `hidden_size / num_attention_heads`.
    pub(crate) head_dim: Option<usize>,
    /// `tie_word_embeddings` where it is absent.
    pub(crate) tied: bool,
    /// Whether `attention_bias` and `mlp_bias` are keys of the configuration,
    /// and are told by the tensors.
    pub(crate) optional_biases: bool,
    /// Keys of the configuration that always have one value.
    pub(crate) constants: &'static [(&'static str, bool)],
    /// Tensors of a block that must be there beside those of LLaMA.
    pub(crate) more_tensors: &'static [&'static str],
    /// Whether the rows of queries and keys are interleaved: llama.cpp rotates
    /// neighbours, Hugging Face the first half of a head with its second.
    pub(crate) interleaved: bool,
    /// Whether norms are written as 1 + w.
    pub(crate) norms_plus_one: bool,
    /// Whether a `SentencePiece` token's score follows from its place.
    pub(crate) scores_by_position: bool,
}

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
    told_by_window: false,
    window: Window::Kept,
    activations: &["silu"],
    kv_heads: None,
    head_dim: None,
    tied: false,
    optional_biases: true,
    constants: &[],
    more_tensors: &[],
    interleaved: true,
    norms_plus_one: false,
    scores_by_position: false,
};

/// All families that there are rows for.
static FAMILIES: [Family; 5] = [
    LLAMA,
    Family {
        model_type: "mistral",
        class: "MistralForCausalLM",
        told_by_window: true,
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
        more_tensors: &[
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
        more_tensors: &["self_attn.q_norm.weight", "self_attn.k_norm.weight"],
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
];

impl Family {
    /// The family of a file that has this `general.architecture`, and a window
    /// or none.
    pub(crate) fn of_file(architecture: &str, has_window: bool) -> Option<&'static Self> {
        let all = || {
            FAMILIES
                .iter()
                .filter(|family| family.architecture == architecture)
        };
        all()
            .find(|family| family.told_by_window == has_window)
            .or_else(|| all().next())
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
    fn a_window_tells_mistral_from_llama_and_no_other_family() {
        let found = |name, window| Family::of_file(name, window).map(|found| found.model_type);
        assert_eq!(found("llama", false), Some("llama"));
        assert_eq!(found("llama", true), Some("mistral"));
        assert_eq!(found("gemma", true), Some("gemma"));
        assert_eq!(found("qwen2", true), Some("qwen2"));
        assert_eq!(found("mistral", true), None);
    }

    #[test]
    fn messages_list_each_name_once() {
        assert_eq!(Family::architectures(), "llama, qwen2, qwen3 and gemma");
        assert_eq!(
            Family::model_types(),
            "llama, mistral, qwen2, qwen3 and gemma"
        );
    }
}
