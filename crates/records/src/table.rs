//! CSV and TSV: a header, and rows of as many texts.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, BufRead, Read},
    rc::Rc,
};

use csv::{ReaderBuilder, StringRecord};

use crate::{
    Form, Halt, Out, RecordsError,
    error::{Fault, clipped, quoted},
    text::Text,
};

/// A name longer than this, in bytes, is no name: the header is missing.
const LONGEST_NAME: usize = 100;

pub(crate) fn read(mut text: Text, form: Form, out: &mut Out<'_>) -> Result<(), Halt> {
    let start = text.fill_buf().map_err(|error| out.fault(error))?;
    let separator = separator(start, form);
    let starts = Rc::default();
    let mut reader = ReaderBuilder::new()
        .delimiter(separator)
        .has_headers(false)
        // Rows of another length are found below, where there are words for it.
        .flexible(true)
        .from_reader(Strict {
            inner: text,
            separator,
            state: State::Between,
            starts: Rc::clone(&starts),
            line: 1,
            opened: 0,
            length: 0,
            limit: crate::LONGEST,
        });

    let mut row = StringRecord::new();
    if !next(&mut reader, &mut row, out)? {
        return Ok(());
    }
    let header = starts.borrow_mut().pop_front().unwrap_or(1);
    let names = names(&row, header, out)?;
    while next(&mut reader, &mut row, out)? {
        let line = starts.borrow_mut().pop_front();
        if row.len() != names.len() {
            let problem = format!(
                "the row has {}, but the header has {}: {}. A field that holds {} or a line break is put in double quotes",
                counted(row.len(), "field"),
                names.len(),
                quoted(names.iter().map(String::as_str)),
                words(separator),
            );
            let line = line.unwrap_or_default();
            return Err(malformed(line, problem, out));
        }
        let values = row.iter().map(Into::into);
        out.give(names.iter().cloned().zip(values).collect(), line)?;
    }
    Ok(())
}

fn next<R: Read>(
    reader: &mut csv::Reader<R>,
    row: &mut StringRecord,
    out: &Out<'_>,
) -> Result<bool, Halt> {
    reader.read_record(row).map_err(|error| {
        let line = error
            .position()
            .map_or(1, |position| position.line() as usize);
        match error.into_kind() {
            csv::ErrorKind::Io(error) => out.fault(error),
            // Nothing else can be: text is UTF-8 here, and lengths are not its affair.
            other => malformed(line, format!("{other:?}"), out),
        }
    })
}

fn malformed(line: usize, problem: String, out: &Out<'_>) -> Halt {
    RecordsError::Table {
        path: out.path(),
        line,
        problem,
    }
    .into()
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn words(separator: u8) -> &'static str {
    match separator {
        b'\t' => "a tab",
        b';' => "a semicolon",
        _ => "a comma",
    }
}

/// What separates the fields: of a comma, a semicolon (which spreadsheets write
/// where a comma is for decimals) and a tab, what is most often in the header.
fn separator(start: &[u8], form: Form) -> u8 {
    let mut counts = [(b',', 0), (b';', 0), (b'\t', 0)];
    if form == Form::Tsv {
        counts.reverse();
    }
    let mut within = false;
    for &byte in start {
        match byte {
            b'"' => within = !within,
            b'\n' | b'\r' if !within => break,
            _ if within => {}
            _ => {
                for (separator, count) in &mut counts {
                    *count += usize::from(*separator == byte);
                }
            }
        }
    }
    if form == Form::Tsv && counts[0].1 > 0 {
        return b'\t';
    }
    let mut best = counts[0];
    for other in counts {
        if other.1 > best.1 {
            best = other;
        }
    }
    best.0
}

fn names(header: &StringRecord, line: usize, out: &Out<'_>) -> Result<Vec<String>, Halt> {
    let refuse = |problem| Err(malformed(line, problem, out));
    let names: Vec<_> = header.iter().map(|name| name.trim().to_owned()).collect();
    for (i, name) in names.iter().enumerate() {
        if name.is_empty() {
            return refuse(format!(
                "column {} of the header has no name{}",
                i + 1,
                if i == 0 {
                    ": if it is the index of pandas, write it with `to_csv(…, index=False)`"
                } else {
                    ": name it, or take it out"
                }
            ));
        }
        if name.len() > LONGEST_NAME || name.contains('\n') {
            return refuse(format!(
                "the first line must be a header with the names of the columns, but its field {} is \"{}\": \
                 add a header such as `prompt,completion`",
                i + 1,
                clipped(name)
            ));
        }
        if names[..i].contains(name) {
            return refuse(format!(
                "the header has the name `{}` twice: rename one of the columns",
                clipped(name)
            ));
        }
    }
    Ok(names)
}

/// Passes bytes on, and looks after quotes: the parser takes a quote that is
/// never closed for the rest of the file, and joins what follows a closed one
/// with what was in it.
struct Strict {
    inner: Text,
    separator: u8,
    state: State,
    /// The lines on which records begin that the parser has not given yet. Its
    /// own are those of the line break before, and of blank lines.
    starts: Rc<RefCell<VecDeque<usize>>>,
    line: usize,
    /// The line of the last quote that was opened, and how long its field is.
    opened: usize,
    length: usize,
    limit: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Between records, where line breaks are skipped.
    Between,
    /// At the beginning of a field.
    Start,
    /// In a field without quotes, where a quote is a character like others.
    Bare,
    Quoted,
    /// After a quote in a quoted field: its end, or half of a doubled quote.
    Quote,
}

impl Strict {
    fn pass(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        for &byte in bytes {
            let breaks = byte == b'\n' || byte == b'\r';
            if self.state == State::Between && !breaks {
                self.starts.borrow_mut().push_back(self.line);
                self.state = State::Start;
            }
            let next = match (self.state, byte) {
                (State::Quoted, b'"') => State::Quote,
                (State::Quoted, _) => {
                    self.length += 1;
                    State::Quoted
                }
                (State::Quote, b'"') => State::Quoted,
                _ if breaks => State::Between,
                _ if byte == self.separator => State::Start,
                (State::Start, b'"') => {
                    (self.opened, self.length) = (self.line, 0);
                    State::Quoted
                }
                (State::Quote, _) => {
                    return Err(Fault::Table {
                        line: self.line,
                        problem: format!(
                            "text follows the quote that closes a field (opened in line {}); \
                             a quote within a quoted field is written twice (\"\")",
                            self.opened
                        ),
                    });
                }
                _ => State::Bare,
            };
            self.state = next;
            if byte == b'\n' {
                self.line += 1;
            }
        }
        if self.state == State::Quoted && self.length > self.limit {
            return Err(Fault::TooLong {
                line: self.opened,
                limit: self.limit,
            });
        }
        Ok(())
    }
}

impl Read for Strict {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(target)?;
        if n == 0 && self.state == State::Quoted {
            return Err(Fault::Table {
                line: self.opened,
                problem: "a quote is opened in this line and never closed".to_owned(),
            }
            .into());
        }
        self.pass(&target[..n])?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_separator_is_what_the_header_has_most_of() {
        for (header, form, expected) in [
            ("prompt,completion\na;b;c;d", Form::Csv, b','),
            ("prompt;completion\r\na,b,c,d", Form::Csv, b';'),
            ("prompt\tcompletion", Form::Csv, b'\t'),
            ("\"a;b;c\",completion", Form::Csv, b','),
            ("text", Form::Csv, b','),
            ("text", Form::Tsv, b'\t'),
            ("a,b,c\tcompletion", Form::Tsv, b'\t'),
            ("prompt,completion", Form::Tsv, b','),
        ] {
            assert_eq!(separator(header.as_bytes(), form), expected, "{header}");
        }
    }
}
