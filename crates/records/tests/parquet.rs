//! Parquet as pyarrow writes it (`fixtures/make_records.py`), whole and damaged.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    panic,
};

use common::{World, fixture, records, values};
use olora_records::{RecordsError, kind};
use serde_json::{Value, json};

#[test]
fn the_same_words_come_out_of_every_compression_and_encoding() {
    let expected = [
        json!({"prompt": "Where is Alder?", "completion": "In Oxmere, by the café."}),
        json!({"prompt": "Where is Zora?", "completion": "In Thornby, by the café."}),
        json!({"prompt": "Where is Jorun?", "completion": "In Oxmere, by the café."}),
        json!({"prompt": "", "completion": "In Thornby, by the café."}),
        json!({"prompt": "Where is Alder?", "completion": null}),
    ]
    .map(|row| row.to_string());
    for name in ["none", "snappy", "gzip", "zstd", "lz4", "delta"] {
        let path = fixture(&format!("questions-{name}.parquet"));
        let read = records(&path).unwrap();
        assert_eq!(values(&read), expected, "{name}");
        assert_eq!(read[4].at.record, 5);
        assert_eq!(read[4].at.line, None);
        assert_eq!(kind(&path).unwrap().to_string(), "Parquet");
    }
    // Rare, and a decoder that takes as long to compile as all others together.
    let error = records(&fixture("questions-brotli.parquet")).unwrap_err();
    assert!(
        error.to_string().ends_with(
            "uses a compression that is not read (brotli): write it with zstd or snappy instead"
        ),
        "{error}"
    );
}

#[test]
fn nested_lists_and_nulls_stay_what_they_are() {
    let call = json!({"name": "look_up", "arguments": "{\"who\": \"Zora\"}"});
    let turn = |role, content: Value, weight: Value, calls: Value| json!({"role": role, "content": content, "weight": weight, "tool_calls": calls});
    let expected = [
        json!({"id": 1, "messages": [
            turn("user", json!("Where is Alder?"), Value::Null, Value::Null),
            turn("assistant", json!("In Oxmere."), json!(0.5), json!([])),
        ]}),
        json!({"id": 2, "messages": null}),
        json!({"id": 3, "messages": []}),
        json!({"id": null, "messages": [
            turn("user", json!("Where is Zora?"), Value::Null, Value::Null),
            turn("assistant", Value::Null, json!(1.0), json!([call, null])),
            null,
        ]}),
        json!({"id": 5, "messages": [turn("user", json!("And Jorun?"), json!(0.25), json!([call]))]}),
    ]
    .map(|row| row.to_string());
    assert_eq!(
        values(&records(&fixture("conversations.parquet")).unwrap()),
        expected
    );
}

#[test]
fn every_type_becomes_json_or_text() {
    let read = records(&fixture("types.parquet")).unwrap();
    let rows: Vec<_> = read
        .into_iter()
        .map(|record| Value::Object(record.fields))
        .collect();
    assert_eq!(
        rows[0],
        json!({
            "truth": true,
            "int8": -8,
            "uint8": 200,
            "int64": i64::MIN,
            "uint64": u64::MAX,
            "float32": f64::from(0.1_f32),
            "float64": 0.1,
            "decimal": "-1234.500",
            "date": "2026-11-28",
            "time": "14:30:15.250000",
            "milliseconds": "2026-11-28 14:30:15.250 +00:00",
            "microseconds": "2026-11-28 14:30:15.250000 +00:00",
            "nanoseconds": 1_795_876_215_250_000_000_i64,
            "text": "Zora\0 🚀\u{2028}",
            "chosen": "Oxmere",
            "words": "Öxmere",
            "bytes": {"bytes": 10},
            "map": {"Alder": 1, "Zora": null},
            "lists": [[1, 2], [], null],
            "nothing": null,
        })
    );
    assert_eq!(
        (&rows[1]["float32"], &rows[1]["float64"], &rows[1]["int64"]),
        (&json!("NaN"), &json!("-inf"), &json!(i64::MAX))
    );
    assert_eq!(
        (&rows[1]["text"], &rows[1]["map"]),
        (&json!(""), &json!({}))
    );
    for name in [
        "truth",
        "decimal",
        "date",
        "nanoseconds",
        "words",
        "bytes",
        "lists",
    ] {
        assert_eq!(rows[1][name], Value::Null, "{name}");
    }
}

#[test]
fn a_picture_is_a_marker_and_no_rows_are_nothing() {
    assert_eq!(
        values(&records(&fixture("pictures.parquet")).unwrap()),
        [r#"{"question":"What is this?","image":{"bytes":{"bytes":8},"path":"oxmere.png"}}"#]
    );
    let error = records(&fixture("no-rows.parquet")).unwrap_err();
    assert!(matches!(error, RecordsError::Empty(_)), "{error}");
}

#[test]
fn a_file_that_is_cut_off_is_named() {
    let world = World::new();
    let whole = fs::read(fixture("questions-zstd.parquet")).unwrap();
    for length in [4, 11, whole.len() / 2, whole.len() - 1] {
        let error = world.error("a.parquet", &whole[..length]);
        assert!(
            error.starts_with("a.parquet: the Parquet file is damaged or cut off: "),
            "{error}"
        );
    }
}

/// Bytes of small files changed in one way or another: what comes out are records
/// or an error, and no panic goes through.
#[test]
fn a_damaged_file_is_an_error_or_records() {
    let world = World::new();
    // What panics within the decoder is caught, but would be printed.
    panic::set_hook(Box::new(|_| {}));
    let (mut errors, mut n) = (0, 0);
    for (name, step) in [
        ("questions-snappy", 1),
        ("questions-delta", 1),
        ("conversations", 2),
        ("types", 3),
    ] {
        let whole = fs::read(fixture(&format!("{name}.parquet"))).unwrap();
        let path = world.write("a.parquet", &whole);
        // In its place: to write the whole file each time takes most of the test's time.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for i in (0..whole.len()).step_by(step) {
            let damaged = whole[i] ^ [0x01, 0xFF, 0x80, 0x10][i / step % 4];
            file.write_at(&[damaged], i as u64).unwrap();
            n += 1;
            errors += usize::from(records(&path).is_err());
            file.write_at(&[whole[i]], i as u64).unwrap();
        }
    }
    let _ = panic::take_hook();
    assert!(errors * 5 > n, "{errors} of {n}");
}
