//! GGUF's blocks as numbers, in loops that a compiler can vectorise: the same bits as
//! [`crate::unpack_blocks`]. On x86-64, `x86.rs` is faster.
//!
//! No order of operations can make a difference: quants times scales are exact in `f32`,
//! all but the last addition.

use crate::{
    BlockFormat,
    blocks::scale_and_least,
    vector::{LANES, Work, add_products, half, total},
};

/// Block after block.
#[inline(always)]
pub(crate) fn each<const BYTES: usize, const N: usize>(
    bytes: &[u8],
    output: &mut [f32],
    one: impl Fn(&[u8; BYTES], &mut [f32; N]),
) {
    let blocks = bytes.as_chunks::<BYTES>().0.iter();
    for (block, output) in blocks.zip(output.as_chunks_mut::<N>().0) {
        one(block, output);
    }
}

/// The products of a row's blocks with a vector, added up.
#[inline(always)]
pub(crate) fn each_dot<const BYTES: usize, const N: usize>(
    bytes: &[u8],
    vector: &[f32],
    one: impl Fn(&[u8; BYTES], &mut [f32; N]),
) -> f32 {
    let mut sums = [0.0; LANES];
    let blocks = bytes.as_chunks::<BYTES>().0.iter();
    for (block, vector) in blocks.zip(vector.as_chunks::<N>().0) {
        let mut values = [0.0; N];
        one(block, &mut values);
        add_products(&mut sums, vector, &values);
    }
    total(sums)
}

/// Low and high nibbles of 16 bytes, less `zero`.
#[inline(always)]
fn nibbles(quants: &[u8; 16], zero: i32) -> [i32; 32] {
    let mut out = [0; 32];
    for i in 0..16 {
        out[i] = i32::from(quants[i] & 15) - zero;
        out[i + 16] = i32::from(quants[i] >> 4) - zero;
    }
    out
}

/// [`nibbles`] with a fifth bit each, which stand apart.
#[inline(always)]
fn five_bits(quants: &[u8; 16], fifth: [u8; 4], zero: i32) -> [i32; 32] {
    let fifth = u32::from_le_bytes(fifth);
    let mut out = [0; 32];
    for i in 0..16 {
        out[i] = i32::from(quants[i] & 15);
        out[i + 16] = i32::from(quants[i] >> 4);
    }
    for (i, out) in out.iter_mut().enumerate() {
        *out = (*out | ((fifth >> i & 1) << 4) as i32) - zero;
    }
    out
}

#[inline(always)]
pub(crate) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let [s0, s1, quants @ ..] = block;
    let scale = half([*s0, *s1]);
    for (out, quant) in out.iter_mut().zip(nibbles(quants, 8)) {
        *out = quant as f32 * scale;
    }
}

#[inline(always)]
pub(crate) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let [s0, s1, m0, m1, quants @ ..] = block;
    let (scale, least) = (half([*s0, *s1]), half([*m0, *m1]));
    for (out, quant) in out.iter_mut().zip(nibbles(quants, 0)) {
        *out = quant as f32 * scale + least;
    }
}

#[inline(always)]
pub(crate) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let [s0, s1, f0, f1, f2, f3, quants @ ..] = block;
    let scale = half([*s0, *s1]);
    for (out, quant) in out
        .iter_mut()
        .zip(five_bits(quants, [*f0, *f1, *f2, *f3], 16))
    {
        *out = quant as f32 * scale;
    }
}

#[inline(always)]
pub(crate) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let [s0, s1, m0, m1, f0, f1, f2, f3, quants @ ..] = block;
    let (scale, least) = (half([*s0, *s1]), half([*m0, *m1]));
    for (out, quant) in out
        .iter_mut()
        .zip(five_bits(quants, [*f0, *f1, *f2, *f3], 0))
    {
        *out = quant as f32 * scale + least;
    }
}

#[inline(always)]
pub(crate) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let [s0, s1, quants @ ..] = block;
    let scale = half([*s0, *s1]);
    for (out, quant) in out.iter_mut().zip(quants) {
        *out = f32::from(quant.cast_signed()) * scale;
    }
}

#[inline(always)]
pub(crate) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let [s0, s1, m0, m1, rest @ ..] = block;
    let (scale, least) = (half([*s0, *s1]), half([*m0, *m1]));
    let (packed, quants) = rest.split_at(12);
    let quants = quants.as_chunks::<32>().0.iter();
    for (pair, (quants, out)) in quants.zip(out.as_chunks_mut::<64>().0).enumerate() {
        let (factor, offset) = scale_and_least(packed, 2 * pair);
        let (factor, offset) = (scale * factor, least * offset);
        for i in 0..32 {
            out[i] = factor * i32::from(quants[i] & 15) as f32 - offset;
        }
        let (factor, offset) = scale_and_least(packed, 2 * pair + 1);
        let (factor, offset) = (scale * factor, least * offset);
        for i in 0..32 {
            out[i + 32] = factor * i32::from(quants[i] >> 4) as f32 - offset;
        }
    }
}

#[inline(always)]
pub(crate) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let [s0, s1, m0, m1, rest @ ..] = block;
    let (scale, least) = (half([*s0, *s1]), half([*m0, *m1]));
    let (packed, rest) = rest.split_at(12);
    let Some((fifth, quants)) = rest.split_first_chunk::<32>() else {
        return;
    };
    let quants = quants.as_chunks::<32>().0.iter();
    for (pair, (quants, out)) in quants.zip(out.as_chunks_mut::<64>().0).enumerate() {
        let (factor, offset) = scale_and_least(packed, 2 * pair);
        let (factor, offset) = (scale * factor, least * offset);
        for i in 0..32 {
            let quant = quants[i] & 15 | (fifth[i] >> (2 * pair) & 1) << 4;
            out[i] = factor * i32::from(quant) as f32 - offset;
        }
        let (factor, offset) = scale_and_least(packed, 2 * pair + 1);
        let (factor, offset) = (scale * factor, least * offset);
        for i in 0..32 {
            let quant = quants[i] >> 4 | (fifth[i] >> (2 * pair + 1) & 1) << 4;
            out[i + 32] = factor * i32::from(quant) as f32 - offset;
        }
    }
}

#[inline(always)]
pub(crate) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, rest) = rest.split_at(16);
    let Some(scale) = rest.first_chunk::<2>() else {
        return;
    };
    let scale = half(*scale);
    for part in 0..2 {
        let (Some(low), Some(high), Some(scales), Some(out)) = (
            low[part * 64..].first_chunk::<64>(),
            high[part * 32..].first_chunk::<32>(),
            scales[part * 8..].first_chunk::<8>(),
            out[part * 128..].first_chunk_mut::<128>(),
        ) else {
            return;
        };
        for quarter in 0..4 {
            for side in 0..2 {
                let factor = scale * f32::from(scales[quarter * 2 + side].cast_signed());
                for i in 0..16 {
                    let at = side * 16 + i;
                    let four = low[quarter % 2 * 32 + at] >> (quarter / 2 * 4) & 15;
                    let quant = four | (high[at] >> (quarter * 2) & 3) << 4;
                    out[quarter * 32 + at] = factor * (i32::from(quant) - 32) as f32;
                }
            }
        }
    }
}

/// Formats that are rare: the slow version, compiled for vectors as it is.
macro_rules! plain {
    ($($name:ident: $bytes:literal),*) => {$(
        #[inline(always)]
        pub(crate) fn $name(block: &[u8; $bytes], out: &mut [f32; 256]) {
            crate::blocks::$name(block, out);
        }
    )*};
}

plain!(q2_k: 84, q3_k: 110, q8_k: 292);

/// Calls `each` or `each_dot` with the kernel of a format: a plain one, or with `simd`.
macro_rules! for_format {
    ($format:expr, $each:ident($($argument:expr),*)) => {{
        use $crate::{BlockFormat, kernels};
        match $format {
            BlockFormat::Q4_0 => kernels::$each($($argument,)* kernels::q4_0),
            BlockFormat::Q4_1 => kernels::$each($($argument,)* kernels::q4_1),
            BlockFormat::Q5_0 => kernels::$each($($argument,)* kernels::q5_0),
            BlockFormat::Q5_1 => kernels::$each($($argument,)* kernels::q5_1),
            BlockFormat::Q8_0 => kernels::$each($($argument,)* kernels::q8_0),
            BlockFormat::Q2K => kernels::$each($($argument,)* kernels::q2_k),
            BlockFormat::Q3K => kernels::$each($($argument,)* kernels::q3_k),
            BlockFormat::Q4K => kernels::$each($($argument,)* kernels::q4_k),
            BlockFormat::Q5K => kernels::$each($($argument,)* kernels::q5_k),
            BlockFormat::Q6K => kernels::$each($($argument,)* kernels::q6_k),
            BlockFormat::Q8K => kernels::$each($($argument,)* kernels::q8_k),
        }
    }};
    ($simd:expr, $format:expr, $each:ident($($argument:expr),*)) => {{
        use $crate::{BlockFormat, kernels, x86};
        let simd = $simd;
        match $format {
            BlockFormat::Q4_0 => x86::$each(
                simd,
                $($argument,)*
                #[inline(always)]
                |block, out| x86::q4_0(simd, block, out),
            ),
            BlockFormat::Q4_1 => x86::$each(
                simd,
                $($argument,)*
                #[inline(always)]
                |block, out| x86::q4_1(simd, block, out),
            ),
            BlockFormat::Q5_0 => x86::$each(
                simd,
                $($argument,)*
                #[inline(always)]
                |block, out| x86::q5_0(simd, block, out),
            ),
            BlockFormat::Q5_1 => x86::$each(
                simd,
                $($argument,)*
                #[inline(always)]
                |block, out| x86::q5_1(simd, block, out),
            ),
            BlockFormat::Q8_0 => x86::$each(
                simd,
                $($argument,)*
                #[inline(always)]
                |block, out| x86::q8_0(simd, block, out),
            ),
            BlockFormat::Q2K => x86::$each(simd, $($argument,)* kernels::q2_k),
            BlockFormat::Q3K => x86::$each(simd, $($argument,)* kernels::q3_k),
            BlockFormat::Q4K => x86::$each(
                simd,
                $($argument,)*
                #[inline(always)]
                |block, out| x86::q4_k(simd, block, out),
            ),
            BlockFormat::Q5K => x86::$each(
                simd,
                $($argument,)*
                #[inline(always)]
                |block, out| x86::q5_k(simd, block, out),
            ),
            BlockFormat::Q6K => x86::$each(
                simd,
                $($argument,)*
                #[inline(always)]
                |block, out| x86::q6_k(simd, block, out),
            ),
            BlockFormat::Q8K => x86::$each(simd, $($argument,)* kernels::q8_k),
        }
    }};
}

/// Turns the blocks of some rows into values: of each row as many as fill `width` values.
/// Rows begin `row_bytes` and, in the output, `stride` values apart.
pub(crate) struct Each<'a> {
    pub format: BlockFormat,
    /// From the first row's first block on.
    pub bytes: &'a [u8],
    pub row_bytes: usize,
    pub output: &'a mut [f32],
    pub stride: usize,
    pub width: usize,
}

impl Work for Each<'_> {
    type Output = ();

    fn plain(self) {
        let rows = self.output.chunks_mut(self.stride);
        for (output, bytes) in rows.zip(self.bytes.chunks(self.row_bytes)) {
            for_format!(self.format, each(bytes, &mut output[..self.width]));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run<S: crate::x86::Sixteen>(self, simd: S) {
        let rows = self.output.chunks_mut(self.stride);
        for (output, bytes) in rows.zip(self.bytes.chunks(self.row_bytes)) {
            for_format!(simd, self.format, each(bytes, &mut output[..self.width]));
        }
    }
}

/// Adds to each output the product of a row, `width` bytes, with the vector.
pub(crate) struct Dot<'a> {
    pub format: BlockFormat,
    pub bytes: &'a [u8],
    pub width: usize,
    pub vector: &'a [f32],
    pub output: &'a mut [f32],
}

impl Work for Dot<'_> {
    type Output = ();

    fn plain(self) {
        let rows = self.bytes.chunks_exact(self.width);
        for (output, bytes) in self.output.iter_mut().zip(rows) {
            *output += for_format!(self.format, each_dot(bytes, self.vector));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run<S: crate::x86::Sixteen>(self, simd: S) {
        let row = |i: usize| &self.bytes[i * self.width..][..self.width];
        let (fours, rest) = self.output.as_chunks_mut::<4>();
        let done = 4 * fours.len();
        for (i, output) in fours.iter_mut().enumerate() {
            let rows = [row(4 * i), row(4 * i + 1), row(4 * i + 2), row(4 * i + 3)];
            let sums = for_format!(simd, self.format, each_dot(rows, self.vector));
            for (output, sum) in output.iter_mut().zip(sums) {
                *output += sum;
            }
        }
        for (i, output) in rest.iter_mut().enumerate() {
            let [sum] = for_format!(simd, self.format, each_dot([row(done + i)], self.vector));
            *output += sum;
        }
    }
}
