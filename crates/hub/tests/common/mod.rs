//! A hub on 127.0.0.1 with one repository, of a model or a data set: an API, small files behind a
//! redirect on the same host, large files behind a redirect to another origin,
//! and faults on demand.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use olora_hub::{HubOptions, Token};
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The commit of the hub's conversion of a data set.
pub(crate) const CONVERTED: &str = "fedcba9876543210fedcba9876543210fedcba98";
pub(crate) const NAME: &str = "owner/name";
pub(crate) const TOKEN: &str = "hf_secretsecret";

/// What goes wrong, and how often.
#[derive(Default)]
pub(crate) struct Faults {
    /// The API's and the files' answer, instead of the normal one.
    pub refuse_api: Option<Refusal>,
    pub refuse_files: Option<Refusal>,
    /// How many refusals there are before all is well.
    pub refusals: usize,
    /// So many times, the CDN sends half of what is left and hangs up.
    pub cuts: usize,
    /// So many times, the CDN accepts a request and says nothing.
    pub silences: usize,
    /// Hangs up without sending a byte, from this offset on.
    pub wall: Option<usize>,
    /// So many times, one byte that the CDN sends is wrong.
    pub flips: usize,
    /// So many bytes more or less than the hub announced does the CDN have.
    pub surplus: isize,
    /// The CDN knows no ranges.
    pub no_ranges: bool,
    /// The hub does not say how long its small files are.
    pub no_lengths: bool,
    /// The API answers this text.
    pub api_text: Option<String>,
    /// Waits before the CDN answers.
    pub delay: Duration,
}

#[derive(Clone)]
pub(crate) struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub method: String,
    pub target: String,
    pub headers: BTreeMap<String, String>,
    /// Whether it came to the second origin.
    pub cdn: bool,
}

pub(crate) struct Hub {
    pub endpoint: String,
    shared: Arc<Shared>,
}

struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Faults>,
    requests: Mutex<Vec<Request>>,
    cdn: String,
    dataset: bool,
    /// The files that only the hub's conversion has.
    conversion: Vec<String>,
}

impl Hub {
    /// With a model.
    pub(crate) fn start(files: &[(&str, &[u8])]) -> Self {
        Self::with(files, None)
    }

    /// With a data set.
    pub(crate) fn start_dataset(files: &[(&str, &[u8])]) -> Self {
        Self::with(files, Some(&[]))
    }

    /// With a data set that the hub has converted, too.
    pub(crate) fn start_converted(files: &[(&str, &[u8])], converted: &[(&str, &[u8])]) -> Self {
        Self::with(files, Some(converted))
    }

    fn with(files: &[(&str, &[u8])], converted: Option<&[(&str, &[u8])]>) -> Self {
        let conversion = converted.unwrap_or_default();
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let cdn = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let shared = Arc::new(Shared {
            files: files
                .iter()
                .chain(conversion)
                .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()))
                .collect(),
            faults: Mutex::default(),
            requests: Mutex::default(),
            cdn: format!("http://{}", cdn.local_addr().unwrap()),
            dataset: converted.is_some(),
            conversion: conversion
                .iter()
                .map(|(name, _)| (*name).to_owned())
                .collect(),
        });
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || shared.serve(stream.unwrap(), is_cdn));
                }
            });
        }
        Self { endpoint, shared }
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.shared.faults.lock().unwrap()
    }

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.shared.requests.lock().unwrap())
    }

    pub(crate) fn options(&self, cache: &Path) -> HubOptions {
        quick(HubOptions::new(&self.endpoint, cache))
    }

    pub(crate) fn options_with_token(&self, cache: &Path) -> HubOptions {
        let mut options = self.options(cache);
        options.token = Token::new(TOKEN);
        options
    }
}

pub(crate) fn quick(mut options: HubOptions) -> HubOptions {
    options.retry_wait = Duration::from_millis(1);
    options.timeout = Duration::from_secs(5);
    options
}

/// An address where nothing listens.
pub(crate) fn dead_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Weights of 100 kB that are no repetition of anything.
pub(crate) fn weights() -> Vec<u8> {
    (0..100_000_u32)
        .map(|i| (i.wrapping_mul(i) / 251) as u8)
        .collect()
}

pub(crate) fn etag(name: &str, bytes: &[u8]) -> String {
    let digits = format!("{:x}", Sha256::digest(bytes));
    // Git holds small files; their ETag is a SHA-1, of which only the length matters here.
    if is_large(name) {
        digits
    } else {
        digits[..40].to_owned()
    }
}

fn is_large(name: &str) -> bool {
    [".safetensors", ".bin", ".gguf", ".parquet"]
        .iter()
        .any(|extension| name.ends_with(extension))
}

impl Shared {
    fn serve(&self, mut stream: TcpStream, cdn: bool) {
        let Some(request) = read_request(&stream, cdn) else {
            return;
        };
        self.requests.lock().unwrap().push(request.clone());
        let target = request.target.split('?').next().unwrap().to_owned();
        if cdn {
            self.serve_large(&mut stream, &request, &target);
        } else if let Some(rest) = target.strip_prefix(if self.dataset {
            "/api/datasets/"
        } else {
            "/api/models/"
        }) {
            self.serve_api(&mut stream, &request, rest);
        } else if let Some(file) = target.strip_prefix("/resolve-cache/") {
            let file = &file.replace("%20", " ");
            let bytes = &self.files[file];
            let headers = format!(
                "ETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\n",
                etag(file, bytes)
            );
            if self.faults.lock().unwrap().no_lengths {
                let head = format!("HTTP/1.1 200 x\r\nConnection: close\r\n{headers}\r\n");
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(if request.method == "HEAD" { b"" } else { bytes });
                return;
            }
            answer(&mut stream, &request, 200, &headers, bytes);
        } else {
            self.serve_file(&mut stream, &request, &target);
        }
    }

    fn refused(&self, refusal: impl Fn(&Faults) -> Option<Refusal>) -> Option<Refusal> {
        let mut faults = self.faults.lock().unwrap();
        let refusal = refusal(&faults)?;
        faults.refusals = faults.refusals.checked_sub(1)?;
        Some(refusal)
    }

    fn serve_api(&self, stream: &mut TcpStream, request: &Request, rest: &str) {
        if let Some(refusal) = self.refused(|faults| faults.refuse_api.clone()) {
            return refuse(stream, request, &refusal);
        }
        if let Some(text) = &self.faults.lock().unwrap().api_text {
            return answer(stream, request, 200, "", text.as_bytes());
        }
        let known = |revision: &str| ["main", "v1", "refs%2Fpr%2F1", COMMIT].contains(&revision);
        let converted = |revision: &str| {
            !self.conversion.is_empty()
                && ["refs%2Fconvert%2Fparquet", CONVERTED].contains(&revision)
        };
        let body = match rest.strip_prefix(NAME) {
            Some(rest) => match (rest.strip_prefix("/revision/"), rest.strip_prefix("/tree/")) {
                (Some(revision), _) if known(revision) || converted(revision) => {
                    let conversion = converted(revision);
                    let siblings: Vec<_> = self
                        .files
                        .keys()
                        .filter(|name| self.conversion.contains(name) == conversion)
                        .map(|name| serde_json::json!({ "rfilename": name }))
                        .collect();
                    let commit = if conversion { CONVERTED } else { COMMIT };
                    serde_json::json!({ "id": NAME, "sha": commit, "siblings": siblings })
                }
                (_, Some(_)) => self
                    .files
                    .iter()
                    .map(|(name, bytes)| {
                        serde_json::json!({
                            "type": "file", "path": name, "size": bytes.len(),
                            "oid": etag("", bytes)
                        })
                    })
                    .collect(),
                _ => {
                    let refusal = Refusal {
                        status: 404,
                        code: "RevisionNotFound",
                        message: "Invalid rev id".to_owned(),
                    };
                    return refuse(stream, request, &refusal);
                }
            },
            None => {
                let refusal = Refusal {
                    status: 401,
                    code: "RepoNotFound",
                    message: "Repository not found".to_owned(),
                };
                return refuse(stream, request, &refusal);
            }
        };
        let text = body.to_string();
        let headers = "Content-Type: application/json\r\n";
        answer(stream, request, 200, headers, text.as_bytes());
    }

    fn serve_file(&self, stream: &mut TcpStream, request: &Request, target: &str) {
        if let Some(refusal) = self.refused(|faults| faults.refuse_files.clone()) {
            return refuse(stream, request, &refusal);
        }
        let prefix = if self.dataset { "datasets/" } else { "" };
        let file = target
            .strip_prefix(&format!("/{prefix}{NAME}/resolve/"))
            .and_then(|rest| rest.split_once('/'))
            .map(|(_, file)| file.replace("%20", " "))
            .filter(|file| self.files.contains_key(file));
        let Some(file) = file else {
            let headers = "X-Error-Code: EntryNotFound\r\nX-Error-Message: Entry not found\r\n";
            return answer(stream, request, 404, headers, b"");
        };
        let mut headers = format!("X-Repo-Commit: {COMMIT}\r\n");
        let encoded = file.replace(' ', "%20");
        if is_large(&file) {
            let bytes = &self.files[&file];
            write!(
                headers,
                "X-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\nLocation: {}/{encoded}?Signature=s\r\n",
                etag(&file, bytes),
                bytes.len(),
                self.cdn,
            )
            .unwrap();
            answer(stream, request, 302, &headers, b"");
        } else {
            write!(headers, "Location: /resolve-cache/{encoded}\r\n").unwrap();
            answer(stream, request, 307, &headers, b"");
        }
    }

    fn serve_large(&self, stream: &mut TcpStream, request: &Request, target: &str) {
        let file = target[1..].replace("%20", " ");
        let mut bytes = self.files[&file].clone();
        let take = |count: fn(&mut Faults) -> &mut usize| {
            let mut faults = self.faults.lock().unwrap();
            let count = count(&mut faults);
            let some = *count > 0;
            *count = count.saturating_sub(1);
            some
        };
        if take(|faults| &mut faults.silences) {
            thread::sleep(Duration::from_secs(2));
            return;
        }
        if take(|faults| &mut faults.flips) {
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
        }
        let cut = take(|faults| &mut faults.cuts);
        let (wall, surplus, no_ranges, delay) = {
            let faults = self.faults.lock().unwrap();
            (faults.wall, faults.surplus, faults.no_ranges, faults.delay)
        };
        thread::sleep(delay);
        bytes.resize(bytes.len().saturating_add_signed(surplus), 0);
        let from = request
            .headers
            .get("range")
            .filter(|_| !no_ranges)
            .map(|range| {
                range
                    .strip_prefix("bytes=")
                    .unwrap()
                    .strip_suffix('-')
                    .unwrap()
            })
            .map(|from| from.parse::<usize>().unwrap());
        let all = bytes.len();
        let body = &bytes[from.unwrap_or(0)..];
        let mut head = format!(
            "HTTP/1.1 {} x\r\nConnection: close\r\nContent-Length: {}\r\n",
            if from.is_some() { 206 } else { 200 },
            body.len()
        );
        if let Some(from) = from {
            write!(head, "Content-Range: bytes {from}-{}/{all}\r\n", all - 1).unwrap();
        }
        let end = match (cut, wall) {
            (true, _) => body.len() / 2,
            (_, Some(wall)) => wall.saturating_sub(from.unwrap_or(0)).min(body.len()),
            _ => body.len(),
        };
        let _ = stream.write_all(format!("{head}\r\n").as_bytes());
        let _ = stream.write_all(&body[..end]);
    }
}

fn read_request(stream: &TcpStream, cdn: bool) -> Option<Request> {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_lowercase(), value.to_owned()))
        })
        .collect();
    Some(Request {
        method,
        target,
        headers,
        cdn,
    })
}

fn answer(stream: &mut TcpStream, request: &Request, status: u16, headers: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    if request.method != "HEAD" {
        let _ = stream.write_all(body);
    }
    // A client that has not read all yet must not find the connection reset.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read(&mut [0; 64]);
}

fn refuse(stream: &mut TcpStream, request: &Request, refusal: &Refusal) {
    let headers = format!(
        "X-Error-Code: {}\r\nX-Error-Message: {}\r\n",
        refusal.code, refusal.message
    );
    answer(stream, request, refusal.status, &headers, b"{}");
}
