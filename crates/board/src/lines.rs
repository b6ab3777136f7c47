//! The lines of a file that another process appends to.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom},
};

use crate::place::{Place, Stamp};

/// The longest line that is read; none that a run writes has a hundredth of it.
const MOST_LINE: u64 = 1 << 20;

/// So many bytes before the place that was read to are remembered.
const REMEMBERED: u64 = 512;

/// How far a file has been read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail {
    /// After the last whole line.
    offset: u64,
    seen: Option<Stamp>,
    /// The bytes before the offset: what was written there since is another file.
    before: Vec<u8>,
    /// Whether the line at the offset is one that is too long, of which the end is to
    /// come.
    is_skipping: bool,
}

/// What is new in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum New<'a> {
    /// It is not the file that was read so far, or was cut: all of it follows.
    Again,
    /// A whole line, without its break.
    Line(&'a [u8]),
}

impl Tail {
    /// Reads what has been added. A line that has no break yet stays for the next
    /// time; a file that is not there is an empty one.
    pub(crate) fn read(
        &mut self,
        place: &Place,
        name: &str,
        mut on: impl FnMut(New<'_>),
    ) -> io::Result<()> {
        let path = match place.file(name) {
            Ok((_, about)) if self.seen == Some(Stamp::of(&about)) => return Ok(()),
            Ok((path, _)) => path,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if self.offset > 0 {
                    on(New::Again);
                }
                *self = Self::default();
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut file = File::open(path)?;
        let seen = Stamp::of(&file.metadata()?);
        if self.offset > 0 && !self.continues(&mut file, seen)? {
            *self = Self::default();
            on(New::Again);
        }
        self.seen = Some(seen);
        file.seek(SeekFrom::Start(self.offset))?;
        let began = self.offset;
        let mut reader = BufReader::with_capacity(1 << 16, &mut file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let n = reader
                .by_ref()
                .take(MOST_LINE)
                .read_until(b'\n', &mut line)? as u64;
            let is_whole = line.last() == Some(&b'\n');
            if n == 0 || !is_whole && n < MOST_LINE {
                break;
            }
            self.offset += n;
            let was_skipping = std::mem::replace(&mut self.is_skipping, !is_whole);
            if is_whole && !was_skipping {
                on(New::Line(line.trim_ascii()));
            }
        }
        if self.offset > began {
            self.before = before(&mut file, self.offset)?;
        }
        Ok(())
    }

    /// Whether a file is the one that was read so far, with at most more behind it.
    fn continues(&self, file: &mut File, stamp: Stamp) -> io::Result<bool> {
        let is_same = self
            .seen
            .is_some_and(|seen| seen.identity == stamp.identity);
        Ok(is_same && stamp.length >= self.offset && before(file, self.offset)? == self.before)
    }
}

fn before(file: &mut File, offset: u64) -> io::Result<Vec<u8>> {
    let n = offset.min(REMEMBERED);
    file.seek(SeekFrom::Start(offset - n))?;
    let mut bytes = Vec::new();
    file.take(n).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, path::Path};

    use super::*;

    struct Growing {
        directory: tempfile::TempDir,
        tail: Tail,
    }

    impl Growing {
        fn new() -> Self {
            Self {
                directory: tempfile::tempdir().unwrap(),
                tail: Tail::default(),
            }
        }

        fn append(&self, text: &str) {
            let mut options = fs::OpenOptions::new();
            let path = self.directory.path().join("lines");
            let mut file = options.append(true).create(true).open(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        /// Lines as they are, `!` for a new beginning.
        fn read(&mut self) -> Vec<String> {
            let root = fs::canonicalize(self.directory.path()).unwrap();
            let place = Place::new(&root.as_path().into(), root);
            let mut all = Vec::new();
            self.tail
                .read(&place, "lines", |new| {
                    all.push(match new {
                        New::Again => "!".to_owned(),
                        New::Line(line) => String::from_utf8(line.to_owned()).unwrap(),
                    });
                })
                .unwrap();
            all
        }

        fn path(&self) -> &Path {
            self.directory.path()
        }
    }

    #[test]
    fn a_line_is_read_once_and_when_it_is_whole() {
        let mut growing = Growing::new();
        assert!(growing.read().is_empty());
        growing.append("one\ntw");
        assert_eq!(growing.read(), ["one"]);
        assert!(growing.read().is_empty());
        growing.append("o\nthree\n");
        assert_eq!(growing.read(), ["two", "three"]);
    }

    #[test]
    fn a_file_that_was_cut_is_read_again() {
        let mut growing = Growing::new();
        growing.append("one\ntwo\nthree\n");
        growing.read();
        fs::write(growing.path().join("lines"), "one\n").unwrap();
        assert_eq!(growing.read(), ["!", "one"]);
    }

    #[test]
    fn a_file_that_took_its_place_is_read_again_though_it_is_longer() {
        let mut growing = Growing::new();
        growing.append("one\ntwo\n");
        growing.read();
        let other = growing.path().join("other");
        fs::write(&other, "one\n2\nthree\n").unwrap();
        fs::rename(&other, growing.path().join("lines")).unwrap();
        assert_eq!(growing.read(), ["!", "one", "2", "three"]);
    }

    #[test]
    fn a_file_that_was_written_over_is_read_again() {
        let mut growing = Growing::new();
        growing.append("one\ntwo\n");
        growing.read();
        fs::write(growing.path().join("lines"), "one\nTWO\nthree\n").unwrap();
        assert_eq!(growing.read(), ["!", "one", "TWO", "three"]);
    }

    #[test]
    fn a_file_that_goes_is_an_empty_one() {
        let mut growing = Growing::new();
        growing.append("one\n");
        growing.read();
        fs::remove_file(growing.path().join("lines")).unwrap();
        assert_eq!(growing.read(), ["!"]);
        assert!(growing.read().is_empty());
    }

    #[test]
    fn a_line_without_an_end_is_left_out() {
        let mut growing = Growing::new();
        growing.append("one\n");
        growing.append(&"x".repeat(3 << 20));
        assert_eq!(growing.read(), ["one"]);
        growing.append("\ntwo\n");
        assert_eq!(growing.read(), ["two"]);
    }
}
