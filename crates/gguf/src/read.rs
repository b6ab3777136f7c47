//! A GGUF file as a Hugging Face checkpoint.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;
use olora_files::refuse_pointer;
use olora_packed::{BlockFormat, Bytes, Format, Packed};
use serde_json::{Map, Value};

use crate::{
    GgufError, Tokenizer, config,
    families::Family,
    header::{Header, TensorInfo},
    metadata::Metadata,
    names::{Change, Heads, is_ignorable, stack, to_hugging_face},
    split, tokenizer,
    types::TensorType,
};

/// The name of the tensor with Llama 3's scaling of the rotary frequencies.
pub(crate) const ROPE_FREQUENCIES: &str = "rope_freqs.weight";
/// The names of the tensors with longrope's factors, beyond the trained context
/// and within it.
pub(crate) const LONG_FACTORS: [&str; 2] =
    ["rope_factors_long.weight", "rope_factors_short.weight"];

/// A memory-mapped GGUF file with a model, or several that it is split over, seen
/// as a Hugging Face checkpoint.
///
/// Tensors have the names, the orientation (`[out, in]`) and the order of rows
/// of a `model.safetensors`; quantised ones are given as `f32`.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    /// The files that hold it, the one with the metadata first.
    parts: Vec<(PathBuf, Arc<Mmap>)>,
    header: Header,
    family: &'static Family,
    heads: Heads,
    /// Hugging Face name → name in the file.
    names: BTreeMap<String, String>,
    config: Map<String, Value>,
}

impl GgufFile {
    /// Maps a file and checks all of it but the values of the tensors.
    ///
    /// # Errors
    ///
    /// [`GgufError::NotGguf`], [`GgufError::Truncated`] and
    /// [`GgufError::Malformed`] for what is not a whole GGUF file of version 2
    /// or 3; [`GgufError::Unsupported`] for another architecture, a tensor
    /// format without a reader or a LoRA adapter; [`GgufError::Part`] for one part
    /// of a model that is split over files, if not all others are beside it.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let (parts, mut header) = split::open(path)?;
        // Errors name the file that the metadata are in.
        let path = parts[0].0.as_path();
        let metadata = Metadata {
            path,
            bytes: &parts[0].1,
            header: &header,
        };
        let family = family(metadata)?;
        config::refuse_unknown_experts(metadata, family)?;
        unstack(&parts[0].0, family, &mut header)?;
        let metadata = Metadata {
            path: &parts[0].0,
            bytes: &parts[0].1,
            header: &header,
        };
        let path = parts[0].0.as_path();
        let names = hugging_face_names(path, family, &header)?;
        let factors = |name: &str| {
            let info = header.tensors.get(name)?;
            Some(values(&parts[info.part].1, info))
        };
        let config = config::read(metadata, family, &factors)?;
        let heads = config::heads(&config);
        let file = Self {
            path: path.to_owned(),
            parts,
            header,
            family,
            heads,
            names,
            config,
        };
        file.check_rows()?;
        Ok(file)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All files that it is in: one, unless the model is split.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|(path, _)| path.as_path())
    }

    /// What a `config.json` would hold.
    ///
    /// `dtype` is the format of the largest tensors; quantised ones count as
    /// bfloat16, in which a checkpoint of this model would be stored.
    pub fn config(&self) -> Map<String, Value> {
        self.config.clone()
    }

    /// The tensors' names in a `model.safetensors`, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// A tensor's shape, `[out, in]` for matrices; `None` if there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let stored = self.names.get(name)?;
        Some(&self.header.tensors.get(stored)?.shape)
    }

    /// The format in which a tensor is stored, such as `Q4_K`.
    pub fn stored_type(&self, name: &str) -> Option<&'static str> {
        let stored = self.names.get(name)?;
        Some(self.header.tensors.get(stored)?.kind.name())
    }

    /// A tensor's values, row-major, dequantised. The system may drop the part
    /// of the file that was read from memory afterwards.
    ///
    /// # Errors
    ///
    /// [`GgufError::NoTensor`].
    pub fn read(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        let (_, info) = self.info(name)?;
        let mut read = values(self.mapped(info), info);
        match self.change(name) {
            Change::None => {}
            Change::PlusOne => read.iter_mut().for_each(|value| *value -= 1.0),
            change @ Change::Interleaved { .. } => {
                let rows = info.shape[0];
                let width = read.len() / rows;
                let mut sorted = vec![0.0; read.len()];
                for (row, values) in read.chunks_exact(width).enumerate() {
                    let target = change.source_row(row, rows);
                    sorted[target * width..][..width].copy_from_slice(values);
                }
                read = sorted;
            }
        }
        self.release(info);
        Ok(read)
    }

    /// A matrix as it lies in the file, if it is stored in blocks; `None` if it is not.
    ///
    /// It shares the file's mapping, and may outlive this. Where llama.cpp interleaves the
    /// rows of heads, the rows are copied in the order of a checkpoint.
    ///
    /// # Errors
    ///
    /// [`GgufError::NoTensor`]; [`GgufError::Malformed`] for blocks with scales that are
    /// infinite or not a number.
    pub fn packed(&self, name: &str) -> Result<Option<Packed>, GgufError> {
        let (stored, info) = self.info(name)?;
        let (Some(format), &[rows, columns]) = (info.kind.blocks(), info.shape.as_slice()) else {
            return Ok(None);
        };
        let change = self.change(name);
        let packed = Bytes::part(self.mapped(info).clone(), info.bytes.clone())
            .and_then(|bytes| Packed::from_blocks(format, [rows, columns], bytes))
            .and_then(|packed| match change {
                Change::None => Ok(packed),
                // The row of the file that is a checkpoint's.
                Change::Interleaved { .. } => {
                    let sorted = packed.rearranged(|row| change.stored_row(row, rows));
                    // They were copied, and are not read here again.
                    self.release(info);
                    sorted
                }
                // Norms, which are vectors: should one be a matrix, it is not what the file holds.
                Change::PlusOne => Err(olora_packed::PackedError::Unsupported {
                    what: "a norm",
                    found: format.name().to_owned(),
                    supported: "norms that are vectors",
                }),
            });
        let malformed =
            |error| GgufError::malformed(&self.path, format!("in the tensor `{stored}`, {error}"));
        packed.map(Some).map_err(malformed)
    }

    /// The blocks that a matrix is stored in; `None` if it is dense, no matrix or not there.
    pub fn block_format(&self, name: &str) -> Option<BlockFormat> {
        let info = self.header.tensors.get(self.names.get(name)?)?;
        info.kind.blocks().filter(|_| info.shape.len() == 2)
    }

    /// The format of plain numbers that a matrix is stored in, if it is bfloat16 or float32.
    pub fn plain_format(&self, name: &str) -> Option<Format> {
        let info = self.header.tensors.get(self.names.get(name)?)?;
        match info.kind {
            _ if info.shape.len() != 2 => None,
            TensorType::Bf16 => Some(Format::Bf16),
            TensorType::F32 => Some(Format::F32),
            _ => None,
        }
    }

    /// Writes some rows of a tensor as [`read`](Self::read) gives them: what can be done by parts.
    ///
    /// # Errors
    ///
    /// [`GgufError::NoTensor`], and [`GgufError::Malformed`] for rows that are not there or do not
    /// fill `output`.
    pub fn read_rows(
        &self,
        name: &str,
        rows: Range<usize>,
        output: &mut [f32],
    ) -> Result<(), GgufError> {
        let (stored, info) = self.info(name)?;
        let n_rows = info.shape.first().copied().unwrap_or_default();
        let width = info.shape.iter().skip(1).product::<usize>();
        if rows.end > n_rows || rows.len().checked_mul(width) != Some(output.len()) {
            let reason = format!(
                "`{stored}` is {:?}, of which rows {rows:?} were to be {} values",
                info.shape,
                output.len()
            );
            return Err(GgufError::malformed(&self.path, reason));
        }
        let change = self.change(name);
        let bytes = &self.mapped(info)[info.bytes.clone()];
        let row_bytes = bytes.len().checked_div(n_rows).unwrap_or_default();
        for (row, output) in rows.zip(output.chunks_exact_mut(width.max(1))) {
            let begin = change.stored_row(row, n_rows) * row_bytes;
            info.kind.dequantise(&bytes[begin..][..row_bytes], output);
            if change == Change::PlusOne {
                for value in output {
                    *value -= 1.0;
                }
            }
        }
        Ok(())
    }

    /// Lets the system drop the part of the file that a tensor is in from memory: it was read,
    /// and will not be soon again.
    pub fn done_with(&self, name: &str) {
        if let Ok((_, info)) = self.info(name) {
            self.release(info);
        }
    }

    /// A tensor's name in the file, and where it is there.
    fn info(&self, name: &str) -> Result<(&str, &TensorInfo), GgufError> {
        let stored = self.names.get(name);
        stored
            .and_then(|stored| self.header.tensors.get_key_value(stored))
            .map(|(stored, info)| (stored.as_str(), info))
            .ok_or_else(|| GgufError::NoTensor {
                path: self.path.clone(),
                name: name.to_owned(),
            })
    }

    /// The tokenizer that the metadata describes.
    ///
    /// # Errors
    ///
    /// [`GgufError::Unsupported`] for a tokenizer that is neither byte-level
    /// BPE nor `SentencePiece` BPE, or with unknown pre-tokenisation;
    /// [`GgufError::Malformed`] for one that is incomplete.
    pub fn tokenizer(&self) -> Result<Tokenizer, GgufError> {
        tokenizer::read(self.metadata(), self.family)
    }

    fn metadata(&self) -> Metadata<'_> {
        Metadata {
            path: &self.path,
            bytes: &self.parts[0].1,
            header: &self.header,
        }
    }

    /// The file that a tensor is in.
    fn mapped(&self, info: &TensorInfo) -> &Arc<Mmap> {
        &self.parts[info.part].1
    }

    fn change(&self, name: &str) -> Change {
        let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
        Change::of(self.family, module, self.heads)
    }

    fn check_rows(&self) -> Result<(), GgufError> {
        for (name, stored) in &self.names {
            let change = self.change(name);
            let rows = self
                .header
                .tensors
                .get(stored)
                .and_then(|info| info.shape.first().copied());
            if !rows.is_some_and(|rows| change.fits(rows)) {
                return Err(GgufError::malformed(
                    &self.path,
                    format!(
                        "the rows of `{stored}` cannot be divided among {} query and {} key heads",
                        self.heads.queries, self.heads.keys
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Tells the system that a tensor's pages have been read; without that they
    /// count as this process's memory until the file is closed.
    fn release(&self, info: &TensorInfo) {
        #[cfg(unix)]
        {
            const PAGE: usize = 4096;
            let first = info.bytes.start.next_multiple_of(PAGE);
            let last = info.bytes.end / PAGE * PAGE;
            // SAFETY: the mapping is read-only and private to this struct; dropped
            // pages are read from the file again if they are ever needed.
            #[expect(unsafe_code, reason = "madvise(MADV_DONTNEED) has no safe form")]
            let released = unsafe {
                self.mapped(info).unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    first,
                    last.saturating_sub(first),
                )
            };
            // Advice only: the data has been read, and the system may keep the pages.
            drop(released);
        }
        #[cfg(not(unix))]
        let _ = info;
    }
}

pub(crate) fn map(path: &Path) -> Result<Mmap, GgufError> {
    refuse_pointer(path).map_err(|source| GgufError::io("reading", path, source))?;
    let file = File::open(path).map_err(|source| GgufError::io("opening", path, source))?;
    // SAFETY: as with every reader of mapped files, another process that cuts
    // the file short while it is read would crash this one; model files are
    // written once, by renaming.
    #[expect(unsafe_code, reason = "mapping a file has no safe form")]
    let mapped = unsafe { Mmap::map(&file) };
    mapped.map_err(|source| GgufError::io("mapping", path, source))
}

/// A tensor's values as they are in the file.
fn values(bytes: &[u8], info: &TensorInfo) -> Vec<f32> {
    let mut values = vec![0.0; info.shape.iter().product()];
    info.kind
        .dequantise(&bytes[info.bytes.clone()], &mut values);
    values
}

fn family(metadata: Metadata<'_>) -> Result<&'static Family, GgufError> {
    let path = metadata.path;
    if let Some(kind) = metadata
        .text("general.type")?
        .filter(|&kind| kind != "model")
    {
        let what = format!("`general.type: {kind}`, no model by itself");
        return Err(GgufError::unsupported(
            path,
            what,
            "files with a whole model",
        ));
    }
    let key = "general.architecture";
    let name = metadata.text(key)?.ok_or_else(|| metadata.missing(key))?;
    Family::of_file(name, &config::marks(metadata, name)?).ok_or_else(|| {
        let what = format!("a model of the architecture `{name}`");
        GgufError::unsupported(path, what, Family::architectures())
    })
}

fn hugging_face_names(
    path: &Path,
    family: &Family,
    header: &Header,
) -> Result<BTreeMap<String, String>, GgufError> {
    let mut names = BTreeMap::new();
    for stored in header.tensors.keys() {
        let is_factor = LONG_FACTORS.contains(&stored.as_str());
        if is_ignorable(stored) || stored == ROPE_FREQUENCIES || is_factor {
            continue;
        }
        let name = to_hugging_face(family, stored).ok_or_else(|| {
            GgufError::unsupported(
                path,
                format!("the tensor `{stored}`"),
                format!("the tensors of a dense {} model", family.architecture),
            )
        })?;
        names.insert(name, stored.clone());
    }
    Ok(names)
}

/// Experts of a block beyond which a file is not one of a model; those that are
/// known have up to some hundred.
const MOST_EXPERTS: usize = 4096;

/// Lists each expert's part of a stack of matrices as a tensor of its own, in
/// the place of the stack: `blk.0.ffn_up_exps.7.weight`.
fn unstack(path: &Path, family: &Family, header: &mut Header) -> Result<(), GgufError> {
    let stacked = |name: &str| {
        let module = name.strip_prefix("blk.")?.strip_suffix(".weight")?;
        let (_, module) = module.split_once('.')?;
        stack(family, module)
    };
    let names: Vec<String> = header
        .tensors
        .keys()
        .filter(|name| stacked(name).is_some())
        .cloned()
        .collect();
    for name in names {
        let Some(info) = header.tensors.remove(&name) else {
            continue;
        };
        let &[count, ref shape @ ..] = info.shape.as_slice() else {
            continue;
        };
        if shape.len() != 2 || count == 0 || count > MOST_EXPERTS {
            return Err(GgufError::malformed(
                path,
                format!(
                    "`{name}` is {:?}, but must be a matrix for each of {MOST_EXPERTS} experts at most",
                    info.shape
                ),
            ));
        }
        let length = info.bytes.len() / count;
        let module = name.trim_end_matches(".weight");
        for expert in 0..count {
            let start = info.bytes.start + expert * length;
            let part = TensorInfo {
                shape: shape.to_vec(),
                kind: info.kind,
                bytes: start..start + length,
                part: info.part,
            };
            header
                .tensors
                .insert(format!("{module}.{expert}.weight"), part);
        }
    }
    Ok(())
}
