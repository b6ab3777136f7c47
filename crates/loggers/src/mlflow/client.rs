//! Requests to a tracking server, and what its answers mean.

use std::time::Duration;

use serde_json::{Value, json};
use ureq::{
    Agent, Body,
    config::Config,
    http::{Response, header},
    tls::{RootCerts, TlsConfig},
};

use super::{Server, shared::Values};

/// The most metrics in a request.
pub(super) const MOST_METRICS: usize = 1000;
/// The most parameters in a request, and the most tags.
pub(super) const MOST_PARAMS: usize = 100;
/// Bytes of the longest answer.
const LONGEST_ANSWER: u64 = 16 << 20;
/// Characters of a server's words that are repeated.
const LONGEST_WORDS: usize = 300;
/// What a server calls what is not there.
const MISSING: &str = "RESOURCE_DOES_NOT_EXIST";
/// What it calls what is there already.
const THERE: &str = "RESOURCE_ALREADY_EXISTS";

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server cannot be reached, says nothing in time, or says something
    /// that may be otherwise later.
    Away(String),
    /// It has understood, and would say the same of the same request.
    Refused {
        /// The server's own name for it.
        code: String,
        reason: String,
    },
}

impl Failure {
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == MISSING)
    }

    pub(super) fn is_there_already(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == THERE)
    }

    pub(super) fn into_reason(self) -> String {
        match self {
            Self::Away(reason) | Self::Refused { reason, .. } => reason,
        }
    }
}

/// A tracking server to ask.
pub(super) struct Client {
    agent: Agent,
    server: Server,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(server: &Server, timeout: Duration) -> Self {
        let roots = match server.certificates() {
            Some(certificates) => RootCerts::new_with_certs(certificates),
            None => RootCerts::WebPki,
        };
        let agent = Config::builder()
            // A redirect could lead the token to another host.
            .max_redirects(0)
            .http_status_as_error(false)
            // One request in a second at most: none waits on a connection that the server has closed.
            .max_idle_connections(0)
            .user_agent(concat!("olora/", env!("CARGO_PKG_VERSION")))
            .proxy(server.proxy())
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_global(Some(timeout))
            .build()
            .new_agent();
        Self {
            agent,
            server: server.clone(),
            timeout,
        }
    }

    pub(super) fn get(&self, what: &str, query: &[(&str, &str)]) -> Result<Value, Failure> {
        let mut request = self.agent.get(self.url(what));
        for (key, value) in query {
            request = request.query(key, value);
        }
        if let Some(authorization) = self.server.authorization() {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        self.answer(request.call())
    }

    pub(super) fn post(&self, what: &str, body: &Value) -> Result<Value, Failure> {
        let mut request = self
            .agent
            .post(self.url(what))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(authorization) = self.server.authorization() {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        self.answer(request.send(body.to_string().as_bytes()))
    }

    /// Metrics of one request.
    pub(super) fn log_metrics(&self, run_id: &str, values: &[Values]) -> Result<(), Failure> {
        let metrics: Vec<Value> = values.iter().flat_map(Values::metrics).collect();
        let body = json!({ "run_id": run_id, "metrics": metrics });
        self.post("runs/log-batch", &body).map(|_| ())
    }

    fn url(&self, what: &str) -> String {
        format!("{}/api/2.0/mlflow/{what}", self.server.address())
    }

    fn answer(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Value, Failure> {
        let away = |error: &ureq::Error| {
            Failure::Away(match error {
                ureq::Error::Timeout(_) => format!("it has not answered within {:?}", self.timeout),
                ureq::Error::Io(error) => self.shown(&error.to_string()),
                error => self.shown(&error.to_string()),
            })
        };
        let mut answer = answer.map_err(|error| away(&error))?;
        let status = answer.status();
        let body = answer
            .body_mut()
            .with_config()
            .limit(LONGEST_ANSWER)
            .read_to_vec()
            .map_err(|error| away(&error))?;
        let body: Option<Value> = serde_json::from_slice(&body).ok();
        if status.is_success() {
            return body.ok_or_else(|| {
                let reason = "its answer is not JSON: something else than MLflow is there";
                Failure::Away(reason.to_owned())
            });
        }
        let text = |key: &str| {
            let text = body.as_ref().and_then(|body| body[key].as_str());
            text.map(|text| self.shown(text))
        };
        let code = text("error_code");
        let said = [code.clone(), text("message")].into_iter().flatten();
        let said = said.collect::<Vec<_>>().join(": ");
        let reason = if said.is_empty() {
            format!("it answers {status}")
        } else {
            format!("it answers {status}, {said}")
        };
        let sends_nothing = self.server.authorization().is_none();
        match (status.as_u16(), code) {
            (401 | 403, _) => Err(Failure::Away(if sends_nothing {
                format!(
                    "{reason}. Set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                )
            } else {
                format!("{reason}. Is what MLFLOW_TRACKING_… holds right?")
            })),
            (408 | 425 | 429 | 500.., _) => Err(Failure::Away(reason)),
            (400.., Some(code)) => Err(Failure::Refused { code, reason }),
            // By something before the server, as the size of a request may be.
            (400 | 413 | 422, None) => Err(Failure::Refused {
                code: String::new(),
                reason,
            }),
            (300..400, _) => Err(Failure::Away(format!(
                "{reason}, which leads elsewhere: give the address that it leads to"
            ))),
            _ => Err(Failure::Away(format!(
                "{reason}: something else than MLflow is there"
            ))),
        }
    }

    /// Words of others, without secrets and not too many.
    fn shown(&self, words: &str) -> String {
        let words = self.server.hide(words);
        if words.chars().count() <= LONGEST_WORDS {
            return words;
        }
        words.chars().take(LONGEST_WORDS).chain(['…']).collect()
    }
}
