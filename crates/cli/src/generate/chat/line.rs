//! A line of a chat, as typed.

use std::path::PathBuf;

use crate::args::{parse_max_new_tokens, parse_temperature};

/// What a line means.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Line {
    /// The chat is over.
    End,
    /// For the model.
    Message(String),
    Help,
    Reset,
    /// What the model is told first, if anything.
    System(Option<String>),
    Temperature(f32),
    /// The longest answer, in tokens.
    Max(usize),
    Undo,
    Retry,
    Save(PathBuf),
    /// It cannot be meant, and why.
    Wrong(String),
}

impl Line {
    pub(super) fn parse(text: &str) -> Self {
        let text = text.trim();
        if text.is_empty() {
            return Self::End;
        }
        let Some(command) = text.strip_prefix('/') else {
            return Self::Message(text.to_owned());
        };
        if command.starts_with('/') {
            return Self::Message(command.to_owned());
        }
        let (name, rest) = match command.split_once(char::is_whitespace) {
            Some((name, rest)) => (name, rest.trim()),
            None => (command, ""),
        };
        match Self::command(name, rest) {
            Ok(line) => line,
            Err(reason) => Self::Wrong(format!("/{name}: {reason}")),
        }
    }

    fn command(name: &str, rest: &str) -> Result<Self, String> {
        let alone = |line: Self| {
            if rest.is_empty() {
                Ok(line)
            } else {
                Err(format!("nothing comes after it, and found {rest:?}"))
            }
        };
        match name {
            "help" => alone(Self::Help),
            "reset" => alone(Self::Reset),
            "undo" => alone(Self::Undo),
            "retry" => alone(Self::Retry),
            "quit" => alone(Self::End),
            "system" => Ok(Self::System((!rest.is_empty()).then(|| rest.to_owned()))),
            "temperature" => parse_temperature(rest).map(Self::Temperature),
            "max" => parse_max_new_tokens(rest).map(Self::Max),
            "save" if rest.is_empty() => Err("give the file to write".to_owned()),
            "save" => Ok(Self::Save(rest.into())),
            _ => Err(
                "there is no such command, and nothing was sent: /help lists them, and // begins \
                 a message with a slash"
                    .to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_message_or_a_command() {
        let message = |text: &str| Line::Message(text.to_owned());
        for (line, expected) in [
            ("", Line::End),
            ("  ", Line::End),
            ("/quit", Line::End),
            (" Where is Zora? ", message("Where is Zora?")),
            ("and/or", message("and/or")),
            ("//help me", message("/help me")),
            ("/help", Line::Help),
            ("/reset", Line::Reset),
            ("/undo", Line::Undo),
            ("/retry", Line::Retry),
            ("/system", Line::System(None)),
            (
                "/system Speak as a\ntown crier",
                Line::System(Some("Speak as a\ntown crier".to_owned())),
            ),
            ("/temperature 0.7", Line::Temperature(0.7)),
            ("/max 20", Line::Max(20)),
            ("/save my chat.jsonl", Line::Save("my chat.jsonl".into())),
        ] {
            assert_eq!(Line::parse(line), expected, "{line:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_named_and_not_sent() {
        for (line, expected) in [
            (
                "/hlep",
                "/hlep: there is no such command, and nothing was sent",
            ),
            ("/", "/: there is no such command"),
            ("/temperature", "/temperature: must be a number between 0"),
            (
                "/temperature hot",
                "/temperature: must be a number between 0",
            ),
            ("/max 0", "/max: must be a whole number between 1 and"),
            ("/save", "/save: give the file"),
            (
                "/undo all",
                "/undo: nothing comes after it, and found \"all\"",
            ),
        ] {
            let Line::Wrong(reason) = Line::parse(line) else {
                panic!("{line}");
            };
            assert!(reason.starts_with(expected), "{reason}");
        }
    }
}
