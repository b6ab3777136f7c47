//! Which formats there are, and what they take.

use std::fmt;

use crate::{Affine, BlockFormat, PackedError, nf4};

/// How the values of a matrix are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One of GGUF's.
    Blocks(BlockFormat),
    /// bitsandbytes' NF4: places in a code book of 16 normal quantiles, and the largest
    /// value of 64 as `f32`.
    Nf4,
    /// [`Format::Nf4`] with the largest values in 8 bits, and an `f32` for 256 of them
    /// ("double quantisation").
    Nf4Double,
    /// MLX's 4 or 8 bits, with a scale and a bias for a group of values; what GPTQ's and AWQ's
    /// become too. Read only.
    Affine(Affine),
    /// Not packed at all: bfloat16, low byte first, row after row. What multiplies with packed
    /// matrices multiplies with it too.
    Bf16,
    /// The same in `f32`: rows lie as files have them, which products of single rows read in
    /// order.
    F32,
}

impl From<BlockFormat> for Format {
    fn from(format: BlockFormat) -> Self {
        Self::Blocks(format)
    }
}

impl Format {
    /// What [`crate::Packed::pack`] makes, for messages.
    pub(crate) const MADE: &str = "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, NF4, NF4 with double quantisation, bfloat16 and float32";

    /// Values of a block. The width of a matrix must be a multiple.
    pub const fn block_values(self) -> usize {
        match self {
            Self::Blocks(format) => format.block_values(),
            Self::Nf4 | Self::Nf4Double => nf4::BLOCK,
            Self::Affine(affine) => affine.group(),
            Self::Bf16 | Self::F32 => 1,
        }
    }

    /// Bytes of a block with its scales; without what blocks of [`Format::Nf4Double`] share.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Blocks(format) => format.block_bytes(),
            Self::Nf4 => nf4::BLOCK / 2 + 4,
            Self::Nf4Double => nf4::BLOCK / 2 + 1,
            Self::Affine(affine) => affine.block_bytes(),
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// Whether values are plain numbers, each of its own.
    pub const fn is_plain(self) -> bool {
        matches!(self, Self::Bf16 | Self::F32)
    }

    /// Bytes of a row; without what rows of [`Format::Nf4Double`] share.
    ///
    /// # Errors
    ///
    /// [`PackedError::Width`] if the row does not divide into blocks.
    pub fn row_bytes(self, columns: usize) -> Result<usize, PackedError> {
        let block = self.block_values();
        if columns == 0 || !columns.is_multiple_of(block) {
            return Err(PackedError::Width {
                format: self.to_string(),
                columns,
                block,
            });
        }
        columns
            .checked_div(block)
            .and_then(|blocks| blocks.checked_mul(self.block_bytes()))
            .ok_or_else(|| self.beyond([1, columns]))
    }

    /// Bytes of a whole matrix.
    ///
    /// # Errors
    ///
    /// [`PackedError::Width`], and [`PackedError::TooLarge`] if its values could not be counted.
    pub fn bytes(self, [rows, columns]: [usize; 2]) -> Result<usize, PackedError> {
        let row = self.row_bytes(columns)?;
        let beyond = || self.beyond([rows, columns]);
        let values = rows.checked_mul(columns).ok_or_else(beyond)?;
        let shared = match self {
            Self::Nf4Double => nf4::shared_bytes(values / nf4::BLOCK),
            _ => 0,
        };
        rows.checked_mul(row)
            .and_then(|bytes| bytes.checked_add(shared))
            .ok_or_else(beyond)
    }

    fn beyond(self, shape: [usize; 2]) -> PackedError {
        PackedError::TooLarge {
            format: self.to_string(),
            shape,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks(format) => format.fmt(formatter),
            Self::Nf4 => formatter.write_str("NF4"),
            Self::Nf4Double => formatter.write_str("NF4 with double quantisation"),
            Self::Affine(affine) => affine.fmt(formatter),
            Self::Bf16 => formatter.write_str("bfloat16"),
            Self::F32 => formatter.write_str("float32"),
        }
    }
}
