//! JSON in all the ways in which people write it.

#![allow(clippy::unwrap_used)]

mod common;

use common::{World, lines, values};

const ALDER: &str = r#"{"prompt":"Where is Alder?","completion":"In Oxmere."}"#;
const ZORA: &str = r#"{"prompt":"And Zora?","completion":"In Thornby."}"#;

#[test]
fn objects_are_records_however_they_are_laid_out() {
    let world = World::new();
    let pretty = "{\n  \"prompt\": \"Where is Alder?\",\n  \"completion\": \"In Oxmere.\"\n}";
    for (text, expected_lines, kind) in [
        (format!("{ALDER}\n{ZORA}\n"), [1, 2], "JSON Lines"),
        (format!("{ALDER}\r\n\r\n \n{ZORA}"), [1, 4], "JSON Lines"),
        (format!("{ALDER} {ZORA}"), [1, 1], "JSON Lines"),
        (format!("{ALDER}{ZORA}\n"), [1, 1], "JSON Lines"),
        (format!("{pretty}\n{ZORA}\n"), [1, 5], "JSON Lines"),
        (
            format!("\n\n{pretty}\n\n{pretty}\n").replacen("And", "", 1),
            [3, 8],
            "JSON Lines",
        ),
        (format!("[{ALDER}, {ZORA}]"), [1, 1], "JSON"),
        (format!("\n[\n  {pretty},\n  {ZORA}\n]\n\n"), [3, 7], "JSON"),
        (
            format!("{{\"version\": \"1\", \"data\": [\n{ALDER},\n{ZORA}]}}"),
            [2, 3],
            "JSON",
        ),
        (
            format!(
                "{{\"features\": [{{\"name\": \"prompt\"}}], \"rows\": [\n{{\"row_idx\": 0, \"row\": {ALDER}, \"truncated_cells\": []}},\n{{\"row_idx\": 1, \"row\": {ZORA}, \"truncated_cells\": []}}], \"num_rows_total\": 2}}"
            ),
            [2, 3],
            "JSON",
        ),
    ] {
        for name in [
            "a.jsonl",
            "a.json",
            "a.ndjson",
            "a.txt",
            "a",
            "a.jsonl.txt",
            "a.csv",
        ] {
            let records = world.read(name, &text).unwrap();
            assert_eq!(lines(&records), expected_lines.map(Some), "{name}: {text}");
            assert_eq!(values(&records)[0], ALDER, "{name}: {text}");
            assert_eq!(records[1].at.record, 2);
            if !text.starts_with("{\"features") || name.starts_with("a.j") {
                assert_eq!(world.kind(name, &text), kind, "{name}: {text}");
            }
        }
    }
}

#[test]
fn one_object_is_one_record_or_columns() {
    let world = World::new();
    let pretty = "{\n  \"prompt\": \"Where is Alder?\",\n  \"completion\": \"In Oxmere.\"\n}\n";
    assert_eq!(world.values("a.json", pretty), [ALDER]);
    let turns = r#"{"messages": [{"role": "user", "content": "Zora?"}, {"role": "assistant", "content": "Thornby."}]}"#;
    assert_eq!(world.values("a.json", turns).len(), 1);

    let columns = r#"{"prompt": ["Where is Alder?", "And Zora?"], "completion": ["In Oxmere.", "In Thornby."]}"#;
    assert_eq!(world.values("a.json", columns), [ALDER, ZORA]);
    let indexed = r#"{"prompt": {"0": "Where is Alder?", "1": "And Zora?"}, "completion": {"0": "In Oxmere.", "1": "In Thornby."}}"#;
    assert_eq!(world.values("a.json", indexed), [ALDER, ZORA]);
    // The same objects on lines of a file are records.
    assert_eq!(
        world
            .values("a.jsonl", format!("{columns}\n{columns}"))
            .len(),
        2
    );
}

#[test]
fn values_stay_what_they_are() {
    let world = World::new();
    for text in [
        r#"{"a":"x\u0000y","b":[],"c":{}}"#,
        "{\"a\":\"x\u{2028}y\u{85}\"}",
        r#"{"a":18446744073709551615,"b":-9223372036854775808,"c":0.1,"d":null,"e":true}"#,
        r#"{"z":1,"a":2,"m":3}"#,
        r#"{"a":"😀","b":"\"\\"}"#,
    ] {
        assert_eq!(world.values("a.jsonl", text), [text]);
        assert_eq!(world.values("a.json", format!("[{text}]")), [text]);
    }
}

#[test]
fn what_is_malformed_is_named_with_line_and_column() {
    let world = World::new();
    let expected = " (expected a list of objects, or one object per line)";
    for (name, text, error) in [
        (
            "a.jsonl",
            format!("{ALDER}\n\n{{\"prompt\": \"Q\" \"completion\": \"A\"}}\n{ALDER}"),
            "a.jsonl, line 3, column 16: malformed JSON: expected `,` or `}`",
        ),
        (
            "a.json",
            format!("[{ALDER},\n{ALDER}\n{ALDER}]"),
            "a.json, line 3, column 1: malformed JSON: expected `,` or `]`",
        ),
        // A line that is not finished is wrong itself, not the next one.
        (
            "a.jsonl",
            format!("{ALDER}\n{{\"prompt\": \"Q\"\n{ALDER}\n"),
            "a.jsonl, line 2, column 14: malformed JSON: EOF while parsing an object",
        ),
        (
            "a.jsonl",
            format!("{ALDER}\n{{\"prompt\": \"Q\n{ALDER}\n"),
            "a.jsonl, line 2, column 13: malformed JSON: EOF while parsing a string",
        ),
        (
            "a.jsonl",
            format!("{ALDER}\n{{\"prompt\": \"Q"),
            "a.jsonl, line 2, column 13: malformed JSON: EOF while parsing a string",
        ),
        (
            "a.json",
            "{\n  \"prompt\": \"Where\nis Alder?\"\n}".to_owned(),
            "a.json, line 2, column 19: malformed JSON: control character (\\u0000-\\u001F) found while parsing a string\
             ; a line break in a text is written \\n",
        ),
        (
            "a.json",
            format!("[\n{ALDER},\n"),
            "a.json, line 3, column 1: malformed JSON: the file ends where a value was expected",
        ),
        (
            "a.jsonl",
            r#"{"prompt": "\ud83d"}"#.to_owned(),
            "a.jsonl, line 1, column 19: malformed JSON: unexpected end of hex escape; is it half of a character, such as \\ud83d alone? Take it out, or write \\ufffd",
        ),
        (
            "a.jsonl",
            format!("{ALDER}\n{{\"prompt\": \"a\", \"id\": 1, \"prompt\": \"b\"}}"),
            "a.jsonl, line 2, column 33: malformed JSON: the key `prompt` is there twice in one object, of which one would be lost",
        ),
        (
            "a.json",
            "[{\"a\": [{\"role\": 1,\n\"role\": 2}]}]".to_owned(),
            "a.json, line 2, column 6: malformed JSON: the key `role` is there twice in one object, of which one would be lost",
        ),
        (
            "a.json",
            format!("[{ALDER}]\n[{ZORA}]"),
            "a.json, line 2, column 1: malformed JSON: something follows what the file begins with",
        ),
        (
            "a.json",
            "Alder".to_owned(),
            "a.json, line 1, column 1: malformed JSON: expected value",
        ),
    ] {
        assert_eq!(
            world.error(name, &text),
            format!("{error}{expected}"),
            "{text}"
        );
    }
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(1000), "]".repeat(1000));
    let error = world.error("a.jsonl", deep);
    assert!(
        error.contains("line 1, column 133: malformed JSON: recursion limit exceeded"),
        "{error}"
    );
}

#[test]
fn what_people_put_between_records_is_named_as_that() {
    let world = World::new();
    for (text, words) in [
        (
            format!("{ALDER},\n{ALDER}\n"),
            "have no commas between them",
        ),
        (format!("// Oxmere\n{ALDER}\n"), "JSON has no comments"),
        (
            format!("{ALDER}\n\u{feff}{ALDER}\n"),
            "is it a byte order mark?",
        ),
        (
            "{\"prompt\": \"Zora \\ud83d\"}".to_owned(),
            "is it half of a character",
        ),
        (
            "{\"prompt\": \"\\ud83d and Zora of Thornby\"}".to_owned(),
            "is it half of a character",
        ),
    ] {
        let error = world.error("a.jsonl", text.clone());
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn what_python_prints_is_named_as_that() {
    let world = World::new();
    let expected = " (expected a list of objects, or one object per line)";
    for (name, text, error) in [
        (
            "a.jsonl",
            format!("{ALDER}\n{{\"prompt\": NaN}}\n"),
            "a.jsonl, line 2, column 12: malformed JSON: expected value; NaN and None are not JSON: write null, or leave the key out",
        ),
        (
            "a.json",
            "[\n{\"prompt\": -Infinity}]".to_owned(),
            "a.json, line 2, column 13: malformed JSON: invalid number; Infinity is not JSON: write a number",
        ),
        (
            "a.jsonl",
            "{'prompt': 'Zora?'}".to_owned(),
            "a.jsonl, line 1, column 2: malformed JSON: key must be a string; single quotes are Python's: write it with `json.dumps`",
        ),
        (
            "a.txt",
            "{'prompt': 'Zora?'}".to_owned(),
            "a.txt, line 1, column 2: malformed JSON: key must be a string; single quotes are Python's: write it with `json.dumps`",
        ),
        (
            "a.jsonl",
            "{\"prompt\": True}".to_owned(),
            "a.jsonl, line 1, column 12: malformed JSON: expected value; True and False are Python's: write it with `json.dumps`",
        ),
    ] {
        assert_eq!(
            world.error(name, &text),
            format!("{error}{expected}"),
            "{text}"
        );
    }
}

#[test]
fn what_is_no_object_is_named_with_its_line() {
    let world = World::new();
    for (text, found) in [
        ("[1]", "a list"),
        ("\"Alder\"", "a text"),
        ("7", "a number"),
        ("null", "null"),
        ("true", "a truth value"),
    ] {
        let expected = format!(
            ", record 2 (line 3): expected a JSON object such as {{\"prompt\": …, \"completion\": …}}, found {found}"
        );
        assert_eq!(
            world.error("a.jsonl", format!("{ALDER}\n\n{text}\n{ALDER}")),
            format!("a.jsonl{expected}")
        );
        assert_eq!(
            world.error("a.json", format!("[{ALDER},\n\n{text}, {ALDER}]")),
            format!("a.json{expected}")
        );
    }
}

#[test]
fn what_would_be_lost_is_named() {
    let world = World::new();
    for (text, error) in [
        (
            format!("{{\"train\": [{ALDER}], \"test\": [{ZORA}]}}"),
            "a.json: it is one object with a list of records under `train`, and beside it `test`, which would be left out: \
             write the records that are meant to a file of their own",
        ),
        (
            r#"{"prompt": ["a", "b"], "completion": ["c"]}"#.to_owned(),
            "a.json: it is one object of lists, which are read as columns, but they are not equally long: \
             `prompt` has 2, `completion` has 1",
        ),
        (
            format!(
                "{{\"rows\": [{{\"row_idx\": 0, \"row\": {ALDER}, \"truncated_cells\": [\"prompt\"]}}]}}"
            ),
            "a.json, record 1 (line 1): the hub's viewer has cut `prompt`: get the data set's Parquet files instead",
        ),
    ] {
        assert_eq!(world.error("a.json", text), error);
    }
}

#[test]
fn nothing_is_nothing() {
    let world = World::new();
    for (name, text) in [
        ("a.jsonl", ""),
        ("a.jsonl", "\n \r\n"),
        ("a.json", "[]"),
        ("a.json", "{\"data\": []}"),
        ("a.json", "{\"prompt\": [], \"completion\": []}"),
        ("a.txt", "\n \n"),
        ("a.csv", "prompt,completion\n"),
    ] {
        let records = world.read(name, text);
        // A list without an item is no list of objects.
        if text == "{\"data\": []}" || text.contains("prompt\": []") {
            assert_eq!(
                records.unwrap_err(),
                "a.json is empty: there is nothing to train on",
                "{text}"
            );
        } else {
            assert_eq!(
                records.unwrap_err(),
                format!("{name} is empty: there is nothing to train on"),
                "{text}"
            );
        }
    }
}
