//! The requests of a push.

use std::{
    io::{ErrorKind, Read},
    thread::sleep,
    time::Duration,
};

use serde_json::{Value, json};
use ureq::{
    Agent, Body, Error, SendBody, Timeout,
    http::{HeaderMap, HeaderName, HeaderValue, Response, Uri, header},
};

use super::{
    PushError, PushTarget,
    error::{FINISH, STORAGE},
};
use crate::{
    HubOptions,
    agent::agent,
    client::{encode, host, same_origin, text},
};

/// An answer of more than this is none.
const ANSWER_BYTES: u64 = 64 << 20;
const LFS: &str = "application/vnd.git-lfs+json";
const COMMIT: &str = "the commit";
/// Characters of an answer that are shown.
const SHOWN: usize = 200;

/// A hub, and a repository of it.
pub(super) struct Server<'a> {
    pub(super) options: &'a HubOptions,
    target: &'a PushTarget,
    agent: Agent,
    endpoint: Uri,
    authorization: HeaderValue,
}

/// What is sent.
struct Sent<'a> {
    doing: String,
    url: &'a str,
    kind: &'static str,
    body: Vec<u8>,
}

impl<'a> Server<'a> {
    pub(super) fn new(options: &'a HubOptions, target: &'a PushTarget) -> Result<Self, PushError> {
        let token = options.token.as_ref().ok_or(PushError::NoToken)?;
        let (endpoint, authorization) = crate::client::endpoint(options, Some(token))?;
        Ok(Self {
            options,
            target,
            agent: agent(options)?,
            endpoint,
            authorization: authorization.ok_or(PushError::NoToken)?,
        })
    }

    pub(super) fn repository(&self) -> &str {
        &self.target.repository
    }

    pub(super) fn page(&self) -> String {
        format!("{}/{}", self.options.endpoint, self.target.repository)
    }

    pub(super) fn bad_answer(&self, reason: &str) -> PushError {
        PushError::BadAnswer {
            host: host(&self.endpoint).to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// Where each file is to go.
    pub(super) fn preupload(&self, body: &Value) -> Result<Value, PushError> {
        self.api(
            "preupload",
            "to say where files go",
            "application/json",
            body.to_string(),
        )
    }

    /// Makes the commit, of a JSON value on each line, and gives its page.
    pub(super) fn commit(&self, body: &[u8]) -> Result<String, PushError> {
        let body = String::from_utf8_lossy(body).into_owned();
        let answer = self.api("commit", COMMIT, "application/x-ndjson", body)?;
        let field = |name: &str| answer[name].as_str().filter(|text| !text.is_empty());
        let failed = !matches!(answer["success"], Value::Null | Value::Bool(true));
        match (field("commitUrl"), field("commitOid")) {
            (Some(url), _) if !failed => Ok(url.to_owned()),
            (None, Some(_)) if !failed => Ok(self.page()),
            _ => {
                let shown: String = answer.to_string().chars().take(SHOWN).collect();
                Err(self.unsure(&self.endpoint, &format!("its answer is {shown}")))
            }
        }
    }

    /// An error for a commit that may or may not have been made.
    fn unsure(&self, url: &Uri, reason: &str) -> PushError {
        PushError::Unsure {
            host: host(url).to_owned(),
            page: format!(
                "{}/commits/{}",
                self.page(),
                encode(&self.target.branch, false)
            ),
            reason: self.hide(reason),
        }
    }

    /// An error for what an answer refuses in words of its own.
    pub(super) fn refused(&self, doing: String, status: u16, reason: &str) -> PushError {
        PushError::Refused {
            host: host(&self.endpoint).to_owned(),
            doing,
            status,
            code: String::new(),
            reason: self.hide(reason),
        }
    }

    fn api(
        &self,
        verb: &str,
        doing: &str,
        kind: &'static str,
        body: String,
    ) -> Result<Value, PushError> {
        let url = format!(
            "{}/api/models/{}/{verb}/{}",
            self.options.endpoint,
            self.target.repository,
            encode(&self.target.branch, false)
        );
        self.json(&Sent {
            doing: doing.to_owned(),
            url: &url,
            kind,
            body: body.into_bytes(),
        })
    }

    /// Makes the repository.
    pub(super) fn create(&self, public: bool) -> Result<(), PushError> {
        let (owner, name) = self.target.repository.split_once('/').unwrap_or_default();
        let url = format!("{}/api/repos/create", self.options.endpoint);
        let body = json!({
            "type": "model", "name": name, "organization": owner,
            "visibility": if public { "public" } else { "private" },
        });
        let made = self.json(&Sent {
            doing: format!("to make the repository `{}`", self.target.repository),
            url: &url,
            kind: "application/json",
            body: body.to_string().into_bytes(),
        });
        match made {
            // An attempt before this one made it.
            Ok(_) | Err(PushError::Refused { status: 409, .. }) => {}
            Err(error) => return Err(error),
        }
        if public || self.is_private()? {
            return Ok(());
        }
        Err(PushError::NotPrivate { page: self.page() })
    }

    /// Whether nobody but its owner sees the repository. A hub that does not know
    /// the word for it would make it public.
    fn is_private(&self) -> Result<bool, PushError> {
        const DOING: &str = "to describe the repository";
        let url = format!(
            "{}/api/models/{}",
            self.options.endpoint, self.target.repository
        );
        let url = self.uri(&url)?;
        let bytes = self.persist(|| {
            let mut response = self
                .agent
                .get(&url)
                .header(header::ACCEPT_ENCODING, "identity")
                .header(header::AUTHORIZATION, &self.authorization)
                .call()
                .map_err(|error| self.network(&url, DOING, &error))?;
            self.refuse(&url, DOING, &mut response)?;
            let body = response.body_mut().with_config().limit(ANSWER_BYTES);
            body.read_to_vec()
                .map_err(|error| self.network(&url, DOING, &error))
        })?;
        let about: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok(about["private"] == true)
    }

    /// What is to be done with a large file.
    pub(super) fn batch(&self, oid: &str, size: u64) -> Result<Value, PushError> {
        let url = format!(
            "{}/{}.git/info/lfs/objects/batch",
            self.options.endpoint, self.target.repository
        );
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": [{ "oid": oid, "size": size }],
            "hash_algo": "sha256",
            "ref": { "name": self.target.branch },
        });
        self.json(&Sent {
            doing: "to take a large file".to_owned(),
            url: &url,
            kind: LFS,
            body: body.to_string().into_bytes(),
        })
    }

    /// Tells that a large file has arrived, at an address that the hub gave.
    pub(super) fn tell(&self, url: &str, body: &Value) -> Result<(), PushError> {
        self.json(&Sent {
            doing: FINISH.to_owned(),
            url,
            kind: LFS,
            body: body.to_string().into_bytes(),
        })
        .map(drop)
    }

    /// Sends, again while it fails for reasons that may pass; an answer without
    /// a body is null.
    fn json(&self, sent: &Sent<'_>) -> Result<Value, PushError> {
        let bytes = self.persist(|| self.post(sent))?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(value),
            // Where large files are kept, answers may be anything.
            Err(_) if sent.doing == FINISH => Ok(Value::Null),
            Err(error) if sent.doing == COMMIT => {
                Err(self.unsure(&self.endpoint, &format!("its answer is no JSON, {error}")))
            }
            Err(error) => Err(self.bad_answer(&format!("its answer is no JSON, {error}"))),
        }
    }

    /// Sends once, and gives what the answer holds.
    fn post(&self, sent: &Sent<'_>) -> Result<Vec<u8>, PushError> {
        let url = self.uri(sent.url)?;
        let is_commit = sent.doing == COMMIT;
        // A connection that was left open may be found closed once the commit is on its way.
        let fresh = if is_commit {
            Some(agent(self.options)?)
        } else {
            None
        };
        let mut request = fresh
            .as_ref()
            .unwrap_or(&self.agent)
            .post(&url)
            .header(header::CONTENT_TYPE, sent.kind)
            .header(header::ACCEPT_ENCODING, "identity");
        if sent.kind == LFS {
            request = request.header(header::ACCEPT, LFS);
        }
        if same_origin(&url, &self.endpoint) {
            request = request.header(header::AUTHORIZATION, &self.authorization);
        }
        let failed = |error: &Error| {
            if is_commit && may_have_arrived(error) {
                self.unsure(&url, &error.to_string())
            } else {
                self.network(&url, &sent.doing, error)
            }
        };
        let mut response = request
            .config()
            .timeout_per_write(Some(self.options.timeout))
            // A commit of many files, or the check of a large one, takes its time.
            .timeout_recv_response(Some(self.options.timeout.saturating_mul(20)))
            .build()
            .send(&sent.body[..])
            .map_err(|error| failed(&error))?;
        let status = response.status().as_u16();
        // 503 says that it was not taken; others may come from between us and the hub.
        if is_commit && status >= 500 && status != 503 {
            return Err(self.unsure(&url, &format!("HTTP {status}")));
        }
        self.refuse(&url, &sent.doing, &mut response)?;
        let body = response.body_mut().with_config().limit(ANSWER_BYTES);
        body.read_to_vec().map_err(|error| failed(&error))
    }

    /// Puts bytes where the hub said, without the token, and gives the answer's
    /// headers. Is not tried again: `body` is read once.
    pub(super) fn put(
        &self,
        url: &str,
        headers: &[(HeaderName, HeaderValue)],
        length: u64,
        body: &mut dyn Read,
    ) -> Result<HeaderMap, PushError> {
        let url = self.uri(url)?;
        let mut request = self.agent.put(&url).header(header::CONTENT_LENGTH, length);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let mut response = request
            .config()
            .timeout_per_write(Some(self.options.timeout))
            .timeout_recv_response(Some(self.options.timeout.saturating_mul(20)))
            .build()
            .send(SendBody::from_reader(body))
            .map_err(|error| self.network(&url, STORAGE, &error))?;
        self.refuse(&url, STORAGE, &mut response)?;
        Ok(response.headers().clone())
    }

    fn uri(&self, url: &str) -> Result<Uri, PushError> {
        url.parse::<Uri>()
            .ok()
            .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")))
            .ok_or_else(|| self.bad_answer("it names an address that is none"))
    }

    /// Does it again after a pause while it fails for reasons that may pass.
    pub(super) fn persist<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, PushError>,
    ) -> Result<T, PushError> {
        let mut failures = 0;
        loop {
            match attempt() {
                Err(error) if error.is_transient() && failures + 1 < self.options.attempts => {
                    let wait: Duration = self.options.retry_wait;
                    sleep(wait.saturating_mul(1 << failures.min(5)));
                    failures += 1;
                }
                result => return result,
            }
        }
    }

    fn network(&self, url: &Uri, doing: &str, reason: &Error) -> PushError {
        if matches!(reason, Error::BodyExceedsLimit(_)) {
            return PushError::BadAnswer {
                host: host(url).to_owned(),
                reason: format!("its answer has more than {ANSWER_BYTES} bytes"),
            };
        }
        PushError::Network {
            host: host(url).to_owned(),
            doing: doing.to_owned(),
            reason: self.hide(&reason.to_string()),
        }
    }

    /// An error for what is no success, with what the answer says.
    fn refuse(
        &self,
        url: &Uri,
        doing: &str,
        response: &mut Response<Body>,
    ) -> Result<(), PushError> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let headers = response.headers();
        let code = text(headers, "x-error-code").unwrap_or_default();
        let said = text(headers, "x-error-message").filter(|said| !said.is_empty());
        let said = match said {
            Some(said) => said,
            None if status.is_redirection() => text(headers, "location").unwrap_or_default(),
            None => {
                let body = response.body_mut().with_config().limit(4096);
                let body = body.read_to_vec().unwrap_or_default();
                let json: Value = serde_json::from_slice(&body).unwrap_or_default();
                json["error"].as_str().unwrap_or_default().to_owned()
            }
        };
        Err(PushError::Refused {
            host: host(url).to_owned(),
            doing: doing.to_owned(),
            status: status.as_u16(),
            code,
            reason: self.hide(&said),
        })
    }

    /// A hub should not repeat the token, but a proxy might.
    fn hide(&self, text: &str) -> String {
        match &self.options.token {
            Some(token) => text.replace(token.reveal(), "…"),
            None => text.to_owned(),
        }
    }
}

/// Whether a request may have come through before it failed.
fn may_have_arrived(error: &Error) -> bool {
    match error {
        Error::HostNotFound
        | Error::ConnectionFailed
        | Error::ConnectProxyFailed(_)
        | Error::Timeout(Timeout::Resolve | Timeout::Connect) => false,
        Error::Io(error) => error.kind() != ErrorKind::ConnectionRefused,
        _ => true,
    }
}
