//! What is shown of a comparison.
//!
//! What its runs come to, means and intervals and who is ahead, is worked out by
//! `olora-comparison`, which writes it to `report.md`. It is that report which is shown,
//! so that a page never says anything else than the report does. While it is not yet
//! there, the runs that are finished are listed.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::{
    list::{CELLS, ComparisonEntry, MOST_SMALL, REPORT, parse},
    place::{Content, Place},
};

/// The largest picture that is shown.
pub(crate) const MOST_PICTURE: u64 = 16 << 20;

/// How many runs are listed.
const MOST_CELLS: usize = 5000;

/// A comparison, as a page is given it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    #[serde(flatten)]
    pub(crate) entry: ComparisonEntry,
    /// The report, as Markdown.
    pub(crate) report: Content<String>,
    /// Names of the pictures beside it.
    pub(crate) pictures: Vec<String>,
    /// The runs that are finished.
    pub(crate) cells: Vec<Cell>,
    /// Files of runs that cannot be read, and why.
    pub(crate) problems: Vec<String>,
}

/// A run that is finished.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Cell {
    name: String,
    variant: String,
    rank: u64,
    learning_rate: f64,
    seed: u64,
    steps: Option<u64>,
    /// The last validation loss; none if it is not a finite number.
    loss: Option<f64>,
}

#[derive(Deserialize)]
struct Stored {
    variant: String,
    rank: u64,
    learning_rate: f64,
    seed: u64,
    steps: Option<u64>,
    #[serde(default)]
    validation: Vec<(u64, Option<f64>)>,
}

impl Comparison {
    pub(crate) fn of(entry: ComparisonEntry, place: &Place) -> Self {
        let mut cells = Vec::new();
        let mut problems = Vec::new();
        for name in names(place, CELLS, "json").into_iter().take(MOST_CELLS) {
            match cell(place, &name) {
                Content::Value(cell) => cells.push(cell),
                Content::Error(reason) => problems.push(reason),
                // It has gone since it was listed.
                Content::Missing => {}
            }
        }
        Self {
            report: place.text(REPORT, MOST_SMALL),
            pictures: pictures(place),
            entry,
            cells,
            problems,
        }
    }
}

/// The pictures of a comparison, by name. Each is there as PNG too, which is larger and
/// no better here.
pub(crate) fn pictures(place: &Place) -> Vec<String> {
    names(place, "", "svg")
}

fn names(place: &Place, below: &str, extension: &str) -> Vec<String> {
    let entries = fs::read_dir(place.path().join(below)).into_iter().flatten();
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|has| has == extension))
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

fn cell(place: &Place, name: &str) -> Content<Cell> {
    let path = format!("{CELLS}/{name}");
    let text = place.text(&path, MOST_SMALL);
    text.and_then(|text| {
        let Stored {
            variant,
            rank,
            learning_rate,
            seed,
            steps,
            validation,
        } = parse(&path, &text)?;
        Ok(Cell {
            name: name.trim_end_matches(".json").to_owned(),
            variant,
            rank,
            learning_rate,
            seed,
            steps,
            loss: validation.last().and_then(|(_, loss)| *loss),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list;

    #[test]
    fn finished_runs_are_listed_and_broken_files_named() {
        let directory = tempfile::tempdir().unwrap();
        let cells = directory.path().join(CELLS);
        fs::create_dir(&cells).unwrap();
        let lora = r#"{"variant":"lora","rank":8,"learning_rate":0.001,"seed":1,"steps":2,"validation":[[0,3.0],[2,1.5]]}"#;
        fs::write(cells.join("lora.json"), lora).unwrap();
        fs::write(cells.join("olora.json"), "{").unwrap();
        fs::write(directory.path().join("loss.svg"), "<svg/>").unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        let place = Place::new(&root.as_path().into(), root);
        let found = Comparison::of(list::comparison("c", &place), &place);
        assert_eq!(found.cells.len(), 1);
        assert_eq!(found.cells[0].loss, Some(1.5));
        assert!(found.problems[0].contains("olora.json"), "{found:?}");
        assert_eq!(found.pictures, ["loss.svg"]);
        assert_eq!(found.report, Content::Missing);
    }
}
