//! What came of a run, on stdout.

use std::{io, io::Write, path::Path};

use olora_runs::{Summary, in_time};
use serde_json::json;

use super::words::{memory, parameters, validation, validation_measures};
use crate::terminal::{Out, are_events, emit, out, tagged, unless_gone};

/// Writes what came of a run of so many steps; `go_on` is what one that was
/// interrupted goes on with.
pub(crate) fn print_result(summary: &Summary, total_steps: usize, go_on: &str) -> io::Result<()> {
    if are_events() {
        let mut event = tagged("summary", summary);
        event["total_steps"] = json!(total_steps);
        emit(&event);
        return Ok(());
    }
    let mut out = out();
    unless_gone(write(&mut out, &lines(summary, total_steps, go_on)))
}

fn write(out: &mut Out, lines: &[(&'static str, String)]) -> io::Result<()> {
    let width = lines.iter().map(|(head, _)| head.len()).max().unwrap_or(0);
    for (head, text) in lines {
        out.heading(head)?;
        writeln!(out, ":{:1$} {text}", "", width - head.len())?;
    }
    out.flush()
}

/// What each line is of, and the line.
pub(super) fn lines(
    summary: &Summary,
    total_steps: usize,
    go_on: &str,
) -> Vec<(&'static str, String)> {
    let early = if summary.stopped_early {
        ", stopped early"
    } else {
        ""
    };
    let mut lines = vec![
        (
            if summary.finished {
                "finished"
            } else {
                "interrupted"
            },
            format!("{} of {total_steps} steps{early}", summary.steps),
        ),
        ("run directory", summary.directory.display().to_string()),
    ];
    if let Some(loss) = summary.train_loss {
        lines.push(("training loss", format!("{loss:.4}, the last")));
    }
    lines.extend(validation(summary).map(|validation| ("validation loss", validation)));
    for (when, measures) in validation_measures(summary) {
        lines.push(("validation", format!("{when}: {measures}")));
    }
    if let Some(concern) = &summary.concern {
        lines.push(("warning", concern.clone()));
    }
    let share = 100.0 * summary.n_trained_params as f64 / summary.n_params as f64;
    lines.push((
        "trained",
        format!(
            "{} of {} ({share:.2} %)",
            parameters(summary.n_trained_params),
            parameters(summary.n_params)
        ),
    ));
    lines.push((
        "time",
        format!(
            "{} of training, {} in all; {} tokens, {:.0} tokens/s",
            in_time(summary.train_seconds),
            in_time(summary.wall_seconds),
            summary.tokens,
            summary.tokens_per_second
        ),
    ));
    let memory = memory(summary);
    if !memory.is_empty() {
        lines.push(("memory", memory));
    }
    let is_model = summary.result.ends_with("model");
    if summary.finished {
        let result = summary.result.display().to_string();
        lines.push((if is_model { "model" } else { "adapter" }, result));
    } else {
        lines.push(("to go on", go_on.to_owned()));
    }
    // What a run has so far can be tried as well, if it is an adapter.
    if is_model && summary.finished {
        lines.push(("to try it", try_it("--model", &summary.result)));
    } else if !is_model && summary.steps > 0 {
        lines.push(("to try it", try_it("--adapter", &summary.directory)));
    }
    lines
}

fn try_it(option: &str, path: &Path) -> String {
    let path = quoted(&path.to_string_lossy());
    format!("olora generate {option} {path} --prompt \"…\"")
}

/// The command that this process is of, with `--resume` if that is what goes on.
pub(crate) fn this_command(with_resume: bool) -> String {
    let words = std::env::args_os().skip(1);
    let words: Vec<_> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    command(&words, with_resume)
}

fn command(words: &[String], with_resume: bool) -> String {
    let words = words.iter().map(|word| quoted(word));
    let resume = with_resume.then(|| "--resume".to_owned());
    let all = std::iter::once("olora".to_owned())
        .chain(words)
        .chain(resume);
    all.collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it.
pub(crate) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_given_to_a_shell_again() {
        let words = ["train", "my recipe.toml", "--set", "name=\"it's\""].map(str::to_owned);
        assert_eq!(
            command(&words, true),
            r#"olora train 'my recipe.toml' --set 'name="it'\''s"' --resume"#
        );
        assert_eq!(command(&words[..1], false), "olora train");
        assert_eq!(quoted(""), "''");
    }
}
