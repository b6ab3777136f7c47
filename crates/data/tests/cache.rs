//! The cache of tokenised files changes how long loading takes and nothing else.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::PathBuf};

use common::{CHATML, World};
use olora_data::{DataOptions, Format, Samples, TokenCache, load_samples_cached};
use serde_json::json;

const LINES: &str = "{\"prompt\": \"QQ\", \"completion\": \"A\"}\n\
                     {\"prompt\": \"Q\", \"completion\": \"AAAA\"}\n";

fn cache(world: &World) -> TokenCache {
    TokenCache {
        directory: world.path("cache"),
        min_bytes: 0,
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
    assert!(!load(&world, "a.txt", &options).unwrap().from_cache);
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
    let first = load(&world, "a.jsonl", &options).unwrap();
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

    fs::write(world.path("bad.jsonl"), format!("{LINES}{{\"prompt\": 1}}")).unwrap();
    load(&world, "bad.jsonl", &options).unwrap_err();
    assert!(files(&world).is_empty());

    let dated = World::new(Some(&format!("{{{{ strftime_now('%Y') }}}}{CHATML}")));
    fs::write(dated.path("a.jsonl"), LINES).unwrap();
    load(&dated, "a.jsonl", &options).unwrap();
    assert!(files(&dated).is_empty());
}
