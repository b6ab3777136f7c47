//! JSON values from a stream, one at a time, each parsed from memory: that is
//! several times as fast as `serde_json` is on a reader.

use std::io::{self, BufRead};

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;

use crate::{
    error::Fault,
    text::{Text, count_lines},
};

/// A text with a place in it, and a window of what follows.
pub(crate) struct Cursor {
    text: Text,
    window: Vec<u8>,
    /// The place, in the window.
    start: usize,
    ended: bool,
    /// The place in the file: its line from 1, and the bytes before it in that line.
    line: usize,
    column: usize,
    /// The most bytes that a value may have.
    limit: usize,
}

/// Why there is no value.
pub(crate) enum Broken {
    Io(io::Error),
    Json {
        line: usize,
        column: usize,
        reason: String,
    },
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Cursor {
    pub(crate) fn new(text: Text, limit: usize) -> Self {
        Self {
            text,
            window: Vec::new(),
            start: 0,
            ended: false,
            line: 1,
            column: 0,
            limit,
        }
    }

    /// The line of the place, from 1.
    pub(crate) fn line(&self) -> usize {
        self.line
    }

    /// Goes to the next byte that is no space, and says which. `None` at the end.
    pub(crate) fn peek(&mut self) -> io::Result<Option<u8>> {
        loop {
            let rest = &self.window[self.start..];
            let spaces = rest.iter().take_while(|byte| is_space(**byte)).count();
            let found = rest.get(spaces).copied();
            self.advance(spaces);
            if found.is_some() || !self.fill()? {
                return Ok(found);
            }
        }
    }

    /// Goes past a byte, if it is next.
    pub(crate) fn take(&mut self, byte: u8) -> io::Result<bool> {
        let there = self.peek()? == Some(byte);
        if there {
            self.advance(1);
        }
        Ok(there)
    }

    /// The next value.
    pub(crate) fn value<T: DeserializeOwned>(&mut self) -> Result<T, Broken> {
        self.peek()?;
        loop {
            let rest = &self.window[self.start..];
            let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<T>();
            let next = values.next();
            let n = values.byte_offset();
            match next {
                // A number may go on after the window.
                Some(Ok(value)) if n < rest.len() || self.ended => {
                    if n > self.limit {
                        return Err(self.too_long().into());
                    }
                    self.advance(n);
                    return Ok(value);
                }
                Some(Err(error)) if self.ended || !self.is_cut(&error) => {
                    return Err(self.broken(&error));
                }
                None if self.ended => return Err(self.expected("a value")),
                _ => {
                    self.fill()?;
                }
            }
        }
    }

    /// Goes past `close`, or past a comma to what follows it. Returns whether
    /// something does.
    pub(crate) fn more(&mut self, close: u8) -> Result<bool, Broken> {
        if self.take(close)? {
            return Ok(false);
        }
        let closing = char::from(close);
        if !self.take(b',')? {
            return Err(self.expected(&format!("`,` or `{closing}`")));
        }
        if self.peek()? == Some(close) {
            return Err(self.here("trailing comma".to_owned()));
        }
        Ok(true)
    }

    /// What is wrong here: something else was expected.
    pub(crate) fn expected(&self, what: &str) -> Broken {
        let found = self.window.get(self.start);
        self.here(match found {
            None => format!("the file ends where {what} was expected"),
            Some(_) => format!("expected {what}"),
        })
    }

    pub(crate) fn here(&self, reason: String) -> Broken {
        Broken::Json {
            line: self.line,
            column: self.column + 1,
            reason,
        }
    }

    /// Reads on: as much as there is in the window already, so that a long value
    /// is not begun too often. Returns whether there was more.
    fn fill(&mut self) -> io::Result<bool> {
        self.window.drain(..self.start);
        self.start = 0;
        let before = self.window.len();
        if before > self.limit {
            return Err(self.too_long());
        }
        while !self.ended && self.window.len() <= 2 * before && self.window.len() <= self.limit {
            let chunk = self.text.fill_buf()?;
            let n = chunk.len();
            self.window.extend_from_slice(chunk);
            self.text.consume(n);
            self.ended = n == 0;
        }
        Ok(self.window.len() > before)
    }

    fn too_long(&self) -> io::Error {
        Fault::TooLong {
            line: self.line,
            limit: self.limit,
        }
        .into()
    }

    fn advance(&mut self, n: usize) {
        let passed = &self.window[self.start..self.start + n];
        match passed.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => {
                self.line += count_lines(passed);
                self.column = n - last - 1;
            }
            None => self.column += n,
        }
        self.start += n;
    }

    /// Whether an error may come from the window's end: not all of it is said to
    /// be the end of the file, such as half of an escape.
    fn is_cut(&self, error: &serde_json::Error) -> bool {
        const LONGEST_ESCAPE: usize = 12;
        let rest = &self.window[self.start..];
        error.is_eof() || offset(rest, error) + LONGEST_ESCAPE >= rest.len()
    }

    fn broken(&self, error: &serde_json::Error) -> Broken {
        let rest = &self.window[self.start..];
        let unfinished = unfinished_line(rest, error);
        let error = unfinished.as_ref().unwrap_or(error);

        // serde_json appends the position within what it was given.
        let reason = error.to_string();
        let reason = reason
            .rsplit_once(" at line ")
            .map_or(reason.as_str(), |(reason, _)| reason);
        let (line, column) = match (error.line(), error.column()) {
            (1, column) => (1, self.column + column),
            // It stopped at a line break, which belongs to the line that it ends.
            (line, 0) => {
                let mut lines = rest.split(|byte| *byte == b'\n');
                let ended = lines.nth(line - 2).map_or(0, <[u8]>::len);
                (line - 1, ended + 1)
            }
            position => position,
        };
        let found = rest.get(offset(rest, error)).copied();
        Broken::Json {
            line: self.line + line - 1,
            column,
            reason: format!("{reason}{}", hint(error, reason, found)),
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\t' | b'\r')
}

/// Where in a text an error is: the byte at which the parser stopped.
fn offset(text: &[u8], error: &serde_json::Error) -> usize {
    let lines = text.split(|byte| *byte == b'\n');
    let before: usize = lines
        .take(error.line().saturating_sub(1))
        .map(|line| line.len() + 1)
        .sum();
    (before + error.column()).saturating_sub(1)
}

/// The error of the first line alone, if what it begins is not gone on with in
/// the second, where another value begins: then the first is wrong, not the next.
fn unfinished_line(text: &[u8], error: &serde_json::Error) -> Option<serde_json::Error> {
    if error.line() != 2 || error.is_eof() {
        return None;
    }
    let first = text.split(|byte| *byte == b'\n').next()?;
    let at = offset(text, error);
    let begins = error.column() == 0
        || (matches!(text.get(at), Some(b'{' | b'['))
            && text
                .get(first.len()..at)?
                .iter()
                .all(|byte| is_space(*byte)));
    let alone = serde_json::from_slice::<IgnoredAny>(first.trim_ascii_end()).err()?;
    (begins && alone.is_eof()).then_some(alone)
}

/// What people do that ends in such an error.
fn hint(error: &serde_json::Error, reason: &str, found: Option<u8>) -> &'static str {
    if error.classify() != Category::Syntax {
        return "";
    }
    match found {
        _ if reason.starts_with("control character") && error.column() == 0 => {
            "; a line break in a text is written \\n"
        }
        // What cut a text, or joined it with another, cut a character in two.
        _ if reason.ends_with("hex escape") => {
            "; is it half of a character, such as \\ud83d alone? Take it out, or write \\ufffd"
        }
        Some(b'N') => "; NaN and None are not JSON: write null, or leave the key out",
        Some(b'I') => "; Infinity is not JSON: write a number",
        Some(b'T' | b'F') => "; True and False are Python's: write it with `json.dumps`",
        Some(b'\'') => "; single quotes are Python's: write it with `json.dumps`",
        Some(b'<') => "; is it a web page?",
        Some(b',') => "; objects on lines of their own have no commas between them",
        Some(b'/' | b'#') => "; JSON has no comments",
        Some(0xEF) => {
            "; is it a byte order mark? Files that begin with one were joined: take it out"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::io::Read;

    use serde_json::Value;

    use super::*;

    /// Gives its bytes one at a time, so that every value is cut everywhere.
    struct Bytes(Vec<u8>);

    impl Read for Bytes {
        fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            target[0] = self.0.remove(0);
            Ok(1)
        }
    }

    #[test]
    fn values_cut_anywhere_are_whole() {
        let text = "12345 -1.5e3 \"\\ud83d\\ude00 é\"\n {\"a\": [true, null]}\n\n false[1]";
        let mut cursor = Cursor::new(Text::new(Box::new(Bytes(text.into()))), 100);
        let mut values = Vec::new();
        while cursor.peek().unwrap().is_some() {
            let line = cursor.line();
            match cursor.value::<Value>() {
                Ok(value) => values.push((line, value.to_string())),
                Err(Broken::Json { reason, .. }) => panic!("{reason}"),
                Err(Broken::Io(error)) => panic!("{error}"),
            }
        }
        let expected = [
            (1, "12345"),
            (1, "-1500.0"),
            (1, "\"😀 é\""),
            (2, "{\"a\":[true,null]}"),
            (4, "false"),
            (4, "[1]"),
        ];
        assert_eq!(values, expected.map(|(line, text)| (line, text.to_owned())));
    }
}
