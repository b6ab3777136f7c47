//! `+`, `~` and `*`, as Python has them for numbers, texts and lists.

use minijinja::{
    Error, Value,
    value::{Rest, ValueKind},
};

use super::{
    super::{
        bounds::make,
        values::{Lazy, Measure, items, made_list, wrong},
    },
    shown,
};

/// `a + b + …`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja passes arguments by value"
)]
pub(super) fn add(first: Value, others: Rest<Value>) -> Result<Value, Error> {
    let is_plain = |value: &&Value| value.as_str().is_some() && !value.is_safe();
    // Most sums are of texts.
    if is_plain(&&first) && others.iter().all(|other| is_plain(&other)) {
        let texts = || std::iter::once(&first).chain(others.iter());
        let texts = || texts().filter_map(Value::as_str);
        let length = texts().map(str::len).sum();
        make(length as u64)?;
        let mut sum = String::with_capacity(length);
        sum.extend(texts());
        return Ok(Value::from(sum));
    }
    let mut sum = first;
    for other in others.iter() {
        sum = add_two(&sum, other)?;
    }
    Ok(sum)
}

fn add_two(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        // What is marked as safe has all that is added to it escaped.
        let (x, y) = match (a.is_safe(), b.is_safe()) {
            (false, false) | (true, true) => (x.into(), y.into()),
            (true, false) => (x.into(), escaped(y)?),
            (false, true) => (escaped(x)?, y.into()),
        };
        make((x.len() + y.len()) as u64)?;
        let sum: String = [&*x, &*y].concat();
        return Ok(if a.is_safe() || b.is_safe() {
            Value::from_safe_string(sum)
        } else {
            Value::from(sum)
        });
    }
    if let (Some(x), Some(y)) = (integer(a), integer(b)) {
        let sum = x.checked_add(y);
        return Ok(whole(sum.ok_or_else(|| wrong("a sum is too large"))?));
    }
    if let (Some(x), Some(y)) = (float(a), float(b)) {
        return Ok(Value::from(x + y));
    }
    let is_list = |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) && !Lazy::is(value)
    };
    if is_list(a) && is_list(b) {
        let mut all = items(a)?;
        all.extend(items(b)?);
        return made_list(all);
    }
    Err(unsupported("+", a, b))
}

fn unsupported(sign: &str, a: &Value, b: &Value) -> Error {
    let kind = |value: &Value| value.kind().to_string();
    wrong(format!(
        "`{sign}` cannot take a value of type {} and one of type {}",
        kind(a),
        kind(b)
    ))
}

/// As Markupsafe does it.
fn escaped(text: &str) -> Result<std::borrow::Cow<'_, str>, Error> {
    if !text.contains(['&', '<', '>', '\'', '"']) {
        return Ok(text.into());
    }
    make(5 * text.len() as u64)?;
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Ok(out.into())
}

/// An integer as Python sees it: `true` is 1.
pub(super) fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn whole(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
}

/// `a ~ b ~ …`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja passes arguments by value"
)]
pub(super) fn concat(first: Value, others: Rest<Value>) -> Result<String, Error> {
    let mut out = String::new();
    for value in std::iter::once(&first).chain(others.iter()) {
        if value.is_undefined() {
            continue;
        }
        if let Some(text) = value.as_str() {
            make(text.len() as u64)?;
            out.push_str(text);
        } else {
            let text = shown(value)?;
            make(text.len() as u64)?;
            out.push_str(&text);
        }
    }
    Ok(out)
}

/// `a * b`.
pub(super) fn mul(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (integer(a), integer(b)) {
        let product = x.checked_mul(y);
        return Ok(whole(
            product.ok_or_else(|| wrong("a product is too large"))?,
        ));
    }
    if let (Some(x), Some(y)) = (float(a), float(b)) {
        return Ok(Value::from(x * y));
    }
    let (value, times) = match (integer(a), integer(b)) {
        (None, Some(times)) => (a, times),
        (Some(times), None) => (b, times),
        _ => return Err(unsupported("*", a, b)),
    };
    let times = u64::try_from(times.max(0)).unwrap_or(u64::MAX);
    if let Some(text) = value.as_str() {
        make(times.saturating_mul(text.len() as u64))?;
        let product = text.repeat(times as usize);
        return Ok(if value.is_safe() {
            Value::from_safe_string(product)
        } else {
            Value::from(product)
        });
    }
    if value.kind() != ValueKind::Seq {
        return Err(unsupported("*", a, b));
    }
    let items = items(value)?;
    make(times.saturating_mul(Measure::of(value).size))?;
    let n_items = items.len() * times as usize;
    made_list(items.into_iter().cycle().take(n_items).collect())
}
