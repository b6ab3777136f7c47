//! What is trained of chats, against transformers: its renderings of prefixes, and
//! what it makes of `{% generation %}`. See `fixtures/README.md`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::PathBuf};

use olora_data::{DataOptions, Sample, Tokenizer, load_samples_cached};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/chat_masks")
        .join(name)
}

fn json_of(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap()
}

/// Loads every conversation with the template, as a file of one record, and
/// compares tokens and what is trained of them.
fn check(template: &str) {
    let golden = json_of(&format!("{template}.json"));
    let conversations = json_of("conversations.json");
    let checkpoint = tempfile::tempdir().unwrap();
    let put = |name: &str, text: String| fs::write(checkpoint.path().join(name), text).unwrap();
    fs::copy(
        fixture("tokenizer.json"),
        checkpoint.path().join("tokenizer.json"),
    )
    .unwrap();
    fs::copy(
        fixture(&format!("templates/{template}.jinja")),
        checkpoint.path().join("chat_template.jinja"),
    )
    .unwrap();
    put(
        "tokenizer_config.json",
        json!({"bos_token": golden["bos_token"], "eos_token": golden["eos_token"]}).to_string(),
    );
    put(
        "generation_config.json",
        json!({"eos_token_id": golden["eos_token_id"]}).to_string(),
    );
    let tokenizer = Tokenizer::from_dir(checkpoint.path()).unwrap();

    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let mut record = conversations[name].clone();
        if record["tools"].is_null() {
            record.as_object_mut().unwrap().remove("tools");
        }
        put("chat.jsonl", format!("{record}\n"));
        let found = load_samples_cached(
            &checkpoint.path().join("chat.jsonl"),
            &tokenizer,
            &DataOptions {
                allow_omissions: true,
                max_length: 4096,
                ..DataOptions::default()
            },
            None,
        );
        match (found, case["samples"].as_array()) {
            (Ok(found), Some(expected)) => {
                let found: Vec<_> = found
                    .samples
                    .iter()
                    .map(|sample| up_to_the_last_trained(&sample))
                    .collect();
                let expected: Vec<_> = expected.iter().map(expected_sample).collect();
                if found != expected {
                    wrong.push(format!("{name}: {found:?}, transformers {expected:?}"));
                }
            }
            (Err(_), None) => {}
            // What it was given that transformers does not give is said.
            (Ok(found), None) if !found.report.reading.adapted.is_empty() => {}
            (Ok(_), None) => wrong.push(format!("{name}: read, transformers {}", case["error"])),
            (Err(error), Some(_)) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{template}:\n{}", wrong.join("\n"));
}

/// What follows the last trained token teaches nothing, and may be cut.
fn up_to_the_last_trained(sample: &Sample) -> (Vec<u32>, Vec<bool>) {
    let n = sample.trained.iter().rposition(|&trained| trained).unwrap() + 1;
    (sample.tokens[..n].to_vec(), sample.trained[..n].to_vec())
}

fn expected_sample(sample: &Value) -> (Vec<u32>, Vec<bool>) {
    let mut ids: Vec<u32> = serde_json::from_value(sample["ids"].clone()).unwrap();
    let runs: Vec<(usize, usize)> = serde_json::from_value(sample["trained"].clone()).unwrap();
    ids.truncate(runs.last().unwrap().1);
    let is_trained = |at: usize| runs.iter().any(|&(begin, end)| (begin..end).contains(&at));
    let trained = (0..ids.len()).map(is_trained).collect();
    (ids, trained)
}

macro_rules! like {
    ($($test:ident: $template:literal,)*) => {
        $(
            #[test]
            fn $test() {
                check($template);
            }
        )*
    };
}

like! {
    chats_of_chatml_are_trained_as_by_transformers: "chatml",
    chats_like_qwen3s_are_trained_as_by_transformers: "qwen3",
    chats_whose_prompt_begins_a_thought_are_trained_as_by_transformers: "thinking",
    chats_like_r1s_are_trained_as_by_transformers: "r1",
    chats_like_mistrals_are_trained_as_by_transformers: "mistral",
    chats_like_llama_3s_are_trained_as_by_transformers: "llama3",
    chats_like_phi_3s_are_trained_as_by_transformers: "phi3",
    chats_like_gemmas_are_trained_as_by_transformers: "gemma",
    chats_in_channels_are_trained_as_by_transformers: "channels",
    chats_like_command_rs_are_trained_as_by_transformers: "command",
    chats_like_zephyrs_are_trained_as_by_transformers: "zephyr",
    chats_with_generation_tags_are_trained_as_by_transformers: "generation",
}
