//! Results as files.

use std::path::{Path, PathBuf};

use olora_files::write_atomically;
use serde::Serialize;

use crate::{ItemResults, TaskError, TaskName, TaskResult};

/// The files that [`write_items`] writes for these tasks.
pub fn files_of(directory: &Path, tasks: &[TaskName]) -> Vec<PathBuf> {
    let file = |task: &TaskName| directory.join(format!("{task}.jsonl"));
    tasks.iter().map(file).collect()
}

/// Writes each task's items to `<task>.jsonl` in a directory, one JSON object a
/// line, in the order of the task's file.
///
/// # Errors
///
/// [`TaskError::Mismatch`], before anything is written, if one of the files
/// exists; [`TaskError::Io`] if it cannot be written.
pub fn write_items(directory: &Path, results: &[TaskResult]) -> Result<(), TaskError> {
    let tasks: Vec<TaskName> = results.iter().map(|result| result.task).collect();
    let files = files_of(directory, &tasks);
    if let Some(file) = files.iter().find(|file| file.exists()) {
        return Err(TaskError::Mismatch(format!(
            "{} exists already",
            file.display()
        )));
    }
    for (file, result) in files.iter().zip(results) {
        let text = match &result.items {
            ItemResults::Choices(items) => lines(items),
            ItemResults::Generations(items) => lines(items),
        };
        text.map_err(std::io::Error::from)
            .and_then(|text| write_atomically(file, |out| out.write_all(text.as_bytes())))
            .map_err(|error| TaskError::io("writing", file, error))?;
    }
    Ok(())
}

fn lines(items: &[impl Serialize]) -> serde_json::Result<String> {
    let lines = items.iter().map(serde_json::to_string);
    lines
        .map(|line| line.map(|line| line + "\n"))
        .collect::<serde_json::Result<String>>()
}
