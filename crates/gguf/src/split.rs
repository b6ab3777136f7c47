//! A model that is split over several files, as `llama-gguf-split` does:
//! `NAME-00001-of-00003.gguf` with all metadata and the first tensors, and others
//! with tensors alone.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;

use crate::{GgufError, header::Header, metadata::Metadata, read::map};

/// Files of the largest model that anybody has split have some dozens of parts.
const MOST_PARTS: u64 = 1000;

/// The file and the others of its model, the one with the metadata first, and
/// their headers as one. Any of the files may be given.
#[expect(
    clippy::type_complexity,
    reason = "files and a header, taken apart at once"
)]
pub(crate) fn open(path: &Path) -> Result<(Vec<(PathBuf, Arc<Mmap>)>, Header), GgufError> {
    let mapped = Arc::new(map(path)?);
    let header = Header::parse(path, &mapped)?;
    let Some(count) = count(path, &mapped, &header)? else {
        return Ok((vec![(path.to_owned(), mapped)], header));
    };
    let names = names(path, count)?;
    let mut parts = Vec::with_capacity(names.len());
    let mut whole: Option<Header> = None;
    for (number, name) in names.into_iter().enumerate() {
        if !name.exists() {
            return Err(GgufError::part(
                path,
                format!(
                    "its model is split over {count} files, and {} is not beside it. Copy or download it too",
                    name.file_name().unwrap_or_default().display()
                ),
            ));
        }
        let mapped = Arc::new(map(&name)?);
        let mut header = Header::parse(&name, &mapped)?;
        let said = |key: &str| {
            let metadata = Metadata {
                path: &name,
                bytes: &mapped,
                header: &header,
            };
            metadata.size(key)
        };
        let (no, of) = (said("split.no")?, said("split.count")?);
        if no != Some(number as u64) || of != Some(count) {
            let reason = format!(
                "by its name it is file {} of {count}, but by its metadata it is none or another: are all files \
                 of one model, under their own names?",
                number + 1
            );
            return Err(GgufError::malformed(&name, reason));
        }
        header
            .tensors
            .values_mut()
            .for_each(|info| info.part = number);
        match &mut whole {
            None => whole = Some(header),
            Some(whole) => {
                for (tensor, info) in header.tensors {
                    if whole.tensors.insert(tensor.clone(), info).is_some() {
                        let reason =
                            format!("the tensor `{tensor}` is in another file of its model too");
                        return Err(GgufError::malformed(&name, reason));
                    }
                }
            }
        }
        parts.push((name, mapped));
    }
    let whole =
        whole.ok_or_else(|| GgufError::part(path, "it is split over no files".to_owned()))?;
    let metadata = Metadata {
        path: &parts[0].0,
        bytes: &parts[0].1,
        header: &whole,
    };
    let expected = metadata.size("split.tensors.count")?;
    if expected.is_some_and(|expected| expected != whole.tensors.len() as u64) {
        let reason = format!(
            "its model has {} tensors, but there are {} in its {count} files",
            expected.unwrap_or_default(),
            whole.tensors.len()
        );
        return Err(GgufError::malformed(&parts[0].0, reason));
    }
    Ok((parts, whole))
}

/// How many files the model is in; `None` if it is in this one.
fn count(path: &Path, bytes: &[u8], header: &Header) -> Result<Option<u64>, GgufError> {
    let metadata = Metadata {
        path,
        bytes,
        header,
    };
    let count = metadata.size("split.count")?.filter(|count| *count > 1);
    match count {
        Some(count) if count > MOST_PARTS => {
            let reason = format!("it says that its model is in {count} files, more than any is");
            Err(GgufError::malformed(path, reason))
        }
        count => Ok(count),
    }
}

/// The names of all files, by the name of one.
fn names(path: &Path, count: u64) -> Result<Vec<PathBuf>, GgufError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ending = format!("-of-{count:05}.gguf");
    let stem = name
        .strip_suffix(&ending)
        .and_then(|stem| stem.split_at_checked(stem.len().checked_sub(6)?))
        .filter(|(_, number)| {
            let digits = number.strip_prefix('-');
            digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        });
    let Some((stem, _)) = stem else {
        let reason = format!(
            "its model is split over {count} files, which are found by their names, and this one's does not end \
             in -00001{ending}: give all of them their names back"
        );
        return Err(GgufError::part(path, reason));
    };
    let all = 1..=count;
    Ok(all
        .map(|number| path.with_file_name(format!("{stem}-{number:05}{ending}")))
        .collect())
}
