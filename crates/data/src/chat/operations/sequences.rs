//! What looks into texts, lists and maps or takes parts of them: `in`, slices,
//! loops, lengths, ends.

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

use super::{
    super::{
        bounds::{make, read, spend},
        values::{Lazy, Measure, items, made_list, wrong},
    },
    operators::integer,
};

/// `a in b`.
pub(super) fn within(value: &Value, container: &Value) -> Result<bool, Error> {
    if let Some(text) = container.as_str() {
        let part = value
            .as_str()
            .ok_or_else(|| wrong("only a text can be `in` a text"))?;
        read(4 * (text.len() + part.len()) as u64)?;
        return Ok(text.contains(part));
    }
    match container.kind() {
        ValueKind::Undefined => Ok(false),
        ValueKind::Map => {
            read(Measure::of(value).size)?;
            Ok(container
                .as_object()
                .is_some_and(|map| map.get_value(value).is_some()))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            // What is compared costs no more than the value, or what is in the list.
            let n_items = container.len().unwrap_or(1) as u64;
            let size = Measure::of(value).size;
            spend(n_items)?;
            read(n_items.saturating_mul(size.saturating_sub(64)))?;
            Ok(container.try_iter()?.any(|item| item == *value))
        }
        kind => Err(wrong(format!("nothing can be `in` a value of type {kind}"))),
    }
}

/// `a[start:stop:step]`.
pub(super) fn slice(
    value: &Value,
    start: &Value,
    stop: &Value,
    by: &Value,
) -> Result<Value, Error> {
    let bound = |value: &Value| -> Result<Option<i128>, Error> {
        if value.is_none() {
            return Ok(None);
        }
        let found = integer(value).ok_or_else(|| wrong("the bounds of a slice are integers"))?;
        Ok(Some(found.clamp(-(1 << 62), 1 << 62)))
    };
    let (start, stop) = (bound(start)?, bound(stop)?);
    let by = bound(by)?.unwrap_or(1);
    if by == 0 {
        return Err(wrong("the step of a slice is not 0"));
    }
    let places = |length: usize| {
        let n = length as i128;
        let inside = |at: i128, low: i128, high: i128| {
            let at = if at < 0 { at + n } else { at };
            at.clamp(low, high)
        };
        let (low, high) = if by > 0 { (0, n) } else { (-1, n - 1) };
        let (first, last) = if by > 0 { (low, high) } else { (high, low) };
        let mut at = start.map_or(first, |start| inside(start, low, high));
        let stop = stop.map_or(last, |stop| inside(stop, low, high));
        let mut places = Vec::new();
        while if by > 0 { at < stop } else { at > stop } {
            places.push(at as usize);
            at += by;
        }
        places
    };
    if let Some(text) = value.as_str() {
        read(text.len() as u64)?;
        if text.is_ascii() {
            if by == 1 {
                let places = places(text.len());
                let first = places.first().copied().unwrap_or(0);
                make(places.len() as u64)?;
                return Ok(Value::from(&text[first..first + places.len()]));
            }
            make(text.len() as u64)?;
            let taken = places(text.len());
            let bytes = text.as_bytes();
            return Ok(Value::from(
                taken
                    .iter()
                    .map(|at| char::from(bytes[*at]))
                    .collect::<String>(),
            ));
        }
        make(4 * text.len() as u64)?;
        let chars: Vec<char> = text.chars().collect();
        let taken = places(chars.len());
        return Ok(Value::from(
            taken.iter().map(|at| chars[*at]).collect::<String>(),
        ));
    }
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::Seq => {
            let taken = places(value.len().unwrap_or(0));
            let taken = taken.iter().map(|at| value.get_item_by_index(*at));
            made_list(taken.collect::<Result<_, _>>()?)
        }
        ValueKind::Iterable if !Lazy::is(value) => {
            let items = items(value)?;
            let taken = places(items.len());
            made_list(taken.iter().map(|at| items[*at].clone()).collect())
        }
        ValueKind::Iterable => Err(wrong("what is made item by item cannot be cut")),
        _ => Ok(Value::UNDEFINED),
    }
}

/// What a loop goes through. Its body has `raw` bytes of text of its own.
pub(super) fn each(value: &Value, raw: u64) -> Result<Value, Error> {
    let value = match value.kind() {
        ValueKind::Seq => value.clone(),
        _ if Lazy::is(value) => value.clone(),
        // A range, which need not be written out.
        ValueKind::Iterable if value.len().is_some() => value.clone(),
        _ => made_list(items(value)?)?,
    };
    let n_items = value.len().unwrap_or(0) as u64;
    spend(n_items)?;
    make(n_items.saturating_mul(raw))?;
    Ok(value)
}

/// `|length`: of what is undefined, 0.
pub(super) fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    if let Some(text) = value.as_str() {
        read(text.len() as u64)?;
        return Ok(text.chars().count());
    }
    let length = value.len().filter(|_| !Lazy::is_generator(value));
    length.ok_or_else(|| wrong(format!("a value of type {} has no length", value.kind())))
}

/// The keys and values of a map; of what is undefined, none.
pub(super) fn pairs(value: &Value) -> Result<Vec<Value>, Error> {
    if value.is_undefined() {
        return Ok(Vec::new());
    }
    if value.kind() != ValueKind::Map {
        let what = format!("a value of type {} has no items", value.kind());
        return Err(wrong(what));
    }
    let keys = items(value)?;
    let pairs = keys.into_iter().map(|key| {
        let of = value.get_item(&key)?;
        made_list(vec![key, of])
    });
    pairs.collect()
}

/// `|first` and `|last`: of what is undefined or empty, undefined.
pub(super) fn end(value: &Value, first: bool) -> Result<Value, Error> {
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
    if value.kind() == ValueKind::Seq {
        let last = value.len().unwrap_or(0).saturating_sub(1);
        return value.get_item_by_index(if first { 0 } else { last });
    }
    read(64 * value.len().unwrap_or(0) as u64)?;
    let mut items = value.try_iter()?;
    let found = if first { items.next() } else { items.last() };
    Ok(found.unwrap_or(Value::UNDEFINED))
}
