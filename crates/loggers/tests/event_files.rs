//! Event files, read by a reader of their own: slow, obvious, and with nothing
//! of the writer in it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use olora_loggers::EventFile;

/// CRC-32C, a bit at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let is_odd = crc & 1 == 1;
            crc >>= 1;
            if is_odd {
                crc ^= 0x82f6_3b78;
            }
        }
    }
    !crc
}

/// As `TFRecord` has it: rotated by 15 bits to the right, and a constant added.
fn masked(bytes: &[u8]) -> u32 {
    let crc = crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The records of a file, each with its two checksums as they should be.
fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(n);
        *bytes = rest;
        taken
    }
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let length = take(&mut bytes, 8);
        assert_eq!(number(take(&mut bytes, 4)), masked(length), "of the length");
        let length = u64::from_le_bytes(length.try_into().unwrap());
        let record = take(&mut bytes, length as usize);
        assert_eq!(number(take(&mut bytes, 4)), masked(record), "of the record");
        records.push(record.to_vec());
    }
    records
}

/// A value in a message of protobuf.
#[derive(Clone, Debug, PartialEq)]
enum Field {
    Number(u64),
    Bits64(u64),
    Bytes(Vec<u8>),
    Bits32(u32),
}

/// The fields of a message by their numbers, in order.
fn message(bytes: &[u8]) -> Vec<(u64, Field)> {
    fn varint(bytes: &[u8], at: &mut usize) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[*at];
            *at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let (mut at, mut fields) = (0, Vec::new());
    while at < bytes.len() {
        let key = varint(bytes, &mut at);
        let field = match key & 7 {
            0 => Field::Number(varint(bytes, &mut at)),
            1 => {
                at += 8;
                Field::Bits64(u64::from_le_bytes(bytes[at - 8..at].try_into().unwrap()))
            }
            2 => {
                let length = varint(bytes, &mut at) as usize;
                at += length;
                Field::Bytes(bytes[at - length..at].to_vec())
            }
            5 => {
                at += 4;
                Field::Bits32(u32::from_le_bytes(bytes[at - 4..at].try_into().unwrap()))
            }
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

/// The first field of a number.
fn field(fields: &[(u64, Field)], number: u64) -> Option<Field> {
    let found = fields.iter().find(|(at, _)| *at == number);
    found.map(|(_, field)| field.clone())
}

fn inner(fields: &[(u64, Field)], number: u64) -> Vec<(u64, Field)> {
    match field(fields, number) {
        Some(Field::Bytes(bytes)) => message(&bytes),
        other => panic!("field {number} is {other:?}"),
    }
}

fn text(fields: &[(u64, Field)], number: u64) -> String {
    match field(fields, number) {
        Some(Field::Bytes(bytes)) => String::from_utf8(bytes).unwrap(),
        other => panic!("field {number} is {other:?}"),
    }
}

fn step(event: &[(u64, Field)]) -> u64 {
    match field(event, 2) {
        Some(Field::Number(step)) => step,
        None => 0,
        other => panic!("{other:?}"),
    }
}

fn events(path: &Path) -> Vec<Vec<(u64, Field)>> {
    let records = records(&fs::read(path).unwrap());
    records.iter().map(|record| message(record)).collect()
}

/// Tags and values of the scalars in an event.
fn scalars(event: &[(u64, Field)]) -> Vec<(String, f32)> {
    let values = inner(event, 5).into_iter().map(|(_, value)| match value {
        Field::Bytes(bytes) => message(&bytes),
        other => panic!("{other:?}"),
    });
    values
        .map(|value| match field(&value, 2) {
            Some(Field::Bits32(bits)) => (text(&value, 1), f32::from_bits(bits)),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn the_checksum_is_the_published_one() {
    // RFC 3720, B.4.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn values_are_in_the_file_as_soon_as_they_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let directory = directory.path().join("made/for it");
    let mut file = EventFile::begin(&directory, 0).unwrap();
    let values = [
        ("train/loss".to_owned(), 2.062_5),
        ("train/learning_rate".to_owned(), 2e-4),
        ("memory/peak_bytes".to_owned(), 12_345_678_901.0),
    ];
    file.scalars(300, &values).unwrap();
    // The file is still open: this is what is left if the process is killed now.
    let events = events(file.path());
    assert_eq!(events.len(), 2);
    assert_eq!(text(&events[0], 3), "brain.Event:2");
    assert_eq!(step(&events[1]), 300);
    let expected = values.map(|(tag, value)| (tag, value as f32));
    assert_eq!(scalars(&events[1]), expected);
    let Some(Field::Bits64(bits)) = field(&events[1], 1) else {
        panic!("no time");
    };
    let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let times = before.as_secs_f64()..=after.as_secs_f64();
    assert!(times.contains(&f64::from_bits(bits)), "{times:?}");
}

#[test]
fn texts_are_those_of_the_text_plugin() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = EventFile::begin(directory.path(), 0).unwrap();
    file.text(7, "samples/1", "Wo wohnt Zora? Übermorgen.")
        .unwrap();
    let event = &events(file.path())[1];
    let value = inner(&inner(event, 5), 1);
    assert_eq!(text(&value, 1), "samples/1");
    assert_eq!(text(&inner(&inner(&value, 9), 1), 1), "text");
    let tensor = inner(&value, 8);
    assert_eq!(field(&tensor, 1), Some(Field::Number(7)), "DT_STRING");
    assert_eq!(
        field(&tensor, 2),
        Some(Field::Bytes(Vec::new())),
        "one value"
    );
    assert_eq!(text(&tensor, 8), "Wo wohnt Zora? Übermorgen.");
}

#[test]
fn a_session_that_follows_takes_back_the_steps_that_it_makes_again() {
    let directory = tempfile::tempdir().unwrap();
    let first = EventFile::begin(directory.path(), 6).unwrap();
    assert_eq!(
        events(first.path()).len(),
        1,
        "there was nothing to take back"
    );
    let second = EventFile::begin(directory.path(), 6).unwrap();
    let third = EventFile::begin(directory.path(), 0).unwrap();
    for (file, expected) in [(&second, 6), (&third, 0)] {
        let events = events(file.path());
        let status = field(&inner(&events[1], 7), 1);
        assert_eq!(
            (step(&events[1]), status),
            (expected, Some(Field::Number(1)))
        );
    }
    // Readers go through them by name.
    assert!(first.path() < second.path() && second.path() < third.path());
}

#[test]
fn a_newer_file_of_another_machine_is_still_read_before() {
    let directory = tempfile::tempdir().unwrap();
    // Of a machine whose clock is ahead.
    let other = directory
        .path()
        .join("events.out.tfevents.3000000000.zz.9.9");
    fs::write(&other, []).unwrap();
    let file = EventFile::begin(directory.path(), 1).unwrap();
    assert!(file.path() > other.as_path(), "{}", file.path().display());
}
