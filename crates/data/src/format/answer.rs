//! What a record answers: words, a number, calls, or one of several.

use serde_json::Value;

use super::{
    KeyUse, Record,
    fields::{Fields, judge},
    parse::wrong_type,
    turns::{self, list},
};
use crate::{DataError, DataOptions};

/// The answer of a record.
#[derive(Default)]
pub(super) struct Answer {
    pub text: String,
    /// Calls of functions, in the form that templates are given.
    pub calls: Option<Value>,
    /// Whether it is true or false.
    pub is_boolean: bool,
    /// Why there is none, if so.
    pub nothing: Option<String>,
    /// What became of the keys within it, if it is an object.
    pub keys: Vec<(String, KeyUse)>,
}

impl Answer {
    /// What is under `key`, which may be absent: of a file some records may have
    /// no answer.
    pub(super) fn of(
        fields: &Fields,
        key: &'static str,
        options: &DataOptions,
    ) -> Result<Self, DataError> {
        let mut answer = Self::default();
        let Some(value) = fields.take(key) else {
            answer.nothing = Some(lack(fields, key, options));
            return Ok(answer);
        };
        // As a user would name it in `data.columns`.
        let name = options.columns.get(key).map_or(key, String::as_str);
        match value {
            Value::Bool(is) => {
                answer.text = is.to_string();
                answer.is_boolean = true;
            }
            Value::Number(number) => answer.text = turns::digits(name, number)?,
            // As in xLAM's sets, the calls may be the JSON of them.
            Value::String(text) if key == "answers" && fields.says("tools") => {
                match list(value) {
                    // No call is no answer.
                    Some(items) if items.is_empty() => {}
                    Some(items) => answer.calls = turns::calls(&Value::Array(items)),
                    None => {}
                }
                if answer.calls.is_none() && text.trim() != "[]" {
                    answer.text.clone_from(text);
                }
            }
            Value::String(text) => answer.text.clone_from(text),
            Value::Array(items) => match turns::calls(value) {
                Some(calls) => answer.calls = Some(calls),
                None => answer.text = one_of(name, items)?,
            },
            // As in SQuAD: the words, and where they stand in the context.
            Value::Object(parts) if parts.contains_key("text") => {
                // Of the article that the context is from.
                fields.set_aside("title");
                for (part, value) in parts {
                    if part == "text" {
                        continue;
                    }
                    let path = format!("{name}.{part}");
                    let ignored = options.ignore.contains(&path).then_some(KeyUse::Ignored);
                    let use_ = ignored.or_else(|| judge(part, value, &[], &options.ignore));
                    answer.keys.extend(use_.map(|use_| (path, use_)));
                }
                let path = format!("{name}.text");
                answer.text = match &parts["text"] {
                    Value::Array(items) => one_of(&path, items)?,
                    Value::String(text) => text.clone(),
                    Value::Null => String::new(),
                    other => return Err(wrong_type(&path, TEXTS, other)),
                };
            }
            Value::Object(parts) => {
                return Err(DataError::AnswerOfParts {
                    key: name.to_owned(),
                    // The first in the message is one that could be it.
                    parts: of_texts(parts),
                });
            }
            Value::Null => {}
        }
        if answer.calls.is_none() && answer.text.trim().is_empty() {
            answer.nothing = Some(format!("its `{key}` is empty"));
        }
        Ok(answer)
    }
}

const TEXTS: &str = "a string or a list of strings";

/// The keys of an object, those with texts first.
fn of_texts(parts: &Record) -> Vec<String> {
    let (texts, others): (Vec<_>, Vec<_>) = parts.iter().partition(|(_, value)| value.is_string());
    let all = texts.into_iter().chain(others);
    all.map(|(key, _)| key.clone()).collect()
}

/// Why there is no answer under a key.
pub(super) fn lack(fields: &Fields, key: &str, options: &DataOptions) -> String {
    if fields.record().contains_key(key) {
        return format!("its `{key}` is empty");
    }
    match options.columns.get(key) {
        Some(name) => format!("it has no `{name}`"),
        None => "it has no answer".to_owned(),
    }
}

/// The one text of a list. Several that differ are a question to the user.
fn one_of(path: &str, items: &[Value]) -> Result<String, DataError> {
    let text = |item: &Value| match item {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => turns::digits(path, number),
        other => Err(wrong_type(path, TEXTS, other)),
    };
    let texts = items.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    match texts.as_slice() {
        [] => Ok(String::new()),
        [first, rest @ ..] if rest.iter().all(|other| other.trim() == first.trim()) => {
            Ok(first.clone())
        }
        several => Err(DataError::SeveralAnswers {
            key: path.to_owned(),
            n: several.len(),
        }),
    }
}
