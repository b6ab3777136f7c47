//! Names of tensors that carry the wrappers a model was in when it was saved.
//!
//! PEFT writes `base_model.model.<layer>.lora_A.weight`. What torch.compile,
//! FSDP, DDP and checkpointing put around modules, and the adapter's own name,
//! stay in the names of an adapter that was saved another way. One rule takes
//! them all out: [`unwrapped`].

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Names that nothing but a wrapper gives to a module, and whose they are.
const WRAPPERS: [(&str, &str); 4] = [
    ("_orig_mod", "torch.compile"),
    ("_fsdp_wrapped_module", "FSDP"),
    ("_fpw_module", "FSDP"),
    ("_checkpoint_wrapped_module", "activation checkpointing"),
];
/// What DDP and `DeepSpeed` call the module in them. Modules of anybody may be
/// called so, and it is taken for a wrapper only where a path begins.
const WRAPPED: &str = "module";
const PREFIX: [&str; 2] = ["base_model", "model"];

/// What was taken out of names, or put in, for one line about it.
#[derive(Clone, Debug, Default)]
pub(super) struct Unwrapping {
    wrappers: BTreeSet<&'static str>,
    /// Names that PEFT gave adapters, `default` as a rule.
    pub(super) adapters: BTreeSet<String>,
    unprefixed: bool,
    doubled: bool,
}

impl Unwrapping {
    /// What to say; `None` if every name was as PEFT writes it.
    pub(super) fn note(&self) -> Option<String> {
        let wrappers = WRAPPERS
            .iter()
            .filter(|(name, _)| self.wrappers.contains(name));
        let mut without: Vec<_> = wrappers
            .map(|(name, of)| format!("`{name}.` ({of})"))
            .collect();
        if self.wrappers.contains(WRAPPED) {
            without.push(format!("`{WRAPPED}.` (DDP, DeepSpeed)"));
        }
        let adapters = self.adapters.iter();
        without.extend(adapters.map(|name| format!("`.{name}` (the adapter's name)")));
        if self.doubled {
            without.push("a second `base_model.model.`".to_owned());
        }
        let with = self
            .unprefixed
            .then_some("with `base_model.model.` before them");
        let without = (!without.is_empty()).then(|| format!("without {}", without.join(", ")));
        let how: Vec<_> = without.as_deref().into_iter().chain(with).collect();
        (!how.is_empty()).then(|| {
            format!(
                "the tensors have the names of a model that was wrapped or saved by hand, and are read {}",
                how.join(" and ")
            )
        })
    }
}

/// A tensor's name as PEFT would write it, without its prefix.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unwrapped {
    pub(super) path: String,
    /// Whether `base_model.model.` was there.
    pub(super) prefixed: bool,
    /// Whether a `module.` was taken from behind the prefix, where it may be
    /// the name of somebody's module.
    pub(super) inner: bool,
    /// Whether it is what a module that is saved whole was before training.
    pub(super) original: bool,
}

/// Takes wrappers and the adapter's name out of a tensor's name.
pub(super) fn unwrapped(name: &str, seen: &mut Unwrapping) -> Unwrapped {
    let mut parts: Vec<&str> = name.split('.').collect();
    parts.retain(|part| {
        let wrapper = WRAPPERS.iter().find(|(wrapper, _)| wrapper == part);
        seen.wrappers.extend(wrapper.map(|(wrapper, _)| wrapper));
        wrapper.is_none()
    });
    let mut rest = parts.as_slice();
    let (mut prefixes, mut inner) = (0, false);
    loop {
        if let Some(after) = rest.strip_prefix(&PREFIX[..]) {
            rest = after;
            prefixes += 1;
        } else if let Some(after) = rest.strip_prefix(&[WRAPPED]).filter(|rest| rest.len() > 1) {
            rest = after;
            inner = prefixes > 0;
            seen.wrappers.insert(WRAPPED);
        } else {
            break;
        }
    }
    if prefixes == 0 {
        // The model inside PEFT's: `model.model.layers`, of which the first is PEFT's.
        if let ["model", after @ ..] = rest
            && after.first() == Some(&"model")
        {
            rest = after;
        }
    }
    seen.doubled |= prefixes > 1;
    let mut path: Vec<&str> = rest.to_vec();
    let mut original = false;
    let mut named = |path: &mut Vec<&str>, at: usize| {
        let name = path.remove(at);
        seen.adapters.insert(name.to_owned());
    };
    if let Some(at) = path.iter().position(|part| part.starts_with("lora_")) {
        match (path[at], &path[at + 1..]) {
            ("lora_A" | "lora_B", [_, _]) => named(&mut path, at + 1),
            ("lora_embedding_A" | "lora_embedding_B", [_]) => named(&mut path, at + 1),
            ("lora_magnitude_vector", [name]) if *name != "weight" => named(&mut path, at + 1),
            ("lora_magnitude_vector", [_, "weight"]) => named(&mut path, at + 1),
            _ => {}
        }
    } else if let Some(at) = path.iter().position(|part| *part == "modules_to_save") {
        path.remove(at);
        if path.len() > at + 1 {
            named(&mut path, at);
        }
    } else if let Some(at) = path.iter().position(|part| *part == "original_module") {
        path.remove(at);
        original = true;
    }
    Unwrapped {
        path: path.join("."),
        prefixed: prefixes > 0,
        inner,
        original,
    }
}

impl Unwrapping {
    /// Names of the adapter's own tensors had no prefix.
    pub(super) fn without_prefix(&mut self) {
        self.unprefixed = true;
    }
}

/// Takes wrappers out of what a configuration calls modules by, names and
/// expressions.
pub(super) fn unwrap_configuration(json: &mut Map<String, Value>) {
    for key in ["target_modules", "exclude_modules", "modules_to_save"] {
        match json.get_mut(key) {
            Some(Value::String(text)) => *text = unwrapped_pattern(text),
            Some(Value::Array(list)) => {
                for value in list {
                    if let Value::String(text) = value {
                        *text = unwrapped_pattern(text);
                    }
                }
            }
            _ => {}
        }
    }
    for key in ["rank_pattern", "alpha_pattern"] {
        if let Some(Value::Object(map)) = json.get_mut(key) {
            let entries = std::mem::take(map).into_iter();
            *map = entries
                .map(|(pattern, value)| (unwrapped_pattern(&pattern), value))
                .collect();
        }
    }
}

fn unwrapped_pattern(pattern: &str) -> String {
    let mut text = pattern.to_owned();
    for (wrapper, _) in WRAPPERS {
        for separator in [".", r"\."] {
            text = text.replace(&format!("{wrapper}{separator}"), "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

    /// The path, and what is said.
    fn read(name: &str) -> (String, Option<String>) {
        let mut seen = Unwrapping::default();
        let read = unwrapped(name, &mut seen);
        (read.path, seen.note())
    }

    #[test]
    fn pefts_own_names_are_left_alone_and_nothing_is_said() {
        for (name, path) in [
            (A, "model.layers.0.self_attn.q_proj.lora_A.weight"),
            ("base_model.model.lm_head.weight", "lm_head.weight"),
            (
                "base_model.model.model.embed_tokens.lora_embedding_A",
                "model.embed_tokens.lora_embedding_A",
            ),
            (
                "base_model.model.x.lora_magnitude_vector.weight",
                "x.lora_magnitude_vector.weight",
            ),
            (
                "base_model.model.x.lora_magnitude_vector",
                "x.lora_magnitude_vector",
            ),
            (
                "base_model.model.x.base_layer.weight",
                "x.base_layer.weight",
            ),
        ] {
            assert_eq!(read(name), (path.to_owned(), None));
        }
    }

    #[test]
    fn wrappers_are_taken_out_wherever_they_are_and_named() {
        let wrapped = [
            (A.replacen("base", "_orig_mod.base", 1), "torch.compile"),
            (
                A.replace("model.layers.0", "model.layers.0._orig_mod"),
                "torch.compile",
            ),
            (
                A.replace("model.layers", "_orig_mod.model.layers"),
                "torch.compile",
            ),
            (A.replacen("base", "module.base", 1), "DDP"),
            (
                A.replace("base_model.model.", "base_model.model.module."),
                "DDP",
            ),
            (A.replace("layers.", "layers._fsdp_wrapped_module."), "FSDP"),
            (
                A.replace(".self", "._checkpoint_wrapped_module.self"),
                "checkpointing",
            ),
            (A.replacen("base", "module._orig_mod.base", 1), "DDP"),
        ];
        for (name, of) in wrapped {
            let (path, note) = read(&name);
            assert_eq!(
                path, "model.layers.0.self_attn.q_proj.lora_A.weight",
                "{name}"
            );
            let note = note.unwrap();
            assert!(note.contains(of), "{name}: {note}");
        }
    }

    #[test]
    fn the_adapters_name_is_taken_out_of_each_kind_of_tensor() {
        for (name, path) in [
            (
                "base_model.model.x.lora_A.default.weight",
                "x.lora_A.weight",
            ),
            (
                "base_model.model.x.lora_embedding_B.mine",
                "x.lora_embedding_B",
            ),
            (
                "base_model.model.x.lora_magnitude_vector.mine",
                "x.lora_magnitude_vector",
            ),
            (
                "base_model.model.x.lora_magnitude_vector.mine.weight",
                "x.lora_magnitude_vector.weight",
            ),
            (
                "base_model.model.lm_head.modules_to_save.default.weight",
                "lm_head.weight",
            ),
        ] {
            let (found, note) = read(name);
            assert_eq!(found, path);
            assert!(note.unwrap().contains("the adapter's name"), "{name}");
        }
        let (path, note) = read("base_model.model.lm_head.modules_to_save.weight");
        assert_eq!((path.as_str(), note), ("lm_head.weight", None));
    }

    #[test]
    fn a_prefix_may_be_missing_or_doubled() {
        let mut seen = Unwrapping::default();
        let bare = unwrapped("model.layers.0.q.lora_A.weight", &mut seen);
        assert_eq!(
            (bare.path.as_str(), bare.prefixed),
            ("model.layers.0.q.lora_A.weight", false)
        );
        let half = unwrapped("model.model.layers.0.q.lora_A.weight", &mut seen);
        assert_eq!(half.path, "model.layers.0.q.lora_A.weight");
        let (path, note) = read(&format!("base_model.model.{A}"));
        assert_eq!(path, "model.layers.0.self_attn.q_proj.lora_A.weight");
        assert!(note.unwrap().contains("second"));
    }

    #[test]
    fn a_module_called_module_is_told_from_a_wrapper_later() {
        let mut seen = Unwrapping::default();
        let read = unwrapped("base_model.model.module.deep.lora_A.weight", &mut seen);
        assert!(read.inner && read.path == "deep.lora_A.weight");
        let read = unwrapped("base_model.model.deep.module.lora_A.weight", &mut seen);
        assert!(!read.inner && read.path == "deep.module.lora_A.weight");
    }

    #[test]
    fn a_configurations_names_and_expressions_lose_wrappers_too() {
        let mut json = json!({
            "target_modules": ["_orig_mod.model.layers.0.q_proj", "v_proj"],
            "exclude_modules": r"_orig_mod\..*lm_head",
            "rank_pattern": {"_fsdp_wrapped_module.q_proj": 4},
        });
        let map = json.as_object_mut().unwrap();
        unwrap_configuration(map);
        assert_eq!(
            map["target_modules"],
            json!(["model.layers.0.q_proj", "v_proj"])
        );
        assert_eq!(map["exclude_modules"], json!(".*lm_head"));
        assert_eq!(map["rank_pattern"], json!({"q_proj": 4}));
    }
}
