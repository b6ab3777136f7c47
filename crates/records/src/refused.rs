//! Files that are not read: what they are, and what to do.

const CONVERT: &str = "save it as CSV in UTF-8";
const ARROW: &str = "Arrow is not read: with Python's `datasets`, load_from_disk(…).to_parquet(\"train.parquet\"), \
                     or with pyarrow.feather and pandas, and name that file";
const UNPACK: &str = "unpack it, and name the files in it";
const DECOMPRESS: &str = "decompress it, or compress it with gzip or zstd instead";
const WEIGHTS: &str = "it holds a model's tensors, not records to train on";
const SERIAL: &str = "write the records to JSON Lines, CSV or Parquet";
const PICTURE: &str = "only text is trained on";
const DOCUMENT: &str = "save its text as .txt in UTF-8";
/// First bytes, what has them, and what to do.
const MAGIC: &[(&[u8], &str, &str)] = &[
    (b"ARROW1", "an Arrow file", ARROW),
    (b"FEA1", "a Feather file", ARROW),
    (b"PARE", "an encrypted Parquet file", "decrypt it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (b"BZh", "compressed with bzip2", DECOMPRESS),
    (b"\xfd7zXZ\x00", "compressed with xz", DECOMPRESS),
    (b"\x04\x22\x4d\x18", "compressed with LZ4", DECOMPRESS),
    (b"SQLite format 3\x00", "a SQLite database", SERIAL),
    (b"%PDF-", "a PDF document", DOCUMENT),
    (b"{\\rtf", "a document in Rich Text Format", DOCUMENT),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "a document of older Microsoft Office (.xls, .doc)",
        "save it as CSV in UTF-8 (a table) or as .txt in UTF-8 (a text)",
    ),
    (b"GGUF", "a GGUF file", WEIGHTS),
    (b"\x93NUMPY", "a NumPy array", SERIAL),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", SERIAL),
    (b"Obj\x01", "an Avro file", SERIAL),
    (b"ORC", "an ORC file", SERIAL),
    (b"\x89PNG\r\n\x1a\n", "a picture (PNG)", PICTURE),
    (b"\xff\xd8\xff", "a picture (JPEG)", PICTURE),
    (b"GIF8", "a picture (GIF)", PICTURE),
    (b"RIFF", "a sound, film or picture (RIFF)", PICTURE),
    (
        b"version https://git-lfs.github.com/spec/",
        "a pointer of Git LFS, not the data",
        "run `git lfs pull` where it was cloned, or download the file",
    ),
    (b"\xff\xfe\x00\x00", "text in UTF-32", "save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "text in UTF-32", "save it as UTF-8"),
];

/// What a file is that is not read, and what to do, by its first bytes. `size`
/// is the file's where it is known.
pub(crate) fn not_read(
    ending: &str,
    head: &[u8],
    size: Option<u64>,
) -> Option<(&'static str, &'static str)> {
    if let Some((_, found, remedy)) = MAGIC.iter().find(|(magic, ..)| {
        // "ORC" and "GIF8" are also how a text may begin.
        head.starts_with(magic) && (magic.len() > 4 || !is_text(head))
    }) {
        return Some((found, remedy));
    }
    let has = |words: &[u8]| head.windows(words.len()).any(|window| window == words);
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return Some(match ending {
            "xlsx" | "xlsm" | "ods" => ("an Excel or OpenDocument table", CONVERT),
            "docx" | "odt" => ("a word processor's document", DOCUMENT),
            _ if has(b"xl/") => ("an Excel table", CONVERT),
            _ if has(b"word/") => ("a word processor's document", DOCUMENT),
            _ => ("a zip archive", UNPACK),
        });
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some(("a tar archive", UNPACK));
    }
    // Arrow's streaming format, in which `datasets` saves: a continuation mark and a length.
    if head.starts_with(b"\xff\xff\xff\xff") && head.len() > 8 {
        return Some(("an Arrow stream, as `datasets` saves it", ARROW));
    }
    if head.first() == Some(&0x80) && head.get(1).is_some_and(|version| (2..=5).contains(version)) {
        return Some(("a pickle of Python", SERIAL));
    }
    if let (Some(length), Some(b'{')) = (head.first_chunk::<8>(), head.get(8)) {
        let length = u64::from_le_bytes(*length);
        if size.is_some_and(|size| length.saturating_add(8) <= size) {
            return Some(("a safetensors file", WEIGHTS));
        }
    }
    let marked = head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff");
    if !marked && head.contains(&0) {
        let zeros = |odd: usize| {
            let bytes = head.iter().skip(odd).step_by(2);
            bytes.filter(|&&byte| byte == 0).count() * 10 > head.len() * 4
        };
        return Some(if zeros(0) || zeros(1) {
            (
                "text in UTF-16 without a byte order mark",
                "save it as UTF-8",
            )
        } else {
            (
                "a binary file of unknown kind",
                "JSON Lines, JSON, CSV, TSV, Parquet and plain text are read",
            )
        });
    }
    let start = String::from_utf8_lossy(&head[..head.len().min(256)]).to_lowercase();
    let page = start.trim_start().trim_start_matches('\u{feff}');
    if (page.starts_with("<!doctype html") || page.starts_with("<html"))
        && crate::ENDINGS.contains(&ending)
        && !matches!(ending, "txt" | "md")
    {
        return Some((
            "a web page, not the data",
            "the download brought a page in their place: get the file itself",
        ));
    }
    None
}

/// Whether bytes may be the beginning of a text in UTF-8.
fn is_text(head: &[u8]) -> bool {
    let valid = match std::str::from_utf8(head) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    valid && !head.contains(&0)
}
