//! A trial of a target: many inputs in a process of their own, which may end as
//! it likes, and a table of what came of it.
//!
//! The process says on its standard output which input it begins with, so that
//! whoever started it knows which one ended it, or takes too long.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Target,
    memory::{Counting, OVER},
    mutate::{Random, mutate},
};

/// The inputs of a target: its corpus as it is, and from then on what is made of it.
pub struct Inputs {
    corpus: Vec<Vec<u8>>,
    seed: u64,
}

impl Inputs {
    /// Reads `corpus/NAME` and `regressions/NAME` below `place`.
    pub fn read(place: &Path, target: &str, seed: u64) -> Self {
        let mut paths = Vec::new();
        for kind in ["corpus", "regressions"] {
            let entries = fs::read_dir(place.join(kind).join(target));
            paths.extend(
                entries
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path()),
            );
        }
        paths.sort();
        let mut corpus: Vec<_> = paths
            .iter()
            .filter_map(|path| fs::read(path).ok())
            .collect();
        if corpus.is_empty() {
            corpus.push(Vec::new());
        }
        Self { corpus, seed }
    }

    /// How many are as they are.
    pub fn len(&self) -> u64 {
        self.corpus.len() as u64
    }

    /// Whether there are none, which is never so.
    pub fn is_empty(&self) -> bool {
        self.corpus.is_empty()
    }

    /// The input of a number.
    pub fn get(&self, number: u64) -> Vec<u8> {
        match self
            .corpus
            .get(usize::try_from(number).unwrap_or(usize::MAX))
        {
            Some(input) => input.clone(),
            None => mutate(&mut Random::new(self.seed, number), &self.corpus),
        }
    }
}

/// What to stop at.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long to go on.
    pub seconds: f64,
    /// The most inputs.
    pub count: u64,
    /// The most bytes that one input may have allocated.
    pub memory: usize,
    /// The longest that one input may take.
    pub time: Duration,
}

/// Something that should not be.
#[derive(Clone, Debug, Default)]
pub struct Finding {
    /// How many inputs showed it.
    pub times: usize,
    /// The smallest of them.
    pub input: Vec<u8>,
    /// What that one said, beside where it happened.
    pub words: String,
}

/// What came of a trial.
#[derive(Debug, Default)]
pub struct Report {
    /// Inputs that were tried.
    pub inputs: u64,
    /// How long it took.
    pub seconds: f64,
    /// The longest that one took, in seconds, and its number.
    pub slowest: (f64, u64),
    /// The most bytes that one had allocated, and its number.
    pub largest: (usize, u64),
    /// By where or what it was.
    pub findings: BTreeMap<String, Finding>,
    /// Whether an input that took too long did so again.
    confirmed: bool,
}

static HEARD: Mutex<Option<String>> = Mutex::new(None);

fn listen() {
    std::panic::set_hook(Box::new(|panic| {
        let said = panic
            .payload()
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.payload().downcast_ref::<String>().cloned())
            .unwrap_or_default();
        let place = panic
            .location()
            .map(|at| place(at.file(), at.line()))
            .unwrap_or_default();
        *HEARD.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(format!("panic at {place}\t{}", named(&said)));
    }));
}

/// Runs one input; what it panicked with, the time and the bytes that it took.
fn observe(target: Target, input: &[u8], memory: usize) -> (Option<String>, f64, usize) {
    let live = Counting::begin(memory);
    let began = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let seconds = began.elapsed().as_secs_f64();
    let peak = Counting::end(live);
    let said = result.err().map(|_| {
        let heard = HEARD.lock().unwrap_or_else(PoisonError::into_inner).take();
        heard.unwrap_or_else(|| "panic without a word".to_owned())
    });
    (said, seconds, peak)
}

/// What was said without what differs from input to input and from machine to
/// machine: numbers, directories, and all but the beginning.
fn named(said: &str) -> String {
    let mut out = String::new();
    let mut rest = said.lines().next().unwrap_or_default();
    while let Some(c) = rest.chars().next() {
        if let Some(behind) = rest.strip_prefix("olora-fuzz-") {
            rest = behind.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
            continue;
        }
        if c.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            out.push('#');
            continue;
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out.chars().take(160).collect()
}

/// Where a panic was, without the directory that crates were unpacked in.
fn place(file: &str, line: u32) -> String {
    let file = match file.split_once("/registry/src/") {
        Some((_, crates)) => crates.split_once('/').map_or(crates, |(_, inside)| inside),
        None => file
            .split_once("/library/")
            .map_or(file, |(_, inside)| inside),
    };
    format!("{file}:{line}")
}

/// The process of a trial: runs inputs from the number `from` on, and says of
/// each what there is to say.
pub fn work(target: Target, inputs: &Inputs, from: u64, limits: &Limits) {
    listen();
    let began = Instant::now();
    let (mut slowest, mut largest) = (0.0, 0);
    let mut out = std::io::stdout();
    let mut say = |line: String| {
        // Nobody listens any more: there is nothing left to do.
        if out
            .write_all(line.as_bytes())
            .and_then(|()| out.flush())
            .is_err()
        {
            std::process::exit(1);
        }
    };
    for number in from..limits.count {
        if began.elapsed().as_secs_f64() > limits.seconds {
            break;
        }
        let input = inputs.get(number);
        say(format!("begin {number}\n"));
        let (said, seconds, peak) = observe(target, &input, limits.memory);
        if seconds > slowest {
            slowest = seconds;
            say(format!("slow {number} {seconds}\n"));
        }
        if peak > largest {
            largest = peak;
            say(format!("large {number} {peak}\n"));
        }
        if let Some(said) = said {
            say(format!("found {number} {said}\n"));
        }
    }
    say("done\n".to_owned());
}

/// Runs files, one after the other, and says what came of each.
///
/// # Errors
///
/// What the first that failed said.
pub fn run(target: Target, files: &[PathBuf], memory: usize) -> Result<Vec<(f64, usize)>, String> {
    listen();
    let mut all = Vec::new();
    for file in files {
        let input = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let (said, seconds, peak) = observe(target, &input, memory);
        if let Some(said) = said {
            return Err(said);
        }
        all.push((seconds, peak));
    }
    Ok(all)
}

/// How a trial is begun again where it ended: this program, with the words that
/// lead to [`work`].
pub struct Program<'a> {
    /// The program's file.
    pub path: &'a Path,
    /// Where the corpus is.
    pub place: &'a Path,
    /// A directory for the files that the targets need.
    pub scratch: &'a Path,
}

impl Program<'_> {
    fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new(self.path);
        command
            .args(words)
            .env("OLORA_FUZZ_SCRATCH", self.scratch)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// A trial of one target.
    pub fn trial(&self, target: Target, seed: u64, limits: &Limits) -> Report {
        let inputs = Inputs::read(self.place, target.name, seed);
        let mut report = Report::default();
        let began = Instant::now();
        let mut from = 0;
        loop {
            let left = limits.seconds - began.elapsed().as_secs_f64();
            if left <= 0.0 || from >= limits.count {
                break;
            }
            let words = [
                "work".to_owned(),
                target.name.to_owned(),
                format!("--from={from}"),
                format!("--seed={seed}"),
                format!("--seconds={left}"),
                format!("--count={}", limits.count),
                format!("--memory={}", limits.memory >> 20),
                format!("--place={}", self.place.display()),
            ];
            let Ok(child) = self.command(&words).spawn() else {
                report.add("the program cannot be started", Vec::new());
                break;
            };
            match follow(child, limits.time, &inputs, &mut report) {
                Some(next) => from = next,
                None => break,
            }
            self.confirm(target, limits, &mut report);
        }
        report.seconds = began.elapsed().as_secs_f64();
        report
    }

    /// Takes back that an input took too long where it does not by itself: other
    /// processes may have had the processor.
    fn confirm(&self, target: Target, limits: &Limits, report: &mut Report) {
        let said = too_long(limits.time);
        if report.confirmed {
            return;
        }
        let Some(finding) = report.findings.get(&said) else {
            return;
        };
        let file = self.scratch.join("slow");
        let again = fs::write(&file, &finding.input)
            .ok()
            .and_then(|()| self.verdict(target, &file, limits));
        if again.is_none() {
            report.findings.remove(&said);
        } else {
            report.confirmed = true;
        }
    }

    /// What one input does; nothing if all is well.
    pub fn verdict(&self, target: Target, file: &Path, limits: &Limits) -> Option<String> {
        let words = [
            "run".to_owned(),
            target.name.to_owned(),
            file.display().to_string(),
            format!("--memory={}", limits.memory >> 20),
        ];
        let mut child = self.command(&words).spawn().ok()?;
        let began = Instant::now();
        loop {
            match child.try_wait() {
                Ok(Some(status)) => {
                    let said = heard(&mut child);
                    return match status.code() {
                        Some(0) => None,
                        Some(_) => Some(said.trim().to_owned()),
                        None => Some(ended(status, &said)),
                    };
                }
                Ok(None) if began.elapsed() < limits.time => {
                    thread::sleep(Duration::from_millis(2));
                }
                _ => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Some(too_long(limits.time));
                }
            }
        }
    }

    /// A smaller input that does the same.
    pub fn shrink(&self, target: Target, input: &[u8], limits: &Limits, seconds: f64) -> Vec<u8> {
        let file = self.scratch.join("candidate");
        let fails = |input: &[u8]| {
            fs::write(&file, input).ok()?;
            self.verdict(target, &file, limits)
        };
        let mut best = input.to_vec();
        let Some(said) = fails(&best) else {
            return best;
        };
        let place = |said: &str| said.split('\t').next().unwrap_or_default().to_owned();
        let began = Instant::now();
        let mut size = best.len() / 2;
        while size > 0 && began.elapsed().as_secs_f64() < seconds {
            let mut at = 0;
            let mut smaller = false;
            while at < best.len() && began.elapsed().as_secs_f64() < seconds {
                let mut candidate = best.clone();
                candidate.drain(at..(at + size).min(best.len()));
                if fails(&candidate).is_some_and(|other| place(&other) == place(&said)) {
                    best = candidate;
                    smaller = true;
                } else {
                    at += size;
                }
            }
            if !smaller || size > best.len() {
                size /= 2;
            }
        }
        best
    }
}

/// Reads what a child says until it ends or takes too long. The number to go on
/// at, if there is more to do.
fn follow(mut child: Child, time: Duration, inputs: &Inputs, report: &mut Report) -> Option<u64> {
    let (send, receive) = mpsc::channel();
    let out = child.stdout.take()?;
    thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let mut at = None;
    loop {
        match receive.recv_timeout(time) {
            Ok(line) => {
                let mut words = line.splitn(3, ' ');
                let what = words.next().unwrap_or_default();
                if what == "done" {
                    let _ = child.wait();
                    return None;
                }
                let number: u64 = words.next().and_then(|word| word.parse().ok())?;
                let rest = words.next().unwrap_or_default();
                match what {
                    "begin" => {
                        at = Some(number);
                        report.inputs += 1;
                    }
                    "slow" => {
                        let seconds = rest.parse().unwrap_or(0.0);
                        if seconds > report.slowest.0 {
                            report.slowest = (seconds, number);
                        }
                    }
                    "large" => {
                        let bytes = rest.parse().unwrap_or(0);
                        if bytes > report.largest.0 {
                            report.largest = (bytes, number);
                        }
                    }
                    _ => report.add(rest, inputs.get(number)),
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                let _ = child.wait();
                let number = at?;
                report.slowest = (time.as_secs_f64(), number);
                report.add(&too_long(time), inputs.get(number));
                return Some(number + 1);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let said = heard(&mut child);
                let status = child.wait().ok()?;
                let number = at.unwrap_or(0);
                report.add(&ended(status, &said), inputs.get(number));
                // Before its first input there is nothing to go on behind.
                return at.map(|number| number + 1);
            }
        }
    }
}

impl Report {
    fn add(&mut self, said: &str, input: Vec<u8>) {
        let (place, words) = said.split_once('\t').unwrap_or((said, ""));
        let finding = self.findings.entry(place.to_owned()).or_default();
        if finding.times == 0 || input.len() < finding.input.len() {
            words.clone_into(&mut finding.words);
            finding.input = input;
        }
        finding.times += 1;
    }
}

fn too_long(time: Duration) -> String {
    format!("time: more than {} s", time.as_secs_f64())
}

fn heard(child: &mut Child) -> String {
    let mut said = String::new();
    if let Some(errors) = &mut child.stderr {
        let _ = errors.take(4096).read_to_string(&mut said);
    }
    said
}

fn ended(status: ExitStatus, said: &str) -> String {
    if said.contains(OVER.trim()) {
        return OVER.trim().to_owned();
    }
    if said.contains("overflowed its stack") {
        return "the stack overflowed".to_owned();
    }
    let last = said.lines().rfind(|line| !line.trim().is_empty());
    named(&format!(
        "the process ended with {status}: {}",
        last.unwrap_or_default()
    ))
}
