//! Matrices as they are packed in files, and packing them as they are read.

use std::{borrow::Cow, ops::Range};

use half::{bf16, f16};
use olora_gguf::GgufFile;
use olora_packed::{Format, Packed, PackedError, PackedRows};
use rayon::prelude::*;

use super::{
    Dtype,
    source::{Source, of_pickle},
};
use crate::ModelError;

/// Values that a thread has in `f32` at a time; a row, if that is longer.
const AT_ONCE: usize = 1 << 16;

impl Source {
    /// How a matrix is packed in the file, without reading it; `None` if it is dense, or has to become
    /// so, as [`packed`](Self::packed) says.
    pub(super) fn format(&self, name: &str) -> Option<Format> {
        match self {
            Self::Safetensors(_, matrices) => matrices.format(name),
            Self::Pytorch(_) => None,
            Self::Gguf(file) => file.block_format(name).map(Format::from),
        }
    }

    /// A matrix, `[d_out, d_in]`, packed as the file has it. `None` for what is dense, no matrix, or
    /// packed across the ends of rows, which bitsandbytes does where these do not divide into blocks:
    /// [`read`](Self::read) gives the values of all of those.
    ///
    /// Where possible the bytes lie in the mapped file. Rows that llama.cpp interleaves, and what GPTQ
    /// and AWQ store, are copied into another order.
    ///
    /// # Errors
    ///
    /// [`ModelError::Packed`] or [`ModelError::Gguf`] for scales that are not finite;
    /// [`ModelError::Missing`].
    pub(super) fn packed(&self, name: &str) -> Result<Option<Packed>, ModelError> {
        self.require(name)?;
        match self {
            Self::Safetensors(shards, matrices) => match matrices.format(name) {
                Some(_) => matrices.packed(shards, name),
                None => Ok(None),
            },
            Self::Pytorch(_) => Ok(None),
            Self::Gguf(file) => Ok(file.packed(name)?),
        }
    }

    /// A matrix, `[d_out, d_in]`, in `format`: as the file has it if that is its format, and else packed
    /// on all threads, some rows at a time, byte for byte as [`Packed::pack`] makes it of the whole.
    /// `None` for what is no matrix, or has rows that do not divide into the format's blocks: it stays
    /// dense.
    ///
    /// Of safetensors and GGUF files, only a few rows are in `f32` at once. PyTorch's files are read
    /// by whole tensors.
    ///
    /// # Errors
    ///
    /// [`ModelError::NotFiniteWeight`]; [`ModelError::Packed`] for values beyond the format's scales, a
    /// format that is only read, and what [`packed`](Self::packed) refuses.
    pub(super) fn packed_as(
        &self,
        name: &str,
        format: Format,
    ) -> Result<Option<Packed>, ModelError> {
        self.require(name)?;
        let Some(&[rows, columns]) = self.shape(name) else {
            return Ok(None);
        };
        if rows == 0 || format.row_bytes(columns).is_err() {
            return Ok(None);
        }
        if self.format(name) == Some(format) {
            return self.packed(name);
        }
        if let Self::Safetensors(shards, _) = self
            && self.plain_format(name) == Some(format)
        {
            // As it lies in the mapped file.
            return match Packed::from_floats(format, [rows, columns], shards.bytes(name)?) {
                Ok(packed) => Ok(Some(packed)),
                Err(error) => Err(self.unpackable(name, error, 0)),
            };
        }
        let values = self.values(name)?;
        let step = (AT_ONCE / columns).clamp(1, rows);
        let parts = (0..rows.div_ceil(step)).into_par_iter();
        let parts: Vec<_> = parts
            .map_init(Vec::new, |buffer, part| {
                let some = part * step..rows.min((part + 1) * step);
                buffer.resize(some.len() * columns, 0.0);
                values.rows(some.clone(), columns, buffer)?;
                PackedRows::pack(format, columns, buffer)
                    .map_err(|error| self.unpackable(name, error, some.start * columns))
            })
            .collect();
        // The first part with an error, whichever thread was first.
        let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
        let packed = Packed::from_rows(format, [rows, columns], parts)
            .map_err(|error| self.of_packed(name, error))?;
        drop(values);
        self.done_with(name);
        Ok(Some(packed))
    }

    /// The format of plain numbers that a matrix is stored in, if it is bfloat16 or float32, in
    /// safetensors or a GGUF file.
    pub(super) fn plain_format(&self, name: &str) -> Option<Format> {
        match self {
            Self::Safetensors(shards, matrices) => {
                if matrices.holds(name) {
                    return None;
                }
                match shards.raw(name)?.dtype {
                    safetensors::Dtype::BF16 => Some(Format::Bf16),
                    safetensors::Dtype::F32 => Some(Format::F32),
                    _ => None,
                }
            }
            Self::Pytorch(_) => None,
            Self::Gguf(file) => file.plain_format(name),
        }
    }

    /// The values of a packed matrix; `None` if it is dense.
    pub(super) fn unpacked(&self, name: &str) -> Result<Option<Vec<f32>>, ModelError> {
        let Self::Safetensors(shards, matrices) = self else {
            return Ok(None);
        };
        let Some(packed) = matrices.packed(shards, name)? else {
            return Ok(None);
        };
        let [rows, columns] = packed.shape();
        let values = Values::Packed(packed);
        let mut output = vec![0.0; rows * columns];
        let width = self.shape(name).and_then(<[usize]>::last).copied();
        let width = width.unwrap_or(columns).max(1);
        let step = (AT_ONCE / width).max(1);
        let parts = output.par_chunks_mut(step * width).enumerate();
        parts.try_for_each(|(part, output)| {
            let begin = part * step;
            values.rows(begin..begin + output.len() / width, width, output)
        })?;
        Ok(Some(output))
    }

    /// The values of a matrix, to be read by rows.
    fn values(&self, name: &str) -> Result<Values<'_>, ModelError> {
        Ok(match self {
            Self::Safetensors(shards, matrices) => match matrices.packed(shards, name)? {
                Some(packed) => Values::Packed(packed),
                None => {
                    let (bytes, dtype) = shards.read(name)?;
                    Values::Dense(bytes.into(), dtype)
                }
            },
            Self::Pytorch(pickles) => {
                let (bytes, format) = pickles.read(name)?;
                Values::Dense(bytes.into(), of_pickle(format))
            }
            Self::Gguf(file) => match file.packed(name)? {
                Some(packed) => Values::Packed(packed),
                None => Values::Gguf(file, name.to_owned()),
            },
        })
    }

    /// Lets the system drop the pages that a matrix was read from.
    pub(super) fn done_with(&self, name: &str) {
        match self {
            Self::Safetensors(shards, matrices) => shards.release(&matrices.stored(name)),
            Self::Pytorch(_) => {}
            Self::Gguf(file) => file.done_with(name),
        }
    }

    fn require(&self, name: &str) -> Result<(), ModelError> {
        if self.has(name) {
            return Ok(());
        }
        Err(ModelError::Missing {
            tensor: name.to_owned(),
        })
    }

    /// The error for rows that begin at the value `first` of a matrix.
    fn unpackable(&self, name: &str, error: PackedError, first: usize) -> ModelError {
        let is_finite = match &error {
            PackedError::Unpackable { value, .. } | PackedError::NotFinite { value, .. } => {
                value.is_finite()
            }
            _ => true,
        };
        // Reading all of it says where such values are, and how many.
        if !is_finite
            && let Some(shape) = self.shape(name).map(<[usize]>::to_vec)
            && let Err(error) = self.read(name, &shape, false, Dtype::F32)
        {
            return error;
        }
        let error = match error {
            PackedError::Unpackable { format, at, value } => {
                let at = at + first;
                PackedError::Unpackable { format, at, value }
            }
            other => other,
        };
        self.of_packed(name, error)
    }

    fn of_packed(&self, name: &str, source: PackedError) -> ModelError {
        ModelError::Packed {
            tensor: name.to_owned(),
            path: self.file(name).to_owned(),
            source,
        }
    }
}

/// A matrix whose rows become `f32` when they are needed.
enum Values<'a> {
    Dense(Cow<'a, [u8]>, Dtype),
    Packed(Packed),
    Gguf(&'a GgufFile, String),
}

impl Values<'_> {
    /// Some rows of `columns` values each.
    fn rows(
        &self,
        rows: Range<usize>,
        columns: usize,
        output: &mut [f32],
    ) -> Result<(), ModelError> {
        let values = rows.start * columns..rows.end * columns;
        match self {
            Self::Dense(bytes, dtype) => {
                let bytes = &bytes[values.start * dtype.size()..values.end * dtype.size()];
                match dtype {
                    Dtype::F32 => widen(bytes, output, f32::from_le_bytes),
                    Dtype::Bf16 => widen(bytes, output, |b| bf16::from_le_bytes(b).to_f32()),
                    Dtype::F16 => widen(bytes, output, |b| f16::from_le_bytes(b).to_f32()),
                }
                Ok(())
            }
            Self::Packed(packed) => {
                // Across the ends of rows, all values are in one.
                let unpacked = if packed.shape()[1] == columns {
                    packed.unpack(rows, 0..columns, output, columns)
                } else {
                    let width = values.len();
                    packed.unpack(0..1, values, output, width)
                };
                unpacked.map_err(|error| ModelError::device("a packed matrix", &error))
            }
            Self::Gguf(file, name) => Ok(file.read_rows(name, rows, output)?),
        }
    }
}

fn widen<const N: usize>(bytes: &[u8], output: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (bytes, output) in bytes.as_chunks::<N>().0.iter().zip(output) {
        *output = read(*bytes);
    }
}
