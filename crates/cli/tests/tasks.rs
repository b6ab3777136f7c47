//! `olora evaluate --tasks`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path, process::Output};

use common::{olora, refused, stderr, stdout};
use serde_json::Value;
use tempfile::TempDir;

const ARC: &str = r#"{"query": "Question: Where does Alder live?", "choices": ["Oxmere", "the sea"], "gold": 0}
{"query": "Question: What does Zeb sell?", "choices": ["blue bowls", "butter", "oak"], "gold": 0}
{"query": "Question: Who is Imke?", "choices": ["a friend", "a hen"], "gold": 1}
"#;
const GSM8K: &str = r#"{"question": "How many bowls?", "answer": "3 + 4 = 7\n#### 7"}
"#;

/// A directory of two tasks.
fn data() -> TempDir {
    let data = TempDir::new().unwrap();
    fs::write(data.path().join("arc_easy.jsonl"), ARC).unwrap();
    fs::write(data.path().join("gsm8k.jsonl"), GSM8K).unwrap();
    data
}

fn evaluate(data: &TempDir, tasks: &str, more: &[&str]) -> Output {
    let data = data.path().to_str().unwrap();
    let model = "recipes/quickstart/base";
    let arguments = [
        "evaluate",
        "--model",
        model,
        "--tasks",
        tasks,
        "--task-data",
        data,
    ];
    olora(&[&arguments[..], more].concat())
}

/// The result, which comes last.
fn json(output: &Output) -> Value {
    let text = stdout(output);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|_| panic!("{}", stderr(output)))
}

#[test]
fn a_table_for_people_json_for_scripts_and_every_item_in_a_file() {
    let (data, out) = (data(), TempDir::new().unwrap());
    let directory = out.path().join("scores");
    let output = directory.to_str().unwrap();
    let short = ["--max-new-tokens", "4", "--limit", "2"];
    let shown = evaluate(&data, "arc_easy,gsm8k", &short);
    let table = stdout(&shown);
    assert!(shown.status.success(), "{}", stderr(&shown));
    for expected in ["arc_easy", "acc_norm", "gsm8k", "exact_match,strict-match"] {
        assert!(table.contains(expected), "`{expected}` is not in\n{table}");
    }

    let arguments = [&short[..], &["--json", "--output", output]].concat();
    let printed = evaluate(&data, "arc_easy,gsm8k", &arguments);
    let result = json(&printed);
    assert_eq!(result["tasks"][0]["task"], "arc_easy");
    assert_eq!(result["tasks"][0]["n_items"], 2);
    assert!(result["tasks"][0]["metrics"]["acc"]["stderr"].is_number());
    assert_eq!(
        result["tasks"][1]["metrics"]["exact_match,strict-match"]["value"],
        0.0
    );
    let written = fs::read(directory.join("results.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), result);
    let items = fs::read_to_string(directory.join("arc_easy.jsonl")).unwrap();
    let first: Value = serde_json::from_str(items.lines().next().unwrap()).unwrap();
    assert_eq!(items.lines().count(), 2);
    assert_eq!(first["log_likelihoods"].as_array().unwrap().len(), 2);

    // Nothing is run before it is known that there is a place for the result.
    let text = refused(&evaluate(&data, "arc_easy", &["--output", output]), 1);
    assert!(text.contains("arc_easy.jsonl exists already"), "{text}");
    let file = out.path().join("all.json");
    let one = evaluate(&data, "arc_easy", &["--output", file.to_str().unwrap()]);
    assert!(one.status.success(), "{}", stderr(&one));
    let written: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(written["tasks"][0]["n_items"], 3);
}

#[test]
fn running_every_choice_alone_gives_the_same_scores() {
    let data = data();
    let shared = json(&evaluate(&data, "arc_easy", &["--json"]));
    let alone = json(&evaluate(
        &data,
        "arc_easy",
        &["--json", "--no-shared-prefix"],
    ));
    assert_eq!(shared["tasks"][0]["metrics"], alone["tasks"][0]["metrics"]);
    let tokens = |result: &Value| result["tasks"][0]["tokens"].as_u64().unwrap();
    assert!(tokens(&shared) < tokens(&alone));
}

#[test]
fn what_has_no_use_is_wrong_usage() {
    let data = data();
    let cases: [(&str, &[&str], &str); 8] = [
        ("arc", &[], "no task `arc`"),
        ("arc_easy,arc_easy", &[], "names a task twice"),
        (
            "arc_easy",
            &["--chat"],
            "--chat is not supported for arc_easy",
        ),
        (
            "arc_easy",
            &["--max-new-tokens", "8"],
            "--max-new-tokens has no use",
        ),
        (
            "gsm8k",
            &["--no-shared-prefix"],
            "--no-shared-prefix has no use",
        ),
        ("arc_easy", &["--limit", "0"], "between 1 and"),
        ("arc_easy", &["--batch-size", "2"], "cannot be used with"),
        ("arc_easy", &["--data", "x.jsonl"], "cannot be used with"),
    ];
    for (tasks, more, expected) in cases {
        let text = refused(&evaluate(&data, tasks, more), 2);
        assert!(text.contains(expected), "{tasks} {more:?}: {text}");
    }
    let base = ["evaluate", "--model", "recipes/quickstart/base"];
    for more in [
        &[][..],
        &["--tasks", "boolq"],
        &["--data", "x.jsonl", "--limit", "3"],
    ] {
        let output = olora(&[&base[..], more].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    }
}

#[test]
fn a_missing_or_bad_file_is_named_before_a_model_is_loaded() {
    let data = data();
    let text = refused(&evaluate(&data, "boolq", &[]), 1);
    assert!(text.contains("boolq.jsonl"), "{text}");
    fs::write(data.path().join("boolq.jsonl"), "{\"question\": 1}\n").unwrap();
    let directory = data.path().to_str().unwrap();
    let arguments = [
        "--model",
        "no/such/model",
        "--tasks",
        "boolq",
        "--task-data",
        directory,
    ];
    let text = refused(&olora(&[&["evaluate"][..], &arguments].concat()), 1);
    assert!(
        text.contains("boolq.jsonl, line 1") && !text.contains("no/such/model"),
        "{text}"
    );
    assert!(Path::new(directory).is_dir());
}
