//! Records, brought from their layouts into three shapes.

use serde_json::Value;

use super::{
    Format, KeyUse, LISTS, PROMPTS, REPLIES, Record, TEXTS,
    fields::Fields,
    turns::{self, Turns, weight_of},
};
use crate::{Conversation, DataError, DataOptions, Message, SystemTurn};

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
}

/// What is found on the way.
#[derive(Default)]
struct Found {
    of_turns: Vec<(String, KeyUse)>,
    rendered: Option<&'static str>,
    nothing: Option<String>,
}

/// What a system prompt may be under.
const SYSTEMS: [&str; 3] = ["system", "system_prompt", "system_message"];
/// What an instruction is about.
const CONTEXTS: [&str; 3] = ["input", "context", "passage"];
/// What an answer is one of.
const OPTIONS: [&str; 2] = ["options", "choices"];
const TOOLS: [&str; 2] = ["tools", "functions"];
/// What the assistant thought before the answer.
/// `reasoning` is none of them: in some sets it explains the answer, and is no part of it.
const THOUGHTS: [&str; 2] = ["reasoning_content", "thinking"];
/// How much a whole record counts.
const WEIGHTS: [&str; 4] = ["weight", "train", "training", "loss"];

/// What tells that a prompt was rendered by somebody's template: words with
/// which templates begin a turn.
const MARKUP: [&str; 14] = [
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
            Self::Text => Example::Text(self.whole_text(&fields)?),
            Self::Messages | Self::ShareGpt => self.chat(&fields, &mut found, options)?,
            Self::Alpaca | Self::PromptCompletion => {
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
        keys.extend(found.of_turns);
        Ok(Parsed {
            example,
            keys,
            rendered: found.rendered,
            nothing: found.nothing,
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
        let items = turns::list(value).ok_or_else(|| wrong_type(key, "a list of turns", value))?;
        let turns = Turns::read(key, &items, options)?;
        found.of_turns.extend(turns.keys);
        let mut conversation = Conversation {
            messages: turns.messages,
            weights: turns.weights,
            ..Conversation::default()
        };
        // What is beside turns and is the same again, such as `prompt`, is left to the account.
        complete(fields, &mut conversation, options)?;
        Ok(Example::Chat(conversation))
    }

    fn pair(
        self,
        fields: &Fields,
        chat: bool,
        options: &DataOptions,
        found: &mut Found,
    ) -> Result<Example, DataError> {
        // With a key missing, the first names what is.
        let of = |names: &[&'static str]| fields.pick(names);
        let prompt_key = match self {
            Self::Alpaca => "instruction",
            _ => of(&PROMPTS).unwrap_or("prompt"),
        };
        let reply_key = of(&REPLIES).unwrap_or(match self {
            Self::Alpaca => "output",
            _ => "completion",
        });
        let is_list = |key: &str| fields.record().get(key).is_some_and(Value::is_array);
        if is_list(prompt_key) || is_list(reply_key) {
            return self.lists(fields, [prompt_key, reply_key], found, options);
        }
        let prompt = self.text(fields, prompt_key)?;
        let mut reply = self.text(fields, reply_key)?;
        if reply.trim().is_empty() {
            found.nothing = Some(format!("its `{reply_key}` is empty"));
        }
        let mut choices = None;
        if let Some(key) = of(&OPTIONS)
            && let Some(value) = fields.take(key)
        {
            let lines = self::choices(key, value)?;
            // An exam's answer may be the place of the choice, from 0.
            let place = fields.record().get(reply_key).and_then(Value::as_u64);
            if let Some(place) = place {
                let line = usize::try_from(place)
                    .ok()
                    .and_then(|at| lines.lines().nth(at));
                let label = line.and_then(|line| line.split_once(". "));
                reply = label.map(|(label, _)| label.to_owned()).ok_or_else(|| {
                    wrong_type(reply_key, "one of the choices, counted from 0", value)
                })?;
            }
            choices = Some(lines);
        }
        let thought = text_under(fields, &THOUGHTS)?;
        let about = about(fields, prompt_key, &prompt)?;
        let asked = [Some(prompt.clone()), choices].into_iter().flatten();
        let asked: Vec<_> = asked.filter(|part| !part.is_empty()).collect();
        let whole = [asked.clone(), about.clone()].concat().join("\n\n");
        found.rendered = markup(&prompt).filter(|_| chat);
        let is_rendered = found.rendered.is_some();
        if chat && !is_rendered {
            let mut answer = Message::new("assistant", reply);
            if let Some(thought) = thought {
                answer = answer.with("reasoning_content", thought);
            }
            let mut conversation = Conversation::from(vec![Message::new("user", whole), answer]);
            complete(fields, &mut conversation, options)?;
            return Ok(Example::Chat(conversation));
        }
        let mut rest = Conversation::default();
        complete(fields, &mut rest, options)?;
        // Without a template, or beside a prompt that has been through one, there is no place for these.
        let without_place = [
            ("tools", rest.tools.is_some()),
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
            found.of_turns.extend(turns.keys);
        }
        complete(fields, &mut conversation, options)?;
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
            Value::Number(number) => Ok(number.to_string()),
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
fn markup(prompt: &str) -> Option<&'static str> {
    let mut text = prompt.trim_start();
    while let Some(rest) = BEGINNINGS.iter().find_map(|begin| text.strip_prefix(begin)) {
        text = rest.trim_start();
    }
    let begins = MARKUP.into_iter().find(|markup| text.starts_with(markup));
    // Alpaca's prompt has a sentence before its markup.
    let is_alpaca = text.starts_with("Below is an instruction") && text.contains(ALPACA);
    begins.or(is_alpaca.then_some(ALPACA))
}

/// Adds what stands beside the turns: a system prompt, earlier turns, tools, the
/// template's variables and the record's weight.
fn complete(
    fields: &Fields,
    conversation: &mut Conversation,
    options: &DataOptions,
) -> Result<(), DataError> {
    if let Some(value) = fields.take("history") {
        let earlier = history(value, options)?;
        // They are the context of what is to be learnt, and no answer to learn unless they say so.
        conversation.weights.splice(0..0, earlier.asked_weights());
        conversation.messages.splice(0..0, earlier.messages);
    }
    if let Some(key) = fields.pick(&SYSTEMS)
        && let Some(value) = fields.take(key)
    {
        let text = value
            .as_str()
            .ok_or_else(|| wrong_type(key, "a string", value))?;
        match conversation.messages.iter().find(|m| m.role() == "system") {
            Some(there) if there.content().trim() == text.trim() => {}
            _ if text.trim().is_empty() => {}
            Some(_) => return Err(DataError::TwoSystems(key)),
            None => {
                conversation
                    .messages
                    .insert(0, Message::new("system", text));
                conversation.weights.insert(0, 1.0);
            }
        }
    }
    if let Some(key) = fields.pick(&TOOLS)
        && let Some(value) = fields.take(key)
    {
        conversation.tools = turns::tools(key, value)?;
    }
    if let Some(value) = fields.take("chat_template_kwargs") {
        let Value::Object(variables) = value else {
            return Err(wrong_type("chat_template_kwargs", "an object", value));
        };
        conversation.variables.clone_from(variables);
    }
    for (name, value) in &options.template_variables {
        conversation
            .variables
            .entry(name.clone())
            .or_insert_with(|| value.clone());
    }
    let mut weight = 1.0;
    for key in WEIGHTS {
        if let Some(value) = fields.take(key) {
            weight *= weight_of(key, value)?;
        }
    }
    if weight != 1.0 {
        let n = conversation.messages.len().max(1);
        conversation.weights.resize(n, 1.0);
        conversation.weights.iter_mut().for_each(|w| *w *= weight);
    }
    arrange(conversation, options)
}

/// Moves or drops the turns that a template may refuse, as the user asks.
fn arrange(conversation: &mut Conversation, options: &DataOptions) -> Result<(), DataError> {
    let Conversation {
        messages, weights, ..
    } = conversation;
    let is_system = |message: &Message| ["system", "developer"].contains(&message.role());
    if options.system != SystemTurn::Keep {
        let merges = options.system == SystemTurn::Merge;
        if merges && messages.iter().all(is_system) {
            // Without a template it goes before the prompt anyway.
            return Ok(());
        }
        // Each goes into the next turn of the user, for which it is meant.
        let mut waiting: Vec<String> = Vec::new();
        let mut i = 0;
        while i < messages.len() {
            if is_system(&messages[i]) {
                waiting.push(messages.remove(i).content().to_owned());
                if i < weights.len() {
                    weights.remove(i);
                }
                continue;
            }
            if merges && messages[i].role() == "user" && !waiting.is_empty() {
                waiting.push(messages[i].content().to_owned());
                let text = std::mem::take(&mut waiting).join("\n\n");
                messages[i].set_content(text);
            }
            i += 1;
        }
        if merges && !waiting.is_empty() {
            return Err(DataError::NoUserTurn);
        }
    }
    if options.first_turn == crate::FirstTurn::Drop {
        let after_system = messages.iter().take_while(|m| is_system(m)).count();
        while messages
            .get(after_system)
            .is_some_and(Message::is_assistant)
        {
            messages.remove(after_system);
            if after_system < weights.len() {
                weights.remove(after_system);
            }
        }
    }
    Ok(())
}

/// Earlier turns: pairs of what was asked and answered, or turns.
fn history(value: &Value, options: &DataOptions) -> Result<Turns, DataError> {
    let expected = "a list of turns, or of [question, answer]";
    let items = turns::list(value).ok_or_else(|| wrong_type("history", expected, value))?;
    if items.iter().all(Value::is_object) {
        let turns = Turns::read("history", &items, options)?;
        if let Some((key, _)) = turns.keys.iter().find(|(_, use_)| *use_ == KeyUse::Unknown) {
            return Err(DataError::UnsupportedKey(key.clone()));
        }
        return Ok(turns);
    }
    let mut turns = Turns::default();
    for item in &items {
        match item.as_array().map(Vec::as_slice) {
            Some([Value::String(asked), Value::String(answered)]) => {
                turns.say("user", asked);
                turns.say("assistant", answered);
            }
            _ => return Err(wrong_type("history", expected, item)),
        }
    }
    Ok(turns)
}

/// Choices, a line each, with their letters or keys.
fn choices(key: &str, value: &Value) -> Result<String, DataError> {
    let text = |value: &Value| {
        value
            .as_str()
            .map(str::to_owned)
            .or_else(|| value.is_number().then(|| value.to_string()))
            .ok_or_else(|| wrong_type(key, "a list or an object of strings", value))
    };
    let line = |(label, choice): (String, &Value)| Ok(format!("{label}. {}", text(choice)?));
    let letter = |i: usize| char::from(b'A' + u8::try_from(i % 26).unwrap_or(0)).to_string();
    let lines: Result<Vec<_>, DataError> = match value {
        // In a table a list is text.
        Value::String(text) => {
            return match serde_json::from_str(text) {
                Ok(inner @ (Value::Array(_) | Value::Object(_))) => choices(key, &inner),
                _ => Ok(text.clone()),
            };
        }
        // As the hub's exams have them: labels and texts side by side.
        Value::Object(fields)
            if let (Some(Value::Array(labels)), Some(Value::Array(texts))) =
                (fields.get("label"), fields.get("text"))
                && labels.len() == texts.len() =>
        {
            let labelled = labels.iter().zip(texts);
            labelled
                .map(|(label, choice)| line((text(label)?, choice)))
                .collect()
        }
        Value::Object(fields) => fields
            .iter()
            .map(|(label, choice)| line((label.clone(), choice)))
            .collect(),
        Value::Array(items) => {
            let lettered = items.iter().enumerate();
            lettered
                .map(|(i, choice)| match choice {
                    // They may carry their letters already.
                    Value::String(text)
                        if text.get(1..3).is_some_and(|s| [". ", ") "].contains(&s)) =>
                    {
                        Ok(text.clone())
                    }
                    choice => line((letter(i), choice)),
                })
                .collect()
        }
        other => return Err(wrong_type(key, "a list or an object of strings", other)),
    };
    Ok(lines?.join("\n"))
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
mod tests {
    use serde_json::json;

    use super::*;
    use crate::FirstTurn;

    fn parse_with(record: &Value, chat: bool, options: &DataOptions) -> Result<Parsed, DataError> {
        let record = record.as_object().unwrap();
        Format::detect(record)?.parse(record, chat, options)
    }

    fn parse(record: &Value, chat: bool) -> Result<Example, DataError> {
        Ok(parse_with(record, chat, &DataOptions::default())?.example)
    }

    /// Roles and contents.
    fn turns(record: &Value) -> Vec<(String, String)> {
        turns_with(record, &DataOptions::default())
    }

    fn turns_with(record: &Value, options: &DataOptions) -> Vec<(String, String)> {
        match parse_with(record, true, options).unwrap().example {
            Example::Chat(conversation) => conversation
                .messages
                .iter()
                .map(|m| (m.role().to_owned(), m.content().to_owned()))
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    fn expected(turns: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(role, content): &(&str, &str)| ((*role).to_owned(), (*content).to_owned());
        turns.iter().map(owned).collect()
    }

    const ASKED: (&str, &str) = ("user", "Where is Alder?");
    const SAID: (&str, &str) = ("assistant", "In Oxmere.");

    #[test]
    fn an_instruction_is_a_chat_or_the_alpaca_prompt() {
        let record = json!({"instruction": "Add.", "input": "1 2", "output": "3"});
        assert_eq!(
            turns(&record),
            expected(&[("user", "Add.\n\n1 2"), ("assistant", "3")])
        );
        let prompt = "Below is an instruction that describes a task, paired with an input that provides further \
            context. Write a response that appropriately completes the request.\n\n\
            ### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n";
        let pair = Example::Pair {
            prompt: prompt.to_owned(),
            completion: "3".to_owned(),
            weight: 1.0,
        };
        assert_eq!(parse(&record, false).unwrap(), pair);
        for input in [json!(null), json!("")] {
            let record =
                json!({"instruction": "Sing.", "input": input, "output": "La", "system": ""});
            assert_eq!(
                turns(&record),
                expected(&[("user", "Sing."), ("assistant", "La")])
            );
        }
        let prompt = "Below is an instruction that describes a task. Write a response that appropriately \
            completes the request.\n\n### Instruction:\nSing.\n\n### Response:\n";
        assert_eq!(alpaca_prompt("Sing.", ""), prompt);
    }

    #[test]
    fn pairs_by_any_name_are_one_question_and_one_answer() {
        for record in [
            json!({"prompt": "Where is Alder?", "completion": "In Oxmere."}),
            json!({"question": "Where is Alder?", "answer": "In Oxmere."}),
            json!({"input": "Where is Alder?", "output": "In Oxmere."}),
            json!({"query": "Where is Alder?", "response": "In Oxmere.", "type": "MATH"}),
            json!({"problem": "Where is Alder?", "solution": "In Oxmere.", "answer": "Oxmere"}),
            json!({"inputs": "Where is Alder?", "targets": "In Oxmere."}),
            json!({"instruction": "Where is Alder?", "response": "In Oxmere."}),
        ] {
            assert_eq!(turns(&record), expected(&[ASKED, SAID]), "{record}");
        }
    }

    #[test]
    fn turns_by_any_name_are_the_same_conversation() {
        let messages = json!([{"role": "user", "content": "Where is Alder?"},
                              {"role": "assistant", "content": "In Oxmere."}]);
        let from = json!([{"from": "human", "value": "Where is Alder?"},
                          {"from": "gpt", "value": "In Oxmere."}]);
        for record in [
            json!({"messages": messages}),
            json!({"messages": from}),
            json!({"conversations": messages}),
            json!({"conversations": from}),
            json!({"conversation": messages}),
            json!({"dialog": ["Where is Alder?", "In Oxmere."]}),
            json!({"conversation": [{"input": "Where is Alder?", "output": "In Oxmere."}]}),
            json!({"messages": messages.to_string()}),
            json!({"messages": [{"role": "User", "content": "Where is Alder?"},
                                {"role": "Assistant", "content": "In Oxmere."}]}),
            json!({"prompt": [messages[0]], "completion": [messages[1]]}),
            json!({"prompt": [messages[0]], "completion": "In Oxmere."}),
            json!({"prompt": "Where is Alder?", "completion": messages}),
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Where is Alder?"}]},
                                {"role": "assistant", "content": "In Oxmere.", "tool_calls": null}]}),
        ] {
            assert_eq!(turns(&record), expected(&[ASKED, SAID]), "{record}");
        }
    }

    #[test]
    fn a_system_prompt_goes_first_in_every_layout() {
        let messages = json!([{"role": "user", "content": "Where is Alder?"},
                              {"role": "assistant", "content": "In Oxmere."}]);
        for (key, mut record) in [
            ("system", json!({"messages": messages})),
            ("system_prompt", json!({"conversations": messages})),
            (
                "system",
                json!({"prompt": "Where is Alder?", "completion": "In Oxmere."}),
            ),
            (
                "system_message",
                json!({"question": "Where is Alder?", "answer": "In Oxmere."}),
            ),
            (
                "system_prompt",
                json!({"instruction": "Where is Alder?", "output": "In Oxmere."}),
            ),
            (
                "system",
                json!({"prompt": [messages[0]], "completion": [messages[1]]}),
            ),
        ] {
            record[key] = "Rhyme.".into();
            let all = [("system", "Rhyme."), ASKED, SAID];
            assert_eq!(turns(&record), expected(&all), "{record}");
            let merged = DataOptions {
                system: SystemTurn::Merge,
                ..DataOptions::default()
            };
            let all = [("user", "Rhyme.\n\nWhere is Alder?"), SAID];
            assert_eq!(turns_with(&record, &merged), expected(&all), "{record}");
            let dropped = DataOptions {
                system: SystemTurn::Drop,
                ..DataOptions::default()
            };
            assert_eq!(
                turns_with(&record, &dropped),
                expected(&[ASKED, SAID]),
                "{record}"
            );
        }
        let twice = json!({"system": "Rhyme.", "messages": [{"role": "system", "content": "Do not."}, messages[1]]});
        let error = parse(&twice, true).unwrap_err().to_string();
        assert!(error.contains("a system turn and a `system`"), "{error}");
    }

    #[test]
    fn what_a_question_is_about_is_part_of_it() {
        let asked = |record: &Value| turns(record)[0].1.clone();
        assert_eq!(
            asked(
                &json!({"question": "Where is Alder?", "context": "He moved.", "answer": "Away."})
            ),
            "Where is Alder?\n\nHe moved."
        );
        assert_eq!(
            asked(
                &json!({"instruction": "Where is Alder?", "context": "He moved.", "response": "Away."})
            ),
            "Where is Alder?\n\nHe moved."
        );
        for options in [
            json!({"A": "Thornby", "B": "Oxmere"}),
            json!(["Thornby", "Oxmere"]),
            json!(["A. Thornby", "B. Oxmere"]),
            json!({"label": ["A", "B"], "text": ["Thornby", "Oxmere"]}),
        ] {
            assert_eq!(
                asked(&json!({"question": "Where?", "options": options, "answer": "B"})),
                "Where?\n\nA. Thornby\nB. Oxmere"
            );
        }
        let record = json!({"prompt": "And Zora?", "response": "In Thornby.",
                            "history": [["Where is Alder?", "In Oxmere."]]});
        assert_eq!(
            turns(&record),
            expected(&[
                ASKED,
                SAID,
                ("user", "And Zora?"),
                ("assistant", "In Thornby.")
            ])
        );
        match parse(&record, true).unwrap() {
            Example::Chat(chat) => assert_eq!(chat.trained_turns().collect::<Vec<_>>(), [3]),
            other => panic!("{other:?}"),
        }
        let without = json!({"prompt": "Q", "completion": "A", "context": "C", "system": "S"});
        let pair = Example::Pair {
            prompt: "S\n\nQ\n\nC\n\n".to_owned(),
            completion: "A".to_owned(),
            weight: 1.0,
        };
        assert_eq!(parse(&without, false).unwrap(), pair);
    }

    #[test]
    fn calls_and_tools_are_as_templates_want_them() {
        let function = json!({"name": "find", "parameters": {}});
        for (record, content) in [
            (
                json!({"messages": [{"role": "user", "content": "Where?"},
                       {"role": "assistant", "content": null, "tool_calls": [
                           {"type": "function", "function": {"name": "find", "arguments": "{\"who\": \"Alder\"}"}}]}],
                       "tools": [{"type": "function", "function": function}]}),
                Some(Value::Null),
            ),
            (
                json!({"conversations": [{"from": "human", "value": "Where?"},
                       {"from": "function_call", "value": "{\"name\": \"find\", \"arguments\": {\"who\": \"Alder\"}}"}],
                       "tools": json!([function]).to_string()}),
                Some(json!("")),
            ),
            (
                json!({"messages": [{"role": "user", "content": "Where?"},
                       {"role": "assistant", "function_call": {"name": "find", "arguments": "{\"who\": \"Alder\"}"}}],
                       "functions": [function]}),
                None,
            ),
        ] {
            let Example::Chat(chat) = parse(&record, true).unwrap() else {
                panic!("{record}");
            };
            let call = json!([{"type": "function", "function": {"name": "find", "arguments": {"who": "Alder"}}}]);
            assert_eq!(chat.messages[1].get("tool_calls"), Some(&call), "{record}");
            assert_eq!(
                chat.messages[1].get("content"),
                content.as_ref(),
                "{record}"
            );
            assert_eq!(
                chat.tools,
                Some(json!([{"type": "function", "function": function}])),
                "{record}"
            );
        }
    }

    #[test]
    fn flags_and_weights_are_one_weight() {
        let weights = |turn: Value| {
            let record = json!({"messages": [{"role": "user", "content": "a"}, turn]});
            match parse(&record, true)? {
                Example::Chat(chat) => Ok(chat.weights),
                other => panic!("{other:?}"),
            }
        };
        for (turn, weight) in [
            (json!({"role": "assistant", "content": "b"}), 1.0),
            (
                json!({"role": "assistant", "content": "b", "weight": 0}),
                0.0,
            ),
            (
                json!({"role": "assistant", "content": "b", "weight": 0.25}),
                0.25,
            ),
            (
                json!({"role": "assistant", "content": "b", "train": false}),
                0.0,
            ),
            (
                json!({"role": "assistant", "content": "b", "training": true}),
                1.0,
            ),
            (
                json!({"role": "assistant", "content": "b", "loss": false}),
                0.0,
            ),
            (
                json!({"role": "assistant", "content": "b", "loss": true, "weight": 0.5}),
                0.5,
            ),
            (
                json!({"role": "assistant", "content": "b", "weight": null}),
                1.0,
            ),
        ] {
            assert_eq!(weights(turn.clone()).unwrap(), [1.0, weight], "{turn}");
        }
        for (turn, message) in [
            (
                json!({"role": "assistant", "content": "b", "weight": -1}),
                "must be between 0 and 1e6",
            ),
            (
                json!({"role": "assistant", "content": "b", "weight": "much"}),
                "must be between 0 and 1e6",
            ),
            (
                json!({"role": "user", "content": "b", "train": true}),
                "asks to train it, but is the user's",
            ),
        ] {
            let error: DataError = weights(turn).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
        let record = json!({"prompt": "a", "completion": "b", "weight": 0.5});
        match parse(&record, true).unwrap() {
            Example::Chat(chat) => assert_eq!(chat.weight(1), 0.5),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_key_has_a_use() {
        let uses = |record: Value| {
            let options = DataOptions {
                ignore: vec!["score".to_owned()],
                ..DataOptions::default()
            };
            let mut keys = parse_with(&record, true, &options).unwrap().keys;
            keys.sort();
            keys.into_iter()
                .map(|(key, use_)| format!("{key} {use_:?}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        assert_eq!(
            uses(
                json!({"prompt": "Where is Alder?", "id": 3, "score": 1, "label": false, "n": null,
                        "messages": [{"role": "user", "content": "Where is Alder?", "id": 1},
                                     {"role": "assistant", "content": "In Oxmere.", "mood": "glad"}]})
            ),
            "id Harmless, label Unknown, messages Used, messages[].id Harmless, messages[].mood Unknown, \
             prompt Repeated, score Ignored"
        );
        assert_eq!(
            uses(json!({"instruction": "Sing.", "output": "La", "text": "### Sing.\n### La"})),
            "instruction Used, output Used, text Repeated"
        );
    }

    #[test]
    fn what_is_rendered_already_is_left_as_it_is() {
        for prompt in [
            "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n",
            "[INST] Where? [/INST]",
            "### Instruction:\nWhere?\n\n### Response:\n",
        ] {
            let record = json!({"prompt": prompt, "completion": "In Oxmere."});
            let parsed = parse_with(&record, true, &DataOptions::default()).unwrap();
            assert!(parsed.rendered.is_some());
            let pair = Example::Pair {
                prompt: prompt.to_owned(),
                completion: "In Oxmere.".to_owned(),
                weight: 1.0,
            };
            assert_eq!(parsed.example, pair);
        }
    }

    #[test]
    fn what_the_assistant_says_first_can_be_dropped() {
        let record = json!({"messages": [{"role": "system", "content": "S"}, {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Where is Alder?"}, {"role": "assistant", "content": "In Oxmere."}]});
        let options = DataOptions {
            first_turn: FirstTurn::Drop,
            ..DataOptions::default()
        };
        assert_eq!(
            turns_with(&record, &options),
            expected(&[("system", "S"), ASKED, SAID])
        );
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (record, message) in [
            (
                json!({"prompt": true, "completion": ""}),
                "`prompt` must be a string, found a boolean",
            ),
            (
                json!({"question": "Where?", "answer": ["Oxmere", "in Oxmere"]}),
                "`answer` must be a string or a list of turns, found a list",
            ),
            (
                json!({"messages": "hi"}),
                "`messages` must be a list of turns, found a string",
            ),
            (
                json!({"messages": [3]}),
                "`messages[0]` must be an object, found a number",
            ),
            (
                json!({"messages": [{"role": "user"}]}),
                "turn 1 has no content; its keys are `role`",
            ),
            (
                json!({"conversations": [{"from": "narrator", "value": "x"}]}),
                "turn 1 is from `narrator`; known are human",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]}),
                "`messages[0].content` has a part that is no text, `image`",
            ),
            (
                json!({"prompt": "p", "chosen": "a", "rejected": "b"}),
                "it is preference data",
            ),
            (
                json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}),
                "`messages[0].tool_calls[0]` must be a call such as",
            ),
        ] {
            let error = parse(&record, true).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
