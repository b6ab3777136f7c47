//! `[data]`: what is trained on, and how it is read.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use olora_data::{
    Answers, DEFAULT_MAX_LENGTH, DEFAULT_MAX_SKIPPED, DataOptions, FirstTurn, Format, SystemTurn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a key that a recipe has"
)]
pub struct DataSection {
    /// Training data: files, directories, patterns, or data sets of the hub. `#500` at the end of a
    /// name takes the first 500 records.
    #[serde(default, skip_serializing_if = "Paths::is_empty")]
    #[schemars(extend("x-default" = "required, or `sources`"))]
    pub train: Paths,
    /// Data that the model is evaluated on and never trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Paths>,
    /// Instead of `validation`: how many training samples to hold out; of conversations that are
    /// several samples, how many conversations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = super::bounds::MAX_SAMPLES))]
    pub validation_samples: Option<usize>,
    /// Chooses which samples `validation_samples` holds out; only with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "`seed`"))]
    pub split_seed: Option<u64>,
    /// Layout of the records. If left out, it follows from the keys of the first record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::format", extend("x-default" = "detected"))]
    pub format: Option<Format>,
    /// Longest sequence in tokens. Longer ones are cut at the end; text is cut into blocks of this
    /// length.
    #[serde(default = "default_max_length")]
    #[schemars(range(min = 2, max = super::bounds::MAX_LENGTH))]
    pub max_length: usize,
    /// Whether the loss covers the prompt too. Not with weights or flags in the data.
    #[serde(default)]
    pub train_on_prompt: bool,
    /// Fill rows of `max_length` with several whole samples, each attending to itself alone, with
    /// positions from 0. `batch_size` then counts rows.
    #[serde(default)]
    pub packing: bool,
    /// Keys that are as if they were not there; those of a turn as `messages[].score` or `score`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("default" = serde_json::json!([])))]
    pub ignore: Vec<String>,
    /// System prompts go to the chat template, before the words of the first user turn, or nowhere.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(schema_with = "super::schema::system_turn", extend("default" = "keep"))]
    pub system: SystemTurn,
    /// What the assistant says before the user does goes to the chat template, or nowhere.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(schema_with = "super::schema::first_turn", extend("default" = "keep"))]
    pub first_turn: FirstTurn,
    /// Whether the chat template may leave parts of a record out, such as thoughts or turns of
    /// tools. If not, such data is refused.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = false))]
    pub allow_omissions: bool,
    /// Whether turns may hold the words with which the chat template tells turns apart, such as
    /// `<|im_start|>`. If not, such data is refused.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = false))]
    pub allow_markup: bool,
    /// The share of records that may have nothing to train. They are left out; above this share it
    /// is an error.
    #[serde(
        default = "default_max_skipped",
        skip_serializing_if = "is_default_max_skipped"
    )]
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0.5))]
    pub max_skipped: f64,
    /// The file's own names: `{ prompt = "question", completion = "solution" }`. Names that can be
    /// given: `prompt`, `completion`, `input`, `context`, `options`, `system`, `history`,
    /// `messages`, `tools`, `text`, `reasoning_content`, `weight`, `chosen`, `rejected`, `label`. A
    /// key may be a path: `answers.text[0]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("default" = serde_json::json!({})))]
    pub columns: BTreeMap<String, String>,
    /// Variables of the chat template, such as `{ enable_thinking = false }`. Those of a record go
    /// before them.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(extend("default" = serde_json::json!({})))]
    pub template_variables: Map<String, Value>,
    /// `[[data.sources]]`: several sets, mixed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceSection>,
    /// Where data sets of the hub are, by what the recipe calls them. Whoever
    /// knows the hub fills it in.
    #[serde(skip)]
    pub located: Places,
}

/// Where data sets of the hub are on this machine. It is no part of a recipe:
/// any two are equal, so that a run is the same wherever its data lie. What lies
/// there is compared by its samples.
#[derive(Clone, Debug, Default)]
pub struct Places(pub BTreeMap<String, Located>);

impl PartialEq for Places {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A data set that is on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Located {
    /// Its files, in order.
    pub files: Vec<PathBuf>,
    /// Only as many records, from the first on.
    pub first: Option<usize>,
}

/// One of several sets that are mixed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceSection {
    /// As `data.train`.
    pub path: Paths,
    /// How often the source is gone through in an epoch: 2 is twice, 0.5 one half, and the other
    /// half in the next epoch.
    #[serde(default = "default_weight")]
    #[schemars(range(max = super::bounds::MAX_WEIGHT), extend("exclusiveMinimum" = 0))]
    pub weight: f64,
    /// In the place of `data.format`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::format", extend("x-default" = "`data.format`"))]
    pub format: Option<Format>,
    /// Beside `data.ignore`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("default" = serde_json::json!([])))]
    pub ignore: Vec<String>,
    /// In the place of `data.columns`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "`data.columns`"))]
    pub columns: Option<BTreeMap<String, String>>,
}

/// One name or several. `#500` at its end means the first 500 records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OneOrMany", into = "OneOrMany")]
pub struct Paths(pub Vec<String>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Paths {
    fn from(paths: OneOrMany) -> Self {
        Self(match paths {
            OneOrMany::One(path) => vec![path],
            OneOrMany::Many(paths) => paths,
        })
    }
}

impl From<Paths> for OneOrMany {
    fn from(Paths(mut paths): Paths) -> Self {
        match paths.len() {
            1 => Self::One(paths.remove(0)),
            _ => Self::Many(paths),
        }
    }
}

impl From<&str> for Paths {
    fn from(path: &str) -> Self {
        Self(vec![path.to_owned()])
    }
}

impl Paths {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

impl DataSection {
    /// All that is trained on: `sources`, or `train` as the only one.
    pub fn all_sources(&self) -> Vec<SourceSection> {
        if self.sources.is_empty() {
            vec![SourceSection {
                path: self.train.clone(),
                weight: default_weight(),
                format: None,
                ignore: Vec::new(),
                columns: None,
            }]
        } else {
            self.sources.clone()
        }
    }

    /// What is trained on, as a person would say it.
    pub fn described(&self) -> String {
        let sources = self.all_sources();
        let names: Vec<_> = sources
            .iter()
            .map(|source| source.path.to_string())
            .collect();
        names.join(", ")
    }

    /// Every name of data in the recipe.
    pub fn names(&self) -> Vec<String> {
        let sources = self.all_sources().into_iter().map(|source| source.path);
        let paths = sources.chain(self.validation.clone());
        paths.flat_map(|Paths(paths)| paths).collect()
    }

    /// How a source is read, or validation data without one, whatever the objective
    /// learns from: see [`Recipe::data_options`](super::Recipe::data_options).
    pub fn options(&self, source: Option<&SourceSection>) -> DataOptions {
        let mut ignore = self.ignore.clone();
        ignore.extend(source.iter().flat_map(|source| source.ignore.clone()));
        DataOptions {
            format: source.and_then(|source| source.format).or(self.format),
            answers: Answers::One,
            first: None,
            max_length: self.max_length,
            train_on_prompt: self.train_on_prompt,
            columns: source
                .and_then(|source| source.columns.clone())
                .unwrap_or_else(|| self.columns.clone()),
            ignore,
            system: self.system,
            first_turn: self.first_turn,
            allow_omissions: self.allow_omissions,
            allow_markup: self.allow_markup,
            max_skipped: self.max_skipped,
            template_variables: self.template_variables.clone(),
        }
    }
}

fn default_max_length() -> usize {
    DEFAULT_MAX_LENGTH
}

fn default_max_skipped() -> f64 {
    DEFAULT_MAX_SKIPPED
}

fn default_weight() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "for serde")]
fn is_default_max_skipped(share: &f64) -> bool {
    *share == DEFAULT_MAX_SKIPPED
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use crate::{Located, Recipe};

    #[test]
    fn where_a_set_lies_is_no_part_of_the_recipe() {
        let text = "name = \"a\"\nmodel.path = \"base\"\ndata.train = \"village/set#20\"\n";
        let recipe = Recipe::parse(text, "recipe.toml", &[]).unwrap();
        let mut located = recipe.clone();
        let place = Located {
            files: vec!["cache/train.jsonl".into()],
            first: Some(20),
        };
        located
            .data
            .located
            .0
            .insert("village/set#20".to_owned(), place);
        assert_eq!(recipe, located);
        let written = located.to_toml().unwrap();
        assert!(written.contains("train = \"village/set#20\""), "{written}");
        assert!(!written.contains("cache"), "{written}");
    }
}
