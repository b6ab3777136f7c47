//! What is answered.

use std::sync::Arc;

use olora_web::{
    Stop,
    axum::{
        Json, Router,
        extract::{Query, State},
        http::{HeaderName, StatusCode, header},
        response::{IntoResponse, Response, Sse, sse::KeepAlive},
        routing::get,
    },
    tokio::task::spawn_blocking,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    board::Board,
    comparison::{MOST_PICTURE, pictures},
    events, page,
};

/// How many runs a page may watch.
const MOST_WATCHED: usize = 64;

#[derive(Clone)]
struct Shared {
    board: Arc<Board>,
    stop: Stop,
}

#[derive(Deserialize)]
struct Asked {
    path: String,
}

#[derive(Deserialize)]
struct AskedPicture {
    path: String,
    name: String,
}

/// Why something is not answered.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, message) = self;
        (status, Json(json!({"error": {"message": message}}))).into_response()
    }
}

/// The pages and interfaces of a board. Streams of events end when the server is told to
/// stop.
pub fn router(board: &Arc<Board>, stop: &Stop) -> Router {
    let shared = Shared {
        board: Arc::clone(board),
        stop: stop.clone(),
    };
    Router::new()
        .route(
            "/",
            get(|| async { file("text/html; charset=utf-8", &page::BOARD) }),
        )
        .route(
            "/board.css",
            get(|| async { file("text/css; charset=utf-8", page::STYLE) }),
        )
        .route(
            "/board.js",
            get(|| async { file("text/javascript; charset=utf-8", page::SCRIPT) }),
        )
        .route("/api/runs", get(runs))
        .route("/api/run", get(run))
        .route("/api/comparison", get(comparison))
        .route("/api/picture", get(picture))
        .route("/api/events", get(watch))
        .fallback(|| async { Refusal(StatusCode::NOT_FOUND, "there is no such page".to_owned()) })
        .with_state(shared)
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn runs(State(shared): State<Shared>) -> Response {
    answer(move || Some(json!(*shared.board.listing())), String::new).await
}

async fn run(State(shared): State<Shared>, Query(Asked { path }): Query<Asked>) -> Response {
    let missing = no_run(&path);
    answer(move || shared.board.details(&path), || missing).await
}

async fn comparison(State(shared): State<Shared>, Query(Asked { path }): Query<Asked>) -> Response {
    let missing = format!("there is no comparison {path:?} below the board's directory");
    answer(move || shared.board.compared(&path), || missing).await
}

/// Finds something out on a thread that may wait for a disk, and answers with it.
async fn answer<T: Serialize + Send + 'static>(
    find: impl FnOnce() -> Option<T> + Send + 'static,
    missing: impl FnOnce() -> String,
) -> Response {
    match spawn_blocking(find).await {
        Ok(Some(found)) => Json(found).into_response(),
        Ok(None) => Refusal(StatusCode::NOT_FOUND, missing()).into_response(),
        Err(_) => failed(),
    }
}

fn no_run(path: &str) -> String {
    format!("there is no run {path:?} below the board's directory: GET /api/runs lists them")
}

fn failed() -> Response {
    let said = "something unforeseen failed while files were read".to_owned();
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, said).into_response()
}

/// A picture of a comparison, one of those that lie in its directory.
async fn picture(
    State(shared): State<Shared>,
    Query(AskedPicture { path, name }): Query<AskedPicture>,
) -> Response {
    // It is shown as a picture. Whoever opens it by itself sees a picture still: no script runs.
    const ALONE: (HeaderName, &str) = (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'",
    );
    const KIND: (HeaderName, &str) = (header::CONTENT_TYPE, "image/svg+xml");
    let missing = format!("there is no picture {name:?} of {path:?}");
    let bytes = spawn_blocking(move || {
        let place = shared.board.comparison(&path)?;
        let name = pictures(&place).into_iter().find(|there| *there == name)?;
        place.read(&name, MOST_PICTURE).ok()
    });
    match bytes.await {
        Ok(Some(bytes)) => ([KIND, ALONE], bytes).into_response(),
        Ok(None) => Refusal(StatusCode::NOT_FOUND, missing).into_response(),
        Err(_) => failed(),
    }
}

/// `/api/events?run=PATH&run=PATH`.
async fn watch(
    State(Shared { board, stop }): State<Shared>,
    Query(asked): Query<Vec<(String, String)>>,
) -> Response {
    let paths: Vec<String> = asked
        .into_iter()
        .filter(|(key, _)| key == "run")
        .map(|(_, path)| path)
        .collect();
    if paths.len() > MOST_WATCHED {
        let said = format!(
            "{} runs are asked for, and at most {MOST_WATCHED} can be watched at once",
            paths.len()
        );
        return Refusal(StatusCode::BAD_REQUEST, said).into_response();
    }
    let known = Arc::clone(&board);
    let found = spawn_blocking(move || {
        let found = paths.into_iter().map(|path| match known.run(&path) {
            Some(place) => Ok((path, place)),
            None => Err(path),
        });
        found.collect::<Result<Vec<_>, String>>()
    });
    match found.await {
        Ok(Ok(runs)) => Sse::new(events::events(board, runs, stop))
            .keep_alive(KeepAlive::default())
            .into_response(),
        Ok(Err(path)) => Refusal(StatusCode::NOT_FOUND, no_run(&path)).into_response(),
        Err(_) => failed(),
    }
}
