//! Which files of a repository a checkpoint consists of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde::Deserialize;

use crate::{HubError, name::is_inside};

/// What says how the model is built; without it the weights are of no use.
pub(crate) const CONFIG: &str = "config.json";

/// Fetched where a repository has them.
pub(crate) const OPTIONAL: [&str; 9] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
];

/// Any of these makes text into tokens.
const TOKENIZERS: [&str; 3] = ["tokenizer.json", "tokenizer.model", "vocab.json"];

/// Where a checkpoint's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    /// In one file.
    One(&'static str),
    /// In the files that this index names.
    Index(&'static str),
}

/// In the order in which transformers prefers them.
const WEIGHTS: [Weights; 4] = [
    Weights::One("model.safetensors"),
    Weights::Index("model.safetensors.index.json"),
    Weights::One("pytorch_model.bin"),
    Weights::Index("pytorch_model.bin.index.json"),
];

/// The weights to use among the files that `has` knows.
pub(crate) fn weights(has: impl Fn(&str) -> bool) -> Option<Weights> {
    WEIGHTS.into_iter().find(|weights| match weights {
        Weights::One(name) | Weights::Index(name) => has(name),
    })
}

/// A GGUF file, and if its name is that of one of several that a model is split
/// over (`name-00002-of-00003.gguf`), all of them.
pub(crate) fn parts(file: &str) -> Vec<String> {
    /// More than anybody has split a model over.
    const MOST: usize = 1000;
    let digits = |text: &str| {
        let all = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| text.parse::<usize>().ok()).flatten()
    };
    let split = file
        .strip_suffix(".gguf")
        .and_then(|name| name.rsplit_once("-of-"))
        .and_then(|(name, count)| {
            let (stem, number) = name.rsplit_once('-')?;
            digits(number)?;
            Some((
                stem,
                digits(count).filter(|count| (2..=MOST).contains(count))?,
            ))
        });
    match split {
        None => vec![file.to_owned()],
        Some((stem, count)) => (1..=count)
            .map(|number| format!("{stem}-{number:05}-of-{count:05}.gguf"))
            .collect(),
    }
}

/// Whether a snapshot has all that a model needs to be loaded. Says nothing
/// about the tokenizer: [`has_tokenizer`] does.
pub(crate) fn is_complete(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    has(CONFIG)
        && WEIGHTS.into_iter().any(|weights| match weights {
            Weights::One(name) => has(name),
            Weights::Index(name) => shards(&snapshot.join(name))
                .is_ok_and(|shards| shards.iter().all(|shard| has(shard))),
        })
}

/// Whether a snapshot has any kind of tokenizer.
pub(crate) fn has_tokenizer(snapshot: &Path) -> bool {
    TOKENIZERS.iter().any(|name| snapshot.join(name).is_file())
}

/// The weight files that an index names, each once.
pub(crate) fn shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let malformed = |reason: String| HubError::BadIndex {
        path: index.to_owned(),
        reason,
    };
    let text = fs::read(index).map_err(|source| HubError::io("cannot read", index, source))?;
    let parsed: Index =
        serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if shards.is_empty() {
        return Err(malformed("it names no files".to_owned()));
    }
    if let Some(bad) = shards.iter().find(|shard| !is_inside(shard)) {
        return Err(malformed(format!("`{bad}` leads out of the repository")));
    }
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safetensors_come_before_pickles_and_one_file_before_many() {
        let pick = |files: &[&str]| weights(|name| files.contains(&name));
        assert_eq!(
            pick(&[
                "pytorch_model.bin",
                "model.safetensors.index.json",
                "model.safetensors"
            ]),
            Some(Weights::One("model.safetensors"))
        );
        assert_eq!(
            pick(&["pytorch_model.bin", "model.safetensors.index.json"]),
            Some(Weights::Index("model.safetensors.index.json"))
        );
        assert_eq!(
            pick(&["pytorch_model.bin.index.json", "model.gguf"]),
            Some(Weights::Index("pytorch_model.bin.index.json"))
        );
        assert_eq!(pick(&["model.gguf", "flax_model.msgpack"]), None);
    }

    #[test]
    fn one_part_of_a_split_model_brings_the_others() {
        let all = parts("Q4/m-7b-00002-of-00003.gguf");
        let expected = [1, 2, 3].map(|number| format!("Q4/m-7b-{number:05}-of-00003.gguf"));
        assert_eq!(all, expected);
        for alone in [
            "m.gguf",
            "m-1-of-2.gguf",
            "m-00001-of-00001.gguf",
            "m-00001-of-99999.gguf",
        ] {
            assert_eq!(parts(alone), [alone]);
        }
    }

    #[test]
    fn a_snapshot_is_complete_only_with_its_configuration_and_every_shard() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write(
            "model.safetensors.index.json",
            r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}}"#,
        );
        write("m-1.safetensors", "");
        write(CONFIG, "{}");
        assert!(!is_complete(directory.path()));
        write("m-2.safetensors", "");
        assert!(is_complete(directory.path()));
        fs::remove_file(directory.path().join(CONFIG)).unwrap();
        assert!(!is_complete(directory.path()));
    }

    #[test]
    fn an_index_that_is_none_or_leads_out_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let index = directory.path().join("index.json");
        for (text, part) in [
            ("{}", "missing field"),
            (r#"{"weight_map": {}}"#, "names no files"),
            (r#"{"weight_map": {"a": "../../x"}}"#, "leads out"),
        ] {
            fs::write(&index, text).unwrap();
            let message = shards(&index).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
