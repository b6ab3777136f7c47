//! The requests to the hub: what a repository holds, what a file is, and its bytes.

use std::thread::sleep;

use serde::Deserialize;
use ureq::{
    Agent, Body,
    http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header},
};

use crate::{HubError, HubOptions, Token, agent::agent, name::Target};

/// Redirects followed before giving up.
const REDIRECTS: usize = 10;
/// A listing of more than this is not one.
const LISTING_BYTES: u64 = 64 << 20;

/// What a revision of a repository is.
#[derive(Deserialize)]
pub(crate) struct Listing {
    /// The commit, 40 hexadecimal digits.
    pub(crate) sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    pub(crate) fn has(&self, file: &str) -> bool {
        self.siblings
            .iter()
            .any(|sibling| sibling.rfilename == file)
    }

    /// All files, in the hub's order.
    pub(crate) fn into_files(self) -> Vec<String> {
        self.siblings
            .into_iter()
            .map(|sibling| sibling.rfilename)
            .collect()
    }

    /// The .gguf files.
    pub(crate) fn gguf(&self) -> Vec<String> {
        self.siblings
            .iter()
            .map(|sibling| &sibling.rfilename)
            .filter(|name| name.to_ascii_lowercase().ends_with(".gguf"))
            .cloned()
            .collect()
    }
}

/// What the hub says about a file before it is downloaded.
pub(crate) struct FileHead {
    /// The blob's name in the cache: for large files, their SHA-256.
    pub(crate) etag: String,
    /// Its length in bytes, where announced.
    pub(crate) size: Option<u64>,
}

impl FileHead {
    /// The SHA-256 of the file, in lower-case hexadecimal digits. Small files,
    /// which Git holds itself, have an `ETag` of another kind.
    pub(crate) fn sha256(&self) -> Option<&str> {
        let digits = self.etag.len() == 64 && self.etag.chars().all(|c| c.is_ascii_hexdigit());
        digits.then_some(&self.etag)
    }
}

/// A connection to one hub, about one repository.
pub(crate) struct Client<'a> {
    agent: Agent,
    options: &'a HubOptions,
    target: &'a Target,
    endpoint: Uri,
    authorization: Option<HeaderValue>,
}

impl<'a> Client<'a> {
    pub(crate) fn new(options: &'a HubOptions, target: &'a Target) -> Result<Self, HubError> {
        let (endpoint, authorization) = endpoint(options, options.token.as_ref())?;
        Ok(Self {
            agent: agent(options)?,
            options,
            target,
            endpoint,
            authorization,
        })
    }

    /// The commit and the files of the revision that was asked for.
    pub(crate) fn listing(&self) -> Result<Listing, HubError> {
        let url = format!(
            "{}/api/{}/{}/revision/{}",
            self.options.endpoint,
            self.target.kind.plural(),
            self.target.repository,
            encode(&self.target.revision, false)
        );
        let (mut response, _) = self.send(Kind::Get { from: 0 }, &url)?;
        let text = response
            .body_mut()
            .with_config()
            .limit(LISTING_BYTES)
            .read_to_vec()
            .map_err(|error| self.no_network(&self.endpoint, &error))?;
        let listing: Listing = serde_json::from_slice(&text).map_err(|error| {
            self.bad_answer(&format!(
                "its description of a {} is malformed, {error}",
                self.target.kind.noun()
            ))
        })?;
        if !is_commit(&listing.sha) {
            return Err(self.bad_answer(&format!(
                "its description of a {} names no commit",
                self.target.kind.noun()
            )));
        }
        Ok(listing)
    }

    /// The identity and length of a file at a commit.
    pub(crate) fn head(&self, commit: &str, file: &str) -> Result<FileHead, HubError> {
        let (response, linked) = self.send(Kind::Head, &self.url(commit, file))?;
        let headers = response.headers();
        let etag = linked
            .etag
            .or_else(|| text(headers, "etag"))
            .map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned())
            // It becomes a file name.
            .filter(|etag| {
                !etag.is_empty()
                    && etag.len() <= 128
                    && etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            })
            .ok_or_else(|| self.bad_answer(&format!("it names no ETag for `{file}`")))?;
        let announced = || {
            (!response.status().is_redirection())
                .then(|| text(headers, "content-length")?.parse().ok())
                .flatten()
        };
        Ok(FileHead {
            size: linked.size.or_else(announced),
            etag,
        })
    }

    /// A file's bytes from the given offset on: with status 206 those, with
    /// status 200 all of them, with status 416 none. Also returns the host that
    /// sends them.
    pub(crate) fn get(
        &self,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<(Response<Body>, String), HubError> {
        let (response, linked) = self.send(Kind::Get { from }, &self.url(commit, file))?;
        Ok((response, linked.host))
    }

    /// Does it again after a pause while it fails for reasons that may pass.
    pub(crate) fn persist<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        let mut failures = 0;
        loop {
            match attempt() {
                Err(error) if error.is_transient() && failures + 1 < self.options.attempts => {
                    self.pause(failures);
                    failures += 1;
                }
                result => return result,
            }
        }
    }

    /// Waits longer after each failure in a row.
    pub(crate) fn pause(&self, failures: u32) {
        sleep(self.options.retry_wait.saturating_mul(1 << failures.min(5)));
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.options.attempts
    }

    pub(crate) fn no_network_at(&self, host: &str, reason: &dyn ToString) -> HubError {
        HubError::NoNetwork {
            host: host.to_owned(),
            kind: self.target.kind,
            name: self.target.shown.clone(),
            cache: self.options.cache.clone(),
            reason: reason.to_string(),
        }
    }

    fn no_network(&self, url: &Uri, reason: &dyn ToString) -> HubError {
        self.no_network_at(host(url), reason)
    }

    pub(crate) fn bad_answer(&self, reason: &str) -> HubError {
        HubError::BadAnswer {
            host: host(&self.endpoint).to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn url(&self, commit: &str, file: &str) -> String {
        format!(
            "{}/{}{}/resolve/{commit}/{}",
            self.options.endpoint,
            self.target.kind.prefix(),
            self.target.repository,
            encode(file, true)
        )
    }

    /// Sends one request and follows its redirects; a `HEAD` only as long as
    /// they stay on the hub, whose headers describe what lies elsewhere.
    fn send(&self, kind: Kind, url: &str) -> Result<(Response<Body>, Linked), HubError> {
        let mut url: Uri = url
            .parse()
            .map_err(|_| HubError::BadEndpoint(self.options.endpoint.clone()))?;
        let mut linked = Linked::default();
        for _ in 0..=REDIRECTS {
            let at_home = same_origin(&url, &self.endpoint);
            let mut request = match kind {
                Kind::Head => self.agent.head(&url),
                Kind::Get { .. } => self.agent.get(&url),
            }
            // A compressed answer would have another length.
            .header(header::ACCEPT_ENCODING, "identity");
            if let Kind::Get { from: from @ 1.. } = kind {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(authorization) = self.authorization.as_ref().filter(|_| at_home) {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let response = request
                .call()
                .map_err(|error| self.no_network(&url, &error))?;
            host(&url).clone_into(&mut linked.host);
            let status = response.status();
            if at_home {
                linked.add(response.headers());
            }
            if status.is_redirection() {
                let target = text(response.headers(), "location")
                    .and_then(|location| join(&url, &location))
                    .ok_or_else(|| self.bad_answer("it redirects to nowhere"))?;
                if matches!(kind, Kind::Head) && !same_origin(&target, &self.endpoint) {
                    return Ok((response, linked));
                }
                url = target;
                continue;
            }
            if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok((response, linked));
            }
            return Err(if at_home {
                self.refusal(&response)
            } else {
                // Where the hub keeps its files, a refusal means an address that has expired.
                HubError::Server {
                    host: linked.host,
                    status: status.as_u16(),
                    reason: String::new(),
                }
            });
        }
        Err(self.bad_answer("it redirects in circles"))
    }

    /// What a status of the hub's means.
    fn refusal(&self, response: &Response<Body>) -> HubError {
        let headers = response.headers();
        let code = text(headers, "x-error-code").unwrap_or_default();
        let reason = self.hide(text(headers, "x-error-message").unwrap_or_default());
        let status = response.status().as_u16();
        let kind = self.target.kind;
        let name = self.target.repository.clone();
        let host = host(&self.endpoint).to_owned();
        let page = format!("{}/{}{name}", self.options.endpoint, kind.prefix());
        let token_sent = self.authorization.is_some();
        match (code.as_str(), status) {
            ("RevisionNotFound", _) => HubError::NoRevision {
                revision: self.target.revision.clone(),
                page: format!("{page}/refs"),
                name,
            },
            (_, 401) if token_sent && reason.starts_with("Invalid credentials") => {
                HubError::TokenRefused { host }
            }
            ("GatedRepo", _) | (_, 403) => HubError::Gated {
                name,
                status,
                reason,
                page,
                token_sent,
            },
            // Without access, the hub answers 401 for what does not exist, too.
            ("RepoNotFound", _) | ("", 404) | (_, 401) => HubError::NoRepository {
                kind,
                name,
                host,
                status,
                page,
                token_sent,
            },
            _ => HubError::Server {
                host,
                status,
                reason,
            },
        }
    }

    /// A hub should not repeat the token, but a proxy might.
    fn hide(&self, text: String) -> String {
        match &self.options.token {
            Some(token) => text.replace(token.reveal(), "…"),
            None => text,
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Head,
    Get { from: u64 },
}

/// What the hub says about a file that it keeps elsewhere.
#[derive(Default)]
struct Linked {
    etag: Option<String>,
    size: Option<u64>,
    /// The host of the last request.
    host: String,
}

impl Linked {
    fn add(&mut self, headers: &HeaderMap) {
        if self.etag.is_none() {
            self.etag = text(headers, "x-linked-etag");
        }
        if self.size.is_none() {
            self.size = text(headers, "x-linked-size").and_then(|size| size.parse().ok());
        }
    }
}

/// The hub's address, and the header that a token is sent in.
pub(crate) fn endpoint(
    options: &HubOptions,
    token: Option<&Token>,
) -> Result<(Uri, Option<HeaderValue>), HubError> {
    let endpoint = options
        .endpoint
        .parse::<Uri>()
        .ok()
        .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
        .ok_or_else(|| HubError::BadEndpoint(options.endpoint.clone()))?;
    let authorization = token.map(|token| {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.reveal()))
            .map_err(|_| HubError::BadToken)?;
        value.set_sensitive(true);
        Ok(value)
    });
    Ok((endpoint, authorization.transpose()?))
}

/// Whether a text is a whole commit identifier.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

pub(crate) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// The host, without credentials that an address may hold.
pub(crate) fn host(url: &Uri) -> &str {
    url.host().unwrap_or_default()
}

pub(crate) fn same_origin(one: &Uri, other: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16()
            .unwrap_or(if uri.scheme_str() == Some("https") {
                443
            } else {
                80
            })
    };
    one.scheme() == other.scheme()
        && host(one).eq_ignore_ascii_case(host(other))
        && port(one) == port(other)
}

/// Where a `Location` leads.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    let absolute = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", base.authority()?)
    } else {
        location.to_owned()
    };
    let target: Uri = absolute.parse().ok()?;
    matches!(target.scheme_str(), Some("http" | "https")).then_some(target)
}

/// Percent-encodes all but the characters that mean themselves in any part of
/// an address, and slashes where they separate directories.
pub(crate) fn encode(text: &str, slashes: bool) -> String {
    text.bytes()
        .map(|byte| {
            let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            if plain || (slashes && byte == b'/') {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_encoded() {
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encode("a b/ü%.gguf", true), "a%20b/%C3%BC%25.gguf");
    }

    #[test]
    fn redirects_lead_where_they_say() {
        let base: Uri = "https://user@hub.example:8443/a?b".parse().unwrap();
        let to = |location: &str| join(&base, location).map(|uri| uri.to_string());
        assert_eq!(
            to("/c?d=http://e").unwrap(),
            "https://user@hub.example:8443/c?d=http://e"
        );
        assert_eq!(to("//cdn.example/c").unwrap(), "https://cdn.example/c");
        assert_eq!(to("http://cdn.example/c").unwrap(), "http://cdn.example/c");
        assert_eq!(to("file:///etc/passwd"), None);
        assert_eq!(to("c"), None);
    }

    #[test]
    fn another_port_or_scheme_is_another_origin() {
        let same =
            |one: &str, other: &str| same_origin(&one.parse().unwrap(), &other.parse().unwrap());
        assert!(same("https://hub.example/a", "https://HUB.example:443/b"));
        assert!(!same("https://hub.example/", "http://hub.example/"));
        assert!(!same("http://127.0.0.1:1/", "http://127.0.0.1:2/"));
        assert!(!same("https://hub.example/", "https://hub.example.evil/"));
    }
}
