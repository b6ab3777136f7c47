//! Chat templates are rendered as transformers' Jinja renders them. See
//! `fixtures/chat_masks/make_jinja.py`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::Path};

use olora_data::{ChatTemplate, Conversation, Message};
use serde_json::Value;

#[test]
fn what_public_templates_use_is_rendered_as_by_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/chat_masks/jinja.json");
    let golden: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let messages: Vec<Message> = serde_json::from_value(golden["messages"].clone()).unwrap();
    let conversation = Conversation {
        messages,
        tools: Some(golden["tools"].clone()),
        ..Conversation::default()
    };
    let bos = golden["bos_token"].as_str().unwrap().to_owned();
    let specials = [("bos_token".to_owned(), bos)].into();

    let mut wrong = Vec::new();
    for probe in golden["probes"].as_array().unwrap() {
        let (name, source) = (&probe["name"], probe["template"].as_str().unwrap());
        let found = ChatTemplate::new(source, &specials)
            .and_then(|template| template.render(&conversation, true));
        match (found, probe["text"].as_str()) {
            (Ok(found), Some(expected)) if found == expected => {}
            (Err(_), None) => {}
            (found, expected) => {
                let found = found.map_err(|error| error.to_string());
                let expected = expected.ok_or(&probe["error"]);
                wrong.push(format!(
                    "{name}: {source}\n  found    {found:?}\n  expected {expected:?}"
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of the templates:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
