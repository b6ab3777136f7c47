//! Renders conversations by chat templates, one request a line:
//!
//! `{"template": …, "specials": {"bos_token": …}, "messages": […], "tools": …,
//! "add_generation_prompt": …, "kwargs": {…}}` on stdin becomes `{"text": …}` or
//! `{"error": …}` on stdout. `tools/templates/sweep.py` compares with Jinja2.

use std::{
    collections::BTreeMap,
    io::{BufRead, Write, stdin, stdout},
};

use olora_data::{ChatTemplate, Conversation, DataError, Message};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Request {
    template: String,
    #[serde(default)]
    specials: BTreeMap<String, String>,
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Value>,
    #[serde(default)]
    add_generation_prompt: bool,
    #[serde(default)]
    kwargs: Map<String, Value>,
}

fn render(request: Request) -> Result<String, DataError> {
    let conversation = Conversation {
        messages: request.messages,
        tools: request.tools,
        variables: request.kwargs,
        ..Conversation::default()
    };
    ChatTemplate::new(&request.template, &request.specials)?
        .render(&conversation, request.add_generation_prompt)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = stdout().lock();
    for line in stdin().lock().lines() {
        let answer = match render(serde_json::from_str(&line?)?) {
            Ok(text) => json!({ "text": text }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        writeln!(out, "{answer}")?;
    }
    Ok(())
}
