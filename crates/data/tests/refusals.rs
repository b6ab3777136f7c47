//! Limits that are counted, and errors that say where and what.

#![allow(clippy::unwrap_used)]

mod common;

use common::{CHATML, World};
use olora_data::{DataError, DataOptions, Format, Tokenizer, load_samples};
use serde_json::json;

#[test]
fn longer_samples_are_cut_and_counted_and_dropped_if_nothing_trained_is_left() {
    let options = DataOptions {
        max_length: 6,
        ..DataOptions::default()
    };
    // 5, 8 and 8 tokens; of the last, the first six are all prompt.
    let lines = "{\"prompt\": \"QQ\", \"completion\": \"A\"}\n\
                 {\"prompt\": \"QQ\", \"completion\": \"AAAA\"}\n\
                 {\"prompt\": \"QQQQQ\", \"completion\": \"A\"}\n";
    let data = World::new(None)
        .load_with("data.jsonl", lines, &options)
        .unwrap();
    let report = &data.report;
    assert_eq!(
        (
            report.n_records,
            report.n_samples,
            report.n_truncated,
            report.n_dropped
        ),
        (3, 2, 2, 1)
    );
    assert_eq!(
        (report.n_tokens, report.n_trained_tokens, report.longest),
        (11, 5, 8)
    );
    assert_eq!(
        data.samples.sample(1).trained,
        [false, false, false, true, true, true]
    );
    assert_eq!(
        report.to_string(),
        "3 records of prompt and completion, no template: 2 samples of 11 tokens, 5 (45 %) of them trained, the longest 8\n\
         2 samples cut to the first 6 tokens, 1 of them left out because nothing trained was within"
    );

    let last = lines.lines().last().unwrap();
    assert_eq!(
        World::new(None)
            .load_with("data.jsonl", last, &options)
            .unwrap_err(),
        "data.jsonl: none of its 1 records has anything left to train on within 6 tokens; \
         the longest has 8. Raise the maximum length"
    );
}

#[test]
fn a_bad_file_is_named_with_line_and_record() {
    let world = World::new(None);
    let good = r#"{"prompt": "Q", "completion": "A"}"#;
    for (name, text, expected) in [
        (
            "a.jsonl",
            String::new(),
            "a.jsonl is empty: there is nothing to train on",
        ),
        (
            "a.json",
            "[]".to_owned(),
            "a.json is empty: there is nothing to train on",
        ),
        (
            "a.txt",
            "\n \n".to_owned(),
            "a.txt is empty: there is nothing to train on",
        ),
        (
            "a.jsonl",
            format!("{good}\n\n{{\"prompt\": \"Q\" \"completion\": \"A\"}}\n{good}"),
            "a.jsonl, line 3, column 16: malformed JSON: expected `,` or `}` \
             (expected a list of objects, or one object per line)",
        ),
        (
            "a.json",
            format!("[{good},\n{good}\n{good}]"),
            "a.json, line 3, column 1: malformed JSON: expected `,` or `]` \
             (expected a list of objects, or one object per line)",
        ),
        (
            "a.jsonl",
            format!("{good}\n\n[1]"),
            "a.jsonl, record 2 (line 3): expected a JSON object such as {\"prompt\": …, \"completion\": …}, found a list",
        ),
        (
            "a.json",
            format!("[{good}, {{\"completion\": \"A\"}}]"),
            "a.json, record 2 (line 1): the key `prompt` is missing: prompt and completion has `prompt` and `completion` \
             (or `prompt` and `response`, `question` and `answer`, and other pairs); found `completion`",
        ),
        (
            // Of several bad records the first is named.
            "a.jsonl",
            format!("{good}\n{{\"text\": \"t\"}}\n{{\"prompt\": 1}}"),
            "a.jsonl, record 2 (line 2): the key `prompt` is missing: prompt and completion has `prompt` and \
             `completion` (or `prompt` and `response`, `question` and `answer`, and other pairs); found `text`",
        ),
        (
            "a.jsonl",
            "{\"prompt\": \"Q\", \"completion\": \"\"}".to_owned(),
            "a.jsonl: 1 of 1 records have nothing to train, more than data.max_skipped = 0.5 allows: record 1 \
             (line 1): its `completion` is empty",
        ),
    ] {
        assert_eq!(world.load(name, &text).unwrap_err(), expected);
    }
    let error = world.load("a.jsonl", r#"{"article": "Q"}"#).unwrap_err();
    assert!(
        error.starts_with("a.jsonl, record 1 (line 1): its keys (`article`) fit no known format"),
        "{error}"
    );

    std::fs::write(world.path("b.txt"), b"fine\n\xff").unwrap();
    let load = |name| {
        load_samples(
            &world.path(name),
            &world.tokenizer(),
            &DataOptions::default(),
        )
        .unwrap_err()
    };
    assert!(matches!(load("b.txt"), DataError::Records(_)));
    assert!(matches!(load("nowhere.json"), DataError::Read { .. }));
}

#[test]
fn a_byte_order_mark_is_no_character() {
    let text = "\u{feff}{\"prompt\": \"Q\", \"completion\": \"A\"}\r\n";
    assert_eq!(
        World::new(None)
            .load("data.jsonl", text)
            .unwrap()
            .samples
            .len(),
        1
    );
}

#[test]
fn a_format_asked_for_must_fit() {
    let world = World::new(Some(CHATML));
    let alpaca = DataOptions {
        format: Some(Format::Alpaca),
        ..DataOptions::default()
    };
    assert_eq!(
        world
            .load_with("a.jsonl", r#"{"prompt": "Q", "completion": "A"}"#, &alpaca)
            .unwrap_err(),
        "a.jsonl, record 1 (line 1): the key `instruction` is missing: Alpaca has `instruction`, `output` and \
         optionally `input`; found `prompt`, `completion`"
    );
    assert_eq!(
        world.load_with("a.txt", "words", &alpaca).unwrap_err(),
        "a.txt is read as plain text, because it is neither JSON, CSV nor Parquet, but the format asked for is Alpaca"
    );
    // What detection would take for Alpaca can be read as text.
    let text = DataOptions {
        format: Some(Format::Text),
        ..DataOptions::default()
    };
    let data = world
        .load_with(
            "a.jsonl",
            r#"{"instruction": "", "output": "", "text": "t"}"#,
            &text,
        )
        .unwrap();
    assert_eq!(data.samples.sample(0).len(), 3);
    let error = world
        .load_with(
            "a.txt",
            "words",
            &DataOptions {
                max_length: 1,
                ..text
            },
        )
        .unwrap_err();
    assert_eq!(
        error,
        "`maximum length` is 1, but must be at least 2: one token to read, one to predict"
    );
}

#[test]
fn chats_need_a_template_that_accepts_them() {
    let chat = json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]});
    let error = World::new(None)
        .load("a.jsonl", &chat.to_string())
        .unwrap_err();
    assert!(
        error.starts_with("a.jsonl, record 1 (line 1): the checkpoint in "),
        "{error}"
    );
    assert!(error.contains("has no chat template"), "{error}");
    let strict = World::new(Some("{{ raise_exception('no chats today') }}"));
    let error = strict.load("a.jsonl", &chat.to_string()).unwrap_err();
    assert!(
        error.contains("(line 1): chat template: invalid operation: no chats today"),
        "{error}"
    );
}

#[test]
fn a_checkpoint_without_an_end_is_refused() {
    let world = World::new(None);
    world.write(
        "tokenizer_config.json",
        &json!({"bos_token": "<s>", "eos_token": null}),
    );
    assert_eq!(
        (world.tokenizer().eos_id(), world.tokenizer().pad_id()),
        (None, 0)
    );
    let error = world
        .load("a.jsonl", r#"{"prompt": "Q", "completion": "A"}"#)
        .unwrap_err();
    assert!(
        error.contains("no end-of-sequence token is known"),
        "{error}"
    );
}

#[test]
fn a_bad_checkpoint_is_named() {
    let world = World::new(None);
    let open = || {
        Tokenizer::from_dir(world.dir.path())
            .unwrap_err()
            .to_string()
    };
    world.write("tokenizer_config.json", &json!({"eos_token": "<end>"}));
    assert!(
        open().ends_with("tokenizer_config.json: its eos_token `<end>` is not in tokenizer.json")
    );
    world.write(
        "tokenizer_config.json",
        &json!({"chat_template": [{"name": "rag", "template": ""}]}),
    );
    assert!(
        open().ends_with(
            "`chat_template` must be a string, or a list with a template named `default`"
        )
    );
    world.write("tokenizer_config.json", &json!([]));
    assert!(
        open().contains("tokenizer_config.json: invalid type: sequence"),
        "{}",
        open()
    );
    world.write("tokenizer_config.json", &json!({}));
    world.write("tokenizer.json", &json!({}));
    assert!(open().contains("tokenizer.json: "), "{}", open());
    std::fs::remove_file(world.path("tokenizer.json")).unwrap();
    assert!(open().starts_with("cannot read "), "{}", open());
}
