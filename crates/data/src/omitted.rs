//! What a template leaves out of a conversation.
//!
//! A template may skip a role that it does not know, or cut thoughts off. The
//! loss looks as usual then, and what was to be learnt is not in the tokens. So
//! every text of a record is looked for in its rendering.

use serde_json::Value;

use crate::{Conversation, Message, chat::Turns, contexts::Marked};

/// A part of a record that is not in its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Omission {
    /// Such as `the system turn`.
    pub what: String,
    /// How it begins.
    pub text: String,
}

/// Everything that the template leaves out of a conversation that became
/// `samples`.
pub(crate) fn omitted(
    conversation: &Conversation,
    turns: &Turns<'_>,
    samples: &[Marked],
) -> Vec<Omission> {
    let mut found = Vec::new();
    // The renderings, each with the turn that it ends with.
    let mut ends: Vec<_> = samples
        .iter()
        .flat_map(|marked| {
            let text = marked.text.as_str();
            marked
                .turns
                .iter()
                .map(move |&(turn, end)| (turn, &text[..end]))
        })
        .collect();
    ends.sort_by_key(|(turn, _)| *turn);
    let contents: Vec<_> = conversation.messages.iter().map(Message::content).collect();
    for (turn, message) in conversation.messages.iter().enumerate() {
        // The first rendering that it has a place in.
        let Some(&(last, text)) = ends.iter().find(|(last, _)| *last >= turn) else {
            break;
        };
        let place = Place {
            turns,
            n: last + 1,
            turn,
            text,
            contents: &contents[..=last],
        };
        // A thought of an earlier turn is what inference leaves out as well.
        let is_past = message.is_assistant() && last != turn;
        place.look(message, is_past, &mut found);
    }
    if let (Some(Value::Array(tools)), Some(&(last, text))) = (&conversation.tools, ends.first()) {
        let n = last + 1;
        let missing = tools.iter().find_map(|tool| {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name")?.as_str()?;
            (!text.contains(name)).then_some(name)
        });
        // Their names may be words of the question as well.
        let without = turns.render_without_tools(conversation.messages.len().min(n));
        let changes_nothing = without.is_ok_and(|without| without.text.trim_end() == text);
        let first = tools
            .first()
            .and_then(|tool| tool.get("function").unwrap_or(tool)["name"].as_str());
        let missing = missing.or(first.filter(|_| changes_nothing));
        if let Some(name) = missing {
            found.push(Omission {
                what: "a function of `tools`".to_owned(),
                text: name.to_owned(),
            });
        }
    }
    found
}

/// Bytes of a text that may well be part of something else.
const FEW: usize = 6;

/// Where a turn is to be found.
struct Place<'a> {
    turns: &'a Turns<'a>,
    /// How many turns are rendered.
    n: usize,
    turn: usize,
    text: &'a str,
    /// What each of those turns says.
    contents: &'a [&'a str],
}

impl Place<'_> {
    fn look(&self, message: &Message, is_past: bool, found: &mut Vec<Omission>) {
        let role = message.role();
        let content = message.content();
        let mut push = |what: String, text: &str| {
            found.push(Omission {
                what,
                text: text.trim().chars().take(60).collect(),
            });
        };
        let whole = content.trim();
        if !whole.is_empty() && !self.text.contains(whole) {
            for (part, is_thought) in parts(content) {
                if is_thought && is_past || !self.lacks(message, part) {
                    continue;
                }
                if is_thought {
                    push("a thought in the assistant's turn".to_owned(), part);
                } else {
                    push(format!("the {role} turn"), part);
                }
            }
        } else if !whole.is_empty() && (whole.len() < FEW || self.is_elsewhere(whole)) {
            // What is found may be another turn that says it as well.
            let mut other = message.clone();
            other.set_content(String::new());
            if self.changes_nothing(&other) {
                push(format!("the {role} turn"), whole);
            }
        }
        for key in ["reasoning_content", "thinking", "reasoning"] {
            if let Some(thought) = message.get(key).and_then(Value::as_str)
                && !is_past
                && !self.holds(thought)
                && self.changes_nothing(&without(message, key))
            {
                push(format!("the assistant's `{key}`"), thought);
            }
        }
        if let Some(name) = message.get("name").and_then(Value::as_str)
            && role != "tool"
            && !self.text.contains(name)
        {
            push("the `name` of a turn".to_owned(), name);
        }
        let calls = message.get("tool_calls").and_then(Value::as_array);
        let Some(calls) = calls.filter(|calls| !calls.is_empty()) else {
            return;
        };
        let mut texts = Vec::new();
        for call in calls {
            let function = call.get("function").unwrap_or(call);
            leaves(&function["name"], &mut texts);
            let arguments = function.get("arguments").unwrap_or(&Value::Null);
            leaves(arguments, &mut texts);
        }
        // Their words may be in the tools and in the question as well.
        let mut other = without(message, "tool_calls");
        other.set_content(content.to_owned());
        let missing = texts.iter().find(|text| !self.holds(text));
        let missing = missing.or_else(|| texts.first().filter(|_| self.changes_nothing(&other)));
        if let Some(text) = missing {
            push("a call in the assistant's `tool_calls`".to_owned(), text);
        }
    }

    /// Whether the turns say a text more often than the rendering has it.
    fn is_elsewhere(&self, text: &str) -> bool {
        let said: usize = self
            .contents
            .iter()
            .map(|said| said.matches(text).count())
            .sum();
        said > 1 && self.text.matches(text).count() < said
    }

    /// Whether a part of a turn's content is in the rendering neither as it is
    /// nor otherwise: it could as well not be there.
    fn lacks(&self, message: &Message, part: &str) -> bool {
        let part = part.trim();
        if part.is_empty() || self.holds(part) {
            return false;
        }
        let mut other = message.clone();
        other.set_content(message.content().replace(part, ""));
        // What cannot be compared with is not there: nothing of it was found.
        self.same(&other).unwrap_or(true)
    }

    /// Whether a text is in the rendering as it is, or as JSON has it.
    fn holds(&self, text: &str) -> bool {
        let text = text.trim();
        if self.text.contains(text) {
            return true;
        }
        let json = Value::from(text).to_string();
        self.text.contains(json.trim_matches('"'))
    }

    /// Whether the rendering is the same with another turn in the place of this
    /// one. That a template refuses the other says that it looked at this one.
    fn changes_nothing(&self, other: &Message) -> bool {
        self.same(other).unwrap_or(false)
    }

    fn same(&self, other: &Message) -> Option<bool> {
        let rendered = self.turns.render_with(self.n, self.turn, other);
        Some(rendered.ok()?.text.trim_end() == self.text)
    }
}

fn without(message: &Message, key: &str) -> Message {
    let mut other = message.clone();
    other.0.shift_remove(key);
    other
}

/// Content cut at the tags of thoughts: each part, and whether it is a thought.
fn parts(content: &str) -> Vec<(&str, bool)> {
    let mut parts = Vec::new();
    let mut rest = content;
    while let Some((thought, after)) = rest.split_once("</think>") {
        match thought.rsplit_once("<think>") {
            Some((before, thought)) => parts.extend([(before, false), (thought, true)]),
            None => parts.push((thought, true)),
        }
        rest = after;
    }
    parts.push((rest, false));
    parts.retain(|(part, _)| !part.trim().is_empty());
    parts
}

/// The texts in a value.
fn leaves<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) if !text.trim().is_empty() => texts.push(text),
        Value::Array(items) => items.iter().for_each(|item| leaves(item, texts)),
        Value::Object(fields) => fields.values().for_each(|value| leaves(value, texts)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::{ChatTemplate, contexts::Contexts, message::chat};

    fn found(source: &str, conversation: &Conversation) -> Vec<String> {
        let template = ChatTemplate::new(source, &BTreeMap::new()).unwrap();
        let turns = template.turns(conversation);
        let contexts = Contexts::of(&template, conversation, &turns).unwrap();
        let found = omitted(conversation, &turns, &contexts.samples).into_iter();
        found
            .map(|part| format!("{}: {}", part.what, part.text))
            .collect()
    }

    /// Knows two roles, and cuts thoughts off.
    const DEAF: &str = "{% for m in messages %}{% if m.role == 'user' %}[Q]{{ m.content }}\
        {% elif m.role == 'assistant' %}[A]{{ m.content.split('</think>')[-1] }}</s>{% endif %}{% endfor %}\
        {% if add_generation_prompt %}[A]{% endif %}";

    #[test]
    fn turns_of_a_role_that_the_template_skips_are_found() {
        let turns = [
            ("system", "Rhyme."),
            ("user", "Where is Alder?"),
            ("assistant", "find"),
            ("tool", "Oxmere"),
            ("assistant", "In Oxmere."),
        ];
        // The tool's word is in the answer too.
        assert_eq!(
            found(DEAF, &chat(&turns)),
            ["the system turn: Rhyme.", "the tool turn: Oxmere"]
        );
    }

    #[test]
    fn thoughts_that_the_template_cuts_off_are_found_in_the_turn_that_has_them() {
        let turns = [
            ("user", "a"),
            ("assistant", "<think>b</think>B"),
            ("user", "c"),
            ("assistant", "D"),
        ];
        assert_eq!(
            found(DEAF, &chat(&turns)),
            ["a thought in the assistant's turn: b"]
        );
        let forgets = "{% for m in messages %}{{ m.content if loop.last else m.content.split('</think>')[-1] }}|\
            {% endfor %}";
        // An earlier thought is what inference leaves out as well.
        assert_eq!(found(forgets, &chat(&turns)), [""; 0]);
    }

    #[test]
    fn tools_calls_and_thoughts_under_keys_are_found() {
        let mut conversation = chat(&[("user", "a"), ("assistant", "b")]);
        conversation.tools = Some(json!([{"type": "function", "function": {"name": "find"}}]));
        let calls = json!([{"type": "function", "function": {"name": "find", "arguments": {"who": "Alder"}}}]);
        conversation.messages[1] = Message::new("assistant", "b")
            .with("reasoning_content", "He moved.")
            .with("tool_calls", calls);
        assert_eq!(
            found(DEAF, &conversation),
            [
                "the assistant's `reasoning_content`: He moved.",
                "a call in the assistant's `tool_calls`: find",
                "a function of `tools`: find"
            ]
        );
    }

    #[test]
    fn what_is_written_otherwise_is_not_left_out() {
        let loud = "{% for m in messages %}{{ m.content | trim | upper }}|{% endfor %}";
        let turns = [
            ("system", " quietly "),
            ("user", "a\"b"),
            ("assistant", "c"),
        ];
        assert_eq!(found(loud, &chat(&turns)), [""; 0]);
        let json = "{% for m in messages %}{{ m.content | tojson }}|{% endfor %}";
        assert_eq!(found(json, &chat(&turns)), [""; 0]);
    }
}
