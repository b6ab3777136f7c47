//! The weight files of a checkpoint, memory-mapped: one, or several with an
//! index.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    fs::File,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::ModelError;

/// The name of a checkpoint's only weight file.
pub(crate) const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The memory-mapped weight files of a checkpoint.
pub(crate) struct Shards {
    files: Vec<(PathBuf, Mmap)>,
    /// Tensor name → index into `files`.
    location: BTreeMap<String, usize>,
}

impl Shards {
    pub(crate) fn open(directory: &Path) -> Result<Self, ModelError> {
        let index = directory.join(INDEX);
        let single = directory.join(SINGLE);
        let names = if single.exists() || !index.exists() {
            vec![SINGLE.to_owned()]
        } else {
            shard_names(&index)?
        };
        let mut files = Vec::with_capacity(names.len());
        let mut location = BTreeMap::new();
        for name in names {
            let path = directory.join(name);
            let mapped = map_file(&path)?;
            for tensor in parse(&path, &mapped)?.names() {
                location.insert(tensor.to_owned(), files.len());
            }
            files.push((path, mapped));
        }
        Ok(Self { files, location })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.location.keys().map(String::as_str)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.location.contains_key(name)
    }

    pub(crate) fn shape(&self, name: &str) -> Result<Option<Vec<usize>>, ModelError> {
        if !self.has(name) {
            return Ok(None);
        }
        Ok(Some(self.view(name)?.0.shape().to_vec()))
    }

    pub(crate) fn bytes(&self, name: &str) -> Result<&[u8], ModelError> {
        Ok(self.view(name)?.0.data())
    }

    pub(crate) fn view(
        &self,
        name: &str,
    ) -> Result<(safetensors::tensor::TensorView<'_>, &Path), ModelError> {
        let missing = |path: &Path| {
            ModelError::malformed(path, "checkpoint", &format!("`{name}` is missing"))
        };
        let (path, mapped) = self
            .location
            .get(name)
            .and_then(|&file| self.files.get(file))
            .ok_or_else(|| missing(Path::new(SINGLE)))?;
        let view = parse(path, mapped)?
            .tensor(name)
            .map_err(|_| missing(path))?;
        Ok((view, path))
    }

    /// Tells the system that a tensor's pages will not be read again; without
    /// that they count as this process's memory until the whole file is closed.
    pub(crate) fn release(&self, name: &str) {
        #[cfg(unix)]
        if let (Some(&file), Ok(bytes)) = (self.location.get(name), self.bytes(name)) {
            let mapped = &self.files[file].1;
            let start = bytes.as_ptr() as usize - mapped.as_ptr() as usize;
            let (start, length) = whole_pages(start, bytes.len());
            // SAFETY: the mapping is read-only and private to `Shards`; dropped
            // pages are read from the file again if they are ever needed.
            #[expect(unsafe_code, reason = "madvise(MADV_DONTNEED) has no safe form")]
            let released = unsafe {
                mapped.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length)
            };
            // Advice only: the data has been read, and the system may keep the pages.
            drop(released);
        }
        #[cfg(not(unix))]
        let _ = name;
    }
}

/// The part of a byte range that covers whole pages, as (start, length).
#[cfg(unix)]
fn whole_pages(start: usize, length: usize) -> (usize, usize) {
    const PAGE: usize = 4096;
    let first = start.next_multiple_of(PAGE);
    let last = (start + length) / PAGE * PAGE;
    (first, last.saturating_sub(first))
}

fn map_file(path: &Path) -> Result<Mmap, ModelError> {
    let file = File::open(path).map_err(|source| ModelError::io("opening", path, source))?;
    // SAFETY: as with every reader of mapped files, another process that cuts
    // the file short while it is read would crash this one; checkpoints are
    // written once, by renaming.
    #[expect(unsafe_code, reason = "mapping a file has no safe form")]
    let mapped = unsafe { Mmap::map(&file) };
    mapped.map_err(|source| ModelError::io("mapping", path, source))
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, ModelError> {
    SafeTensors::deserialize(bytes).map_err(|error| {
        let reason = format!(
            "{error}. Is the file complete? It has {} bytes",
            bytes.len()
        );
        ModelError::malformed(path, "safetensors file", &reason)
    })
}

fn shard_names(index: &Path) -> Result<Vec<String>, ModelError> {
    let bytes = fs::read(index).map_err(|source| ModelError::io("reading", index, source))?;
    let json: Value = serde_json::from_slice(&bytes)
        .map_err(|error| ModelError::malformed(index, "safetensors index", &error))?;
    let map = json
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| {
            ModelError::malformed(index, "safetensors index", &"`weight_map` is missing")
        })?;
    let names: BTreeSet<String> = map
        .values()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    Ok(names.into_iter().collect())
}
