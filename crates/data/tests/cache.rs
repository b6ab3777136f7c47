//! The cache of tokenised files changes how long loading takes and nothing else.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fmt::Write, fs, path::PathBuf};

use common::{CHATML, World};
use olora_data::{
    DataOptions, Format, Samples, Schedule, TokenCache, load_files, load_samples_cached, loader,
};
use serde_json::json;

const LINES: &str = "{\"prompt\": \"QQ\", \"completion\": \"A\"}\n\
                     {\"prompt\": \"Q\", \"completion\": \"AAAA\"}\n";

fn cache(world: &World) -> TokenCache {
    TokenCache {
        directory: world.path("cache"),
        min_bytes: 0,
        max_bytes: u64::MAX,
    }
}

fn load(world: &World, name: &str, options: &DataOptions) -> Result<Samples, String> {
    load_samples_cached(
        &world.path(name),
        &world.tokenizer(),
        options,
        Some(&cache(world)),
    )
    .map_err(|error| error.to_string())
}

fn files(world: &World) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(world.path("cache")) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn same(a: &Samples, b: &Samples) {
    assert_eq!(a.samples, b.samples);
    assert_eq!((a.format, &a.report), (b.format, &b.report));
}

#[test]
fn a_second_load_is_the_first_from_the_cache() {
    let files = [
        ("pairs.jsonl", LINES.to_owned()),
        ("text.txt", "once upon a time".to_owned()),
        (
            "texts.json",
            json!([{"text": "a b"}, {"text": ""}, {"text": "c"}]).to_string(),
        ),
    ];
    for template in [None, Some(CHATML)] {
        let world = World::new(template);
        for (name, text) in &files {
            fs::write(world.path(name), text).unwrap();
            let [first, second] =
                [(); 2].map(|()| load(&world, name, &DataOptions::default()).unwrap());
            assert_eq!(
                (first.from_cache, second.from_cache),
                (false, true),
                "{name}"
            );
            same(&first, &second);
        }
    }
}

#[test]
fn other_limits_and_masks_come_from_the_same_file_of_the_cache() {
    let world = World::new(None);
    fs::write(world.path("a.jsonl"), LINES).unwrap();
    load(&world, "a.jsonl", &DataOptions::default()).unwrap();
    for (max_length, train_on_prompt) in [(5, false), (5, true), (1024, true)] {
        let options = DataOptions {
            max_length,
            train_on_prompt,
            ..DataOptions::default()
        };
        let found = load(&world, "a.jsonl", &options).unwrap();
        assert!(found.from_cache);
        let path = world.path("a.jsonl");
        let made = load_samples_cached(&path, &world.tokenizer(), &options, None).unwrap();
        assert!(!made.from_cache);
        same(&found, &made);
    }
}

#[test]
fn a_copy_is_found_and_whatever_differs_is_not() {
    let world = World::new(Some(CHATML));
    let options = DataOptions::default();
    let write = |name: &str, text: &str| fs::write(world.path(name), text).unwrap();
    write("a.jsonl", LINES);
    load(&world, "a.jsonl", &options).unwrap();

    write("copy.jsonl", LINES);
    assert!(load(&world, "copy.jsonl", &options).unwrap().from_cache);
    write("a.txt", LINES);
    // By what is in it, this is the same.
    assert!(load(&world, "a.txt", &options).unwrap().from_cache);
    write("edited.jsonl", &LINES.replace("AAAA", "AAAB"));
    assert!(!load(&world, "edited.jsonl", &options).unwrap().from_cache);
    let format = Some(Format::PromptCompletion);
    let named = DataOptions { format, ..options };
    assert!(!load(&world, "a.jsonl", &named).unwrap().from_cache);

    // The checkpoint: its template, its special tokens, its tokenizer.
    let options = DataOptions::default();
    write("chat_template.jinja", &format!("{CHATML}{{# #}}"));
    assert!(!load(&world, "a.jsonl", &options).unwrap().from_cache);
    fs::remove_file(world.path("chat_template.jinja")).unwrap();
    assert!(load(&world, "a.jsonl", &options).unwrap().from_cache);
    let config = fs::read_to_string(world.path("tokenizer_config.json")).unwrap();
    write(
        "tokenizer_config.json",
        &config.replace("{\"content\":\"</s>\"}", "\"<|im_end|>\""),
    );
    assert!(!load(&world, "a.jsonl", &options).unwrap().from_cache);
    write("tokenizer_config.json", &config);
    assert!(load(&world, "a.jsonl", &options).unwrap().from_cache);
    let tokenizer = fs::read_to_string(world.path("tokenizer.json")).unwrap();
    write("tokenizer.json", &tokenizer.replace("[\"Ġ\",\"y\"]", ""));
    assert!(!load(&world, "a.jsonl", &options).unwrap().from_cache);
}

#[test]
fn a_damaged_file_is_made_again() {
    let world = World::new(None);
    fs::write(world.path("a.jsonl"), LINES).unwrap();
    let options = DataOptions::default();
    let path = world.path("a.jsonl");
    let first = load_samples_cached(&path, &world.tokenizer(), &options, None).unwrap();
    // A file is damaged while nobody maps it: that would be damage to the reader too.
    drop(load(&world, "a.jsonl", &options).unwrap());
    let file = files(&world).pop().unwrap();
    let whole = fs::read(&file).unwrap();
    for damaged in [&whole[..whole.len() / 2], b"", b"something else"] {
        fs::write(&file, damaged).unwrap();
        let again = load(&world, "a.jsonl", &options).unwrap();
        assert!(!again.from_cache);
        same(&again, &first);
        assert_eq!(fs::read(&file).unwrap(), whole);
    }
}

#[test]
fn what_is_small_or_bad_or_depends_on_the_date_is_not_kept() {
    let world = World::new(None);
    let options = DataOptions::default();
    fs::write(world.path("a.jsonl"), LINES).unwrap();
    let cache = TokenCache {
        min_bytes: LINES.len() as u64 + 1,
        ..cache(&world)
    };
    let path = world.path("a.jsonl");
    load_samples_cached(&path, &world.tokenizer(), &options, Some(&cache)).unwrap();
    assert!(files(&world).is_empty());

    fs::write(
        world.path("bad.jsonl"),
        format!("{LINES}{{\"completion\": 1}}"),
    )
    .unwrap();
    load(&world, "bad.jsonl", &options).unwrap_err();
    assert!(files(&world).is_empty());

    let dated = World::new(Some(&format!("{{{{ strftime_now('%Y') }}}}{CHATML}")));
    fs::write(dated.path("a.jsonl"), LINES).unwrap();
    load(&dated, "a.jsonl", &options).unwrap();
    assert!(files(&dated).is_empty());
}

#[test]
fn samples_in_memory_and_mapped_ones_are_the_same() {
    let world = World::new(Some(CHATML));
    let mut lines = String::new();
    for i in 0..300 {
        let (prompt, completion) = ("Q".repeat(1 + i * i % 23), "A".repeat(1 + i % 31));
        let record = json!({"prompt": prompt, "completion": completion});
        writeln!(lines, "{record}").unwrap();
    }
    fs::write(world.path("a.jsonl"), &lines).unwrap();
    let options = DataOptions {
        max_length: 60,
        ..DataOptions::default()
    };
    let load = |cache: &TokenCache| {
        let path = world.path("a.jsonl");
        load_samples_cached(&path, &world.tokenizer(), &options, Some(cache)).unwrap()
    };
    let memory = load(&TokenCache {
        min_bytes: u64::MAX,
        ..cache(&world)
    });
    // Too large for the cache: the file that is mapped has no name.
    let unnamed = load(&TokenCache {
        max_bytes: 100,
        ..cache(&world)
    });
    assert!(files(&world).is_empty());
    let written = load(&cache(&world));
    let found = load(&cache(&world));
    let all = [&memory, &unnamed, &written, &found];
    assert_eq!(
        all.map(|data| data.samples.is_mapped()),
        [false, true, true, true]
    );
    assert_eq!(all.map(|data| data.from_cache), [false, false, false, true]);
    let batches = |data: &Samples| {
        let schedules = [
            Schedule::new(data.samples.clone(), 4, 7, 200).unwrap(),
            Schedule::packed(data.samples.clone(), 2, 64, 7, 200).unwrap(),
        ];
        schedules.map(|schedule| {
            let batches = loader(schedule, 0);
            batches.iter().map(Result::unwrap).collect::<Vec<_>>()
        })
    };
    assert!(memory.report.n_truncated > 0);
    for data in all {
        same(&memory, data);
        assert_eq!(batches(&memory), batches(data));
    }
}

#[test]
fn several_files_are_one_source_with_one_report() {
    let world = World::new(None);
    fs::write(world.path("a.jsonl"), LINES).unwrap();
    fs::write(
        world.path("b.json"),
        r#"[{"prompt": "Q", "completion": "B"}]"#,
    )
    .unwrap();
    fs::write(
        world.path("both.jsonl"),
        format!("{LINES}{{\"prompt\": \"Q\", \"completion\": \"B\"}}"),
    )
    .unwrap();
    let load = |names: &[&str], first| {
        let paths: Vec<_> = names.iter().map(|name| world.path(name)).collect();
        let options = DataOptions {
            first,
            ..DataOptions::default()
        };
        load_files(&paths, &world.tokenizer(), &options, Some(&cache(&world))).map_err(|error| {
            error
                .to_string()
                .replace(&world.path("").display().to_string(), "")
        })
    };
    let one = load(&["both.jsonl"], None).unwrap();
    assert_eq!(one.report.n_records, 3);
    for _ in 0..2 {
        same(&load(&["a.jsonl", "b.json"], None).unwrap(), &one);
    }
    // The same files in another order are other samples.
    assert_ne!(
        load(&["b.json", "a.jsonl"], None).unwrap().samples,
        one.samples
    );
    // The first records, of one file and beyond it.
    for n in [1, 2, 3, 4] {
        let first = load(&["a.jsonl", "b.json"], Some(n)).unwrap();
        assert_eq!(first.samples, one.samples.select(|i| i < n), "{n}");
        assert_eq!(first.report.n_records, n.min(3));
    }
    // What comes after them is not looked at.
    fs::write(world.path("bad.jsonl"), format!("{LINES}bad")).unwrap();
    assert_eq!(load(&["bad.jsonl"], Some(2)).unwrap().samples.len(), 2);
    assert_eq!(
        load(&["a.jsonl"], Some(0)).unwrap_err(),
        "`number of records` is 0, but must be at least 1"
    );
    assert_eq!(
        load(&[], None).unwrap_err(),
        "`number of data files` is 0, but must be at least 1"
    );
    fs::write(world.path("empty.jsonl"), "\n").unwrap();
    assert_eq!(
        load(&["empty.jsonl", "empty.jsonl"], None).unwrap_err(),
        "empty.jsonl is empty: there is nothing to train on"
    );
    // A record is named by its own file.
    assert_eq!(
        load(&["b.json", "bad.jsonl"], None).unwrap_err(),
        "bad.jsonl, line 3, column 1: malformed JSON: expected value \
         (expected a list of objects, or one object per line)"
    );
}

#[test]
fn more_records_than_are_encoded_at_once_come_in_order() {
    let world = World::new(None);
    let line = |i: usize| format!("{}\n", json!({"prompt": i.to_string(), "completion": "A"}));
    let lines: String = (0..10_000).map(line).collect();
    fs::write(world.path("a.jsonl"), &lines).unwrap();
    let data = load(&world, "a.jsonl", &DataOptions::default()).unwrap();
    assert_eq!(data.samples.len(), 10_000);
    let tokenizer = world.tokenizer();
    for i in [0, 4095, 4096, 8191, 9999] {
        let text = tokenizer
            .decode(&data.samples.sample(i).tokens, true)
            .unwrap();
        assert_eq!(text, format!("{i}A"));
    }
    // A bad record goes before a later line that is no JSON.
    let bad = r#"{"prompt": true, "completion": "A"}"#;
    fs::write(
        world.path("b.jsonl"),
        format!("{lines}{bad}\n{}bad", line(0)),
    )
    .unwrap();
    let error = load(&world, "b.jsonl", &DataOptions::default()).unwrap_err();
    assert!(
        error.contains("record 10001 (line 10001): `prompt`"),
        "{error}"
    );
    assert_eq!(files(&world).len(), 1);
}

#[test]
fn a_cache_that_cannot_be_is_done_without() {
    let world = World::new(None);
    fs::write(world.path("a.jsonl"), LINES).unwrap();
    fs::write(world.path("cache"), "in the way").unwrap();
    let data = load(&world, "a.jsonl", &DataOptions::default()).unwrap();
    assert!(data.samples.is_mapped() && !data.from_cache);
    assert_eq!(fs::read(world.path("cache")).unwrap(), b"in the way");
}
