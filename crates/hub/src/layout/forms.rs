//! Which of the matched files are of a form that is read.

use std::collections::BTreeMap;

/// The form of a file, by one of the endings of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Csv,
    Json,
    Parquet,
    Text,
    /// One that is not read.
    Other(&'static str),
}

impl Form {
    fn of(end: &str) -> Option<Self> {
        Some(match end {
            "csv" | "tsv" => Self::Csv,
            "json" | "jsonl" | "ndjson" => Self::Json,
            "parquet" | "geoparquet" | "gpq" => Self::Parquet,
            "txt" => Self::Text,
            "arrow" => Self::Other("Arrow files"),
            "zip" => Self::Other("zip archives"),
            "tar" => Self::Other("tar archives"),
            "xml" => Self::Other("XML"),
            "h5" | "hdf5" => Self::Other("HDF5"),
            "conll" | "conllu" => Self::Other("CoNLL tables"),
            "lance" => Self::Other("Lance files"),
            "pdf" => Self::Other("PDF documents"),
            "jpg" | "jpeg" | "png" | "gif" | "webp" | "bmp" | "tif" | "tiff" | "ppm" | "pgm"
            | "psd" | "tga" | "jp2" | "ico" => Self::Other("images"),
            "wav" | "mp3" | "flac" | "ogg" | "opus" | "aiff" | "au" | "wma" | "3gp" => {
                Self::Other("sounds")
            }
            "mp4" | "mkv" | "avi" | "mov" | "mpeg" | "mpg" | "webm" => Self::Other("films"),
            _ => return None,
        })
    }

    fn word(self) -> &'static str {
        match self {
            Self::Csv => "CSV or TSV",
            Self::Json => "JSON",
            Self::Parquet => "Parquet",
            Self::Text => "text",
            Self::Other(word) => word,
        }
    }
}

/// The endings of a name, from the first dot on.
fn endings(file: &str) -> impl Iterator<Item = &str> {
    let name = file.rsplit('/').next().unwrap_or_default();
    name.split('.').skip(1)
}

/// How a file can be used among those of one form.
enum Fit {
    Reads,
    /// It is of another form, or of none.
    Foreign,
    /// It is of this form, in a wrapping that is not read.
    Wrapped,
}

fn fit(file: &str, form: Form) -> Fit {
    const UNPACKED: [&str; 4] = ["gz", "gzip", "zst", "zstd"];
    const PACKED: [&str; 6] = ["bz2", "xz", "lz4", "zip", "7z", "lzma"];
    let ends: Vec<_> = endings(file).collect();
    let has = |end: &str| Form::of(end) == Some(form);
    match ends[..] {
        [.., last] if has(last) => Fit::Reads,
        [.., form, last] if has(form) && UNPACKED.contains(&last) => {
            // A Parquet file is packed inside.
            if Form::of(form) == Some(Form::Parquet) {
                Fit::Wrapped
            } else {
                Fit::Reads
            }
        }
        [.., form, last] if has(form) && PACKED.contains(&last) => Fit::Wrapped,
        [.., "zip"] => Fit::Wrapped,
        _ => Fit::Foreign,
    }
}

/// Those of the files that are of the form that most have, as `datasets`
/// counts: each ending of each name, files called `metadata` last.
pub(super) fn readable(
    matched: &[(String, bool)],
    split: &str,
    notes: &mut Vec<String>,
) -> Result<Vec<String>, String> {
    // `.CSV` is not data for `datasets`, which would find another form or none.
    let known: Vec<_> = matched
        .iter()
        .filter(|(file, _)| endings(file).any(|end| Form::of(end).is_some()))
        .collect();
    let mut counts: BTreeMap<(&str, bool), usize> = BTreeMap::new();
    for (file, _) in &known {
        let name = file.rsplit('/').next().unwrap_or_default();
        let metadata = ["metadata.csv", "metadata.jsonl", "metadata.parquet"].contains(&name);
        for end in endings(file) {
            *counts.entry((end, metadata)).or_default() += 1;
        }
    }
    let mut ranked: Vec<_> = counts.into_iter().collect();
    ranked.sort_unstable_by_key(|((end, metadata), count)| {
        let preferred = ["csv", "json", "jsonl", "arrow", "lance", "parquet"];
        let place = preferred.iter().position(|known| known == end);
        (!metadata, *count, place.map_or(0, |place| place + 1), *end)
    });
    let form = ranked.iter().rev().find_map(|((end, _), _)| Form::of(end));
    let form = match form {
        Some(Form::Other(word)) => return Err(format!("its split `{split}` holds {word}")),
        Some(form) => form,
        None if matched.is_empty() => {
            return Err(format!(
                "no file matches the patterns of its split `{split}`"
            ));
        }
        None => {
            let names: Vec<_> = matched.iter().take(5).map(|(file, _)| file).collect();
            return Err(format!(
                "the files of its split `{split}` are of no known form ({}{})",
                names
                    .iter()
                    .map(|name| format!("`{name}`"))
                    .collect::<Vec<_>>()
                    .join(", "),
                if matched.len() > names.len() {
                    " and others"
                } else {
                    ""
                }
            ));
        }
    };
    let mut files = Vec::new();
    let mut left_out = Vec::new();
    for (file, named) in matched {
        let alone = endings(file).last().and_then(Form::of);
        match fit(file, form) {
            Fit::Reads => files.push(file.clone()),
            Fit::Wrapped => return Err(format!("`{file}` is packed in a way that is not read")),
            // One that the description names is read as what it is.
            Fit::Foreign if *named => match alone {
                Some(other) if !matches!(other, Form::Other(_)) => files.push(file.clone()),
                _ => {
                    return Err(format!(
                        "its description names `{file}`, which is of no form that is read"
                    ));
                }
            },
            // What is no data at all goes without saying, such as a licence.
            Fit::Foreign if endings(file).any(|end| Form::of(end).is_some()) => {
                left_out.push(file);
            }
            Fit::Foreign => {}
        }
    }
    if files.is_empty() {
        return Err(format!(
            "the files of its split `{split}` are of no known form"
        ));
    }
    if let [first, rest @ ..] = &left_out[..] {
        let others = match rest.len() {
            0 => String::new(),
            1 => " and another file".to_owned(),
            more => format!(" and {more} other files"),
        };
        notes.push(format!(
            "`{first}`{others} of split `{split}` are left out, since most of its files are {}",
            form.word()
        ));
    }
    Ok(files)
}
