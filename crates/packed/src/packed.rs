//! A matrix that is packed.

use std::{borrow::Cow, ops::Range};

use half::{bf16, f16};

use crate::{
    Affine, BlockFormat, Bytes, Format, NestedScales, PackedError,
    affine::Groups,
    interleaved::{Interleaved, is_fast},
    nf4::Nf4,
};

/// A matrix `[rows, columns]`, packed; `[d_out, d_in]` for a layer, as files have it.
///
/// That all of it is there, that rows divide into blocks and that every scale is finite
/// was checked when it was made. Cloning it shares the bytes.
#[derive(Clone, Debug)]
pub struct Packed {
    pub(crate) shape: [usize; 2],
    pub(crate) format: Format,
    pub(crate) parts: Parts,
}

#[derive(Clone, Debug)]
pub(crate) enum Parts {
    Blocks(BlockFormat, Bytes),
    /// [`BlockFormat::Q4_0`] in another order.
    Interleaved(Interleaved),
    Nf4(Nf4),
    Groups(Groups),
    /// Numbers of [`Format::Bf16`] or [`Format::F32`].
    Floats(Bytes),
}

impl Packed {
    /// A matrix of a GGUF file, as it lies there.
    ///
    /// # Errors
    ///
    /// [`PackedError::Width`], [`PackedError::Length`] or [`PackedError::NotFinite`].
    pub fn from_blocks(
        format: BlockFormat,
        shape: [usize; 2],
        bytes: Bytes,
    ) -> Result<Self, PackedError> {
        let expected = Format::Blocks(format).bytes(shape)?;
        PackedError::check_length("the packed values", bytes.len(), expected)?;
        check_scales(format, shape[1], bytes.as_slice())?;
        Ok(Self {
            shape,
            format: format.into(),
            parts: Parts::Blocks(format, bytes),
        })
    }

    /// A matrix in bitsandbytes' NF4: two values a byte (`weight`), and the largest value of
    /// each 64 as `f32`, low byte first (`weight.absmax`).
    ///
    /// # Errors
    ///
    /// As [`Self::from_blocks`]. bitsandbytes also packs matrices whose rows are no multiple
    /// of 64 long; they are refused.
    pub fn from_nf4(shape: [usize; 2], quants: Bytes, largest: Bytes) -> Result<Self, PackedError> {
        Format::Nf4.bytes(shape)?;
        Ok(Self {
            shape,
            format: Format::Nf4,
            parts: Parts::Nf4(Nf4::single(shape, quants, largest)?),
        })
    }

    /// A matrix in bitsandbytes' NF4 with double quantisation.
    ///
    /// # Errors
    ///
    /// As [`Self::from_nf4`].
    pub fn from_nf4_double(
        shape: [usize; 2],
        quants: Bytes,
        largest: NestedScales,
    ) -> Result<Self, PackedError> {
        Format::Nf4Double.bytes(shape)?;
        Ok(Self {
            shape,
            format: Format::Nf4Double,
            parts: Parts::Nf4(Nf4::nested(shape, quants, largest)?),
        })
    }

    /// A matrix of MLX: words of packed values (`weight`), a scale and a bias for each group
    /// of a row (`scales`, `biases`), all low byte first.
    ///
    /// mlx computes with values rounded to the scales' format; here they are `f32`.
    ///
    /// # Errors
    ///
    /// As [`Self::from_blocks`].
    pub fn from_affine(
        affine: Affine,
        shape: [usize; 2],
        quants: Bytes,
        scales: Bytes,
        biases: Bytes,
    ) -> Result<Self, PackedError> {
        let format = Format::Affine(affine);
        format.bytes(shape)?;
        Ok(Self {
            shape,
            format,
            parts: Parts::Groups(Groups::new(affine, shape, [quants, scales, biases])?),
        })
    }

    /// A matrix of numbers in [`Format::Bf16`] or [`Format::F32`], low byte first, as
    /// safetensors and GGUF files have it.
    ///
    /// # Errors
    ///
    /// As [`Self::from_blocks`], and [`PackedError::Unsupported`] for another format.
    pub fn from_floats(
        format: Format,
        shape: [usize; 2],
        bytes: Bytes,
    ) -> Result<Self, PackedError> {
        let expected = format.bytes(shape)?;
        PackedError::check_length("the values", bytes.len(), expected)?;
        let found = match format {
            Format::Bf16 => first_not_finite(bytes.as_slice(), |value| {
                bf16::from_le_bytes(value).to_f32()
            }),
            Format::F32 => first_not_finite(bytes.as_slice(), f32::from_le_bytes),
            _ => {
                return Err(PackedError::Unsupported {
                    what: "a format of plain numbers",
                    found: format.to_string(),
                    supported: "bfloat16 and float32",
                });
            }
        };
        if let Some((i, value)) = found {
            return Err(PackedError::NotFinite {
                what: "value",
                block: i,
                row: i / shape[1],
                column: i % shape[1],
                value,
            });
        }
        Ok(Self {
            shape,
            format,
            parts: Parts::Floats(bytes),
        })
    }

    /// Rows and columns.
    pub const fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// How it is packed.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Bytes that it takes, scales and code books included; mapped ones too.
    pub fn bytes(&self) -> usize {
        match &self.parts {
            Parts::Blocks(_, bytes) => bytes.len(),
            Parts::Interleaved(matrix) => matrix.len(),
            Parts::Nf4(nf4) => nf4.bytes(),
            Parts::Groups(groups) => groups.bytes(),
            Parts::Floats(bytes) => bytes.len(),
        }
    }

    /// The bytes of a matrix in one of GGUF's formats, as they lie in a file; copied if rows
    /// are [interleaved](Self::interleaved).
    pub fn as_blocks(&self) -> Option<(BlockFormat, Cow<'_, [u8]>)> {
        match &self.parts {
            Parts::Blocks(format, bytes) => Some((*format, bytes.as_slice().into())),
            Parts::Interleaved(matrix) => {
                let blocks = 0..self.shape[1] / self.format.block_values();
                let bytes = matrix.rows(0..self.shape[0], &blocks);
                Some((BlockFormat::Q4_0, bytes.into()))
            }
            Parts::Nf4(_) | Parts::Groups(_) | Parts::Floats(_) => None,
        }
    }

    /// The bytes of a matrix of bfloat16, low byte first, row after row.
    pub fn as_bf16(&self) -> Option<&[u8]> {
        match &self.parts {
            Parts::Floats(bytes) if self.format == Format::Bf16 => Some(bytes.as_slice()),
            _ => None,
        }
    }

    /// The matrix with its rows in another order, owned: row `i` is what row `source(i)` was.
    /// Blocks are copied as they are. llama.cpp's files interleave the rows of some layers.
    ///
    /// # Errors
    ///
    /// [`PackedError::Range`] for a source that is not there, [`PackedError::Unsupported`] for
    /// a format other than GGUF's.
    pub fn rearranged(&self, source: impl Fn(usize) -> usize) -> Result<Self, PackedError> {
        let (Parts::Blocks(_, bytes) | Parts::Floats(bytes)) = &self.parts else {
            return Err(PackedError::Unsupported {
                what: "a format whose rows are to be rearranged",
                found: self.format.to_string(),
                supported: "those of GGUF files",
            });
        };
        let bytes = bytes.as_slice();
        let width = self.format.row_bytes(self.shape[1])?;
        let mut sorted = Vec::with_capacity(bytes.len());
        for row in 0..self.shape[0] {
            let source = source(row);
            self.check_rows(&(source..source.saturating_add(1)))?;
            sorted.extend_from_slice(&bytes[source * width..][..width]);
        }
        let sorted = Bytes::from(sorted);
        Ok(Self {
            parts: match &self.parts {
                Parts::Blocks(format, _) => Parts::Blocks(*format, sorted),
                _ => Parts::Floats(sorted),
            },
            ..self.clone()
        })
    }

    /// The matrix for many products with vectors, where it can be in another order that makes them
    /// faster: owned, in as many bytes. `None` if it stays as it is.
    ///
    /// It is [`BlockFormat::Q4_0`] whose rows are a multiple of sixteen, on an x86-64 processor with
    /// AVX-512 VNNI or AVX2. Values are the same. [Products](Self::dot_rows) are computed with whole
    /// numbers, so that their last bits are others, the same on all of these.
    #[must_use]
    pub fn interleaved(&self) -> Option<Self> {
        if is_fast() {
            self.with_rows_interleaved()
        } else {
            None
        }
    }

    /// [`Self::interleaved`] on any processor.
    pub(crate) fn with_rows_interleaved(&self) -> Option<Self> {
        let Parts::Blocks(BlockFormat::Q4_0, bytes) = &self.parts else {
            return None;
        };
        let n_blocks = self.shape[1] / self.format.block_values();
        let matrix = Interleaved::new(bytes.as_slice(), n_blocks)?;
        Some(Self {
            parts: Parts::Interleaved(matrix),
            ..self.clone()
        })
    }

    /// Whether it is [interleaved](Self::interleaved).
    pub fn is_interleaved(&self) -> bool {
        matches!(self.parts, Parts::Interleaved(_))
    }

    /// Some rows of an interleaved matrix as files have them, as a matrix of their own; of the columns
    /// the blocks with those that are asked for.
    pub(crate) fn as_in_a_file(
        &self,
        matrix: &Interleaved,
        rows: Range<usize>,
        columns: &Range<usize>,
    ) -> Self {
        let block = self.format.block_values();
        let blocks = columns.start / block..columns.end.div_ceil(block);
        Self {
            shape: [rows.len(), blocks.len() * block],
            format: self.format,
            parts: Parts::Blocks(BlockFormat::Q4_0, matrix.rows(rows, &blocks).into()),
        }
    }

    pub(crate) fn check_rows(&self, rows: &Range<usize>) -> Result<(), PackedError> {
        PackedError::check_range("there are no rows", rows, self.shape[0])
    }
}

fn first_not_finite<const N: usize>(
    bytes: &[u8],
    read: impl Fn([u8; N]) -> f32,
) -> Option<(usize, f32)> {
    let values = bytes.as_chunks::<N>().0.iter().map(|value| read(*value));
    values.enumerate().find(|(_, value)| !value.is_finite())
}

/// That no scale is infinite or not a number.
fn check_scales(format: BlockFormat, columns: usize, bytes: &[u8]) -> Result<(), PackedError> {
    let per_row = columns / format.block_values();
    let wrong = |block: usize, what, value| PackedError::NotFinite {
        what,
        block,
        row: block / per_row,
        column: block % per_row * format.block_values(),
        value,
    };
    for (i, block) in bytes.chunks_exact(format.block_bytes()).enumerate() {
        for &(at, what) in format.halves() {
            let value = f16::from_le_bytes([block[at], block[at + 1]]);
            if !value.is_finite() {
                return Err(wrong(i, what, value.to_f32()));
            }
        }
        if format == BlockFormat::Q8K {
            let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
            // Its largest value has to be finite as well.
            if !(scale * 128.0).is_finite() {
                return Err(wrong(i, "scale", scale));
            }
        }
    }
    Ok(())
}

impl PackedError {
    pub(crate) fn check_length(
        what: &str,
        found: usize,
        expected: usize,
    ) -> Result<(), PackedError> {
        if found == expected {
            return Ok(());
        }
        Err(Self::Length {
            what: what.to_owned(),
            expected,
            found,
        })
    }

    pub(crate) fn check_range(
        what: &'static str,
        asked: &Range<usize>,
        there: usize,
    ) -> Result<(), PackedError> {
        if asked.start <= asked.end && asked.end <= there {
            return Ok(());
        }
        Err(Self::Range {
            what,
            asked: asked.clone(),
            there,
        })
    }
}
