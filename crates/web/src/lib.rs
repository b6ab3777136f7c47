//! HTTP that is safe by default: what `olora board` and `olora serve` have in common.
//!
//! [`Server::bind`] refuses an address that others can reach unless there is a key.
//! [`Server::run`] puts before every route what must hold of a request
//! ([`access`](Settings)): a host name that is ours, so that no other site's page can
//! reach us under its own name; an origin that is ours or allowed; the key. It bounds
//! what may be open at once, how long headers may take, and, by [`body`], how large a
//! body may be and how long it may take.
//!
//! Routes are `axum`'s, which is re-exported so that no other crate depends on it.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod access;
mod body;
mod error;
mod listen;
mod pieces;

pub use axum;
pub use tokio;

pub use access::Settings;
pub use body::body;
pub use error::WebError;
pub use listen::{Server, Stop};
pub use pieces::pieces;
