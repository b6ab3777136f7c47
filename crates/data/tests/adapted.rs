//! Conversations that a template fails on unless they are given otherwise.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Value, json};

/// As `DeepSeek` V3's: the arguments of a call are joined to other text.
const TEXT: &str = "{% for m in messages %}<{{ m.role }}>\
    {% for call in m.tool_calls or [] %}{{ '[' + call.function.name + ' ' + call.function.arguments + ']' }}{% endfor %}\
    {{ m.content or '' }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
/// The arguments are gone through.
const OBJECT: &str = "{% for m in messages %}<{{ m.role }}>\
    {% for call in m.tool_calls or [] %}[{{ call.function.name }}{% for key, value in call.function.arguments.items() %} {{ key }}={{ value }}{% endfor %}]{% endfor %}\
    {{ m.content or '' }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
/// There has to be a content.
const CONTENT: &str = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}\
    {% for call in m.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
/// Both at once.
const BOTH: &str = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}\
    {% for call in m.tool_calls or [] %}{{ '[' + call.function.name + call.function.arguments + ']' }}{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

fn record(arguments: &Value) -> Value {
    json!({"messages": [
        {"role": "user", "content": "Where does Zora live?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "function": {"name": "find", "arguments": arguments}}]},
        {"role": "tool", "content": "Thornby"},
        {"role": "assistant", "content": "In Thornby."}]})
}

/// What the samples are, and what the report says of what was given otherwise.
fn becomes(template: &str, arguments: &Value) -> (String, Vec<(String, usize)>) {
    let world = World::new(Some(template));
    let record = record(arguments);
    let read = world.load("data.jsonl", &record.to_string()).unwrap();
    let adapted = read.report.reading.adapted.into_iter();
    let adapted = adapted.map(|part| (part.what, part.n_records)).collect();
    (world.marked(&record), adapted)
}

const AS_TEXT: &str = "arguments of calls given as JSON text";
const EMPTY: &str = "turns without content given an empty one";

fn said(all: &[&str]) -> Vec<(String, usize)> {
    all.iter().map(|what| ((*what).to_owned(), 1)).collect()
}

#[test]
fn a_template_that_wants_arguments_as_text_gets_them_so() {
    // As Python's `json.dumps` writes them, whichever way the record has them.
    for arguments in [
        json!({"who": "Zora", "née": ["Jorun", 1.0]}),
        json!("{\"who\":\"Zora\",\"née\":[\"Jorun\",1.0]}"),
    ] {
        assert_eq!(
            becomes(TEXT, &arguments),
            (
                "<user>Where does Zora live?</s><assistant>⟦[find {\"who\": \"Zora\", \"née\": [\"Jorun\", 1.0]}]</s>⟧\
                 <tool>Thornby</s><assistant>⟦In Thornby.</s>⟧"
                    .to_owned(),
                said(&[AS_TEXT])
            )
        );
    }
}

#[test]
fn a_template_that_goes_through_arguments_gets_an_object() {
    for arguments in [json!({"who": "Zora"}), json!("{\"who\": \"Zora\"}")] {
        assert_eq!(
            becomes(OBJECT, &arguments),
            (
                "<user>Where does Zora live?</s><assistant>⟦[find who=Zora]</s>⟧\
                 <tool>Thornby</s><assistant>⟦In Thornby.</s>⟧"
                    .to_owned(),
                said(&[])
            )
        );
    }
}

#[test]
fn a_template_that_wants_a_content_gets_an_empty_one() {
    assert_eq!(
        becomes(CONTENT, &json!({"who": "Zora"})),
        (
            "<user>Where does Zora live?</s><assistant>⟦[find {\"who\": \"Zora\"}]</s>⟧\
             <tool>Thornby</s><assistant>⟦In Thornby.</s>⟧"
                .to_owned(),
            said(&[EMPTY])
        )
    );
    assert_eq!(
        becomes(BOTH, &json!({"who": "Zora"})),
        (
            "<user>Where does Zora live?</s><assistant>⟦[find{\"who\": \"Zora\"}]</s>⟧\
             <tool>Thornby</s><assistant>⟦In Thornby.</s>⟧"
                .to_owned(),
            said(&[AS_TEXT, EMPTY])
        )
    );
}

#[test]
fn the_report_says_what_was_given_otherwise() {
    let world = World::new(Some(BOTH));
    let read = world.load("data.jsonl", &record(&json!({"who": "Zora"})).to_string());
    let report = read.unwrap().report.to_string();
    assert!(
        report.contains(
            "1 record: arguments of calls given as JSON text, since the chat template fails without (the first record 1 (line 1))"
        ),
        "{report}"
    );
}

#[test]
fn a_template_that_fails_on_all_says_what_it_failed_on_first() {
    let world = World::new(Some("{{ messages[1].content + messages[9].content }}"));
    let error = world.load("data.jsonl", &record(&json!({"who": "Zora"})).to_string());
    assert!(error.unwrap_err().contains("chat template: "));
}
