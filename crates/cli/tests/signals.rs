//! Signals, as schedulers, terminals and people send them, to real processes.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

use common::{olora, root, stderr};
use libc::{SIGHUP, SIGINT, SIGTERM};
use serde_json::Value;
use tempfile::TempDir;

/// A process, and what it says.
struct Running {
    child: Child,
    lines: BufReader<ChildStderr>,
    said: String,
}

impl Running {
    /// With the usual dispositions, whatever those of the tests are, but for
    /// one signal that is ignored, as `nohup` does it.
    fn start(arguments: &[String], ignored: Option<i32>) -> Self {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("olora"));
        command
            .current_dir(root())
            .env("HF_HUB_OFFLINE", "1")
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: `signal` may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for signal in [SIGINT, SIGTERM, SIGHUP] {
                    let is_ignored = ignored == Some(signal);
                    libc::signal(
                        signal,
                        if is_ignored {
                            libc::SIG_IGN
                        } else {
                            libc::SIG_DFL
                        },
                    );
                }
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        Self {
            child,
            lines,
            said: String::new(),
        }
    }

    /// Reads until a line has this in it.
    fn until(&mut self, expected: &str) {
        loop {
            let mut line = String::new();
            let n = self.lines.read_line(&mut line).unwrap();
            assert!(n > 0, "`{expected}` was never said: {}", self.said);
            self.said += &line;
            if line.contains(expected) {
                return;
            }
        }
    }

    fn send(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so the number is still its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// The exit code, and all that was said.
    fn end(mut self) -> (Option<i32>, String) {
        self.lines.read_to_string(&mut self.said).unwrap();
        (self.child.wait().unwrap().code(), self.said)
    }
}

/// `olora train` on the quickstart, so many steps, each of them logged.
fn training(out: &Path, name: &str, steps: usize, more: &[&str]) -> Vec<String> {
    let mut arguments = vec!["train".to_owned(), "recipes/quickstart.toml".to_owned()];
    let settings = [
        format!("output.directory=\"{}\"", out.display()),
        format!("name={name}"),
        format!("training.max_steps={steps}"),
        "training.batch_size=4".to_owned(),
        "training.warmup_steps=1".to_owned(),
        "training.log_every=1".to_owned(),
        "training.evaluate_every=0".to_owned(),
        "samples.prompts=[]".to_owned(),
    ];
    let more = more.iter().map(|setting| (*setting).to_owned());
    for setting in settings.into_iter().chain(more) {
        arguments.extend(["--set".to_owned(), setting]);
    }
    arguments
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("adapter/adapter_model.safetensors")).unwrap()
}

fn summary(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap()
}

fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn an_interrupted_run_has_a_checkpoint_says_which_signal_and_goes_on_exactly() {
    const STEPS: usize = 60;
    let out = TempDir::new().unwrap();
    let whole = training(out.path(), "whole", STEPS, &[]);
    let (code, said) = Running::start(&whole, None).end();
    assert_eq!(code, Some(0), "{said}");
    let expected = weights(&out.path().join("whole"));
    for (signal, code, name) in [
        (SIGTERM, 143, "SIGTERM"),
        (SIGHUP, 129, "SIGHUP"),
        (SIGINT, 130, "Ctrl-C"),
    ] {
        // With one of the two ways to go on.
        let is_auto = signal == SIGHUP;
        let arguments = training(out.path(), name, STEPS, &[]);
        let auto = [&arguments[..], &["--auto-resume".to_owned()]].concat();
        let run = out.path().join(name);
        let mut running = Running::start(if is_auto { &auto } else { &arguments }, None);
        running.until("step 1/");
        running.send(signal);
        let (ended, said) = running.end();
        assert_eq!(ended, Some(code), "{said}");
        assert!(
            said.contains(&format!("{name}: finishing the step")),
            "{said}"
        );
        assert!(said.contains("to go on"), "{said}");
        assert_eq!(said.contains("with --resume to go on"), !is_auto, "{said}");
        assert_eq!(summary(&run)["finished"], false);
        assert!(!run.join("adapter").exists());
        assert_eq!(checkpoints(&run).len(), 1);

        let resumed = if is_auto {
            auto
        } else {
            [arguments, vec!["--resume".to_owned()]].concat()
        };
        let (code, said) = Running::start(&resumed, None).end();
        assert_eq!(code, Some(0), "{said}");
        assert!(weights(&run) == expected, "{name}: other weights");
    }
}

#[test]
fn the_second_signal_ends_a_long_step_at_once() {
    let out = TempDir::new().unwrap();
    // A step of minutes.
    let long = training(out.path(), "long", 2, &["training.accumulation=60000"]);
    let mut running = Running::start(&long, None);
    running.until("run directory:");
    running.send(SIGTERM);
    running.until("SIGTERM: finishing the step");
    let since = Instant::now();
    running.send(SIGTERM);
    let (code, said) = running.end();
    assert_eq!(code, Some(143), "{said}");
    assert!(said.contains("stopped without a checkpoint"), "{said}");
    assert!(since.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_nohup_ignores_stays_ignored() {
    let out = TempDir::new().unwrap();
    let mut running = Running::start(&training(out.path(), "kept", 12, &[]), Some(SIGHUP));
    running.until("step 1/");
    running.send(SIGHUP);
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(summary(&out.path().join("kept"))["steps"], 12);
}

#[test]
fn an_interrupted_comparison_goes_on_where_it_stopped() {
    let out = TempDir::new().unwrap();
    let directory = out.path().join("comparison");
    let settings = training(out.path(), "village", 60, &[]);
    let more = [
        "--methods",
        "lora",
        "--lrs",
        "1e-3",
        "--seeds",
        "0",
        "--output",
    ];
    let mut arguments = settings;
    arguments[0] = "compare".to_owned();
    arguments.extend(["--set", "training.evaluate_every=2"].map(str::to_owned));
    arguments.extend(more.map(str::to_owned));
    arguments.push(directory.to_str().unwrap().to_owned());
    let mut running = Running::start(&arguments, None);
    running.until("step 2: validation loss");
    running.send(SIGTERM);
    let (code, said) = running.end();
    assert_eq!(code, Some(143), "{said}");
    assert!(said.contains("run the same command again"), "{said}");
    assert!(!directory.join("report.md").exists());

    let (code, said) = Running::start(&arguments, None).end();
    assert_eq!(code, Some(0), "{said}");
    // Not from the beginning, at which the base is evaluated.
    assert!(
        !said.contains("step 0: ") && said.contains("step 60: "),
        "{said}"
    );
    assert!(directory.join("report.md").exists());
}

#[test]
fn other_commands_end_with_the_signal_and_leave_no_result() {
    let out = TempDir::new().unwrap();
    let trained = training(out.path(), "short", 2, &[]);
    let (code, said) = Running::start(&trained, None).end();
    assert_eq!(code, Some(0), "{said}");
    let run = out.path().join("short");
    let merged = out.path().join("merged");
    let merge = ["merge", "--adapter", run.to_str().unwrap(), "--output"].map(str::to_owned);
    let merge = [merge.to_vec(), vec![merged.to_str().unwrap().to_owned()]].concat();
    let mut running = Running::start(&merge, None);
    running.until("base model:");
    running.send(SIGTERM);
    let (code, said) = running.end();
    // It may have been too quick; then the result is whole.
    assert!(code == Some(0) || !merged.exists(), "{code:?}: {said}");
    if code == Some(0) {
        let path = merged.to_str().unwrap();
        let data = "recipes/quickstart/valid.jsonl";
        let evaluated = olora(&["evaluate", "--model", path, "--data", data]);
        assert!(evaluated.status.success(), "{}", stderr(&evaluated));
    }
}
