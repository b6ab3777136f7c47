//! A tracking server that answers as MLflow does, and can be made to fail.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How requests are met.
#[derive(Clone, Debug, Default)]
pub(crate) enum Mode {
    #[default]
    Answer,
    /// Nothing is done and nothing is said.
    Silent,
    /// The next run is made, and nothing is said of it.
    SilentAboutTheRun,
    /// As usual, but not at once.
    Slow(Duration),
    /// Nothing is done; a status and words.
    Say(u16, Value),
}

/// A run as the server has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    pub name: String,
    pub experiment: String,
    pub status: String,
    pub is_deleted: bool,
    pub params: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    /// Key, step and value, in the order of their coming.
    pub metrics: Vec<(String, u64, Value)>,
}

#[derive(Default)]
pub(crate) struct State {
    pub mode: Mode,
    /// A metric's key that is refused.
    pub refused_key: Option<String>,
    pub experiments: Vec<String>,
    pub runs: Vec<Run>,
    /// Path and `Authorization` of every request.
    pub requests: Vec<(String, Option<String>)>,
    /// Sizes of batches: parameters and metrics.
    pub batches: Vec<(usize, usize)>,
}

/// A server that listens until it is dropped.
pub(crate) struct Tracking {
    state: Arc<Mutex<State>>,
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tracking {
    pub(crate) fn start() -> Self {
        Self::at(0, Arc::default())
    }

    fn at(port: u16, state: Arc<Mutex<State>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, shared) = (Arc::clone(&stop), Arc::clone(&state));
        let thread = thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let shared = Arc::clone(&shared);
                        thread::spawn(move || meet(&stream, &shared));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Self {
            state,
            port,
            stop,
            thread: Some(thread),
        }
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The only run that there is.
    pub(crate) fn run(&self) -> Run {
        let state = self.state();
        assert_eq!(state.runs.len(), 1, "{:?}", state.runs);
        state.runs[0].clone()
    }

    /// Listens no more.
    pub(crate) fn go_away(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Listens again, at the same address.
    pub(crate) fn come_back(&mut self) {
        let again = Self::at(self.port, Arc::clone(&self.state));
        *self = again;
    }

    /// Waits until something is as it should be.
    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        let began = Instant::now();
        while !is_so(&self.state()) {
            assert!(began.elapsed() < Duration::from_secs(20), "{what}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        self.go_away();
    }
}

/// One request of one connection.
fn meet(stream: &TcpStream, state: &Mutex<State>) {
    stream.set_nonblocking(false).unwrap();
    let mut reader = BufReader::new(stream);
    let (mut line, mut length, mut authorization) = (String::new(), 0, None);
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let target = line.split(' ').nth(1).unwrap().to_owned();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).unwrap_or(0) <= 2 {
            break;
        }
        let (name, value) = header.split_once(':').unwrap();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "authorization" => authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = path.trim_start_matches("/api/2.0/mlflow/");
    let mut locked = state.lock().unwrap();
    locked.requests.push((path.to_owned(), authorization));
    let (status, answer) = match locked.mode.clone() {
        Mode::Silent => {
            drop(locked);
            return until_gone(stream);
        }
        Mode::SilentAboutTheRun if path == "runs/create" => {
            locked.mode = Mode::Answer;
            locked.answer(path, query, &body);
            drop(locked);
            return until_gone(stream);
        }
        Mode::Say(status, words) => (status, words),
        Mode::Slow(pause) => {
            drop(locked);
            thread::sleep(pause);
            locked = state.lock().unwrap();
            locked.answer(path, query, &body)
        }
        Mode::Answer | Mode::SilentAboutTheRun => locked.answer(path, query, &body),
    };
    drop(locked);
    let answer = answer.to_string();
    // Whoever asked may have lost patience.
    let _ = write!(
        &mut &*stream,
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
        answer.len()
    );
}

/// Holds a connection until the other side closes it.
fn until_gone(mut stream: &TcpStream) {
    let _ = stream.read(&mut [0]);
}

fn missing(what: &str) -> (u16, Value) {
    let words = json!({ "error_code": "RESOURCE_DOES_NOT_EXIST", "message": format!("no {what}") });
    (404, words)
}

fn pairs(list: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = list.as_array().into_iter().flatten();
    pairs
        .map(|pair| (text(&pair["key"]), text(&pair["value"])))
        .collect()
}

fn shown(id: usize, run: &Run) -> Value {
    let list = |pairs: &BTreeMap<String, String>| -> Vec<Value> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| json!({ "key": key, "value": value }))
            .collect()
    };
    let stage = if run.is_deleted { "deleted" } else { "active" };
    json!({
        "info": { "run_id": format!("run{id}"), "status": run.status, "lifecycle_stage": stage },
        "data": { "params": list(&run.params), "tags": list(&run.tags) },
    })
}

impl State {
    fn index(&self, run_id: &Value) -> Option<usize> {
        let index: usize = run_id.as_str()?.strip_prefix("run")?.parse().ok()?;
        (index < self.runs.len()).then_some(index)
    }

    fn answer(&mut self, path: &str, query: &str, body: &Value) -> (u16, Value) {
        let asked = query.split_once('=').map_or("", |(_, value)| value);
        match path {
            "experiments/get-by-name" => {
                match self.experiments.iter().position(|name| name == asked) {
                    Some(id) => {
                        let found =
                            json!({ "experiment_id": id.to_string(), "lifecycle_stage": "active" });
                        (200, json!({ "experiment": found }))
                    }
                    None => missing("experiment"),
                }
            }
            "experiments/create" => {
                self.experiments
                    .push(body["name"].as_str().unwrap().to_owned());
                let id = (self.experiments.len() - 1).to_string();
                (200, json!({ "experiment_id": id }))
            }
            "runs/create" => {
                self.runs.push(Run {
                    name: body["run_name"].as_str().unwrap().to_owned(),
                    experiment: body["experiment_id"].as_str().unwrap().to_owned(),
                    status: "RUNNING".to_owned(),
                    tags: pairs(&body["tags"]),
                    ..Run::default()
                });
                let id = self.runs.len() - 1;
                (200, json!({ "run": shown(id, &self.runs[id]) }))
            }
            "runs/search" => {
                let filter = body["filter"].as_str().unwrap();
                let key = filter.strip_prefix("tags.`olora.key` = '").unwrap();
                let key = key.strip_suffix('\'').unwrap();
                let runs = self.runs.iter().enumerate();
                let found =
                    runs.filter(|(_, run)| run.tags.get("olora.key").is_some_and(|k| k == key));
                let found: Vec<_> = found.map(|(id, run)| shown(id, run)).collect();
                (200, json!({ "runs": found }))
            }
            "runs/get" => match self.index(&json!(asked)) {
                Some(id) => (200, json!({ "run": shown(id, &self.runs[id]) })),
                None => missing("run"),
            },
            "runs/update" => match self.index(&body["run_id"]) {
                Some(id) => {
                    body["status"]
                        .as_str()
                        .unwrap()
                        .clone_into(&mut self.runs[id].status);
                    (200, json!({}))
                }
                None => missing("run"),
            },
            "runs/log-batch" => self.batch(body),
            other => panic!("{other}"),
        }
    }

    fn batch(&mut self, body: &Value) -> (u16, Value) {
        let Some(id) = self.index(&body["run_id"]) else {
            return missing("run");
        };
        let metrics: Vec<Value> = body["metrics"].as_array().cloned().unwrap_or_default();
        let params = pairs(&body["params"]);
        self.batches.push((params.len(), metrics.len()));
        let refuse = |message: &str| {
            (
                400,
                json!({ "error_code": "INVALID_PARAMETER_VALUE", "message": message }),
            )
        };
        if let Some(key) = &self.refused_key
            && metrics.iter().any(|metric| metric["key"] == key.as_str())
        {
            return refuse("no such key, please");
        }
        let run = &mut self.runs[id];
        for (key, value) in &params {
            if run.params.get(key).is_some_and(|known| known != value) {
                return refuse("Changing param values is not allowed");
            }
        }
        run.params.extend(params);
        run.tags.extend(pairs(&body["tags"]));
        for metric in metrics {
            let key = metric["key"].as_str().unwrap().to_owned();
            assert!(metric["timestamp"].as_u64().unwrap() > 1_600_000_000_000);
            let step = metric["step"].as_u64().unwrap();
            run.metrics.push((key, step, metric["value"].clone()));
        }
        (200, json!({}))
    }
}
