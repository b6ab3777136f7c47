//! `mlflow-unsent.jsonl`: what a server did not get, a line for each value, in
//! the form of its interface.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use olora_files::write_atomically;
use serde_json::Value;

use super::shared::Values;

#[derive(Debug)]
pub(super) struct Unsent {
    path: PathBuf,
    /// Lines of an earlier session, at the beginning of the file. They are in
    /// the buffer too, and stay here until it is known what became of them.
    n_earlier: usize,
    /// Values that could not be written.
    n_lost: usize,
    /// Why not.
    error: Option<io::Error>,
}

impl Unsent {
    /// The file, and what is in it of a run that goes on after a step: what comes
    /// later will be logged again. A run that begins has no use for it.
    pub(super) fn open(path: PathBuf, after: Option<u64>) -> (Self, Vec<Values>) {
        let mut unsent = Self {
            path,
            n_earlier: 0,
            n_lost: 0,
            error: None,
        };
        let Some(after) = after else {
            if let Err(error) = remove(&unsent.path) {
                unsent.error = Some(error);
            }
            return (unsent, Vec::new());
        };
        let text = read(&unsent.path).unwrap_or_default();
        unsent.n_earlier = text.lines().count();
        let values = text.lines().filter_map(value);
        (
            unsent,
            values.filter(|values| values.step <= after).collect(),
        )
    }

    /// Adds values.
    pub(super) fn append(&mut self, values: &[Values]) {
        let lines = lines(values);
        let appended = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)
            .and_then(|mut file| file.write_all(lines.as_bytes()));
        if let Err(error) = appended {
            self.lost(values, error);
        }
    }

    fn lost(&mut self, values: &[Values], error: io::Error) {
        self.n_lost += values
            .iter()
            .map(|values| values.pairs.len())
            .sum::<usize>();
        self.error = Some(error);
    }

    /// At the end: drops what an earlier session left, of which `rest` has what
    /// is still not sent, and adds that. Says what is there then, as the
    /// beginning of a sentence, or nothing if all was sent.
    pub(super) fn settle(&mut self, rest: &[Values]) -> Option<String> {
        let before = read(&self.path).unwrap_or_default();
        let before = before.lines().skip(self.n_earlier);
        let text = before.fold(String::new(), |text, line| text + line + "\n") + &lines(rest);
        let n_kept = text.lines().count();
        let settled = if n_kept == 0 {
            remove(&self.path)
        } else {
            write_atomically(&self.path, |file| file.write_all(text.as_bytes()))
        };
        let place = self.path.display();
        if let Err(error) = settled {
            let n = n_kept + self.n_lost;
            return (n > 0).then(|| {
                format!(
                    "{n} values, which {place} cannot keep either ({error}), were not delivered"
                )
            });
        }
        match (n_kept, self.n_lost) {
            (0, 0) => None,
            (n, 0) => Some(format!("{n} values, kept in {place}, were not delivered")),
            (n, lost) => {
                let error = self.error.take().map(|error| error.to_string());
                Some(format!(
                    "{} values, of which {place} keeps {n} and not the others ({}), were not delivered",
                    n + lost,
                    error.unwrap_or_default()
                ))
            }
        }
    }
}

fn lines(values: &[Values]) -> String {
    let metrics = values.iter().flat_map(Values::metrics);
    metrics.fold(String::new(), |text, metric| {
        text + &metric.to_string() + "\n"
    })
}

/// A line; nothing if it was cut off.
fn value(line: &str) -> Option<Values> {
    let whole: Value = serde_json::from_str(line).ok()?;
    // The last digit is not exact by `serde_json`'s way of reading. No key holds quotes.
    let (_, value) = line.split_once("\"value\":")?;
    let value = value.split([',', '}']).next()?.trim_matches('"');
    let value = match value {
        "NaN" => f64::NAN,
        "Infinity" => f64::INFINITY,
        "-Infinity" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Values {
        step: whole["step"].as_u64()?,
        timestamp: whole["timestamp"].as_u64()?,
        pairs: vec![(whole["key"].as_str()?.to_owned(), value)],
    })
}

/// What is in the file, if it is there and a text.
fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(step: u64, value: f64) -> Values {
        Values {
            step,
            timestamp: 1000 + step,
            pairs: vec![("train/loss".to_owned(), value)],
        }
    }

    #[test]
    fn what_was_left_comes_back_up_to_the_step_that_is_gone_on_after() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("unsent.jsonl");
        let (mut first, left) = Unsent::open(path.clone(), None);
        assert!(left.is_empty());
        first.append(&[values(1, 1.0 / 11.0)]);
        let said = first
            .settle(&[values(2, f64::INFINITY), values(3, 0.25)])
            .unwrap();
        assert!(said.starts_with("3 values, kept in "), "{said}");

        let (mut second, left) = Unsent::open(path.clone(), Some(2));
        assert_eq!(left, [values(1, 1.0 / 11.0), values(2, f64::INFINITY)]);
        // The first was sent now, the second was not, and one more was refused.
        second.append(&[values(3, 0.125)]);
        let said = second.settle(&left[1..]).unwrap();
        assert!(said.starts_with("2 values, kept in "), "{said}");
        let (mut third, left) = Unsent::open(path.clone(), Some(3));
        assert_eq!(left, [values(3, 0.125), values(2, f64::INFINITY)]);
        assert_eq!(third.settle(&[]), None);
        assert!(!path.exists(), "nothing is left, and the file is");
    }

    #[test]
    fn a_run_that_begins_has_nothing_to_send() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("unsent.jsonl");
        Unsent::open(path.clone(), None).0.append(&[values(1, 0.5)]);
        assert!(path.exists());
        let (_, left) = Unsent::open(path.clone(), None);
        assert!(left.is_empty() && !path.exists());
    }
}
