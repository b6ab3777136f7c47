//! Turns and conversations, as a chat template is given them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation: what a template is given as one of `messages`,
/// with all its keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(pub(crate) Map<String, Value>);

impl Message {
    /// A turn that says something. Roles are `system`, `user`, `assistant`, or
    /// what else the template knows.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let (role, content): (String, String) = (role.into(), content.into());
        Self(
            [("role", role), ("content", content)]
                .map(|(key, value)| (key.to_owned(), value.into()))
                .into_iter()
                .collect(),
        )
    }

    /// Adds what else the template is to know of it, such as `tool_calls`.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.0.insert(key.into(), value.into());
        self
    }

    /// Who speaks.
    pub fn role(&self) -> &str {
        self.text("role")
    }

    /// What is said; empty where nothing is.
    pub fn content(&self) -> &str {
        self.text("content")
    }

    /// What the template is given under a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    pub(crate) fn is_assistant(&self) -> bool {
        self.role() == "assistant"
    }

    /// Whether anything is said or called.
    pub(crate) fn says_nothing(&self) -> bool {
        self.content().trim().is_empty()
            && self
                .get("tool_calls")
                .and_then(Value::as_array)
                .is_none_or(Vec::is_empty)
    }

    pub(crate) fn set_content(&mut self, content: String) {
        self.0.insert("content".to_owned(), content.into());
    }

    fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Value::as_str).unwrap_or_default()
    }
}

/// What a chat template renders.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The turns.
    pub messages: Vec<Message>,
    /// How much the loss of each turn counts, as long as `messages`; all that
    /// are missing count 1. Only those of the assistant are trained.
    pub weights: Vec<f32>,
    /// The functions that the assistant may call, as a list of JSON schemas.
    pub tools: Option<Value>,
    /// Variables of the template, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}

impl Conversation {
    /// How much the loss of a turn counts.
    pub(crate) fn weight(&self, turn: usize) -> f32 {
        self.weights.get(turn).copied().unwrap_or(1.0)
    }

    /// The turns that the loss is taken on.
    pub(crate) fn trained_turns(&self) -> impl DoubleEndedIterator<Item = usize> {
        (0..self.messages.len()).filter(|&turn| {
            let message = &self.messages[turn];
            message.is_assistant() && !message.says_nothing() && self.weight(turn) > 0.0
        })
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self {
            messages,
            ..Self::default()
        }
    }
}

/// Turns of roles and words, for tests.
#[cfg(test)]
pub(crate) fn chat(turns: &[(&str, &str)]) -> Conversation {
    let turns = turns.iter();
    turns
        .map(|(role, content)| Message::new(*role, *content))
        .collect::<Vec<_>>()
        .into()
}
