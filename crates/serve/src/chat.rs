//! `/v1/chat/completions`.

use std::sync::Arc;

use olora_data::Tokenizer;
use olora_web::{
    axum::{
        Json,
        body::Body,
        extract::State,
        response::{IntoResponse, Response},
    },
    tokio,
};
use serde_json::{Value, json};

use crate::{
    answer::{Answer, Envelope, Part, chat_score, stream, usage},
    error::ApiError,
    job::Score,
    models::Card,
    request::ChatRequest,
    service::{Shared, read},
};

pub(crate) async fn complete(
    State(shared): State<Arc<Shared>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read(body, &shared).await?;
    let request = ChatRequest::of(&body)?;
    let card = shared.catalogue.find(&request.asked.model)?;
    request.asked.check_bias(&card)?;
    let ticket = Shared::take(&shared)?;
    shared.note(|| format!("chat: {}", String::from_utf8_lossy(&body)));
    let ChatRequest { asked, messages } = request;
    let of_messages = card.clone();
    let encoded = tokio::task::spawn_blocking(move || encode(&of_messages, &messages));
    let prompt = encoded
        .await
        .unwrap_or_else(|error| Err(ApiError::invalid("messages", error.to_string())))?;
    let n_prompt = prompt.len();
    let room = asked.room(n_prompt, usize::MAX, &card, &shared.limits)?;
    if room == 0 {
        return Err(ApiError::invalid(
            "max_tokens",
            "`max_tokens` must be at least 1",
        ));
    }
    let choices = shared.begin(&asked, vec![(prompt, room)], [false, false]);
    let wants_scores = asked.scores.is_some();
    if asked.stream {
        let envelope = Envelope::new("chatcmpl", "chat.completion.chunk", &card.name);
        let tokenizer = Arc::clone(&card.tokenizer);
        let shape = Arc::new(move |index: usize, part: Part| {
            let scores = |scores: &[Score]| wants_scores.then(|| logprobs(&tokenizer, scores));
            let choice = |delta: Value, logprobs: Value, finish: Value| json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
            Some(match part {
                Part::Begin => choice(
                    json!({"role": "assistant", "content": "", "refusal": null}),
                    Value::Null,
                    Value::Null,
                ),
                Part::Text { text, scores: of } => {
                    choice(json!({"content": text}), json!(scores(&of)), Value::Null)
                }
                Part::End(finish) => choice(json!({}), Value::Null, json!(finish.name())),
            })
        });
        return Ok(stream(
            envelope,
            choices,
            asked.n,
            asked.include_usage,
            shape,
            ticket,
        ));
    }
    let mut answers: Vec<Answer> = Vec::new();
    for choice in choices {
        answers.push(choice.whole().await?);
    }
    let n_tokens = answers.iter().map(|answer| answer.n_tokens).sum();
    let choices = answers.iter().enumerate().map(|(index, answer)| {
        shared.note(|| format!("answer: {}", answer.text));
        let scores = wants_scores.then(|| logprobs(&card.tokenizer, &answer.scores));
        json!({
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": null},
            "logprobs": scores,
            "finish_reason": answer.finish.name(),
        })
    });
    let envelope = Envelope::new("chatcmpl", "chat.completion", &card.name);
    let choices: Vec<Value> = choices.collect();
    let json = envelope.with(&choices, Some(usage(n_prompt, n_tokens)));
    Ok(Json(json).into_response())
}

/// The conversation as the model reads it.
fn encode(card: &Card, messages: &[olora_data::Message]) -> Result<Vec<u32>, ApiError> {
    let tokenizer = &card.tokenizer;
    if !tokenizer.has_chat_template() {
        return Err(ApiError::invalid(
            "messages",
            format!(
                "the model `{}` has no chat template: ask /v1/completions for a continuation of a text",
                card.name
            ),
        )
        .with_code("no_chat_template"));
    }
    let failed = |error: olora_data::DataError| ApiError::invalid("messages", error.to_string());
    let text = tokenizer.render_chat(messages, true).map_err(failed)?;
    let ids = tokenizer.encode(&text, false).map_err(failed)?;
    tokenizer
        .check_rows(&ids, card.vocab_size)
        .map_err(failed)?;
    Ok(ids)
}

fn logprobs(tokenizer: &Tokenizer, scores: &[Score]) -> Value {
    let content: Vec<Value> = scores
        .iter()
        .map(|score| chat_score(tokenizer, score))
        .collect();
    json!({"content": content, "refusal": null})
}
