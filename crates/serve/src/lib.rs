//! A model and its adapters behind [OpenAI's HTTP
//! interface](https://platform.openai.com/docs/api-reference), so that the clients
//! that people have can ask them.
//!
//! [`Service::new`] takes a base and adapters; [`Service::run`] answers on a
//! [`Server`](olora_web::Server) until it is told to stop. What a request may say is in
//! `request.rs`: each key is used, named as harmless, or refused by name.
//!
//! One thread has the models and computes (`engine.rs`). Requests that are being
//! answered get a token each per step; see [`olora_model::next_logits_of_all`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod answer;
mod chat;
mod completions;
mod engine;
mod error;
mod job;
mod metrics;
mod models;
mod pages;
mod request;
mod scores;
mod service;
mod text;

pub use models::{Model, Shelf};
pub use service::{Limits, Log, Service};
