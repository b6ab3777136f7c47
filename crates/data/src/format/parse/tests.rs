//! Every layout, and every name that its parts have.

use serde_json::json;

use super::*;
use crate::{FirstTurn, SystemTurn};

fn parse_with(record: &Value, chat: bool, options: &DataOptions) -> Result<Parsed, DataError> {
    let record = record.as_object().unwrap();
    Format::detect(record)?.parse(record, chat, options)
}

fn parse(record: &Value, chat: bool) -> Result<Example, DataError> {
    Ok(parse_with(record, chat, &DataOptions::default())?.example)
}

/// Roles and contents.
fn turns(record: &Value) -> Vec<(String, String)> {
    turns_with(record, &DataOptions::default())
}

fn turns_with(record: &Value, options: &DataOptions) -> Vec<(String, String)> {
    match parse_with(record, true, options).unwrap().example {
        Example::Chat(conversation) => conversation
            .messages
            .iter()
            .map(|m| (m.role().to_owned(), m.content().to_owned()))
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn expected(turns: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(role, content): &(&str, &str)| ((*role).to_owned(), (*content).to_owned());
    turns.iter().map(owned).collect()
}

const ASKED: (&str, &str) = ("user", "Where is Alder?");
const SAID: (&str, &str) = ("assistant", "In Oxmere.");

#[test]
fn an_instruction_is_a_chat_or_the_alpaca_prompt() {
    let record = json!({"instruction": "Add.", "input": "1 2", "output": "3"});
    assert_eq!(
        turns(&record),
        expected(&[("user", "Add.\n\n1 2"), ("assistant", "3")])
    );
    let prompt = "Below is an instruction that describes a task, paired with an input that provides further \
        context. Write a response that appropriately completes the request.\n\n\
        ### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n";
    let pair = Example::Pair {
        prompt: prompt.to_owned(),
        completion: "3".to_owned(),
        weight: 1.0,
    };
    assert_eq!(parse(&record, false).unwrap(), pair);
    for input in [json!(null), json!("")] {
        let record = json!({"instruction": "Sing.", "input": input, "output": "La", "system": ""});
        assert_eq!(
            turns(&record),
            expected(&[("user", "Sing."), ("assistant", "La")])
        );
    }
    let prompt = "Below is an instruction that describes a task. Write a response that appropriately \
        completes the request.\n\n### Instruction:\nSing.\n\n### Response:\n";
    assert_eq!(alpaca_prompt("Sing.", ""), prompt);
}

#[test]
fn pairs_by_any_name_are_one_question_and_one_answer() {
    for record in [
        json!({"prompt": "Where is Alder?", "completion": "In Oxmere."}),
        json!({"question": "Where is Alder?", "answer": "In Oxmere."}),
        json!({"input": "Where is Alder?", "output": "In Oxmere."}),
        json!({"query": "Where is Alder?", "response": "In Oxmere.", "type": "MATH"}),
        json!({"problem": "Where is Alder?", "solution": "In Oxmere.", "answer": "Oxmere"}),
        json!({"inputs": "Where is Alder?", "targets": "In Oxmere."}),
        json!({"instruction": "Where is Alder?", "response": "In Oxmere."}),
    ] {
        assert_eq!(turns(&record), expected(&[ASKED, SAID]), "{record}");
    }
}

#[test]
fn turns_by_any_name_are_the_same_conversation() {
    let messages = json!([{"role": "user", "content": "Where is Alder?"},
                          {"role": "assistant", "content": "In Oxmere."}]);
    let from = json!([{"from": "human", "value": "Where is Alder?"},
                      {"from": "gpt", "value": "In Oxmere."}]);
    for record in [
        json!({"messages": messages}),
        json!({"messages": from}),
        json!({"conversations": messages}),
        json!({"conversations": from}),
        json!({"conversation": messages}),
        json!({"dialog": ["Where is Alder?", "In Oxmere."]}),
        json!({"conversation": [{"input": "Where is Alder?", "output": "In Oxmere."}]}),
        json!({"messages": messages.to_string()}),
        json!({"messages": [{"role": "User", "content": "Where is Alder?"},
                            {"role": "Assistant", "content": "In Oxmere."}]}),
        json!({"prompt": [messages[0]], "completion": [messages[1]]}),
        json!({"prompt": [messages[0]], "completion": "In Oxmere."}),
        json!({"prompt": "Where is Alder?", "completion": messages}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Where is Alder?"}]},
                            {"role": "assistant", "content": "In Oxmere.", "tool_calls": null}]}),
    ] {
        assert_eq!(turns(&record), expected(&[ASKED, SAID]), "{record}");
    }
}

#[test]
fn a_system_prompt_goes_first_in_every_layout() {
    let messages = json!([{"role": "user", "content": "Where is Alder?"},
                          {"role": "assistant", "content": "In Oxmere."}]);
    for (key, mut record) in [
        ("system", json!({"messages": messages})),
        ("system_prompt", json!({"conversations": messages})),
        (
            "system",
            json!({"prompt": "Where is Alder?", "completion": "In Oxmere."}),
        ),
        (
            "system_message",
            json!({"question": "Where is Alder?", "answer": "In Oxmere."}),
        ),
        (
            "system_prompt",
            json!({"instruction": "Where is Alder?", "output": "In Oxmere."}),
        ),
        (
            "system",
            json!({"prompt": [messages[0]], "completion": [messages[1]]}),
        ),
    ] {
        record[key] = "Rhyme.".into();
        let all = [("system", "Rhyme."), ASKED, SAID];
        assert_eq!(turns(&record), expected(&all), "{record}");
        let merged = DataOptions {
            system: SystemTurn::Merge,
            ..DataOptions::default()
        };
        let all = [("user", "Rhyme.\n\nWhere is Alder?"), SAID];
        assert_eq!(turns_with(&record, &merged), expected(&all), "{record}");
        let dropped = DataOptions {
            system: SystemTurn::Drop,
            ..DataOptions::default()
        };
        assert_eq!(
            turns_with(&record, &dropped),
            expected(&[ASKED, SAID]),
            "{record}"
        );
    }
    let twice = json!({"system": "Rhyme.", "messages": [{"role": "system", "content": "Do not."}, messages[1]]});
    let error = parse(&twice, true).unwrap_err().to_string();
    assert!(error.contains("a system turn and a `system`"), "{error}");
}

#[test]
fn what_a_question_is_about_is_part_of_it() {
    let asked = |record: &Value| turns(record)[0].1.clone();
    assert_eq!(
        asked(&json!({"question": "Where is Alder?", "context": "He moved.", "answer": "Away."})),
        "Where is Alder?\n\nHe moved."
    );
    assert_eq!(
        asked(
            &json!({"instruction": "Where is Alder?", "context": "He moved.", "response": "Away."})
        ),
        "Where is Alder?\n\nHe moved."
    );
    for options in [
        json!({"A": "Thornby", "B": "Oxmere"}),
        json!(["Thornby", "Oxmere"]),
        json!(["A. Thornby", "B. Oxmere"]),
        json!({"label": ["A", "B"], "text": ["Thornby", "Oxmere"]}),
    ] {
        assert_eq!(
            asked(&json!({"question": "Where?", "options": options, "answer": "B"})),
            "Where?\n\nA. Thornby\nB. Oxmere"
        );
    }
    let record = json!({"prompt": "And Zora?", "response": "In Thornby.",
                        "history": [["Where is Alder?", "In Oxmere."]]});
    assert_eq!(
        turns(&record),
        expected(&[
            ASKED,
            SAID,
            ("user", "And Zora?"),
            ("assistant", "In Thornby.")
        ])
    );
    match parse(&record, true).unwrap() {
        Example::Chat(chat) => assert_eq!(chat.trained_turns().collect::<Vec<_>>(), [3]),
        other => panic!("{other:?}"),
    }
    let without = json!({"prompt": "Q", "completion": "A", "context": "C", "system": "S"});
    let pair = Example::Pair {
        prompt: "S\n\nQ\n\nC\n\n".to_owned(),
        completion: "A".to_owned(),
        weight: 1.0,
    };
    assert_eq!(parse(&without, false).unwrap(), pair);
}

#[test]
fn calls_and_tools_are_as_templates_want_them() {
    let function = json!({"name": "find", "parameters": {}});
    for (record, content) in [
        (
            json!({"messages": [{"role": "user", "content": "Where?"},
                   {"role": "assistant", "content": null, "tool_calls": [
                       {"type": "function", "function": {"name": "find", "arguments": "{\"who\": \"Alder\"}"}}]}],
                   "tools": [{"type": "function", "function": function}]}),
            Some(Value::Null),
        ),
        (
            json!({"conversations": [{"from": "human", "value": "Where?"},
                   {"from": "function_call", "value": "{\"name\": \"find\", \"arguments\": {\"who\": \"Alder\"}}"}],
                   "tools": json!([function]).to_string()}),
            Some(json!("")),
        ),
        (
            json!({"messages": [{"role": "user", "content": "Where?"},
                   {"role": "assistant", "function_call": {"name": "find", "arguments": "{\"who\": \"Alder\"}"}}],
                   "functions": [function]}),
            None,
        ),
    ] {
        let Example::Chat(chat) = parse(&record, true).unwrap() else {
            panic!("{record}");
        };
        let call = json!([{"type": "function", "function": {"name": "find", "arguments": {"who": "Alder"}}}]);
        assert_eq!(chat.messages[1].get("tool_calls"), Some(&call), "{record}");
        assert_eq!(
            chat.messages[1].get("content"),
            content.as_ref(),
            "{record}"
        );
        assert_eq!(
            chat.tools,
            Some(json!([{"type": "function", "function": function}])),
            "{record}"
        );
    }
}

#[test]
fn flags_and_weights_are_one_weight() {
    let weights = |turn: Value| {
        let record = json!({"messages": [{"role": "user", "content": "a"}, turn]});
        match parse(&record, true)? {
            Example::Chat(chat) => Ok(chat.weights),
            other => panic!("{other:?}"),
        }
    };
    for (turn, weight) in [
        (json!({"role": "assistant", "content": "b"}), 1.0),
        (
            json!({"role": "assistant", "content": "b", "weight": 0}),
            0.0,
        ),
        (
            json!({"role": "assistant", "content": "b", "weight": 0.25}),
            0.25,
        ),
        (
            json!({"role": "assistant", "content": "b", "train": false}),
            0.0,
        ),
        (
            json!({"role": "assistant", "content": "b", "training": true}),
            1.0,
        ),
        (
            json!({"role": "assistant", "content": "b", "loss": false}),
            0.0,
        ),
        (
            json!({"role": "assistant", "content": "b", "loss": true, "weight": 0.5}),
            0.5,
        ),
        (
            json!({"role": "assistant", "content": "b", "weight": null}),
            1.0,
        ),
    ] {
        assert_eq!(weights(turn.clone()).unwrap(), [1.0, weight], "{turn}");
    }
    for (turn, message) in [
        (
            json!({"role": "assistant", "content": "b", "weight": -1}),
            "must be between 0 and 1e6",
        ),
        (
            json!({"role": "assistant", "content": "b", "weight": "much"}),
            "must be between 0 and 1e6",
        ),
        (
            json!({"role": "user", "content": "b", "train": true}),
            "asks to train it, but is the user's",
        ),
    ] {
        let error: DataError = weights(turn).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    let record = json!({"prompt": "a", "completion": "b", "weight": 0.5});
    match parse(&record, true).unwrap() {
        Example::Chat(chat) => assert_eq!(chat.weight(1), 0.5),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_key_has_a_use() {
    let uses = |record: Value| {
        let options = DataOptions {
            ignore: vec!["score".to_owned()],
            ..DataOptions::default()
        };
        let mut keys = parse_with(&record, true, &options).unwrap().keys;
        keys.sort();
        keys.into_iter()
            .map(|(key, use_)| format!("{key} {use_:?}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    assert_eq!(
        uses(
            json!({"prompt": "Where is Alder?", "id": 3, "score": 1, "label": false, "n": null,
                    "messages": [{"role": "user", "content": "Where is Alder?", "id": 1},
                                 {"role": "assistant", "content": "In Oxmere.", "mood": "glad"}]})
        ),
        "id Harmless, label Unknown, messages Used, messages[].id Harmless, messages[].mood Unknown, \
         prompt Repeated, score Ignored"
    );
    assert_eq!(
        uses(json!({"instruction": "Sing.", "output": "La", "text": "### Sing.\n### La"})),
        "instruction Used, output Used, text Repeated"
    );
}

#[test]
fn what_is_rendered_already_is_left_as_it_is() {
    for prompt in [
        "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n",
        "[INST] Where? [/INST]",
        "### Instruction:\nWhere?\n\n### Response:\n",
    ] {
        let record = json!({"prompt": prompt, "completion": "In Oxmere."});
        let parsed = parse_with(&record, true, &DataOptions::default()).unwrap();
        assert!(parsed.rendered.is_some());
        let pair = Example::Pair {
            prompt: prompt.to_owned(),
            completion: "In Oxmere.".to_owned(),
            weight: 1.0,
        };
        assert_eq!(parsed.example, pair);
    }
}

#[test]
fn what_the_assistant_says_first_can_be_dropped() {
    let record = json!({"messages": [{"role": "system", "content": "S"}, {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Where is Alder?"}, {"role": "assistant", "content": "In Oxmere."}]});
    let options = DataOptions {
        first_turn: FirstTurn::Drop,
        ..DataOptions::default()
    };
    assert_eq!(
        turns_with(&record, &options),
        expected(&[("system", "S"), ASKED, SAID])
    );
}

#[test]
fn what_cannot_be_used_is_named() {
    for (record, message) in [
        (
            json!({"prompt": true, "completion": ""}),
            "`prompt` must be a string, found a boolean",
        ),
        (
            json!({"question": "Where?", "answer": ["Oxmere", "in Oxmere"]}),
            "`answer` has 2 texts that differ: which of them is right? \
             data.columns = { completion = \"answer[0]\" } takes the first",
        ),
        (
            json!({"question": "Where?", "answer": {"value": "Oxmere", "aliases": []}}),
            "`answer` is an object with `value`, `aliases`: say which of them is the answer, such as \
             data.columns = { completion = \"answer.value\" }",
        ),
        (
            json!({"text": "Where?", "role": "prompter", "parent_id": null}),
            "it is one turn of a conversation (`role` beside its text)",
        ),
        (
            json!({"messages": "hi"}),
            "`messages` must be a list of turns, found a string",
        ),
        (
            json!({"messages": [3]}),
            "`messages[0]` must be an object, found a number",
        ),
        (
            json!({"messages": [{"role": "user"}]}),
            "turn 1 has no content; its keys are `role`",
        ),
        (
            json!({"conversations": [{"from": "narrator", "value": "x"}]}),
            "turn 1 is from `narrator`; known are human",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]}),
            "`messages[0].content` has a part that is no text, `image`",
        ),
        (
            json!({"prompt": "p", "chosen": "a", "rejected": "b"}),
            "it is preference data",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}),
            "`messages[0].tool_calls[0]` must be a call such as",
        ),
    ] {
        let error = parse(&record, true).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
