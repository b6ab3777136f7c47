//! Tokens that a model's embedding has no row for, and files of a checkpoint that
//! do not agree on what ends a text.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::fs;

use common::{CHATML, World};
use olora_data::{DataOptions, Padding, Tokenizer, load_files};
use serde_json::{Value, json};

/// Rows of the tokenizer of a [`World`] before tokens are added.
const ROWS: usize = 4 + 256 + 1;

impl World {
    /// Adds special tokens behind the others.
    fn with_tokens(template: Option<&str>, tokens: &[&str]) -> Self {
        let world = Self::new(template);
        let file = world.path("tokenizer.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        for (i, token) in tokens.iter().enumerate() {
            let added = json!({"id": ROWS + i, "content": token, "single_word": false, "lstrip": false,
                               "rstrip": false, "normalized": false, "special": true});
            json["added_tokens"].as_array_mut().unwrap().push(added);
        }
        world.write("tokenizer.json", &json);
        world
    }

    /// Files of JSON lines.
    fn files(&self, files: &[(&str, &[Value])]) -> Vec<std::path::PathBuf> {
        let write = |(name, records): &(&str, &[Value])| {
            let lines: Vec<String> = records.iter().map(Value::to_string).collect();
            fs::write(self.path(name), lines.join("\n")).unwrap();
            self.path(name)
        };
        files.iter().map(write).collect()
    }

    fn loaded(&self, files: &[(&str, &[Value])], options: &DataOptions) -> Result<usize, String> {
        let tokenizer = self.tokenizer().with_rows(ROWS);
        let samples = load_files(&self.files(files), &tokenizer, options, None);
        let directory = format!("{}/", self.dir.path().display());
        samples
            .map(|samples| samples.samples.len())
            .map_err(|error| error.to_string().replace(&directory, ""))
    }
}

fn pair(prompt: &str, completion: &str) -> Value {
    json!({"prompt": prompt, "completion": completion})
}

#[test]
fn tokens_beyond_the_embedding_are_told_and_allowed_where_nothing_uses_them() {
    let world = World::with_tokens(None, &["<a>", "<b>", "<c>", "<d>", "<e>"]);
    let tokenizer = world.tokenizer();
    assert_eq!(tokenizer.note_of_rows(), None);
    let tokenizer = tokenizer.with_rows(ROWS);
    let note = tokenizer.note_of_rows().unwrap();
    for part in [
        "5 of the tokenizer's 266 tokens lie beyond the 261 rows",
        "`<a>` (261), `<b>` (262), `<c>` (263) and 2 more",
        "model.resize_embeddings",
    ] {
        assert!(note.contains(part), "{note}");
    }
    assert!(!note.contains("Is this the tokenizer"), "{note}");
    let records = [pair("a", "b"), pair("c", "d")];
    let loaded = world.loaded(&[("a.jsonl", &records)], &DataOptions::default());
    assert_eq!(loaded, Ok(2));
    let enough = world.tokenizer().with_rows(ROWS + 5);
    assert_eq!(enough.note_of_rows(), None);
    let one = world
        .tokenizer()
        .with_rows(ROWS + 4)
        .note_of_rows()
        .unwrap();
    assert!(
        one.contains("1 of the tokenizer's 266 tokens lies beyond"),
        "{one}"
    );
    let other = world.tokenizer().with_rows(100).note_of_rows().unwrap();
    assert!(
        other.contains("Is this the tokenizer of this checkpoint?"),
        "{other}"
    );
}

#[test]
fn a_sample_with_such_a_token_is_refused_with_the_token_and_the_record() {
    let world = World::with_tokens(None, &["<a>", "<b>"]);
    let good = [pair("a", "b"), pair("c", "d")];
    let bad = [pair("a", "b"), pair("c", "d <b>")];
    let files: [(&str, &[Value]); 2] = [("good.jsonl", &good), ("bad.jsonl", &bad)];
    let error = world.loaded(&files, &DataOptions::default()).unwrap_err();
    for part in [
        "bad.jsonl, record 2 (line 2): the token `<b>` (262) is used",
        "only 261 rows",
        "model.resize_embeddings = true",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn what_is_cut_off_is_not_used() {
    let world = World::with_tokens(None, &["<a>"]);
    let records = [pair("abc", "defg<a>")];
    let cut = DataOptions {
        max_length: 7,
        ..DataOptions::default()
    };
    assert_eq!(world.loaded(&[("a.jsonl", &records)], &cut), Ok(1));
    let whole = world.loaded(&[("a.jsonl", &records)], &DataOptions::default());
    assert!(whole.unwrap_err().contains("record 1"), "cut at 512");
    // Text goes on in the next block.
    let text = [json!({"text": "abc"}), json!({"text": "abcdefghij<a>"})];
    let error = world.loaded(&[("a.jsonl", &text)], &cut).unwrap_err();
    assert!(error.contains("record 2"), "{error}");
}

#[test]
fn prompts_with_such_a_token_are_refused() {
    let world = World::with_tokens(None, &["<a>"]);
    let tokenizer = world.tokenizer().with_rows(ROWS);
    assert!(tokenizer.encode_prompt("abc").is_ok());
    let error = tokenizer.encode_prompt("a<a>c").unwrap_err().to_string();
    assert!(error.contains("`<a>` (261)"), "{error}");
}

#[test]
fn padding_is_with_a_token_that_has_a_row() {
    let world = World::with_tokens(None, &["<pad>"]);
    world.write(
        "tokenizer_config.json",
        &json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}),
    );
    let tokenizer = world.tokenizer();
    assert_eq!(tokenizer.pad_id() as usize, ROWS);
    assert_eq!(Padding::from(tokenizer.with_rows(ROWS).pad_id()).id, 1);
}

#[test]
fn stops_that_the_model_cannot_write_are_told_and_refused_if_there_are_no_others() {
    let world = World::with_tokens(None, &["<a>", "<b>"]);
    let tokenizer = world.tokenizer().with_rows(ROWS);
    assert_eq!(tokenizer.check_stops(&[1]).unwrap(), None);
    let note = tokenizer.check_stops(&[1, 262]).unwrap().unwrap();
    assert!(
        note.contains("`<b>` (262) too, which the model never writes"),
        "{note}"
    );
    let error = tokenizer.check_stops(&[261, 262]).unwrap_err().to_string();
    assert!(error.contains("`<a>` (261), `<b>` (262)"), "{error}");
}

fn opened(world: &World) -> Tokenizer {
    Tokenizer::from_dir(world.dir.path()).unwrap()
}

#[test]
fn a_template_that_ends_turns_with_no_token_is_told_with_the_pieces() {
    assert_eq!(opened(&World::new(Some(CHATML))).notes(), [""; 0]);
    // Instruction models whose turns end with nothing, or with end-of-sequence.
    let plain = CHATML.replace("<|im_end|>", "");
    assert_eq!(opened(&World::new(Some(&plain))).notes(), [""; 0]);
    let eos = CHATML.replace("<|im_end|>", "</s>");
    assert_eq!(opened(&World::new(Some(&eos))).notes(), [""; 0]);

    let split = opened(&World::new(Some(&CHATML.replace("<|im_end|>", "<|fin|>"))));
    let pieces = split.encode("<|fin|>", false).unwrap();
    assert_eq!(pieces.len(), 7);
    let pieces: Vec<String> = pieces.iter().map(u32::to_string).collect();
    let [note] = split.notes() else {
        panic!("{:?}", split.notes())
    };
    for part in [
        "`<|fin|>`, which is no token",
        "7 of them",
        &pieces.join(", "),
        "`</s>` (1)",
    ] {
        assert!(note.contains(part), "{note}");
    }
}

#[test]
fn files_that_end_a_text_differently_are_told() {
    let world = World::new(Some(CHATML));
    world.write("config.json", &json!({"eos_token_id": 1}));
    world.write("generation_config.json", &json!({"eos_token_id": [3, 1]}));
    assert_eq!(opened(&world).notes(), [""; 0]);
    world.write("config.json", &json!({"eos_token_id": 3}));
    let tokenizer = opened(&world);
    let [note] = tokenizer.notes() else {
        panic!("{:?}", tokenizer.notes())
    };
    for part in [
        "tokenizer_config.json with `</s>` (1), config.json with `<|im_end|>` (3)",
        "Training writes `</s>` (1) after an answer",
        "a turn of the chat template ends with `<|im_end|>` (3)",
        "generation stops at any",
    ] {
        assert!(note.contains(part), "{note}");
    }
    assert_eq!(tokenizer.stop_ids(), [1, 3]);
}

#[test]
fn an_end_that_is_no_token_gives_way_to_the_models() {
    let world = World::new(None);
    world.write("tokenizer_config.json", &json!({"eos_token": "<end>"}));
    world.write("config.json", &json!({"eos_token_id": 1}));
    let tokenizer = opened(&world);
    let [note] = tokenizer.notes() else {
        panic!("{:?}", tokenizer.notes())
    };
    for part in [
        "eos_token `<end>` is not in tokenizer.json",
        "of config.json in training and generation, `</s>` (1)",
    ] {
        assert!(note.contains(part), "{note}");
    }
    assert_eq!(
        (tokenizer.eos_id(), tokenizer.stop_ids()),
        (Some(1), &[1][..])
    );
}
