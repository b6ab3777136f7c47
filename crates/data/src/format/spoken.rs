//! Dialogues that are one text, as glaive's sets of calls have them:
//! `USER: …`, `ASSISTANT: … <|endoftext|>`, `FUNCTION RESPONSE: …`.

use serde_json::{Value, json};

use super::turns::{self, Turns};
use crate::Message;

/// What begins a turn, and whose it is.
const SPEAKERS: [(&str, &str); 3] = [
    ("USER:", "user"),
    ("ASSISTANT:", "assistant"),
    ("FUNCTION RESPONSE:", "tool"),
];
/// What ends a turn of the assistant.
const END: &str = "<|endoftext|>";
/// What begins a call.
const CALL: &str = "<functioncall>";
/// What announces the functions that are written behind it.
const ANNOUNCED: &str = " with access to the following functions. Use them if required -";

/// Whether a value is such a dialogue.
pub(super) fn is_spoken(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default().trim_start();
    SPEAKERS.iter().any(|(word, _)| text.starts_with(word))
}

/// The turns of a dialogue.
///
/// # Errors
///
/// Why it cannot be cut into turns without guessing.
pub(super) fn turns(text: &str) -> Result<Turns, String> {
    let mut said: Vec<(&str, Vec<&str>)> = Vec::new();
    // A turn begins after an empty line.
    let mut is_open = true;
    for line in text.trim().lines() {
        let speaker = SPEAKERS
            .iter()
            .find_map(|(word, role)| Some((*role, line.strip_prefix(word).filter(|_| is_open)?)));
        match (speaker, said.last_mut()) {
            (Some((role, first)), _) => said.push((role, vec![first])),
            (None, Some((_, lines))) => lines.push(line),
            (None, None) => {}
        }
        is_open = line.trim().is_empty();
    }
    let mut turns = Turns::default();
    for (i, (role, lines)) in said.iter().enumerate() {
        let words = lines.join("\n");
        let words = words.trim();
        let words = words.strip_suffix(END).unwrap_or(words).trim_end();
        if words.contains(END) {
            return Err(format!(
                "turn {} of its `chat` goes on after `{END}`",
                i + 1
            ));
        }
        match words.split_once(CALL).filter(|_| *role == "assistant") {
            None => turns.say(role, words),
            Some((before, written)) => {
                let calls = call(written.trim()).ok_or_else(|| {
                    format!(
                        "turn {} of its `chat` has a `{CALL}` that is no JSON",
                        i + 1
                    )
                })?;
                turns.say(role, before.trim());
                let message = turns.messages.pop();
                let message = message.unwrap_or_else(|| Message::new(*role, ""));
                turns.messages.push(message.with("tool_calls", calls));
            }
        }
    }
    Ok(turns)
}

/// `{"name": "find", "arguments": '{"who": "Zora"}'}`: JSON but for the quotes
/// around the arguments.
fn call(written: &str) -> Option<Value> {
    if let Ok(call @ Value::Object(_)) = serde_json::from_str(written) {
        return turns::calls(&json!([call]));
    }
    let (head, arguments) = written.split_once("\"arguments\":")?;
    let head = head.trim_end().trim_end_matches(',');
    let mut call: Value = serde_json::from_str(&format!("{head}}}")).ok()?;
    let arguments = arguments.trim().strip_suffix('}')?.trim_end();
    let arguments = arguments.strip_prefix('\'')?.strip_suffix('\'')?;
    let read = |text: &str| serde_json::from_str::<Value>(text).ok();
    let arguments = read(arguments).or_else(|| read(&arguments.replace("\\'", "'")))?;
    if !arguments.is_object() {
        return None;
    }
    call.as_object_mut()?
        .insert("arguments".to_owned(), arguments);
    turns::calls(&json!([call]))
}

/// The words of a system prompt, and the functions that are written out behind
/// them, if all that is there are functions.
pub(super) fn system(text: &str) -> (String, Option<Value>) {
    let text = text.trim();
    let text = text.strip_prefix("SYSTEM:").unwrap_or(text).trim();
    let whole = (text.to_owned(), None);
    let Some(at) = text.find("\n{") else {
        return whole;
    };
    let (words, written) = text.split_at(at);
    let read = serde_json::Deserializer::from_str(written).into_iter::<Value>();
    let Ok(functions) = read.collect::<Result<Vec<_>, _>>() else {
        return whole;
    };
    let are_named = functions
        .iter()
        .all(|function| function["name"].is_string());
    match turns::tools("system", &Value::Array(functions)) {
        Ok(tools) if are_named => {
            let words = words.trim();
            let words = match words.strip_suffix(ANNOUNCED) {
                Some(words) => format!("{words}."),
                None => words.to_owned(),
            };
            (words, tools)
        }
        _ => whole,
    }
}
