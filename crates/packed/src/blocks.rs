//! Blocks of GGUF files as numbers: the slow, obvious version.

use std::fmt;

use half::f16;

/// A format of GGUF files, whose blocks lie one after another with their scales
/// (`ggml-common.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 4 bits around zero, an `f16` scale for 32 values.
    Q4_0,
    /// 4 bits, an `f16` scale and minimum for 32 values.
    Q4_1,
    /// 5 bits around zero, an `f16` scale for 32 values.
    Q5_0,
    /// 5 bits, an `f16` scale and minimum for 32 values.
    Q5_1,
    /// 8 bits around zero, an `f16` scale for 32 values.
    Q8_0,
    /// 2 bits, scales and minima of 4 bits for 16 values, two `f16` for 256. Read only.
    Q2K,
    /// 3 bits around zero, scales of 6 bits for 16 values, an `f16` for 256. Read only.
    Q3K,
    /// 4 bits, scales and minima of 6 bits for 32 values, two `f16` for 256.
    Q4K,
    /// 5 bits, scales and minima of 6 bits for 32 values, two `f16` for 256.
    Q5K,
    /// 6 bits around zero, scales of 8 bits for 16 values, an `f16` for 256.
    Q6K,
    /// 8 bits around zero, an `f32` scale for 256 values. Read only.
    Q8K,
}

impl BlockFormat {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Q8K,
    ];

    /// As GGUF files and llama.cpp call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Q8K => "Q8_K",
        }
    }

    /// Values of a block.
    pub const fn block_values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Q8K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Q8K => 292,
        }
    }

    /// Where the `f16` scales of a block begin, and what they are. [`Self::Q8K`] has an `f32` instead.
    pub(crate) const fn halves(self) -> &'static [(usize, &'static str)] {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => &[(0, "scale")],
            Self::Q4_1 | Self::Q5_1 => &[(0, "scale"), (2, "minimum")],
            Self::Q2K => &[(80, "scale"), (82, "scale of the minima")],
            Self::Q3K => &[(108, "scale")],
            Self::Q4K | Self::Q5K => &[(0, "scale"), (2, "scale of the minima")],
            Self::Q6K => &[(208, "scale")],
            Self::Q8K => &[],
        }
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Turns whole blocks into numbers, one after another, as `dequantize_row_*` of
/// `ggml-quants.c` does: scales that are infinite or not a number give such values.
/// What is left of `bytes` or `output` beyond the last whole block stays as it is.
pub fn unpack_blocks(format: BlockFormat, bytes: &[u8], output: &mut [f32]) {
    let one = match format {
        BlockFormat::Q4_0 => q4_0,
        BlockFormat::Q4_1 => q4_1,
        BlockFormat::Q5_0 => q5_0,
        BlockFormat::Q5_1 => q5_1,
        BlockFormat::Q8_0 => q8_0,
        BlockFormat::Q2K => q2_k,
        BlockFormat::Q3K => q3_k,
        BlockFormat::Q4K => q4_k,
        BlockFormat::Q5K => q5_k,
        BlockFormat::Q6K => q6_k,
        BlockFormat::Q8K => q8_k,
    };
    for (block, out) in bytes
        .chunks_exact(format.block_bytes())
        .zip(output.chunks_exact_mut(format.block_values()))
    {
        one(block, out);
    }
}

fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn f32_at(block: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn signed(byte: u8) -> f32 {
    f32::from(byte.cast_signed())
}

// Each of the following follows `dequantize_row_*` of `ggml-quants.c`; the order
// of the operations is its own, so that the numbers agree to the last bit.

fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = f16_at(block, 0);
    for (i, &byte) in block[2..].iter().enumerate() {
        out[i] = (f32::from(byte & 15) - 8.0) * scale;
        out[i + 16] = (f32::from(byte >> 4) - 8.0) * scale;
    }
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (f16_at(block, 0), f16_at(block, 2));
    for (i, &byte) in block[4..].iter().enumerate() {
        out[i] = f32::from(byte & 15) * scale + least;
        out[i + 16] = f32::from(byte >> 4) * scale + least;
    }
}

/// The fifth bits of a block's 32 elements, which stand apart from the rest.
fn fifth_bits(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    move |i| ((bits >> i & 1) as u8) << 4
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let scale = f16_at(block, 0);
    let fifth = fifth_bits(&block[2..6]);
    for (i, &byte) in block[6..].iter().enumerate() {
        out[i] = (f32::from(byte & 15 | fifth(i)) - 16.0) * scale;
        out[i + 16] = (f32::from(byte >> 4 | fifth(i + 16)) - 16.0) * scale;
    }
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (f16_at(block, 0), f16_at(block, 2));
    let fifth = fifth_bits(&block[4..8]);
    for (i, &byte) in block[8..].iter().enumerate() {
        out[i] = f32::from(byte & 15 | fifth(i)) * scale + least;
        out[i + 16] = f32::from(byte >> 4 | fifth(i + 16)) * scale + least;
    }
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = f16_at(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[2..]) {
        *out = signed(byte) * scale;
    }
}

/// 16 scales and minima of 4 bits each, 256 quants of 2 bits, two `f16`.
#[inline(always)]
pub(crate) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, rest) = block.split_at(16);
    let (quants, rest) = rest.split_at(64);
    let (scale, least) = (f16_at(rest, 0), f16_at(rest, 2));
    for (group, (out, &packed)) in out.chunks_exact_mut(16).zip(scales).enumerate() {
        let factor = scale * f32::from(packed & 15);
        let offset = least * f32::from(packed >> 4);
        let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
        let quants = &quants[half * 32 + side * 16..][..16];
        for (out, &byte) in out.iter_mut().zip(quants) {
            *out = factor * f32::from(byte >> shift & 3) - offset;
        }
    }
}

/// The high bits of 256 quants, their two low bits, 16 scales of 6 bits, an `f16`.
#[inline(always)]
pub(crate) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, rest) = block.split_at(32);
    let (quants, rest) = rest.split_at(64);
    let (packed, rest) = rest.split_at(12);
    let scale = f16_at(rest, 0);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let low = packed[group % 8] >> (group / 8 * 4) & 15;
        let top = packed[8 + group % 4] >> (group / 4 * 2) & 3;
        let factor = scale * (f32::from(low | top << 4) - 32.0);
        let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
        let quants = &quants[half * 32 + side * 16..][..16];
        let high = &high[side * 16..][..16];
        for ((out, &byte), &high) in out.iter_mut().zip(quants).zip(high) {
            // The bit says that nothing is to be subtracted.
            let below = if high >> (group / 2) & 1 == 0 {
                4.0
            } else {
                0.0
            };
            *out = factor * (f32::from(byte >> shift & 3) - below);
        }
    }
}

/// The `j`th of 8 scales and minima of 6 bits each, packed in 12 bytes.
#[inline(always)]
pub(crate) fn scale_and_least(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, least) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let low = packed[j + 4];
        (
            low & 15 | packed[j - 4] >> 6 << 4,
            low >> 4 | packed[j] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(least))
}

/// Two `f16`, the packed scales, 256 quants of 4 bits.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (f16_at(block, 0), f16_at(block, 2));
    let (packed, quants) = block[4..].split_at(12);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (factor, offset) = scale_and_least(packed, group);
        let (factor, offset) = (scale * factor, least * offset);
        let shift = group % 2 * 4;
        for (out, &byte) in out.iter_mut().zip(&quants[group / 2 * 32..]) {
            *out = factor * f32::from(byte >> shift & 15) - offset;
        }
    }
}

/// Two `f16`, the packed scales, the fifth bits of 256 quants, their low four.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (f16_at(block, 0), f16_at(block, 2));
    let (packed, rest) = block[4..].split_at(12);
    let (fifth, quants) = rest.split_at(32);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (factor, offset) = scale_and_least(packed, group);
        let (factor, offset) = (scale * factor, least * offset);
        let shift = group % 2 * 4;
        let quants = &quants[group / 2 * 32..];
        for ((out, &byte), &fifth) in out.iter_mut().zip(quants).zip(fifth) {
            let quant = byte >> shift & 15 | (fifth >> group & 1) << 4;
            *out = factor * f32::from(quant) - offset;
        }
    }
}

/// The low four bits of 256 quants, their high two, 16 scales of 8 bits, an `f16`.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, rest) = rest.split_at(16);
    let scale = f16_at(rest, 0);
    for (group, (out, &factor)) in out.chunks_exact_mut(16).zip(scales).enumerate() {
        let factor = scale * signed(factor);
        let (half, quarter, side) = (group / 8, group % 8 / 2, group % 2);
        let low = &low[half * 64 + quarter % 2 * 32 + side * 16..];
        let high = &high[half * 32 + side * 16..];
        let (low_shift, high_shift) = (quarter / 2 * 4, quarter * 2);
        for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
            let quant = low >> low_shift & 15 | (high >> high_shift & 3) << 4;
            *out = factor * (f32::from(quant) - 32.0);
        }
    }
}

/// An `f32` and 256 quants of 8 bits; the sums that follow are not needed.
#[inline(always)]
pub(crate) fn q8_k(block: &[u8], out: &mut [f32]) {
    let scale = f32_at(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[4..]) {
        *out = scale * signed(byte);
    }
}
