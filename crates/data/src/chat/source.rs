//! A template's source, read and written anew before it is compiled.
//!
//! Every operation that can take long or make something large, and every one
//! that Jinja2 does otherwise than minijinja, becomes a filter of ours (see
//! `operations`): `a + b` is `(a)|olora_add(b)`. What is too long, too deep or no
//! Jinja is refused here, since minijinja's own reader would overflow the stack.

mod expr;
mod lexer;
mod operators;
mod parser;
mod primaries;
mod tags;
mod writer;

use writer::Writer;

/// Bytes of a source. The largest of 240 public templates has 40 kB.
const MAX_SOURCE: usize = 1 << 20;
/// How deep expressions and blocks may lie in each other, and how many operands
/// of one kind may follow each other.
const MAX_DEPTH: usize = 200;
const MAX_OPERANDS: usize = 1000;

/// What a source becomes.
pub(super) struct Source {
    pub plain: String,
    /// The same with what is within `{% generation %}` marked, if there is any.
    pub marked: Option<String>,
}

/// Reads a source and writes it as minijinja is to have it.
pub(super) fn rewritten(source: &str, mark: &str) -> Result<Source, String> {
    if source.len() > MAX_SOURCE {
        return Err(format!(
            "it has {} bytes, and at most {MAX_SOURCE} are read",
            source.len()
        ));
    }
    // Jinja2 reads all line ends as one.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let (plain, has_generation) = Writer::new(&source, None).write()?;
    let marked = if has_generation {
        Some(Writer::new(&source, Some(mark)).write()?.0)
    } else {
        None
    };
    Ok(Source { plain, marked })
}

/// A place in a source, for errors.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Place<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn line(&self) -> usize {
        self.source[..self.at].matches('\n').count() + 1
    }

    fn error(&self, what: &str) -> String {
        format!("syntax error: {what} (in line {})", self.line())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(source: &str) -> String {
        rewritten(source, "marked").unwrap().plain
    }

    #[test]
    fn operators_become_filters_and_keep_their_order() {
        for (source, written) in [
            ("a + b + c", "a|olora_add(b, c)"),
            ("a + b - c", "(a|olora_add(b)) - c"),
            ("a + b * c", "a|olora_add(b|olora_mul(c))"),
            ("a ~ b", "a|olora_concat(b)"),
            ("a in b", "a|olora_in(b)"),
            ("a not in b", "not (a|olora_in(b))"),
            ("a == 'b'", "a == 'b'"),
            ("a == b", "(a|olora_seen()) == (b|olora_seen())"),
            ("-a | abs", "(-a)|abs()"),
            ("a[1:]", "(a|olora_slice(1, none, none))"),
            ("a['b'].c", "a['b'].c"),
            ("a[b]", "(a|olora_at())[b|olora_seen()]"),
            (
                "f(*a, b=c, **d)",
                "f(*a|olora_copied(), b=c, **d|olora_copied())",
            ),
            ("a is in b", "(a|olora_seen() is in((b)|olora_copied()))"),
            (
                "loop.changed(a)",
                "loop.changed(([a]|olora_owned())|olora_seen())",
            ),
            ("not not a", "not (not a)"),
            ("a, 1", "((a, 1,)|olora_owned())"),
            ("[1, 'b']", "[1, 'b']"),
            ("a if b else c", "a if b else c"),
            ("a is not b", "(a is not b)"),
        ] {
            assert_eq!(
                plain(&format!("{{{{ {source} }}}}")),
                format!("{{{{ {written} }}}}")
            );
        }
    }

    #[test]
    fn a_loop_and_a_macro_know_the_bytes_of_their_text() {
        assert_eq!(
            plain("{% for a in b if c == 0918273645 %}Alder{{ a }} {% endfor %}"),
            "{% for a in b|olora_each(0000000006) if (c == 0918273645) %}Alder{{ a }} {% endfor %}"
        );
        assert_eq!(
            plain("{% macro a(b=1) -%}Zora{% if b %}!{% endif %}{% endmacro %}"),
            "{% macro a(b=1) %}{% set olora_step = olora_step(0000000005) -%}\
             Zora{% if b %}!{% endif %}{% endmacro %}"
        );
    }

    #[test]
    fn what_is_generated_is_marked_in_one_of_two() {
        let Source { plain, marked } =
            rewritten("{% generation %}a{% endgeneration %}", "marked").unwrap();
        assert_eq!(plain, "{% with %}a{% endwith %}");
        assert_eq!(
            marked.unwrap(),
            "{% with %}{% filter marked %}a{% endfilter %}{% endwith %}"
        );
    }

    #[test]
    fn lines_stay_where_they_are() {
        let source = "{# a\n #}{{ a\n+\nb }}{%- raw %}{{ x }}\n{% endraw -%}\r\nc";
        let written = plain(source);
        assert_eq!(written.matches('\n').count(), 5, "{written}");
        assert!(
            written.contains("{%- raw %}{{ x }}\n{% endraw -%}\nc"),
            "{written}"
        );
    }

    #[test]
    fn blocks_end_where_they_should() {
        for (source, what) in [
            ("{% endif %}", "`endif` without a beginning (in line 1)"),
            (
                "{% if a %}\n{% endfor %}",
                "`endfor` without a beginning (in line 2)",
            ),
            ("{% village %}", "there is no tag `village` (in line 1)"),
            (
                "{{ a b }}",
                "expected the end of the tag, found `b` (in line 1)",
            ),
            ("{{ if }}", "expected an expression, found `if` (in line 1)"),
        ] {
            let error = rewritten(source, "marked").err().unwrap();
            assert!(error.ends_with(what), "{error}");
        }
    }
}
