//! CSV and TSV.

#![allow(clippy::unwrap_used)]

mod common;

use common::{World, lines, values};

const ALDER: &str = r#"{"prompt":"Where is Alder?","completion":"In Oxmere."}"#;

#[test]
fn rows_are_records_of_texts() {
    let world = World::new();
    for (name, text) in [
        ("a.csv", "prompt,completion\nWhere is Alder?,In Oxmere.\n"),
        (
            "a.csv",
            "\u{feff}prompt, completion\r\nWhere is Alder?,\"In Oxmere.\"\r\n",
        ),
        ("a.csv", "prompt;completion\nWhere is Alder?;In Oxmere."),
        (
            "a.csv",
            "\"prompt\"\t\"completion\"\nWhere is Alder?\tIn Oxmere.\n",
        ),
        ("a.tsv", "prompt\tcompletion\nWhere is Alder?\tIn Oxmere.\n"),
        (
            "a.TAB",
            "prompt\tcompletion\r\n\r\nWhere is Alder?\tIn Oxmere.\r\n\r\n",
        ),
    ] {
        assert_eq!(world.values(name, text), [ALDER], "{text}");
    }
}

#[test]
fn quotes_line_breaks_and_empty_cells_are_kept() {
    let world = World::new();
    let text = "prompt,completion,id\n\
                \"Where, said \"\"Zora\"\",\nis Alder?\",\"In\r\nOxmere.\",007\n\
                ,\"\", a 5\" rule \n\
                \"\"\"\",\"a\nb\n\nc\",x\n\
                Jorun,1,2\n";
    let records = world.read("a.csv", text).unwrap();
    assert_eq!(
        values(&records),
        [
            r#"{"prompt":"Where, said \"Zora\",\nis Alder?","completion":"In\r\nOxmere.","id":"007"}"#,
            r#"{"prompt":"","completion":"","id":" a 5\" rule "}"#,
            r#"{"prompt":"\"","completion":"a\nb\n\nc","id":"x"}"#,
            r#"{"prompt":"Jorun","completion":"1","id":"2"}"#,
        ]
    );
    assert_eq!(lines(&records), [2, 5, 6, 10].map(Some));
    // The same with Windows' line ends.
    let records = world
        .read("a.csv", text.replace('\n', "\r\n").replace("\r\r", "\r"))
        .unwrap();
    assert_eq!(lines(&records), [2, 5, 6, 10].map(Some));
}

#[test]
fn what_is_malformed_is_named_with_its_line() {
    let world = World::new();
    for (text, error) in [
        (
            "prompt,completion\nAlder?,Oxmere\n\nZora, of Thornby?,Thornby\n",
            "a.csv, line 4: the row has 3 fields, but the header has 2: `prompt`, `completion`. \
             A field that holds a comma or a line break is put in double quotes",
        ),
        (
            "prompt;completion\nAlder?\n",
            "a.csv, line 2: the row has 1 field, but the header has 2: `prompt`, `completion`. \
             A field that holds a semicolon or a line break is put in double quotes",
        ),
        (
            ",prompt,completion\n0,Alder?,Oxmere\n",
            "a.csv, line 1: column 1 of the header has no name: if it is the index of pandas, write it with `to_csv(…, index=False)`",
        ),
        (
            "prompt,completion,\nAlder?,Oxmere,\n",
            "a.csv, line 1: column 3 of the header has no name: name it, or take it out",
        ),
        (
            "prompt,text,prompt \na,b,c\n",
            "a.csv, line 1: the header has the name `prompt` twice: rename one of the columns",
        ),
        (
            "prompt,completion\nAlder?,\"In Oxmere.\nZora?,In Thornby.\n",
            "a.csv, line 2: a quote is opened in this line and never closed",
        ),
        (
            "prompt,completion\nAlder?,Oxmere\n\"Zora,\n said \"hello\"\",Thornby\n",
            "a.csv, line 4: text follows the quote that closes a field (opened in line 3); \
             a quote within a quoted field is written twice (\"\")",
        ),
    ] {
        assert_eq!(world.error("a.csv", text), error);
    }
    let prose = "Where is Alder on a day like this, said Zora to Jorun, who had not been in Thornby for a year and a day or more,x\na,b,c,d\n";
    assert!(
        world
            .error("a.csv", prose.replace(", ", " "))
            .starts_with("a.csv, line 1: the first line must be a header with the names of the columns, but its field 1 is \"Where is Alder"),
    );
}
