//! Turns, in whatever words they are written.

use serde_json::{Map, Number, Value, json};

use super::{
    KeyUse,
    fields::{is_blank, judge},
    parse::wrong_type,
};
use crate::{DataError, DataOptions, Message};

const ROLES: [&str; 3] = ["role", "from", "speaker"];
const CONTENTS: [&str; 4] = ["content", "value", "text", "message"];
/// Lists whose texts are said in turn by the user and the assistant.
const DIALOGUES: [&str; 4] = ["conversations", "conversation", "dialog", "dialogue"];
/// What a template may know of a turn beside its words.
const FOR_TEMPLATES: [&str; 6] = [
    "tool_calls",
    "tool_call_id",
    "name",
    "reasoning_content",
    "thinking",
    "reasoning",
];
/// Whether a turn is trained, and how much.
const WEIGHTS: [&str; 4] = ["weight", "train", "training", "loss"];

/// What a part of a turn may have: its text, and what a server is to keep of it.
const OF_PARTS: [&str; 3] = ["type", "text", "cache_control"];

/// Turns with their weights, and what became of their keys.
#[derive(Default)]
pub(super) struct Turns {
    pub messages: Vec<Message>,
    pub weights: Vec<f32>,
    /// Whether a turn says itself what it counts.
    pub says_so: Vec<bool>,
    pub keys: Vec<(String, KeyUse)>,
    /// Whether every turn has a weight of 1, which then says nothing of any.
    pub is_even: bool,
}

/// The list under a key, which may be the text of one.
pub(super) fn list(value: &Value) -> Option<Vec<Value>> {
    let items = match value {
        Value::Array(items) => items.clone(),
        Value::String(text) if text.trim_start().starts_with('[') => {
            olora_records::parse(text).ok()?.as_array()?.clone()
        }
        _ => return None,
    };
    Some(items)
}

impl Turns {
    /// Reads the turns under `key`.
    pub(super) fn read(
        key: &str,
        items: &[Value],
        options: &DataOptions,
    ) -> Result<Self, DataError> {
        let is_one = |item: &Value| item.get("weight").and_then(Value::as_f64) == Some(1.0);
        let mut turns = Self {
            is_even: items.iter().all(is_one),
            ..Self::default()
        };
        let all_text = DIALOGUES.contains(&key) && items.iter().all(Value::is_string);
        for (i, item) in items.iter().enumerate() {
            match item {
                // As in LIMA: the two speak in turn.
                Value::String(text) if all_text => {
                    turns.say(if i % 2 == 0 { "user" } else { "assistant" }, text);
                }
                // As in Capybara: what was said and what was answered.
                Value::Object(pair)
                    if pair.contains_key("input") && pair.contains_key("output") =>
                {
                    turns.pair(key, pair, &options.ignore)?;
                }
                Value::Object(turn) => turns.turn(key, i, turn, options)?,
                other => return Err(wrong_type(&format!("{key}[{i}]"), "an object", other)),
            }
        }
        Ok(turns)
    }

    pub(super) fn say(&mut self, role: &str, text: &str) {
        self.messages.push(Message::new(role, text));
        self.weights.push(1.0);
        self.says_so.push(false);
    }

    /// What each counts where turns are context: nothing, unless they say so.
    pub(super) fn asked_weights(&self) -> Vec<f32> {
        let said = self.says_so.iter().chain(std::iter::repeat(&false));
        let both = self.weights.iter().zip(said);
        both.map(|(weight, said)| if *said { *weight } else { 0.0 })
            .collect()
    }

    fn pair(
        &mut self,
        key: &str,
        pair: &Map<String, Value>,
        ignore: &[String],
    ) -> Result<(), DataError> {
        for (name, role) in [("input", "user"), ("output", "assistant")] {
            let value = pair.get(name).unwrap_or(&Value::Null);
            let text = value
                .as_str()
                .ok_or_else(|| wrong_type(&format!("{key}[].{name}"), "a string", value))?;
            self.say(role, text);
        }
        let others = pair
            .iter()
            .filter(|(name, _)| !["input", "output"].contains(&name.as_str()));
        for (name, value) in others {
            self.account(key, name, value, ignore);
        }
        Ok(())
    }

    fn turn(
        &mut self,
        key: &str,
        i: usize,
        turn: &Map<String, Value>,
        options: &DataOptions,
    ) -> Result<(), DataError> {
        let named =
            |names: &[&'static str]| names.iter().copied().find(|name| turn.contains_key(*name));
        let missing = |what: &'static str| DataError::TurnLacks {
            turn: i + 1,
            what,
            found: turn.keys().cloned().collect(),
        };
        let role_key = named(&ROLES).ok_or_else(|| missing("role"))?;
        let content_key = named(&CONTENTS);
        let given = turn[role_key].as_str().ok_or_else(|| {
            wrong_type(
                &format!("{key}[{i}].{role_key}"),
                "a string",
                &turn[role_key],
            )
        })?;
        let (role, is_call) = role(given, role_key == "from", i + 1)?;
        let mut message = Map::new();
        message.insert("role".to_owned(), role.clone().into());
        let ignore = &options.ignore;
        let (mut weight, mut says_so) = (1.0, false);
        let mut calls = None;
        for (name, value) in turn {
            let name = name.as_str();
            if name == role_key {
                continue;
            }
            let is_ignored =
                |ignored: &String| *ignored == name || *ignored == format!("{key}[].{name}");
            if Some(name) == content_key {
                let at = format!("{key}[{i}].{name}");
                let said = match thoughts(value).filter(|_| role == "assistant") {
                    None => content(&at, value, &role)?,
                    Some((thought, rest)) => {
                        message.insert("reasoning_content".to_owned(), thought.into());
                        content(&at, &rest, &role)?
                    }
                };
                message.insert("content".to_owned(), said);
            } else if is_blank(value) {
                // An absent value and a null one are the same in a table.
            } else if ignore.iter().any(is_ignored) {
                self.account(key, name, value, ignore);
            } else if name == "tool_calls" {
                calls = Some(tool_calls(&format!("{key}[{i}].{name}"), value)?);
            } else if name == "function_call" {
                calls = Some(tool_calls(
                    &format!("{key}[{i}].{name}"),
                    &json!([value.clone()]),
                )?);
            } else if FOR_TEMPLATES.contains(&name) {
                message.insert(name.to_owned(), value.clone());
            } else if WEIGHTS.contains(&name) {
                let given = weight_of(&format!("{key}[{i}].{name}"), value)?;
                weight *= given;
                says_so = true;
                // Where all is trained, it is only said again.
                let asks = given > 0.0 && !(self.is_even && name == "weight");
                if asks && role != "assistant" && !options.train_on_prompt {
                    return Err(DataError::NotTheAssistants {
                        turn: i + 1,
                        role,
                        key: name.to_owned(),
                    });
                }
            } else {
                self.account(key, name, value, ignore);
            }
        }
        if is_call && calls.is_none() {
            let text = message
                .get("content")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if let Some(found) = written_calls(text) {
                calls = Some(found);
                message.insert("content".to_owned(), "".into());
            }
        }
        if content_key.is_none() && calls.is_none() {
            return Err(missing("content"));
        }
        if let Some(calls) = calls {
            message.insert("tool_calls".to_owned(), calls);
        }
        self.messages.push(Message(message));
        self.weights.push(weight);
        self.says_so.push(says_so);
        Ok(())
    }

    /// Whatever else a turn says of itself.
    fn account(&mut self, key: &str, name: &str, value: &Value, ignore: &[String]) {
        let path = format!("{key}[].{name}");
        let use_ = if ignore.contains(&path) {
            Some(KeyUse::Ignored)
        } else {
            judge(name, value, &[], ignore)
        };
        if let Some(use_) = use_
            && !self.keys.iter().any(|(known, _)| *known == path)
        {
            self.keys.push((path, use_));
        }
    }
}

/// The role as templates call it, and whether the turn is a call written as
/// text. `strict`: whether only roles that are known here are taken, as in
/// layouts whose roles have to be translated.
fn role(given: &str, strict: bool, turn: usize) -> Result<(String, bool), DataError> {
    let lower = given.trim().to_lowercase();
    Ok(match lower.as_str() {
        "human" | "user" | "prompter" => ("user".to_owned(), false),
        "gpt" | "chatgpt" | "assistant" | "bot" | "chatbot" | "model" | "ai" | "bing" | "bard" => {
            ("assistant".to_owned(), false)
        }
        "system" => ("system".to_owned(), false),
        "tool" | "observation" | "function" | "function_response" | "tool_response" => {
            ("tool".to_owned(), false)
        }
        "function_call" | "tool_call" => ("assistant".to_owned(), true),
        // A template may know it. What it leaves out is found by comparing.
        _ if !strict => (given.to_owned(), false),
        _ => {
            return Err(DataError::UnknownRole {
                turn,
                found: given.to_owned(),
            });
        }
    })
}

/// What an assistant's parts say that it thought, and the parts without that.
fn thoughts(value: &Value) -> Option<(String, Value)> {
    let thought = |part: &Value| {
        let of = part.get("type")?.as_str()?;
        let text = part.get(of).or_else(|| part.get("text"))?.as_str()?;
        ["thinking", "reasoning"]
            .contains(&of)
            .then(|| text.to_owned())
    };
    let parts = value.as_array()?;
    let found: Vec<_> = parts.iter().filter_map(thought).collect();
    let rest = parts.iter().filter(|part| thought(part).is_none());
    (!found.is_empty()).then(|| (found.join("\n"), rest.cloned().collect()))
}

/// What is said: text, or parts that are all text.
pub(super) fn content(at: &str, value: &Value, role: &str) -> Result<Value, DataError> {
    let is_part = |part: &Value| part.is_string() || part.get("type").is_some();
    match value {
        Value::String(_) | Value::Null => Ok(value.clone()),
        // The result of a call, as data.
        Value::Array(items) if role == "tool" && !items.iter().all(is_part) => {
            Ok(value.to_string().into())
        }
        Value::Bool(_) if role == "tool" => Ok(value.to_string().into()),
        Value::Number(number) => Ok(digits(at, number)?.into()),
        Value::Array(parts) => {
            let mut texts = Vec::with_capacity(parts.len());
            for part in parts {
                texts.push(part_text(at, part)?);
            }
            Ok(texts.join("\n").into())
        }
        // The result of a call, as data.
        Value::Object(_) if role == "tool" => Ok(value.to_string().into()),
        other => Err(wrong_type(at, "a string or a list of parts", other)),
    }
}

/// The text of one part of `content`, as chat interfaces have them.
fn part_text<'a>(at: &str, part: &'a Value) -> Result<&'a str, DataError> {
    let Value::Object(fields) = part else {
        return part.as_str().ok_or_else(|| {
            wrong_type(at, "a list of parts such as {\"type\": \"text\", …}", part)
        });
    };
    let of = fields.get("type").and_then(Value::as_str).unwrap_or("text");
    let others = fields
        .iter()
        .filter(|(key, value)| !OF_PARTS.contains(&key.as_str()) && !is_blank(value));
    let other = others.map(|(key, _)| key.as_str()).next();
    match (of, fields.get("text").and_then(Value::as_str), other) {
        ("text" | "input_text" | "output_text", Some(text), None) => Ok(text),
        ("text" | "input_text" | "output_text", _, other) => Err(DataError::UnsupportedPart {
            at: at.to_owned(),
            of: other.unwrap_or("nothing").to_owned(),
        }),
        (of, _, _) => Err(DataError::UnsupportedPart {
            at: at.to_owned(),
            of: of.to_owned(),
        }),
    }
}

/// A number as it is written. One that has more digits than numbers are read with
/// would be another.
pub(super) fn digits(at: &str, number: &Number) -> Result<String, DataError> {
    if is_rounded(number) {
        return Err(DataError::TooManyDigits(at.to_owned()));
    }
    Ok(number.to_string())
}

/// Whether a number may be a whole one beyond 64 bits, which is read as a fraction.
fn is_rounded(number: &Number) -> bool {
    // 2⁶³, and what is written with less is read exactly.
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    const KEPT: usize = 15;
    let is_beyond = |value: f64| value.abs() >= BEYOND;
    let written = number.to_string();
    let digits = written.split(['e', 'E']).next().unwrap_or_default();
    number.is_f64()
        && number.as_f64().is_some_and(is_beyond)
        && digits.bytes().filter(u8::is_ascii_digit).count() > KEPT
}

/// Whether any number in a value may be such.
fn has_rounded(value: &Value) -> bool {
    match value {
        Value::Number(number) => is_rounded(number),
        Value::Array(items) => items.iter().any(has_rounded),
        Value::Object(fields) => fields.values().any(has_rounded),
        _ => false,
    }
}

/// The arguments of a call, which may be JSON as text, also of text: an object, if
/// nothing of them is lost then.
fn arguments(text: &str) -> Option<Value> {
    match olora_records::parse(text) {
        Ok(parsed @ Value::Object(_)) => (!has_rounded(&parsed)).then_some(parsed),
        Ok(Value::String(inner)) if inner.trim_start().starts_with('{') => arguments(&inner),
        Ok(Value::Null) => Some(json!({})),
        Ok(_) => None,
        // A call without arguments.
        Err(_) => text.trim().is_empty().then(|| json!({})),
    }
}

/// How much a turn's loss counts.
pub(super) fn weight_of(at: &str, value: &Value) -> Result<f32, DataError> {
    let weight = match value {
        Value::Bool(trained) => f64::from(u8::from(*trained)),
        Value::Number(number) => number.as_f64().unwrap_or(f64::NAN),
        // In a table everything is text.
        Value::String(text) => match text.trim().to_lowercase().as_str() {
            "true" => 1.0,
            "false" => 0.0,
            // What a table of numbers has where there is nothing.
            "nan" => 1.0,
            number => number.parse().unwrap_or(f64::NAN),
        },
        other => return Err(wrong_type(at, "true, false or a number", other)),
    };
    // Of a whole record, a loss that is no flag is one that somebody measured.
    let is_measured = at == "loss" && ![0.0, 1.0].contains(&weight);
    if weight.is_finite() && (0.0..=1e6).contains(&weight) && !is_measured {
        Ok(weight as f32)
    } else {
        Err(DataError::Weight {
            at: at.to_owned(),
            found: value.to_string(),
        })
    }
}

/// The functions that may be called, as a list of schemas, each under
/// `function`. As text they are JSON.
pub(super) fn tools(key: &str, value: &Value) -> Result<Option<Value>, DataError> {
    let parsed;
    let value = match value {
        Value::String(text) => {
            parsed = olora_records::parse(text)
                .map_err(|_| wrong_type(key, "a list of functions, or JSON of one", value))?;
            &parsed
        }
        other => other,
    };
    // A table has a null as text.
    if value.is_null() {
        return Ok(None);
    }
    let Value::Array(items) = value else {
        return Err(wrong_type(
            key,
            "a list of functions, or JSON of one",
            value,
        ));
    };
    let mut all = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let at = || format!("{key}[{i}]");
        // Each may be JSON as well, since a table has no objects of several kinds.
        let parsed = match item {
            Value::String(text) => Some(
                olora_records::parse(text)
                    .map_err(|_| wrong_type(&at(), "an object, or JSON of one", item))?,
            ),
            _ => None,
        };
        let item = parsed.as_ref().unwrap_or(item);
        let Value::Object(fields) = item else {
            return Err(wrong_type(&at(), "an object", item));
        };
        all.push(
            if fields.contains_key("name") && !fields.contains_key("function") {
                json!({"type": "function", "function": item})
            } else {
                item.clone()
            },
        );
    }
    Ok((!all.is_empty()).then_some(Value::Array(all)))
}

/// Calls as templates are given them: each under `function`, its arguments an
/// object even where the record has them as text.
pub(super) fn tool_calls(at: &str, value: &Value) -> Result<Value, DataError> {
    let items = list(value).ok_or_else(|| wrong_type(at, "a list of calls", value))?;
    let mut calls = Vec::with_capacity(items.len());
    for (i, item) in items.into_iter().enumerate() {
        let at = format!("{at}[{i}]");
        let Value::Object(mut call) = item else {
            return Err(wrong_type(&at, "an object", &item));
        };
        if !call.contains_key("function") {
            call = [
                ("type".to_owned(), json!("function")),
                ("function".to_owned(), Value::Object(call)),
            ]
            .into_iter()
            .collect();
        }
        let function = call.get_mut("function").and_then(Value::as_object_mut);
        let Some(function) =
            function.filter(|function| function.get("name").is_some_and(Value::is_string))
        else {
            return Err(DataError::NoFunctionName(at));
        };
        let given = match function.get("arguments") {
            Some(Value::String(text)) => arguments(text),
            None | Some(Value::Null) => Some(json!({})),
            Some(_) => None,
        };
        if let Some(given) = given {
            function.insert("arguments".to_owned(), given);
        }
        call.retain(|_, value| !value.is_null());
        calls.push(Value::Object(call));
    }
    Ok(Value::Array(calls))
}

/// The calls that an answer is, if it is a list of such: each with a name and
/// arguments.
pub(super) fn calls(value: &Value) -> Option<Value> {
    let items = value.as_array().filter(|items| !items.is_empty())?;
    let is_call = |item: &Value| {
        let function = item.get("function").unwrap_or(item);
        function.get("name").is_some_and(Value::is_string) && function.get("arguments").is_some()
    };
    let all = items.iter().all(is_call);
    all.then(|| tool_calls("", value).ok()).flatten()
}

/// Calls that a turn has as text.
fn written_calls(text: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(text.trim()).ok()?;
    let value = if value.is_array() {
        value
    } else {
        json!([value])
    };
    tool_calls("", &value).ok()
}
