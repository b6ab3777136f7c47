//! Conversations, rendered by a checkpoint's own chat template.

mod bounds;
mod json;
mod operations;
mod source;
mod values;

use std::{borrow::Cow, collections::BTreeMap, ops::Range, thread};

use minijinja::{Environment, Error, ErrorKind, Value};

use crate::{Conversation, DataError, clock, message::Message, panics::caught};
use source::Source;
use values::Measure;

/// A Jinja template with what Hugging Face's `apply_chat_template` gives it.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether the template marks the assistant's words itself.
    has_generation_tags: bool,
    /// The file that it is from.
    origin: Option<String>,
}

/// What thoughts are under. As in transformers, a template is given them under the
/// first two.
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
        operations::as_in_jinja2(&mut environment);
        environment.add_filter("tojson", json::tojson);
        environment.add_filter(GENERATION, |words: String| {
            bounds::make(words.len() as u64)?;
            Ok::<_, Error>(format!("{BEGIN}{words}{END}"))
        });
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", |format: &str| {
            bounds::make(64 * format.len() as u64)?;
            clock::strftime_now(format).map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
        });
        for (name, token) in specials {
            environment.add_global(name.clone(), token.clone());
        }
        let source = source.to_owned();
        on_own_stack(move || {
            let Source { plain, marked } =
                source::rewritten(&source, GENERATION).map_err(DataError::ChatTemplate)?;
            let has_generation_tags = marked.is_some();
            if let Some(marked) = marked {
                environment
                    .add_template_owned(MARKED, marked)
                    .map_err(|error| failed(&error))?;
            }
            environment
                .add_template_owned(NAME, plain)
                .map_err(|error| failed(&error))?;
            Ok(Self {
                environment,
                has_generation_tags,
                origin: None,
            })
        })
    }

    /// Names the file that the template is from, for errors of what it does beyond
    /// all bounds.
    #[must_use]
    pub fn of_file(mut self, file: impl Into<String>) -> Self {
        self.origin = Some(file.into());
        self
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
        Ok(turns.render(n, add_generation_prompt)?.text)
    }

    /// A conversation as the template can render it, and what was done for that.
    ///
    /// Some templates want the arguments of a call as text, or a content where
    /// there is none. If the template fails on a conversation, it is tried with
    /// these; if it fails on all, the conversation stays as it is.
    pub(crate) fn adapted<'a>(
        &self,
        conversation: &'a Conversation,
    ) -> (Cow<'a, Conversation>, Vec<Adaptation>) {
        let as_it_is = (Cow::Borrowed(conversation), Vec::new());
        let wanted: Vec<_> = [Adaptation::ArgumentsAsText, Adaptation::EmptyContent]
            .into_iter()
            .filter(|adaptation| conversation.messages.iter().any(|m| adaptation.is_for(m)))
            .collect();
        if wanted.is_empty() || self.render(conversation, false).is_ok() {
            return as_it_is;
        }
        let mut tries: Vec<_> = wanted.iter().map(|one| vec![*one]).collect();
        if wanted.len() > 1 {
            tries.push(wanted);
        }
        for adaptations in tries {
            let mut adapted = conversation.clone();
            for message in &mut adapted.messages {
                for adaptation in &adaptations {
                    adaptation.apply(message);
                }
            }
            if self.render(&adapted, false).is_ok() {
                return (Cow::Owned(adapted), adaptations);
            }
        }
        as_it_is
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

impl ChatTemplate {
    /// Within the bounds of a rendering, and without a panic.
    fn render_bounded(
        &self,
        name: &str,
        context: &BTreeMap<String, Value>,
        size: u64,
    ) -> Result<String, DataError> {
        bounds::begin(size);
        let render = || {
            let template = self.environment.get_template(name)?;
            template.render(context)
        };
        let rendered = caught(render).map_err(|said| panicked(&said))?;
        rendered.map_err(|error| {
            let reached = bounds::reached().map(bounds::Bound::words);
            let reached = reached.or_else(|| match error.kind() {
                ErrorKind::OutOfFuel => Some(format!("it takes more than {} steps", bounds::FUEL)),
                _ if error.to_string().contains("recursion limit exceeded") => {
                    Some("its macros or loops call each other too deep".to_owned())
                }
                _ => None,
            });
            match reached {
                Some(bound) => DataError::TemplateBound {
                    template: self.origin.clone(),
                    bound,
                },
                None => failed(&error),
            }
        })
    }
}

/// What a conversation needs for some templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adaptation {
    /// The arguments of its calls are JSON as text.
    ArgumentsAsText,
    /// A turn that says nothing has an empty content.
    EmptyContent,
}

impl Adaptation {
    /// For the report of what was read.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::ArgumentsAsText => "arguments of calls given as JSON text",
            Self::EmptyContent => "turns without content given an empty one",
        }
    }

    fn is_for(self, message: &Message) -> bool {
        match self {
            Self::ArgumentsAsText => arguments(&message.0).any(|all| !all.is_string()),
            Self::EmptyContent => message
                .get("content")
                .is_none_or(serde_json::Value::is_null),
        }
    }

    fn apply(self, message: &mut Message) {
        if !self.is_for(message) {
            return;
        }
        match self {
            Self::EmptyContent => message.set_content(String::new()),
            Self::ArgumentsAsText => {
                let calls = message.0.get_mut("tool_calls");
                let calls = calls.and_then(serde_json::Value::as_array_mut);
                for call in calls.into_iter().flatten() {
                    let all = call
                        .get_mut("function")
                        .and_then(|of| of.get_mut("arguments"));
                    if let Some(all) = all.filter(|all| !all.is_string()) {
                        *all = json::python_text(all).into();
                    }
                }
            }
        }
    }
}

/// The arguments of a turn's calls.
fn arguments(
    fields: &serde_json::Map<String, serde_json::Value>,
) -> impl Iterator<Item = &serde_json::Value> {
    let calls = fields
        .get("tool_calls")
        .and_then(serde_json::Value::as_array);
    let calls = calls.into_iter().flatten();
    calls.filter_map(|call| call.get("function")?.get("arguments"))
}

impl Turns<'_> {
    /// The first `n` turns.
    pub(crate) fn render(
        &self,
        n: usize,
        add_generation_prompt: bool,
    ) -> Result<Rendered, DataError> {
        self.render_messages(self.messages[..n].to_vec(), add_generation_prompt)
    }

    /// The first `n` turns, one of them replaced.
    pub(crate) fn render_with(
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
    pub(crate) fn render_without_tools(&self, n: usize) -> Result<Rendered, DataError> {
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
        let size = context.values().map(|value| Measure::of(value).size).sum();
        let render = |name: &str| self.template.render_bounded(name, &context, size);
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
/// and with a thought under both names that most templates look under.
fn turn(message: &Message) -> Value {
    let mut fields = message.0.clone();
    fields.retain(|_, value| !value.is_null());
    let thought = THOUGHT_KEYS
        .into_iter()
        .find_map(|key| fields.get(key))
        .cloned();
    if let Some(thought) = thought {
        let [first, second, _] = THOUGHT_KEYS;
        fields.entry(second).or_insert_with(|| thought.clone());
        fields.insert(first.to_owned(), thought);
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

fn failed(error: &Error) -> DataError {
    let error = error.to_string();
    // A template may say what it likes.
    let short: String = error.chars().take(2000).collect();
    DataError::ChatTemplate(short)
}

const GENERATION: &str = "olora_generation";

/// Stack for reading and compiling a template, whose depth is bounded.
const STACK: usize = 32 << 20;

/// Runs what calls itself as deep as a template is nested, on a stack that is
/// known to be enough, and makes an error of a panic.
fn on_own_stack<T: Send>(
    work: impl FnOnce() -> Result<T, DataError> + Send,
) -> Result<T, DataError> {
    let result = thread::scope(|scope| {
        let thread = thread::Builder::new().name("chat template".to_owned());
        let thread = thread
            .stack_size(STACK)
            .spawn_scoped(scope, || caught(work));
        thread.map(thread::ScopedJoinHandle::join)
    });
    match result {
        Ok(Ok(Ok(result))) => result,
        Ok(Ok(Err(said))) => Err(panicked(&said)),
        Ok(Err(_)) => Err(panicked("nothing")),
        Err(error) => Err(DataError::ChatTemplate(format!(
            "no thread to read it on: {error}"
        ))),
    }
}

fn panicked(said: &str) -> DataError {
    let said: String = said.chars().take(2000).collect();
    DataError::ChatTemplate(format!(
        "the template engine failed on it, which it should not: {said}"
    ))
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
