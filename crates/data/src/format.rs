//! The layouts of records, and how they are told from their keys.

mod answer;
mod beside;
mod fields;
mod parse;
mod path;
pub(crate) mod preference;
mod spoken;
mod turns;

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::DataError;

pub use fields::{HARMLESS, KeyUse};
pub(crate) use fields::{check_answers, has_key, ignored, in_small_letters, renamed};
pub use parse::alpaca_prompt;
pub(crate) use parse::{Example, MARKUP, Parsed};
pub use preference::Answers;

/// How records are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `instruction` with an `output` or `response`, and optionally an `input`.
    Alpaca,
    /// A `prompt` and a `completion`, by these or other names: see `docs/data.md`.
    PromptCompletion,
    /// `messages`: turns with `role` and `content`.
    Messages,
    /// `conversations`: turns with `from` and `value`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// Plain text, or records with `text`.
    Text,
    /// `chosen` and `rejected`, with their prompt beside them or in both.
    Preference,
    /// Any of the layouts of questions with one answer, with a `label` that says
    /// whether it is a good one.
    Labelled,
}

/// What turns may be under.
const LISTS: [&str; 7] = [
    "messages",
    "conversations",
    "conversation",
    "dialog",
    "dialogue",
    "chat",
    "turns",
];
/// What a prompt may be under. The first that says something is it.
const PROMPTS: [&str; 11] = [
    "instruction",
    "prompt",
    "question",
    "question_stem",
    "query",
    "problem",
    "input",
    "inputs",
    "user",
    "human",
    // Of what is translated.
    "source",
];
/// What the answer may be under.
const REPLIES: [&str; 11] = [
    "output",
    "completion",
    "response",
    "solution",
    "answer",
    "answers",
    "answerKey",
    "target",
    "targets",
    "assistant",
    "reply",
];
/// What text may be under.
const TEXTS: [&str; 2] = ["text", "content"];

type Record = Map<String, Value>;

impl Format {
    /// Those with one answer to learn, in the order of detection: a record of `messages` may carry a `prompt` as
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
                "`prompt` and `completion` (or `prompt` and `response`, `question` and `answer`, and other pairs)"
            }
            Self::Messages => "`messages`, a list of turns with `role` and `content`",
            Self::ShareGpt => "`conversations`, a list of turns with `from` and `value`",
            Self::Text => "`text`",
            Self::Preference => Answers::Pair.needed(),
            Self::Labelled => Answers::Labelled.needed(),
        }
    }

    /// Whether a record of this format may be without its answer: then it is told
    /// from others, and left out.
    pub(crate) fn lacks_answer(self, record: &Record) -> bool {
        matches!(self, Self::Alpaca | Self::PromptCompletion)
            && PROMPTS.iter().any(|key| record.contains_key(*key))
    }

    /// The first format whose keys the record has.
    pub(crate) fn detect(record: &Record) -> Result<Self, DataError> {
        let any = |keys: &[&str]| keys.iter().any(|key| record.contains_key(*key));
        let turns = LISTS
            .into_iter()
            .find(|key| record.get(*key).is_some_and(|value| is_turns(key, value)));
        let pair = any(&PROMPTS) && any(&REPLIES);
        // Beside a pair, no turns are nothing.
        let is_empty = |key: &&str| {
            record
                .get(*key)
                .and_then(Value::as_array)
                .is_some_and(Vec::is_empty)
        };
        if let Some(key) = turns.filter(|key| !(pair && is_empty(key))) {
            return Ok(if key == "messages" {
                Self::Messages
            } else {
                Self::ShareGpt
            });
        }
        if record.contains_key("chosen") && record.contains_key("rejected") && !any(&REPLIES) {
            let is_dialogue = record.get("chosen").is_some_and(Value::is_array);
            return Err(DataError::Preferences {
                name: if is_dialogue {
                    "messages"
                } else {
                    "completion"
                },
            });
        }
        // A record for each turn, as in the exports of Open Assistant.
        let is_one_turn = |key: &&'static str| {
            let value = record.get(*key).and_then(Value::as_str);
            value.is_some_and(|role| ONE_TURN.contains(&role))
        };
        if let Some(role) = ["role", "from"].into_iter().find(is_one_turn)
            && any(&TEXTS)
            && !pair
        {
            return Err(DataError::OneTurn { role });
        }
        if record.contains_key("instruction") && any(&REPLIES) {
            Ok(Self::Alpaca)
        } else if pair {
            Ok(Self::PromptCompletion)
        } else if any(&TEXTS) {
            Ok(Self::Text)
        } else if record.contains_key("messages") {
            Ok(Self::Messages)
        } else if record.contains_key("conversations") {
            Ok(Self::ShareGpt)
        } else {
            Err(DataError::UnknownFormat {
                found: record.keys().cloned().collect(),
            })
        }
    }
}

/// Who says a turn that is a record of its own.
const ONE_TURN: [&str; 6] = ["user", "human", "prompter", "assistant", "gpt", "system"];

/// Whether a value is a list of turns, or the text of one.
fn is_turns(key: &str, value: &Value) -> bool {
    match value {
        Value::Array(_) => true,
        Value::String(_) if key == "chat" && spoken::is_spoken(value) => true,
        Value::String(text) => text.trim_start().starts_with("[{"),
        _ => false,
    }
}

pub(crate) fn quoted<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
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
            Self::Preference => "chosen and rejected",
            Self::Labelled => "answers with labels",
        })
    }
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
            detect(json!({"messages": [{}], "prompt": "", "response": ""})),
            Format::Messages
        );
        assert_eq!(
            detect(json!({"conversations": [], "id": 1})),
            Format::ShareGpt
        );
        for prompt in &PROMPTS[1..] {
            for reply in REPLIES {
                assert_eq!(
                    detect(json!({*prompt: "", reply: ""})),
                    Format::PromptCompletion
                );
            }
        }
        assert_eq!(detect(json!({"text": "", "meta": {}})), Format::Text);
        let unknown = json!({"article": "", "gold": 1});
        let error = Format::detect(unknown.as_object().unwrap())
            .unwrap_err()
            .to_string();
        assert!(
            error
                .starts_with("its keys (`article`, `gold`) fit no known format. Say what they are"),
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
