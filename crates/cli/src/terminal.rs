//! The one way to stderr and stdout.
//!
//! Much of what is printed comes from files that others wrote: tokens, keys,
//! names of tensors, generated text. Escape sequences in it could clear a
//! terminal, hide a line or rewrite what was said before. So what people read,
//! stderr and a stdout that is a terminal, has its control characters shown as
//! `\u{1b}`; a file or a pipe gets the bytes as they are.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether another process says everything.
static MUTE: AtomicBool = AtomicBool::new(false);

/// From here on, nothing is written: another rank speaks for this one.
pub(crate) fn mute() {
    MUTE.store(true, Ordering::Relaxed);
}

/// Writes a line to stderr, control characters shown as such. A closed stderr is
/// no reason to stop a run.
pub(crate) fn say(line: &str) {
    if !MUTE.load(Ordering::Relaxed) {
        say_anyway(line);
    }
}

/// The same of a rank that others should have spoken for, and cannot.
pub(crate) fn say_anyway(line: &str) {
    let _ = writeln!(io::stderr(), "{}", shown(line));
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
}

/// Stdout, for results.
pub(crate) fn out() -> Out {
    let inner = io::stdout();
    let is_terminal = inner.is_terminal();
    Out { inner, is_terminal }
}

impl Out {
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Writes a control sequence of our own.
    pub(crate) fn control(&mut self, sequence: &str) -> io::Result<()> {
        self.inner.write_all(sequence.as_bytes())
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if MUTE.load(Ordering::Relaxed) {
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
}
