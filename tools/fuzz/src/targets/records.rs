//! A data file of any form. The first line of an input is the end of the file's
//! name, such as `jsonl`, `csv.gz` or `txt utf-16le`; the rest, compressed or
//! encoded as that says, is the file.

use std::{fs, io::Write, path::Path};

use olora_records::{Record, RecordsError, find, for_each, kind};
use serde_json::{Map, Value};

use crate::parts::{put, scratch, twice};

/// Records that are kept, of files with many.
const RECORDS: usize = 10_000;

/// Reads an input's records, writes them as JSON and reads them again.
pub fn run(data: &[u8]) {
    let directory = scratch();
    let (name, bytes) = file(data);
    let path = put(directory.path(), &format!("oxmere.{name}"), &bytes);
    let read = twice("a data file", || records(&path), PartialEq::eq);
    let _ = kind(&path).map(|kind| kind.to_string());
    let _ = find(&path.to_string_lossy());
    let _ = find(&directory.path().to_string_lossy());
    let Ok(read) = read else { return };
    assert!(!read.is_empty(), "a file without records is an error");
    for (i, record) in read.iter().enumerate() {
        assert_eq!((record.at.record, &record.at.path), (i + 1, &path));
    }
    let fields: Vec<_> = read.iter().map(|record| &record.fields).collect();
    let text = serde_json::to_vec(&fields).expect("JSON values");
    let written = put(directory.path(), "again.json", &text);
    let again = records(&written).expect("what was read can be written and read again");
    assert_eq!(read.len(), again.len(), "records were lost on the way");
    for (one, other) in read.iter().zip(&again) {
        assert!(
            same(&one.fields, &other.fields),
            "record {} is another one when it is written and read again",
            one.at.record
        );
    }
}

fn records(path: &Path) -> Result<Vec<Record>, RecordsError> {
    let mut all = Vec::new();
    for_each::<RecordsError>(path, &mut |record| {
        if all.len() < RECORDS {
            all.push(record);
        }
        Ok(())
    })?;
    Ok(all)
}

/// The end of the name, and the bytes of the file.
pub(crate) fn file(data: &[u8]) -> (String, Vec<u8>) {
    const ENDS: [&str; 12] = [
        "jsonl",
        "ndjson",
        "json",
        "csv",
        "tsv",
        "tab",
        "parquet",
        "txt",
        "md",
        "arrow",
        "jsonlines",
        "pq",
    ];
    let end = data.iter().position(|&byte| byte == b'\n');
    let (head, body) = match end {
        Some(end) if end <= 40 => (&data[..end], &data[end + 1..]),
        _ => (&b""[..], data),
    };
    let head = String::from_utf8_lossy(head);
    let (name, encoding) = head.split_once(' ').unwrap_or((&head, ""));
    let (form, compression) = name.split_once('.').unwrap_or((name, ""));
    let form = ENDS
        .into_iter()
        .find(|known| *known == form)
        .unwrap_or("jsonl");
    let body = match encoding {
        "utf-16le" | "utf-16be" => {
            let order = |unit: u16| match encoding {
                "utf-16le" => unit.to_le_bytes(),
                _ => unit.to_be_bytes(),
            };
            let text = String::from_utf8_lossy(body).into_owned();
            let units = std::iter::once(0xfeff).chain(text.encode_utf16());
            units.flat_map(order).collect()
        }
        _ => body.to_vec(),
    };
    match compression {
        "gz" => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(&body).expect("memory");
            (format!("{form}.gz"), out.finish().expect("memory"))
        }
        "zst" => {
            let out = zstd::encode_all(body.as_slice(), 1).expect("memory");
            (format!("{form}.zst"), out)
        }
        _ => (form.to_owned(), body),
    }
}

/// Writes a data file for others: what [`run`] reads.
#[cfg_attr(not(feature = "data"), allow(dead_code))]
pub(crate) fn write(directory: &Path, data: &[u8]) -> std::path::PathBuf {
    let (name, bytes) = file(data);
    let path = directory.join(format!("oxmere.{name}"));
    fs::write(&path, bytes).expect("a place for files");
    path
}

/// Equal but for the last digit of floats, which `serde_json` reads as the
/// nearest or the next.
fn same(one: &Map<String, Value>, other: &Map<String, Value>) -> bool {
    fn values(one: &Value, other: &Value) -> bool {
        match (one, other) {
            (Value::Array(one), Value::Array(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(a, b)| values(a, b))
            }
            (Value::Object(one), Value::Object(other)) => same(one, other),
            (Value::Number(one), Value::Number(other)) if one.is_f64() && other.is_f64() => {
                let (one, other) = (one.as_f64().unwrap_or(0.0), other.as_f64().unwrap_or(0.0));
                (one - other).abs() <= one.abs() * 1e-15 || one == other
            }
            _ => one == other,
        }
    }
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|((a, one), (b, other))| a == b && values(one, other))
}
