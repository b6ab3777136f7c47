//! `olora board` and `olora report --html`, as a person uses them.

#![cfg(feature = "web")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::fs;

use common::{olora, refused, stderr, stdout};

#[test]
fn a_run_becomes_one_file() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("report.html");
    let output = olora(&[
        "report",
        "--html",
        "fixtures/runs/first",
        "-o",
        file.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
    let html = fs::read_to_string(file).unwrap();
    assert!(html.starts_with("<!doctype html>") && html.contains("\"loss\""));
}

#[test]
fn without_a_file_the_report_lies_in_the_directory() {
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("metrics.jsonl"), "").unwrap();
    let output = olora(&["report", "--html", out.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(out.path().join("report.html").exists());
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let output = olora(&[
        "report",
        "--html",
        "fixtures/runs/first",
        "-o",
        "/proc/r.html",
    ]);
    assert!(refused(&output, 1).contains("/proc/r.html cannot be written"));
}

#[cfg(unix)]
#[test]
fn a_board_says_where_it_is_and_ends_well_at_ctrl_c() {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpStream,
        process::{Command, Stdio},
    };
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("olora"))
        .current_dir(common::root())
        .args(["board", "fixtures/runs", "--port", "0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("board on http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let request = "GET /api/runs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: the process is ours, and has not been waited for.
    unsafe { libc::kill(pid, libc::SIGINT) };
    let status = child.wait().unwrap();
    assert!(answer.contains("\"path\":\"first\""), "{answer}");
    assert_eq!(status.code(), Some(0));
}
