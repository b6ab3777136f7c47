//! JSON: objects one after another, lists of them, and what people wrap lists in.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, map::Entry};

use crate::{
    Halt, Out, RecordsError,
    cursor::{Broken, Cursor},
    error::{clipped, quoted},
    shape::Shape,
    text::Text,
};

/// Gives the records of a file, in the shape that it was found to have.
pub(crate) fn read(text: Text, shape: &Shape, out: &mut Out<'_>, limit: usize) -> Result<(), Halt> {
    let mut cursor = Cursor::new(text, limit);
    let result = match shape {
        Shape::Lines => lines(&mut cursor, out),
        Shape::List => list(&mut cursor, false, out),
        Shape::Wrapper(key) => wrapper(&mut cursor, key, out),
        Shape::Columns => columns(&mut cursor, out),
    };
    let result = result.and_then(|()| match cursor.peek()? {
        None => Ok(()),
        Some(_) => Err(cursor
            .here("something follows what the file begins with".to_owned())
            .into()),
    });
    result.map_err(|why| match why {
        Why::Halt(halt) => halt,
        Why::Broken(Broken::Io(error)) => out.fault(error),
        Why::Broken(Broken::Json {
            line,
            column,
            reason,
        }) => RecordsError::Json {
            path: out.path(),
            line,
            column,
            reason,
        }
        .into(),
    })
}

enum Why {
    Halt(Halt),
    Broken(Broken),
}

impl From<Halt> for Why {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

impl From<Broken> for Why {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl From<std::io::Error> for Why {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.into())
    }
}

/// Objects one after another, on a line each or not.
fn lines(cursor: &mut Cursor, out: &mut Out<'_>) -> Result<(), Why> {
    while cursor.peek()?.is_some() {
        let line = cursor.line();
        let Strict(value) = cursor.value()?;
        give(value, line, out)?;
    }
    Ok(())
}

/// The objects of a list, which may be rows of the hub's viewer.
fn list(cursor: &mut Cursor, rows: bool, out: &mut Out<'_>) -> Result<(), Why> {
    if !cursor.take(b'[')? {
        return Err(cursor.expected("`[`").into());
    }
    let mut more = !cursor.take(b']')?;
    while more {
        cursor.peek()?;
        let line = cursor.line();
        let Strict(value) = cursor.value()?;
        let value = if rows { row(value, line, out)? } else { value };
        give(value, line, out)?;
        more = cursor.more(b']')?;
    }
    Ok(())
}

/// The objects of the list under a key of an object.
fn wrapper(cursor: &mut Cursor, wanted: &str, out: &mut Out<'_>) -> Result<(), Why> {
    let mut read = false;
    let mut more = cursor.take(b'{')?;
    while more {
        let key: String = cursor.value()?;
        if !cursor.take(b':')? {
            return Err(cursor.expected("`:`").into());
        }
        if key != wanted {
            cursor.value::<IgnoredAny>()?;
        } else if read {
            return Err(cursor.here(twice(&key)).into());
        } else {
            list(cursor, wanted == "rows", out)?;
            read = true;
        }
        more = cursor.more(b'}')?;
    }
    Ok(())
}

/// What is in a row of the hub's viewer; anything else as it is.
fn row(value: Value, line: usize, out: &Out<'_>) -> Result<Value, Halt> {
    const AROUND: [&str; 3] = ["row_idx", "row", "truncated_cells"];
    let Value::Object(mut fields) = value else {
        return Ok(value);
    };
    let around = fields.keys().all(|key| AROUND.contains(&key.as_str()));
    if !around || !fields.get("row").is_some_and(Value::is_object) {
        return Ok(Value::Object(fields));
    }
    if let Some(cut) = fields.get("truncated_cells").and_then(Value::as_array)
        && !cut.is_empty()
    {
        return Err(RecordsError::Record {
            at: out.next(Some(line)),
            problem: format!(
                "the hub's viewer has cut {}: get the data set's Parquet files instead",
                quoted(cut.iter().filter_map(Value::as_str))
            ),
        }
        .into());
    }
    Ok(fields.swap_remove("row").unwrap_or_default())
}

/// An object whose values are columns.
fn columns(cursor: &mut Cursor, out: &mut Out<'_>) -> Result<(), Why> {
    let Strict(Value::Object(columns)) = cursor.value()? else {
        return Err(cursor.expected("an object of columns").into());
    };
    let mut columns: Vec<_> = columns
        .into_iter()
        .map(|(name, column)| {
            let column: Vec<_> = match column {
                Value::Array(items) => items,
                Value::Object(items) => items.into_values().collect(),
                other => vec![other],
            };
            (name, column.into_iter())
        })
        .collect();
    loop {
        let mut fields = Map::with_capacity(columns.len());
        for (name, column) in &mut columns {
            match column.next() {
                Some(value) => fields.insert(name.clone(), value),
                // They are equally long, as their outline said.
                None => return Ok(()),
            };
        }
        out.give(fields, None)?;
    }
}

fn give(value: Value, line: usize, out: &mut Out<'_>) -> Result<(), Halt> {
    let found = match value {
        Value::Object(fields) => return out.give(fields, Some(line)),
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
    };
    Err(RecordsError::NotAnObject {
        at: out.next(Some(line)),
        found,
    }
    .into())
}

/// Reads JSON that a value has as text, as files are read: with no key twice.
///
/// # Errors
///
/// It is no JSON, or would lose something.
pub fn parse(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(text).map(|Strict(value)| value)
}

fn twice(key: &str) -> String {
    format!(
        "the key `{}` is there twice in one object, of which one would be lost",
        clipped(key)
    )
}

/// A [`Value`] as `serde_json` reads it, but with no key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfStrict).map(Self)
    }
}

struct OfStrict;

impl<'de> Visitor<'de> for OfStrict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            match fields.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(map.next_value::<Strict>()?.0);
                }
                Entry::Occupied(entry) => return Err(A::Error::custom(twice(entry.key()))),
            }
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    use std::{io, ops::ControlFlow, path::Path};

    use super::*;

    fn too_long(text: &str, limit: usize, shape: &Shape) -> Option<usize> {
        let text = Text::new(Box::new(io::Cursor::new(text.as_bytes().to_vec())));
        let mut give = |_| ControlFlow::Continue(());
        let mut out = Out {
            path: Path::new("a.json"),
            give: &mut give,
            n_records: 0,
        };
        match read(text, shape, &mut out, limit) {
            Ok(()) => None,
            Err(Halt::Failed(RecordsError::TooLong { line, .. })) => Some(line),
            Err(Halt::Failed(error)) => panic!("{error}"),
            Err(Halt::Stopped) => panic!("stopped"),
        }
    }

    #[test]
    fn a_record_may_be_so_long_but_a_file_longer() {
        let short = r#"{"prompt": "Zora"}"#;
        let long = r#"{"prompt": "Zora of Thornby"}"#;
        let lines_of = format!("{short}\n{short}\n{long}\n");
        let list_of = format!("[{short},\n{short},\n{long}]");
        assert_eq!(too_long(&lines_of, 40, &Shape::Lines), None);
        assert_eq!(too_long(&lines_of, 24, &Shape::Lines), Some(3));
        assert_eq!(too_long(&list_of, 40, &Shape::List), None);
        assert_eq!(too_long(&list_of, 24, &Shape::List), Some(3));
        let spread = format!("{short}\n{}", long.replace(": ", ":\n"));
        assert_eq!(too_long(&spread, 24, &Shape::Lines), Some(2));
    }
}
