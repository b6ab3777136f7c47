//! Products by AVX512-BF16, and the layouts of blocks by AVX-512.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps,
    _mm512_load_si512, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_mul_ps, _mm512_permutex2var_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_shuffle_i32x4, _mm512_store_si512, _mm512_storeu_ps, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::block::{Block, EDGE, HALF, Sums};

/// Whether the processor has what is used here.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// `sums = left·right`.
///
/// # Safety
///
/// [`is_available`].
pub(super) unsafe fn multiply(left: &[Block], right: &[Block], sums: &mut Sums, rows: usize) {
    let mut row = 0;
    while row < rows {
        let (half, line) = (row / HALF, row % HALF);
        let sums = &mut sums.0[row..];
        // SAFETY: the caller's.
        row += unsafe {
            match rows - row {
                8.. => some_rows::<8>(left, right, half, line, sums),
                4.. => some_rows::<4>(left, right, half, line, sums),
                2.. => some_rows::<2>(left, right, half, line, sums),
                _ => some_rows::<1>(left, right, half, line, sums),
            }
        };
    }
}

/// [`multiply`] for some rows, from a line of a half on. Returns how many.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn some_rows<const ROWS: usize>(
    left: &[Block],
    right: &[Block],
    half: usize,
    line: usize,
    output: &mut [[f32; EDGE]],
) -> usize {
    let output = &mut output[..ROWS];
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for (left, right) in left.iter().zip(right) {
        let lines: &[[u16; 32]] = &left.0[half][line..line + ROWS];
        for pair in 0..HALF {
            let columns = [load(&right.0[0][pair]), load(&right.0[1][pair])];
            for (sums, line) in sums.iter_mut().zip(lines) {
                let two = u32::from(line[2 * pair]) | u32::from(line[2 * pair + 1]) << 16;
                let two = values(_mm512_set1_epi32(two as i32));
                sums[0] = _mm512_dpbf16_ps(sums[0], two, values(columns[0]));
                sums[1] = _mm512_dpbf16_ps(sums[1], two, values(columns[1]));
            }
        }
    }
    for (sums, row) in sums.iter().zip(output) {
        // SAFETY: both lie within the 32 values of a row.
        unsafe {
            _mm512_storeu_ps(row.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(row.as_mut_ptr().add(HALF), sums[1]);
        }
    }
    ROWS
}

/// [`super::kernel::Kernel::write_block`].
///
/// # Safety
///
/// [`is_available`]; otherwise as there.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn write(
    sums: &Sums,
    scale: f32,
    output: *mut f32,
    stride: usize,
    [rows, columns]: [usize; 2],
    kept: bool,
) {
    let masks = [first(columns), first(columns.saturating_sub(HALF))];
    for (i, row) in sums.0[..rows].iter().enumerate() {
        for (half, mask) in masks.into_iter().enumerate() {
            let at = output.wrapping_add(i * stride + half * HALF);
            // SAFETY: the caller's: of the output, only columns that the masks name are read and
            // written. The sums lie within a row.
            unsafe {
                let sums = _mm512_loadu_ps(row.as_ptr().add(half * HALF));
                let sums = _mm512_mul_ps(sums, _mm512_set1_ps(scale));
                let sums = if kept {
                    _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), sums)
                } else {
                    sums
                };
                _mm512_mask_storeu_ps(at, mask, sums);
            }
        }
    }
}

/// A mask of the first lanes, of 16 at most.
#[inline]
fn first(lanes: usize) -> u16 {
    ((1_u32 << lanes.min(HALF)) - 1) as u16
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &[u16; 32]) -> __m512i {
    // SAFETY: a line is 64 bytes, and in a block begins at a multiple of as many.
    unsafe { _mm512_load_si512(line.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(line: &mut [u16; 32], bits: __m512i) {
    // SAFETY: as in `load`.
    unsafe { _mm512_store_si512(line.as_mut_ptr().cast(), bits) }
}

/// The same bits as bf16.
#[inline]
#[target_feature(enable = "avx512f")]
fn values(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits, and any are values.
    unsafe { std::mem::transmute(bits) }
}

/// [`super::block::round_row`], but that subnormal values become zero, as which they would be
/// multiplied anyway.
///
/// # Safety
///
/// [`is_available`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn round_row(row: &[f32], blocks: &mut [Block], half: usize, line: usize) {
    let (whole, rest) = row.as_chunks::<EDGE>();
    for (from, block) in whole.iter().zip(blocks.iter_mut()) {
        // SAFETY: both loads lie within the 32 values.
        let (low, high) = unsafe {
            let from = from.as_ptr();
            (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(HALF)))
        };
        store_rounded(&mut block.0[half][line], low, high);
    }
    if !rest.is_empty() {
        let (low, high) = rest.split_at(rest.len().min(HALF));
        let (low, high) = (load_some(low), load_some(high));
        store_rounded(&mut blocks[whole.len()].0[half][line], low, high);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn store_rounded(line: &mut [u16; 32], low: __m512, high: __m512) {
    // SAFETY: both are 512 bits, and any are an integer.
    store(line, unsafe {
        std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
    });
}

/// At most 16 values, and zeros.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_some(values: &[f32]) -> __m512 {
    debug_assert!(values.len() <= HALF);
    // SAFETY: only what the mask names is read.
    unsafe { _mm512_maskz_loadu_ps(first(values.len()), values.as_ptr()) }
}

/// [`Block::turned`]: each half is a square of 16 × 16 pairs, whose lines become columns.
///
/// # Safety
///
/// [`is_available`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn turn(block: &Block, to: &mut Block) {
    for (lines, to) in block.0.iter().zip(&mut to.0) {
        // Fours of lines, in which squares of 4 × 4 pairs lie side by side: first those are
        // turned, then the squares change places.
        let fours: [[__m512i; 4]; 4] = std::array::from_fn(|four| {
            let [a, b, c, d] = std::array::from_fn(|i| load(&lines[4 * four + i]));
            let [low, high] = [_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)];
            let [low_2, high_2] = [_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d)];
            [
                _mm512_unpacklo_epi64(low, low_2),
                _mm512_unpackhi_epi64(low, low_2),
                _mm512_unpacklo_epi64(high, high_2),
                _mm512_unpackhi_epi64(high, high_2),
            ]
        });
        for i in 0..4 {
            let [a, b, c, d] = std::array::from_fn(|four| fours[four][i]);
            // Of two fours each: squares 0 and 2, and 1 and 3.
            let [even, odd] = [
                _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b),
            ];
            let [even_2, odd_2] = [
                _mm512_shuffle_i32x4::<0b10_00_10_00>(c, d),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d),
            ];
            store(
                &mut to[i],
                _mm512_shuffle_i32x4::<0b10_00_10_00>(even, even_2),
            );
            store(
                &mut to[4 + i],
                _mm512_shuffle_i32x4::<0b10_00_10_00>(odd, odd_2),
            );
            store(
                &mut to[8 + i],
                _mm512_shuffle_i32x4::<0b11_01_11_01>(even, even_2),
            );
            store(
                &mut to[12 + i],
                _mm512_shuffle_i32x4::<0b11_01_11_01>(odd, odd_2),
            );
        }
    }
}

/// [`Block::interleaved`].
///
/// # Safety
///
/// [`is_available`].
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn interleave(block: &Block, to: &mut Block) {
    // Of two lines as one table of 64 values: 0, 32, 1, 33 and so on.
    let places = |first: u16| {
        let places: [u16; 32] = std::array::from_fn(|i| first + i as u16 / 2 + 32 * (i as u16 % 2));
        // SAFETY: both are 512 bits, and any are an integer.
        unsafe { std::mem::transmute::<[u16; 32], __m512i>(places) }
    };
    let [low, high] = [places(0), places(16)];
    for (half, lines) in block.0.iter().enumerate() {
        for (i, pair) in lines.as_chunks::<2>().0.iter().enumerate() {
            let [first, second] = [load(&pair[0]), load(&pair[1])];
            let line = 8 * half + i;
            store(
                &mut to.0[0][line],
                _mm512_permutex2var_epi16(first, low, second),
            );
            store(
                &mut to.0[1][line],
                _mm512_permutex2var_epi16(first, high, second),
            );
        }
    }
}
