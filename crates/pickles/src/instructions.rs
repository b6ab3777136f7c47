//! What a PyTorch file may make its reader hold, found before it is read.
//!
//! A pickle is a row of instructions of a few bytes each, most of which make an
//! object of about a hundred: in a zip archive, where a hundred megabytes of
//! them can be compressed to a hundred kilobytes, a small file could take
//! gigabytes. Here the instructions are counted, and nothing is made.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use zip::{CompressionMethod, ZipArchive, result::ZipError};

/// Instructions of one file. A tensor takes about forty, so that this is room
/// for twenty-five thousand of them; dense models have some hundreds.
const MOST_INSTRUCTIONS: u64 = 1_000_000;
/// Bytes of text and of whatever else stands in the instructions.
const MOST_BYTES: u64 = 64 << 20;

/// Why a file is not read.
pub(crate) enum Refusal {
    Io(io::Error),
    /// What is wrong with it.
    Malformed(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::cut_short(),
            _ => Self::Io(error),
        }
    }
}

impl Refusal {
    fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(reason.into())
    }

    fn cut_short() -> Self {
        Self::malformed("it ends within its description of the tensors. Is the file complete?")
    }
}

/// Refuses a file whose pickles would take more than a model's could.
pub(crate) fn check(path: &Path) -> Result<(), Refusal> {
    /// How far into the file its kind can be told.
    const OPENING: usize = 262;
    let mut opening = Vec::new();
    let mut file = BufReader::new(File::open(path)?);
    file.by_ref()
        .take(OPENING as u64)
        .read_to_end(&mut opening)?;
    let mut budget = Budget::default();
    if opening.starts_with(b"PK") {
        return archive(path, &mut budget);
    }
    if opening.get(257..) == Some(b"ustar") {
        return Err(Refusal::malformed(
            "it is an archive of before PyTorch 0.1.10 (2017), which is not read",
        ));
    }
    // Before PyTorch 1.6: a magic number, a version, the system, the tensors and the names of their
    // storages, each a pickle, and then the storages.
    let mut file = opening.chain(file);
    let n_pickles = if is_legacy(file.get_ref().0) { 5 } else { 1 };
    (0..n_pickles).try_for_each(|_| budget.pickle(&mut file))
}

/// Whether a file begins with the magic number, which stands in the first
/// pickle in one of two ways.
fn is_legacy(opening: &[u8]) -> bool {
    const BYTES: &[u8] = &[0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    const TEXT: &[u8] = b"119547037146038801333356";
    let start = &opening[..opening.len().min(64)];
    let has = |magic: &[u8]| start.windows(magic.len()).any(|part| part == magic);
    has(BYTES) || has(TEXT)
}

/// `torch.save` writes archives without compression, so that what an entry
/// takes is there in the file.
fn archive(path: &Path, budget: &mut Budget) -> Result<(), Refusal> {
    let failed = |error| match error {
        ZipError::Io(error) => Refusal::from(error),
        error => Refusal::malformed(format!("{error}. Is the file complete?")),
    };
    let mut archive = ZipArchive::new(BufReader::new(File::open(path)?)).map_err(failed)?;
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(failed)?;
        let name = entry.name().map_err(failed)?.into_owned();
        if entry.compression() != CompressionMethod::Stored {
            return Err(Refusal::Malformed(format!(
                "its entry `{name}` is compressed, which torch.save never does"
            )));
        }
        if name.ends_with("data.pkl") {
            budget.pickle(&mut BufReader::new(entry))?;
        }
    }
    Ok(())
}

/// What is left of what a file may take.
struct Budget {
    instructions: u64,
    bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            instructions: MOST_INSTRUCTIONS,
            bytes: MOST_BYTES,
        }
    }
}

/// What follows an instruction.
enum Operand {
    /// So many bytes.
    Bytes(u64),
    /// A length of so many bytes, and as many bytes as it says.
    Counted(usize),
    /// So many lines.
    Lines(usize),
}

/// The operand of each instruction of the protocols 0 to 5 (`pickletools.py`);
/// `None` for what is no instruction.
fn operand(instruction: u8) -> Option<Operand> {
    Some(match instruction {
        b'(' | b'.' | b'0' | b'1' | b'2' | b'N' | b'Q' | b'R' | b'a' | b'b' | b'd' | b'e'
        | b'l' | b'o' | b's' | b't' | b'u' | b'}' | b']' | b')' => Operand::Bytes(0),
        0x81 | 0x85..=0x89 | 0x8f..=0x94 | 0x97 | 0x98 => Operand::Bytes(0),
        b'K' | b'h' | b'q' | 0x80 | 0x82 => Operand::Bytes(1),
        b'M' | 0x83 => Operand::Bytes(2),
        b'J' | b'j' | b'r' | 0x84 => Operand::Bytes(4),
        b'G' | 0x95 => Operand::Bytes(8),
        b'U' | b'C' | 0x8a | 0x8c => Operand::Counted(1),
        b'T' | b'X' | b'B' | 0x8b => Operand::Counted(4),
        0x8d | 0x8e | 0x96 => Operand::Counted(8),
        b'F' | b'I' | b'L' | b'P' | b'S' | b'V' | b'g' | b'p' => Operand::Lines(1),
        b'c' | b'i' => Operand::Lines(2),
        _ => return None,
    })
}

impl Budget {
    /// Goes through one pickle, to its end.
    fn pickle(&mut self, pickle: &mut impl BufRead) -> Result<(), Refusal> {
        const STOP: u8 = b'.';
        loop {
            let [instruction] = read(pickle)?;
            self.instructions = self.instructions.checked_sub(1).ok_or_else(|| {
                Refusal::Malformed(format!(
                    "its description of the tensors has more than {MOST_INSTRUCTIONS} instructions, \
                     more than any model's"
                ))
            })?;
            let operand = operand(instruction).ok_or_else(|| {
                let reason = format!("it has 0x{instruction:02x} where an instruction is due");
                Refusal::Malformed(format!("{reason}. Is the file complete?"))
            })?;
            match operand {
                Operand::Bytes(n) => self.skip(pickle, n)?,
                Operand::Counted(width) => {
                    let mut length = [0; 8];
                    pickle.read_exact(&mut length[..width])?;
                    self.skip(pickle, u64::from_le_bytes(length))?;
                }
                Operand::Lines(n) => {
                    for _ in 0..n {
                        self.line(pickle)?;
                    }
                }
            }
            if instruction == STOP {
                return Ok(());
            }
        }
    }

    fn skip(&mut self, pickle: &mut impl BufRead, n: u64) -> Result<(), Refusal> {
        self.take(n)?;
        let skipped = io::copy(&mut pickle.take(n), &mut io::sink())?;
        if skipped < n {
            return Err(Refusal::cut_short());
        }
        Ok(())
    }

    fn line(&mut self, pickle: &mut impl BufRead) -> Result<(), Refusal> {
        let mut line = Vec::new();
        pickle.take(self.bytes + 1).read_until(b'\n', &mut line)?;
        self.take(line.len() as u64)?;
        if line.last() != Some(&b'\n') {
            return Err(Refusal::cut_short());
        }
        Ok(())
    }

    fn take(&mut self, n: u64) -> Result<(), Refusal> {
        self.bytes = self.bytes.checked_sub(n).ok_or_else(|| {
            Refusal::Malformed(format!(
                "its description of the tensors has more than {MOST_BYTES} bytes of text, more than any \
                 model's. Is the file complete?"
            ))
        })?;
        Ok(())
    }
}

fn read<const N: usize>(from: &mut impl Read) -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(pickle: &[u8]) -> Option<String> {
        match Budget::default().pickle(&mut { pickle }) {
            Ok(()) => None,
            Err(Refusal::Malformed(reason)) => Some(reason),
            Err(Refusal::Io(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn every_instruction_is_passed_over_with_its_operand() {
        // Protocol 4: an empty dictionary with one pair, in a frame.
        let pickle = b"\x80\x04\x95\x0f\0\0\0\0\0\0\0}\x94\x8c\x05Zora.\x94K\x01s.";
        assert_eq!(refused(pickle), None);
        // The protocols before: lines, lengths of four bytes, and what a line may hold.
        assert_eq!(
            refused(b"(ccollections\nOrderedDict\nq\0)RX\x02\0\0\0..I01\n."),
            None
        );
        assert_eq!(refused(b"\x8a\x02..\x8d\x01\0\0\0\0\0\0\0.."), None);
    }

    #[test]
    fn what_ends_early_or_is_no_instruction_is_refused() {
        for cut in [&b"}"[..], b"X\x09\0\0\0Zora", b"cposix\nsystem", b"J\0"] {
            let reason = refused(cut).unwrap();
            assert!(reason.contains("complete"), "{reason}");
        }
        let reason = refused(b"}\xff.").unwrap();
        assert!(reason.contains("0xff"), "{reason}");
    }

    #[test]
    fn there_is_an_end_to_objects_and_to_text() {
        let many = vec![b'}'; MOST_INSTRUCTIONS as usize + 1];
        let reason = refused(&many).unwrap();
        assert!(reason.contains("1000000 instructions"), "{reason}");
        let mut long = b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f".to_vec();
        long.extend(b"Oxmere");
        let reason = refused(&long).unwrap();
        assert!(reason.contains("bytes of text"), "{reason}");
    }
}
