//! Bytes to text: what is not text is found here, with its line, for all forms.

use std::io::{self, BufRead, Read};

use crate::error::Fault;

const CHUNK: usize = 1 << 18;

/// A reader that gives valid UTF-8 only: each chunk ends at the end of a
/// character.
pub(crate) struct Text {
    inner: Box<dyn Read>,
    buffer: Vec<u8>,
    /// In the buffer: where unread text begins, where valid text ends, where
    /// what has been read ends.
    start: usize,
    valid: usize,
    filled: usize,
    /// Line breaks before the buffer.
    n_lines: usize,
    ended: bool,
}

impl Text {
    pub(crate) fn new(inner: Box<dyn Read>) -> Self {
        Self {
            inner,
            buffer: vec![0; CHUNK],
            start: 0,
            valid: 0,
            filled: 0,
            n_lines: 0,
            ended: false,
        }
    }

    fn refill(&mut self) -> io::Result<()> {
        self.n_lines += count_lines(&self.buffer[..self.valid]);
        self.buffer.copy_within(self.valid..self.filled, 0);
        self.filled -= self.valid;
        (self.start, self.valid) = (0, 0);
        loop {
            if self.filled > 0 {
                match std::str::from_utf8(&self.buffer[..self.filled]) {
                    Ok(_) => self.valid = self.filled,
                    Err(error) => {
                        self.valid = error.valid_up_to();
                        // What comes before a bad byte is given first.
                        if self.valid == 0 && (error.error_len().is_some() || self.ended) {
                            let problem = "not valid UTF-8 (an older encoding such as Latin-1, or a damaged file); \
                                           save the file as UTF-8";
                            return Err(self.not_text(problem));
                        }
                    }
                }
            }
            if self.valid > 0 || self.ended {
                return Ok(());
            }
            match self.inner.read(&mut self.buffer[self.filled..]) {
                Ok(0) => self.ended = true,
                Ok(n) => self.filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.at_line(error)),
            }
        }
    }

    fn not_text(&self, problem: &str) -> io::Error {
        Fault::NotText {
            line: self.n_lines + 1,
            problem: problem.to_owned(),
        }
        .into()
    }

    /// Only here is known which line was reached.
    fn at_line(&self, error: io::Error) -> io::Error {
        match error.downcast::<Fault>() {
            Ok(Fault::Compressed {
                compression,
                reason,
                ..
            }) => Fault::Compressed {
                compression,
                line: self.n_lines + 1,
                reason,
            }
            .into(),
            Ok(Fault::NotText { problem, .. }) => self.not_text(&problem),
            Ok(fault) => fault.into(),
            Err(error) => error,
        }
    }
}

impl BufRead for Text {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.valid {
            self.refill()?;
        }
        Ok(&self.buffer[self.start..self.valid])
    }

    fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.valid);
    }
}

impl Read for Text {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let n = available.read(target)?;
        self.consume(n);
        Ok(n)
    }
}

// It takes a small part of the time of what follows; not worth a crate of its own.
#[allow(clippy::naive_bytecount)]
pub(crate) fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// Appends up to `limit` bytes.
pub(crate) fn take(
    reader: &mut impl BufRead,
    limit: usize,
    target: &mut Vec<u8>,
) -> io::Result<usize> {
    reader.by_ref().take(limit as u64).read_to_end(target)
}

/// UTF-16 to UTF-8.
pub(crate) struct Utf16<R> {
    inner: R,
    big_endian: bool,
    raw: Vec<u8>,
    /// Bytes of `raw` that are there already: half a unit.
    n_raw: usize,
    /// The first half of a pair.
    high: Option<u16>,
    text: Vec<u8>,
    given: usize,
    /// Comes after what is in `text`.
    fault: bool,
    ended: bool,
}

impl<R: Read> Utf16<R> {
    /// Of what follows the byte order mark.
    pub(crate) fn new(inner: R, big_endian: bool) -> Self {
        Self {
            inner,
            big_endian,
            raw: vec![0; CHUNK],
            n_raw: 0,
            high: None,
            text: Vec::new(),
            given: 0,
            fault: false,
            ended: false,
        }
    }

    fn refill(&mut self) -> io::Result<()> {
        self.text.clear();
        self.given = 0;
        let n = self.inner.read(&mut self.raw[self.n_raw..])?;
        if n == 0 {
            self.ended = true;
            self.fault = self.n_raw > 0 || self.high.is_some();
            return Ok(());
        }
        let n_raw = self.n_raw + n;
        let units = self.raw[..n_raw].chunks_exact(2).map(|pair| {
            let pair = [pair[0], pair[1]];
            if self.big_endian {
                u16::from_be_bytes(pair)
            } else {
                u16::from_le_bytes(pair)
            }
        });
        // A pair may begin in the chunk before and end in the next.
        let mut units: Vec<_> = self.high.take().into_iter().chain(units).collect();
        if units
            .last()
            .is_some_and(|unit| (0xD800..0xDC00).contains(unit))
        {
            self.high = units.pop();
        }
        let mut character = [0; 4];
        for decoded in char::decode_utf16(units) {
            let Ok(decoded) = decoded else {
                self.fault = true;
                break;
            };
            self.text
                .extend_from_slice(decoded.encode_utf8(&mut character).as_bytes());
        }
        if n_raw % 2 == 1 {
            self.raw[0] = self.raw[n_raw - 1];
        }
        self.n_raw = n_raw % 2;
        Ok(())
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        while self.given == self.text.len() {
            if self.fault {
                return Err(Fault::NotText {
                    line: 0,
                    problem: "not valid UTF-16, as which its byte order mark declares it; save the file as UTF-8"
                        .to_owned(),
                }
                .into());
            }
            if self.ended {
                return Ok(0);
            }
            self.refill()?;
        }
        let n = (&self.text[self.given..]).read(target)?;
        self.given += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Gives its bytes a few at a time, so that every character is cut somewhere.
    struct Few(Vec<u8>, usize);

    impl Read for Few {
        fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(target.len());
            target[..n].copy_from_slice(&self.0[..n]);
            self.0.drain(..n);
            Ok(n)
        }
    }

    const WORDS: &str = "Alder – Öxmere\nZora 🚀 Thornby\u{2028}Jorun\n";

    #[test]
    fn characters_across_chunks_are_whole() {
        for few in 1..6 {
            let mut text = Text::new(Box::new(Few(WORDS.as_bytes().to_vec(), few)));
            let mut all = String::new();
            loop {
                let chunk = text.fill_buf().unwrap();
                if chunk.is_empty() {
                    break;
                }
                all.push_str(std::str::from_utf8(chunk).unwrap());
                let n = chunk.len();
                text.consume(n);
            }
            assert_eq!(all, WORDS);
        }
    }

    #[test]
    fn utf16_is_decoded_across_chunks() {
        for few in 1..6 {
            for big in [false, true] {
                let bytes = WORDS.encode_utf16().flat_map(|unit| {
                    if big {
                        unit.to_be_bytes()
                    } else {
                        unit.to_le_bytes()
                    }
                });
                let mut decoded = String::new();
                Utf16::new(Few(bytes.collect(), few), big)
                    .read_to_string(&mut decoded)
                    .unwrap();
                assert_eq!(decoded, WORDS);
            }
        }
    }

    #[test]
    fn half_a_character_at_the_end_is_a_fault() {
        let mut text = Text::new(Box::new(Few(b"Alder\nOx\xc3".to_vec(), 4)));
        let error = text.read_to_end(&mut Vec::new()).unwrap_err();
        let fault = error.downcast::<Fault>().unwrap();
        assert!(matches!(fault, Fault::NotText { line: 2, .. }), "{fault}");

        for bytes in [&b"A\0B"[..], b"A\0\x3d\xd8", b"\x3d\xd8A\0"] {
            let mut text = Utf16::new(bytes, false);
            assert!(text.read_to_end(&mut Vec::new()).is_err(), "{bytes:?}");
        }
    }
}
