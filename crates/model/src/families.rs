//! The families of models, a file each.
//!
//! The decoder of [`llama`](crate::llama) is one for all of them: a family says
//! how its `config.json` reads as a [`ModelConfig`], and what its checkpoints
//! call the parts. To add one:
//!
//! 1. Write `families/NAME.rs`, beginning with `mistral.rs` (LLaMA's keys) or
//!    `opt.rs` (keys of its own): a [`Family`] with the `model_type`, the names
//!    that differ from LLaMA's, and a `read` that says what absent keys mean,
//!    which rules there are for windows and rotary positions, and what is
//!    refused because the decoder does not compute it.
//! 2. Add it below, to the modules and to [`FAMILIES`].
//! 3. If llama.cpp has it too, add a row to `crates/gguf/src/families.rs`. That
//!    table is there because GGUF files' tokenizers and adapters are read and
//!    written without a model. A family without a row is refused by name.
//! 4. Make a fixture with `fixtures/make_fixtures.py`, and add a line to
//!    `tests/golden.rs`, and one to `tests/refusals.rs` for each refusal.
//!
//! Two existing files then know the family: this one and GGUF's table. Only
//! what no family computes yet is a new field of [`ModelConfig`] and a branch in
//! `llama.rs`. The tests of this file do it with a family of theirs, `toy.rs`.

use std::fmt;

use crate::{ModelConfig, ModelError, config::Keys, naming::Naming};

mod gemma;
mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod ministral3;
mod mistral;
mod mixtral;
mod olmo2;
mod olmo3;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod shared;
mod smollm3;
#[cfg(test)]
mod toy;

/// All families, in the order in which messages list them.
static FAMILIES: &[&Family] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &ministral3::MINISTRAL3,
    &mixtral::MIXTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &qwen3_moe::QWEN3_MOE,
    &gemma::GEMMA,
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &phi3::PHI3,
    &smollm3::SMOLLM3,
    &granite::GRANITE,
    &olmo2::OLMO2,
    &olmo3::OLMO3,
    &opt::OPT,
    #[cfg(test)]
    &toy::TOY,
];

/// A family of models that the one decoder computes. What they differ in,
/// [`ModelConfig`] spells out.
pub struct Family {
    model_type: &'static str,
    /// What the checkpoints call the decoder's parts.
    pub(crate) naming: Naming,
    /// Keys that change the computation of some families only, of which this one
    /// is; the others refuse them.
    pub(crate) computes: &'static [&'static str],
    /// Reads what is this family's own. What all have in common, `ModelConfig`
    /// adds.
    pub(crate) read: fn(&Keys<'_>) -> Result<ModelConfig, ModelError>,
}

impl Family {
    /// `model_type` of `config.json`.
    pub fn model_type(&self) -> &'static str {
        self.model_type
    }

    /// The family that the file names.
    pub(crate) fn of(keys: &Keys<'_>) -> Result<&'static Self, ModelError> {
        let wanted = keys.text("model_type")?;
        let mut all = FAMILIES.iter().copied();
        all.find(|family| wanted.as_deref() == Some(family.model_type))
            .ok_or_else(|| {
                let wanted = wanted.as_deref().unwrap_or("null");
                keys.unsupported(format!("`model_type: {wanted}`"), model_types())
            })
    }
}

/// A kind of model with a part for pictures beside its text model, which is one
/// of the families.
pub(crate) struct WithPictures {
    pub(crate) model_type: &'static str,
    /// What the text model is if it does not say so itself.
    pub(crate) text_model_type: &'static str,
    /// The class of the text model alone.
    pub(crate) text_class: &'static str,
}

/// The kinds whose text model is read.
static WITH_PICTURES: [WithPictures; 2] = [
    WithPictures {
        model_type: "gemma3",
        text_model_type: "gemma3_text",
        text_class: "Gemma3ForCausalLM",
    },
    WithPictures {
        model_type: "mistral3",
        text_model_type: "mistral",
        text_class: "MistralForCausalLM",
    },
];

pub(crate) fn with_pictures(model_type: Option<&str>) -> Option<&'static WithPictures> {
    let mut all = WITH_PICTURES.iter();
    all.find(|whole| Some(whole.model_type) == model_type)
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type)
    }
}

/// There is one of each `model_type`.
impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

impl Eq for Family {}

/// `llama, mistral, … and opt`.
fn model_types() -> String {
    let names: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
    match names.as_slice() {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::{
        module::{Module, ModuleVisitor, Param},
        tensor::{Device, Int, Tensor},
    };
    use serde_json::{Value, json};

    use super::*;

    fn config(change: impl FnOnce(&mut Value)) -> Result<ModelConfig, ModelError> {
        let mut json = json!({
            "model_type": "toy", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 3, "num_attention_heads": 2, "sliding_window": 4,
        });
        change(&mut json);
        ModelConfig::from_json(json.as_object().unwrap().clone(), Path::new("toy.json"))
    }

    #[test]
    fn a_family_is_a_file_and_an_entry() {
        let config = config(|_| {}).unwrap();
        assert_eq!(config.family.model_type(), "toy");
        // Its own default, and its own rule.
        assert_eq!(config.max_position_embeddings, 96);
        assert!(config.tie_word_embeddings);
        assert_eq!(config.sliding_windows, [Some(4), None, Some(4)]);
        // LLaMA's where it has none.
        assert_eq!(config.num_key_value_heads, 2);

        let device = Device::flex();
        let model = config.init(&device);
        let ids = Tensor::<2, Int>::zeros([1, 5], &device);
        assert_eq!(model.forward(ids).dims(), [1, 5, 16]);
    }

    #[test]
    fn its_parts_have_its_names() {
        #[derive(Default)]
        struct Paths {
            at: Vec<String>,
            all: Vec<String>,
        }
        impl ModuleVisitor for Paths {
            fn enter_module(&mut self, name: &str, _container_type: &str) {
                self.at.push(name.to_owned());
            }
            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.at.pop();
            }
            fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
                self.all.push(self.at.join("."));
            }
        }
        let mut paths = Paths::default();
        config(|_| {})
            .unwrap()
            .init(&Device::flex())
            .visit(&mut paths);
        let has = |name: &str| paths.all.iter().any(|path| path == name);
        assert!(has("model.layers.2.mlp.out.weight"), "{:?}", paths.all);
        assert!(!has("model.layers.2.mlp.down_proj.weight"));
        assert!(has("model.layers.2.mlp.up_proj.weight"));
    }

    #[test]
    fn what_it_refuses_and_what_is_unknown_is_named() {
        let error = |key: &str, value: Value| config(|json| json[key] = value).unwrap_err();
        let message = error("use_memory", json!(true)).to_string();
        assert!(
            message.contains("toy.json") && message.contains("use_memory: true"),
            "{message}"
        );
        let message = error("model_type", json!("toy2")).to_string();
        assert!(message.contains("`model_type: toy2`"), "{message}");
        assert!(
            message.contains("llama, mistral, ministral3,") && message.contains("opt and toy"),
            "{message}"
        );
        assert!(
            error("model_type", json!(null))
                .to_string()
                .contains("null")
        );
        let message = error("quantization_config", json!({})).to_string();
        assert!(message.contains("quantised"), "{message}");
    }
}
