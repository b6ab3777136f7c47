//! Every layout with everything that may stand in it: the samples, written out.
//!
//! Trained parts are in ⟦ ⟧, with what they count behind if that is not 1. Layouts
//! that say the same are in one list, and give the same samples.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests, and lists of what is read and what it becomes"
)]

mod common;

use std::{collections::BTreeMap, fs, path::PathBuf};

use common::{CHATML, World, lines};
use olora_data::{DataOptions, FirstTurn, KeyUse, Sample, SystemTurn, ValidationSplit, split};
use serde_json::{Value, json};

/// A template that knows roles and contents, and nothing else.
fn chatml() -> World {
    World::new(Some(CHATML))
}

/// A template with functions, calls and thoughts, which forgets earlier thoughts.
fn qwen3() -> World {
    World::new(Some(
        &fs::read_to_string(fixture("chat_masks/templates/qwen3.jinja")).unwrap(),
    ))
}

/// No template.
fn plain() -> World {
    World::new(None)
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}

/// Each record, as a file of its own, becomes these samples.
fn all_become(world: &World, records: &[Value], expected: &[&str]) {
    all_become_with(world, &DataOptions::default(), records, expected);
}

fn all_become_with(world: &World, options: &DataOptions, records: &[Value], expected: &[&str]) {
    for record in records {
        let options = DataOptions {
            max_length: 2000,
            ..options.clone()
        };
        let (found, _) = world
            .all_marked("data.jsonl", &record.to_string(), &options)
            .unwrap_or_else(|error| panic!("{record}: {error}"));
        assert_eq!(found, expected, "{record}");
    }
}

/// A file becomes these samples.
fn file_becomes(world: &World, name: &str, text: &str, expected: &[&str]) {
    let (found, _) = world
        .all_marked(name, text, &DataOptions::default())
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(found, expected, "{text}");
}

/// Each record, as a file of its own, is refused in words that have these among
/// them.
fn all_refused(world: &World, records: &[Value], words: &str) {
    all_refused_with(world, &DataOptions::default(), records, words);
}

fn all_refused_with(world: &World, options: &DataOptions, records: &[Value], words: &str) {
    for record in records {
        let found = world.all_marked("data.jsonl", &record.to_string(), options);
        let error = found.map(|(samples, _)| samples).unwrap_err();
        assert!(error.contains(words), "{record}: {error}");
    }
}

// ---- One question, one answer ----

#[test]
fn all_layouts_are_the_same_chat() {
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
            json!({"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}),
            json!({"messages": [{"role": "User", "content": "Hi"}, {"role": "Assistant", "content": "Yo"}]}),
            json!({"messages": "[{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Yo\"}]"}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}),
            json!({"conversations": [{"from": "user", "value": "Hi"}, {"from": "chatgpt", "value": "Yo"}]}),
            json!({"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
            json!({"conversation": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
            json!({"conversation": [{"input": "Hi", "output": "Yo"}]}),
            json!({"instruction": "Hi", "input": "", "output": "Yo"}),
            json!({"instruction": "Hi", "input": null, "output": "Yo"}),
            json!({"instruction": "Hi", "output": "Yo"}),
            json!({"instruction": "Hi", "context": "", "response": "Yo", "category": "greeting"}),
            json!({"prompt": "Hi", "completion": "Yo"}),
            json!({"prompt": "Hi", "response": "Yo"}),
            json!({"question": "Hi", "answer": "Yo"}),
            json!({"system_prompt": "", "question": "Hi", "response": "Yo"}),
            json!({"query": "Hi", "response": "Yo", "original_question": "Ho", "type": "rephrased"}),
            json!({"problem": "Hi", "solution": "Yo"}),
            json!({"input": "Hi", "output": "Yo"}),
            json!({"inputs": "Hi", "targets": "Yo"}),
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Yo"}]}),
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Yo"}),
            json!({"prompt": "Hi", "completion": [{"role": "assistant", "content": "Yo"}]}),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
}

#[test]
fn without_a_template_pairs_stay_as_they_are() {
    all_become(
        &plain(),
        &[
            json!({"prompt": "Hi ", "completion": "Yo"}),
            json!({"question": "Hi ", "answer": "Yo"}),
            json!({"input": "Hi ", "output": "Yo"}),
        ],
        &["<s>Hi ⟦Yo</s>⟧"],
    );
    all_become(
        &plain(),
        &[
            json!({"instruction": "Greet.", "input": "Alder", "output": "Yo"}),
            json!({"instruction": "Greet.", "context": "Alder", "response": "Yo"}),
        ],
        &[
            "<s>Below is an instruction that describes a task, paired with an input that provides further context. \
           Write a response that appropriately completes the request.\n\n\
           ### Instruction:\nGreet.\n\n### Input:\nAlder\n\n### Response:\n⟦Yo</s>⟧",
        ],
    );
    all_refused(
        &plain(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}),
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Yo"}]}),
        ],
        "has no chat template",
    );
}

#[test]
fn text_is_trained_whole_and_its_ends_are_not_doubled() {
    for world in [chatml(), qwen3(), plain()] {
        all_become(
            &world,
            &[
                json!({"text": "abc"}),
                json!({"content": "abc"}),
                json!({"text": "<s>abc"}),
                json!({"text": "abc</s>"}),
                json!({"text": "abc", "id": 3, "source": "here"}),
            ],
            &["<s>⟦abc</s>⟧"],
        );
    }
    // Somebody rendered it: it is text like any other.
    all_become(
        &chatml(),
        &[json!({"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"})],
        &["<s>⟦<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>⟧"],
    );
}

// ---- Tokens, by their ids: 0 to 3 are the special ones, then come bytes ----

/// The one sample of one record.
fn sample(world: &World, record: &Value) -> Sample {
    let data = world.load("data.jsonl", &record.to_string()).unwrap();
    assert_eq!(data.samples.len(), 1);
    data.samples.sample(0)
}

#[test]
fn ids_and_mask_of_a_chat() {
    let found = sample(
        &chatml(),
        &json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A y"}]}),
    );
    // " y" is one token.
    #[rustfmt::skip]
    let tokens = vec![
        2, 88, 86, 72, 85, 202, 43, 76, 3, 202, // <|im_start|>user\nHi<|im_end|>\n
        2, 68, 86, 86, 76, 86, 87, 68, 81, 87, 202, // <|im_start|>assistant\n
        36, 260, 3, 202, // A y<|im_end|>\n
    ];
    #[rustfmt::skip]
    let trained = vec![
        false, false, false, false, false, false, false, false, false, false,
        false, false, false, false, false, false, false, false, false, false, false,
        true, true, true, false,
    ];
    assert_eq!((found.tokens, found.trained), (tokens, trained));
}

#[test]
fn ids_mask_and_weights_of_a_chat_with_weights() {
    let found = sample(
        &chatml(),
        &json!({"conversations": [
            {"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0},
            {"from": "human", "value": "c"}, {"from": "gpt", "value": "d", "weight": 0.25},
        ]}),
    );
    #[rustfmt::skip]
    let tokens = vec![
        2, 88, 86, 72, 85, 202, 68, 3, 202, // user a
        2, 68, 86, 86, 76, 86, 87, 68, 81, 87, 202, 69, 3, 202, // assistant b
        2, 88, 86, 72, 85, 202, 70, 3, 202, // user c
        2, 68, 86, 86, 76, 86, 87, 68, 81, 87, 202, 71, 3, 202, // assistant d
    ];
    assert_eq!(found.tokens, tokens);
    let weights = found.weights.unwrap();
    let counts: Vec<_> = (0..tokens.len())
        .filter(|&i| found.trained[i])
        .map(|i| (i, weights[i]))
        .collect();
    assert_eq!(counts, [(43, 0.25), (44, 0.25)]);
}

#[test]
fn ids_and_mask_of_a_pair_and_of_text() {
    let found = sample(&plain(), &json!({"prompt": "Q: ", "completion": "A"}));
    assert_eq!(
        (found.tokens, found.trained),
        (
            vec![0, 52, 29, 224, 36, 1],
            vec![false, false, false, false, true, true]
        )
    );
    let found = sample(
        &plain(),
        &json!({"question": "Q: ", "answer": "A", "weight": 3}),
    );
    assert_eq!(found.trained, [false, false, false, false, true, true]);
    assert_eq!(found.weights.unwrap()[4..], [3.0, 3.0]);
    let found = sample(&plain(), &json!({"text": "ab"}));
    assert_eq!(
        (found.tokens, found.trained),
        (vec![0, 68, 69, 1], vec![false, true, true, true])
    );
}

#[test]
fn ids_and_mask_of_a_chat_with_an_empty_thought() {
    let found = sample(&qwen3(), &json!({"instruction": "a", "output": "b"}));
    #[rustfmt::skip]
    let tokens = vec![
        2, 88, 86, 72, 85, 202, 68, 3, 202, // <|im_start|>user\na<|im_end|>\n
        2, 68, 86, 86, 76, 86, 87, 68, 81, 87, 202, // <|im_start|>assistant\n
        31, 87, 75, 76, 81, 78, 33, 202, 202, // <think>\n\n
        31, 18, 87, 75, 76, 81, 78, 33, 202, 202, // </think>\n\n
        69, 3, 202, // b<|im_end|>\n
    ];
    let trained: Vec<_> = (0..42).map(|i| (20..41).contains(&i)).collect();
    assert_eq!((found.tokens, found.trained), (tokens, trained));
}

// ---- System prompts ----

#[test]
fn a_system_prompt_in_a_key_of_its_own_goes_first_in_every_layout() {
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "system": "Rhyme."}),
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "system_prompt": "Rhyme."}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "system": "Rhyme."}),
            json!({"conversations": [{"from": "system", "value": "Rhyme."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}),
            json!({"system_message": "Rhyme.", "conversation": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
            json!({"instruction": "Hi", "input": "", "output": "Yo", "system": "Rhyme."}),
            json!({"instruction": "Hi", "output": "Yo", "system_prompt": "Rhyme."}),
            json!({"prompt": "Hi", "completion": "Yo", "system": "Rhyme."}),
            json!({"question": "Hi", "answer": "Yo", "system": "Rhyme."}),
            json!({"system_prompt": "Rhyme.", "question": "Hi", "response": "Yo"}),
            json!({"prompt": [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Yo"}]}),
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Yo"}], "system": "Rhyme."}),
            // Said twice in the same words, it is one.
            json!({"messages": [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "system": "Rhyme."}),
            json!({"conversations": [{"from": "system", "value": "Rhyme."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "system": "Rhyme.\n"}),
            json!({"prompt": "Hi", "completion": "Yo", "system": "Rhyme.", "system_prompt": "Rhyme."}),
        ],
        &[
            "<|im_start|>system\nRhyme.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n",
        ],
    );
    // Without a template it stands before the prompt.
    all_become(
        &plain(),
        &[
            json!({"prompt": "Hi", "completion": "Yo", "system": "Rhyme."}),
            json!({"question": "Hi", "answer": "Yo", "system_prompt": "Rhyme."}),
        ],
        &["<s>Rhyme.\n\nHi⟦Yo</s>⟧"],
    );
    all_become(
        &plain(),
        &[json!({"instruction": "Hi", "output": "Yo", "system": "Rhyme."})],
        &[
            "<s>Rhyme.\n\nBelow is an instruction that describes a task. \
           Write a response that appropriately completes the request.\n\n\
           ### Instruction:\nHi\n\n### Response:\n⟦Yo</s>⟧",
        ],
    );
}

#[test]
fn two_system_prompts_that_differ_are_refused() {
    all_refused(
        &chatml(),
        &[
            json!({"messages": [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "system": "Sing."}),
            json!({"conversations": [{"from": "system", "value": "Rhyme."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "system": "Sing."}),
            json!({"prompt": [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}], "completion": "Yo", "system": "Sing."}),
        ],
        "it has a system turn and a `system` with other words: remove one",
    );
    all_refused(
        &chatml(),
        &[
            json!({"prompt": "Hi", "completion": "Yo", "system": "Rhyme.", "system_prompt": "Sing."}),
        ],
        "nothing uses `system_prompt` (1 record",
    );
    all_refused(
        &chatml(),
        &[json!({"text": "abc", "system": "Rhyme."})],
        "nothing uses `system` (1 record",
    );
}

#[test]
fn system_prompts_are_merged_or_dropped_as_asked() {
    let options = DataOptions {
        system: SystemTurn::Merge,
        ..DataOptions::default()
    };
    all_become_with(
        &chatml(),
        &options,
        &[
            json!({"messages": [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "system": "Rhyme."}),
            json!({"instruction": "Hi", "output": "Yo", "system": "Rhyme."}),
            json!({"question": "Hi", "answer": "Yo", "system_prompt": "Rhyme."}),
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Yo", "system": "Rhyme."}),
        ],
        &["<|im_start|>user\nRhyme.\n\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
    // Into the first turn of the user; weights stay with their turns.
    all_become_with(
        &chatml(),
        &options,
        &[json!({"messages": [
            {"role": "system", "content": "Rhyme."}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0}, {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "weight": 0.5},
        ]})],
        &[
            "<|im_start|>user\nRhyme.\n\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
           <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧×0.5\n",
        ],
    );
    all_refused_with(
        &chatml(),
        &options,
        &[
            json!({"messages": [{"role": "system", "content": "Rhyme."}, {"role": "assistant", "content": "Yo"}]}),
        ],
        "its system turn cannot be merged: there is no turn of the user",
    );
    let options = DataOptions {
        system: SystemTurn::Drop,
        ..DataOptions::default()
    };
    all_become_with(
        &chatml(),
        &options,
        &[
            json!({"messages": [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
            json!({"conversations": [{"from": "system", "value": "Rhyme."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}),
            json!({"instruction": "Hi", "output": "Yo", "system": "Rhyme."}),
            json!({"question": "Hi", "answer": "Yo", "system_prompt": "Rhyme."}),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
    all_become_with(
        &plain(),
        &options,
        &[json!({"prompt": "Hi", "completion": "Yo", "system": "Rhyme."})],
        &["<s>Hi⟦Yo</s>⟧"],
    );
}

#[test]
fn a_system_prompt_is_merged_without_a_template_too() {
    let options = DataOptions {
        system: SystemTurn::Merge,
        ..DataOptions::default()
    };
    all_become_with(
        &plain(),
        &options,
        &[json!({"prompt": "Hi", "completion": "Yo", "system": "Rhyme."})],
        &["<s>Rhyme.\n\nHi⟦Yo</s>⟧"],
    );
}

// ---- What stands beside a question ----

#[test]
fn context_comes_after_the_question() {
    all_become(
        &chatml(),
        &[
            json!({"instruction": "Where?", "input": "Alder is in Oxmere.", "output": "Oxmere"}),
            json!({"instruction": "Where?", "context": "Alder is in Oxmere.", "response": "Oxmere", "category": "qa"}),
            json!({"question": "Where?", "context": "Alder is in Oxmere.", "answer": "Oxmere"}),
            json!({"prompt": "Where?", "context": "Alder is in Oxmere.", "completion": "Oxmere"}),
            json!({"query": "Where?", "passage": "Alder is in Oxmere.", "answer": "Oxmere"}),
            json!({"prompt": "Where?", "input": "Alder is in Oxmere.", "response": "Oxmere"}),
            // It is in the question already.
            json!({"question": "Where?\n\nAlder is in Oxmere.", "context": "Alder is in Oxmere.", "answer": "Oxmere"}),
        ],
        &[
            "<|im_start|>user\nWhere?\n\nAlder is in Oxmere.<|im_end|>\n<|im_start|>assistant\n⟦Oxmere<|im_end|>⟧\n",
        ],
    );
    all_become(
        &plain(),
        &[json!({"question": "Where?", "context": "Alder is in Oxmere.", "answer": "Oxmere"})],
        &["<s>Where?\n\nAlder is in Oxmere.\n\n⟦Oxmere</s>⟧"],
    );
    all_refused(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Oxmere"}], "context": "Alder is away."}),
            json!({"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Oxmere"}], "context": "Alder is away."}),
            json!({"prompt": [{"role": "user", "content": "Where?"}], "completion": "Oxmere", "context": "Alder is away."}),
            json!({"text": "Where?", "context": "Alder is away."}),
        ],
        "nothing uses `context` (1 record",
    );
}

#[test]
fn options_have_a_line_each() {
    all_become(
        &chatml(),
        &[
            json!({"question": "Where?", "options": ["Oxmere", "Thornby"], "answer": "A"}),
            json!({"question": "Where?", "choices": ["Oxmere", "Thornby"], "answer": "A"}),
            json!({"prompt": "Where?", "choices": ["A. Oxmere", "B. Thornby"], "completion": "A"}),
            json!({"instruction": "Where?", "options": {"A": "Oxmere", "B": "Thornby"}, "output": "A"}),
            json!({"instruction": "Where?", "input": "", "choices": {"label": ["A", "B"], "text": ["Oxmere", "Thornby"]}, "output": "A"}),
            json!({"question": "Where?", "options": "A. Oxmere\nB. Thornby", "answer": "A"}),
        ],
        &[
            "<|im_start|>user\nWhere?\n\nA. Oxmere\nB. Thornby<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧\n",
        ],
    );
    all_become(
        &chatml(),
        &[
            json!({"question": "How many?", "options": [3, 5], "context": "Five boats.", "answer": "B"}),
        ],
        &[
            "<|im_start|>user\nHow many?\n\nA. 3\nB. 5\n\nFive boats.<|im_end|>\n<|im_start|>assistant\n⟦B<|im_end|>⟧\n",
        ],
    );
    all_refused(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "A"}], "options": ["Oxmere", "Thornby"]}),
            json!({"text": "Where?", "options": ["Oxmere", "Thornby"]}),
        ],
        "nothing uses `options` (1 record",
    );
}

#[test]
fn options_of_a_table_are_a_list_too() {
    file_becomes(
        &chatml(),
        "data.csv",
        "question,options,answer\nWhere?,\"[\"\"Oxmere\"\", \"\"Thornby\"\"]\",A\n",
        &[
            "<|im_start|>user\nWhere?\n\nA. Oxmere\nB. Thornby<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧\n",
        ],
    );
}

#[test]
fn history_is_context_in_every_layout() {
    all_become(
        &chatml(),
        &[
            json!({"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]]}),
            json!({"instruction": "c", "output": "d", "history": "[[\"a\", \"b\"]]"}),
            json!({"prompt": "c", "completion": "d", "history": [["a", "b"]]}),
            json!({"question": "c", "answer": "d", "history": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
            json!({"query": "c", "response": "d", "history": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
            json!({"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}], "history": [["a", "b"]]}),
            json!({"conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}], "history": [["a", "b"]]}),
            json!({"prompt": [{"role": "user", "content": "c"}], "completion": "d", "history": [["a", "b"]]}),
            // The same as a prompt of several turns.
            json!({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]}),
        ],
        &[
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
           <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧\n",
        ],
    );
    all_become(
        &chatml(),
        &[
            json!({"instruction": "c", "input": "I.", "output": "d", "history": [["a", "b"]], "system": "S."}),
            json!({"question": "c", "context": "I.", "answer": "d", "history": [["a", "b"]], "system_prompt": "S."}),
        ],
        &[
            "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
           <|im_start|>user\nc\n\nI.<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧\n",
        ],
    );
    all_refused(
        &plain(),
        &[
            json!({"prompt": "c", "completion": "d", "history": [["a", "b"]]}),
            json!({"instruction": "c", "output": "d", "history": [["a", "b"]]}),
        ],
        "there is no place for history: that takes a chat template",
    );
    all_refused(
        &chatml(),
        &[json!({"text": "c", "history": [["a", "b"]]})],
        "nothing uses `history` (1 record",
    );
    all_refused(
        &chatml(),
        &[json!({"instruction": "c", "output": "d", "history": [["a", "b", "c"]]})],
        "`history` must be a list of turns, or of [question, answer]",
    );
}

#[test]
fn an_earlier_turn_that_asks_to_be_trained_is_trained() {
    all_become(
        &chatml(),
        &[
            json!({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}, {"role": "user", "content": "c"}], "completion": "d"}),
            json!({"instruction": "c", "output": "d", "history": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}]}),
        ],
        &[
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>⟧\n\
           <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧\n",
        ],
    );
}

// ---- Several turns ----

#[test]
fn all_turns_of_the_assistant_are_trained() {
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}),
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]}),
            json!({"conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]}),
            json!({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}),
            // Nothing is learnt of what comes after the assistant's last turn.
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}, {"role": "user", "content": "e"}]}),
        ],
        &[
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>⟧\n\
           <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧\n",
        ],
    );
    // An empty turn among others is context.
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}),
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}, {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]}),
        ],
        &[
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n\
           <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧\n",
        ],
    );
}

#[test]
fn what_the_assistant_says_first_is_kept_or_dropped_as_asked() {
    let records = [
        json!({"messages": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]}),
        json!({"conversations": [{"from": "gpt", "value": "Hi"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}]}),
    ];
    all_become(
        &chatml(),
        &records,
        &[
            "<|im_start|>assistant\n⟦Hi<|im_end|>⟧\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n⟦c<|im_end|>⟧\n",
        ],
    );
    let options = DataOptions {
        first_turn: FirstTurn::Drop,
        ..DataOptions::default()
    };
    all_become_with(
        &chatml(),
        &options,
        &records,
        &["<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n⟦c<|im_end|>⟧\n"],
    );
    // What comes after stays with its weight.
    all_become_with(
        &chatml(),
        &options,
        &[json!({"messages": [
            {"role": "system", "content": "S."}, {"role": "assistant", "content": "a", "weight": 0},
            {"role": "user", "content": "b"}, {"role": "assistant", "content": "c", "weight": 0.5},
        ]})],
        &[
            "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n⟦c<|im_end|>⟧×0.5\n",
        ],
    );
}

#[test]
fn what_the_assistant_says_first_is_not_looked_for_in_the_name_of_its_role() {
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]}),
            json!({"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}]}),
        ],
        &[
            "<|im_start|>assistant\n⟦a<|im_end|>⟧\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n⟦c<|im_end|>⟧\n",
        ],
    );
}

#[test]
fn all_is_trained_as_asked() {
    let options = DataOptions {
        train_on_prompt: true,
        ..DataOptions::default()
    };
    all_become_with(
        &chatml(),
        &options,
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}),
            json!({"instruction": "Hi", "output": "Yo"}),
            json!({"question": "Hi", "answer": "Yo"}),
        ],
        &["<|im_start|>⟦user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n⟧"],
    );
    all_become_with(
        &plain(),
        &options,
        &[json!({"prompt": "Hi", "completion": "Yo"})],
        &["<s>⟦HiYo</s>⟧"],
    );
    all_refused_with(
        &chatml(),
        &options,
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "weight": 0.5}]}),
            json!({"question": "c", "answer": "d", "history": [["a", "b"]]}),
        ],
        "data.train_on_prompt trains everything, but weights, flags or earlier turns of 1 record",
    );
}

#[test]
fn with_prompts_trained_a_turn_of_the_user_may_ask_for_it() {
    let options = DataOptions {
        train_on_prompt: true,
        ..DataOptions::default()
    };
    all_become_with(
        &chatml(),
        &options,
        &[
            json!({"messages": [{"role": "user", "content": "Hi", "train": true}, {"role": "assistant", "content": "Yo", "train": true}]}),
        ],
        &["<|im_start|>⟦user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n⟧"],
    );
}

// ---- Weights and flags ----

#[test]
fn turns_are_trained_as_their_flags_say() {
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}]}),
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": false}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "train": true}]}),
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "training": false}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}),
            json!({"messages": [{"role": "user", "content": "a", "loss": false}, {"role": "assistant", "content": "b", "loss": false}, {"role": "user", "content": "c", "loss": null}, {"role": "assistant", "content": "d", "loss": true}]}),
            json!({"conversations": [{"from": "human", "value": "a", "weight": 0}, {"from": "gpt", "value": "b", "weight": 0.0}, {"from": "human", "value": "c", "weight": null}, {"from": "gpt", "value": "d", "weight": 1.0}]}),
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "train": 0}, {"from": "human", "value": "c"}, {"from": "gpt", "value": "d", "train": 1}]}),
            json!({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b", "weight": 0}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}),
        ],
        &[
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
           <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧\n",
        ],
    );
    // As SlimOrca says it: what is the rule without weights too.
    all_become(
        &chatml(),
        &[json!({"conversations": [
            {"from": "system", "value": "S.", "weight": null}, {"from": "human", "value": "Hi", "weight": 0},
            {"from": "gpt", "value": "Yo", "weight": 1},
        ]})],
        &[
            "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n",
        ],
    );
}

#[test]
fn fractions_weigh_every_token_of_a_turn_and_its_end() {
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.25}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 2}]}),
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "loss": 0.25}, {"from": "human", "value": "c"}, {"from": "gpt", "value": "d", "loss": 2.0}]}),
            json!({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b", "weight": 0.25}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 2}]}),
            // A record's weight multiplies those of its turns.
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 4}], "weight": 0.5}),
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0.125}, {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}], "weight": 2}),
        ],
        &[
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>⟧×0.25\n\
           <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧×2\n",
        ],
    );
}

#[test]
fn a_record_has_a_weight_in_every_layout() {
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "weight": 0.5}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "weight": 0.5}),
            json!({"instruction": "Hi", "input": "", "output": "Yo", "weight": 0.5}),
            json!({"prompt": "Hi", "completion": "Yo", "weight": 0.5}),
            json!({"question": "Hi", "answer": "Yo", "weight": 0.5, "train": true}),
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Yo", "weight": 0.5}),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧×0.5\n"],
    );
    all_become(
        &plain(),
        &[json!({"prompt": "Hi", "completion": "Yo", "weight": 0.5})],
        &["<s>Hi⟦Yo</s>⟧×0.5"],
    );
    all_refused(
        &chatml(),
        &[json!({"text": "abc", "weight": 0.5})],
        "nothing uses `weight` (1 record",
    );
}

#[test]
fn weights_that_are_none_are_refused_and_named() {
    all_refused(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": -1}]}),
        ],
        "`messages[1].weight` is -1, but a weight must be between 0 and 1e6",
    );
    all_refused(
        &chatml(),
        &[
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "train": [1]}]}),
        ],
        "`conversations[1].train` must be true, false or a number, found a list",
    );
    all_refused(
        &chatml(),
        &[json!({"question": "a", "answer": "b", "weight": 1e9})],
        "but a weight must be between 0 and 1e6",
    );
    all_refused(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "a", "weight": 1}, {"role": "assistant", "content": "b"}]}),
        ],
        "turn 1 has `weight`, which asks to train it, but is the user's",
    );
}

#[test]
fn weights_of_a_table_are_numbers() {
    let text = "question,answer,weight\nHi,Yo,0.5\nHi,Yo,0\nHi,Yo,\n";
    file_becomes(
        &chatml(),
        "data.csv",
        text,
        &[
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧×0.5\n",
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n",
        ],
    );
    file_becomes(
        &chatml(),
        "data.csv",
        "question,answer,train\nHi,Ya,false\nHi,Yo,True\n",
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
}

// ---- Content as parts ----

#[test]
fn parts_of_text_are_text() {
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": [{"type": "text", "text": "Yo"}]}]}),
            json!({"messages": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}, {"role": "assistant", "content": [{"type": "output_text", "text": "Yo"}]}]}),
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "image_url": null}]}, {"role": "assistant", "content": "Yo"}]}),
            json!({"conversations": [{"from": "human", "value": [{"type": "text", "text": "Hi"}]}, {"from": "gpt", "value": ["Yo"]}]}),
            json!({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "completion": [{"role": "assistant", "content": [{"type": "text", "text": "Yo"}]}]}),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
    // A line each, with the weight of the turn.
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]}, {"role": "assistant", "content": [{"type": "text", "text": "Yo"}, {"type": "text", "text": "me"}], "weight": 0.5}]}),
            json!({"conversations": [{"from": "human", "value": ["Hi", "you"]}, {"from": "gpt", "value": ["Yo", "me"], "weight": 0.5}]}),
        ],
        &["<|im_start|>user\nHi\nyou<|im_end|>\n<|im_start|>assistant\n⟦Yo\nme<|im_end|>⟧×0.5\n"],
    );
}

#[test]
fn parts_that_are_no_text_are_refused_by_name() {
    all_refused(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "a.png"}}]}, {"role": "assistant", "content": "Yo"}]}),
            json!({"prompt": [], "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]}, {"role": "assistant", "content": "Yo"}]}),
        ],
        "`messages[0].content` has a part that is no text, `image_url`",
    );
    all_refused(
        &chatml(),
        &[
            json!({"conversations": [{"from": "human", "value": [{"type": "audio", "audio": "a.wav"}]}, {"from": "gpt", "value": "Yo"}]}),
        ],
        "`conversations[0].value` has a part that is no text, `audio`",
    );
    all_refused(
        &chatml(),
        &[
            json!({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "completion": "Yo"}),
        ],
        "`prompt[0].content` has a part that is no text, `image`",
    );
    // Pictures beside the words are named as well.
    all_refused(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "images": ["a.png"]}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "images": ["a.png"]}),
            json!({"instruction": "Hi", "output": "Yo", "images": ["a.png"]}),
            json!({"question": "Hi", "answer": "Yo", "images": ["a.png"]}),
            json!({"text": "Hi", "images": ["a.png"]}),
        ],
        "nothing uses `images` (1 record, the first record 1 (line 1); only text is trained here)",
    );
}

// ---- Functions ----

#[test]
fn functions_stand_before_the_turns_in_every_layout() {
    all_become(
        &qwen3(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "tools": [{"type": "function", "function": {"name": "find"}}]}),
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "tools": "[{\"type\": \"function\", \"function\": {\"name\": \"find\"}}]"}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "tools": "[{\"name\": \"find\"}]"}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "functions": [{"name": "find"}]}),
            json!({"instruction": "Hi", "input": "", "output": "Yo", "tools": [{"name": "find"}]}),
            json!({"prompt": "Hi", "completion": "Yo", "tools": [{"name": "find"}]}),
            json!({"question": "Hi", "answer": "Yo", "tools": "[{\"name\": \"find\"}]"}),
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Yo"}], "tools": [{"name": "find"}]}),
        ],
        &["<|im_start|>system\nFunctions, one a line:\n<tools>\n\
           {\"type\": \"function\", \"function\": {\"name\": \"find\"}}\n\
           </tools>\nCall one as <tool_call>{\"name\": ..., \"arguments\": ...}</tool_call>.<|im_end|>\n\
           <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nYo<|im_end|>⟧\n"],
    );
    // After the system prompt, which may be in a key of its own.
    all_become(
        &qwen3(),
        &[
            json!({"messages": [{"role": "system", "content": "S."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "tools": [{"name": "find"}, {"name": "go", "parameters": {"to": "b"}}]}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "system": "S.", "tools": "[{\"name\": \"find\"}, {\"name\": \"go\", \"parameters\": {\"to\": \"b\"}}]"}),
            json!({"question": "Hi", "answer": "Yo", "system_prompt": "S.", "tools": [{"name": "find"}, {"name": "go", "parameters": {"to": "b"}}]}),
        ],
        &[
            "<|im_start|>system\nS.\n\nFunctions, one a line:\n<tools>\n\
           {\"type\": \"function\", \"function\": {\"name\": \"find\"}}\n\
           {\"type\": \"function\", \"function\": {\"name\": \"go\", \"parameters\": {\"to\": \"b\"}}}\n\
           </tools>\nCall one as <tool_call>{\"name\": ..., \"arguments\": ...}</tool_call>.<|im_end|>\n\
           <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nYo<|im_end|>⟧\n",
        ],
    );
    // Of no functions nothing is said.
    all_become(
        &qwen3(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "tools": []}),
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "tools": null}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "tools": "[]"}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "tools": ""}),
        ],
        &[
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nYo<|im_end|>⟧\n",
        ],
    );
}

#[test]
fn calls_are_trained_and_their_results_are_not() {
    // Each turn as inference has it: the first has an empty thought while it is the last.
    all_become(
        &qwen3(),
        &[
            json!({"messages": [
                {"role": "user", "content": "Where is Alder?"},
                {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "find", "arguments": "{\"who\": \"Alder\"}"}}]},
                {"role": "tool", "tool_call_id": "1", "content": "Oxmere"},
                {"role": "assistant", "content": "In Oxmere."},
            ]}),
            json!({"messages": [
                {"role": "user", "content": "Where is Alder?"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": {"who": "Alder"}}}]},
                {"role": "tool", "content": [{"type": "text", "text": "Oxmere"}]},
                {"role": "assistant", "content": "In Oxmere."},
            ]}),
            json!({"messages": [
                {"role": "user", "content": "Where is Alder?"},
                {"role": "assistant", "content": "", "function_call": {"name": "find", "arguments": "{\"who\": \"Alder\"}"}},
                {"role": "function", "name": "find", "content": "Oxmere"},
                {"role": "assistant", "content": "In Oxmere."},
            ]}),
            json!({"conversations": [
                {"from": "human", "value": "Where is Alder?"},
                {"from": "function_call", "value": "{\"name\": \"find\", \"arguments\": {\"who\": \"Alder\"}}"},
                {"from": "observation", "value": "Oxmere"},
                {"from": "gpt", "value": "In Oxmere."},
            ]}),
            json!({"prompt": [{"role": "user", "content": "Where is Alder?"}], "completion": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": {"who": "Alder"}}}]},
                {"role": "tool", "content": "Oxmere"},
                {"role": "assistant", "content": "In Oxmere."},
            ]}),
        ],
        &[
            "<|im_start|>user\nWhere is Alder?<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\n\
             <tool_call>\n{\"name\": \"find\", \"arguments\": {\"who\": \"Alder\"}}\n</tool_call><|im_end|>⟧\n",
            "<|im_start|>user\nWhere is Alder?<|im_end|>\n<|im_start|>assistant\n\
             <tool_call>\n{\"name\": \"find\", \"arguments\": {\"who\": \"Alder\"}}\n</tool_call><|im_end|>\n\
             <|im_start|>user\n<tool_response>\nOxmere\n</tool_response><|im_end|>\n\
             <|im_start|>assistant\n⟦<think>\n\n</think>\n\nIn Oxmere.<|im_end|>⟧\n",
        ],
    );
    // With thoughts in both, which stay while no question follows, one sample holds all; a weight is its turn's.
    all_become(
        &qwen3(),
        &[json!({"messages": [
            {"role": "user", "content": "Where is Alder?"},
            {"role": "assistant", "content": "Wait.", "reasoning_content": "I look.", "weight": 0.5, "tool_calls": [
                {"function": {"name": "find", "arguments": {"who": "Alder"}}}, {"function": {"name": "map", "arguments": {}}}]},
            {"role": "tool", "content": "Oxmere"},
            {"role": "tool", "content": "[map]"},
            {"role": "assistant", "content": "In Oxmere.", "reasoning_content": "Found."},
        ]})],
        &[
            "<|im_start|>user\nWhere is Alder?<|im_end|>\n<|im_start|>assistant\n⟦<think>\nI look.\n</think>\n\nWait.\n\
             <tool_call>\n{\"name\": \"find\", \"arguments\": {\"who\": \"Alder\"}}\n</tool_call>\n\
             <tool_call>\n{\"name\": \"map\", \"arguments\": {}}\n</tool_call><|im_end|>⟧×0.5\n\
             <|im_start|>user\n<tool_response>\nOxmere\n</tool_response>\n<tool_response>\n[map]\n</tool_response><|im_end|>\n\
             <|im_start|>assistant\n⟦<think>\nFound.\n</think>\n\nIn Oxmere.<|im_end|>⟧\n",
        ],
    );
}

#[test]
fn calls_of_a_prompt_are_context() {
    all_become(
        &qwen3(),
        &[
            json!({"prompt": [
                {"role": "user", "content": "Where is Alder?"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": {"who": "Alder"}}}]},
                {"role": "tool", "content": "Oxmere"},
            ], "completion": [{"role": "assistant", "content": "In Oxmere."}]}),
            json!({"messages": [
                {"role": "user", "content": "Where is Alder?"},
                {"role": "assistant", "train": false, "tool_calls": [{"function": {"name": "find", "arguments": {"who": "Alder"}}}]},
                {"role": "tool", "content": "Oxmere", "train": false},
                {"role": "assistant", "content": "In Oxmere."},
            ]}),
        ],
        &[
            "<|im_start|>user\nWhere is Alder?<|im_end|>\n<|im_start|>assistant\n\
           <tool_call>\n{\"name\": \"find\", \"arguments\": {\"who\": \"Alder\"}}\n</tool_call><|im_end|>\n\
           <|im_start|>user\n<tool_response>\nOxmere\n</tool_response><|im_end|>\n\
           <|im_start|>assistant\n⟦<think>\n\n</think>\n\nIn Oxmere.<|im_end|>⟧\n",
        ],
    );
}

#[test]
fn functions_that_have_no_place_are_refused() {
    let records = [
        json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "tools": [{"name": "find"}]}),
        json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "tools": "[{\"name\": \"find\"}]"}),
        json!({"instruction": "Hi", "output": "Yo", "tools": [{"name": "find"}]}),
        json!({"question": "Hi", "answer": "Yo", "tools": [{"name": "find"}]}),
        json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Yo", "tools": [{"name": "find"}]}),
    ];
    all_refused(
        &chatml(),
        &records,
        "data.jsonl: the chat template leaves out a function of `tools` of 1 record (the first record 1 (line 1): \"find\")",
    );
    let options = DataOptions {
        allow_omissions: true,
        ..DataOptions::default()
    };
    all_become_with(
        &chatml(),
        &options,
        &records,
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
    all_refused(
        &plain(),
        &[
            json!({"prompt": "Hi", "completion": "Yo", "tools": [{"name": "find"}]}),
            json!({"instruction": "Hi", "output": "Yo", "tools": [{"name": "find"}]}),
        ],
        "there is no place for tools: that takes a chat template",
    );
    all_refused(
        &qwen3(),
        &[json!({"text": "Hi", "tools": [{"name": "find"}]})],
        "nothing uses `tools` (1 record",
    );
    all_refused(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "tool_calls": [{"name": "find", "arguments": {}}]}]}),
        ],
        "the chat template leaves out a call in the assistant's `tool_calls` of 1 record",
    );
}

// ---- Thoughts ----

#[test]
fn thoughts_are_trained_in_every_layout() {
    all_become(
        &qwen3(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "reasoning_content": "Hm."}]}),
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "thinking": "Hm."}]}),
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "reasoning": "Hm."}]}),
            json!({"messages": [{"role": "user", "content": "Hi", "reasoning_content": null}, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYo", "reasoning_content": null}]}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo", "reasoning_content": "Hm."}]}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "<think>\nHm.\n</think>\n\nYo"}]}),
            json!({"instruction": "Hi", "input": "", "output": "<think>\nHm.\n</think>\n\nYo"}),
            json!({"prompt": "Hi", "completion": "<think>\nHm.\n</think>\n\nYo"}),
            json!({"question": "Hi", "answer": "<think>Hm.</think>Yo"}),
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Yo", "thinking": "Hm."}]}),
        ],
        &[
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think>\nHm.\n</think>\n\nYo<|im_end|>⟧\n",
        ],
    );
    // Without a template that knows of thoughts they are words.
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>Hm.</think>Yo"}]}),
            json!({"instruction": "Hi", "output": "<think>Hm.</think>Yo"}),
        ],
        &[
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think>Hm.</think>Yo<|im_end|>⟧\n",
        ],
    );
    all_become(
        &plain(),
        &[json!({"prompt": "Hi", "completion": "<think>Hm.</think>Yo"})],
        &["<s>Hi⟦<think>Hm.</think>Yo</s>⟧"],
    );
}

#[test]
fn thoughts_that_have_no_place_are_refused_by_name() {
    all_refused(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "reasoning_content": "Hm."}]}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo", "reasoning_content": "Hm."}]}),
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Yo", "reasoning_content": "Hm."}]}),
        ],
        "the chat template leaves out the assistant's `reasoning_content` of 1 record (the first record 1 (line 1): \"Hm.\")",
    );
    // Beside an answer nobody knows whether it is to be learnt.
    all_refused(
        &qwen3(),
        &[
            json!({"instruction": "Hi", "output": "Yo", "reasoning": "Hm."}),
            json!({"question": "Hi", "answer": "Yo", "reasoning": "Hm."}),
            json!({"text": "Yo", "reasoning": "Hm."}),
        ],
        "nothing uses `reasoning` (1 record",
    );
}

#[test]
fn each_turn_is_trained_with_its_own_thought_after_turns_without() {
    let expected = [
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦<think>\nHm.\n</think>\n\nb<|im_end|>⟧\n",
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦<think>\nOh.\n</think>\n\nd<|im_end|>⟧×0.5\n",
    ];
    let records = [
        json!({"messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "Hm."},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "reasoning_content": "Oh.", "weight": 0.5},
        ]}),
        json!({"conversations": [
            {"from": "human", "value": "a"}, {"from": "gpt", "value": "<think>\nHm.\n</think>\n\nb"},
            {"from": "human", "value": "c"}, {"from": "gpt", "value": "<think>\nOh.\n</think>\n\nd", "weight": 0.5},
        ]}),
        json!({"prompt": "a", "completion": [
            {"role": "assistant", "content": "b", "thinking": "Hm."}, {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "thinking": "Oh.", "weight": 0.5},
        ]}),
    ];
    all_become(&qwen3(), &records, &expected);
    for record in &records {
        let options = DataOptions::default();
        let (_, data) = qwen3()
            .all_marked("data.jsonl", &record.to_string(), &options)
            .unwrap();
        let reading = &data.report.reading;
        // The first has 45 tokens: 9 of the question, 11 that begin the answer, 24 of it, a line end.
        assert_eq!(
            (
                reading.n_split,
                reading.n_split_samples,
                reading.n_split_tokens,
                reading.n_weighted
            ),
            (1, 2, 45, 1)
        );
    }
    // Where the first is not trained, there is one.
    all_become(
        &qwen3(),
        &[
            json!({"messages": [
                {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "Hm.", "weight": 0},
                {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "reasoning_content": "Oh."},
            ]}),
            json!({"instruction": "c", "output": "<think>\nOh.\n</think>\n\nd", "history": [["a", "b"]]}),
            json!({"question": "c", "answer": "<think>\nOh.\n</think>\n\nd", "history": [["a", "<think>\nHm.\n</think>\n\nb"]]}),
        ],
        &[
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
           <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦<think>\nOh.\n</think>\n\nd<|im_end|>⟧\n",
        ],
    );
}

#[test]
fn a_record_sets_variables_of_the_template() {
    // The prompt holds the empty thought then.
    all_become(
        &qwen3(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "chat_template_kwargs": {"enable_thinking": false}}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "chat_template_kwargs": {"enable_thinking": false}}),
            json!({"instruction": "Hi", "output": "Yo", "chat_template_kwargs": {"enable_thinking": false}}),
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Yo", "chat_template_kwargs": {"enable_thinking": false}}),
        ],
        &[
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦Yo<|im_end|>⟧\n",
        ],
    );
    let options = DataOptions {
        template_variables: json!({"enable_thinking": false})
            .as_object()
            .unwrap()
            .clone(),
        ..DataOptions::default()
    };
    let record = json!({"question": "Hi", "answer": "Yo"}).to_string();
    let (found, _) = qwen3().all_marked("data.jsonl", &record, &options).unwrap();
    assert_eq!(
        found,
        [
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦Yo<|im_end|>⟧\n"
        ]
    );
}

// ---- Prompts that are rendered already ----

#[test]
fn a_prompt_that_is_rendered_already_is_not_rendered_again() {
    // As the template does it, without the `<s>` that goes before plain text.
    all_become(
        &chatml(),
        &[
            json!({"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "completion": "Yo<|im_end|>"}),
            json!({"question": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "answer": "Yo<|im_end|>"}),
            json!({"instruction": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "input": "", "output": "Yo<|im_end|>"}),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧"],
    );
}

#[test]
fn the_answer_to_a_rendered_prompt_ends_as_the_template_ends_turns() {
    all_become(
        &chatml(),
        &[
            json!({"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "completion": "Yo"}),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧"],
    );
}

#[test]
fn a_system_prompt_that_a_rendered_prompt_holds_is_repeated() {
    all_become(
        &chatml(),
        &[
            json!({"prompt": "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "completion": "Yo<|im_end|>", "system": "S."}),
        ],
        &[
            "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧",
        ],
    );
}

#[test]
fn what_a_rendered_prompt_has_no_place_for_is_refused() {
    let records = [
        json!({"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "completion": "Yo", "system": "S."}),
        json!({"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "completion": "Yo", "context": "C."}),
    ];
    let words = "its prompt was rendered by a template already, so there is no place for";
    all_refused(&chatml(), &records, words);
    for record in &records {
        let error = chatml()
            .load("data.jsonl", &record.to_string())
            .unwrap_err();
        // The checkpoint has a template: another one is of no help.
        assert!(!error.contains("instruction-tuned checkpoint"), "{error}");
    }
}

// ---- Columns and keys ----

#[test]
fn columns_give_keys_their_meaning() {
    let columns = |names: &[(&str, &str)]| DataOptions {
        columns: names
            .iter()
            .map(|(name, key)| ((*name).to_owned(), (*key).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        ..DataOptions::default()
    };
    let become_with = |names: &[(&str, &str)], record: Value, expected: &str| {
        all_become_with(&chatml(), &columns(names), &[record], &[expected]);
    };
    become_with(
        &[("prompt", "q"), ("completion", "gold")],
        json!({"q": "Hi", "gold": "Yo"}),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n",
    );
    become_with(
        &[
            ("completion", "chosen"),
            ("system", "persona"),
            ("context", "about"),
        ],
        json!({"prompt": "Hi", "chosen": "Yo", "persona": "S.", "about": "C."}),
        "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\nHi\n\nC.<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n",
    );
    become_with(
        &[("messages", "log"), ("system", "persona")],
        json!({"log": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "weight": 0.5}], "persona": "S."}),
        "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧×0.5\n",
    );
    become_with(
        &[("history", "before"), ("options", "ways")],
        json!({"question": "c", "answer": "d", "before": [["a", "b"]], "ways": ["x", "z"]}),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
         <|im_start|>user\nc\n\nA. x\nB. z<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧\n",
    );
    become_with(&[("text", "body")], json!({"body": "abc"}), "<s>⟦abc</s>⟧");
    all_refused_with(
        &chatml(),
        &columns(&[("prompt", "q"), ("completion", "gold")]),
        &[json!({"q": "Hi", "answer": "Yo"})],
        "data.columns: `completion` is to be `gold`, but the record has only `q`, `answer`",
    );
    all_refused_with(
        &chatml(),
        &columns(&[("question", "q")]),
        &[json!({"q": "Hi", "answer": "Yo"})],
        "data.columns: `question` is none of the names that a key can be given: `prompt`, `completion`",
    );
}

#[test]
fn keys_that_nothing_uses_are_refused_by_name_and_counted_in_every_layout() {
    for (with, without) in [
        (
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "score": 4, "label": false}),
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
        ),
        (
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "score": 4, "label": false}),
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "score": null}),
        ),
        (
            json!({"instruction": "Hi", "output": "Yo", "score": 4, "label": false}),
            json!({"instruction": "Hi", "output": "Yo"}),
        ),
        (
            json!({"question": "Hi", "answer": "Yo", "score": 4, "label": false}),
            json!({"question": "Hi", "answer": "Yo"}),
        ),
        (
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Yo", "score": 4, "label": false}),
            json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Yo"}),
        ),
        (
            json!({"text": "Hi", "score": 4, "label": false}),
            json!({"text": "Hi"}),
        ),
    ] {
        let text = lines(&[without.clone(), with.clone(), without, with]);
        let error = chatml().load("data.jsonl", &text).unwrap_err();
        assert!(
            error.starts_with(
                "data.jsonl: nothing uses `score` (2 records, the first record 2 (line 2)), `label` (2 records, \
                 the first record 2 (line 2); such a label may say that an answer is wrong), and leaving that out"
            ),
            "{error}"
        );
        assert!(
            error.contains("data.ignore = [\"score\", \"label\"]"),
            "{error}"
        );
        let options = DataOptions {
            ignore: vec!["score".to_owned(), "label".to_owned()],
            ..DataOptions::default()
        };
        let (_, data) = chatml().all_marked("data.jsonl", &text, &options).unwrap();
        let ignored: Vec<_> = (data.report.reading.keys.iter())
            .filter(|key| key.use_ == KeyUse::Ignored)
            .map(|key| (key.key.as_str(), key.n_records))
            .collect();
        assert_eq!(ignored, [("score", 2), ("label", 2)]);
    }
}

#[test]
fn keys_of_turns_that_nothing_uses_are_refused_by_name() {
    let records = [
        json!({"messages": [{"role": "user", "content": "Hi", "id": 1}, {"role": "assistant", "content": "Yo", "rating": 5}]}),
        json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "rating": null}]}),
    ];
    let error = chatml().load("data.jsonl", &lines(&records)).unwrap_err();
    assert!(
        error.starts_with(
            "data.jsonl: nothing uses `messages[].rating` (1 record, the first record 1 (line 1))"
        ),
        "{error}"
    );
    all_refused(
        &chatml(),
        &[
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo", "label": true}]}),
        ],
        "nothing uses `conversations[].label` (1 record, the first record 1 (line 1); such a label",
    );
    all_refused(
        &chatml(),
        &[
            json!({"prompt": "Hi", "completion": [{"role": "assistant", "content": "Yo", "rating": 5}]}),
        ],
        "nothing uses `completion[].rating` (1 record",
    );
    for name in ["messages[].rating", "rating"] {
        let options = DataOptions {
            ignore: vec![name.to_owned()],
            ..DataOptions::default()
        };
        let found = chatml()
            .all_marked("data.jsonl", &lines(&records), &options)
            .unwrap();
        assert_eq!(
            found.0,
            ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"; 2]
        );
    }
}

#[test]
fn what_is_said_again_is_known_as_that() {
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "prompt": "Hi"}),
            json!({"instruction": "Hi", "input": "", "output": "Yo", "text": "### Instruction:\nHi\n\n### Response:\nYo"}),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
    all_refused(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "prompt": "Ho"}),
        ],
        "nothing uses `prompt` (1 record",
    );
    all_refused(
        &chatml(),
        &[
            json!({"prompt": "Hi", "chosen": "Yo", "rejected": "No"}),
            json!({"question": "Hi", "chosen": "Yo", "rejected": "No"}),
        ],
        "it is preference data. To learn from both: [objective] method = \"dpo\"",
    );
}

#[test]
fn an_empty_list_of_turns_beside_a_pair_is_nothing() {
    all_become(
        &chatml(),
        &[
            json!({"prompt": "Hi", "completion": "Yo", "messages": null}),
            json!({"prompt": "Hi", "completion": "Yo", "messages": []}),
            json!({"instruction": "Hi", "output": "Yo", "conversations": []}),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
}

#[test]
fn a_key_that_is_to_be_ignored_has_no_effect() {
    let ignore = |key: &str| DataOptions {
        ignore: vec![key.to_owned()],
        ..DataOptions::default()
    };
    let expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n";
    for (key, record) in [
        // What a loss was once measured at is no weight.
        (
            "loss",
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "loss": 1.37}),
        ),
        (
            "weight",
            json!({"instruction": "Hi", "output": "Yo", "weight": 0.5}),
        ),
        (
            "system",
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "system": "S."}),
        ),
        (
            "context",
            json!({"question": "Hi", "context": "C.", "answer": "Yo"}),
        ),
        (
            "tools",
            json!({"question": "Hi", "answer": "Yo", "tools": [{"name": "find"}]}),
        ),
        (
            "images",
            json!({"question": "Hi", "answer": "Yo", "images": ["a.png"]}),
        ),
        (
            "messages[].weight",
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "weight": 0.5}]}),
        ),
        (
            "messages[].reasoning_content",
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "reasoning_content": "Hm."}]}),
        ),
    ] {
        all_become_with(&chatml(), &ignore(key), &[record], &[expected]);
    }
}

#[test]
fn keys_of_records_with_nothing_to_train_are_counted_too() {
    for records in [
        [
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "score": 1}),
            json!({"messages": [{"role": "user", "content": "Hi"}], "score": 1}),
        ],
        [
            json!({"instruction": "Hi", "output": "Yo", "score": 1}),
            json!({"instruction": "Hi", "output": "", "score": 1}),
        ],
    ] {
        let error = chatml().load("data.jsonl", &lines(&records)).unwrap_err();
        assert!(error.contains("nothing uses `score` (2 records"), "{error}");
    }
}

// ---- Records with nothing to train ----

#[test]
fn records_with_nothing_to_train_are_counted_and_named_in_every_layout() {
    let good = json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]});
    let of_messages = [
        (
            json!({"messages": [{"role": "user", "content": "Hi"}]}),
            "it has no turn of the assistant",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]}),
            "all turns of the assistant are empty",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": null}]}),
            "all turns of the assistant are empty",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "weight": 0}]}),
            "its weights or flags say not to train it",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "train": false}),
            "its weights or flags say not to train it",
        ),
    ];
    let of_conversations = [
        (
            json!({"conversations": [{"from": "human", "value": "Hi"}]}),
            "it has no turn of the assistant",
        ),
        (
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": " "}]}),
            "all turns of the assistant are empty",
        ),
    ];
    let of_alpaca = [
        (
            json!({"instruction": "Hi", "output": ""}),
            "its `output` is empty",
        ),
        (
            json!({"instruction": "Hi", "output": null}),
            "its `output` is empty",
        ),
        (
            json!({"instruction": "Hi", "output": "Yo", "weight": 0}),
            "its weights or flags say not to train it",
        ),
    ];
    let of_pairs = [
        (
            json!({"question": "Hi", "answer": "\n"}),
            "its `answer` is empty",
        ),
        (
            json!({"question": "Hi", "answer": "Yo", "train": false}),
            "its weights or flags say not to train it",
        ),
    ];
    for (good, bad) in [
        (good, &of_messages[..]),
        (
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}),
            &of_conversations[..],
        ),
        (json!({"instruction": "Hi", "output": "Yo"}), &of_alpaca[..]),
        (json!({"question": "Hi", "answer": "Yo"}), &of_pairs[..]),
    ] {
        for (bad, why) in bad {
            let text = lines(&[good.clone(), bad.clone(), good.clone()]);
            let (found, data) = chatml()
                .all_marked("data.jsonl", &text, &DataOptions::default())
                .unwrap();
            assert_eq!(
                found,
                ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"; 2]
            );
            let reading = &data.report.reading;
            assert_eq!(reading.n_skipped, 1);
            assert_eq!(reading.skipped, [format!("record 2 (line 2): {why}")]);
            // More than the limit allows end the run.
            let options = DataOptions {
                max_skipped: 0.25,
                ..DataOptions::default()
            };
            let error = chatml()
                .load_with("data.jsonl", &text, &options)
                .unwrap_err();
            assert_eq!(
                error,
                format!(
                    "data.jsonl: 1 of 3 records have nothing to train, more than data.max_skipped = 0.25 allows: \
                     record 2 (line 2): {why}"
                )
            );
        }
    }
}

// ---- Tables ----

#[test]
fn tables_of_text_are_read_like_records() {
    for (name, text) in [
        (
            "data.csv",
            "id,question,answer,system\n1,Hi,Yo,S.\n2,\"a, \"\"b\"\"\nc\",d,\n",
        ),
        (
            "data.tsv",
            "id\tquestion\tanswer\tsystem\n1\tHi\tYo\tS.\n2\t\"a, \"\"b\"\"\nc\"\td\t\n",
        ),
        (
            "data.csv",
            "id,instruction,output,system_prompt\r\n1,Hi,Yo,S.\r\n2,\"a, \"\"b\"\"\nc\",d,\r\n",
        ),
    ] {
        file_becomes(
            &chatml(),
            name,
            text,
            &[
                "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n",
                "<|im_start|>user\na, \"b\"\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧\n",
            ],
        );
    }
    // Lists are JSON there.
    file_becomes(
        &qwen3(),
        "data.csv",
        "messages,tools\n\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"Hi\"\"}, \
         {\"\"role\"\": \"\"assistant\"\", \"\"content\"\": \"\"Yo\"\", \"\"weight\"\": 0.5}]\",\
         \"[{\"\"name\"\": \"\"find\"\"}]\"\n",
        &["<|im_start|>system\nFunctions, one a line:\n<tools>\n\
           {\"type\": \"function\", \"function\": {\"name\": \"find\"}}\n\
           </tools>\nCall one as <tool_call>{\"name\": ..., \"arguments\": ...}</tool_call>.<|im_end|>\n\
           <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nYo<|im_end|>⟧×0.5\n"],
    );
    file_becomes(
        &chatml(),
        "data.csv",
        "instruction,output,history\nc,d,\"[[\"\"a\"\", \"\"b\"\"]]\"\n",
        &[
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
           <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧\n",
        ],
    );
    file_becomes(
        &chatml(),
        "data.csv",
        "question,answer\nHow many?,3\n",
        &["<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n⟦3<|im_end|>⟧\n"],
    );
}

#[test]
fn an_answer_that_is_a_number_is_its_digits() {
    all_become(
        &chatml(),
        &[
            json!({"question": "How many?", "answer": 3}),
            json!({"instruction": "How many?", "input": "", "output": 3}),
            json!({"prompt": "How many?", "completion": 3}),
        ],
        &["<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n⟦3<|im_end|>⟧\n"],
    );
}

#[test]
fn parquet_is_read_like_records() {
    let load = |name: &str, options: &DataOptions| {
        let world = chatml();
        let data = olora_data::load_samples(&fixture(name), &world.tokenizer(), options).unwrap();
        let marked: Vec<_> = (data.samples.iter())
            .map(|sample| common::mark(&sample, &world.tokenizer()))
            .collect();
        (marked, data.report.reading.skipped)
    };
    // The fourth prompt is empty, the fifth completion null.
    let (samples, skipped) = load("records/questions-zstd.parquet", &DataOptions::default());
    assert_eq!(
        samples,
        [
            "<|im_start|>user\nWhere is Alder?<|im_end|>\n<|im_start|>assistant\n⟦In Oxmere, by the café.<|im_end|>⟧\n",
            "<|im_start|>user\nWhere is Zora?<|im_end|>\n<|im_start|>assistant\n⟦In Thornby, by the café.<|im_end|>⟧\n",
            "<|im_start|>user\nWhere is Jorun?<|im_end|>\n<|im_start|>assistant\n⟦In Oxmere, by the café.<|im_end|>⟧\n",
            "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n⟦In Thornby, by the café.<|im_end|>⟧\n",
        ]
    );
    assert_eq!(skipped, ["record 5: its `completion` is empty"]);
    let options = DataOptions {
        first: Some(1),
        ..DataOptions::default()
    };
    let (samples, skipped) = load("records/conversations.parquet", &options);
    assert_eq!(
        samples,
        [
            "<|im_start|>user\nWhere is Alder?<|im_end|>\n<|im_start|>assistant\n⟦In Oxmere.<|im_end|>⟧×0.5\n"
        ]
    );
    assert!(skipped.is_empty(), "{skipped:?}");
}

#[test]
fn no_turns_at_all_are_nothing_to_train() {
    let options = DataOptions {
        max_skipped: 0.9,
        ..DataOptions::default()
    };
    for records in [
        [
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
            json!({"messages": []}),
            json!({"messages": null}),
        ],
        [
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}),
            json!({"conversations": []}),
            json!({"conversations": null}),
        ],
    ] {
        let (found, data) = chatml()
            .all_marked("data.jsonl", &lines(&records), &options)
            .unwrap();
        assert_eq!(
            found,
            ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"]
        );
        assert_eq!(
            data.report.reading.skipped,
            [
                "record 2 (line 2): it has no turn of the assistant",
                "record 3 (line 3): it has no turn of the assistant"
            ]
        );
    }
}

// ---- Answers that are no text ----

/// The template's own beginning of functions, as `qwen3.jinja` writes it, up to
/// the turn of the user.
fn functions(tool: &str, system: &str) -> String {
    format!(
        "<|im_start|>system\n{system}Functions, one a line:\n<tools>\n{tool}\n</tools>\n\
         Call one as <tool_call>{{\"name\": ..., \"arguments\": ...}}</tool_call>.<|im_end|>\n"
    )
}

const FIND: &str =
    r#"{"type": "function", "function": {"name": "find", "parameters": {"who": {"type": "str"}}}}"#;

#[test]
fn answers_that_are_calls_are_calls() {
    let tools = r#"[{"name": "find", "parameters": {"who": {"type": "str"}}}]"#;
    let calls = r#"[{"name": "find", "arguments": {"who": "Zora"}}, {"name": "find", "arguments": {"who": "Alder"}}]"#;
    let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let expected = functions(FIND, "")
        + "<|im_start|>user\nWhere are they?<|im_end|>\n<|im_start|>assistant\n\
           ⟦<think>\n\n</think>\n\n<tool_call>\n{\"name\": \"find\", \"arguments\": {\"who\": \"Zora\"}}\n</tool_call>\n\
           <tool_call>\n{\"name\": \"find\", \"arguments\": {\"who\": \"Alder\"}}\n</tool_call><|im_end|>⟧\n";
    all_become(
        &qwen3(),
        &[
            json!({"id": 1, "query": "Where are they?", "answers": calls, "tools": tools}),
            json!({"query": "Where are they?", "answers": parsed(calls), "tools": parsed(tools)}),
            // Each function may be JSON of its own, as in When2Call.
            json!({"query": "Where are they?", "answers": parsed(calls),
                "tools": [parsed(tools)[0].to_string()]}),
        ],
        &[&expected],
    );
    // Of another kind they are text.
    all_become(
        &chatml(),
        &[
            json!({"query": "Hi", "answers": "Yo"}),
            json!({"query": "Hi", "answers": ["Yo"]}),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
    let record = json!({"query": "Where are they?", "answers": calls, "tools": tools});
    all_refused(
        &chatml(),
        std::slice::from_ref(&record),
        "the chat template leaves out a call in the assistant's `tool_calls` of 1 record",
    );
    all_refused(&plain(), &[record], "there is no place for tools");
    all_refused(
        &plain(),
        &[json!({"query": "Where are they?", "answers": parsed(calls)})],
        "there is no place for calls",
    );
}

#[test]
fn an_answer_in_an_object_is_its_text() {
    let expected = "<|im_start|>user\nWhere is she?\n\nZora lives in Thornby.<|im_end|>\n<|im_start|>assistant\n⟦Thornby<|im_end|>⟧\n";
    let record = |answers: Value| {
        json!({"id": "5", "title": "Village", "context": "Zora lives in Thornby.",
        "question": "Where is she?", "answers": answers})
    };
    let plain_options = DataOptions::default();
    all_become_with(
        &chatml(),
        &plain_options,
        &[
            record(json!({"text": ["Thornby"], "answer_start": [14]})),
            record(json!({"text": ["Thornby", "Thornby"], "answer_start": [14, 14]})),
            record(json!({"text": "Thornby"})),
        ],
        &[expected],
    );
    let several = record(json!({"text": ["Thornby", "in Thornby"], "answer_start": [14, 11]}));
    all_refused_with(
        &chatml(),
        &plain_options,
        std::slice::from_ref(&several),
        "`answers.text` has 2 texts that differ: which of them is right? data.columns = { completion = \"answers.text[0]\" }",
    );
    for path in ["answers.text[0]", "answers.text"] {
        let options = DataOptions {
            columns: BTreeMap::from([("completion".to_owned(), path.to_owned())]),
            ignore: vec!["title".to_owned()],
            ..plain_options.clone()
        };
        let one = record(json!({"text": ["Thornby"], "answer_start": [14]}));
        all_become_with(&chatml(), &options, &[one], &[expected]);
        if path.ends_with(']') {
            all_become_with(
                &chatml(),
                &options,
                std::slice::from_ref(&several),
                &[expected],
            );
        }
        let odd = record(json!({"text": ["Thornby"], "mood": "sour"}));
        all_refused_with(
            &chatml(),
            &options,
            &[odd],
            "nothing uses `answers.mood` (1 record",
        );
    }
    let odd = record(json!({"text": ["Thornby"], "mood": "sour"}));
    all_refused_with(
        &chatml(),
        &plain_options,
        &[odd],
        "nothing uses `answers.mood` (1 record",
    );
    // Beside another answer the title may be what it is about.
    all_refused(
        &chatml(),
        &[record(json!(["Thornby"]))],
        "nothing uses `title` (1 record",
    );
    // Of no answer nothing is learnt.
    let text = lines(&[
        record(json!({"text": ["Thornby"], "answer_start": [14]})),
        record(json!({"text": [], "answer_start": []})),
    ]);
    let (found, data) = chatml()
        .all_marked("data.jsonl", &text, &plain_options)
        .unwrap();
    assert_eq!(found, [expected]);
    let skipped = ["record 2 (line 2): its `answers` is empty"];
    assert_eq!(data.report.reading.skipped, skipped);
}

#[test]
fn an_answer_that_is_true_or_false_is_that_word() {
    let records = [
        json!({"question": "Is Zora in Thornby?", "passage": "She is.", "answer": true}),
        json!({"question": "Is Alder in Thornby?", "answer": false}),
    ];
    let (found, data) = chatml()
        .all_marked("data.jsonl", &lines(&records), &DataOptions::default())
        .unwrap();
    assert_eq!(
        found,
        [
            "<|im_start|>user\nIs Zora in Thornby?\n\nShe is.<|im_end|>\n<|im_start|>assistant\n⟦true<|im_end|>⟧\n",
            "<|im_start|>user\nIs Alder in Thornby?<|im_end|>\n<|im_start|>assistant\n⟦false<|im_end|>⟧\n",
        ]
    );
    let report = data.report.to_string();
    let said = "2 answers true or false, trained as JSON writes it";
    assert!(report.contains(said), "{report}");
}

#[test]
fn records_without_an_answer_are_left_out_and_named_wherever_they_are() {
    let good = json!({"question": "Hi", "answer": "Yo"});
    let without = json!({"question": "Hi"});
    let null = json!({"question": "Hi", "answer": null});
    let expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n";
    for (records, skipped) in [
        (
            [&good, &without, &null, &good],
            [
                "record 2 (line 2): it has no answer",
                "record 3 (line 3): its `answer` is empty",
            ],
        ),
        (
            [&without, &null, &good, &good],
            [
                "record 1 (line 1): it has no answer",
                "record 2 (line 2): its `answer` is empty",
            ],
        ),
    ] {
        let records = records.map(Clone::clone);
        let (found, data) = chatml()
            .all_marked("data.jsonl", &lines(&records), &DataOptions::default())
            .unwrap();
        assert_eq!(found, [expected; 2]);
        assert_eq!(data.report.reading.skipped, skipped);
    }
    // By a name that the user gives, and as turns.
    let named = DataOptions {
        columns: BTreeMap::from([("completion".to_owned(), "gold".to_owned())]),
        ..DataOptions::default()
    };
    for (options, records, why) in [
        (
            named,
            [
                json!({"question": "Hi"}),
                json!({"question": "Hi", "gold": "Yo"}),
            ],
            "record 1 (line 1): it has no `gold`",
        ),
        (
            DataOptions::default(),
            [
                json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": null}),
                json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Yo"}),
            ],
            "record 1 (line 1): its `completion` is empty",
        ),
    ] {
        let (found, data) = chatml()
            .all_marked("data.jsonl", &lines(&records), &options)
            .unwrap();
        assert_eq!(found, [expected]);
        assert_eq!(data.report.reading.skipped, [why]);
    }
    let bad = [good, without.clone(), without];
    let error = chatml().load("data.jsonl", &lines(&bad)).unwrap_err();
    assert!(
        error.starts_with("data.jsonl: 2 of 3 records have nothing to train"),
        "{error}"
    );
}

// ---- Dialogues that are one text ----

#[test]
fn a_dialogue_with_calls_that_is_one_text_is_turns() {
    let system = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n\
        {\n    \"name\": \"find\",\n    \"parameters\": {\"who\": {\"type\": \"str\"}}\n}\n";
    let chat = "USER: Where is Zora?\n\n\nASSISTANT: <functioncall> {\"name\": \"find\", \"arguments\": \
        '{\"who\": \"Zora\"}'} <|endoftext|>\n\n\nFUNCTION RESPONSE: {\"place\": \"Thornby\"}\n\n\n\
        ASSISTANT: In Thornby.\n\nBy the mill. <|endoftext|>\n\n\n";
    // The template forgets the empty thought of the first answer in the second.
    let begin = functions(FIND, "You are a helpful assistant.\n\n")
        + "<|im_start|>user\nWhere is Zora?<|im_end|>\n<|im_start|>assistant\n";
    let call = "<tool_call>\n{\"name\": \"find\", \"arguments\": {\"who\": \"Zora\"}}\n</tool_call><|im_end|>";
    let first = format!("{begin}⟦<think>\n\n</think>\n\n{call}⟧\n");
    let second = format!(
        "{begin}{call}\n<|im_start|>user\n<tool_response>\n{{\"place\": \"Thornby\"}}\n</tool_response><|im_end|>\n\
         <|im_start|>assistant\n⟦<think>\n\n</think>\n\nIn Thornby.\n\nBy the mill.<|im_end|>⟧\n"
    );
    all_become(
        &qwen3(),
        &[json!({"system": system, "chat": chat})],
        &[&first, &second],
    );
    all_become(
        &chatml(),
        &[
            json!({"system": "SYSTEM: You are a helpful assistant, with no access to external functions.\n",
            "chat": "USER: Hi\n\n\nASSISTANT: Yo <|endoftext|>\n\n\n"}),
        ],
        &[
            "<|im_start|>system\nYou are a helpful assistant, with no access to external functions.<|im_end|>\n\
           <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n",
        ],
    );
    // A template without functions says so.
    all_refused(
        &chatml(),
        &[json!({"system": system, "chat": chat})],
        "the chat template leaves out a call in the assistant's `tool_calls` of 1 record",
    );
    // What cannot be read is left out, and named.
    let good = json!({"chat": "USER: Hi\n\n\nASSISTANT: Yo <|endoftext|>"});
    for (chat, why) in [
        (
            "USER: Hi\n\n\nASSISTANT: <functioncall> {\"name\": find} <|endoftext|>",
            "turn 2 of its `chat` has a `<functioncall>` that is no JSON",
        ),
        (
            "USER: Hi\n\n\nASSISTANT: Yo <|endoftext|> and more",
            "turn 2 of its `chat` goes on after `<|endoftext|>`",
        ),
    ] {
        let text = lines(&[good.clone(), json!({"chat": chat})]);
        let data = chatml().load("data.jsonl", &text).unwrap();
        assert_eq!(
            data.report.reading.skipped,
            [format!("record 2 (line 2): {why}")]
        );
    }
    all_refused(
        &chatml(),
        &[json!({"chat": "Hi there"})],
        "its keys (`chat`) fit no known format",
    );
}

#[test]
fn arguments_within_quotes_may_have_quotes() {
    for written in [
        r#"{"name": "find", "arguments": '{"who": "Zora's"}'}"#,
        r#"{"name": "find", "arguments": '{"who": "Zora\'s"}'}"#,
        r#"{"name": "find", "arguments": "{\"who\": \"Zora's\"}"}"#,
        r#"{"name": "find", "arguments": {"who": "Zora's"}}"#,
    ] {
        let chat =
            format!("USER: Hi\n\n\nASSISTANT: I look. <functioncall> {written} <|endoftext|>");
        all_become(
            &qwen3(),
            &[json!({"chat": chat})],
            &[
                "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nI look.\n\
               <tool_call>\n{\"name\": \"find\", \"arguments\": {\"who\": \"Zora's\"}}\n</tool_call><|im_end|>⟧\n",
            ],
        );
    }
}

// ---- Turns that are rendered already ----

#[test]
fn the_end_of_a_turn_is_not_doubled() {
    let records = [
        json!({"messages": [{"role": "user", "content": "Hi<|im_end|>\n"}, {"role": "assistant", "content": "Yo<|im_end|>"}]}),
        json!({"prompt": "Hi", "completion": "Yo</s>"}),
    ];
    let (found, data) = chatml()
        .all_marked("data.jsonl", &lines(&records[..1]), &DataOptions::default())
        .unwrap();
    let expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n";
    assert_eq!(found, [expected]);
    let report = data.report.to_string();
    let said = "2 turns with the token that ends it written out: it is not doubled";
    assert!(report.contains(said), "{report}");
    all_become(&chatml(), &records[1..], &[expected]);
}

#[test]
fn turns_with_the_templates_own_words_are_refused_unless_they_are_meant() {
    let record = json!({"messages": [
        {"role": "user", "content": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"},
        {"role": "assistant", "content": "Yo"},
    ]});
    let error = chatml()
        .load("data.jsonl", &lines(&[record.clone(), record.clone()]))
        .unwrap_err();
    assert_eq!(
        error,
        "data.jsonl: turns were rendered by a template already, and would be once more: `<|im_start|>` in the user turn \
         in 2 records (the first record 1 (line 1): \"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\"). Give the \
         words alone, prompt and completion as rendered texts, or set data.allow_markup = true if they are meant as words"
    );
    let options = DataOptions {
        allow_markup: true,
        ..DataOptions::default()
    };
    all_become_with(
        &chatml(),
        &options,
        &[record],
        &[
            "<|im_start|>user\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n\
           <|im_start|>assistant\n⟦Yo<|im_end|>⟧\n",
        ],
    );
    // Another template's words are words.
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "[INST] <|user|>"}, {"role": "assistant", "content": "Yo"}]}),
        ],
        &["<|im_start|>user\n[INST] <|user|><|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
}

#[test]
fn a_text_that_is_a_rendered_chat_is_said_to_train_questions_too() {
    for text in [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n",
        "### Human: Hi### Assistant: Yo",
    ] {
        let data = chatml().load("data.jsonl", &json!({"text": text}).to_string());
        let report = data.unwrap().report.to_string();
        let said = "1 text beginning as a rendered chat: questions are trained too";
        assert!(report.contains(said), "{report}");
    }
}

// ---- What weights and earlier turns say ----

#[test]
fn a_weight_of_one_on_every_turn_says_nothing() {
    let turns = |user: Value, assistant: Value| {
        json!({"messages": [
        {"role": "user", "content": "Hi", "weight": user}, {"role": "assistant", "content": "Yo", "weight": assistant}]})
    };
    all_become(
        &chatml(),
        &[
            turns(json!(1), json!(1)),
            turns(json!(1.0), json!(1)),
            turns(json!(0), json!(1)),
            turns(Value::Null, json!(1)),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
    all_refused(
        &chatml(),
        &[
            turns(json!(1), json!(0)),
            turns(json!(1), Value::Null),
            turns(json!(0.5), json!(0.5)),
        ],
        "turn 1 has `weight`, which asks to train it, but is the user's",
    );
}

#[test]
fn keys_of_earlier_turns_are_accounted_for() {
    let record = |key: &str| {
        json!({"question": "c", "answer": "d",
        "history": [{"role": "user", "content": "a", key: "x"}, {"role": "assistant", "content": "b", key: "x"}]})
    };
    let data = chatml()
        .load("data.jsonl", &record("id").to_string())
        .unwrap();
    let keys = &data.report.reading.keys;
    let harmless = keys.iter().find(|key| key.key == "history[].id").unwrap();
    assert_eq!((harmless.use_, harmless.n_records), (KeyUse::Harmless, 1));
    all_refused(
        &chatml(),
        &[record("mood")],
        "nothing uses `history[].mood` (1 record",
    );
}

// ---- Samples of one record ----

#[test]
fn what_is_held_out_is_whole_conversations() {
    let turn = |role: &str, content: String| json!({"role": role, "content": content});
    let record = |i: usize| {
        let mut turns = Vec::new();
        // Of one, two or three answers, each a sample of its own.
        for answer in 0..=i % 3 {
            turns.push(turn("user", format!("q{i}.{answer}")));
            turns.push(turn(
                "assistant",
                format!("<think>\nt\n</think>\n\na{i}.{answer}"),
            ));
        }
        json!({"messages": turns})
    };
    let records: Vec<_> = (0..30).map(record).collect();
    let world = qwen3();
    let data = world.load("data.jsonl", &lines(&records)).unwrap();
    assert_eq!(data.samples.len(), 60);
    let tokenizer = world.tokenizer();
    let of = |half: &olora_data::Corpus| -> Vec<String> {
        let samples = half.iter();
        let texts = samples.map(|sample| tokenizer.decode(&sample.tokens, true).unwrap());
        let first = |text: String| {
            text.split('q')
                .nth(1)
                .unwrap()
                .split('.')
                .next()
                .unwrap()
                .to_owned()
        };
        texts.map(first).collect()
    };
    for (count, n) in [
        (ValidationSplit::Count(10), 10),
        (ValidationSplit::Fraction(0.5), 15),
    ] {
        let (train, valid) = split(data.samples.clone(), count, 7).unwrap();
        let (trained, held_out) = (of(&train), of(&valid));
        assert_eq!(trained.len() + held_out.len(), 60);
        assert!(held_out.iter().all(|record| !trained.contains(record)));
        let distinct: std::collections::BTreeSet<_> = held_out.iter().collect();
        assert_eq!(distinct.len(), n);
        assert_eq!(split(data.samples.clone(), count, 7).unwrap().1, valid);
        assert_ne!(split(data.samples.clone(), count, 8).unwrap().1, valid);
    }
    // Where every record is one sample, what it always was: see the numbers.
    let single: Vec<_> = (0..20).map(|i| record(3 * i)).collect();
    let data = world.load("data.jsonl", &lines(&single)).unwrap();
    let (_, valid) = split(data.samples, ValidationSplit::Count(4), 7).unwrap();
    assert_eq!(of(&valid), HELD_OUT);
}

/// Of twenty samples, the four that seed 7 has held out since the first version.
const HELD_OUT: [&str; 4] = ["9", "24", "39", "42"];

// ---- What users of other tools reported ----

#[test]
fn keys_may_begin_with_a_capital() {
    all_become(
        &chatml(),
        &[
            json!({"Question": "Hi", "Answer": "Yo"}),
            json!({"Prompt": "Hi", "RESPONSE": "Yo", "Category": "village"}),
            json!({"Instruction": "Hi", "Input": "", "Output": "Yo"}),
            json!({"Messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
    // Both are there: one of them would be lost.
    all_refused(
        &chatml(),
        &[
            json!({"prompt": "Hi", "completion": "Yo", "Context": "Zora is away.", "context": "Alder too."}),
        ],
        "nothing uses `Context`",
    );
}

#[test]
fn a_number_of_too_many_digits_is_refused() {
    let world = chatml();
    for record in [
        r#"{"prompt": "Hi", "completion": 123456789012345678901234567890}"#,
        r#"{"prompt": -123456789012345678901, "completion": "Yo"}"#,
        r#"{"messages": [{"role": "user", "content": 123456789012345678901234567890}, {"role": "assistant", "content": "Yo"}]}"#,
    ] {
        let error = world.all_marked("data.jsonl", record, &DataOptions::default());
        let error = error.unwrap_err();
        assert!(error.contains("more digits than"), "{error}");
    }
    file_becomes(
        &world,
        "data.jsonl",
        r#"{"id": 123456789012345678901234567890, "messages": [{"role": "user", "content": 6.022e23}, {"role": "assistant", "content": 18446744073709551615}]}"#,
        &[
            "<|im_start|>user\n6.022e+23<|im_end|>\n<|im_start|>assistant\n⟦18446744073709551615<|im_end|>⟧\n",
        ],
    );
}

/// The arguments that the first call of a chat is rendered with.
fn rendered_arguments(call: &Value) -> String {
    let record = json!({"messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]});
    let options = DataOptions {
        max_length: 2000,
        ..DataOptions::default()
    };
    let (found, _) = qwen3()
        .all_marked("data.jsonl", &record.to_string(), &options)
        .unwrap();
    let (_, arguments) = found[0].split_once("\"arguments\": ").unwrap();
    arguments
        .split_once("}\n</tool_call>")
        .unwrap()
        .0
        .to_owned()
}

#[test]
fn arguments_are_an_object_in_whatever_way_they_are_written() {
    for arguments in [
        json!({"who": "Zora"}),
        json!(r#"{"who": "Zora"}"#),
        // Written as text twice.
        json!(r#""{\"who\": \"Zora\"}""#),
    ] {
        let call = json!({"function": {"name": "find", "arguments": arguments}});
        assert_eq!(rendered_arguments(&call), r#"{"who": "Zora"}"#, "{call}");
    }
    for function in [
        json!({"name": "find"}),
        json!({"name": "find", "arguments": null}),
        json!({"name": "find", "arguments": ""}),
        json!({"name": "find", "arguments": "null"}),
    ] {
        assert_eq!(rendered_arguments(&json!({"function": function})), "{}");
    }
    // What would be other arguments as an object stays the text that it is.
    for text in [
        r#"{"n": 123456789012345678901234567890}"#,
        r#"{"who": "Zora", "who": "Alder"}"#,
    ] {
        let call = json!({"function": {"name": "find", "arguments": text}});
        assert_eq!(rendered_arguments(&call), text);
    }
}

#[test]
fn the_result_of_a_call_may_be_data() {
    let chat = |result: Value| {
        json!({"messages": [
            {"role": "user", "content": "Hi"},
            {"role": "tool", "content": result},
            {"role": "assistant", "content": "Yo"},
        ]})
    };
    for (result, expected) in [
        (json!([{"place": "Oxmere"}]), r#"[{"place":"Oxmere"}]"#),
        (json!({"place": "Oxmere"}), r#"{"place":"Oxmere"}"#),
        (json!([1, 2]), "[1,2]"),
        (json!(true), "true"),
        (json!([{"type": "text", "text": "Oxmere"}]), "Oxmere"),
    ] {
        let expected = format!(
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>tool\n{expected}<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"
        );
        all_become(&chatml(), &[chat(result)], &[&expected]);
    }
}

#[test]
fn thoughts_among_the_parts_are_thoughts() {
    let chat = |parts: Value| json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": parts}]});
    all_become(
        &qwen3(),
        &[
            chat(
                json!([{"type": "thinking", "thinking": "Hm.", "signature": "a"}, {"type": "text", "text": "Yo"}]),
            ),
            chat(
                json!([{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": "Yo", "cache_control": {"type": "ephemeral"}}]),
            ),
        ],
        &[
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think>\nHm.\n</think>\n\nYo<|im_end|>⟧\n",
        ],
    );
    all_refused(
        &qwen3(),
        &[chat(
            json!([{"type": "tool_use", "name": "find", "input": {}}]),
        )],
        "`tool_use`: give the calls beside `content`, as `tool_calls`",
    );
}

#[test]
fn nulls_that_fill_a_table_are_nothing() {
    all_become(
        &chatml(),
        &[
            json!({"messages": [{"role": "user", "content": "Hi", "tool_calls": [null], "mood": {"is": null}}, {"role": "assistant", "content": "Yo"}], "tools": "null", "label": {"is": null}}),
            json!({"system": [{"type": "text", "text": ""}], "messages": [{"role": "user", "content": "Hi"}, {"role": "Chatbot", "content": "Yo"}], "parallel_tool_calls": false}),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
}

#[test]
fn an_empty_system_turn_is_merged_without_a_trace() {
    all_become_with(
        &chatml(),
        &DataOptions {
            system: SystemTurn::Merge,
            ..DataOptions::default()
        },
        &[
            json!({"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
        ],
        &["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"],
    );
}

#[test]
fn the_place_of_a_choice_in_a_table_is_its_letter() {
    let table = |options: &str, answer: &str| {
        format!("question,choices,answer\nWhere?,\"{options}\",{answer}\n")
    };
    for (options, answer, expected) in [
        (r#"[""Oxmere"", ""Thornby""]"#, "1", "B"),
        (r#"[""Oxmere"", ""Thornby""]"#, "A", "A"),
        // It is a choice itself.
        (r#"[""1"", ""2""]"#, "1", "1"),
        (r#"{""1"": ""Oxmere"", ""2"": ""Thornby""}"#, "1", "1"),
    ] {
        let (found, _) = chatml()
            .all_marked("data.csv", &table(options, answer), &DataOptions::default())
            .unwrap();
        let expected = format!("⟦{expected}<|im_end|>⟧");
        assert!(found[0].contains(&expected), "{options}: {}", found[0]);
    }
}

#[test]
fn turns_as_python_prints_them_are_named_as_that() {
    let text = "messages\n\"[{'role': 'user', 'content': 'Hi'}]\"\n";
    let error = chatml().all_marked("data.csv", text, &DataOptions::default());
    let error = error.unwrap_err();
    assert!(
        error.contains("single quotes, True and None are Python's"),
        "{error}"
    );
}

#[test]
fn a_role_that_nobody_knows_is_named_where_nothing_is_trained() {
    let records = [
        json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistent", "content": "Yo"}]}),
        json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}),
    ];
    let world = chatml();
    let samples = world.load("data.jsonl", &lines(&records)).unwrap();
    assert_eq!(
        samples.report.reading.skipped,
        [
            "record 1 (line 1): it has no turn of the assistant, but of `assistent`, whom nobody here knows"
        ]
    );
}

#[test]
fn keys_that_a_user_names_and_no_record_has_are_said() {
    let options = DataOptions {
        columns: BTreeMap::from([
            ("prompt".to_owned(), "riddle".to_owned()),
            ("system".to_owned(), "sistem".to_owned()),
        ]),
        ignore: ["scoer", "mood", "messages[].a"].map(str::to_owned).into(),
        ..DataOptions::default()
    };
    let record = json!({"riddle": "Hi", "completion": "Yo", "mood": null});
    let (_, data) = chatml()
        .all_marked("data.jsonl", &record.to_string(), &options)
        .unwrap();
    let report = data.report;
    assert_eq!(report.reading.absent, ["scoer", "sistem"]);
    let words = "no record has `scoer`, `sistem`, which data.columns or data.ignore names";
    assert!(report.to_string().contains(words), "{report}");
}
