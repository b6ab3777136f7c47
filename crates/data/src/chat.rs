//! Conversations, rendered by a checkpoint's own chat template.

mod json;
mod values;

use std::{collections::BTreeMap, ops::Range};

use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat;

use crate::{Conversation, DataError, clock, message::Message};

/// A Jinja template with what Hugging Face's `apply_chat_template` gives it.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether the template marks the assistant's words itself.
    has_generation_tags: bool,
    /// Whether it goes through the turns from the last.
    turns_around: bool,
}

/// What thoughts are under: a template is given them under each of these.
const THOUGHT_KEYS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

const NAME: &str = "chat_template";
/// The same with what is within `{% generation %}` marked.
const MARKED: &str = "marked";

/// What begins and ends the assistant's words in a rendering. Neither is a
/// character that a text may hold: Unicode has no such characters.
const BEGIN: char = '\u{10fffe}';
const END: char = '\u{10ffff}';

/// The turns that a template is given, converted once for many renderings.
pub(crate) struct Turns<'a> {
    template: &'a ChatTemplate,
    messages: Vec<Value>,
    variables: BTreeMap<String, Value>,
}

/// A rendered conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub text: String,
    /// The parts of it within `{% generation %}` tags.
    pub generated: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Parses a template. `specials` are the special tokens by their names, such
    /// as `bos_token`.
    ///
    /// # Errors
    ///
    /// When the template is not valid Jinja.
    pub fn new(source: &str, specials: &BTreeMap<String, String>) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        values::as_in_jinja2(&mut environment);
        environment.add_filter("tojson", json::tojson);
        environment.add_filter(GENERATION, |words: String| format!("{BEGIN}{words}{END}"));
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", |format: &str| {
            clock::strftime_now(format).map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
        });
        for (name, token) in specials {
            environment.add_global(name.clone(), token.clone());
        }
        // Jinja2 reads all line ends as one.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let plain = with_generation(&source, "with", "endwith");
        let has_generation_tags = plain != source;
        if has_generation_tags {
            let begin = format!("with %}}{{% filter {GENERATION}");
            let marked = with_generation(&source, &begin, "endfilter %}{% endwith");
            environment
                .add_template_owned(MARKED, marked)
                .map_err(failed)?;
        }
        environment
            .add_template_owned(NAME, plain)
            .map_err(failed)?;
        Ok(Self {
            environment,
            has_generation_tags,
            turns_around: source.contains("::-1"),
        })
    }

    /// A conversation as text. With `add_generation_prompt` it ends where the
    /// assistant is to go on.
    ///
    /// # Errors
    ///
    /// When the template refuses the conversation.
    pub fn render(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<String, DataError> {
        let turns = self.turns(conversation);
        let n = conversation.messages.len();
        // Of nothing there is nothing to turn around, which minijinja fails on.
        if n == 0 && self.turns_around {
            return Err(DataError::ChatTemplate("there are no turns".to_owned()));
        }
        Ok(turns.render(n, add_generation_prompt)?.text)
    }

    /// Prepares a conversation for rendering.
    pub(crate) fn turns(&self, conversation: &Conversation) -> Turns<'_> {
        let mut variables: BTreeMap<_, _> = conversation
            .variables
            .iter()
            .map(|(name, value)| (name.clone(), values::value(value)))
            .collect();
        // Templates test `tools is not none`, so `tools` has to be there.
        let tools = conversation.tools.as_ref();
        let tools = tools.map_or_else(|| Value::from(()), values::value);
        variables.insert("tools".to_owned(), tools);
        variables.insert("documents".to_owned(), Value::from(()));
        let messages = conversation.messages.iter();
        Turns {
            template: self,
            messages: messages.map(turn).collect(),
            variables,
        }
    }
}

impl Turns<'_> {
    /// The first `n` turns.
    pub fn render(&self, n: usize, add_generation_prompt: bool) -> Result<Rendered, DataError> {
        self.render_messages(self.messages[..n].to_vec(), add_generation_prompt)
    }

    /// The first `n` turns, one of them replaced.
    pub fn render_with(
        &self,
        n: usize,
        turn: usize,
        message: &Message,
    ) -> Result<Rendered, DataError> {
        let mut messages = self.messages[..n].to_vec();
        messages[turn] = self::turn(message);
        self.render_messages(messages, false)
    }

    /// The first `n` turns, without tools.
    pub fn render_without_tools(&self, n: usize) -> Result<Rendered, DataError> {
        let mut variables = self.variables.clone();
        variables.insert("tools".to_owned(), Value::from(()));
        let without = Turns {
            template: self.template,
            messages: self.messages.clone(),
            variables,
        };
        without.render(n, false)
    }

    fn render_messages(
        &self,
        messages: Vec<Value>,
        add_generation_prompt: bool,
    ) -> Result<Rendered, DataError> {
        let mut context = self.variables.clone();
        context.insert("messages".to_owned(), values::list(messages));
        context.insert(
            "add_generation_prompt".to_owned(),
            Value::from(add_generation_prompt),
        );
        let environment = &self.template.environment;
        let render = |name: &str| {
            environment
                .get_template(name)
                .and_then(|template| template.render(&context))
                .map_err(failed)
        };
        let text = render(NAME)?;
        if self.template.has_generation_tags {
            let marked = unmarked(&render(MARKED)?);
            // A template may have measured its own words, marks and all.
            if marked.text == text {
                return Ok(marked);
            }
        }
        Ok(Rendered {
            text,
            generated: Vec::new(),
        })
    }
}

/// A turn as transformers gives it to a template: without keys that are null,
/// and with a thought under each name that templates look under.
fn turn(message: &Message) -> Value {
    let mut fields = message.0.clone();
    fields.retain(|_, value| !value.is_null());
    let thought = THOUGHT_KEYS
        .into_iter()
        .find_map(|key| fields.get(key))
        .cloned();
    if let Some(thought) = thought {
        for key in THOUGHT_KEYS {
            fields.entry(key).or_insert_with(|| thought.clone());
        }
    }
    values::value(&serde_json::Value::Object(fields))
}

/// Takes the marks of generated words out.
fn unmarked(marked: &str) -> Rendered {
    let mut rendered = Rendered::default();
    let mut begin = None;
    for c in marked.chars() {
        match c {
            BEGIN => begin = Some(rendered.text.len()),
            END => {
                if let Some(begin) = begin.take() {
                    rendered.generated.push(begin..rendered.text.len());
                }
            }
            c => rendered.text.push(c),
        }
    }
    rendered
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failed(error: Error) -> DataError {
    DataError::ChatTemplate(error.to_string())
}

const GENERATION: &str = "olora_generation";

/// Puts other tags in the place of `generation` and `endgeneration`, with which
/// some templates mark the assistant's words for transformers. What is set
/// between them does not leave them.
fn with_generation(source: &str, begin: &str, end_tag: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(end) = rest
        .find("{%")
        .and_then(|start| Some(start + rest[start..].find("%}")? + 2))
    {
        let start = rest.find("{%").unwrap_or_default();
        let tag = &rest[start..end];
        out.push_str(&rest[..start]);
        match tag.trim_matches(['{', '%', '}', '-', '+', ' ', '\n']) {
            "generation" => out.push_str(&tag.replace("generation", begin)),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", end_tag)),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let specials = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let specials = specials.map(|(name, token)| (name.to_owned(), token.to_owned()));
        ChatTemplate::new(source, &specials.into()).unwrap()
    }

    fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
        turns
            .iter()
            .map(|&(role, content)| Message::new(role, content))
            .collect()
    }

    #[test]
    fn jinja_is_as_in_transformers() {
        // Expected values from transformers 5 (`apply_chat_template`).
        for (source, expected) in [
            (
                "{{ bos_token }}{{ pad_token }}|{{ messages[0].content.strip().upper() }}",
                "<s>|A <B>",
            ),
            (
                "{% for m in messages %}\n  {% if loop.last %}\n{{ m['role'] }}\n  {% endif %}\n{% endfor %}\n",
                "assistant\n",
            ),
            (
                "{% if tools is not none %}no{% endif %}{% if documents %}no{% endif %}yes",
                "yes",
            ),
            (
                "{{ messages[:1] | tojson }}",
                r#"[{"role": "user", "content": " a <b>"}]"#,
            ),
            (
                "{{ {'k': [1]} | tojson(indent=2) }}",
                "{\n  \"k\": [\n    1\n  ]\n}",
            ),
            (
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.get('name', 'x') }}{% endfor %}",
                "x",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "2",
            ),
            (
                "a {%- generation -%} b {%- endgeneration %} {{ eos_token }}",
                "ab </s>",
            ),
        ] {
            let messages = messages(&[("user", " a <b>"), ("assistant", "c")]);
            assert_eq!(
                template(source).render(&messages.into(), false).unwrap(),
                expected,
                "{source}"
            );
        }
        let year = template("{{ strftime_now('%Y') }}")
            .render(&Conversation::default(), false)
            .unwrap();
        assert!(year.parse::<u32>().unwrap() >= 2025, "{year}");
    }

    #[test]
    fn a_template_that_refuses_or_does_not_parse_says_why() {
        let refuses = template("{{ raise_exception('roles must alternate') }}");
        let error = refuses
            .render(&Conversation::default(), false)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("chat template: invalid operation: roles must alternate"),
            "{error}"
        );
        let error = ChatTemplate::new("{% if %}", &BTreeMap::new())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("chat template: syntax error"), "{error}");
    }
}
