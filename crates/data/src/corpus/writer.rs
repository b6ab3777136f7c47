//! Writes the bytes of a [`Store`] while its samples are made.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::PathBuf,
};

use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, tempfile_in};

use super::store::{BAD, CHECKSUM, CONTINUES, JUDGED, Layout, MAGIC, Store};
use crate::{Sample, cache::Key};

/// Enough that a file which is written sample by sample costs few calls of the
/// system.
const BUFFER: usize = 256 << 10;

/// Where a store is written to.
#[derive(Debug)]
pub(crate) enum Place {
    /// Nowhere: it stays in memory.
    Memory,
    /// A file without a name in this directory, gone with the process.
    Unnamed(PathBuf),
    /// A file of the cache, and the directory that it lies in.
    Cache(NamedTempFile, PathBuf),
}

/// What was written, whole.
pub(crate) enum Written {
    Memory(Store),
    Unnamed(File, Layout),
    Cache(NamedTempFile, Layout),
}

/// Takes samples one by one. Of those that go to a file, none is kept in memory.
pub(crate) struct Writer {
    /// The file itself, of which the tokens are the beginning.
    main: Hashed,
    bits: Spool,
    ends: Spool,
    /// From the first sample on that has weights.
    weights: Option<Spool>,
    directory: Option<PathBuf>,
    n_tokens: usize,
    n_samples: usize,
    /// Bits of the byte that is not full.
    pending: u8,
}

impl Writer {
    /// `key` goes into the file: zeros where it is kept under none.
    pub(crate) fn new(place: Place, key: &Key) -> io::Result<Self> {
        let (output, directory, is_checked) = match place {
            Place::Memory => (Output::Memory(Vec::new()), None, false),
            Place::Unnamed(directory) => {
                let file = tempfile_in(&directory)?;
                let output = Output::Unnamed(BufWriter::with_capacity(BUFFER, file));
                (output, Some(directory), false)
            }
            Place::Cache(file, directory) => {
                let output = Output::Cache(BufWriter::with_capacity(BUFFER, file));
                (output, Some(directory), true)
            }
        };
        let mut main = Hashed {
            output,
            hash: is_checked.then(Sha256::new),
        };
        main.write_all(MAGIC)?;
        main.write_all(key)?;
        Ok(Self {
            main,
            bits: Spool::new(directory.as_ref())?,
            ends: Spool::new(directory.as_ref())?,
            weights: None,
            directory,
            n_tokens: 0,
            n_samples: 0,
            pending: 0,
        })
    }

    /// `continues`: whether it is of the same record as the one before it.
    pub(crate) fn push(&mut self, sample: &Sample, continues: bool) -> io::Result<()> {
        if sample.weights.is_some() && self.weights.is_none() {
            let mut weights = Spool::new(self.directory.as_ref())?;
            for _ in 0..self.n_tokens {
                weights.write_all(&1_f32.to_le_bytes())?;
            }
            self.weights = Some(weights);
        }
        let mut bytes: Vec<u8> = Vec::with_capacity(4 * sample.len());
        bytes.extend(sample.tokens.iter().flat_map(|token| token.to_le_bytes()));
        self.main.write_all(&bytes)?;
        if let Some(spool) = &mut self.weights {
            bytes.clear();
            let weights = (0..sample.len()).map(|i| match &sample.weights {
                Some(weights) => weights.get(i).copied().unwrap_or(1.0),
                None => 1.0,
            });
            bytes.extend(weights.flat_map(f32::to_le_bytes));
            spool.write_all(&bytes)?;
        }
        bytes.clear();
        for i in 0..sample.len() {
            let trained = sample.trained.get(i).copied().unwrap_or(false);
            self.pending |= u8::from(trained) << (self.n_tokens % 8);
            self.n_tokens += 1;
            if self.n_tokens.is_multiple_of(8) {
                bytes.push(std::mem::take(&mut self.pending));
            }
        }
        self.bits.write_all(&bytes)?;
        let continues = if continues && self.n_samples > 0 {
            CONTINUES
        } else {
            0
        };
        let judged = match sample.preferred {
            None => 0,
            Some(true) => JUDGED,
            Some(false) => JUDGED | BAD,
        };
        self.n_samples += 1;
        let end = self.n_tokens as u64 | continues | judged;
        self.ends.write_all(&end.to_le_bytes())
    }

    /// Writes what comes after the tokens.
    pub(crate) fn finish(self, report: &[u8]) -> io::Result<Written> {
        let Self {
            mut main,
            mut bits,
            ends,
            weights,
            n_tokens,
            n_samples,
            pending,
            ..
        } = self;
        if !n_tokens.is_multiple_of(8) {
            bits.write_all(&[pending])?;
        }
        let has_weights = weights.is_some() && n_tokens > 0;
        let layout = Layout::new(n_tokens, n_samples, has_weights, report.len())
            .ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        bits.drain_into(&mut main)?;
        ends.drain_into(&mut main)?;
        if let Some(weights) = weights {
            weights.drain_into(&mut main)?;
        }
        main.write_all(report)?;
        main.write_all(&layout.footer())?;
        let checksum = main.hash.take().map_or([0; CHECKSUM], |hash| {
            let hash: Key = hash.finalize().into();
            hash
        });
        main.write_all(&checksum)?;
        Ok(match main.output {
            Output::Memory(bytes) => Written::Memory(Store::in_memory(bytes, layout)),
            Output::Unnamed(file) => Written::Unnamed(whole(file)?, layout),
            Output::Cache(file) => Written::Cache(whole(file)?, layout),
        })
    }
}

/// The file behind a buffer, with all of it written.
fn whole<W: Write>(file: BufWriter<W>) -> io::Result<W> {
    file.into_inner().map_err(io::IntoInnerError::into_error)
}

enum Output {
    Memory(Vec<u8>),
    Unnamed(BufWriter<File>),
    Cache(BufWriter<NamedTempFile>),
}

struct Hashed {
    output: Output,
    hash: Option<Sha256>,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.output {
            Output::Memory(all) => all.write_all(bytes)?,
            Output::Unnamed(file) => file.write_all(bytes)?,
            Output::Cache(file) => file.write_all(bytes)?,
        }
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.output {
            Output::Memory(_) => Ok(()),
            Output::Unnamed(file) => file.flush(),
            Output::Cache(file) => file.flush(),
        }
    }
}

/// A section that is written beside the tokens until they have ended.
enum Spool {
    Memory(Vec<u8>),
    File(BufWriter<File>),
}

impl Spool {
    fn new(directory: Option<&PathBuf>) -> io::Result<Self> {
        Ok(match directory {
            None => Self::Memory(Vec::new()),
            Some(directory) => {
                Self::File(BufWriter::with_capacity(BUFFER, tempfile_in(directory)?))
            }
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(all) => all.write_all(bytes),
            Self::File(file) => file.write_all(bytes),
        }
    }

    fn drain_into(self, output: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Memory(all) => output.write_all(&all),
            Self::File(file) => {
                let mut file = whole(file)?;
                file.seek(SeekFrom::Start(0))?;
                let mut buffer = vec![0; BUFFER];
                loop {
                    match file.read(&mut buffer)? {
                        0 => return Ok(()),
                        n => output.write_all(&buffer[..n])?,
                    }
                }
            }
        }
    }
}
