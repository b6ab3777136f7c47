//! From what the engine says to what a client is sent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use olora_data::Tokenizer;
use olora_web::{
    axum::{
        body::Bytes,
        http::{HeaderValue, header},
        response::{IntoResponse, Response},
    },
    pieces,
    tokio::{
        self,
        sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
};
use serde_json::{Value, json};

use crate::{
    error::ApiError,
    job::{Finish, Score, Update},
    models::seconds,
    service::Ticket,
    text::token_text,
};

/// How long a stream is silent at most: proxies close what says nothing.
const SILENCE: Duration = Duration::from_secs(15);

/// How long a client may leave what it is sent unread before it counts as gone: what is
/// computed for it holds up others.
const UNREAD: Duration = Duration::from_secs(10);

/// An answer that is being made.
pub(crate) struct Choice {
    pub(crate) n_prompt: usize,
    pub(crate) updates: UnboundedReceiver<Update>,
}

/// An answer that is whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) scores: Vec<Score>,
    pub(crate) prompt_scores: Vec<Score>,
    pub(crate) finish: Finish,
    pub(crate) n_tokens: usize,
}

impl Choice {
    /// Waits for the whole answer.
    pub(crate) async fn whole(mut self) -> Result<Answer, ApiError> {
        let mut answer = Answer {
            text: String::new(),
            scores: Vec::new(),
            prompt_scores: Vec::new(),
            finish: Finish::Length,
            n_tokens: 0,
        };
        while let Some(update) = self.updates.recv().await {
            match update {
                Update::Prompt(scores) => answer.prompt_scores = scores,
                Update::Text { text, scores } => {
                    answer.text += &text;
                    answer.scores.extend(scores);
                }
                Update::Done { finish, n_tokens } => {
                    (answer.finish, answer.n_tokens) = (finish, n_tokens);
                    return Ok(answer);
                }
                Update::Failed(error) => return Err(error),
            }
        }
        Err(broken_off())
    }
}

fn broken_off() -> ApiError {
    ApiError::new(
        olora_web::axum::http::StatusCode::SERVICE_UNAVAILABLE,
        "the server is stopping",
    )
}

/// What answers of both kinds say of themselves.
#[derive(Clone)]
pub(crate) struct Envelope {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) model: String,
    created: u64,
}

impl Envelope {
    pub(crate) fn new(prefix: &str, object: &'static str, model: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (created, n) = (seconds(), COUNT.fetch_add(1, Relaxed));
        Self {
            id: format!("{prefix}-{created:x}{n:06x}"),
            object,
            model: model.to_owned(),
            created,
        }
    }

    /// With these choices.
    pub(crate) fn with(&self, choices: &[Value], usage: Option<Value>) -> Value {
        let mut json = json!({
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": concat!("olora-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        });
        if let Some(usage) = usage {
            json["usage"] = usage;
        }
        json
    }
}

pub(crate) fn usage(n_prompt: usize, n_tokens: usize) -> Value {
    json!({
        "prompt_tokens": n_prompt,
        "completion_tokens": n_tokens,
        "total_tokens": n_prompt + n_tokens,
    })
}

/// An event of a choice in a stream.
pub(crate) enum Part {
    /// Before all else.
    Begin,
    Text {
        text: String,
        scores: Vec<Score>,
    },
    End(Finish),
}

/// How a part of the choice with this number reads.
type Shape = Arc<dyn Fn(usize, Part) -> Option<Value> + Send + Sync>;

/// Sends choices as they are made, as server-sent events. `shape` makes a choice's JSON
/// of a part. Each prompt is counted once, however many answers it has.
pub(crate) fn stream(
    envelope: Envelope,
    choices: Vec<Choice>,
    per_prompt: usize,
    include_usage: bool,
    shape: Shape,
    ticket: Ticket,
) -> Response {
    let (pieces, body) = pieces();
    tokio::spawn(async move {
        let _ticket = ticket;
        let n_prompt: usize = choices
            .iter()
            .step_by(per_prompt)
            .map(|choice| choice.n_prompt)
            .sum();
        let n_choices = choices.len();
        let (events, mut received) = unbounded_channel();
        for (index, choice) in choices.into_iter().enumerate() {
            tokio::spawn(pass_on(index, choice, events.clone()));
        }
        drop(events);
        for index in 0..n_choices {
            if let Some(choice) = shape(index, Part::Begin)
                && !send(&pieces, envelope.with(&[choice], None)).await
            {
                return;
            }
        }
        let mut n_tokens = 0;
        loop {
            // Ends when the client leaves, and with it what the engine does for it.
            let next = tokio::select! {
                () = pieces.closed() => return,
                next = tokio::time::timeout(SILENCE, received.recv()) => next,
            };
            let (index, update) = match next {
                Err(_) => {
                    if !put(&pieces, Bytes::from_static(b": still here\n\n")).await {
                        return;
                    }
                    continue;
                }
                Ok(None) => break,
                Ok(Some(event)) => event,
            };
            let part = match update {
                Update::Prompt(_) => continue,
                Update::Text { text, scores } => Part::Text { text, scores },
                Update::Done {
                    finish,
                    n_tokens: n,
                } => {
                    n_tokens += n;
                    Part::End(finish)
                }
                Update::Failed(error) => {
                    send(&pieces, error.body()).await;
                    return;
                }
            };
            if let Some(choice) = shape(index, part)
                && !send(&pieces, envelope.with(&[choice], None)).await
            {
                return;
            }
        }
        if include_usage {
            send(&pieces, envelope.with(&[], Some(usage(n_prompt, n_tokens)))).await;
        }
        put(&pieces, Bytes::from_static(b"data: [DONE]\n\n")).await;
    });
    let mut response = body.into_response();
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Sends a piece; false if the client has gone, or reads nothing.
async fn put(pieces: &Sender<Bytes>, piece: Bytes) -> bool {
    let sent = tokio::time::timeout(UNREAD, pieces.send(piece));
    matches!(sent.await, Ok(Ok(())))
}

/// Sends an event.
async fn send(pieces: &Sender<Bytes>, json: Value) -> bool {
    put(pieces, Bytes::from(format!("data: {json}\n\n"))).await
}

/// Hands on what becomes of one choice, to the end.
async fn pass_on(index: usize, mut choice: Choice, events: UnboundedSender<(usize, Update)>) {
    loop {
        let update = tokio::select! {
            () = events.closed() => return,
            update = choice.updates.recv() => update,
        };
        let update = update.unwrap_or_else(|| Update::Failed(broken_off()));
        let is_last = matches!(update, Update::Done { .. } | Update::Failed(_));
        if events.send((index, update)).is_err() || is_last {
            return;
        }
    }
}

/// A token and its score as chats have them.
pub(crate) fn chat_score(tokenizer: &Tokenizer, score: &Score) -> Value {
    let one = |id: u32, logprob: f32| {
        let (text, is_whole) = token_text(tokenizer, id);
        let bytes = is_whole.then(|| text.as_bytes().to_vec());
        json!({"token": text, "logprob": finite(logprob), "bytes": bytes})
    };
    let mut json = one(score.id, score.logprob);
    let top: Vec<Value> = score
        .top
        .iter()
        .map(|&(id, logprob)| one(id, logprob))
        .collect();
    json["top_logprobs"] = json!(top);
    json
}

/// JSON has no infinity; OpenAI gives this for what is next to impossible.
pub(crate) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
