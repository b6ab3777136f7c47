//! How to read data files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Answers, Format};

/// The most tokens of a sample where nothing else is asked for: in
/// [`DataOptions`], in a recipe without `data.max_length` and on the command line.
pub const DEFAULT_MAX_LENGTH: usize = 512;

/// How to read data files.
#[derive(Clone, Debug, PartialEq)]
pub struct DataOptions {
    /// The format, where it is not to be told from the first record's keys.
    pub format: Option<Format>,
    /// What a record holds of answers.
    pub answers: Answers,
    /// Only as many records, from the first on.
    pub first: Option<usize>,
    /// The most tokens of a sample. A longer one keeps its first `max_length`;
    /// text is cut into blocks of `max_length`.
    pub max_length: usize,
    /// Whether the loss is taken on prompts too. Turns after the assistant's
    /// last are left out either way. Of pairs, only the chosen answer's prompt is
    /// then trained, and with the weight 0, so that an objective can tell it from
    /// the answer.
    pub train_on_prompt: bool,
    /// The file's own names of `prompt`, `completion`, `input`, `context`,
    /// `options`, `system`, `history`, `messages`, `tools`, `text`, `chosen`,
    /// `rejected` and `label`. A name may be a path: `answers.text[0]`.
    pub columns: BTreeMap<String, String>,
    /// Keys that may be left out; those of a turn also as `messages[].key`.
    pub ignore: Vec<String>,
    /// What becomes of system prompts.
    pub system: SystemTurn,
    /// What becomes of what the assistant says before the user.
    pub first_turn: FirstTurn,
    /// Whether the template may leave parts of a record out.
    pub allow_omissions: bool,
    /// Whether turns may hold the words with which the template tells turns apart.
    pub allow_markup: bool,
    /// The share of records that may have nothing to train.
    pub max_skipped: f64,
    /// Variables that the template knows, such as `enable_thinking`; those of a
    /// record (`chat_template_kwargs`) go before them.
    pub template_variables: Map<String, Value>,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            format: None,
            answers: Answers::One,
            first: None,
            max_length: DEFAULT_MAX_LENGTH,
            train_on_prompt: false,
            columns: BTreeMap::new(),
            ignore: Vec::new(),
            system: SystemTurn::Keep,
            first_turn: FirstTurn::Keep,
            allow_omissions: false,
            allow_markup: false,
            max_skipped: DEFAULT_MAX_SKIPPED,
            template_variables: Map::new(),
        }
    }
}

/// The share of records that may have nothing to train where nothing else is
/// asked for. In the original Alpaca file it is 28 of 52,002.
pub const DEFAULT_MAX_SKIPPED: f64 = 0.5;

/// What becomes of system turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SystemTurn {
    /// They go to the template as they are.
    #[default]
    Keep,
    /// They go before the words of the user's first turn, with an empty line
    /// between, as the authors of models without a system turn do it.
    Merge,
    /// They are left out.
    Drop,
}

/// What becomes of what the assistant says before the user does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirstTurn {
    /// It goes to the template as it is.
    #[default]
    Keep,
    /// It is left out.
    Drop,
}
