//! What a rendering may take. Templates come with models, and a model may be
//! anybody's.
//!
//! Each rendering has so much work and so many bytes, which all operations of a
//! template spend from. They grow with the conversation. What minijinja does
//! between them is counted by its own fuel.

use std::cell::Cell;

use minijinja::{Error, ErrorKind};

/// Instructions of a rendering. An instruction takes 30 to 50 ns on a machine that is
/// not slow, so that no template takes longer than about 3 s with them.
pub(super) const FUEL: u64 = 60_000_000;
/// Units of work of a rendering, each at most about 100 ns. With the instructions, the
/// worst templates take less than 5 s.
const WORK: u64 = 16_000_000;
/// What calls take beyond an instruction each, however little they do.
pub(super) const METHOD: u64 = 4;
pub(super) const FILTER: u64 = 8;
pub(super) const FORMAT: u64 = 24;
pub(super) const MACRO: u64 = 40;
/// Bytes of text that go for a unit of work.
const BYTES_PER_WORK: u64 = 256;
/// Bytes that a rendering may make, texts and lists together, and how many more
/// for each byte of the conversation.
const BYTES: u64 = 256 << 20;
const BYTES_PER_BYTE: u64 = 32;
/// How deep lists and maps may lie in each other.
pub(super) const DEPTH: u32 = 150;
/// The largest width, indentation or number of columns.
pub(super) const WIDTH: u64 = 10_000;
/// How deep macros and loops may call each other, in minijinja's measure of six a
/// call: a thread of 2 MiB has room for that.
pub(super) const RECURSION: usize = 400;

/// A bound that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    Work,
    Bytes,
    Depth,
    Width,
}

impl Bound {
    pub(super) fn words(self) -> String {
        match self {
            Self::Work => format!("it takes more than {} steps", limits().work),
            Self::Bytes => format!(
                "it makes more than {} MiB of text and lists",
                limits().bytes >> 20
            ),
            Self::Depth => format!("it puts lists or maps more than {DEPTH} deep into each other"),
            Self::Width => {
                format!("it asks for a width, an indentation or a number beyond {WIDTH}")
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Limits {
    work: u64,
    bytes: u64,
}

thread_local! {
    static LIMITS: Cell<Limits> = const { Cell::new(Limits { work: WORK, bytes: BYTES }) };
    static LEFT: Cell<Limits> = const { Cell::new(Limits { work: WORK, bytes: BYTES }) };
    static REACHED: Cell<Option<Bound>> = const { Cell::new(None) };
}

fn limits() -> Limits {
    LIMITS.get()
}

/// Begins a rendering on this thread of a conversation of so many bytes.
pub(super) fn begin(n_bytes: u64) {
    let limits = Limits {
        work: WORK.saturating_add(n_bytes.saturating_mul(16)),
        bytes: BYTES.saturating_add(n_bytes.saturating_mul(BYTES_PER_BYTE)),
    };
    LIMITS.set(limits);
    LEFT.set(limits);
    REACHED.set(None);
}

/// The bound that the rendering on this thread has reached.
pub(super) fn reached() -> Option<Bound> {
    REACHED.get()
}

/// An error that says that a bound is reached, which the rendering ends with.
pub(super) fn reach(bound: Bound) -> Error {
    REACHED.set(Some(bound));
    Error::new(ErrorKind::InvalidOperation, bound.words())
}

/// Takes from what is left to do.
pub(super) fn spend(work: u64) -> Result<(), Error> {
    let mut left = LEFT.get();
    match left.work.checked_sub(work) {
        Some(work) => {
            left.work = work;
            LEFT.set(left);
            Ok(())
        }
        None => Err(reach(Bound::Work)),
    }
}

/// Takes the work of reading so many bytes.
pub(super) fn read(bytes: u64) -> Result<(), Error> {
    spend(1 + bytes / BYTES_PER_WORK)
}

/// Takes the work and the memory of making so many bytes.
pub(super) fn make(bytes: u64) -> Result<(), Error> {
    read(bytes)?;
    let mut left = LEFT.get();
    match left.bytes.checked_sub(bytes) {
        Some(bytes) => {
            left.bytes = bytes;
            LEFT.set(left);
            Ok(())
        }
        None => Err(reach(Bound::Bytes)),
    }
}

/// Refuses a size that no template needs.
pub(super) fn width(width: u64) -> Result<(), Error> {
    if width > WIDTH {
        return Err(reach(Bound::Width));
    }
    Ok(())
}

/// Whether one value may be so large: no larger than all that a rendering makes.
pub(super) fn size(size: u64) -> Result<(), Error> {
    if size > limits().bytes {
        return Err(reach(Bound::Bytes));
    }
    Ok(())
}
