//! A line for each run and each comparison.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    metrics::{Line, METRICS, Number},
    place::{Content, Place, Stamp},
    standing::Standing,
};

pub(crate) const RECIPE: &str = "recipe.toml";
pub(crate) const SUMMARY: &str = "summary.json";
pub(crate) const DATA: &str = "data.json";
pub(crate) const CELLS: &str = "cells";
pub(crate) const REPORT: &str = "report.md";

/// The most that is read of a small file.
pub(crate) const MOST_SMALL: u64 = 4 << 20;

/// So much of the end of a run's metrics is read for its line: some hundred lines.
const END: u64 = 64 << 10;

/// A run in the list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct RunEntry {
    /// From the board's directory; what requests name it by.
    pub(crate) path: String,
    /// As its recipe calls it; empty if it has none.
    pub(crate) name: String,
    pub(crate) state: Standing,
    /// Steps made, as far as they were logged.
    pub(crate) steps: Option<u64>,
    /// The training loss that was logged last.
    pub(crate) loss: Option<f64>,
    pub(crate) validation_loss: Option<f64>,
    /// When it was started, in seconds since 1970.
    pub(crate) started: Option<u64>,
    /// Seconds of training.
    pub(crate) seconds: Option<f64>,
    /// What of its files cannot be read, for people.
    pub(crate) problem: Option<String>,
}

/// A comparison in the list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ComparisonEntry {
    pub(crate) path: String,
    /// Runs that are finished.
    pub(crate) n_runs: usize,
    /// Whether its report has been written.
    pub(crate) has_report: bool,
}

/// Lines that are known, and of which files they were made.
#[derive(Debug, Default)]
pub(crate) struct Entries(HashMap<String, Known>);

#[derive(Debug)]
struct Known {
    stamps: [Option<Stamp>; 4],
    finished: Option<bool>,
    entry: RunEntry,
}

/// What matters here of a summary.
#[derive(Deserialize)]
struct Ended {
    finished: bool,
    steps: u64,
    train_seconds: Option<f64>,
}

#[derive(Deserialize)]
struct Named {
    name: Option<String>,
}

/// What the last lines of metrics say.
#[derive(Default)]
struct Last {
    step: Option<u64>,
    loss: Option<f64>,
    validation_loss: Option<f64>,
    seconds: Option<f64>,
}

impl Entries {
    /// A run's line. Its files are read where they are not as they were; whether it is
    /// running is asked each time.
    pub(crate) fn run(&mut self, path: &str, place: &Place) -> RunEntry {
        let stamps = [METRICS, SUMMARY, RECIPE, DATA].map(|name| place.stamp(name));
        let known = match self.0.get_mut(path) {
            Some(known) if known.stamps == stamps => known,
            _ => {
                let (entry, finished) = read(path, place, stamps);
                let known = Known {
                    stamps,
                    finished,
                    entry,
                };
                self.0.entry(path.to_owned()).insert_entry(known).into_mut()
            }
        };
        let written = stamps[0].and_then(|stamp| stamp.modified);
        // A run that writes its recipe has not written metrics.
        let written = written.max(stamps[2].and_then(|stamp| stamp.modified));
        known.entry.state = Standing::of(place, known.finished, written);
        known.entry.clone()
    }

    /// Forgets runs that are gone.
    pub(crate) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|path, _| is_there(path));
    }
}

fn read(path: &str, place: &Place, stamps: [Option<Stamp>; 4]) -> (RunEntry, Option<bool>) {
    let summary = place
        .text(SUMMARY, MOST_SMALL)
        .and_then(|text| parse::<Ended>(SUMMARY, &text));
    let recipe = place.text(RECIPE, MOST_SMALL).and_then(|text| {
        toml::from_str::<Named>(&text).map_err(|error| format!("{RECIPE}: {}", error.message()))
    });
    let (last, metrics_problem) = match last(place) {
        Ok(last) => (last, None),
        Err(error) if error.kind() == ErrorKind::NotFound => (Last::default(), None),
        Err(error) => (Last::default(), Some(format!("{METRICS}: {error}"))),
    };
    let problems = [problem(&summary), problem(&recipe), metrics_problem];
    let problems: Vec<String> = problems.into_iter().flatten().collect();
    let ended = summary.value();
    let entry = RunEntry {
        path: path.to_owned(),
        name: recipe
            .value()
            .and_then(|recipe| recipe.name.clone())
            .unwrap_or_default(),
        state: Standing::Interrupted,
        steps: ended.map(|ended| ended.steps).or(last.step),
        loss: last.loss,
        validation_loss: last.validation_loss,
        // Neither is written again when a run goes on, but for a recipe that was changed.
        started: [stamps[3], stamps[2], stamps[0]]
            .into_iter()
            .flatten()
            .find_map(|stamp| since_1970(stamp.modified?)),
        seconds: ended.and_then(|ended| ended.train_seconds).or(last.seconds),
        problem: (!problems.is_empty()).then(|| problems.join("; ")),
    };
    (entry, ended.map(|ended| ended.finished))
}

fn problem<T>(content: &Content<T>) -> Option<String> {
    match content {
        Content::Error(reason) => Some(reason.clone()),
        _ => None,
    }
}

/// JSON of a file, or what is wrong with it.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(name: &str, text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("{name}: {error}"))
}

fn since_1970(time: SystemTime) -> Option<u64> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    Some(since.as_secs())
}

fn last(place: &Place) -> io::Result<Last> {
    let (path, about) = place.file(METRICS)?;
    let begin = about.len().saturating_sub(END);
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(END).read_to_end(&mut bytes)?;
    // What stands behind the last break is a line that is being written, and what stands before the
    // first the end of one, if the file did not begin there.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let mut lines: Vec<&[u8]> = bytes[..whole].split(|byte| *byte == b'\n').collect();
    if begin > 0 && !lines.is_empty() {
        lines.remove(0);
    }
    let mut last = Last::default();
    for line in lines.into_iter().rev().filter_map(Line::parse) {
        let first = |have: Option<f64>, number: Number| have.or(number.finite());
        last.step = last.step.or(Some(line.step));
        last.loss = first(last.loss, line.loss);
        last.validation_loss = first(last.validation_loss, line.validation_loss);
        last.seconds = last.seconds.or(line.seconds);
    }
    Ok(last)
}

/// A comparison's line.
pub(crate) fn comparison(path: &str, place: &Place) -> ComparisonEntry {
    let cells = fs::read_dir(place.path().join(CELLS)).into_iter().flatten();
    ComparisonEntry {
        path: path.to_owned(),
        n_runs: cells
            .flatten()
            .filter(|entry| is_json(&entry.path()))
            .count(),
        has_report: place.file(REPORT).is_ok(),
    }
}

fn is_json(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(directory: &Path) -> RunEntry {
        let root = fs::canonicalize(directory).unwrap();
        let place = Place::new(&root.as_path().into(), root);
        Entries::default().run("alder", &place)
    }

    #[test]
    fn a_runs_line_says_what_its_files_say() {
        let run = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(run.path().join(name), text).unwrap();
        write(RECIPE, "name = \"Alder\"\n");
        let lines = "{\"step\":1,\"loss\":3.0,\"seconds\":1.5}\n{\"step\":2,\"validation_loss\":2.0}\n{\"step\":3,\"lo";
        write(METRICS, lines);
        let found = entry(run.path());
        assert_eq!((found.name.as_str(), found.steps), ("Alder", Some(2)));
        assert_eq!((found.loss, found.validation_loss), (Some(3.0), Some(2.0)));
        assert_eq!((found.seconds, found.problem), (Some(1.5), None));
        write(
            SUMMARY,
            r#"{"finished":true,"steps":9,"train_seconds":4.0}"#,
        );
        let found = entry(run.path());
        assert_eq!((found.state, found.steps), (Standing::Finished, Some(9)));
    }

    #[test]
    fn broken_files_are_a_problem_and_no_end() {
        let run = tempfile::tempdir().unwrap();
        fs::write(run.path().join(RECIPE), "name = ").unwrap();
        fs::write(run.path().join(SUMMARY), "{").unwrap();
        fs::write(run.path().join(METRICS), [0xff, b'\n']).unwrap();
        let problem = entry(run.path()).problem.unwrap();
        assert!(
            problem.contains(RECIPE) && problem.contains(SUMMARY),
            "{problem}"
        );
    }

    #[test]
    fn the_last_lines_of_a_long_file_are_found() {
        let run = tempfile::tempdir().unwrap();
        let lines = (0..20_000).map(|step| format!("{{\"step\":{step},\"loss\":{step}.5}}\n"));
        fs::write(run.path().join(METRICS), lines.collect::<String>()).unwrap();
        assert_eq!(entry(run.path()).loss, Some(19_999.5));
    }

    #[test]
    fn a_line_is_made_again_when_a_file_has_changed() {
        let run = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(run.path()).unwrap();
        let place = Place::new(&root.as_path().into(), root);
        let mut entries = Entries::default();
        fs::write(run.path().join(METRICS), "{\"step\":1}\n").unwrap();
        assert_eq!(entries.run("alder", &place).steps, Some(1));
        fs::write(run.path().join(METRICS), "{\"step\":1}\n{\"step\":2}\n").unwrap();
        assert_eq!(entries.run("alder", &place).steps, Some(2));
    }
}
