//! What is trained, for every format.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{CHATML, World, mark};
use olora_data::{Batch, DataOptions, Format, PromptStyle};
use serde_json::{Value, json};

#[test]
fn every_assistant_turn_is_trained_with_its_end_and_nothing_after() {
    let turns = json!([
        {"role": "system", "content": "S"}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "é y"},
    ]);
    assert_eq!(
        World::new(Some(CHATML)).marked(&json!({"messages": turns})),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\n⟦Hi<|im_end|>⟧\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\n⟦é y<|im_end|>⟧\n"
    );
}

#[test]
fn with_a_template_every_format_is_a_chat() {
    let world = World::new(Some(CHATML));
    let expected = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧\n";
    for (record, format) in [
        (
            json!({"instruction": "Q", "input": "", "output": "A"}),
            Format::Alpaca,
        ),
        (
            json!({"prompt": "Q", "completion": "A"}),
            Format::PromptCompletion,
        ),
        (
            json!({"question": "Q", "answer": "A"}),
            Format::PromptCompletion,
        ),
        (
            json!({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}),
            Format::ShareGpt,
        ),
    ] {
        assert_eq!(world.marked(&record), expected);
        let data = world.load("data.jsonl", &record.to_string()).unwrap();
        assert_eq!(
            (data.format, data.report.prompt_style),
            (format, PromptStyle::ChatTemplate)
        );
    }
}

#[test]
fn without_a_template_the_completion_and_the_end_are_trained() {
    let world = World::new(None);
    let data = world
        .load("data.jsonl", r#"{"prompt": "Q: ", "completion": "A"}"#)
        .unwrap();
    assert_eq!(
        mark(&data.samples.sample(0), &world.tokenizer()),
        "<s>Q: ⟦A</s>⟧"
    );
    assert_eq!(data.report.prompt_style, PromptStyle::Verbatim);
    let data = world
        .load("data.jsonl", r#"{"instruction": "I", "output": "O"}"#)
        .unwrap();
    let text = mark(&data.samples.sample(0), &world.tokenizer());
    assert!(
        text.starts_with("<s>Below is an instruction that describes a task. Write"),
        "{text}"
    );
    assert!(
        text.ends_with("### Instruction:\nI\n\n### Response:\n⟦O</s>⟧"),
        "{text}"
    );
    assert_eq!(data.report.prompt_style, PromptStyle::AlpacaPrompt);
}

#[test]
fn the_end_is_trained_although_it_is_also_the_padding() {
    let world = World::new(None);
    let tokenizer = world.tokenizer();
    assert_eq!(tokenizer.eos_id(), Some(tokenizer.pad_id()));
    let lines = "{\"prompt\": \"Q\", \"completion\": \"A\"}\n{\"prompt\": \"Q\", \"completion\": \"AAA\"}\n";
    let data = world.load("data.jsonl", lines).unwrap();
    let batch = Batch::from_samples(&data.samples.iter().collect::<Vec<_>>(), tokenizer.pad_id());
    let ends = batch.targets.iter().filter(|&&target| target == 1).count();
    assert_eq!(
        (
            ends,
            batch.n_trained,
            batch.n_rows * batch.seq_len - batch.n_tokens
        ),
        (2, 6, 2)
    );
}

#[test]
fn a_token_across_the_boundary_is_trained() {
    // "Ġy" is one token: half prompt, half completion, and all there is to learn.
    assert_eq!(
        World::new(None).marked(&json!({"prompt": "n or y? ", "completion": "y"})),
        "<s>n or y?⟦ y</s>⟧"
    );
}

#[test]
fn offsets_are_bytes() {
    let marked = World::new(None).marked(&json!({"prompt": "äöü→", "completion": "漢字"}));
    assert_eq!(marked, "<s>äöü→⟦漢字</s>⟧");
}

#[test]
fn trimmed_offsets_do_not_lose_spaces() {
    // Llama 3's post-processor moves the offsets of a token past its spaces.
    let world = World::new(None);
    let mut tokenizer: Value =
        serde_json::from_slice(&fs::read(world.path("tokenizer.json")).unwrap()).unwrap();
    let trim = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let template = tokenizer["post_processor"].take();
    tokenizer["post_processor"] = json!({"type": "Sequence", "processors": [trim, template]});
    world.write("tokenizer.json", &tokenizer);
    let marked = world.marked(&json!({"prompt": "Q:  ", "completion": "  A y  "}));
    assert_eq!(marked, "<s>Q:  ⟦  A y  </s>⟧");
}

#[test]
fn an_end_is_added_where_the_template_has_none() {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    // The line break that would have come before it goes, or it would stand between.
    let expected = "user: Q\nassistant: ⟦A</s>⟧";
    assert_eq!(
        World::new(Some(template)).marked(&json!({"prompt": "Q", "completion": "A"})),
        expected
    );
}

#[test]
fn the_beginning_is_not_doubled() {
    let chat = World::new(Some(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}",
    ));
    assert_eq!(
        chat.marked(&json!({"prompt": "Q", "completion": "A"})),
        "<s>Q</s>⟦A</s>⟧"
    );
    let plain = World::new(None);
    assert_eq!(
        plain.marked(&json!({"prompt": "<s>Q", "completion": "A"})),
        "<s>Q⟦A</s>⟧"
    );
    assert_eq!(plain.marked(&json!({"text": "<s>abc</s>"})), "<s>⟦abc</s>⟧");
}

#[test]
fn prompts_are_trained_on_request() {
    let options = DataOptions {
        train_on_prompt: true,
        ..DataOptions::default()
    };
    let world = World::new(Some(CHATML));
    let data = world
        .load_with(
            "data.jsonl",
            r#"{"prompt": "Q", "completion": "A"}"#,
            &options,
        )
        .unwrap();
    let expected = "<|im_start|>⟦user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n⟧";
    assert_eq!(mark(&data.samples.sample(0), &world.tokenizer()), expected);
}

#[test]
fn text_is_cut_into_blocks_across_documents() {
    let world = World::new(None);
    let options = DataOptions {
        max_length: 5,
        ..DataOptions::default()
    };
    let lines = "{\"text\": \"abc\"}\n{\"text\": \"\"}\n\n{\"text\": \"defghi\"}\n";
    let data = world.load_with("data.jsonl", lines, &options).unwrap();
    let blocks: Vec<_> = data
        .samples
        .iter()
        .map(|block| mark(&block, &world.tokenizer()))
        .collect();
    // 5 and 8 tokens: a last block of 3.
    assert_eq!(blocks, ["<s>⟦abc</s>⟧", "<s>⟦defg⟧", "h⟦i</s>⟧"]);
    assert_eq!(
        (data.format, data.report.n_records, data.report.n_empty),
        (Format::Text, 3, 1)
    );
    assert_eq!(
        (
            data.report.n_samples,
            data.report.n_tokens,
            data.report.longest
        ),
        (3, 13, 8)
    );
    // A last block of one token has nothing to predict.
    let data = world.load_with("story.txt", "abcd", &options).unwrap();
    assert_eq!(
        (
            data.format,
            data.samples.len(),
            data.samples.sample(0).len()
        ),
        (Format::Text, 1, 5)
    );
}
