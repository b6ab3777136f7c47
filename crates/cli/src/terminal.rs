//! The one way to stderr and stdout.
//!
//! Much of what is printed comes from files that others wrote: tokens, keys,
//! names of tensors, generated text. Escape sequences in it could clear a
//! terminal, hide a line or rewrite what was said before. So what people read,
//! stderr and a stdout that is a terminal, has its control characters shown as
//! `\u{1b}`; a file or a pipe gets the bytes as they are. Only then are colours
//! added, which are ours.

mod bar;
mod events;

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use serde_json::json;

pub(crate) use bar::{bar, draws_bars};
pub(crate) use events::{are_on as are_events, emit, failure, set as set_events, tagged};

/// Whether another process says everything.
static MUTE: AtomicBool = AtomicBool::new(false);

/// How much is said, as a [`Level`].
static LEVEL: AtomicU8 = AtomicU8::new(Level::Usual as u8);

/// From here on, nothing is written: another rank speaks for this one.
pub(crate) fn mute() {
    MUTE.store(true, Ordering::Relaxed);
}

fn is_mute() -> bool {
    MUTE.load(Ordering::Relaxed)
}

/// How much is said on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Warnings and errors.
    Quiet,
    /// How things go.
    Usual,
    /// And more of it than most want to know.
    Verbose,
}

pub(crate) fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Whether this much is to be said.
pub(crate) fn is_at_least(level: Level) -> bool {
    LEVEL.load(Ordering::Relaxed) >= level as u8
}

/// What a line on stderr is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// More than most want to know.
    Detail,
    /// How things go.
    Say,
    /// Something to know that stops nothing.
    Note,
    /// What was asked of a command that runs, and is told in any case.
    Answer,
    Warning,
    Error,
}

impl Line {
    /// The least at which it is said.
    fn level(self) -> Level {
        match self {
            Self::Detail => Level::Verbose,
            Self::Say | Self::Note => Level::Usual,
            Self::Answer | Self::Warning | Self::Error => Level::Quiet,
        }
    }

    /// Of what it begins with.
    fn style(self) -> Style {
        match self {
            Self::Detail | Self::Say | Self::Answer => Style::new().bold(),
            Self::Note => AnsiColor::Cyan.on_default(),
            Self::Warning => AnsiColor::Yellow.on_default(),
            Self::Error => AnsiColor::Red.on_default().bold(),
        }
    }

    /// A line whose `head` stands out, control characters shown as such.
    fn styled(self, head: &str, text: &str) -> String {
        let (head, text) = (shown(head), shown(text));
        let style = self.style();
        if head.is_empty() {
            format!("{text}\n")
        } else {
            format!("{style}{head}{style:#}{text}\n")
        }
    }
}

/// Writes a line to stderr, if lines of its kind are said. Of `head` and `text`,
/// which follow each other as they are, the first stands out. A closed stderr is no
/// reason to stop a run.
pub(crate) fn line(kind: Line, head: &str, text: &str) {
    if is_mute() {
        return;
    }
    let event = match kind {
        Line::Note => Some("note"),
        Line::Warning => Some("warning"),
        _ => None,
    };
    if let Some(event) = event {
        emit(&json!({ "event": event, "text": text.trim_start() }));
    }
    if is_at_least(kind.level()) {
        write(kind, head, text);
    }
}

fn write(kind: Line, head: &str, text: &str) {
    let line = kind.styled(head, text);
    bar::above(|| {
        // Colours go where a terminal takes them.
        let _ = anstream::stderr().write_all(line.as_bytes());
    });
}

/// Says how things go.
pub(crate) fn say(text: &str) {
    line(Line::Say, "", text);
}

/// The same under a heading, which ends in a colon.
pub(crate) fn say_under(head: &str, text: &str) {
    line(Line::Say, head, &format!(" {text}"));
}

/// Says more than most want to know.
pub(crate) fn say_detail(text: &str) {
    line(Line::Detail, "", text);
}

/// Says something to know that stops nothing.
pub(crate) fn say_note(text: &str) {
    line(Line::Note, "note:", &format!(" {text}"));
}

/// Says what may be wrong, and stops nothing.
pub(crate) fn say_warning(text: &str) {
    line(Line::Warning, "warning:", &format!(" {text}"));
}

/// Answers a signal, however little is said.
pub(crate) fn answer(text: &str) {
    line(Line::Answer, "", text);
}

/// Says why a command has failed, and what it ends with.
pub(crate) fn say_error(text: &str, code: u8) {
    if !is_mute() {
        emit(&json!({ "event": "error", "message": text, "code": code }));
        error_anyway(text);
    }
}

/// The same of a rank that others should have spoken for, and cannot.
pub(crate) fn error_anyway(text: &str) {
    write(Line::Error, "error:", &format!(" {text}"));
}

/// A text with its control characters, those of Unicode's second block
/// included, written as `\r` or `\u{1b}`. Line breaks and tabs stay.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    let is_harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_harmless(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_default());
        }
    }
    Cow::Owned(shown)
}

/// Where results go: stdout.
pub(crate) struct Out {
    inner: io::Stdout,
    is_terminal: bool,
    has_colours: bool,
}

/// Stdout, for results.
pub(crate) fn out() -> Out {
    let inner = io::stdout();
    let is_terminal = inner.is_terminal();
    let has_colours = AutoStream::choice(&inner) != ColorChoice::Never;
    Out {
        inner,
        is_terminal,
        has_colours,
    }
}

impl Out {
    pub(crate) fn has_colours(&self) -> bool {
        self.has_colours
    }

    /// Writes a control sequence of our own.
    pub(crate) fn control(&mut self, sequence: &str) -> io::Result<()> {
        if is_mute() {
            return Ok(());
        }
        self.inner.write_all(sequence.as_bytes())
    }

    /// Writes what stands out where there are colours.
    pub(crate) fn heading(&mut self, text: &str) -> io::Result<()> {
        let bold = Style::new().bold();
        if self.has_colours {
            self.control(&bold.render().to_string())?;
        }
        self.write_all(text.as_bytes())?;
        if self.has_colours {
            self.control(&bold.render_reset().to_string())?;
        }
        Ok(())
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if is_mute() {
            return Ok(bytes.len());
        }
        if self.is_terminal {
            // `write!` hands over whole pieces of text, so nothing is cut in a character.
            let text = String::from_utf8_lossy(bytes);
            self.inner.write_all(shown(&text).as_bytes())?;
        } else {
            self.inner.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Ignores that the reader of a result has gone, as `head` does.
pub(crate) fn unless_gone(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_text_is_left_alone() {
        for (text, expected) in [
            (
                "Alder lives\n\tin Oxmere, près d’ici 🏡",
                "Alder lives\n\tin Oxmere, près d’ici 🏡",
            ),
            ("\u{1b}[2JZora", "\\u{1b}[2JZora"),
            ("Zora\rJorun", "Zora\\rJorun"),
            ("\u{7}\u{8}\u{7f}\0", "\\u{7}\\u{8}\\u{7f}\\u{0}"),
            // The same escape in one character, which some terminals follow.
            ("\u{9b}2J", "\\u{9b}2J"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }

    #[test]
    fn a_terminal_is_shown_what_a_pipe_is_given() {
        let mut out = out();
        out.is_terminal = true;
        // Counted as given, or `write!` would write the rest again.
        assert_eq!(out.write(b"\x1b[31m").ok(), Some(5));
    }

    #[test]
    fn what_stands_out_is_ours_and_what_others_wrote_stays_shown() {
        let line = Line::Error.styled("error:", " \u{1b}[2J: not found");
        assert_eq!(
            line,
            "\u{1b}[1m\u{1b}[31merror:\u{1b}[0m \\u{1b}[2J: not found\n"
        );
        assert_eq!(
            Line::Warning.styled("warning:", " odd"),
            "\u{1b}[33mwarning:\u{1b}[0m odd\n"
        );
        assert_eq!(
            Line::Note.styled("note:", " odd"),
            "\u{1b}[36mnote:\u{1b}[0m odd\n"
        );
        assert_eq!(Line::Say.styled("", "as it is"), "as it is\n");
    }

    #[test]
    fn warnings_and_errors_are_said_however_little_is() {
        let said = |kind: Line| {
            [Level::Quiet, Level::Usual, Level::Verbose].map(|level| level >= kind.level())
        };
        assert_eq!(said(Line::Error), [true, true, true]);
        assert_eq!(said(Line::Warning), [true, true, true]);
        assert_eq!(said(Line::Answer), [true, true, true]);
        assert_eq!(said(Line::Note), [false, true, true]);
        assert_eq!(said(Line::Say), [false, true, true]);
        assert_eq!(said(Line::Detail), [false, false, true]);
    }
}
