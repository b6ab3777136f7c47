//! A board over run directories that are made by hand, as a browser asks it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use olora_board::{Board, router};
use olora_web::{Server, Settings, Stop};
use serde_json::Value;
use tempfile::TempDir;

/// A server over a directory, until it is dropped.
struct Served {
    root: TempDir,
    address: String,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new(make: impl FnOnce(&Path)) -> Self {
        let root = tempfile::tempdir().unwrap();
        make(root.path());
        let board = Arc::new(Board::new(root.path()).unwrap());
        let server = Server::bind(Settings::default()).unwrap();
        let address = server.url().trim_start_matches("http://").to_owned();
        let stop = Stop::default();
        let (router, stopped) = (router(&board, &stop), stop.clone());
        let thread = std::thread::spawn(move || server.run(router, &stopped).unwrap());
        Self {
            root,
            address,
            stop,
            thread: Some(thread),
        }
    }

    fn ask(&self, target: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let request =
            format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// Status, headers and body.
    fn get(&self, target: &str) -> (u16, String, String) {
        let mut text = String::new();
        self.ask(target).read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    fn json(&self, target: &str) -> Value {
        let (status, _, body) = self.get(target);
        assert_eq!(status, 200, "{target}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    fn append(&self, run: &str, text: &str) {
        let path = self.root.path().join(run).join("metrics.jsonl");
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn events(&self, target: &str) -> Events {
        Events(BufReader::new(self.ask(target)))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A stream of server-sent events.
struct Events(BufReader<TcpStream>);

impl Events {
    /// The data of the next event of a name.
    fn next(&mut self, wanted: &str) -> Value {
        let mut name = String::new();
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream ended");
            if let Some(found) = line.strip_prefix("event: ") {
                found.trim().clone_into(&mut name);
            } else if let Some(data) = line.strip_prefix("data: ")
                && name == wanted
            {
                return serde_json::from_str(data).unwrap();
            }
        }
    }
}

const RECIPE: &str = "name = \"Alder\"\n[adapter]\nrank = 8\n";

fn line(step: usize, loss: f64) -> String {
    format!(
        "{{\"step\":{step},\"loss\":{loss},\"learning_rate\":0.001,\"tokens\":{step}0,\"seconds\":{step}.0}}\n"
    )
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn alder(root: &Path) {
    write(root, "alder/recipe.toml", RECIPE);
    write(root, "alder/metrics.jsonl", &(line(1, 3.0) + &line(2, 2.5)));
}

#[test]
fn a_run_is_listed_with_where_it_stands() {
    let served = Served::new(alder);
    let list = served.json("/api/runs");
    let run = &list["runs"][0];
    assert_eq!(
        (&run["path"], &run["name"]),
        (&"alder".into(), &"Alder".into())
    );
    assert_eq!(
        (&run["state"], &run["steps"]),
        (&"running".into(), &2.into())
    );
    assert_eq!(run["loss"], 2.5);
}

#[test]
fn a_summary_makes_a_run_finished() {
    let served = Served::new(alder);
    assert_eq!(served.json("/api/run?path=alder")["state"], "running");
    let summary = r#"{"finished":true,"steps":2,"train_seconds":2.0}"#;
    write(served.root.path(), "alder/summary.json", summary);
    assert_eq!(served.json("/api/run?path=alder")["state"], "finished");
}

#[test]
fn a_line_that_is_appended_arrives_as_a_point() {
    let served = Served::new(alder);
    let mut events = served.events("/api/events?run=alder");
    let curves = events.next("curves");
    assert_eq!(
        curves["curves"]["loss"]["points"].as_array().unwrap().len(),
        2
    );
    served.append("alder", &line(3, 2.0));
    let told = events.next("points");
    assert_eq!(told["path"], "alder");
    assert_eq!(
        told["points"]["loss"][0],
        serde_json::json!([3, 30, 3.0, 2.0])
    );
}

#[test]
fn half_a_line_is_no_point_until_it_is_whole() {
    let served = Served::new(alder);
    let mut events = served.events("/api/events?run=alder");
    events.next("curves");
    let whole = line(3, 2.0);
    let (half, rest) = whole.split_at(20);
    served.append("alder", half);
    // Longer than between two looks.
    std::thread::sleep(Duration::from_secs(1));
    served.append("alder", rest);
    assert_eq!(events.next("points")["points"]["loss"][0][0], 3);
}

#[test]
fn a_file_that_is_written_anew_is_told_as_a_whole() {
    let served = Served::new(alder);
    let mut events = served.events("/api/events?run=alder");
    events.next("curves");
    // As a run does that goes on: under another name, then renamed.
    let run = served.root.path().join("alder");
    fs::write(run.join("new"), line(1, 9.0)).unwrap();
    fs::rename(run.join("new"), run.join("metrics.jsonl")).unwrap();
    let told = events.next("curves");
    assert_eq!(
        told["curves"]["loss"]["points"],
        serde_json::json!([[1, 10, 1.0, 9.0]])
    );
}

#[test]
fn a_run_that_begins_is_told() {
    let served = Served::new(alder);
    let mut events = served.events("/api/events");
    assert_eq!(events.next("list")["runs"][0]["path"], "alder");
    write(served.root.path(), "brook/recipe.toml", RECIPE);
    assert_eq!(events.next("list")["runs"][0]["path"], "brook");
}

#[test]
fn no_path_leads_out_of_the_directory() {
    let served = Served::new(alder);
    write(served.root.path(), "secret/metrics.jsonl", "");
    let outside = served.root.path().parent().unwrap().to_str().unwrap();
    for path in [
        "../alder",
        "..%2Falder",
        "alder/../alder",
        "alder/../../x",
        "%2Fetc",
        outside,
        "alder%00",
        "",
    ] {
        for route in ["run?path", "comparison?path", "events?run"] {
            let (status, _, body) = served.get(&format!("/api/{route}={path}"));
            assert_eq!(status, 404, "{route} {path}: {body}");
        }
    }
}

#[test]
fn a_picture_is_one_of_the_comparisons_own() {
    let served = Served::new(|root| {
        write(root, "outside.svg", "<svg/>");
        write(root, "compared/comparison.json", "{}");
        write(root, "compared/loss.svg", "<svg>here</svg>");
    });
    let (status, head, body) = served.get("/api/picture?path=compared&name=loss.svg");
    assert_eq!((status, body.as_str()), (200, "<svg>here</svg>"));
    assert!(head.contains("sandbox"), "{head}");
    for name in ["../outside.svg", "comparison.json", "..%2Foutside.svg", ""] {
        let (status, ..) = served.get(&format!("/api/picture?path=compared&name={name}"));
        assert_eq!(status, 404, "{name}");
    }
}

#[test]
fn broken_files_are_said_and_the_rest_is_shown() {
    let served = Served::new(|root| {
        write(root, "alder/recipe.toml", "rank = ");
        write(root, "alder/summary.json", "[");
        write(root, "alder/data.json", "\u{fffd}");
        let lines = format!("{}not JSON\n{{\"step\":\n\n{}", line(1, 3.0), line(2, 2.0));
        write(root, "alder/metrics.jsonl", &lines);
    });
    let run = served.json("/api/run?path=alder");
    assert_eq!(run["curves"]["loss"]["points"].as_array().unwrap().len(), 2);
    assert_eq!(run["n_broken"], 2);
    for file in ["recipe", "summary", "data"] {
        assert!(run[file]["error"].is_string(), "{file}: {}", run[file]);
    }
}

#[test]
fn a_report_that_is_being_made_lists_what_is_finished() {
    let served = Served::new(|root| {
        write(root, "compared/comparison.json", "{}");
        let cell =
            r#"{"variant":"lora","rank":8,"learning_rate":0.001,"seed":1,"validation":[[2,1.5]]}"#;
        write(root, "compared/cells/lora.json", cell);
    });
    let compared = served.json("/api/comparison?path=compared");
    assert_eq!(compared["report"], "missing");
    assert_eq!(compared["cells"][0]["loss"], 1.5);
}

#[test]
fn a_million_lines_are_two_thousand_points() {
    use std::fmt::Write;
    let served = Served::new(|root| {
        let mut text = String::new();
        for step in 0..1_000_000 {
            writeln!(text, r#"{{"step":{step},"loss":1.5,"grad_norm":0.5}}"#).unwrap();
        }
        write(root, "alder/metrics.jsonl", &text);
    });
    let run = served.json("/api/run?path=alder");
    let n = run["curves"]["loss"]["points"].as_array().unwrap().len();
    assert!((1000..=2002).contains(&n), "{n}");
}

#[test]
fn the_page_and_what_it_needs_are_served_under_a_policy_that_allows_no_inline_script() {
    let served = Served::new(alder);
    for (target, kind) in [
        ("/", "text/html"),
        ("/board.js", "text/javascript"),
        ("/board.css", "text/css"),
    ] {
        let (status, head, body) = served.get(target);
        assert_eq!(status, 200, "{target}");
        assert!(
            head.contains(kind) && head.contains("default-src 'self'"),
            "{head}"
        );
        assert!(!body.is_empty());
    }
}

#[test]
fn a_stream_ends_with_its_server() {
    let served = Served::new(alder);
    let mut events = served.events("/api/events?run=alder");
    events.next("curves");
    served.stop.stop();
    let began = Instant::now();
    let mut rest = String::new();
    let _ = events.0.read_to_string(&mut rest);
    assert!(began.elapsed() < Duration::from_secs(10));
}
