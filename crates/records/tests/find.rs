//! From words to files.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use olora_records::find;

fn found(world: &World, what: &str) -> Vec<String> {
    let prefix = world.path("");
    let files = find(&format!("{}{what}", prefix.display())).unwrap();
    files
        .iter()
        .map(|file| file.strip_prefix(&prefix).unwrap().display().to_string())
        .collect()
}

fn refused(world: &World, what: &str) -> String {
    let prefix = world.path("").display().to_string();
    let error = find(&format!("{prefix}{what}")).unwrap_err();
    error.to_string().replace(&prefix, "")
}

#[test]
fn a_directory_stands_for_its_data_files() {
    let world = World::new();
    for name in [
        "set/b.jsonl",
        "set/a.JSONL.gz",
        "set/c.csv.zst",
        "set/d.parquet",
        "set/.hidden.jsonl",
        "set/README.md",
        "set/LICENSE.txt",
        "set/x.jsonl.lock",
        "set/dataset_info.json",
        "set/state.json",
        "set/script.py",
        "set/more/e.jsonl",
    ] {
        world.write(name, "x");
    }
    assert_eq!(
        found(&world, "set"),
        [
            "set/a.JSONL.gz",
            "set/b.jsonl",
            "set/c.csv.zst",
            "set/d.parquet"
        ]
    );
    assert_eq!(found(&world, "set/"), found(&world, "set"));
}

#[test]
fn a_directory_that_cannot_be_meant_is_refused() {
    let world = World::new();
    world.write("empty/script.py", "x");
    let error = refused(&world, "empty");
    assert!(
        error.starts_with("empty: no data file is in it: these end in .jsonl, .ndjson, "),
        "{error}"
    );
    world.write("above/data/a.parquet", "x");
    let error = refused(&world, "above");
    assert!(
        error.contains("Its directories `data` are not looked into"),
        "{error}"
    );

    world.write("splits/train.jsonl", "x");
    world.write("splits/test.jsonl", "x");
    let error = refused(&world, "splits");
    assert!(
        error.contains("files of several splits (test, train)"),
        "{error}"
    );
    assert_eq!(found(&world, "splits/train*"), ["splits/train.jsonl"]);

    world.write("mixed/a.jsonl", "x");
    world.write("mixed/b.xlsx", "x");
    let error = refused(&world, "mixed");
    assert!(
        error.contains("it holds files that are not read: `b.xlsx`"),
        "{error}"
    );

    world.write("saved/data-00000-of-00001.arrow", "x");
    world.write("saved/state.json", "x");
    let error = refused(&world, "saved");
    assert!(
        error.contains("Arrow files") && error.contains("to_parquet"),
        "{error}"
    );
}

#[test]
fn a_pattern_stands_for_what_it_matches() {
    let world = World::new();
    for name in [
        "a/one.jsonl",
        "a/two.jsonl",
        "a/two.csv",
        "a/README.md",
        "a/.three.jsonl",
        "a/b/four.jsonl",
        "a/b/c/five.jsonl",
    ] {
        world.write(name, "x");
    }
    for (pattern, expected) in [
        ("a/*.jsonl", &["a/one.jsonl", "a/two.jsonl"][..]),
        ("a/t?o.*", &["a/two.csv", "a/two.jsonl"]),
        ("a/{one,two}.jsonl", &["a/one.jsonl", "a/two.jsonl"]),
        ("a/[o]ne.jsonl", &["a/one.jsonl"]),
        ("a/*", &["a/one.jsonl", "a/two.csv", "a/two.jsonl"]),
        ("a/*/*.jsonl", &["a/b/four.jsonl"]),
        (
            "a/**/*.jsonl",
            &[
                "a/b/c/five.jsonl",
                "a/b/four.jsonl",
                "a/one.jsonl",
                "a/two.jsonl",
            ],
        ),
        ("*/b/**/f*.jsonl", &["a/b/c/five.jsonl", "a/b/four.jsonl"]),
        ("a/.th*", &["a/.three.jsonl"]),
    ] {
        assert_eq!(found(&world, pattern), expected, "{pattern}");
    }
    assert_eq!(
        refused(&world, "a/*.parquet"),
        "a/*.parquet: no file matches: nothing like `*.parquet` is in a"
    );
    let error = refused(&world, "z/*.parquet");
    assert!(error.contains("there is no directory z"), "{error}");
    let error = refused(&world, "a/[.jsonl");
    assert!(error.contains("not a pattern"), "{error}");
}

#[test]
fn a_name_that_is_there_is_no_pattern() {
    let world = World::new();
    world.write("a[1].jsonl", "x");
    world.write("a1.jsonl", "x");
    assert_eq!(found(&world, "a[1].jsonl"), ["a[1].jsonl"]);
    assert!(refused(&world, "nowhere.jsonl").starts_with("cannot read nowhere.jsonl: "));
}
