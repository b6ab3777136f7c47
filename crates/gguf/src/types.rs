//! The number formats of tensors in GGUF files
//! (`enum ggml_type` of `ggml.h`), and turning them into `f32`.

use half::{bf16, f16};

/// Elements in a block of the k-quants.
const K: usize = 256;
/// Elements in a block of the older quantisations.
const B: usize = 32;

/// A format that this crate reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
}

/// What [`TensorType::from_id`] knows, for messages.
pub(crate) const SUPPORTED: &str =
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K and Q8_K";

impl TensorType {
    /// The format behind a number in a file, or what to call it if it is not
    /// one of those.
    pub(crate) fn from_id(id: u32) -> Result<Self, String> {
        let name = match id {
            0 => return Ok(Self::F32),
            1 => return Ok(Self::F16),
            2 => return Ok(Self::Q4_0),
            3 => return Ok(Self::Q4_1),
            6 => return Ok(Self::Q5_0),
            7 => return Ok(Self::Q5_1),
            8 => return Ok(Self::Q8_0),
            10 => return Ok(Self::Q2K),
            11 => return Ok(Self::Q3K),
            12 => return Ok(Self::Q4K),
            13 => return Ok(Self::Q5K),
            14 => return Ok(Self::Q6K),
            15 => return Ok(Self::Q8K),
            30 => return Ok(Self::Bf16),
            9 => "Q8_1",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            40 => "NVFP4",
            other => return Err(format!("number {other}")),
        };
        Err(name.to_owned())
    }

    pub(crate) const fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Q8K => 15,
            Self::Bf16 => 30,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
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

    /// Elements of a block, and its bytes.
    pub(crate) const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (B, 18),
            Self::Q4_1 => (B, 20),
            Self::Q5_0 => (B, 22),
            Self::Q5_1 => (B, 24),
            Self::Q8_0 => (B, 34),
            Self::Q2K => (K, 84),
            Self::Q3K => (K, 110),
            Self::Q4K => (K, 144),
            Self::Q5K => (K, 176),
            Self::Q6K => (K, 210),
            Self::Q8K => (K, 292),
        }
    }

    /// Turns whole blocks into numbers; `output` has a place for each element.
    pub(crate) fn dequantise(self, bytes: &[u8], output: &mut [f32]) {
        let (elements, size) = self.block();
        let one = match self {
            Self::F32 => |block: &[u8], out: &mut [f32]| out[0] = f32_at(block, 0),
            Self::F16 => |block: &[u8], out: &mut [f32]| out[0] = f16_at(block, 0),
            Self::Bf16 => |block: &[u8], out: &mut [f32]| {
                out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
            },
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q8_0 => q8_0,
            Self::Q2K => q2_k,
            Self::Q3K => q3_k,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
            Self::Q8K => q8_k,
        };
        for (block, out) in bytes
            .chunks_exact(size)
            .zip(output.chunks_exact_mut(elements))
        {
            one(block, out);
        }
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
fn q2_k(block: &[u8], out: &mut [f32]) {
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
fn q3_k(block: &[u8], out: &mut [f32]) {
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
fn scale_and_least(packed: &[u8], j: usize) -> (f32, f32) {
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
fn q8_k(block: &[u8], out: &mut [f32]) {
    let scale = f32_at(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[4..]) {
        *out = scale * signed(byte);
    }
}
