//! Records, brought from five layouts into three shapes.

use serde_json::Value;

use super::{Format, PAIRS, Record, keys};
use crate::{DataError, Message};

/// A record, whatever its format.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Example {
    /// Text, of which all is trained.
    Text(String),
    /// Text, of which the completion is trained.
    Pair { prompt: String, completion: String },
    /// Turns, of which the assistant's are trained.
    Chat(Vec<Message>),
}

impl Format {
    /// Reads a record. An instruction becomes a chat where there is a `chat`
    /// template to render it.
    pub(crate) fn parse(self, record: &Record, chat: bool) -> Result<Example, DataError> {
        match self {
            Self::Text => Ok(Example::Text(self.text(record, "text")?.to_owned())),
            Self::Alpaca => {
                refuse(record, &["system", "history"])?;
                let instruction = self.text(record, "instruction")?;
                let input = if record.get("input").is_none_or(is_blank) {
                    ""
                } else {
                    self.text(record, "input")?
                };
                let output = self.reply(record, "output")?;
                let prompt = match (chat, input) {
                    (true, "") => instruction.to_owned(),
                    (true, input) => format!("{instruction}\n\n{input}"),
                    (false, input) => alpaca_prompt(instruction, input),
                };
                Ok(Example::pair(prompt, output, chat))
            }
            Self::PromptCompletion => {
                let has = |key| record.contains_key(key);
                // With a key missing, the pair that is nearest names it.
                let (prompt, reply) = PAIRS
                    .into_iter()
                    .find(|&(prompt, reply)| has(prompt) && has(reply))
                    .or_else(|| {
                        PAIRS
                            .into_iter()
                            .find(|&(prompt, reply)| has(prompt) || has(reply))
                    })
                    .unwrap_or(PAIRS[0]);
                let prompt = self.text(record, prompt)?.to_owned();
                Ok(Example::pair(prompt, self.reply(record, reply)?, chat))
            }
            Self::Messages => {
                refuse(record, &["tools", "functions"])?;
                self.turns(record, "messages", "role", "content")
            }
            Self::ShareGpt => {
                refuse(record, &["tools", "system"])?;
                self.turns(record, "conversations", "from", "value")
            }
        }
    }

    /// The turns up to the assistant's last: nothing after it would be trained.
    fn turns(
        self,
        record: &Record,
        list: &str,
        role: &str,
        content: &str,
    ) -> Result<Example, DataError> {
        let value = record.get(list).ok_or_else(|| self.missing(list, record))?;
        let turns = value
            .as_array()
            .ok_or_else(|| wrong_type(list, "a list of turns", value))?;
        let mut messages = Vec::with_capacity(turns.len());
        for (i, turn) in turns.iter().enumerate() {
            let turn = turn
                .as_object()
                .ok_or_else(|| wrong_type(&format!("{list}[{i}]"), "an object", turn))?;
            // What these ask for is not done; to drop them would train on something else.
            let unsupported = [
                "tool_calls",
                "function_call",
                "reasoning_content",
                "thinking",
                "train",
                "weight",
            ];
            refuse(turn, &unsupported)?;
            let role = self.text(turn, role)?;
            let content = self.text(turn, content)?;
            let role = if self == Self::ShareGpt {
                sharegpt_role(role, i + 1)?
            } else {
                role
            };
            messages.push(Message::new(role, content));
        }
        let Some(last) = messages.iter().rposition(Message::is_assistant) else {
            return Err(DataError::NothingToTrain(
                "it has no turn of the assistant".to_owned(),
            ));
        };
        messages.truncate(last + 1);
        if messages
            .iter()
            .all(|message| !message.is_assistant() || message.content.trim().is_empty())
        {
            return Err(DataError::NothingToTrain(
                "all turns of the assistant are empty".to_owned(),
            ));
        }
        Ok(Example::Chat(messages))
    }

    fn text<'a>(self, record: &'a Record, key: &str) -> Result<&'a str, DataError> {
        let value = record.get(key).ok_or_else(|| self.missing(key, record))?;
        value
            .as_str()
            .ok_or_else(|| wrong_type(key, "a string", value))
    }

    fn reply(self, record: &Record, key: &str) -> Result<String, DataError> {
        let text = self.text(record, key)?;
        if text.trim().is_empty() {
            return Err(DataError::NothingToTrain(format!("its `{key}` is empty")));
        }
        Ok(text.to_owned())
    }

    fn missing(self, key: &str, record: &Record) -> DataError {
        DataError::MissingKey {
            key: key.to_owned(),
            format: self,
            found: keys(record),
        }
    }
}

impl Example {
    fn pair(prompt: String, completion: String, chat: bool) -> Self {
        if chat {
            Self::Chat(vec![
                Message::new("user", prompt),
                Message::new("assistant", completion),
            ])
        } else {
            Self::Pair { prompt, completion }
        }
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

fn sharegpt_role(from: &str, turn: usize) -> Result<&'static str, DataError> {
    match from {
        "human" | "user" => Ok("user"),
        "gpt" | "chatgpt" | "assistant" => Ok("assistant"),
        "system" => Ok("system"),
        _ => Err(DataError::UnknownRole {
            turn,
            found: from.to_owned(),
        }),
    }
}

fn refuse(record: &Record, unsupported: &[&str]) -> Result<(), DataError> {
    match unsupported
        .iter()
        .find(|&&key| record.get(key).is_some_and(|value| !is_blank(value)))
    {
        Some(key) => Err(DataError::UnsupportedKey((*key).to_owned())),
        None => Ok(()),
    }
}

fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn wrong_type(key: &str, expected: &'static str, found: &Value) -> DataError {
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
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(record: &Value, chat: bool) -> Result<Example, DataError> {
        let record = record.as_object().unwrap();
        Format::detect(record)?.parse(record, chat)
    }

    fn chat(turns: &[(&str, &str)]) -> Example {
        Example::Chat(
            turns
                .iter()
                .map(|&(role, content)| Message::new(role, content))
                .collect(),
        )
    }

    #[test]
    fn an_instruction_is_a_chat_or_the_alpaca_prompt() {
        let record = json!({"instruction": "Add.", "input": "1 2", "output": "3"});
        assert_eq!(
            parse(&record, true).unwrap(),
            chat(&[("user", "Add.\n\n1 2"), ("assistant", "3")])
        );
        let prompt = "Below is an instruction that describes a task, paired with an input that provides further \
            context. Write a response that appropriately completes the request.\n\n\
            ### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n";
        let pair = Example::Pair {
            prompt: prompt.to_owned(),
            completion: "3".to_owned(),
        };
        assert_eq!(parse(&record, false).unwrap(), pair);
        for input in [json!(null), json!("")] {
            let record =
                json!({"instruction": "Sing.", "input": input, "output": "La", "system": ""});
            assert_eq!(
                parse(&record, true).unwrap(),
                chat(&[("user", "Sing."), ("assistant", "La")])
            );
        }
        let prompt = "Below is an instruction that describes a task. Write a response that appropriately \
            completes the request.\n\n### Instruction:\nSing.\n\n### Response:\n";
        assert_eq!(alpaca_prompt("Sing.", ""), prompt);
    }

    #[test]
    fn sharegpt_roles_are_mapped_and_trailing_turns_cut() {
        let turns = json!([
            {"from": "system", "value": "S"}, {"from": "human", "value": "H"},
            {"from": "gpt", "value": "G"}, {"from": "human", "value": "untrained"},
        ]);
        let expected = chat(&[("system", "S"), ("user", "H"), ("assistant", "G")]);
        assert_eq!(
            parse(&json!({"conversations": turns}), true).unwrap(),
            expected
        );
        let error = parse(
            &json!({"conversations": [{"from": "bing", "value": ""}]}),
            true,
        )
        .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("turn 1 is from `bing`; known are human"),
            "{error}"
        );
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        for (record, key) in [
            (
                json!({"instruction": "a", "output": "b", "system": "c"}),
                "system",
            ),
            (json!({"messages": [], "tools": [{"name": "f"}]}), "tools"),
            (
                json!({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}),
                "tool_calls",
            ),
            (
                json!({"conversations": [{"from": "gpt", "value": "x", "weight": 0}]}),
                "weight",
            ),
        ] {
            let error = parse(&record, true).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`{key}` is not supported")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_bad_value_is_named() {
        for (record, message) in [
            (
                json!({"prompt": 3, "completion": ""}),
                "`prompt` must be a string, found a number",
            ),
            (
                json!({"messages": "hi"}),
                "`messages` must be a list of turns, found a string",
            ),
            (
                json!({"messages": ["hi"]}),
                "`messages[0]` must be an object, found a string",
            ),
            (
                json!({"prompt": "p", "completion": " \n"}),
                "its `completion` is empty",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}]}),
                "it has no turn of the assistant",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": ""}]}),
                "all turns of the assistant are empty",
            ),
            (
                json!({"messages": [{"role": "user"}]}),
                "the key `content` is missing: chat messages has `messages`",
            ),
        ] {
            let error = parse(&record, true).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
