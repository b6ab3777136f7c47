//! What makes texts of values and of other texts, numbers of texts, and the methods
//! that texts, lists and maps have in Python.

use minijinja::{
    Error, State, Value,
    value::{Kwargs, Rest, ValueKind},
};
use minijinja_contrib::pycompat;

use super::{
    super::{
        bounds::{self, make, read, spend},
        values::{Lazy, Measure, is_namespace, items, owned, text, wrong},
    },
    bounded::bound_format,
    sequences::pairs,
};

/// Python's `str`, which costs what it is long.
pub(super) fn shown(value: &Value) -> Result<String, Error> {
    // An escaped character takes up to four bytes.
    let size = Measure::of(value).size;
    bounds::size(size)?;
    read(size)?;
    Ok(text(value))
}

/// `|join(separator, attribute)`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja passes arguments by value"
)]
pub(super) fn join(value: &Value, rest: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let separator = match rest.first() {
        Some(separator) => shown(separator)?,
        None => kwargs.get::<Option<String>>("d")?.unwrap_or_default(),
    };
    let attribute: Option<Value> = match rest.get(1) {
        Some(attribute) => Some(attribute.clone()),
        None => kwargs.get("attribute")?,
    };
    kwargs.assert_all_used()?;
    joined(value, &separator, attribute.as_ref())
}

fn joined(value: &Value, separator: &str, attribute: Option<&Value>) -> Result<String, Error> {
    let mut out = String::new();
    for (i, item) in items(value)?.iter().enumerate() {
        let part = match attribute {
            Some(name) => shown(&item.get_item(name)?)?,
            None => shown(item)?,
        };
        if i > 0 {
            out.push_str(separator);
        }
        make((part.len() + separator.len()) as u64)?;
        out.push_str(&part);
    }
    Ok(out)
}

/// `|int(default)`: of what is no number, the default.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja passes arguments by value"
)]
pub(super) fn int(value: &Value, default: Option<i64>, kwargs: Kwargs) -> Result<i64, Error> {
    let default = match default {
        Some(default) => default,
        None => kwargs.get::<Option<i64>>("default")?.unwrap_or(0),
    };
    let base: Option<u32> = kwargs.get("base")?;
    kwargs.assert_all_used()?;
    if let Some(text) = value.as_str() {
        read(text.len() as u64)?;
        let text = text.trim();
        let base = base.filter(|base| (2..=36).contains(base)).unwrap_or(10);
        let whole = i64::from_str_radix(text, base).ok();
        return Ok(whole
            .or_else(|| text.parse::<f64>().ok().map(|float| float as i64))
            .unwrap_or(default));
    }
    if value.kind() == ValueKind::Bool {
        return Ok(i64::from(value.is_true()));
    }
    Ok(i64::try_from(value.clone())
        .ok()
        .or_else(|| f64::try_from(value.clone()).ok().map(|float| float as i64))
        .unwrap_or(default))
}

pub(super) fn replaced(
    text: &str,
    from: &str,
    to: &str,
    count: Option<i64>,
) -> Result<String, Error> {
    let limit = count
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(usize::MAX);
    read(16 * text.len() as u64)?;
    let found = text.matches(from).count().min(limit) as u64;
    let more = found.saturating_mul(to.len() as u64);
    make((text.len() as u64).saturating_add(more))?;
    Ok(if limit == usize::MAX {
        text.replace(from, to)
    } else {
        text.replacen(from, to, limit)
    })
}

/// Methods of texts, lists and maps, as in Python.
pub(super) fn method(
    state: &State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    spend(bounds::METHOD)?;
    let sizes: u64 = arguments.iter().map(|value| Measure::of(value).size).sum();
    read(sizes)?;
    if let Some(text) = value.as_str() {
        read(text.len() as u64)?;
        let argument = |i: usize| arguments.get(i).and_then(Value::as_str);
        match (name, argument(0), argument(1)) {
            // minijinja never finds the end of it.
            ("count", Some(""), _) => return Ok(Value::from(text.chars().count() + 1)),
            ("replace", Some(from), Some(to)) if arguments.len() <= 3 => {
                let count = arguments.get(2).and_then(Value::as_i64);
                return replaced(text, from, to, count).map(Value::from);
            }
            ("split", Some(""), _) => {
                return Err(wrong("a text is split at some text, not at \"\""));
            }
            ("split", separator, _) => {
                let n_parts = match separator {
                    Some(separator) => text.matches(separator).count(),
                    None => text.split_whitespace().count(),
                };
                make(32 * n_parts as u64 + text.len() as u64)?;
            }
            ("splitlines", ..) => make(32 * text.lines().count() as u64 + text.len() as u64)?,
            ("format", ..) => bound_format(text, arguments)?,
            ("join", ..) if arguments.len() == 1 => {
                return joined(&arguments[0], text, None).map(Value::from);
            }
            _ => make(2 * text.len() as u64)?,
        }
    } else if value.kind() == ValueKind::Map && arguments.is_empty() && !is_namespace(value) {
        match name {
            "keys" => return Ok(Lazy::view(items(value)?, "dict_keys")),
            "items" => return Ok(Lazy::view(pairs(value)?, "dict_items")),
            "values" => {
                let keys = items(value)?.into_iter();
                let values = keys.map(|key| value.get_item(&key));
                return Ok(Lazy::view(values.collect::<Result<_, _>>()?, "dict_values"));
            }
            _ => {}
        }
    } else if name == "count" {
        read(Measure::of(value).size)?;
    }
    let found = pycompat::unknown_method_callback(state, value, name, arguments)?;
    match name {
        "split" | "splitlines" => owned(&found),
        _ => Ok(found),
    }
}
