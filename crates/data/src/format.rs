//! The layouts of records, and how they are told from their keys.

mod parse;

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::DataError;

pub use parse::alpaca_prompt;
pub(crate) use parse::{Example, kind};

/// How records are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `instruction`, `output` and optionally `input`.
    Alpaca,
    /// `prompt` and `completion`, or `prompt` and `response`, or `question` and `answer`.
    PromptCompletion,
    /// `messages`: turns with `role` and `content`.
    Messages,
    /// `conversations`: turns with `from` and `value`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// Plain text, or records with `text`.
    Text,
}

const PAIRS: [(&str, &str); 3] = [
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
];

type Record = Map<String, Value>;

impl Format {
    /// In the order of detection: a record of `messages` may carry a `prompt` as
    /// well, and one with an `instruction` the whole `text`.
    pub(crate) const ALL: [Self; 5] = [
        Self::Messages,
        Self::ShareGpt,
        Self::Alpaca,
        Self::PromptCompletion,
        Self::Text,
    ];

    /// The format's keys, for error messages.
    pub(crate) fn keys(self) -> &'static str {
        match self {
            Self::Alpaca => "`instruction`, `output` and optionally `input`",
            Self::PromptCompletion => {
                "`prompt` and `completion` (or `prompt` and `response`, or `question` and `answer`)"
            }
            Self::Messages => "`messages`, a list of turns with `role` and `content`",
            Self::ShareGpt => "`conversations`, a list of turns with `from` and `value`",
            Self::Text => "`text`",
        }
    }

    /// The first format whose keys the record has.
    pub(crate) fn detect(record: &Record) -> Result<Self, DataError> {
        let has = |key| record.contains_key(key);
        let fits = |format: &Self| match format {
            Self::Messages => has("messages"),
            Self::ShareGpt => has("conversations"),
            Self::Alpaca => has("instruction") && has("output"),
            Self::PromptCompletion => PAIRS
                .iter()
                .any(|&(prompt, reply)| has(prompt) && has(reply)),
            Self::Text => has("text"),
        };
        let format = Self::ALL.into_iter().find(fits);
        format.ok_or_else(|| DataError::UnknownFormat {
            found: keys(record),
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alpaca => "Alpaca",
            Self::PromptCompletion => "prompt and completion",
            Self::Messages => "chat messages",
            Self::ShareGpt => "ShareGPT",
            Self::Text => "text",
        })
    }
}

fn keys(record: &Record) -> Vec<String> {
    record.keys().cloned().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn formats_are_told_from_the_keys() {
        let detect = |record: Value| Format::detect(record.as_object().unwrap()).unwrap();
        assert_eq!(
            detect(json!({"instruction": "", "output": "", "text": ""})),
            Format::Alpaca
        );
        assert_eq!(
            detect(json!({"messages": [], "prompt": "", "response": ""})),
            Format::Messages
        );
        assert_eq!(
            detect(json!({"conversations": [], "id": 1})),
            Format::ShareGpt
        );
        for (prompt, reply) in PAIRS {
            assert_eq!(
                detect(json!({prompt: "", reply: ""})),
                Format::PromptCompletion
            );
        }
        assert_eq!(detect(json!({"text": "", "meta": {}})), Format::Text);
        let unknown = json!({"query": "", "gold": 1});
        let error = Format::detect(unknown.as_object().unwrap())
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("its keys (`query`, `gold`) fit no known format. Known are"),
            "{error}"
        );
        assert!(
            error.contains("Alpaca with `instruction`, `output` and optionally `input`"),
            "{error}"
        );
    }

    #[test]
    fn names_in_files_are_stable() {
        let names = Format::ALL.map(|format| serde_json::to_value(format).unwrap());
        assert_eq!(
            json!(names),
            json!([
                "messages",
                "sharegpt",
                "alpaca",
                "prompt-completion",
                "text"
            ])
        );
    }
}
