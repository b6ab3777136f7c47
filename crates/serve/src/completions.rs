//! `/v1/completions`, the older interface: texts or tokens that are continued, and
//! scored.

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
use serde_json::{Map, Value, json};

use crate::{
    answer::{Answer, Envelope, Part, finite, stream, usage},
    error::ApiError,
    job::Score,
    models::Card,
    request::{CompletionRequest, Prompt},
    service::{Shared, read},
    text::token_text,
};

/// Tokens of an answer, if the request does not say.
const USUAL: usize = 16;

pub(crate) async fn complete(
    State(shared): State<Arc<Shared>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read(body, &shared).await?;
    let request = CompletionRequest::of(&body)?;
    let card = shared.catalogue.find(&request.asked.model)?;
    request.asked.check_bias(&card)?;
    let ticket = Shared::take(&shared)?;
    shared.note(|| format!("completion: {}", String::from_utf8_lossy(&body)));
    let CompletionRequest {
        asked,
        prompts,
        echo,
    } = request;
    let of_prompts = card.clone();
    let encoded = tokio::task::spawn_blocking(move || {
        let prompts = prompts.into_iter();
        prompts
            .map(|prompt| encode(&of_prompts, prompt))
            .collect::<Result<Vec<_>, _>>()
    });
    let encoded = encoded
        .await
        .unwrap_or_else(|error| Err(ApiError::invalid("prompt", error.to_string())))?;
    let mut with_room = Vec::with_capacity(encoded.len());
    for ids in &encoded {
        let room = asked.room(ids.len(), USUAL, &card, &shared.limits)?;
        if room == 0 && !echo {
            return Err(ApiError::invalid(
                "max_tokens",
                "`max_tokens` of 0 has no use without `echo`",
            ));
        }
        with_room.push((ids.clone(), room));
    }
    let n_prompt = encoded.iter().map(Vec::len).sum();
    let score_prompt = echo && asked.scores.is_some();
    let choices = shared.begin(&asked, with_room, [true, score_prompt]);
    let wants_scores = asked.scores.is_some();
    if asked.stream {
        let envelope = Envelope::new("cmpl", "text_completion", &card.name);
        let tokenizer = Arc::clone(&card.tokenizer);
        let shape = Arc::new(move |index: usize, part: Part| {
            let choice = |text: String, logprobs: Value, finish: Value| json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish});
            match part {
                Part::Begin => None,
                Part::Text { text, scores } => {
                    let scores =
                        wants_scores.then(|| Lines::new(&tokenizer, &[], None, &scores).json());
                    Some(choice(text, json!(scores), Value::Null))
                }
                Part::End(finish) => Some(choice(String::new(), Value::Null, json!(finish.name()))),
            }
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
    let mut choices = Vec::with_capacity(answers.len());
    for (index, answer) in answers.iter().enumerate() {
        let prompt = &encoded[index / asked.n];
        shared.note(|| format!("answer: {}", answer.text));
        let scores = wants_scores.then(|| {
            let (ids, scores) = if echo {
                (&prompt[..], Some(&answer.prompt_scores[..]))
            } else {
                (&[][..], None)
            };
            Lines::new(&card.tokenizer, ids, scores, &answer.scores).json()
        });
        let before = if echo {
            text_of(&card.tokenizer, prompt)?
        } else {
            String::new()
        };
        choices.push(json!({
            "index": index,
            "text": before + &answer.text,
            "logprobs": scores,
            "finish_reason": answer.finish.name(),
        }));
    }
    let envelope = Envelope::new("cmpl", "text_completion", &card.name);
    let json = envelope.with(&choices, Some(usage(n_prompt, n_tokens)));
    Ok(Json(json).into_response())
}

fn encode(card: &Card, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    let failed = |error: olora_data::DataError| ApiError::invalid("prompt", error.to_string());
    let ids = match prompt {
        Prompt::Ids(ids) => ids,
        Prompt::Text(text) => {
            let ids = card.tokenizer.encode(&text, true).map_err(failed)?;
            if ids.is_empty() {
                return Err(ApiError::invalid(
                    "prompt",
                    "the prompt is empty, and the model's tokenizer begins a text with nothing",
                ));
            }
            ids
        }
    };
    if let Some(id) = ids.iter().find(|&&id| id as usize >= card.vocab_size) {
        let message = format!(
            "the prompt has token {id}, and the model has {}",
            card.vocab_size
        );
        return Err(ApiError::invalid("prompt", message));
    }
    card.tokenizer
        .check_rows(&ids, card.vocab_size)
        .map_err(failed)?;
    Ok(ids)
}

fn text_of(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String, ApiError> {
    let text = tokenizer.decode(ids, true);
    text.map_err(|error| ApiError::invalid("prompt", error.to_string()))
}

/// Scores in the lists that this interface has.
struct Lines {
    tokens: Vec<String>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<usize>,
    /// Characters so far.
    at: usize,
}

impl Lines {
    /// Of a prompt's tokens, which have scores from the second on, and of those after it.
    fn new(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        of_prompt: Option<&[Score]>,
        scores: &[Score],
    ) -> Self {
        let mut lines = Self {
            tokens: Vec::new(),
            logprobs: Vec::new(),
            top: Vec::new(),
            offsets: Vec::new(),
            at: 0,
        };
        if let Some(first) = prompt.first() {
            lines.add(token_text(tokenizer, *first).0, Value::Null, Value::Null);
        }
        for score in of_prompt.unwrap_or_default().iter().chain(scores) {
            let mut top = Map::new();
            let own = (score.id, score.logprob);
            for (id, logprob) in score.top.iter().copied().chain([own]) {
                let (text, _) = token_text(tokenizer, id);
                // Two tokens may read alike: what is left is told by its spelling.
                let is_other = top.contains_key(&text) && id != score.id;
                let key = match tokenizer.token(id).filter(|_| is_other) {
                    Some(spelled) => spelled,
                    None => text,
                };
                top.entry(key).or_insert(json!(finite(logprob)));
            }
            let (text, _) = token_text(tokenizer, score.id);
            lines.add(text, json!(finite(score.logprob)), Value::Object(top));
        }
        lines
    }

    fn add(&mut self, token: String, logprob: Value, top: Value) {
        self.offsets.push(self.at);
        self.at += token.chars().count();
        self.tokens.push(token);
        self.logprobs.push(logprob);
        self.top.push(top);
    }

    fn json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.logprobs,
            "top_logprobs": self.top,
            "text_offset": self.offsets,
        })
    }
}
