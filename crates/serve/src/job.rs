//! What the engine is given to do, and what it says of it.

use std::time::Instant;

use olora_model::Sampling;
use olora_web::tokio::sync::{mpsc::UnboundedSender, oneshot};

use crate::{error::ApiError, models::Card};

/// One prompt to continue.
#[derive(Debug)]
pub(crate) struct Job {
    /// The model's name.
    pub(crate) model: String,
    pub(crate) prompt: Vec<u32>,
    /// Most tokens to be generated; 0 only reads the prompt.
    pub(crate) max_new: usize,
    pub(crate) sampling: Sampling,
    /// Texts at which the answer ends, which are not part of it.
    pub(crate) stop: Vec<String>,
    /// How many likeliest tokens are named beside each, if scores are wanted.
    pub(crate) scores: Option<usize>,
    /// Whether the prompt's tokens are scored too.
    pub(crate) score_prompt: bool,
    /// Whether the answer is more of the prompt's text, whose space it may begin with.
    pub(crate) continues: bool,
    pub(crate) asked_at: Instant,
    pub(crate) deadline: Instant,
    pub(crate) updates: UnboundedSender<Update>,
}

/// The log-probability that the model gave a token, and the likeliest ones in its place,
/// likeliest first.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Score {
    pub(crate) id: u32,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(u32, f32)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// At a token or a text that ends it.
    Stop,
    /// At the number of tokens that was asked for.
    Length,
}

impl Finish {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// What has come of a job.
#[derive(Debug)]
pub(crate) enum Update {
    /// The scores of the prompt's tokens from the second on.
    Prompt(Vec<Score>),
    /// More text, and the scores of the tokens that it is of.
    Text { text: String, scores: Vec<Score> },
    /// The end, with how many tokens were generated.
    Done { finish: Finish, n_tokens: usize },
    /// It cannot be done.
    Failed(ApiError),
}

/// What the engine is told.
pub(crate) enum Command {
    Run(Vec<Job>),
    /// Loads an adapter of the shelf.
    Load(String, oneshot::Sender<Result<Card, ApiError>>),
    /// Drops an adapter; what is being answered with it goes on.
    Drop(String, oneshot::Sender<bool>),
    /// Begins nothing more.
    Stop,
}
