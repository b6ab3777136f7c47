//! JSON as Python writes it.

use std::io;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, Rest, ValueKind},
};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::{
    bounds,
    values::{Measure, python_float},
};

/// transformers' filter: `json.dumps(value, ensure_ascii=False, indent=None,
/// separators=None, sort_keys=False)`. Jinja's own `tojson` would escape `<`,
/// `>`, `&` and `'`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja passes arguments by value"
)]
pub(super) fn tojson(value: &Value, rest: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument = |i: usize, name: &str| -> Result<Option<Value>, Error> {
        let given: Option<Value> = kwargs.get(name)?;
        Ok(given
            .or_else(|| rest.get(i).cloned())
            .filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = argument(1, "indent")?;
    let separators = argument(2, "separators")?;
    let sorted = argument(3, "sort_keys")?.is_some_and(|value| value.is_true());
    kwargs.assert_all_used()?;
    let bad = |reason: String| Error::new(ErrorKind::BadSerialization, reason);
    let indent = match indent {
        None => None,
        Some(indent) if indent.kind() == ValueKind::Number => {
            let indent = indent.as_i64().map_or(u64::MAX, |by| by.max(0) as u64);
            bounds::width(indent)?;
            Some(" ".repeat(indent as usize))
        }
        Some(indent) => Some(indent.to_string()),
    };
    let (between, after_key) = match separators {
        Some(both) => {
            let both: Vec<_> = both.try_iter()?.collect();
            let text = |i: usize| both.get(i).map(ToString::to_string).unwrap_or_default();
            (text(0), text(1))
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    // A line for each value at most, an escaped character of six bytes.
    let Measure { depth, size } = Measure::of(value);
    let indented = indent
        .as_ref()
        .map_or(0, |by| by.len() as u64 * u64::from(depth));
    let apart = (between.len() + after_key.len()) as u64;
    let of_value = 32 + 2 * (indented + apart);
    bounds::make((size / 32).saturating_mul(of_value).saturating_add(size))?;
    if is_no_json(value) {
        return Err(bad(
            "what is undefined, or made item by item, is no JSON".to_owned()
        ));
    }
    let mut json = serde_json::to_value(value).map_err(|error| bad(error.to_string()))?;
    if sorted {
        json.sort_all_objects();
    }
    let formatter = PythonFormatter {
        indent,
        between,
        after_key,
        ascii,
        depth: 0,
        has_value: false,
    };
    let mut out = Vec::new();
    json.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        .map_err(|error| bad(error.to_string()))?;
    String::from_utf8(out).map_err(|error| bad(error.to_string()))
}

/// A value as `json.dumps` writes it, without escapes of what is not ASCII.
pub(super) fn python_text(value: &serde_json::Value) -> String {
    let formatter = PythonFormatter {
        indent: None,
        between: ", ".to_owned(),
        after_key: ": ".to_owned(),
        ascii: false,
        depth: 0,
        has_value: false,
    };
    let mut out = Vec::new();
    let written = value.serialize(&mut Serializer::with_formatter(&mut out, formatter));
    written
        .ok()
        .and_then(|()| String::from_utf8(out).ok())
        .unwrap_or_else(|| value.to_string())
}

/// Whether a value is or holds what `json.dumps` refuses: what is undefined, and
/// what Python makes item by item (`map(…)` without `list`, `range(…)`).
fn is_no_json(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined | ValueKind::Iterable => true,
        ValueKind::Seq => value
            .try_iter()
            .is_ok_and(|mut items| items.any(|item| is_no_json(&item))),
        ValueKind::Map => value.try_iter().is_ok_and(|mut keys| {
            keys.any(|key| value.get_item(&key).is_ok_and(|item| is_no_json(&item)))
        }),
        _ => false,
    }
}

/// Python's separators, line breaks and numbers.
struct PythonFormatter {
    indent: Option<String>,
    between: String,
    after_key: String,
    /// Whether what is not ASCII is escaped.
    ascii: bool,
    depth: usize,
    has_value: bool,
}

impl PythonFormatter {
    fn line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        out.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| out.write_all(indent.as_bytes()))
    }

    fn open<W: ?Sized + io::Write>(&mut self, out: &mut W, with: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.has_value = false;
        out.write_all(with)
    }

    fn close<W: ?Sized + io::Write>(&mut self, out: &mut W, with: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.has_value {
            self.line(out)?;
        }
        self.has_value = true;
        out.write_all(with)
    }

    fn item<W: ?Sized + io::Write>(&self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.between.as_bytes())?;
        }
        self.line(out)
    }
}

impl Formatter for PythonFormatter {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.after_key.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.ascii {
            return out.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if c.is_ascii() {
                write!(out, "{c}")?;
            } else {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}
