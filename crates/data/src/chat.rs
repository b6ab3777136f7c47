//! Conversations, rendered by a checkpoint's own chat template.

use std::{collections::BTreeMap, ops::Range};

use minijinja::{
    Environment, Error, ErrorKind, Value, context,
    value::{Kwargs, ValueKind},
};
use minijinja_contrib::pycompat;
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::{DataError, clock};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }

    pub(crate) fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }
}

/// A Jinja template with what Hugging Face's `apply_chat_template` gives it.
#[derive(Clone, Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// `specials`: the special tokens by their names, such as `bos_token`.
    pub fn new(source: &str, specials: &BTreeMap<String, String>) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
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
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(failed)?;
        Ok(Self { environment })
    }

    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, DataError> {
        // Templates test `tools is not none`, so `tools` has to be there.
        let none = Value::from(());
        let context =
            context! { messages, add_generation_prompt, tools => none, documents => none };
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(context))
            .map_err(failed)
    }

    /// Renders a conversation, with the byte range of each assistant turn: what
    /// follows the generation prompt, up to and with the token that closes the
    /// turn, without white space after that.
    pub fn render_marked(
        &self,
        messages: &[Message],
    ) -> Result<(String, Vec<Range<usize>>), DataError> {
        let text = self.render(messages, false)?;
        let mut spans = Vec::new();
        for (i, _) in messages
            .iter()
            .enumerate()
            .filter(|(_, message)| message.is_assistant())
        {
            let prompt = self.render(&messages[..i], true)?;
            let through = self.render(&messages[..=i], false)?;
            for (what, rendered) in [
                ("its end", &through),
                ("the generation prompt before it", &prompt),
            ] {
                if !text.starts_with(rendered.as_str()) {
                    return Err(DataError::NotAPrefix { turn: i + 1, what });
                }
            }
            spans.push(prompt.len()..through.trim_end().len().max(prompt.len()));
        }
        Ok((text, spans))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failed(error: Error) -> DataError {
    DataError::ChatTemplate(error.to_string())
}

/// Turns the tags `generation` and `endgeneration`, with which some templates
/// mark the assistant's words for transformers, into ones that every Jinja
/// knows. Where training begins and ends is told from renderings instead.
fn without_generation_tags(source: &str) -> String {
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
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out + rest
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`, as in
/// transformers. Jinja's own `tojson` would escape `<`, `>`, `&` and `'`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja passes `Kwargs` by value"
)]
fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = kwargs.get("indent")?;
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent.filter(|indent| indent.kind() == ValueKind::Number) {
        Some(indent) => {
            let indent = " ".repeat(usize::try_from(indent)?);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonFormatter)),
    };
    let bad = |reason: String| Error::new(ErrorKind::BadSerialization, reason);
    written.map_err(|error| bad(error.to_string()))?;
    String::from_utf8(out).map_err(|error| bad(error.to_string()))
}

/// `", "` and `": "` between things, as Python writes them.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
    ) -> std::io::Result<()> {
        out.write_all(b": ")
    }
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
                template(source).render(&messages, false).unwrap(),
                expected,
                "{source}"
            );
        }
        let year = template("{{ strftime_now('%Y') }}")
            .render(&[], false)
            .unwrap();
        assert!(year.parse::<u32>().unwrap() >= 2025, "{year}");
    }

    #[test]
    fn a_template_that_refuses_or_does_not_parse_says_why() {
        let refuses = template("{{ raise_exception('roles must alternate') }}");
        let error = refuses.render(&[], false).unwrap_err().to_string();
        assert!(
            error.starts_with("chat template: invalid operation: roles must alternate"),
            "{error}"
        );
        let error = ChatTemplate::new("{% if %}", &BTreeMap::new())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("chat template: syntax error"), "{error}");
    }

    #[test]
    fn assistant_turns_are_marked_with_what_closes_them() {
        let template = template(
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>\n{% endfor %}\
             {% if add_generation_prompt %}[assistant]{% endif %}",
        );
        let messages = messages(&[
            ("user", "é"),
            ("assistant", "b"),
            ("user", "b"),
            ("assistant", "d\n"),
        ]);
        let (text, spans) = template.render_marked(&messages).unwrap();
        assert_eq!(
            text,
            "[user]é</s>\n[assistant]b</s>\n[user]b</s>\n[assistant]d\n</s>\n"
        );
        let trained: Vec<_> = spans.into_iter().map(|span| &text[span]).collect();
        assert_eq!(trained, ["b</s>", "d\n</s>"]);
    }

    #[test]
    fn a_template_that_rewrites_earlier_turns_is_refused() {
        let hides = template(
            "{% for m in messages %}{% if loop.last %}!{% endif %}{{ m.content }};{% endfor %}",
        );
        let turns = messages(&[
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ]);
        let error = hides.render_marked(&turns).unwrap_err().to_string();
        assert!(
            error.contains("which tokens are turn 2: the template renders the turns up to its end"),
            "{error}"
        );
        let thinks = template(
            "{% for m in messages %}{{ m.content }};{% endfor %}{% if add_generation_prompt %}<think>{% endif %}",
        );
        let error = thinks.render_marked(&turns).unwrap_err().to_string();
        assert!(
            error.contains("turn 2: the template renders the turns up to the generation prompt"),
            "{error}"
        );
    }
}
