//! Values as Jinja2 sees and prints them.
//!
//! Where minijinja 2 differs from Jinja2 in what public templates rely on:
//! lists and maps print as Python writes them, `none` is not iterable, what is a
//! sequence, and filters of what is undefined.

use std::{fmt, sync::Arc};

use minijinja::{
    Environment, Error, ErrorKind, Output, State, Value,
    value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, ValueKind},
};
use serde_json::Value as Json;

/// A value that a template is given, printing as in Python however deep.
pub(super) fn value(json: &Json) -> Value {
    match json {
        Json::Array(items) => Value::from_object(List(items.iter().map(value).collect())),
        Json::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, of)| (Value::from(key.as_str()), value(of)));
            Value::from_object(Dict(fields.collect()))
        }
        other => Value::from_serialize(other),
    }
}

/// A list of values.
pub(super) fn list(items: Vec<Value>) -> Value {
    Value::from_object(List(items))
}

#[derive(Debug)]
struct List(Vec<Value>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, &self.0)
    }
}

#[derive(Debug)]
struct Dict(Vec<(Value, Value)>);

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let found = self.0.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(key, _)| key.clone()).collect())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_dict(f, self.0.iter().cloned())
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, items: &[Value]) -> fmt::Result {
    f.write_str("[")?;
    for (i, item) in items.iter().enumerate() {
        f.write_str(if i == 0 { "" } else { ", " })?;
        f.write_str(&repr(item))?;
    }
    f.write_str("]")
}

fn write_dict(
    f: &mut fmt::Formatter<'_>,
    fields: impl Iterator<Item = (Value, Value)>,
) -> fmt::Result {
    f.write_str("{")?;
    for (i, (key, value)) in fields.enumerate() {
        f.write_str(if i == 0 { "" } else { ", " })?;
        write!(f, "{}: {}", repr(&key), repr(&value))?;
    }
    f.write_str("}")
}

/// Python's `repr`.
fn repr(value: &Value) -> String {
    struct Shown<'a>(&'a Value);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self(value) = self;
            match value.kind() {
                ValueKind::String => write_text(f, value.as_str().unwrap_or_default()),
                ValueKind::Number => f.write_str(&number(value)),
                ValueKind::Seq | ValueKind::Iterable => {
                    let items: Vec<_> = value.try_iter().map_err(|_| fmt::Error)?.collect();
                    write_list(f, &items)
                }
                ValueKind::Map => {
                    let keys = value.try_iter().map_err(|_| fmt::Error)?;
                    let fields = keys.map(|key| {
                        let of = value.get_item(&key).unwrap_or_default();
                        (key, of)
                    });
                    write_dict(f, fields)
                }
                _ => write!(f, "{value}"),
            }
        }
    }
    Shown(value).to_string()
}

/// A text in quotes: single ones, unless it has some and no double ones.
fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    write!(f, "{quote}")?;
    for c in text.chars() {
        match c {
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            c if c == quote => write!(f, "\\{c}")?,
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) || c == '\u{ad}' => {
                write!(f, "\\x{:02x}", c as u32)?;
            }
            c if ('\u{2028}'..='\u{202e}').contains(&c)
                || ('\u{200b}'..='\u{200f}').contains(&c)
                || c == '\u{feff}' =>
            {
                write!(f, "\\u{:04x}", c as u32)?;
            }
            c => write!(f, "{c}")?,
        }
    }
    write!(f, "{quote}")
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => python_float(float),
        _ => value.to_string(),
    }
}

/// Python's `repr` of a float: with an exponent, it has a sign and two digits.
pub(super) fn python_float(float: f64) -> String {
    let text = format!("{float:?}");
    let Some((digits, exponent)) = text.split_once('e') else {
        return text;
    };
    let digits = digits.strip_suffix(".0").unwrap_or(digits);
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// Python's `str`.
fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::Number => repr(value),
        _ => value.to_string(),
    }
}

/// Makes an environment do as Jinja2 does.
pub(super) fn as_in_jinja2(environment: &mut Environment<'_>) {
    environment.set_formatter(|out: &mut Output<'_>, _: &State<'_, '_>, value: &Value| {
        if value.is_undefined() {
            return Ok(());
        }
        out.write_str(&text(value)).map_err(Error::from)
    });
    environment.add_filter("string", |value: &Value| {
        if value.is_undefined() {
            String::new()
        } else {
            text(value)
        }
    });
    environment.add_filter("join", join);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("int", int);
    environment.add_filter("items", items);
    environment.add_filter("first", |value: &Value| end(value, true));
    environment.add_filter("last", |value: &Value| end(value, false));
    environment.add_test("iterable", |value: &Value| {
        value.is_undefined()
            || (!value.is_none() && value.try_iter().is_ok())
            || value.kind() == ValueKind::String
    });
    environment.add_test("sequence", |value: &Value| {
        let has_length = || value.len().is_some();
        match value.kind() {
            ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map => true,
            ValueKind::Iterable => has_length(),
            _ => false,
        }
    });
}

/// `|join(separator, attribute)`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja passes arguments by value"
)]
fn join(value: &Value, rest: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let separator = match rest.first() {
        Some(separator) => text(separator),
        None => kwargs.get::<Option<String>>("d")?.unwrap_or_default(),
    };
    let attribute: Option<Value> = match rest.get(1) {
        Some(attribute) => Some(attribute.clone()),
        None => kwargs.get("attribute")?,
    };
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Ok(String::new());
    }
    let mut parts = Vec::new();
    for item in value.try_iter()? {
        parts.push(match &attribute {
            Some(name) => text(&item.get_item(name)?),
            None => text(&item),
        });
    }
    Ok(parts.join(&separator))
}

/// `|length`: of what is undefined, 0.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    let length = match value.as_str() {
        Some(text) => Some(text.chars().count()),
        None => value.len(),
    };
    length
        .or_else(|| Some(value.try_iter().ok().filter(|_| !value.is_none())?.count()))
        .ok_or_else(|| {
            let what = format!("a value of type {} has no length", value.kind());
            Error::new(ErrorKind::InvalidOperation, what)
        })
}

/// `|int(default)`: of what is no number, the default.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja passes arguments by value"
)]
fn int(value: &Value, default: Option<i64>, kwargs: Kwargs) -> Result<i64, Error> {
    let default = match default {
        Some(default) => default,
        None => kwargs.get::<Option<i64>>("default")?.unwrap_or(0),
    };
    let base: Option<u32> = kwargs.get("base")?;
    kwargs.assert_all_used()?;
    if let Some(text) = value.as_str() {
        let text = text.trim();
        let base = base.filter(|base| (2..=36).contains(base)).unwrap_or(10);
        let whole = i64::from_str_radix(text, base).ok();
        return Ok(whole
            .or_else(|| text.parse::<f64>().ok().map(|float| float as i64))
            .unwrap_or(default));
    }
    if let Ok(flag) = bool::try_from(value.clone())
        && value.kind() == ValueKind::Bool
    {
        return Ok(i64::from(flag));
    }
    Ok(i64::try_from(value.clone())
        .ok()
        .or_else(|| f64::try_from(value.clone()).ok().map(|float| float as i64))
        .unwrap_or(default))
}

/// `|items`: of what is undefined, nothing.
fn items(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(list(Vec::new()));
    }
    if value.kind() != ValueKind::Map {
        let what = format!("a value of type {} has no items", value.kind());
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    let mut pairs = Vec::new();
    for key in value.try_iter()? {
        let of = value.get_item(&key)?;
        pairs.push(list(vec![key, of]));
    }
    Ok(list(pairs))
}

/// `|first` and `|last`: of what is undefined or empty, undefined.
fn end(value: &Value, first: bool) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Value::UNDEFINED);
    }
    if let Some(text) = value.as_str() {
        let mut chars = text.chars();
        let found = if first {
            chars.next()
        } else {
            chars.next_back()
        };
        return Ok(found.map_or(Value::UNDEFINED, Value::from));
    }
    let mut items = value.try_iter()?;
    let found = if first { items.next() } else { items.last() };
    Ok(found.unwrap_or(Value::UNDEFINED))
}
