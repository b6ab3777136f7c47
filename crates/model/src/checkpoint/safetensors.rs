//! Weights in safetensors files, memory-mapped: one, or several with an index.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;
use olora_adapter::check_header;
use olora_files::refuse_pointer;
use olora_packed::Bytes;
use safetensors::SafeTensors;

use super::Dtype;
use crate::ModelError;

const KIND: &str = "safetensors file";

/// The memory-mapped weight files of a checkpoint.
pub(super) struct Shards {
    files: Vec<(PathBuf, Arc<Mmap>)>,
    tensors: BTreeMap<String, Entry>,
}

/// A tensor as the file has it.
pub(super) struct Raw<'a> {
    pub(super) dtype: safetensors::Dtype,
    pub(super) shape: &'a [usize],
    pub(super) bytes: &'a [u8],
}

/// Where a tensor is, and as what.
struct Entry {
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Shards {
    /// Maps the files and reads their headers.
    pub(super) fn open(paths: Vec<PathBuf>) -> Result<Self, ModelError> {
        let mut files = Vec::with_capacity(paths.len());
        let mut tensors = BTreeMap::new();
        for path in paths {
            let mapped = Arc::new(map_file(&path)?);
            for (name, view) in parse(&path, &mapped)?.iter() {
                let start = view.data().as_ptr() as usize - mapped.as_ptr() as usize;
                let entry = Entry {
                    file: files.len(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    bytes: start..start + view.data().len(),
                };
                if let Some(other) = tensors.insert(name.to_owned(), entry) {
                    let (other, _): &(PathBuf, Arc<Mmap>) = &files[other.file];
                    let reason = format!("`{name}` is in it and in {} too", other.display());
                    return Err(ModelError::malformed(&path, KIND, &reason));
                }
            }
            files.push((path, mapped));
        }
        unstack(&mut tensors);
        Ok(Self { files, tensors })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The file that a tensor is in.
    pub(super) fn file(&self, name: &str) -> &Path {
        let entry = self.tensors.get(name);
        entry.map_or(Path::new(""), |entry| &self.files[entry.file].0)
    }

    /// The same, and for a tensor that is missing the first file.
    pub(super) fn file_or_first(&self, name: &str) -> &Path {
        let first = self.files.first().map_or(Path::new(""), |file| &file.0);
        let entry = self.tensors.get(name);
        entry.map_or(first, |entry| &self.files[entry.file].0)
    }

    /// The tensor's bytes and their format.
    pub(super) fn read(&self, name: &str) -> Result<(&[u8], Dtype), ModelError> {
        let entry = self.tensors.get(name).ok_or_else(|| ModelError::Missing {
            tensor: name.to_owned(),
        })?;
        let (path, mapped) = &self.files[entry.file];
        let format = match entry.dtype {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            safetensors::Dtype::F16 => Dtype::F16,
            other => {
                return Err(ModelError::malformed(
                    path,
                    "checkpoint",
                    &format!("`{name}` has dtype {other:?}; expected F32, F16 or BF16"),
                ));
            }
        };
        Ok((&mapped[entry.bytes.clone()], format))
    }

    /// A tensor in whatever format; `None` if there is none of this name.
    pub(super) fn raw(&self, name: &str) -> Option<Raw<'_>> {
        let entry = self.tensors.get(name)?;
        Some(Raw {
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: &self.files[entry.file].1[entry.bytes.clone()],
        })
    }

    /// A tensor's bytes as they lie in the file, which stays mapped for them.
    pub(super) fn bytes(&self, name: &str) -> Result<Bytes, ModelError> {
        let entry = self.tensors.get(name).ok_or_else(|| ModelError::Missing {
            tensor: name.to_owned(),
        })?;
        let (path, mapped) = &self.files[entry.file];
        Bytes::part(mapped.clone(), entry.bytes.clone()).map_err(|source| ModelError::Packed {
            tensor: name.to_owned(),
            path: path.clone(),
            source,
        })
    }

    /// Tells the system that a tensor's pages will not be read again; without
    /// that they count as this process's memory until the whole file is closed.
    pub(super) fn release(&self, name: &str) {
        #[cfg(unix)]
        if let Some(entry) = self.tensors.get(name) {
            let mapped = &self.files[entry.file].1;
            let (start, length) = whole_pages(entry.bytes.start, entry.bytes.len());
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

/// Experts of a block beyond which a tensor is none of theirs.
const MOST_EXPERTS: usize = 4096;

/// Lists the matrices of experts that lie in one tensor, as transformers 5 has
/// them in memory and writes them on request, under the names that all other
/// files have: of `mlp.experts.gate_up_proj`, `[experts, 2 · inner, width]`, the
/// halves as `mlp.experts.0.gate_proj.weight` and `up_proj`.
fn unstack(tensors: &mut BTreeMap<String, Entry>) {
    let stacks = [
        ("experts.gate_up_proj", &["gate_proj", "up_proj"][..]),
        ("experts.down_proj", &["down_proj"][..]),
    ];
    for (stack, matrices) in stacks {
        let is_one = |(name, entry): (&String, &Entry)| {
            let fits = match entry.shape.as_slice() {
                &[count, rows, _] => {
                    (1..=MOST_EXPERTS).contains(&count) && rows.is_multiple_of(matrices.len())
                }
                _ => false,
            };
            (fits && name.ends_with(stack)).then(|| name.clone())
        };
        let names: Vec<String> = tensors.iter().filter_map(is_one).collect();
        for name in names {
            let Some(whole) = tensors.remove(&name) else {
                continue;
            };
            let &[count, rows, columns] = whole.shape.as_slice() else {
                continue;
            };
            let n = count * matrices.len();
            let length = whole.bytes.len() / n;
            let experts = name.trim_end_matches(stack);
            for part in 0..n {
                let (expert, matrix) = (part / matrices.len(), matrices[part % matrices.len()]);
                let start = whole.bytes.start + part * length;
                let entry = Entry {
                    file: whole.file,
                    dtype: whole.dtype,
                    shape: vec![rows / matrices.len(), columns],
                    bytes: start..start + length,
                };
                tensors.insert(format!("{experts}experts.{expert}.{matrix}.weight"), entry);
            }
        }
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
    refuse_pointer(path).map_err(|source| ModelError::io("reading", path, source))?;
    let file = File::open(path).map_err(|source| ModelError::io("opening", path, source))?;
    // SAFETY: as with every reader of mapped files, another process that cuts
    // the file short while it is read would crash this one; checkpoints are
    // written once, by renaming.
    #[expect(unsafe_code, reason = "mapping a file has no safe form")]
    let mapped = unsafe { Mmap::map(&file) };
    mapped.map_err(|source| ModelError::io("mapping", path, source))
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, ModelError> {
    check_header(bytes).map_err(|reason| ModelError::malformed(path, KIND, &reason))?;
    SafeTensors::deserialize(bytes).map_err(|error| {
        let reason = format!(
            "{error}. Is the file complete? It has {} bytes",
            bytes.len()
        );
        ModelError::malformed(path, KIND, &reason)
    })
}
