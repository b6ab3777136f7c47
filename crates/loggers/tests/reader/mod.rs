//! A reader of event files: slow, obvious, and with nothing of the writer in it.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{fs, path::Path};

/// CRC-32C, a bit at a time.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
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
pub(crate) enum Field {
    Number(u64),
    Bits64(u64),
    Bytes(Vec<u8>),
    Bits32(u32),
}

/// The fields of a message by their numbers, in order.
pub(crate) fn message(bytes: &[u8]) -> Vec<(u64, Field)> {
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
pub(crate) fn field(fields: &[(u64, Field)], number: u64) -> Option<Field> {
    let found = fields.iter().find(|(at, _)| *at == number);
    found.map(|(_, field)| field.clone())
}

/// A message in a message.
pub(crate) fn inner(fields: &[(u64, Field)], number: u64) -> Vec<(u64, Field)> {
    match field(fields, number) {
        Some(Field::Bytes(bytes)) => message(&bytes),
        other => panic!("field {number} is {other:?}"),
    }
}

/// A text in a message.
pub(crate) fn text(fields: &[(u64, Field)], number: u64) -> String {
    match field(fields, number) {
        Some(Field::Bytes(bytes)) => String::from_utf8(bytes).unwrap(),
        other => panic!("field {number} is {other:?}"),
    }
}

/// An event's step.
pub(crate) fn step(event: &[(u64, Field)]) -> u64 {
    match field(event, 2) {
        Some(Field::Number(step)) => step,
        None => 0,
        other => panic!("{other:?}"),
    }
}

/// The events of a file, in order.
pub(crate) fn events(path: &Path) -> Vec<Vec<(u64, Field)>> {
    let records = records(&fs::read(path).unwrap());
    records.iter().map(|record| message(record)).collect()
}

/// Tags and values of the scalars in an event.
pub(crate) fn scalars(event: &[(u64, Field)]) -> Vec<(String, f32)> {
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
