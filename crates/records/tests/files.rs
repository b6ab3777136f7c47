//! What a file is, its compression and its encoding.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{World, fixture, gzip, lines, records, values, zstd};
use olora_records::{RecordsError, for_each, kind};

const ALDER: &str = r#"{"prompt":"Where is Alder?","completion":"In Oxmere – café."}"#;

#[test]
fn plain_text_is_one_record() {
    let world = World::new();
    let text = "# Oxmere\r\n\n{Alder} lives there. \n";
    for name in ["a.txt", "a.md", "a", "a.rst"] {
        let records = world.read(name, text).unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].fields["text"], text);
        assert_eq!(
            records[0].at.to_string(),
            format!("{}, record 1", world.path(name).display())
        );
        assert_eq!(world.kind(name, text), "plain text");
    }
    let marked = format!("\u{feff}{text}");
    assert_eq!(world.read("a.txt", marked).unwrap()[0].fields["text"], text);
}

#[test]
fn compression_is_known_by_what_is_in_the_file() {
    let world = World::new();
    let table = "prompt,completion\nWhere is Alder?,In Oxmere – café.\n";
    for (name, text, form) in [
        ("a.jsonl.gz", format!("{ALDER}\n"), "JSON Lines"),
        ("a.jsonl.zst", format!("{ALDER}\n"), "JSON Lines"),
        ("a.jsonl", format!("{ALDER}\n"), "JSON Lines"),
        ("a", format!("{ALDER}\n"), "JSON Lines"),
        ("a.json.gz", format!("[{ALDER}]"), "JSON"),
        ("a.csv.gz", table.to_owned(), "CSV"),
        ("a.tsv.zst", table.replace(',', "\t"), "TSV"),
    ] {
        let bytes = text.as_bytes();
        assert_eq!(world.values(name, gzip(bytes)), [ALDER], "{name}");
        assert_eq!(world.values(name, zstd(bytes)), [ALDER], "{name}");
        assert_eq!(
            world.kind(name, gzip(bytes)),
            format!("{form}, compressed with gzip")
        );
        assert_eq!(
            world.kind(name, zstd(bytes)),
            format!("{form}, compressed with zstd")
        );
    }
    // Unpacked by a browser on the way, as it happens.
    assert_eq!(world.values("a.jsonl.gz", ALDER), [ALDER]);
}

#[test]
fn members_and_frames_follow_one_another() {
    let world = World::new();
    for pack in [gzip, zstd] {
        let mut bytes = pack(format!("{ALDER}\n{}", &ALDER[..20]).as_bytes());
        bytes.extend(pack(format!("{}\n", &ALDER[20..]).as_bytes()));
        assert_eq!(world.values("a.jsonl", bytes), [ALDER; 2]);
    }
}

/// Lines that do not compress away.
fn many_lines() -> String {
    let line = |i: u64| {
        let word = i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        format!(
            "{{\"prompt\":\"{word:x}\",\"completion\":\"{:x}\"}}\n",
            word.rotate_left(17)
        )
    };
    (1..=2000).map(line).collect()
}

#[test]
fn a_damaged_or_cut_off_stream_says_how_far_it_went() {
    let world = World::new();
    let text = many_lines();
    for (pack, name) in [(gzip as fn(&[u8]) -> Vec<u8>, "gzip"), (zstd, "zstd")] {
        let whole = pack(text.as_bytes());
        let cut = world.error("a.jsonl", &whole[..whole.len() / 2]);
        assert!(
            cut.starts_with(&format!(
                "a.jsonl: the {name} data are damaged or cut off after record "
            )),
            "{cut}"
        );
        assert!(
            cut.ends_with(": the file ends too early; get the file again"),
            "{cut}"
        );
        let record: usize = cut.split(' ').nth(11).unwrap().parse().unwrap();
        assert!(record < 1500, "{cut}");

        // The last bytes are a checksum (of gzip, and the length).
        let cut = world.error("a.jsonl", &whole[..whole.len() - 2]);
        assert!(cut.contains("damaged or cut off"), "{cut}");
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x10;
        let error = world.error("a.jsonl", &damaged);
        assert!(
            error.contains("damaged or cut off")
                || error.contains("malformed JSON")
                || error.contains("UTF-8"),
            "{error}"
        );
        let mut followed = whole.clone();
        followed.extend(b"Alder");
        let error = world.error("a.jsonl", followed);
        assert!(error.contains("damaged or cut off"), "{error}");
    }
    let text = gzip(b"Alder of Oxmere");
    assert!(
        world
            .error("a.txt", &text[..text.len() - 9])
            .contains("(line 1): the file ends too early")
    );
}

#[test]
fn utf16_with_its_mark_is_read() {
    let world = World::new();
    let text = format!("\u{feff}{ALDER}\r\n{ALDER}\r\n");
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for name in ["a.jsonl", "a.txt", "a.json"] {
        assert_eq!(world.values(name, &little), [ALDER; 2]);
        assert_eq!(world.values(name, &big), [ALDER; 2]);
    }
    assert_eq!(world.values("a.jsonl", gzip(&little)), [ALDER; 2]);
    assert_eq!(
        world.error("a.jsonl", &little[2..]),
        "a.jsonl is text in UTF-16 without a byte order mark: save it as UTF-8"
    );
    assert_eq!(
        world.error("a.jsonl", &little[..little.len() - 1]),
        "a.jsonl, line 2: not valid UTF-16, as which its byte order mark declares it; save the file as UTF-8"
    );
}

#[test]
fn another_encoding_is_named_with_its_line() {
    let world = World::new();
    let latin = |text: &str| text.chars().map(|c| c as u8).collect::<Vec<_>>();
    for (name, text) in [
        ("a.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"café\"}\n"),
        ("a.json", "[{\"prompt\": \"a\"},\n{\"prompt\": \"café\"}]\n"),
        ("a.csv", "prompt\nin the café\n"),
        ("a.txt", "fine\ncaf\u{ff}"),
    ] {
        assert_eq!(
            world.error(name, latin(text)),
            format!(
                "{name}, line 2: not valid UTF-8 (an older encoding such as Latin-1, or a damaged file); save the file as UTF-8"
            )
        );
    }
}

#[test]
fn what_is_not_read_is_refused_by_what_it_is() {
    let world = World::new();
    let mut tensors = 20_u64.to_le_bytes().to_vec();
    tensors.extend(b"{\"weight\": {}}      \0\0\0\0");
    let stream = fs::read(fixture("stream.arrow")).unwrap();
    let file = fs::read(fixture("file.arrow")).unwrap();
    let arrow = "to_parquet(";
    for (name, bytes, found, remedy) in [
        (
            "a.arrow",
            stream.as_slice(),
            "an Arrow stream, as `datasets` saves it",
            arrow,
        ),
        ("a.arrow", &file, "an Arrow file", arrow),
        (
            "a.xlsx",
            b"PK\x03\x04\x14\0\x06\0[Content_Types].xml",
            "an Excel or OpenDocument table",
            "CSV in UTF-8",
        ),
        (
            "a.csv",
            b"PK\x03\x04\x14\0\x06\0xl/workbook.xml",
            "an Excel table",
            "CSV in UTF-8",
        ),
        (
            "a.jsonl",
            b"PK\x03\x04\x14\0train.jsonl",
            "a zip archive",
            "unpack it",
        ),
        (
            "a.jsonl",
            b"7z\xbc\xaf\x27\x1c\0\x04",
            "a 7z archive",
            "unpack it",
        ),
        (
            "a.jsonl.bz2",
            b"BZh91AY&SY\xff\0",
            "compressed with bzip2",
            "gzip or zstd",
        ),
        (
            "a.jsonl.xz",
            b"\xfd7zXZ\0\0",
            "compressed with xz",
            "gzip or zstd",
        ),
        ("a", b"SQLite format 3\0", "a SQLite database", "JSON Lines"),
        ("a.pdf", b"%PDF-1.7\n", "a PDF document", ".txt"),
        (
            "a.bin",
            b"\x80\x04\x95\x0a\0\0\0",
            "a pickle of Python",
            "JSON Lines",
        ),
        ("a.json", &tensors, "a safetensors file", "tensors"),
        ("a.json", b"GGUF\x03\0\0\0", "a GGUF file", "tensors"),
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a pointer of Git LFS",
            "git lfs pull",
        ),
        (
            "a.jsonl",
            b"<!DOCTYPE html>\n<html>",
            "a web page",
            "the file itself",
        ),
        (
            "a.txt",
            b"Alder\0\x01\x02\x03",
            "a binary file of unknown kind",
            "are read",
        ),
        (
            "a.parquet",
            b"Alder lives in Oxmere.",
            "no Parquet file, although its name says so",
            "PAR1",
        ),
        ("a.jsonl", b"\xff\xfe\0\0{\0\0\0", "text in UTF-32", "UTF-8"),
    ] {
        let error = world.error(name, bytes);
        assert!(error.starts_with(&format!("{name} is {found}")), "{error}");
        assert!(error.contains(remedy), "{error}");
    }
}

#[test]
fn what_is_packed_is_named() {
    let world = World::new();
    let mut tar = vec![b'a'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert_eq!(
        world.error("a.txt", &tar),
        "a.txt is a tar archive: unpack it, and name the files in it"
    );
    let packed = gzip(&tar);
    assert!(
        world
            .error("a.tar.gz", packed)
            .starts_with("a.tar.gz is a tar archive")
    );
    let twice = gzip(&gzip(b"Alder"));
    assert!(
        world
            .error("a.gz", twice)
            .starts_with("a.gz is compressed twice")
    );
    let parquet = gzip(&fs::read(fixture("questions-none.parquet")).unwrap());
    assert!(
        world
            .error("a.parquet.gz", parquet)
            .starts_with("a.parquet.gz is a Parquet file within gzip")
    );
}

#[test]
fn prose_may_begin_with_letters_that_are_magic_elsewhere() {
    let world = World::new();
    for text in [
        "ORC and elf – said Zora",
        "GIF89 was a year",
        "BZh",
        "RIFF and raff",
    ] {
        assert_eq!(world.read("a.txt", text).unwrap().len(), 1, "{text}");
    }
}

#[test]
fn what_cannot_be_opened_is_named() {
    let world = World::new();
    fs::create_dir(world.path("inside")).unwrap();
    let error = records(&world.path("inside")).unwrap_err();
    assert_eq!(
        world.words(&error),
        "inside is a directory: name a file in it"
    );
    let error = kind(&world.path("nowhere.json")).unwrap_err();
    assert!(matches!(error, RecordsError::Read { .. }));
    assert!(
        world
            .words(&error)
            .starts_with("cannot read nowhere.json: ")
    );
}

#[test]
fn a_file_that_changes_is_refused() {
    let world = World::new();
    let path = world.write("a.jsonl", format!("{ALDER}\n"));
    let result = for_each::<RecordsError>(&path, &mut |_| {
        fs::write(&path, format!("{ALDER}\n{ALDER}\n")).unwrap();
        Ok(())
    });
    let error = result.unwrap_err();
    assert!(matches!(error, RecordsError::Changed(_)), "{error}");
}

#[test]
fn the_sink_stops_at_once_with_its_own_error() {
    #[derive(Debug, PartialEq)]
    enum Mine {
        Enough(usize),
        Records(String),
    }
    impl From<RecordsError> for Mine {
        fn from(error: RecordsError) -> Self {
            Self::Records(error.to_string())
        }
    }

    let world = World::new();
    let columns = r#"{"a": [1, 2, 3, 4]}"#;
    let object = r#"{"a": 1}"#;
    let cases = [
        ("a.jsonl", format!("{object}\n{object}\nbad")),
        ("b.jsonl", format!("{object}{object} bad")),
        ("a.json", format!("[{object}, {object}, bad")),
        (
            "b.json",
            format!("{{\"data\": [{object}, {object}, {object}]}}"),
        ),
        ("c.json", columns.to_owned()),
        ("a.csv", "a,b\n1,2\n3,4\n5".to_owned()),
    ];
    let mut paths: Vec<_> = cases
        .iter()
        .map(|(name, text)| world.write(name, text))
        .collect();
    paths.push(fixture("questions-snappy.parquet"));
    for path in paths {
        let mut seen = Vec::new();
        let result = for_each::<Mine>(&path, &mut |record| {
            seen.push(record.at.record);
            if seen.len() == 2 {
                Err(Mine::Enough(2))
            } else {
                Ok(())
            }
        });
        assert_eq!(result, Err(Mine::Enough(2)), "{}", path.display());
        assert_eq!(seen, [1, 2]);
    }
    let empty = world.write("empty.txt", "");
    let result = for_each::<Mine>(&empty, &mut |_| Ok(()));
    assert!(matches!(result, Err(Mine::Records(_))));
}

#[test]
fn records_across_chunks_are_whole() {
    let world = World::new();
    // More than a chunk of the reader, with characters of several bytes.
    let line = |i: usize| {
        format!(
            "{{\"prompt\":\"{}\",\"id\":{i}}}",
            "Öxmere🚀".repeat(i % 700)
        )
    };
    let all: Vec<_> = (0..700).map(line).collect();
    let text = all.join("\n");
    for bytes in [
        text.clone().into_bytes(),
        gzip(text.as_bytes()),
        zstd(text.as_bytes()),
    ] {
        let records = world.read("a.jsonl", bytes).unwrap();
        assert_eq!(values(&records), all);
        assert_eq!(lines(&records)[699], Some(700));
    }
    let list = format!("[{}]", all.join(",\n"));
    let records = world.read("a.json", list).unwrap();
    assert_eq!(values(&records), all);
    assert_eq!(lines(&records)[699], Some(700));
}
