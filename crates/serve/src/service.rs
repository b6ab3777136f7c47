//! Routes, and the thread behind them.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use olora_web::{
    Server, Stop, WebError,
    axum::{
        Json, Router,
        body::{Body, Bytes},
        extract::{Path, Request, State},
        http::StatusCode,
        middleware::{self, Next},
        response::{IntoResponse, Response},
        routing::{delete, get, post},
    },
    tokio::sync::{mpsc::unbounded_channel, oneshot},
};
use serde_json::{Value, json};

use crate::{
    answer::Choice,
    chat, completions,
    engine::Engine,
    error::{ApiError, shortened},
    job::{Command, Job},
    metrics::Metrics,
    models::{Card, Catalogue, Model, Shelf},
    pages,
    request::Asked,
};

/// What a client may ask for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Texts that are continued together.
    pub max_batch: usize,
    /// Requests that may wait beside; others are told 429.
    pub queue: usize,
    /// Tokens of an answer.
    pub max_tokens: usize,
    /// Positions of all caches together: what the texts in work may come to need. Those
    /// that do not fit wait.
    pub cache_tokens: usize,
    /// Bytes of a request.
    pub max_body: usize,
    /// How long an answer may take, waiting included.
    pub max_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_batch: 16,
            queue: 256,
            max_tokens: 4096,
            cache_tokens: 65_536,
            max_body: 1 << 20,
            max_time: Duration::from_mins(10),
        }
    }
}

/// A base and adapters, ready to be asked.
pub struct Service {
    shared: Arc<Shared>,
    engine: Engine,
}

/// Is told of requests and answers, if they are to be logged.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// What routes need.
pub(crate) struct Shared {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    shelf: Arc<dyn Shelf>,
    base: String,
    commands: Mutex<Sender<Command>>,
    /// Requests that have been taken and not answered.
    taken: AtomicUsize,
    stop: Stop,
    log: Option<Log>,
}

/// A request's place among those that are taken.
pub(crate) struct Ticket(Arc<Shared>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, SeqCst);
    }
}

impl Service {
    /// With a base of this name. `shelf` is where more adapters are. `log` is told of
    /// requests and answers, if they are to be logged with their texts.
    pub fn new(
        name: &str,
        base: Model,
        shelf: Arc<dyn Shelf>,
        limits: Limits,
        log: Option<Log>,
    ) -> Self {
        let (sender, receiver) = mpsc::channel();
        let (catalogue, metrics) = (Arc::<Catalogue>::default(), Arc::<Metrics>::default());
        let engine = Engine::new(
            (name, base),
            receiver,
            Arc::clone(&shelf),
            Arc::clone(&catalogue),
            Arc::clone(&metrics),
            limits.clone(),
        );
        let shared = Arc::new(Shared {
            catalogue,
            metrics,
            limits,
            shelf,
            base: name.to_owned(),
            commands: Mutex::new(sender),
            taken: AtomicUsize::new(0),
            stop: Stop::default(),
            log,
        });
        Self { shared, engine }
    }

    /// The names of all models, the base first.
    pub fn names(&self) -> Vec<String> {
        self.shared.catalogue.names()
    }

    /// Adds an adapter.
    ///
    /// # Errors
    ///
    /// If there is a model of that name.
    pub fn add(&mut self, name: &str, model: Model) -> Result<(), String> {
        if self.names().iter().any(|other| other == name) {
            return Err(format!(
                "there are two models of the name `{name}`: give one of them another, as NAME=PATH"
            ));
        }
        self.engine.add(name, model);
        Ok(())
    }

    /// Ends [`run`](Self::run) from another thread.
    pub fn stop(&self) -> Stop {
        self.shared.stop.clone()
    }

    /// Answers until it is told to stop.
    ///
    /// # Errors
    ///
    /// If the system gives no threads.
    pub fn run(self, server: Server) -> Result<(), WebError> {
        let Self { shared, engine } = self;
        let thinking = thread::Builder::new().name("engine".to_owned()).spawn({
            let end = StopsWithIt(shared.stop.clone());
            move || {
                let _end = end;
                engine.run();
            }
        })?;
        let stop = shared.stop.clone();
        let result = server.run(router(&shared), &stop);
        shared.tell(Command::Stop);
        // What it does last is a step at most.
        let _ = thinking.join();
        result
    }
}

/// Has a server stop that has nobody left who computes, however that came.
struct StopsWithIt(Stop);

impl Drop for StopsWithIt {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn router(shared: &Arc<Shared>) -> Router {
    Router::new()
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model).merge(delete(drop_adapter)))
        .route("/v1/adapters", get(adapters).merge(post(load_adapter)))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .merge(pages::routes())
        .fallback(|request: Request| async move {
            let path = shortened(request.uri().path());
            ApiError::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}"))
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let (method, path) = (request.method(), shortened(request.uri().path()));
            let message = format!("{path} does not take {}", shortened(method.as_str()));
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .layer(middleware::from_fn_with_state(Arc::clone(shared), count))
        .with_state(Arc::clone(shared))
}

async fn count(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    shared.metrics.answered(response.status().as_u16());
    response
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let kind = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
    (kind, shared.metrics.text())
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let all = shared.catalogue.all();
    let data: Vec<Value> = all.iter().map(Card::json).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn model(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(shared.catalogue.find(&id)?.json()))
}

async fn drop_adapter(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    shared.catalogue.find(&id)?;
    if id == shared.base {
        return Err(ApiError::invalid(
            "model",
            "the base stays while the server runs; only adapters are dropped",
        ));
    }
    let (reply, answer) = oneshot::channel();
    shared.tell(Command::Drop(id.clone(), reply));
    match answer.await {
        Ok(true) => Ok(Json(json!({"id": id, "object": "model", "deleted": true}))),
        Ok(false) => Err(ApiError::no_model(&id, &shared.catalogue.names())),
        Err(_) => Err(stopping()),
    }
}

async fn adapters(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, ApiError> {
    let loaded = shared.catalogue.all().into_iter();
    let loaded = loaded.filter(|card| card.parent.is_some());
    let mut data: Vec<(String, bool)> = loaded.map(|card| (card.name, true)).collect();
    for name in shelf_names(&shared)? {
        if !data.iter().any(|(other, _)| *other == name) && name != shared.base {
            data.push((name, false));
        }
    }
    let data: Vec<Value> = data
        .into_iter()
        .map(|(id, loaded)| json!({"id": id, "loaded": loaded}))
        .collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

fn shelf_names(shared: &Shared) -> Result<Vec<String>, ApiError> {
    let failed = |said| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, said);
    shared.shelf.names().map_err(failed)
}

async fn load_adapter(State(shared): State<Arc<Shared>>, body: Body) -> Result<Response, ApiError> {
    let body = read(body, &shared).await?;
    let request: Value = serde_json::from_slice(&body).map_err(|error| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            format!("the body is no JSON: {error}"),
        )
    })?;
    let name = match (request["name"].as_str(), request.as_object()) {
        (Some(name), Some(keys)) if keys.len() == 1 => name,
        _ => {
            return Err(ApiError::invalid(
                "name",
                "the body must be {\"name\": …} with a name of GET /v1/adapters, and nothing else",
            ));
        }
    };
    if !shared.shelf.is_there() {
        return Err(ApiError::invalid(
            "name",
            "this server loads no adapters: start it with --adapters-dir and the directory that they are in",
        ));
    }
    let there = shelf_names(&shared)?;
    if !there.iter().any(|other| other == name) {
        let message = format!(
            "there is no adapter `{}` in the directory of adapters; there are: {}",
            shortened(name),
            there.join(", ")
        );
        return Err(ApiError {
            param: Some("name".to_owned()),
            ..ApiError::new(StatusCode::NOT_FOUND, message).with_code("model_not_found")
        });
    }
    let (reply, answer) = oneshot::channel();
    shared.tell(Command::Load(name.to_owned(), reply));
    let card = answer.await.map_err(|_| stopping())??;
    Ok((StatusCode::CREATED, Json(card.json())).into_response())
}

fn stopping() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping")
}

/// A request's body.
pub(crate) async fn read(body: Body, shared: &Shared) -> Result<Bytes, ApiError> {
    let read = olora_web::body(body, shared.limits.max_body).await;
    read.map_err(|(status, message)| ApiError::new(status, message))
}

impl Shared {
    fn tell(&self, command: Command) {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        // Where the engine has gone, so has whoever waits for the answer.
        let _ = commands.send(command);
    }

    /// Writes to the log, if there is one.
    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        if let Some(log) = &self.log {
            log(&text());
        }
    }

    /// A place for a request.
    pub(crate) fn take(shared: &Arc<Self>) -> Result<Ticket, ApiError> {
        let most = shared.limits.max_batch + shared.limits.queue;
        let ticket = Ticket(Arc::clone(shared));
        if shared.taken.fetch_add(1, SeqCst) >= most {
            let message = format!("{most} requests are being answered or wait: try again later");
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
                .with_code("rate_limit_exceeded"));
        }
        Ok(ticket)
    }

    /// Has each prompt, with the tokens that it may be continued by, continued as often
    /// as is asked: as a text that goes on, or not; scored, or not.
    pub(crate) fn begin(
        &self,
        asked: &Asked,
        prompts: Vec<(Vec<u32>, usize)>,
        [continues, score_prompt]: [bool; 2],
    ) -> Vec<Choice> {
        let asked_at = Instant::now();
        let deadline = asked_at + self.limits.max_time;
        let (mut jobs, mut choices) = (Vec::new(), Vec::new());
        for (prompt, max_new) in prompts {
            for i in 0..asked.n {
                let (updates, receiver) = unbounded_channel();
                choices.push(Choice {
                    n_prompt: prompt.len(),
                    updates: receiver,
                });
                let mut sampling = asked.sampling.clone();
                sampling.seed = sampling.seed.wrapping_add(i as u64);
                jobs.push(Job {
                    model: asked.model.clone(),
                    prompt: prompt.clone(),
                    max_new,
                    sampling,
                    stop: asked.stop.clone(),
                    scores: asked.scores,
                    score_prompt,
                    continues,
                    asked_at,
                    deadline,
                    updates,
                });
            }
        }
        self.tell(Command::Run(jobs));
        choices
    }
}
