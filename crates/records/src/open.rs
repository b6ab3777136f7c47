//! A file, opened: what it is, decompressed and decoded.

use std::{
    fs::{File, Metadata},
    io::{self, BufReader, Cursor, Read, Seek},
    path::Path,
    time::SystemTime,
};

use flate2::bufread::MultiGzDecoder;

use crate::{
    Compression, FileKind, Form, RecordsError,
    error::{Fault, from_io},
    kind, refused,
    text::{Text, Utf16},
};

/// What is looked at to know what a file is. Archives of Office name their first
/// members within it.
const HEAD: usize = 1 << 13;

pub(crate) struct Opened {
    pub kind: FileKind,
    pub content: Content,
    pub stamp: Stamp,
}

pub(crate) enum Content {
    /// From the beginning, after a byte order mark.
    Text(Text),
    /// At the beginning.
    Parquet(File),
}

/// Opens a file. Of one that begins with a JSON object the form is
/// [`Form::JsonLines`], whatever the object turns out to be.
pub(crate) fn open(path: &Path) -> Result<Opened, RecordsError> {
    let read = |source| RecordsError::Read {
        path: path.to_owned(),
        source,
    };
    let not_read = |found: &str, remedy: &str| RecordsError::NotRead {
        path: path.to_owned(),
        found: found.to_owned(),
        remedy: remedy.to_owned(),
    };

    // Before it is opened: a named pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(read)?;
    if metadata.is_dir() {
        return Err(not_read("a directory", "name a file in it"));
    }
    if !metadata.is_file() {
        return Err(not_read(
            "neither a file nor a directory",
            "write the data to a file, which is read more than once",
        ));
    }
    if metadata.len() == 0 {
        return Err(RecordsError::Empty(path.to_owned()));
    }
    let mut file = File::open(path).map_err(read)?;
    let stamp = Stamp::of(&metadata);
    let head = head(&mut file).map_err(read)?;
    let ending = kind::ending(path);

    let compression = Compression::of(&head);
    let (head, rest): (Vec<u8>, Box<dyn Read>) = match compression {
        None => {
            if head.starts_with(b"PAR1") {
                file.rewind().map_err(read)?;
                let form = Form::Parquet;
                return Ok(Opened {
                    kind: FileKind { form, compression },
                    content: Content::Parquet(file),
                    stamp,
                });
            }
            (head, Box::new(Raw(file)))
        }
        Some(compression) => {
            file.rewind().map_err(read)?;
            let mut inner = decompressed(file, compression).map_err(read)?;
            let mut head = Vec::new();
            let begun = inner.by_ref().take(HEAD as u64).read_to_end(&mut head);
            // What is damaged later is found again where it is.
            begun.or_else(|error| {
                if head.is_empty() {
                    Err(from_io(path, 0, error))
                } else {
                    Ok(0)
                }
            })?;
            if head.starts_with(b"PAR1") {
                return Err(not_read(
                    "a Parquet file within gzip or zstd",
                    "decompress it: Parquet compresses within",
                ));
            }
            if Compression::of(&head).is_some() {
                return Err(not_read("compressed twice", "decompress it once"));
            }
            (head, inner)
        }
    };
    let size = compression.is_none().then_some(metadata.len());
    if let Some((found, remedy)) = refused::not_read(&ending, &head, size) {
        return Err(not_read(found, remedy));
    }
    if matches!(ending.as_str(), "parquet" | "pq") {
        return Err(not_read(
            "no Parquet file, although its name says so",
            "Parquet begins with the bytes `PAR1`: get the file again, or give it the ending of what it is",
        ));
    }

    let encoding = Encoding::of(&head);
    let start = decoded_head(&head, encoding);
    let mut whole = Cursor::new(head);
    whole.set_position(encoding.mark());
    let whole = whole.chain(rest);
    let text = match encoding {
        Encoding::Utf8 { .. } => Text::new(Box::new(whole)),
        Encoding::Utf16 { big_endian } => Text::new(Box::new(Utf16::new(whole, big_endian))),
    };
    let form = kind::form(&ending, &start);
    Ok(Opened {
        kind: FileKind { form, compression },
        content: Content::Text(text),
        stamp,
    })
}

/// Opens a file of text again.
pub(crate) fn text(path: &Path) -> Result<Text, RecordsError> {
    match open(path)?.content {
        Content::Text(text) => Ok(text),
        Content::Parquet(_) => Err(RecordsError::Changed(path.to_owned())),
    }
}

/// What tells whether a file is still the same.
pub(crate) struct Stamp(u64, Option<SystemTime>);

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self(metadata.len(), metadata.modified().ok())
    }

    /// # Errors
    ///
    /// The file is another than when it was opened.
    pub(crate) fn check(&self, path: &Path) -> Result<(), RecordsError> {
        let now = std::fs::metadata(path).map(|metadata| Self::of(&metadata));
        match now {
            Ok(now) if (now.0, now.1) == (self.0, self.1) => Ok(()),
            _ => Err(RecordsError::Changed(path.to_owned())),
        }
    }
}

fn head(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    reader.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// The file itself, whose errors are told from those of a decompressor.
struct Raw(File);

impl Read for Raw {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.0.read(target).map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                error
            } else {
                Fault::File(error).into()
            }
        })
    }
}

fn decompressed(file: File, compression: Compression) -> io::Result<Box<dyn Read>> {
    let raw = BufReader::with_capacity(1 << 17, Raw(file));
    let inner: Box<dyn Read> = match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(raw)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(raw)?),
    };
    Ok(Box::new(Decompressed {
        inner,
        compression,
        failed: None,
    }))
}

struct Decompressed {
    inner: Box<dyn Read>,
    compression: Compression,
    /// Why there is no more. A decompressor that failed may say anything when
    /// it is asked again.
    failed: Option<String>,
}

impl Read for Decompressed {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.failed.is_none() {
            let error = match self.inner.read(target) {
                Ok(n) => return Ok(n),
                Err(error) => error,
            };
            let ours = error
                .get_ref()
                .is_some_and(<dyn std::error::Error + Send + Sync>::is::<Fault>);
            if ours || error.kind() == io::ErrorKind::Interrupted {
                return Err(error);
            }
            self.failed = Some(if error.kind() == io::ErrorKind::UnexpectedEof {
                "the file ends too early".to_owned()
            } else {
                error.to_string()
            });
        }
        Err(Fault::Compressed {
            compression: self.compression,
            line: 1,
            reason: self.failed.clone().unwrap_or_default(),
        }
        .into())
    }
}

#[derive(Clone, Copy)]
enum Encoding {
    Utf8 { marked: bool },
    Utf16 { big_endian: bool },
}

impl Encoding {
    fn of(head: &[u8]) -> Self {
        if head.starts_with(b"\xff\xfe") {
            Self::Utf16 { big_endian: false }
        } else if head.starts_with(b"\xfe\xff") {
            Self::Utf16 { big_endian: true }
        } else {
            let marked = head.starts_with(b"\xef\xbb\xbf");
            Self::Utf8 { marked }
        }
    }

    /// The length of the byte order mark.
    fn mark(self) -> u64 {
        match self {
            Self::Utf8 { marked: false } => 0,
            Self::Utf8 { marked: true } => 3,
            Self::Utf16 { .. } => 2,
        }
    }
}

fn decoded_head(head: &[u8], encoding: Encoding) -> String {
    let bytes = &head[encoding.mark() as usize..];
    match encoding {
        Encoding::Utf8 { .. } => String::from_utf8_lossy(bytes).into_owned(),
        Encoding::Utf16 { big_endian } => {
            let mut text = Vec::new();
            // The last character may be cut, and faults are for the reader.
            let _ = Utf16::new(bytes, big_endian).read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        }
    }
}
