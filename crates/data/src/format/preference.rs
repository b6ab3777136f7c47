//! Answers that were judged: a chosen and a rejected one, or one with a label.
//!
//! Each becomes a record with one answer, so that layouts, templates and the
//! account of keys are those of any other data.

use serde_json::{Value, json};

use super::{
    Format, KeyUse, LISTS, PROMPTS, Record,
    fields::is_blank,
    parse::{markup, wrong_type},
    quoted, turns,
};
use crate::{DataError, DataOptions};

/// What a record holds of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// One, which is learnt.
    #[default]
    One,
    /// A chosen and a rejected one.
    Pair,
    /// One with a `label` that says whether it is good. A chosen and a rejected
    /// one are taken for two of these.
    Labelled,
}

impl Answers {
    /// The layout of records that begin with these.
    pub(crate) fn detect(self, record: &Record) -> Result<Format, DataError> {
        let has = |key: &str| record.contains_key(key);
        let is_pair = has("chosen") && has("rejected");
        match self {
            Self::One => Format::detect(record),
            Self::Labelled if has("label") && !is_pair => Ok(Format::Labelled),
            _ if is_pair => Ok(Format::Preference),
            _ => Err(DataError::NotJudged {
                answers: self,
                found: record.keys().cloned().collect(),
            }),
        }
    }

    /// Whether records of a layout hold this.
    pub(crate) fn fits(self, format: Format) -> bool {
        match format {
            Format::Preference => self != Self::One,
            Format::Labelled => self == Self::Labelled,
            _ => self == Self::One,
        }
    }

    /// What a record must have, for errors.
    pub(crate) fn needed(self) -> &'static str {
        match self {
            Self::One => "an answer",
            Self::Pair => {
                "`chosen` and `rejected`, beside their `prompt` or with what both begin with as the prompt"
            }
            Self::Labelled => {
                "`prompt`, `completion` and `label` (true or false), or `chosen` and `rejected`"
            }
        }
    }
}

/// A record of two answers, as two records of one.
pub(crate) struct Pair {
    /// The chosen one and the rejected one.
    pub halves: [Record; 2],
    /// Keys that are in neither, and what became of them.
    pub keys: Vec<(String, KeyUse)>,
    /// How [`halves`](Self::halves) are laid out.
    pub format: Format,
    /// Why there is nothing to learn, if so.
    pub nothing: Option<String>,
}

/// The names of the two answers.
pub(crate) const BOTH: [&str; 2] = ["chosen", "rejected"];

/// Takes a record of two answers apart. `chat` is whether there is a template.
pub(crate) fn pair(record: &Record, chat: bool) -> Result<Pair, DataError> {
    let mut keys = Vec::new();
    let mut said = Vec::new();
    let mut rest = record.clone();
    for key in BOTH {
        let value = match rest.shift_remove(key) {
            Some(value) if !is_blank(&value) => value,
            absent => {
                let nothing = match absent {
                    Some(_) => format!("its `{key}` is empty"),
                    None => format!("it has no `{key}`"),
                };
                return Ok(Pair {
                    halves: [Record::new(), Record::new()],
                    keys,
                    format: Format::PromptCompletion,
                    nothing: Some(nothing),
                });
            }
        };
        keys.push((key.to_owned(), KeyUse::Used));
        said.push(Said::of(key, value)?);
    }
    let [chosen, rejected] = <[Said; 2]>::try_from(said).unwrap_or_default();
    let format = if rest.contains_key("instruction") {
        Format::Alpaca
    } else {
        Format::PromptCompletion
    };
    let prompt_key = PROMPTS
        .iter()
        .find(|key| rest.get(**key).is_some_and(|value| !is_blank(value)));
    let mut parts = Parts {
        rest,
        keys,
        prompt_key: prompt_key.copied(),
        nothing: None,
    };
    let answers = match (chosen, rejected) {
        (Said::Text(chosen), Said::Text(rejected)) => parts.of_texts(chosen, rejected, chat)?,
        (chosen, rejected) => parts.of_turns(chosen.turns(), rejected.turns()),
    };
    let halves = answers.map(|answer| {
        let mut half = parts.rest.clone();
        half.insert("completion".to_owned(), answer);
        half
    });
    Ok(Pair {
        halves,
        keys: parts.keys,
        format,
        nothing: parts.nothing,
    })
}

/// One of the two answers.
enum Said {
    Text(String),
    Turns(Vec<Value>),
}

impl Default for Said {
    fn default() -> Self {
        Self::Turns(Vec::new())
    }
}

impl Said {
    fn of(key: &str, value: Value) -> Result<Self, DataError> {
        const EXPECTED: &str = "a string or a list of turns";
        match value {
            Value::String(text) if text.trim_start().starts_with("[{") => {
                let value = Value::String(text);
                match (turns::list(&value), value) {
                    (Some(items), _) => Ok(Self::Turns(items)),
                    (None, Value::String(text)) => Ok(Self::Text(text)),
                    (None, other) => Err(wrong_type(key, EXPECTED, &other)),
                }
            }
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(items) if items.iter().all(Value::is_object) => Ok(Self::Turns(items)),
            // One turn, as LLaMA-Factory's sets have it.
            Value::Object(turn) if ["role", "from"].iter().any(|key| turn.contains_key(*key)) => {
                Ok(Self::Turns(vec![Value::Object(turn)]))
            }
            other => Err(wrong_type(key, EXPECTED, &other)),
        }
    }

    fn turns(self) -> Vec<Value> {
        match self {
            Self::Text(text) => vec![json!({"role": "assistant", "content": text})],
            Self::Turns(turns) => turns,
        }
    }
}

/// What is beside the two answers.
struct Parts {
    rest: Record,
    keys: Vec<(String, KeyUse)>,
    prompt_key: Option<&'static str>,
    nothing: Option<String>,
}

impl Parts {
    /// The answers, with the prompt put where a record has it.
    fn of_texts(
        &mut self,
        chosen: String,
        rejected: String,
        chat: bool,
    ) -> Result<[Value; 2], DataError> {
        if chosen == rejected {
            self.nothing = Some(SAME.to_owned());
        }
        if self.prompt_key.is_some() {
            return Ok([chosen.into(), rejected.into()]);
        }
        if let Some(prompt) = self.earlier_turns(&[]) {
            let turn = |text: String| json!([{"role": "assistant", "content": text}]);
            self.rest.insert("prompt".to_owned(), Value::Array(prompt));
            return Ok([turn(chosen), turn(rejected)]);
        }
        if self.nothing.is_some() {
            return Ok([chosen.into(), rejected.into()]);
        }
        if chat && let (Some(chosen), Some(rejected)) = (spoken(&chosen), spoken(&rejected)) {
            return Ok(self.of_turns(chosen, rejected));
        }
        let mut n = common(&chosen, &rejected);
        // The answer begins with its space, as the words of a prompt end before one.
        if chosen[..n].ends_with(' ') {
            n -= 1;
        }
        let prompt = &chosen[..n];
        if prompt.trim().is_empty() || (chat && markup(prompt).is_none()) {
            return Err(DataError::NoPrompt {
                found: quoted(self.rest.keys()),
                in_words: !prompt.trim().is_empty(),
            });
        }
        self.rest.insert("prompt".to_owned(), prompt.into());
        Ok([chosen[n..].into(), rejected[n..].into()])
    }

    /// The same of turns: those that both begin with are the prompt's, after the
    /// prompt if it is given and not among them.
    fn of_turns(&mut self, mut chosen: Vec<Value>, mut rejected: Vec<Value>) -> [Value; 2] {
        let both = chosen.iter().zip(&rejected);
        let n = both
            .take_while(|(chosen, rejected)| chosen == rejected)
            .count();
        if n == chosen.len() && n == rejected.len() {
            self.nothing = Some(SAME.to_owned());
        } else if n == chosen.len() || n == rejected.len() {
            let which = if n == chosen.len() {
                "chosen"
            } else {
                "rejected"
            };
            self.nothing = Some(format!(
                "all turns of its `{which}` are in the other one too"
            ));
        }
        let answers = [chosen.split_off(n), rejected.split_off(n)];
        let mut shared = chosen;
        if let Some(key) = self.prompt_key {
            match self.rest.shift_remove(key) {
                Some(Value::Array(items)) if items.iter().all(Value::is_object) => {
                    self.keys.push((key.to_owned(), KeyUse::Used));
                    if !shared.starts_with(&items) {
                        shared.splice(0..0, items);
                    }
                }
                // The words of a turn that both begin with.
                Some(Value::String(text))
                    if shared.iter().any(|turn| words(turn).trim() == text.trim()) =>
                {
                    self.keys.push((key.to_owned(), KeyUse::Repeated));
                }
                Some(Value::String(text)) => {
                    self.keys.push((key.to_owned(), KeyUse::Used));
                    shared.insert(0, json!({"role": "user", "content": text}));
                }
                // Refused by whoever reads the half.
                Some(other) => {
                    self.rest.insert(key.to_owned(), other);
                    return answers.map(Value::Array);
                }
                None => {}
            }
        } else if let Some(earlier) = self.earlier_turns(&shared) {
            shared.splice(0..0, earlier);
        }
        self.rest.insert("prompt".to_owned(), Value::Array(shared));
        answers.map(Value::Array)
    }

    /// Turns under a key of their own, if they go before the answers rather than
    /// being said in them.
    fn earlier_turns(&mut self, shared: &[Value]) -> Option<Vec<Value>> {
        let key = LISTS.iter().find(|key| self.rest.contains_key(**key))?;
        let items = turns::list(self.rest.get(*key)?)?;
        let first = items.first()?;
        if !items.iter().all(Value::is_object) || shared.first() == Some(first) {
            return None;
        }
        self.rest.shift_remove(*key);
        self.keys.push(((*key).to_owned(), KeyUse::Used));
        Some(items)
    }
}

const SAME: &str = "its `chosen` and `rejected` are the same";

/// What a turn says.
fn words(turn: &Value) -> &str {
    let said = ["content", "value", "text"];
    let mut said = said.iter().filter_map(|key| turn.get(*key)?.as_str());
    said.next().unwrap_or_default()
}

/// Bytes that two texts begin with alike, in whole characters.
fn common(a: &str, b: &str) -> usize {
    let mut both = a.char_indices().zip(b.chars());
    both.find(|((_, a), b)| a != b)
        .map_or(a.len().min(b.len()), |((at, _), _)| at)
}

/// The turns of a dialogue in one text, as Anthropic's sets have it:
/// `Human: …`, `Assistant: …`, with an empty line before each.
fn spoken(text: &str) -> Option<Vec<Value>> {
    const SPEAKERS: [(&str, &str); 2] = [("Human:", "user"), ("Assistant:", "assistant")];
    let text = text.trim();
    if !text.starts_with("Human:") {
        return None;
    }
    let mut turns: Vec<(&str, String)> = Vec::new();
    for part in text.split("\n\n") {
        let speaker = SPEAKERS
            .iter()
            .find_map(|(word, role)| Some((*role, part.strip_prefix(word)?)));
        match (speaker, turns.last_mut()) {
            (Some((role, said)), _) => turns.push((role, said.trim().to_owned())),
            (None, Some((_, said))) => {
                said.push_str("\n\n");
                said.push_str(part);
            }
            (None, None) => return None,
        }
    }
    let turns = turns.into_iter();
    Some(
        turns
            .map(|(role, said)| json!({"role": role, "content": said}))
            .collect(),
    )
}

/// A record with a label, without it, and whether its answer is a good one.
pub(crate) fn labelled(record: &Record) -> Result<(Record, bool), DataError> {
    let mut rest = record.clone();
    match rest.shift_remove("label") {
        Some(Value::Bool(good)) => Ok((rest, good)),
        Some(other) => Err(wrong_type("label", "true or false", &other)),
        None => Err(DataError::MissingKey {
            key: "label".to_owned(),
            format: Format::Labelled,
            found: record.keys().cloned().collect(),
        }),
    }
}

/// How halves are read: their answer is under `completion`, whatever else is there.
pub(crate) fn options_of_halves(options: &DataOptions) -> DataOptions {
    let mut options = options.clone();
    options.columns.clear();
    let name = "completion".to_owned();
    options.columns.insert(name.clone(), name);
    options
}
