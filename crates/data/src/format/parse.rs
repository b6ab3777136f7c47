//! Records, brought from their layouts into three shapes.

use serde_json::Value;

use super::{
    Format, KeyUse, LISTS, PROMPTS, REPLIES, Record, TEXTS,
    answer::{Answer, lack},
    beside,
    fields::Fields,
    spoken,
    turns::{self, Turns},
};
use crate::{Conversation, DataError, DataOptions, Message};

/// A record, whatever its format.
#[derive(Debug, PartialEq)]
pub(crate) enum Example {
    /// Text, of which all is trained.
    Text(String),
    /// Text, of which the completion is trained, as much as the weight says.
    Pair {
        prompt: String,
        completion: String,
        weight: f32,
    },
    /// Turns, of which the assistant's are trained.
    Chat(Conversation),
}

/// A record that was read.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub example: Example,
    /// Every key that says something, and what became of it.
    pub keys: Vec<(String, KeyUse)>,
    /// The markup by which its prompt was seen to be rendered already.
    pub rendered: Option<&'static str>,
    /// Why nothing of it is to be trained, if so.
    pub nothing: Option<String>,
    /// Whether its answer is true or false.
    pub is_boolean: bool,
}

/// What is found on the way.
#[derive(Default)]
struct Found {
    /// Of what is within a key: turns, or an answer.
    keys: Vec<(String, KeyUse)>,
    rendered: Option<&'static str>,
    nothing: Option<String>,
    is_boolean: bool,
}

/// What an instruction is about.
pub(super) const CONTEXTS: [&str; 3] = ["input", "context", "passage"];
/// What an answer is one of.
pub(super) const OPTIONS: [&str; 2] = ["options", "choices"];
/// What the assistant thought before the answer.
/// `reasoning` is none of them: in some sets it explains the answer, and is no part of it.
const THOUGHTS: [&str; 2] = ["reasoning_content", "thinking"];
/// What tells that a prompt was rendered by somebody's template: words with
/// which templates begin a turn.
pub(crate) const MARKUP: [&str; 14] = [
    "<|im_start|>",
    "<|start_header_id|>",
    "<|user|>",
    "<|assistant|>",
    "<|start_of_role|>",
    "<|START_OF_TURN_TOKEN|>",
    "<start_of_turn>",
    "<|turn>",
    "<｜User｜>",
    "<|User|>",
    "<|start|>user",
    "[INST]",
    ALPACA,
    "### Human:",
];
const ALPACA: &str = "### Instruction:";
/// What templates put before the first turn.
const BEGINNINGS: [&str; 7] = [
    "<s>",
    "<bos>",
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<BOS_TOKEN>",
    "<｜begin▁of▁sentence｜>",
    "[gMASK]<sop>",
];
/// Bytes from which on a context counts as a passage, which a question may
/// hold whole; fewer may be in it by chance.
const PASSAGE: usize = 24;

impl Format {
    /// Reads a record. A prompt becomes a chat where there is a `chat` template
    /// to render it.
    pub(crate) fn parse(
        self,
        record: &Record,
        chat: bool,
        options: &DataOptions,
    ) -> Result<Parsed, DataError> {
        let fields = Fields::new(record);
        let mut found = Found::default();
        let example = match self {
            Self::Text => {
                let text = self.whole_text(&fields)?;
                found.rendered = markup(&text);
                Example::Text(text)
            }
            Self::Messages | Self::ShareGpt => self.chat(&fields, &mut found, options)?,
            // Of those that are judged, the encoder makes records of one answer first.
            Self::Alpaca | Self::PromptCompletion | Self::Preference | Self::Labelled => {
                self.pair(&fields, chat, options, &mut found)?
            }
        };
        let said = said(&example);
        let said: Vec<&str> = said.iter().map(String::as_str).collect();
        let mut keys: Vec<_> = fields
            .account(&said, &options.ignore)
            .into_iter()
            .map(|(key, use_)| (key.to_owned(), use_))
            .collect();
        keys.extend(found.keys);
        Ok(Parsed {
            example,
            keys,
            rendered: found.rendered,
            nothing: found.nothing,
            is_boolean: found.is_boolean,
        })
    }

    fn whole_text(self, fields: &Fields) -> Result<String, DataError> {
        let key = fields.pick(&TEXTS).unwrap_or(TEXTS[0]);
        self.text(fields, key)
    }

    /// Turns under whichever key.
    fn chat(
        self,
        fields: &Fields,
        found: &mut Found,
        options: &DataOptions,
    ) -> Result<Example, DataError> {
        let key = match self {
            Self::Messages => "messages",
            _ => fields.pick(&LISTS[1..]).unwrap_or("conversations"),
        };
        let value = fields.take(key);
        let Some(value) = value.or_else(|| fields.record().get(key)) else {
            return Err(self.missing(key, fields.record()));
        };
        // A table has nulls where there is nothing.
        let none = Value::Array(Vec::new());
        let value = if value.is_null() { &none } else { value };
        let turns = if key == "chat" && spoken::is_spoken(value) {
            let read = spoken::turns(value.as_str().unwrap_or_default());
            read.unwrap_or_else(|reason| {
                found.nothing = Some(reason);
                Turns::default()
            })
        } else {
            let items = turns::list(value);
            let items = items.ok_or_else(|| no_turns(key, value))?;
            Turns::read(key, &items, options)?
        };
        found.keys.extend(turns.keys);
        let mut conversation = Conversation {
            messages: turns.messages,
            weights: turns.weights,
            ..Conversation::default()
        };
        // What is beside turns and is the same again, such as `prompt`, is left to the account.
        beside::complete(fields, &mut conversation, &mut found.keys, options)?;
        Ok(Example::Chat(conversation))
    }

    /// The keys of the prompt and of the answer.
    fn pair_keys(self, fields: &Fields, options: &DataOptions) -> (&'static str, &'static str) {
        // With a key missing, the first names what is.
        let of = |names: &[&'static str]| fields.pick(names);
        let prompt_key = match self {
            Self::Alpaca => "instruction",
            _ => of(&PROMPTS).unwrap_or("prompt"),
        };
        let reply_key = match self {
            // What a user says is the answer is it, or there is none.
            _ if options.columns.contains_key("completion") => "completion",
            Self::Alpaca => of(&REPLIES).unwrap_or("output"),
            _ => of(&REPLIES).unwrap_or("completion"),
        };
        (prompt_key, reply_key)
    }

    fn pair(
        self,
        fields: &Fields,
        chat: bool,
        options: &DataOptions,
        found: &mut Found,
    ) -> Result<Example, DataError> {
        let (prompt_key, reply_key) = self.pair_keys(fields, options);
        let items = |key: &str| fields.record().get(key).and_then(Value::as_array);
        // A list may also be of calls, or of one answer.
        let are_turns = |items: &Vec<Value>| {
            items.iter().any(Value::is_object)
                && turns::calls(&Value::Array(items.clone())).is_none()
        };
        if items(prompt_key).is_some() || items(reply_key).is_some_and(are_turns) {
            return self.lists(fields, [prompt_key, reply_key], found, options);
        }
        let prompt = self.text(fields, prompt_key)?;
        let answer = Answer::of(fields, reply_key, options)?;
        let mut reply = answer.text;
        found.keys.extend(answer.keys);
        found.nothing = answer.nothing;
        found.is_boolean = answer.is_boolean;
        let choices = choices(fields, reply_key, &mut reply)?;
        let thought = text_under(fields, &THOUGHTS)?;
        let about = about(fields, prompt_key, &prompt)?;
        let asked = [Some(prompt.clone()), choices].into_iter().flatten();
        let asked: Vec<_> = asked.filter(|part| !part.is_empty()).collect();
        let whole = [asked.clone(), about.clone()].concat().join("\n\n");
        found.rendered = markup(&prompt).filter(|_| chat);
        let is_rendered = found.rendered.is_some();
        if chat && !is_rendered {
            let mut message = Message::new("assistant", reply);
            if let Some(thought) = thought {
                message = message.with("reasoning_content", thought);
            }
            if let Some(calls) = answer.calls {
                message = message.with("tool_calls", calls);
            }
            let mut conversation = Conversation::from(vec![Message::new("user", whole), message]);
            beside::complete(fields, &mut conversation, &mut found.keys, options)?;
            return Ok(Example::Chat(conversation));
        }
        let mut rest = Conversation::default();
        beside::complete(fields, &mut rest, &mut found.keys, options)?;
        // Without a template, or beside a prompt that has been through one, there is no place for these.
        let without_place = [
            ("tools", rest.tools.is_some()),
            ("calls", answer.calls.is_some()),
            (
                "history",
                rest.messages.iter().any(|m| m.role() != "system"),
            ),
            ("a thought", thought.is_some()),
        ];
        if let Some((what, _)) = without_place.iter().find(|(_, there)| *there) {
            return Err(if is_rendered {
                DataError::RenderedAlready((*what).to_owned())
            } else {
                DataError::NeedsTemplate((*what).to_owned())
            });
        }
        let weight = rest.weights.iter().product();
        let system = rest
            .messages
            .first()
            .map(|system| system.content().to_owned())
            // The prompt may say it already.
            .filter(|system| !is_rendered || !prompt.contains(system.trim()));
        if is_rendered && (system.is_some() || whole != prompt) {
            return Err(DataError::RenderedAlready(
                if system.is_some() {
                    "a system prompt"
                } else {
                    "context or options"
                }
                .to_owned(),
            ));
        }
        let mut prompt = if self == Self::Alpaca && !is_rendered {
            alpaca_prompt(&asked.join("\n\n"), &about.join("\n\n"))
        } else if whole == prompt {
            whole
        } else {
            whole + "\n\n"
        };
        if let Some(system) = system {
            prompt = format!("{system}\n\n{prompt}");
        }
        Ok(Example::Pair {
            prompt,
            completion: reply,
            weight,
        })
    }

    /// A prompt and a completion of which one or both are lists of turns, as TRL
    /// has them: only the completion's are trained.
    fn lists(
        self,
        fields: &Fields,
        both: [&'static str; 2],
        found: &mut Found,
        options: &DataOptions,
    ) -> Result<Example, DataError> {
        let mut conversation = Conversation::default();
        for (key, role, trained) in [(both[0], "user", false), (both[1], "assistant", true)] {
            let value = fields.take(key);
            let turns = match value.or_else(|| fields.record().get(key)) {
                Some(Value::String(text)) => Turns {
                    messages: vec![Message::new(role, text.as_str())],
                    weights: vec![1.0],
                    ..Turns::default()
                },
                Some(Value::Array(items)) if items.iter().all(Value::is_object) => {
                    Turns::read(key, items, options)?
                }
                None | Some(Value::Null) if trained => {
                    found.nothing = Some(lack(fields, key, options));
                    Turns::default()
                }
                // Several answers to choose from are no dialogue.
                Some(other) => return Err(wrong_type(key, "a string or a list of turns", other)),
                None => return Err(self.missing(key, fields.record())),
            };
            let weights = if trained {
                turns.weights
            } else {
                turns.asked_weights()
            };
            // Whole dialogues, as preferences have them, begin with the prompt.
            let is_again = |said: &Message, first: &Message| {
                said.role() == first.role() && said.content().trim() == first.content().trim()
            };
            if trained
                && let ([said], Some(first)) =
                    (conversation.messages.as_slice(), turns.messages.first())
                && is_again(said, first)
            {
                conversation.messages.clear();
                conversation.weights.clear();
            }
            conversation.weights.extend(weights);
            conversation.messages.extend(turns.messages);
            found.keys.extend(turns.keys);
        }
        beside::complete(fields, &mut conversation, &mut found.keys, options)?;
        Ok(Example::Chat(conversation))
    }

    /// Text, or a number as it is written.
    fn text(self, fields: &Fields, key: &str) -> Result<String, DataError> {
        let record = fields.record();
        let taken = fields.take(key);
        let value = taken
            .or_else(|| record.get(key))
            .ok_or_else(|| self.missing(key, record))?;
        match value {
            // A table has nulls where there is nothing.
            Value::Null => Ok(String::new()),
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => turns::digits(key, number),
            other => Err(wrong_type(key, "a string", other)),
        }
    }

    fn missing(self, key: &str, record: &Record) -> DataError {
        DataError::MissingKey {
            key: key.to_owned(),
            format: self,
            found: record.keys().cloned().collect(),
        }
    }
}

/// What is wrong with what is under the key of turns. Text is to be JSON of them.
fn no_turns(key: &str, value: &Value) -> DataError {
    match value {
        Value::String(text) if text.trim_start().starts_with('[') => wrong_type(
            key,
            "a list of turns, or JSON of one (single quotes, True and None are Python's: write it with `json.dumps`)",
            value,
        ),
        _ => wrong_type(key, "a list of turns", value),
    }
}

/// The text under the first of some keys that is there.
fn text_under<'a>(
    fields: &Fields<'a>,
    keys: &[&'static str],
) -> Result<Option<&'a str>, DataError> {
    let Some(key) = fields.pick(keys) else {
        return Ok(None);
    };
    let text = |value: &'a Value| {
        value
            .as_str()
            .ok_or_else(|| wrong_type(key, "a string", value))
    };
    fields.take(key).map(text).transpose()
}

/// What an answer is one of, a line each. One that is the place of a choice, as in
/// exams, becomes its letter.
fn choices(
    fields: &Fields,
    reply_key: &str,
    reply: &mut String,
) -> Result<Option<String>, DataError> {
    let Some(key) = fields.pick(&OPTIONS) else {
        return Ok(None);
    };
    let Some(value) = fields.take(key) else {
        return Ok(None);
    };
    let lines = beside::choices(key, value)?;
    // Counted from 0. In a table it is text, and may be a choice or its label instead.
    let place = match fields.record().get(reply_key) {
        Some(Value::String(text)) if value.is_string() => {
            let is_choice = |line: &str| {
                let (label, choice) = line.split_once(". ").unwrap_or((line, line));
                [label, choice.trim()].contains(&text.trim())
            };
            let are_lettered = lines.starts_with("A. ");
            let place = text.trim().parse().ok();
            place.filter(|_| are_lettered && !lines.lines().any(is_choice))
        }
        other => other.and_then(Value::as_u64),
    };
    if let Some(place) = place {
        let line = usize::try_from(place)
            .ok()
            .and_then(|at| lines.lines().nth(at));
        let label = line.and_then(|line| line.split_once(". "));
        *reply = label
            .map(|(label, _)| label.to_owned())
            .ok_or_else(|| wrong_type(reply_key, "one of the choices, counted from 0", value))?;
    }
    Ok(Some(lines))
}

/// What a question is about, as far as it does not say it itself: the whole
/// passage may be in it.
fn about(fields: &Fields, prompt_key: &str, prompt: &str) -> Result<Vec<String>, DataError> {
    let mut about = Vec::new();
    for key in CONTEXTS.into_iter().filter(|key| *key != prompt_key) {
        if let Some(text) = text_under(fields, &[key])? {
            let words = text.trim();
            let is_line = prompt.lines().any(|line| line.trim() == words);
            let is_passage = words.len() >= PASSAGE && prompt.contains(words);
            if !is_line && !is_passage {
                about.push(text.to_owned());
            }
        }
    }
    Ok(about)
}

/// The markup that a prompt begins with, if a template rendered it.
pub(super) fn markup(prompt: &str) -> Option<&'static str> {
    let mut text = prompt.trim_start();
    while let Some(rest) = BEGINNINGS.iter().find_map(|begin| text.strip_prefix(begin)) {
        text = rest.trim_start();
    }
    let begins = MARKUP.into_iter().find(|markup| text.starts_with(markup));
    // Alpaca's prompt has a sentence before its markup.
    let is_alpaca = text.starts_with("Below is an instruction") && text.contains(ALPACA);
    begins.or(is_alpaca.then_some(ALPACA))
}

/// All text of a record that is used.
fn said(example: &Example) -> Vec<String> {
    match example {
        Example::Text(text) => vec![text.clone()],
        Example::Pair {
            prompt, completion, ..
        } => vec![prompt.clone(), completion.clone()],
        Example::Chat(conversation) => conversation
            .messages
            .iter()
            .map(|message| message.content().to_owned())
            .filter(|text| !text.is_empty())
            .collect(),
    }
}

/// The prompt that Stanford Alpaca introduced, ending in a line break as in
/// most of its descendants. Used where a checkpoint has no chat template; to
/// generate with the result, prompt with this too.
pub fn alpaca_prompt(instruction: &str, input: &str) -> String {
    let (paired, input) = if input.is_empty() {
        ("", String::new())
    } else {
        (
            ", paired with an input that provides further context",
            format!("### Input:\n{input}\n\n"),
        )
    };
    format!(
        "Below is an instruction that describes a task{paired}. \
         Write a response that appropriately completes the request.\n\n\
         ### Instruction:\n{instruction}\n\n{input}### Response:\n"
    )
}

pub(super) fn wrong_type(key: &str, expected: &'static str, found: &Value) -> DataError {
    DataError::WrongType {
        key: key.to_owned(),
        expected,
        found: kind(found),
    }
}

/// What a JSON value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
