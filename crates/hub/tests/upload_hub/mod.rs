//! A hub on 127.0.0.1 that takes files into one repository, as the real one
//! does: an API, large files at a second origin, whole or in parts, and faults
//! on demand. Python's `huggingface_hub` pushes to it, too.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unnecessary_wraps,
    reason = "tests, of two crates"
)]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(crate) const NAME: &str = "owner/name";
pub(crate) const TOKEN: &str = "hf_secretsecret";
/// Bytes of a part.
pub(crate) const CHUNK: usize = 20_000;

/// What goes wrong.
#[derive(Default)]
pub(crate) struct Faults {
    /// The storage hangs up on every part once it has taken so many.
    pub cut_after_parts: Option<usize>,
    /// So many requests to the API, and to the storage, are answered with 503.
    pub busy: usize,
    pub storage_busy: usize,
    /// All requests to the API are.
    pub refuse: Option<(u16, String)>,
    /// A repository is public whatever is asked for.
    pub always_public: bool,
    /// A file, or `*`, that the repository's `.gitignore` excludes.
    pub ignore: Option<String>,
    pub preupload_text: Option<String>,
    /// Answers to a commit, which is not made, with this status.
    pub commit_text: Option<(u16, String)>,
    /// Hangs up on a commit, once it is made or in its place.
    pub cut_commit: Option<Cut>,
}

/// When the hub hangs up on a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Before,
    After,
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub line: String,
    pub authorized: bool,
    /// Whether it came to the second origin.
    pub storage: bool,
}

#[derive(Default)]
struct State {
    faults: Faults,
    requests: Vec<Request>,
    visibility: Option<String>,
    /// Name → bytes, of the last commit.
    files: BTreeMap<String, Vec<u8>>,
    /// Large files by SHA-256.
    objects: BTreeMap<String, Vec<u8>>,
    /// Parts by upload and number.
    parts: BTreeMap<(usize, usize), Vec<u8>>,
    /// Uploads are numbered; addresses of those before are expired.
    n_uploads: usize,
    first_valid: usize,
}

pub(crate) struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub(crate) fn start() -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let storage = TcpListener::bind("127.0.0.1:0").unwrap();
        let [endpoint, elsewhere] =
            [&hub, &storage].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
        let state = Arc::new(Mutex::new(State::default()));
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let (state, elsewhere, endpoint) =
                (Arc::clone(&state), elsewhere.clone(), endpoint.clone());
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let (state, elsewhere, endpoint) =
                        (Arc::clone(&state), elsewhere.clone(), endpoint.clone());
                    let serve = move || {
                        let mut stream = stream.unwrap();
                        let read = read(&stream, is_storage);
                        let Some((request, body)) = read else { return };
                        let mut state = state.lock().unwrap();
                        state.requests.push(request.clone());
                        let answered = if is_storage {
                            state.storage(&request, body)
                        } else {
                            state.api(&request, &body, &endpoint, &elsewhere)
                        };
                        if let Some((status, headers, body)) = answered {
                            answer(&mut stream, status, &headers, body.as_bytes());
                        }
                    };
                    thread::spawn(serve);
                }
            });
        }
        Self { endpoint, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn faults(&self) -> Guard<'_> {
        Guard(self.state())
    }

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.state().files.clone()
    }

    pub(crate) fn visibility(&self) -> Option<String> {
        self.state().visibility.clone()
    }

    pub(crate) fn parts_taken(&self) -> usize {
        self.state().parts.len()
    }

    /// Lets all addresses that were given out expire.
    pub(crate) fn expire(&self) {
        let mut state = self.state();
        state.first_valid = state.n_uploads;
        state.parts.clear();
    }
}

/// The faults, to be changed.
pub(crate) struct Guard<'a>(MutexGuard<'a, State>);

impl std::ops::Deref for Guard<'_> {
    type Target = Faults;
    fn deref(&self) -> &Faults {
        &self.0.faults
    }
}

impl std::ops::DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Faults {
        &mut self.0.faults
    }
}

/// Status, headers and body; `None` hangs up.
type Answer = Option<(u16, String, String)>;

fn ok(body: &Value) -> Answer {
    let headers = "Content-Type: application/json\r\n".to_owned();
    Some((200, headers, body.to_string()))
}

fn refusal(status: u16, code: &str, message: &str) -> Answer {
    let headers = format!("X-Error-Code: {code}\r\nX-Error-Message: {message}\r\n");
    Some((status, headers, "{}".to_owned()))
}

impl State {
    fn api(&mut self, request: &Request, body: &[u8], endpoint: &str, storage: &str) -> Answer {
        if let Some((status, message)) = &self.faults.refuse {
            return refusal(*status, "", message);
        }
        if self.faults.busy > 0 {
            self.faults.busy -= 1;
            return refusal(503, "", "busy");
        }
        // The completion of an upload in parts is signed by its address.
        if let Some(rest) = request.line.strip_prefix("POST /complete/") {
            return self.complete(rest, body);
        }
        if !request.authorized {
            return refusal(401, "", "Invalid credentials in Authorization header");
        }
        if request.line == "POST /api/repos/create" {
            let asked: Value = serde_json::from_slice(body).unwrap();
            assert_eq!(
                (asked["organization"].as_str(), asked["name"].as_str()),
                (Some("owner"), Some("name"))
            );
            let visibility = asked["visibility"].as_str().unwrap_or("public");
            self.visibility = Some(visibility.to_owned());
            return ok(&json!({ "url": format!("{endpoint}/{NAME}"), "name": NAME, "id": NAME }));
        }
        let Some(visibility) = &self.visibility else {
            return refusal(404, "RepoNotFound", "Repository not found");
        };
        let private = visibility == "private" && !self.faults.always_public;
        match request.line.as_str() {
            "GET /api/models/owner/name" | "GET /api/models/owner/name/revision/main" => {
                ok(&json!({ "id": NAME, "sha": "0".repeat(40), "private": private }))
            }
            "POST /api/models/owner/name/preupload/main" => self.preupload(body),
            "POST /owner/name.git/info/lfs/objects/batch" => self.batch(body, endpoint, storage),
            "POST /api/models/owner/name/commit/main" => self.commit(body, endpoint),
            _ => refusal(404, "RevisionNotFound", "Invalid rev id"),
        }
    }

    fn preupload(&self, body: &[u8]) -> Answer {
        if let Some(text) = &self.faults.preupload_text {
            return Some((200, String::new(), text.clone()));
        }
        let asked: Value = serde_json::from_slice(body).unwrap();
        let ignore = self.faults.ignore.as_deref();
        let files = asked["files"].as_array().unwrap().iter().map(|file| {
            let path = file["path"].as_str().unwrap();
            assert!(
                STANDARD
                    .decode(file["sample"].as_str().unwrap())
                    .unwrap()
                    .len()
                    <= 512
            );
            let mode = if path.strip_suffix(".bin").is_some() {
                "lfs"
            } else {
                "regular"
            };
            let oid = self.files.get(path).map(|bytes| match mode {
                "lfs" if !bytes.is_empty() => format!("{:x}", Sha256::digest(bytes)),
                _ => {
                    let mut git = Sha1::new();
                    git.update(format!("blob {}\0", bytes.len()));
                    git.update(bytes);
                    format!("{:x}", git.finalize())
                }
            });
            json!({
                "path": path, "uploadMode": mode, "oid": oid,
                "shouldIgnore": ignore.is_some_and(|ignore| ignore == path || ignore == "*"),
            })
        });
        ok(&json!({ "files": files.collect::<Vec<_>>() }))
    }

    fn batch(&mut self, body: &[u8], endpoint: &str, storage: &str) -> Answer {
        let asked: Value = serde_json::from_slice(body).unwrap();
        assert_eq!(asked["operation"], "upload");
        let mut objects = Vec::new();
        for object in asked["objects"].as_array().unwrap() {
            let oid = object["oid"].as_str().unwrap();
            let size = usize::try_from(object["size"].as_u64().unwrap()).unwrap();
            if self.objects.contains_key(oid) {
                objects.push(json!({ "oid": oid, "size": size }));
                continue;
            }
            let id = self.n_uploads;
            self.n_uploads += 1;
            let upload = if size > CHUNK {
                let mut header = json!({ "chunk_size": CHUNK.to_string() });
                for part in 1..=size.div_ceil(CHUNK) {
                    header[format!("{part:05}")] =
                        json!(format!("{storage}/part/{id}/{part}?sig=x"));
                }
                json!({ "href": format!("{endpoint}/complete/{id}?sig=x"), "header": header })
            } else {
                json!({ "href": format!("{storage}/whole/{oid}?sig=x") })
            };
            objects.push(json!({ "oid": oid, "size": size, "actions": { "upload": upload } }));
        }
        let transfer = "multipart";
        ok(&json!({ "transfer": transfer, "objects": objects }))
    }

    fn complete(&mut self, rest: &str, body: &[u8]) -> Answer {
        let id: usize = rest.split('?').next().unwrap().parse().unwrap();
        if id < self.first_valid {
            return refusal(403, "", "expired");
        }
        let asked: Value = serde_json::from_slice(body).unwrap();
        let mut bytes = Vec::new();
        for part in asked["parts"].as_array().unwrap() {
            let number = usize::try_from(part["partNumber"].as_u64().unwrap()).unwrap();
            let Some(taken) = self.parts.get(&(id, number)) else {
                return refusal(400, "", "a part is missing");
            };
            assert_eq!(part["etag"], etag(taken));
            bytes.extend(taken);
        }
        let oid = asked["oid"].as_str().unwrap().to_owned();
        if format!("{:x}", Sha256::digest(&bytes)) != oid {
            return refusal(422, "", "other bytes than those of the name");
        }
        self.objects.insert(oid, bytes);
        ok(&json!({}))
    }

    fn commit(&mut self, body: &[u8], endpoint: &str) -> Answer {
        if let Some((status, text)) = &self.faults.commit_text {
            return Some((*status, String::new(), text.clone()));
        }
        if self.faults.cut_commit == Some(Cut::Before) {
            return None;
        }
        let text = std::str::from_utf8(body).unwrap();
        let mut lines = text
            .lines()
            .map(|line| -> Value { serde_json::from_str(line).unwrap() });
        let header = lines.next().unwrap();
        assert_eq!(header["key"], "header");
        assert!(!header["value"]["summary"].as_str().unwrap().is_empty());
        let mut files = self.files.clone();
        for line in lines {
            let value = &line["value"];
            let path = value["path"].as_str().unwrap().to_owned();
            let bytes = match line["key"].as_str().unwrap() {
                "file" => STANDARD.decode(value["content"].as_str().unwrap()).unwrap(),
                "lfsFile" => match self.objects.get(value["oid"].as_str().unwrap()) {
                    Some(bytes) => bytes.clone(),
                    None => return refusal(400, "", "an object is missing"),
                },
                other => panic!("{other}"),
            };
            files.insert(path, bytes);
        }
        self.files = files;
        if self.faults.cut_commit == Some(Cut::After) {
            return None;
        }
        let oid = "0123456789abcdef0123456789abcdef01234567";
        ok(&json!({
            "success": true, "commitOid": oid,
            "commitUrl": format!("{endpoint}/{NAME}/commit/{oid}"),
        }))
    }

    fn storage(&mut self, request: &Request, body: Vec<u8>) -> Answer {
        if self.faults.storage_busy > 0 {
            self.faults.storage_busy -= 1;
            return refusal(503, "", "slow down");
        }
        let target = request.line.strip_prefix("PUT /").unwrap();
        let target = target.strip_suffix("?sig=x").unwrap();
        let words: Vec<&str> = target.split('/').collect();
        match words[..] {
            ["whole", oid] => {
                assert_eq!(format!("{:x}", Sha256::digest(&body)), oid);
                self.objects.insert(oid.to_owned(), body);
                Some((200, String::new(), String::new()))
            }
            ["part", id, number] => {
                let (id, number) = (id.parse().unwrap(), number.parse().unwrap());
                if id < self.first_valid {
                    return refusal(403, "", "Request has expired");
                }
                if self.faults.cut_after_parts == Some(self.parts.len()) {
                    return None;
                }
                let headers = format!("ETag: {}\r\n", etag(&body));
                self.parts.insert((id, number), body);
                Some((200, headers, String::new()))
            }
            _ => refusal(404, "", "nothing there"),
        }
    }
}

fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", &format!("{:x}", Sha256::digest(bytes))[..32])
}

fn read(stream: &TcpStream, storage: bool) -> Option<(Request, Vec<u8>)> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let line = first.strip_suffix(" HTTP/1.1\r\n")?.to_owned();
    let (mut length, mut authorized) = (0, false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else {
            break;
        };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => authorized = value == format!("Bearer {TOKEN}"),
            "transfer-encoding" => panic!("storage takes no chunked bodies"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request = Request {
        line,
        authorized,
        storage,
    };
    Some((request, body))
}

fn answer(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read(&mut [0; 64]);
}
