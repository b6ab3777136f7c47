//! The page to talk to the models.

use std::sync::Arc;

use olora_web::axum::{
    Router,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};

use crate::service::Shared;

pub(crate) fn routes() -> Router<Arc<Shared>> {
    let file =
        |kind: &'static str, text: &'static str| get(move || async move { with_kind(kind, text) });
    Router::new()
        .route(
            "/",
            file(
                "text/html; charset=utf-8",
                include_str!("../assets/chat.html"),
            ),
        )
        .route(
            "/chat.css",
            file(
                "text/css; charset=utf-8",
                include_str!("../assets/chat.css"),
            ),
        )
        .route(
            "/chat.js",
            file(
                "text/javascript; charset=utf-8",
                include_str!("../assets/chat.js"),
            ),
        )
}

fn with_kind(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
