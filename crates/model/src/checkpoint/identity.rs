//! Telling one checkpoint's weights from another's without reading them all.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use olora_files::Fnv1a;

use super::weight_files;
use crate::ModelError;

const BLOCK: usize = 4096;
const STRIDE: usize = 1 << 20;

/// Calls `on` with what tells a checkpoint's weights from others: the sizes of
/// its files and one block in each mebibyte.
///
/// # Errors
///
/// As [`weight_files`], and [`ModelError::Io`].
pub fn sample_weights(path: &Path, on: &mut dyn FnMut(&[u8])) -> Result<(), ModelError> {
    for file in weight_files(path)? {
        let failed = |source| ModelError::io("reading", &file, source);
        let mut opened = File::open(&file).map_err(failed)?;
        let length = opened.metadata().map_err(failed)?.len();
        on(&length.to_le_bytes());
        sample(&mut opened, length, on).map_err(failed)?;
    }
    Ok(())
}

/// One block in each mebibyte of `length` bytes. A single `read` may bring less
/// than there is, and then a checkpoint would not be the same twice.
fn sample(file: &mut (impl Read + Seek), length: u64, on: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut block = Vec::with_capacity(BLOCK);
    for start in (0..length).step_by(STRIDE) {
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        on(&block);
    }
    Ok(())
}

/// 64-bit FNV-1a over [`sample_weights`], in hexadecimal: what an adapter keeps
/// of its base's weights.
///
/// # Errors
///
/// As [`sample_weights`].
pub fn weights_fingerprint(path: &Path) -> Result<String, ModelError> {
    let mut hash = Fnv1a::default();
    sample_weights(path, &mut |bytes| hash.add(bytes))?;
    Ok(format!("{:016x}", hash.value()))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Brings up to 100 bytes at a time, and is interrupted before each.
    struct Slow {
        bytes: Cursor<Vec<u8>>,
        interrupted: bool,
    }

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.interrupted = !self.interrupted;
            if self.interrupted {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let length = buffer.len().min(100);
            self.bytes.read(&mut buffer[..length])
        }
    }

    impl Seek for Slow {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.bytes.seek(to)
        }
    }

    fn sampled(mut file: impl Read + Seek, length: u64) -> Vec<Vec<u8>> {
        let mut blocks = Vec::new();
        sample(&mut file, length, &mut |block| blocks.push(block.to_vec())).unwrap();
        blocks
    }

    #[test]
    fn short_reads_change_nothing() {
        // Two whole blocks, and what is left of a third at the end.
        let bytes: Vec<u8> = (0..2 * STRIDE + 1234).map(|i| (i % 251) as u8).collect();
        let length = bytes.len() as u64;
        let slow = Slow {
            bytes: Cursor::new(bytes.clone()),
            interrupted: false,
        };
        let slow = sampled(slow, length);
        assert_eq!(
            slow.iter().map(Vec::len).collect::<Vec<_>>(),
            [BLOCK, BLOCK, 1234]
        );
        assert!(slow == sampled(Cursor::new(&bytes), length));
        assert!(slow[1] == bytes[STRIDE..][..BLOCK]);
    }

    /// Adapters and runs that were written before hold it.
    #[test]
    fn a_fingerprint_stays_what_it_was() {
        let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes/quickstart/base");
        assert_eq!(
            weights_fingerprint(Path::new(base)).unwrap(),
            "bc4bf297854e7040"
        );
    }
}
