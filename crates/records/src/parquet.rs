//! Parquet: a row group at a time, a few rows of each column at a time.

use std::{
    any::Any,
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
};

use parquet::{
    basic::ConvertedType,
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row, reader::TreeBuilder},
    schema::types::Type,
};
use serde_json::{Map, Number, Value};

use crate::{
    Halt, Out, RecordsError,
    error::{clipped, quoted},
};

/// How many values of a column are decoded at once. The crate's own 1024 rows of
/// long texts would be a lot.
const BATCH: usize = 64;
/// The deepest nesting of columns, as `serde_json` has it for JSON.
const DEEPEST: usize = 127;

pub(crate) fn read(file: File, out: &mut Out<'_>) -> Result<(), Halt> {
    let reader = caught(|| SerializedFileReader::new(file)).map_err(|why| fail(&why, out))?;
    let metadata = reader.metadata();
    let schema = metadata.file_metadata().schema_descr_ptr();
    check(schema.root_schema(), 0).map_err(|problem| RecordsError::Parquet {
        path: out.path(),
        problem,
    })?;
    for i in 0..metadata.num_row_groups() {
        let rows = caught(|| {
            let group = reader.get_row_group(i)?;
            let builder = TreeBuilder::new().with_batch_size(BATCH);
            builder.as_iter(schema.clone(), &*group)
        });
        let mut rows = rows.map_err(|why| fail(&why, out))?;
        while let Some(row) = caught(|| rows.next().map(|row| row.map(object)).transpose())
            .map_err(|why| fail(&why, out))?
        {
            let fields = row.map_err(|problem| RecordsError::Record {
                at: out.next(None),
                problem,
            })?;
            out.give(fields, None)?;
        }
    }
    Ok(())
}

/// Runs something of the `parquet` crate. It returns errors for most of what can
/// be wrong with a file, but asserts some of it (levels, lists, types that it
/// does not know), so that a damaged file may make it panic. It holds no lock
/// and no state beyond its own readers, which are dropped after a panic.
fn caught<T>(run: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| match error {
            ParquetError::General(text) | ParquetError::EOF(text) | ParquetError::NYI(text) => text,
            other => other.to_string(),
        }),
        Err(panic) => Err(message(&*panic)),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "the decoder gave up".to_owned())
}

fn fail(why: &str, out: &Out<'_>) -> Halt {
    let place = match out.n_records {
        0 => String::new(),
        n => format!(" after row {n}"),
    };
    if why.contains("Disabled feature") {
        return RecordsError::Parquet {
            path: out.path(),
            problem: format!(
                "the Parquet file uses a compression that is not read ({}): write it with zstd or snappy instead",
                why.rsplit(' ').next().unwrap_or_default()
            ),
        }
        .into();
    }
    let what = if why.contains("not yet implemented") || why.contains("not implemented") {
        "uses what is not supported"
    } else {
        "is damaged or cut off"
    };
    // Some of the crate's errors have whole values in them.
    let why: String = why.chars().take(300).collect();
    RecordsError::Parquet {
        path: out.path(),
        problem: format!("the Parquet file {what}{place}: {why}"),
    }
    .into()
}

/// Whether each column has a name of its own, and a type that can be read.
fn check(field: &Type, depth: usize) -> Result<(), String> {
    let name = || quoted([field.name()]);
    if depth > DEEPEST {
        return Err(format!("the column {} is nested too deep", name()));
    }
    if field.is_primitive() {
        return match field.get_basic_info().converted_type() {
            ConvertedType::INTERVAL => Err(format!(
                "the column {} is of intervals of time, which are not read: leave it out",
                name()
            )),
            _ => Ok(()),
        };
    }
    let fields = field.get_fields();
    if fields.is_empty() {
        return Err(if depth == 0 {
            "the Parquet file has no columns".to_owned()
        } else {
            format!(
                "the column {} is a struct without fields: leave it out",
                name()
            )
        });
    }
    for (i, child) in fields.iter().enumerate() {
        if fields[..i].iter().any(|other| other.name() == child.name()) {
            return Err(format!(
                "the column {} is there twice, of which one would be lost",
                quoted([child.name()])
            ));
        }
        check(child, depth + 1)?;
    }
    Ok(())
}

fn object(row: Row) -> Result<Map<String, Value>, String> {
    let columns = row.into_columns().into_iter();
    columns
        .map(|(name, field)| Ok((name, value(&field)?)))
        .collect()
}

fn value(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float16(value) => float(f64::from(*value)),
        Field::Float(value) => float(f64::from(*value)),
        Field::Double(value) => float(*value),
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => [("bytes".to_owned(), bytes.len().into())]
                .into_iter()
                .collect::<Map<_, _>>()
                .into(),
        },
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => field.to_string().into(),
        Field::Group(row) => row
            .get_column_iter()
            .map(|(name, field)| Ok((name.clone(), value(field)?)))
            .collect::<Result<Map<_, _>, String>>()?
            .into(),
        Field::ListInternal(list) => list
            .elements()
            .iter()
            .map(value)
            .collect::<Result<Vec<_>, _>>()?
            .into(),
        Field::MapInternal(map) => {
            let mut fields = Map::new();
            for (key, field) in map.entries() {
                let key = match value(key)? {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                if fields.contains_key(&key) {
                    return Err(format!(
                        "the key `{}` is there twice in a map, of which one would be lost",
                        clipped(&key)
                    ));
                }
                fields.insert(key, value(field)?);
            }
            fields.into()
        }
    })
}

/// JSON has no word for what is not finite: it is left to whoever uses the value.
fn float(value: f64) -> Value {
    Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number)
}
