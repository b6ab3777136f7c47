//! Files of tasks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    Items, Task, TaskError, TaskName,
    layout::{Record, multiple_choice, open_question},
};

/// Reads tasks from a directory with a file for each, `<task>.jsonl`, of one
/// JSON object a line: in llm-foundry's layout or the data set's own, told from
/// the keys. With a `limit`, the first so many items of each.
///
/// # Errors
///
/// [`TaskError::Data`], with file and line, when a file is not there, holds
/// nothing, or a record is not what the task needs.
pub fn load(
    names: &[TaskName],
    directory: &Path,
    limit: Option<usize>,
) -> Result<Vec<Task>, TaskError> {
    let task = |name: &TaskName| {
        let file = find(*name, directory)?;
        let items = read(*name, &file, limit)?;
        Ok(Task {
            name: *name,
            file,
            items,
        })
    };
    names.iter().map(task).collect()
}

fn find(name: TaskName, directory: &Path) -> Result<PathBuf, TaskError> {
    let paths = name.files().iter().map(|file| directory.join(file));
    paths
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| {
            let reason = format!("there is no {} here for {name}", name.files().join(" or "));
            wrong(directory, None, reason)
        })
}

fn read(name: TaskName, path: &Path, limit: Option<usize>) -> Result<Items, TaskError> {
    let mut records = records(path, limit)?;
    if name == TaskName::Piqa {
        add_labels(path, &mut records)?;
    }
    let at = |line: usize| move |reason| wrong(path, Some(line), reason);
    Ok(if name.generates() {
        let items = records
            .iter()
            .map(|(line, record)| open_question(record).map_err(at(*line)));
        Items::Open(items.collect::<Result<_, _>>()?)
    } else {
        let items = records
            .iter()
            .map(|(line, record)| multiple_choice(name, record).map_err(at(*line)));
        Items::Choices(items.collect::<Result<_, _>>()?)
    })
}

/// The first `limit` records, each with its line counted from 1.
fn records(path: &Path, limit: Option<usize>) -> Result<Vec<(usize, Record)>, TaskError> {
    let text = text_of(path)?;
    // Windows editors begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = (1..).zip(text.lines());
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let record = |(number, line): (usize, &str)| match serde_json::from_str(line) {
        Ok(Value::Object(record)) => Ok((number, record)),
        Ok(_) => {
            let reason = "expected a JSON object, found another value".to_owned();
            Err(wrong(path, Some(number), reason))
        }
        Err(error) => {
            let reason = format!("expected one JSON object a line: {error}");
            Err(wrong(path, Some(number), reason))
        }
    };
    let records: Vec<_> = lines
        .take(limit.unwrap_or(usize::MAX))
        .map(record)
        .collect::<Result<_, _>>()?;
    if records.is_empty() {
        return Err(wrong(path, None, "the file holds no items".to_owned()));
    }
    Ok(records)
}

/// PIQA's own files have the right choices beside them, a number a line.
fn add_labels(path: &Path, records: &mut [(usize, Record)]) -> Result<(), TaskError> {
    if records
        .iter()
        .all(|(_, record)| !record.contains_key("goal"))
    {
        return Ok(());
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let beside = ["-labels.lst", ".lst"].map(|end| path.with_file_name(format!("{stem}{end}")));
    let Some(file) = beside.iter().find(|file| file.is_file()) else {
        return Ok(());
    };
    let text = text_of(file)?;
    let labels: Vec<&str> = text.split_whitespace().collect();
    if labels.len() < records.len() {
        let reason = format!(
            "{} labels for the {} items of {}",
            labels.len(),
            records.len(),
            path.display()
        );
        return Err(wrong(file, None, reason));
    }
    for ((_, record), label) in records.iter_mut().zip(labels) {
        let label = Value::String(label.to_owned());
        record.entry("label").or_insert(label);
    }
    Ok(())
}

fn text_of(path: &Path) -> Result<String, TaskError> {
    fs::read_to_string(path).map_err(|error| TaskError::io("reading", path, error))
}

fn wrong(file: &Path, line: Option<usize>, reason: String) -> TaskError {
    TaskError::Data {
        file: file.to_owned(),
        line,
        reason,
    }
}
