//! A file of the cache, checked before it is believed.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use sha2::{Digest, Sha256};

use super::Key;
use crate::{
    corpus::store::{CHECKSUM, FOOTER, Layout, MAGIC, Store},
    encode::ReadReport,
};

/// Bytes that are hashed at once.
const BUFFER: usize = 1 << 20;

/// The samples in a file, and what was reported of them. `None` for anything but
/// what was written whole under the same key. Sizes are held against the file's
/// before anything is read by them, and the file is read once, in pieces.
pub(super) fn open(mut file: File, key: &Key) -> Option<(Store, ReadReport)> {
    let layout = check(&mut file, key).ok().flatten()?;
    let store = Store::mapped(file, layout).ok()?;
    let report = serde_json::from_slice(store.report()).ok()?;
    store.is_sound().then_some((store, report))
}

fn check(file: &mut File, key: &Key) -> io::Result<Option<Layout>> {
    let n_bytes = file.metadata()?.len();
    let mut beginning = [0; 40];
    file.read_exact(&mut beginning)?;
    if !beginning.starts_with(MAGIC) || !beginning.ends_with(key) {
        return Ok(None);
    }
    let mut footer = [0; FOOTER];
    let mut checksum = [0; CHECKSUM];
    file.seek(SeekFrom::End(-((FOOTER + CHECKSUM) as i64)))?;
    file.read_exact(&mut footer)?;
    file.read_exact(&mut checksum)?;
    let Some(layout) = Layout::parse(&footer, n_bytes) else {
        return Ok(None);
    };
    file.seek(SeekFrom::Start(0))?;
    let mut rest = Read::take(&mut *file, n_bytes - CHECKSUM as u64);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match rest.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok((hash.finalize().as_slice() == checksum).then_some(layout))
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use tempfile::{NamedTempFile, TempDir, tempfile};

    use super::*;
    use crate::{
        Corpus, Format, Sample,
        corpus::writer::{Place, Writer, Written},
    };

    const KEY: Key = [7; 32];

    fn samples() -> Vec<Sample> {
        let sample = |tokens: &[u32], trained: &[u8]| {
            let trained = trained.iter().map(|&t| t == 1).collect();
            Sample::new(tokens.to_vec(), trained)
        };
        vec![
            sample(&[5, 6, u32::MAX], &[0, 1, 1]),
            sample(&[], &[]),
            Sample {
                weights: Some(vec![1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 3.0]),
                ..sample(&[1, 2, 3, 4, 5, 6, 7], &[0, 0, 0, 1, 0, 0, 1])
            },
        ]
    }

    fn report() -> ReadReport {
        ReadReport {
            n_records: 3,
            n_empty: 1,
            longest: 7,
            ..ReadReport::new(Format::ShareGpt)
        }
    }

    fn bytes(samples: &[Sample]) -> Vec<u8> {
        let dir = TempDir::new().unwrap();
        let file = NamedTempFile::new_in(&dir).unwrap();
        let place = Place::Cache(file, dir.path().to_owned());
        let mut writer = Writer::new(place, &KEY).unwrap();
        for sample in samples {
            writer.push(sample, false).unwrap();
        }
        let report = serde_json::to_vec(&report()).unwrap();
        let Written::Cache(file, _) = writer.finish(&report).unwrap() else {
            panic!("it was to be a file of the cache");
        };
        fs::read(file.path()).unwrap()
    }

    fn read(bytes: &[u8], key: &Key) -> Option<(Corpus, ReadReport)> {
        let mut file = tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let (store, report) = open(file, key)?;
        let whole = crate::corpus::Cut::Each {
            max_length: usize::MAX,
        };
        let (corpus, _) = Corpus::of(store.into(), whole, false);
        Some((corpus, report))
    }

    /// With a checksum that is right, as of a file that was made wrong.
    fn sealed(mut body: Vec<u8>) -> Vec<u8> {
        let checksum = Sha256::digest(&body);
        body.extend_from_slice(&checksum);
        body
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let (corpus, found) = read(&bytes(&samples()), &KEY).unwrap();
        let trained = Corpus::from(samples()).select(|i| i != 1);
        assert_eq!((corpus, found), (trained, report()));
        let (corpus, found) = read(&bytes(&[]), &KEY).unwrap();
        assert!(corpus.is_empty());
        assert_eq!(found, report());
    }

    #[test]
    fn one_bit_or_byte_off_is_nothing() {
        let bytes = bytes(&samples());
        for i in 0..bytes.len() {
            assert_eq!(read(&bytes[..i], &KEY), None, "cut at {i}");
            let mut flipped = bytes.clone();
            flipped[i] ^= 1;
            assert_eq!(read(&flipped, &KEY), None, "flipped at {i}");
        }
        assert_eq!(read(&[bytes, vec![0]].concat(), &KEY), None);
    }

    #[test]
    fn another_files_samples_are_not_taken() {
        assert_eq!(read(&bytes(&samples()), &[8; 32]), None);
    }

    #[test]
    fn sizes_that_do_not_fit_are_nothing_even_under_a_right_checksum() {
        let bytes = bytes(&samples());
        let body = &bytes[..bytes.len() - CHECKSUM];
        assert!(read(&sealed(body.to_vec()), &KEY).is_some());
        // The four sizes, and where the first sample ends: behind ten tokens and their bits.
        let sizes = body.len() - FOOTER;
        for at in [sizes, sizes + 8, sizes + 16, sizes + 24, 40 + 40 + 2] {
            for wrong in [[0xff; 4], [0; 4], [1, 0, 0, 0]] {
                let mut body = body.to_vec();
                if body[at..at + 4] == wrong {
                    continue;
                }
                body[at..at + 4].copy_from_slice(&wrong);
                let read = read(&sealed(body), &KEY);
                // A sample may end early: then the next is longer, and all is within the tokens.
                assert!(read.is_none() || at == 82, "{wrong:?} at {at}");
            }
        }
        for length in 0..body.len() {
            assert_eq!(read(&sealed(body[..length].to_vec()), &KEY), None);
        }
    }
}
