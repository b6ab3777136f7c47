//! What stands beside turns or a question: a system prompt, earlier turns, tools,
//! options, a weight.

use serde_json::Value;

use super::{
    KeyUse,
    fields::Fields,
    parse::wrong_type,
    spoken,
    turns::{self, Turns, weight_of},
};
use crate::{Conversation, DataError, DataOptions, FirstTurn, Message, SystemTurn};

/// What a system prompt may be under.
const SYSTEMS: [&str; 3] = ["system", "system_prompt", "system_message"];
const TOOLS: [&str; 2] = ["tools", "functions"];
/// How much a whole record counts.
const WEIGHTS: [&str; 4] = ["weight", "train", "training", "loss"];

/// Adds what stands beside the turns: a system prompt, earlier turns, tools, the
/// template's variables and the record's weight. What became of the keys of
/// earlier turns is added to `keys`.
pub(super) fn complete(
    fields: &Fields,
    conversation: &mut Conversation,
    keys: &mut Vec<(String, KeyUse)>,
    options: &DataOptions,
) -> Result<(), DataError> {
    if let Some(value) = fields.take("history") {
        let earlier = history(value, options)?;
        let weights = earlier.asked_weights();
        keys.extend(earlier.keys);
        // They are the context of what is to be learnt, and no answer to learn unless they say so.
        conversation.weights.splice(0..0, weights);
        conversation.messages.splice(0..0, earlier.messages);
    }
    if let Some(key) = fields.pick(&SYSTEMS)
        && let Some(value) = fields.take(key)
    {
        // Some interfaces have it in parts.
        let parts = match value {
            Value::Array(_) => turns::content(key, value, "system")?,
            other => other.clone(),
        };
        let text = parts
            .as_str()
            .ok_or_else(|| wrong_type(key, "a string", value))?;
        // Functions may be written out in it.
        let (text, functions) = if fields.record().get("chat").is_some_and(spoken::is_spoken) {
            spoken::system(text)
        } else {
            (text.to_owned(), None)
        };
        conversation.tools = functions;
        match conversation.messages.iter().find(|m| m.role() == "system") {
            Some(there) if there.content().trim() == text.trim() => {}
            _ if text.trim().is_empty() => {}
            Some(_) => return Err(DataError::TwoSystems(key)),
            None => {
                conversation
                    .messages
                    .insert(0, Message::new("system", text.as_str()));
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
                let words = messages.remove(i).content().to_owned();
                if !words.trim().is_empty() {
                    waiting.push(words);
                }
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
    if options.first_turn == FirstTurn::Drop {
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
        return Turns::read("history", &items, options);
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
pub(super) fn choices(key: &str, value: &Value) -> Result<String, DataError> {
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
            return match olora_records::parse(text) {
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
