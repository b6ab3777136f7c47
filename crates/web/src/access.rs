//! Who may ask.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

use crate::WebError;

/// The environment's variable that has the key.
pub(crate) const KEY: &str = "OLORA_API_KEY";

/// Where a server listens, and for whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address; 127.0.0.1 is this machine alone.
    pub host: IpAddr,
    /// The port; 0 is any that is free.
    pub port: u16,
    /// What clients have to give, as `Authorization: Bearer KEY` or as the password
    /// that a browser asks for. Nobody has to if there is none, which is refused
    /// for addresses that others reach.
    pub key: Option<String>,
    /// Other sites whose pages may ask, such as `http://localhost:3000`.
    pub origins: Vec<String>,
    /// Paths that answer without a key, such as `/health`.
    pub open: &'static [&'static str],
    /// Connections at once; others are told 503.
    pub connections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            key: None,
            origins: Vec::new(),
            open: &[],
            connections: 1024,
        }
    }
}

impl Settings {
    /// Reads the key from `OLORA_API_KEY`, if it is set.
    ///
    /// # Errors
    ///
    /// [`WebError::Key`] if it cannot be sent in a header, or is short enough to be
    /// guessed.
    pub fn key_from_env() -> Result<Option<String>, WebError> {
        match std::env::var_os(KEY) {
            None => Ok(None),
            Some(key) => {
                let key = key.into_string().map_err(|_| WebError::Key("no text"))?;
                check_key(&key)?;
                Ok(Some(key))
            }
        }
    }

    pub(crate) fn check(&self) -> Result<(), WebError> {
        if let Some(key) = &self.key {
            check_key(key)?;
        } else if !self.host.is_loopback() {
            return Err(WebError::NoKey(SocketAddr::new(self.host, self.port)));
        }
        for origin in &self.origins {
            let host = origin
                .strip_prefix("http://")
                .or_else(|| origin.strip_prefix("https://"));
            let is_host = |host: &str| {
                !host.is_empty()
                    && host
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-.:[]".contains(&byte))
            };
            if !host.is_some_and(is_host) {
                return Err(WebError::Origin(origin.clone()));
            }
        }
        Ok(())
    }
}

fn check_key(key: &str) -> Result<(), WebError> {
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(WebError::Key("not made of visible ASCII characters"));
    }
    if key.len() < 8 {
        return Err(WebError::Key("shorter than 8 characters"));
    }
    Ok(())
}

/// What requests are held against.
#[derive(Debug)]
pub(crate) struct Access {
    /// Compared by its hash, which takes as long whatever is different.
    key: Option<[u8; 32]>,
    origins: Vec<String>,
    open: &'static [&'static str],
    /// Whether only names of this machine are ours.
    local: bool,
}

impl Access {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            key: settings.key.as_deref().map(digest),
            origins: settings.origins.clone(),
            open: settings.open,
            local: settings.host.is_loopback(),
        }
    }

    /// Whether a name that a client gave for us can be meant. A page of another site
    /// whose name was made to lead to this machine gives that name.
    fn is_our_name(&self, host: Option<&str>) -> bool {
        if !self.local {
            // Whoever knows the key may call us as they like.
            return true;
        }
        let Some(host) = host else { return false };
        let name = host_without_port(host);
        name.eq_ignore_ascii_case("localhost")
            || name
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }

    /// `None` where a request is of no page, or of one of ours.
    fn other_origin(headers: &HeaderMap) -> Option<&str> {
        let origin = headers.get(header::ORIGIN)?.to_str().unwrap_or("null");
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let of_origin = origin.split_once("://").map(|(_, host)| host);
        if host.is_some() && of_origin == host {
            return None;
        }
        Some(origin)
    }

    fn has_key(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.key else { return true };
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let Some((scheme, given)) = given.and_then(|given| given.split_once(' ')) else {
            return false;
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            return digest(given.trim()) == *key;
        }
        if scheme.eq_ignore_ascii_case("basic")
            && let Ok(pair) = STANDARD.decode(given.trim())
            && let Ok(pair) = String::from_utf8(pair)
            && let Some((_, password)) = pair.split_once(':')
        {
            return digest(password) == *key;
        }
        false
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// `[::1]:80` is `::1`.
fn host_without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// An error as clients of this kind of interface read it.
fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    // No character of these needs an escape.
    let body = format!(
        r#"{{"error":{{"message":"{message}","type":"invalid_request_error","param":null,"code":"{code}"}}}}"#
    );
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (status, kind, body).into_response()
}

/// Lets through what may ask, and says for whom the answer is.
pub(crate) async fn guard(
    State(access): State<Arc<Access>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().host());
    if !access.is_our_name(host) {
        return secured(refusal(
            StatusCode::MISDIRECTED_REQUEST,
            "wrong_host",
            "this server answers under localhost and 127.0.0.1 alone",
        ));
    }
    let other = Access::other_origin(headers).map(str::to_owned);
    let allowed = other
        .as_ref()
        .filter(|other| access.origins.contains(other))
        .and_then(|origin| HeaderValue::from_str(origin).ok());
    if other.is_some() && allowed.is_none() {
        return secured(refusal(
            StatusCode::FORBIDDEN,
            "origin_not_allowed",
            "pages of other sites may not ask: start the server with --allow-origin and the site",
        ));
    }
    if let Some(origin) = &allowed
        && request.method() == Method::OPTIONS
    {
        let mut response = StatusCode::NO_CONTENT.into_response();
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        let methods = HeaderValue::from_static("GET, POST, DELETE");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        // Libraries send headers of their own, and the site is one that may ask.
        if let Some(names) = request
            .headers()
            .get(header::ACCESS_CONTROL_REQUEST_HEADERS)
        {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
        }
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        return secured(response);
    }
    let is_open = access.open.contains(&request.uri().path());
    let mut response = if is_open || access.has_key(request.headers()) {
        next.run(request).await
    } else {
        let mut response = refusal(
            StatusCode::UNAUTHORIZED,
            "invalid_api_key",
            "give the key that the server was started with: Authorization: Bearer KEY",
        );
        let ask =
            HeaderValue::from_static("Basic realm=\"olora: any user name, the key as password\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
        response
    };
    if let Some(origin) = allowed {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    secured(response)
}

/// What keeps a page from being framed, guessed at or told on.
fn secured(mut response: Response) -> Response {
    const HEADERS: [(header::HeaderName, &str); 5] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(of: &[(header::HeaderName, &str)]) -> HeaderMap {
        let pairs = of.iter();
        pairs
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn names_of_this_machine_are_ours_and_others_are_not() {
        let access = Access::new(&Settings::default());
        for ours in [
            "localhost",
            "localhost:8080",
            "LOCALHOST:1",
            "127.0.0.1:9",
            "[::1]:80",
            "127.1.2.3",
        ] {
            assert!(access.is_our_name(Some(ours)), "{ours}");
        }
        for other in [
            "evil.example",
            "localhost.evil.example:8080",
            "10.0.0.1",
            "",
            "127.0.0.1.evil.example",
        ] {
            assert!(!access.is_our_name(Some(other)), "{other}");
        }
        assert!(!access.is_our_name(None));
    }

    #[test]
    fn a_page_of_ours_is_no_other_site() {
        let same = headers(&[
            (header::HOST, "localhost:8080"),
            (header::ORIGIN, "http://localhost:8080"),
        ]);
        assert_eq!(Access::other_origin(&same), None);
        for origin in ["http://localhost:3000", "https://evil.example", "null"] {
            let other = headers(&[(header::HOST, "localhost:8080"), (header::ORIGIN, origin)]);
            assert_eq!(Access::other_origin(&other), Some(origin));
        }
    }

    #[test]
    fn the_key_is_taken_as_a_bearers_and_as_a_password() {
        let access = Access::new(&Settings {
            key: Some("right-key".to_owned()),
            ..Settings::default()
        });
        let with = |value: &str| access.has_key(&headers(&[(header::AUTHORIZATION, value)]));
        assert!(with("Bearer right-key") && with("bearer right-key"));
        assert!(with(&format!("Basic {}", STANDARD.encode("me:right-key"))));
        assert!(
            !with("Bearer wrong-key")
                && !with("right-key")
                && !with("Basic %%%")
                && !with("Bearer ")
        );
        assert!(!with(&format!("Basic {}", STANDARD.encode("right-key:"))));
        assert!(!access.has_key(&HeaderMap::new()));
    }

    #[test]
    fn an_address_for_others_needs_a_key_worth_the_name() {
        let for_others = Settings {
            host: Ipv4Addr::UNSPECIFIED.into(),
            ..Settings::default()
        };
        assert!(matches!(for_others.check(), Err(WebError::NoKey(_))));
        let with = |key: &str| Settings {
            key: Some(key.to_owned()),
            ..for_others.clone()
        };
        assert!(with("long-enough").check().is_ok());
        for bad in ["", "short", "with a space", "naïveté-key"] {
            assert!(matches!(with(bad).check(), Err(WebError::Key(_))), "{bad}");
        }
    }

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        let with = |origin: &str| {
            let settings = Settings {
                origins: vec![origin.to_owned()],
                ..Settings::default()
            };
            settings.check().is_ok()
        };
        assert!(with("http://localhost:3000") && with("https://ui.example"));
        for bad in ["*", "localhost:3000", "http://", "http://a/b", "http://a b"] {
            assert!(!with(bad), "{bad}");
        }
    }
}
