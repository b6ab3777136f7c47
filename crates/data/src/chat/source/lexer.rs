//! What a tag is made of: names, numbers, texts and signs.

use super::Place;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    Text,
    Number,
    Sign,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
}

/// A tag, without the `{{` or `{%` that it begins with.
pub(super) struct Tag<'a> {
    /// `-`, `+` or nothing at its begin, and at its end.
    pub begins: &'static str,
    pub ends: &'static str,
    pub tokens: Vec<Token<'a>>,
    /// What follows it.
    pub after: Place<'a>,
}

/// Reads a tag that ends in `close`, from after its `{{` or `{%`.
pub(super) fn tag<'a>(mut place: Place<'a>, close: &str) -> Result<Tag<'a>, String> {
    let begins = match place.rest().as_bytes().first() {
        Some(b'-') => "-",
        Some(b'+') => "+",
        _ => "",
    };
    place.at += begins.len();
    let mut tokens = Vec::new();
    let mut braces = 0_usize;
    loop {
        let rest = place.rest().trim_start();
        place.at = place.source.len() - rest.len();
        if braces == 0 {
            for ends in ["", "-", "+"] {
                if let Some(after) = rest.strip_prefix(ends)
                    && after.starts_with(close)
                {
                    place.at += ends.len() + close.len();
                    let after = place;
                    return Ok(Tag {
                        begins,
                        ends,
                        tokens,
                        after,
                    });
                }
            }
        }
        let Some(c) = rest.chars().next() else {
            return Err(place.error("a tag without an end"));
        };
        let (kind, length) = if c.is_alphabetic() || c == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            (Kind::Name, end.unwrap_or(rest.len()))
        } else if c.is_ascii_digit() {
            (Kind::Number, number(rest))
        } else if c == '\'' || c == '"' {
            let end = text(rest, c).ok_or_else(|| place.error("a text without an end"))?;
            (Kind::Text, end)
        } else {
            let sign = ["//", "**", "==", "!=", "<=", ">="]
                .into_iter()
                .find(|sign| rest.starts_with(sign))
                .map(str::len);
            if sign.is_none() && !"+-*/%~<>=.:|,()[]{}".contains(c) {
                return Err(place.error(&format!("unexpected `{}`", c.escape_default())));
            }
            match c {
                '{' => braces += 1,
                '}' => braces = braces.saturating_sub(1),
                _ => {}
            }
            (Kind::Sign, sign.unwrap_or(1))
        };
        tokens.push(Token {
            kind,
            text: &rest[..length],
        });
        place.at += length;
    }
}

/// How long a number is.
fn number(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let digits = |mut at: usize| {
        while bytes
            .get(at)
            .is_some_and(|c| c.is_ascii_alphanumeric() || *c == b'_')
        {
            // An exponent may have a sign.
            let is_exponent = matches!(bytes[at], b'e' | b'E') && !rest.starts_with("0x");
            at += 1;
            if is_exponent && matches!(bytes.get(at), Some(b'+' | b'-')) {
                at += 1;
            }
        }
        at
    };
    let whole = digits(0);
    let is_float =
        bytes.get(whole) == Some(&b'.') && bytes.get(whole + 1).is_some_and(u8::is_ascii_digit);
    if is_float { digits(whole + 1) } else { whole }
}

/// How long a text in quotes is.
fn text(rest: &str, quote: char) -> Option<usize> {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Where what follows `{% raw %}` is over, with its end tag.
pub(super) fn end_of_raw(rest: &str) -> Option<usize> {
    let around = |c| matches!(c, '-' | '+' | ' ' | '\n' | '\t');
    let mut from = 0;
    loop {
        from += rest[from..].find("{%")? + 2;
        // No further than the tag itself is looked: there may be a great many.
        let tag = rest[from..].trim_start_matches(around);
        if let Some(tag) = tag.strip_prefix("endraw")
            && let Some(after) = tag.trim_start_matches(around).strip_prefix("%}")
        {
            return Some(rest.len() - after.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &str) -> Result<Vec<&str>, String> {
        let tag = tag(Place { source, at: 2 }, "}}")?;
        assert!(tag.after.rest().starts_with(" Oxmere"), "{source}");
        Ok(tag.tokens.iter().map(|token| token.text).collect())
    }

    #[test]
    fn a_tag_ends_outside_of_braces_and_texts() {
        for (source, tokens) in [
            ("{{- a.b -}} Oxmere", vec!["a", ".", "b"]),
            ("{{ '}}' }} Oxmere", vec!["'}}'"]),
            (
                "{{ {'a': {}}}} Oxmere",
                vec!["{", "'a'", ":", "{", "}", "}"],
            ),
            (r"{{ 'it\'s' }} Oxmere", vec![r"'it\'s'"]),
            ("{{ a**2//3 }} Oxmere", vec!["a", "**", "2", "//", "3"]),
        ] {
            assert_eq!(read(source).unwrap(), tokens, "{source}");
        }
    }

    #[test]
    fn numbers_are_as_long_as_python_has_them() {
        for (source, length) in [
            ("12.first", 2),
            ("1.5e-3+a", 6),
            ("1_000]", 5),
            ("0x1e-1", 4),
            ("2e+5 ", 4),
        ] {
            assert_eq!(number(source), length, "{source}");
        }
    }

    #[test]
    fn what_does_not_end_names_its_line() {
        for (source, what) in [
            ("{{\na", "a tag without an end (in line 2)"),
            ("{{\n'a", "a text without an end (in line 2)"),
            ("{{ a ? }}", "unexpected `?` (in line 1)"),
        ] {
            let error = read(source).unwrap_err();
            assert!(error.ends_with(what), "{error}");
        }
    }

    #[test]
    fn raw_text_ends_at_its_own_tag_only() {
        let raw = "{% a %}{% endraws %}{%-  endraw\n+%} Thornby";
        assert_eq!(&raw[end_of_raw(raw).unwrap()..], " Thornby");
        assert_eq!(end_of_raw("{% endraw"), None);
    }
}
