//! Event files, read by a reader of their own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod reader;

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use olora_loggers::EventFile;
use reader::{Field, crc32c, events, field, inner, scalars, step, text};

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
