//! The thread that has the models and computes.
//!
//! Texts that are being continued get a token each per step, those of one model
//! together. Between two steps one text's prompt is read, a part of it at a time, so
//! that a long prompt holds up nobody for long. Prompts are cut into parts from their
//! beginning: an answer does not depend on what else is being answered.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, TryRecvError},
    },
    time::Instant,
};

use burn::tensor::{DType, Tensor};
use olora_data::Decoded;
use olora_model::{Continuation, ModelError, next_logits_of_all};
use olora_operations::at_once;
use olora_training::caught;
use olora_web::axum::http::StatusCode;
use rayon::prelude::*;

use crate::{
    error::ApiError,
    job::{Command, Finish, Job, Score, Update},
    metrics::Metrics,
    models::{Card, Catalogue, Model, Shelf},
    scores::score,
    service::Limits,
    text::{Piece, TextStream},
};

/// Tokens of a prompt that are read between two steps.
const PART: usize = 256;

/// Places whose logits are on the host at once, when a prompt is scored.
const PLACES: usize = 32;

/// A text that is being continued.
struct Active {
    model: Arc<Model>,
    job: Job,
    text: Continuation,
    /// Tokens that end the answer.
    stop_ids: Vec<u32>,
    stream: TextStream,
    /// Scores of tokens whose text has not been given out.
    scores: Vec<Score>,
    prompt_scores: Vec<Score>,
}

/// Whether a text goes on.
#[derive(PartialEq)]
enum State {
    Going,
    Ended,
}

/// The models, and what is to be done with them.
pub(crate) struct Engine {
    commands: Receiver<Command>,
    base: String,
    models: BTreeMap<String, Arc<Model>>,
    shelf: Arc<dyn Shelf>,
    catalogue: Arc<Catalogue>,
    metrics: Arc<Metrics>,
    limits: Limits,
    waiting: VecDeque<Job>,
    active: Vec<Active>,
}

impl Engine {
    pub(crate) fn new(
        base: (&str, Model),
        commands: Receiver<Command>,
        shelf: Arc<dyn Shelf>,
        catalogue: Arc<Catalogue>,
        metrics: Arc<Metrics>,
        limits: Limits,
    ) -> Self {
        let (name, model) = base;
        catalogue.add(Card::new(name, None, &model));
        Self {
            commands,
            base: name.to_owned(),
            models: BTreeMap::from([(name.to_owned(), Arc::new(model))]),
            shelf,
            catalogue,
            metrics,
            limits,
            waiting: VecDeque::new(),
            active: Vec::new(),
        }
    }

    /// Adds an adapter that has been read.
    pub(crate) fn add(&mut self, name: &str, model: Model) -> Card {
        let card = Card::new(name, Some(&self.base), &model);
        self.models.insert(name.to_owned(), Arc::new(model));
        self.catalogue.add(card.clone());
        card
    }

    /// Works until it is told to stop, or nobody is left who could tell.
    pub(crate) fn run(mut self) {
        while self.take_commands() {
            self.leave_those_who_left();
            self.admit();
            self.read_a_part();
            self.step();
            self.count();
        }
    }

    /// Takes what has been told; waits for it where there is nothing else to do.
    fn take_commands(&mut self) -> bool {
        loop {
            let idle = self.active.is_empty() && self.waiting.is_empty();
            let command = if idle {
                self.count();
                match self.commands.recv() {
                    Ok(command) => command,
                    Err(_) => return false,
                }
            } else {
                match self.commands.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            };
            match command {
                Command::Run(jobs) => self.waiting.extend(jobs),
                Command::Load(name, reply) => {
                    let _ = reply.send(self.load(&name));
                }
                Command::Drop(name, reply) => {
                    self.catalogue.remove(&name);
                    let _ = reply.send(self.models.remove(&name).is_some());
                }
                Command::Stop => return false,
            }
        }
    }

    fn load(&mut self, name: &str) -> Result<Card, ApiError> {
        let failed = |said: String| {
            ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("the adapter `{name}` cannot be loaded: {said}"),
            )
        };
        if self.models.contains_key(name) {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                format!("there is a model `{name}` already: drop it first"),
            ));
        }
        let Some(base) = self.models.get(&self.base) else {
            return Err(failed("there is no base".to_owned()));
        };
        let model = caught(|| self.shelf.load(name, base)).unwrap_or_else(Err);
        Ok(self.add(name, model.map_err(failed)?))
    }

    /// Drops the texts of clients that have gone, and fails those whose time is over.
    fn leave_those_who_left(&mut self) {
        let now = Instant::now();
        let metrics = &self.metrics;
        let mut goes_on = |job: &Job| {
            if job.updates.is_closed() {
                metrics.cancelled.fetch_add(1, Relaxed);
                return false;
            }
            if now > job.deadline {
                let error = ApiError::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "the time that an answer may take is over",
                );
                let _ = job.updates.send(Update::Failed(error.with_code("timeout")));
                return false;
            }
            true
        };
        self.waiting.retain(&mut goes_on);
        self.active.retain(|active| goes_on(&active.job));
    }

    /// Positions that texts in work may come to need.
    fn reserved(&self) -> usize {
        self.active
            .iter()
            .map(|active| positions(&active.job))
            .sum()
    }

    /// Takes up waiting jobs, first come first served, as far as there is room.
    fn admit(&mut self) {
        while let Some(job) = self.waiting.front() {
            let fits = self.active.is_empty()
                || self.reserved() + positions(job) <= self.limits.cache_tokens;
            if self.active.len() >= self.limits.max_batch || !fits {
                return;
            }
            let Some(mut job) = self.waiting.pop_front() else {
                return;
            };
            let begun = match self.models.get(&job.model) {
                None => {
                    let there = self.catalogue.names();
                    Err(ApiError::no_model(&job.model, &there))
                }
                Some(model) => {
                    Continuation::new(&model.llama, &job.prompt, job.max_new, job.sampling.clone())
                        .map(|text| (Arc::clone(model), text))
                        .map_err(|error| ApiError::invalid("prompt", error.to_string()))
                }
            };
            match begun {
                Err(error) => {
                    let _ = job.updates.send(Update::Failed(error));
                }
                Ok((model, text)) => {
                    let n = job.prompt.len() as u64;
                    self.metrics.prompt_tokens.fetch_add(n, Relaxed);
                    let decoded = if job.continues {
                        model.tokenizer.decoded_after(&job.prompt)
                    } else {
                        Decoded::default()
                    };
                    let stream = TextStream::new(decoded, std::mem::take(&mut job.stop));
                    let of_model = &model.config.eos_token_ids;
                    self.active.push(Active {
                        stop_ids: model.tokenizer.stop_ids_with(of_model),
                        model,
                        job,
                        text,
                        stream,
                        scores: Vec::new(),
                        prompt_scores: Vec::new(),
                    });
                }
            }
        }
    }

    /// Reads a part of the first prompt that has not been read, and begins its answer
    /// if that was the last.
    fn read_a_part(&mut self) {
        let is_new = |active: &Active| active.text.generated().is_empty();
        let Some(place) = self.active.iter().position(is_new) else {
            return;
        };
        let active = &mut self.active[place];
        let metrics = &self.metrics;
        let state = guarded(|| active.read_a_part(metrics));
        self.settle(place, state);
    }

    /// A token for each text whose prompt has been read.
    fn step(&mut self) {
        let mut states: Vec<(usize, Result<State, ApiError>)> = Vec::new();
        let mut groups: Vec<(Arc<Model>, Vec<usize>)> = Vec::new();
        for (place, active) in self.active.iter().enumerate() {
            if active.text.generated().is_empty() {
                continue;
            }
            match groups
                .iter_mut()
                .find(|(model, _)| Arc::ptr_eq(model, &active.model))
            {
                Some((_, places)) => places.push(place),
                None => groups.push((Arc::clone(&active.model), vec![place])),
            }
        }
        for (model, places) in groups {
            self.metrics.steps.fetch_add(1, Relaxed);
            let n = places.len() as u64;
            self.metrics.stepped.fetch_add(n, Relaxed);
            let mut some: Vec<&mut Active> = self
                .active
                .iter_mut()
                .enumerate()
                .filter(|(place, _)| places.contains(place))
                .map(|(_, active)| active)
                .collect();
            let logits = caught(|| {
                let mut texts: Vec<&mut Continuation> =
                    some.iter_mut().map(|active| &mut active.text).collect();
                next_logits_of_all(&model.llama, &mut texts)
            });
            let logits = logits.unwrap_or_else(|said| {
                let failed = |_| Err(ModelError::device("the next token", &said));
                places.iter().map(failed).collect()
            });
            let of_each = some
                .iter_mut()
                .map(|active| (&mut active.text, active.job.scores))
                .zip(logits);
            let chosen = at_once(of_each.collect(), |((text, scores), logits)| {
                Ok(choose(text, scores, logits?))
            });
            for ((place, active), chosen) in places.into_iter().zip(some).zip(chosen) {
                let state = chosen
                    .map_err(|error| of_model(&error))
                    .and_then(|(id, score)| active.add(id, score));
                states.push((place, state));
            }
        }
        // From the end, so that places stay what they are.
        states.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
        for (place, state) in states {
            self.settle(place, state);
        }
    }

    /// Takes out a text that has ended or failed.
    fn settle(&mut self, place: usize, state: Result<State, ApiError>) {
        match state {
            Ok(State::Going) => (),
            Ok(State::Ended) => {
                let ended = self.active.remove(place);
                let n = ended.text.generated().len() as u64;
                self.metrics.generated_tokens.fetch_add(n, Relaxed);
                self.metrics.request.observe(ended.job.asked_at.elapsed());
            }
            Err(error) => {
                let failed = self.active.remove(place);
                let _ = failed.job.updates.send(Update::Failed(error));
            }
        }
    }

    fn count(&self) {
        let set = |gauge: &std::sync::atomic::AtomicU64, n: usize| gauge.store(n as u64, Relaxed);
        set(&self.metrics.running, self.active.len());
        set(&self.metrics.waiting, self.waiting.len());
        set(&self.metrics.cached_tokens, self.reserved());
    }
}

/// Positions that a job may come to need.
fn positions(job: &Job) -> usize {
    job.prompt.len() + job.max_new
}

fn of_model(error: &ModelError) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// What a device says as it fails, as an error of the request.
fn guarded<T>(run: impl FnOnce() -> Result<T, ApiError>) -> Result<T, ApiError> {
    caught(run).unwrap_or_else(|said| {
        Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("computing failed: {said}"),
        ))
    })
}

/// The next token, and its score if that is wanted.
fn choose(
    text: &mut Continuation,
    scores: Option<usize>,
    mut logits: Vec<f32>,
) -> (u32, Option<Score>) {
    let raw = scores.map(|_| logits.clone());
    let id = text.choose(&mut logits);
    let score = scores.zip(raw).map(|(top, raw)| score(&raw, id, top));
    (id, score)
}

impl Active {
    /// Tokens of the prompt to read at once: all where a longer text rotates its earlier tokens
    /// otherwise, which parts would not know of.
    fn part(&self) -> usize {
        let changes = self.model.llama.rotation_changes_beyond();
        if changes.is_some_and(|end| self.job.prompt.len() > end) {
            usize::MAX
        } else {
            PART
        }
    }

    /// Reads the next part of the prompt.
    fn read_a_part(&mut self, metrics: &Metrics) -> Result<State, ApiError> {
        let model = Arc::clone(&self.model);
        let llama = &model.llama;
        if self.job.score_prompt {
            let from = self.job.prompt.len() - self.text.n_unread();
            // With nothing to be generated, the last token's logits are of no use.
            let rest = self.text.n_unread() - 1;
            if rest > 0 {
                let hidden = self.text.read(llama, rest.min(self.part()));
                self.score(from, &hidden)?;
                if self.text.n_unread() > 1 {
                    return Ok(State::Going);
                }
            }
            let scores = std::mem::take(&mut self.prompt_scores);
            let _ = self.job.updates.send(Update::Prompt(scores));
        } else if self.text.n_unread() > self.part() {
            self.text.read(llama, PART);
            return Ok(State::Going);
        }
        if self.job.max_new == 0 {
            return Ok(self.end(Finish::Length));
        }
        let logits = self
            .text
            .next_logits(llama)
            .map_err(|error| of_model(&error))?;
        metrics.first_token.observe(self.job.asked_at.elapsed());
        let (id, score) = choose(&mut self.text, self.job.scores, logits);
        self.add(id, score)
    }

    /// Scores the tokens after those that have been read from place `from` on.
    fn score(&mut self, from: usize, hidden: &Tensor<3>) -> Result<(), ApiError> {
        let [_, n, width] = hidden.dims();
        for first in (0..n).step_by(PLACES) {
            let some = PLACES.min(n - first);
            let of_some = hidden.clone().narrow(1, first, some);
            let logits = self.model.llama.logits(of_some.reshape([some, width]));
            let vocabulary = logits.dims()[1];
            let failed =
                |error: String| of_model(&ModelError::device("the prompt's logits", &error));
            let logits = logits
                .try_into_data_dtype(DType::F32)
                .map_err(|error| failed(error.to_string()))?
                .try_into_vec::<f32>()
                .map_err(|error| failed(error.to_string()))?;
            if !logits.iter().all(|logit| logit.is_finite()) {
                return Err(failed("they are not finite".to_owned()));
            }
            let next = &self.job.prompt[from + first + 1..][..some];
            let top = self.job.scores.unwrap_or(0);
            let scores = logits.par_chunks(vocabulary).zip(next);
            self.prompt_scores
                .par_extend(scores.map(|(logits, id)| score(logits, *id, top)));
        }
        Ok(())
    }

    /// Takes the next token.
    fn add(&mut self, id: u32, score: Option<Score>) -> Result<State, ApiError> {
        // Of the token that ends the answer too: whoever scores a prompt takes the last score to be
        // that of a generated token.
        self.scores.extend(score);
        if self.stop_ids.contains(&id) {
            return Ok(self.end(Finish::Stop));
        }
        let failed = |error: olora_data::DataError| {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        };
        match self
            .stream
            .push(&self.model.tokenizer, id)
            .map_err(failed)?
        {
            Piece::Last(text) => {
                self.give(text);
                return Ok(self.end_without_rest(Finish::Stop));
            }
            Piece::Text(text) if !text.is_empty() => self.give(text),
            Piece::Text(_) => (),
        }
        if self.text.generated().len() == self.job.max_new {
            return Ok(self.end(Finish::Length));
        }
        Ok(State::Going)
    }

    fn give(&mut self, text: String) {
        let scores = std::mem::take(&mut self.scores);
        let _ = self.job.updates.send(Update::Text { text, scores });
    }

    /// Ends the answer, with what was held back.
    fn end(&mut self, finish: Finish) -> State {
        let rest = self.stream.finish();
        if !rest.is_empty() || !self.scores.is_empty() {
            self.give(rest);
        }
        self.end_without_rest(finish)
    }

    fn end_without_rest(&mut self, finish: Finish) -> State {
        let n_tokens = self.text.generated().len();
        let _ = self.job.updates.send(Update::Done { finish, n_tokens });
        State::Ended
    }
}
