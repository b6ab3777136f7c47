//! Matrices as codes with scales: what a device that has no kernels for blocks unpacks with
//! shifts, masks and products.

use std::ops::Range;

use half::f16;

use crate::{
    BlockFormat, Format, Packed, PackedError,
    blocks::scale_and_least,
    nf4::{self, CODE},
    packed::Parts,
};

/// How codes become values: `(code − zero)·scale + offset`, or `table[code]·scale`. With two
/// roundings these are the bits of [`Packed::unpack`], but for the sign of zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeLayout {
    /// Bits of a code.
    pub bits: usize,
    /// Values of a row that share a scale and an offset.
    pub group: usize,
    /// Subtracted from a code.
    pub zero: u8,
    /// Whether there are offsets.
    pub offsets: bool,
    /// Values of the codes, if they are places in a table.
    pub table: Option<&'static [f32; 16]>,
}

/// Some rows as codes, one after another.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// One for each value.
    pub codes: Vec<u8>,
    /// One for each group.
    pub scales: Vec<f32>,
    /// As many as scales, or none.
    pub offsets: Vec<f32>,
}

impl Format {
    /// How the codes of a matrix become values; `None` for what has no codes.
    pub const fn code_layout(self) -> Option<CodeLayout> {
        let (bits, group, zero, offsets) = match self {
            Self::Blocks(format) => match format {
                BlockFormat::Q4_0 => (4, 32, 8, false),
                BlockFormat::Q4_1 => (4, 32, 0, true),
                BlockFormat::Q5_0 => (5, 32, 16, false),
                BlockFormat::Q5_1 => (5, 32, 0, true),
                BlockFormat::Q8_0 => (8, 32, 128, false),
                BlockFormat::Q2K => (2, 16, 0, true),
                BlockFormat::Q3K => (3, 16, 4, false),
                BlockFormat::Q4K => (4, 32, 0, true),
                BlockFormat::Q5K => (5, 32, 0, true),
                BlockFormat::Q6K => (6, 16, 32, false),
                BlockFormat::Q8K => (8, 256, 128, false),
            },
            Self::Nf4 | Self::Nf4Double => (4, nf4::BLOCK, 0, false),
            Self::Affine(affine) => (affine.bits(), affine.group(), 0, true),
            Self::Bf16 | Self::F32 => return None,
        };
        Some(CodeLayout {
            bits,
            group,
            zero,
            offsets,
            table: match self {
                Self::Nf4 | Self::Nf4Double => Some(&CODE),
                _ => None,
            },
        })
    }
}

impl Packed {
    /// Rows as codes with their scales, as [`Format::code_layout`] says.
    ///
    /// # Errors
    ///
    /// [`PackedError::Range`] for rows that are not there, [`PackedError::Unsupported`] for what
    /// has no codes.
    pub fn codes(&self, rows: Range<usize>) -> Result<Codes, PackedError> {
        self.check_rows(&rows)?;
        let Some(layout) = self.format().code_layout() else {
            return Err(PackedError::Unsupported {
                what: "a format without codes",
                found: self.format().to_string(),
                supported: "what is packed in 8 bits and fewer",
            });
        };
        if let Parts::Interleaved(matrix) = &self.parts {
            let n = rows.len();
            return self
                .as_in_a_file(matrix, rows, &(0..self.shape[1]))
                .codes(0..n);
        }
        let (columns, block) = (self.shape()[1], self.format().block_values());
        let groups = columns / layout.group * rows.len();
        let mut found = Codes {
            codes: vec![0; columns * rows.len()],
            scales: vec![0.0; groups],
            offsets: vec![0.0; if layout.offsets { groups } else { 0 }],
        };
        let first = rows.start * (columns / block);
        let per_block = block / layout.group;
        for (i, codes) in found.codes.chunks_exact_mut(block).enumerate() {
            let groups = i * per_block..(i + 1) * per_block;
            let scales = &mut found.scales[groups.clone()];
            let offsets = found.offsets.get_mut(groups).unwrap_or_default();
            match &self.parts {
                Parts::Blocks(format, bytes) => {
                    let size = format.block_bytes();
                    let block = &bytes.as_slice()[(first + i) * size..][..size];
                    one_block(*format, block, codes, scales, offsets);
                }
                Parts::Nf4(nf4) => {
                    let (quants, scale) = nf4.block(first + i);
                    for (codes, quant) in codes.as_chunks_mut().0.iter_mut().zip(quants) {
                        *codes = [quant >> 4, quant & 15];
                    }
                    scales[0] = scale;
                }
                Parts::Groups(parts) => {
                    let (quants, scale, offset) = parts.group(first + i);
                    if layout.bits == 8 {
                        codes.copy_from_slice(quants);
                    } else {
                        for (codes, quant) in codes.as_chunks_mut().0.iter_mut().zip(quants) {
                            *codes = [quant & 15, quant >> 4];
                        }
                    }
                    scales[0] = scale;
                    offsets[0] = offset;
                }
                // Refused, or done, above.
                Parts::Floats(_) | Parts::Interleaved(_) => {}
            }
        }
        Ok(found)
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// A block of a GGUF file; `blocks.rs` says what lies where.
fn one_block(
    format: BlockFormat,
    block: &[u8],
    codes: &mut [u8],
    scales: &mut [f32],
    offsets: &mut [f32],
) {
    match format {
        BlockFormat::Q4_0 | BlockFormat::Q4_1 | BlockFormat::Q5_0 | BlockFormat::Q5_1 => {
            scales[0] = half_at(block, 0);
            let mut at = 2;
            if let Some(offset) = offsets.first_mut() {
                *offset = half_at(block, 2);
                at = 4;
            }
            let five = matches!(format, BlockFormat::Q5_0 | BlockFormat::Q5_1);
            let fifth = match block[at..].first_chunk() {
                Some(bytes) if five => u32::from_le_bytes(*bytes),
                _ => 0,
            };
            let quants = &block[if five { at + 4 } else { at }..];
            for (i, code) in codes.iter_mut().enumerate() {
                let four = quants[i % 16] >> (i / 16 * 4) & 15;
                *code = four | ((fifth >> i & 1) as u8) << 4;
            }
        }
        BlockFormat::Q8_0 | BlockFormat::Q8K => {
            let begin = if format == BlockFormat::Q8_0 {
                scales[0] = half_at(block, 0);
                2
            } else {
                scales[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
                4
            };
            for (code, byte) in codes.iter_mut().zip(&block[begin..]) {
                *code = byte ^ 0x80;
            }
        }
        BlockFormat::Q2K => {
            let (scale, least) = (half_at(block, 80), half_at(block, 82));
            for group in 0..16 {
                scales[group] = scale * f32::from(block[group] & 15);
                offsets[group] = -(least * f32::from(block[group] >> 4));
            }
            for (i, code) in codes.iter_mut().enumerate() {
                *code = block[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
            }
        }
        BlockFormat::Q3K => {
            let scale = half_at(block, 108);
            let packed = &block[96..108];
            for (group, value) in scales.iter_mut().enumerate() {
                let low = packed[group % 8] >> (group / 8 * 4) & 15;
                let top = packed[8 + group % 4] >> (group / 4 * 2) & 3;
                *value = scale * (f32::from(low | top << 4) - 32.0);
            }
            for (i, code) in codes.iter_mut().enumerate() {
                let two = block[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
                *code = two | (block[i % 32] >> (i / 32) & 1) << 2;
            }
        }
        BlockFormat::Q4K | BlockFormat::Q5K => {
            let (scale, least) = (half_at(block, 0), half_at(block, 2));
            for group in 0..8 {
                let (factor, offset) = scale_and_least(&block[4..16], group);
                scales[group] = scale * factor;
                offsets[group] = -(least * offset);
            }
            let five = format == BlockFormat::Q5K;
            let quants = &block[if five { 48 } else { 16 }..];
            for (i, code) in codes.iter_mut().enumerate() {
                *code = quants[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
                if five {
                    *code |= (block[16 + i % 32] >> (i / 32) & 1) << 4;
                }
            }
        }
        BlockFormat::Q6K => {
            let scale = half_at(block, 208);
            for (scale_of_group, factor) in scales.iter_mut().zip(&block[192..208]) {
                *scale_of_group = scale * f32::from(factor.cast_signed());
            }
            for (i, code) in codes.iter_mut().enumerate() {
                let (half, quarter) = (i / 128, i % 128 / 32);
                let four = block[half * 64 + quarter % 2 * 32 + i % 32] >> (quarter / 2 * 4) & 15;
                let two = block[128 + half * 32 + i % 32] >> (quarter * 2) & 3;
                *code = four | two << 4;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{Affine, Bytes, ScaleType};

    fn some_bytes(n: usize) -> Vec<u8> {
        (0..n)
            .map(|i| (i * 131 + i / 7 * 17 + i / 1009) as u8)
            .collect()
    }

    fn blocks(format: BlockFormat, [rows, columns]: [usize; 2]) -> Packed {
        let n = rows * columns / format.block_values();
        let mut bytes = some_bytes(n * format.block_bytes());
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for (at, _) in format.halves() {
                // Not the largest exponent.
                block[at + 1] &= 0xbb;
            }
            if format == BlockFormat::Q8K {
                block[3] &= 0xbf;
            }
        }
        Packed::from_blocks(format, [rows, columns], Bytes::from(bytes)).unwrap()
    }

    /// Codes of rows 1 and 2 as values, and what the kernels say.
    fn assert_same(packed: &Packed) {
        let columns = packed.shape()[1];
        let mut right = vec![0.0; 2 * columns];
        packed
            .unpack(1..3, 0..columns, &mut right, columns)
            .unwrap();
        let layout = packed.format().code_layout().unwrap();
        let found = packed.codes(1..3).unwrap();
        assert_eq!(found.codes.len(), right.len());
        for (i, (code, right)) in found.codes.iter().zip(right).enumerate() {
            assert!(u32::from(*code) < 1 << layout.bits);
            let scale = found.scales[i / layout.group];
            let value = match layout.table {
                Some(table) => table[usize::from(*code)] * scale,
                None => (f32::from(*code) - f32::from(layout.zero)) * scale,
            };
            let offset = found.offsets.get(i / layout.group);
            let value = offset.map_or(value, |offset| value + offset);
            assert_eq!(value, right, "{}, {i}", packed.format());
        }
    }

    #[test]
    fn codes_of_gguf_blocks_are_their_values() {
        for format in BlockFormat::ALL {
            assert_same(&blocks(format, [4, 768]));
        }
    }

    #[test]
    fn codes_of_nf4_are_its_values() {
        let values: Vec<f32> = (0..3 * 320).map(|i| (i as f32 * 0.7).sin()).collect();
        for format in [Format::Nf4, Format::Nf4Double] {
            assert_same(&Packed::pack(format, [3, 320], &values).unwrap());
        }
    }

    #[test]
    fn codes_of_affine_groups_are_their_values() {
        for (bits, group) in [(4, 64), (8, 32)] {
            let affine = Affine::new(bits, group, ScaleType::F16).unwrap();
            let scales: Vec<u8> = (0..3 * 320 / group * 2).map(|i| i as u8 & 0x3b).collect();
            let scales = Bytes::from(scales);
            let quants = Bytes::from(some_bytes(3 * 320 * bits / 8));
            let packed = Packed::from_affine(affine, [3, 320], quants, scales.clone(), scales);
            assert_same(&packed.unwrap());
        }
    }

    #[test]
    fn rows_that_are_not_there_have_no_codes() {
        let packed = blocks(BlockFormat::Q4_0, [2, 64]);
        assert!(matches!(packed.codes(1..3), Err(PackedError::Range { .. })));
    }
}
