//! With AVX2: eight rows in a register, two columns of each multiplied by an instruction, whose sums of
//! 16 bits have room for all columns of a block.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256,
    _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_cvtps_epi32, _mm256_fmadd_ps, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_max_epi32, _mm256_mul_ps, _mm256_packs_epi16, _mm256_packs_epi32,
    _mm256_permutevar8x32_epi32, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_slli_epi32,
    _mm256_srai_epi32, _mm256_srli_epi16,
};

use pulp::cast;

use super::{Digits, ROWS, Rows, SIGN, Units};

/// [`Digits::of_block`] of all, as far as they have digits.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_digits(all: &mut Vec<Digits>, vector: &[f32]) -> Option<()> {
    let magnitude = _mm256_set1_epi32((!SIGN).cast_signed());
    let half = _mm256_set1_epi32(128);
    // Packing takes the halves of registers by themselves.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for block in vector.as_chunks::<32>().0 {
        let values: [__m256; 4] = cast(*block);
        let magnitudes = values.map(|values| _mm256_and_si256(cast(values), magnitude));
        let largest: [i32; 8] = cast(_mm256_max_epi32(
            _mm256_max_epi32(magnitudes[0], magnitudes[1]),
            _mm256_max_epi32(magnitudes[2], magnitudes[3]),
        ));
        let largest = largest.into_iter().fold(0, i32::max);
        let Units { unit, per_unit } = Units::of(largest.cast_unsigned())?;
        let per_unit = _mm256_set1_ps(per_unit);
        let mut numbers = values.map(|values| _mm256_cvtps_epi32(_mm256_mul_ps(values, per_unit)));
        let mut of_block = Digits {
            unit,
            ..Digits::ZERO
        };
        for (columns, offset) in of_block.columns.iter_mut().zip(&mut of_block.offsets) {
            let lowest =
                numbers.map(|numbers| _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(numbers)));
            let [left, right] = [
                _mm256_packs_epi32(lowest[0], lowest[1]),
                _mm256_packs_epi32(lowest[2], lowest[3]),
            ];
            let bytes = _mm256_packs_epi16(left, right);
            *columns = cast(_mm256_permutevar8x32_epi32(bytes, order));
            let [left, right] = [
                _mm256_add_epi32(lowest[0], lowest[1]),
                _mm256_add_epi32(lowest[2], lowest[3]),
            ];
            // Eight times the sum, to be subtracted.
            let sums: [i32; 8] = cast(_mm256_slli_epi32::<3>(_mm256_add_epi32(left, right)));
            *offset = -sums.iter().sum::<i32>();
            numbers =
                numbers.map(|numbers| _mm256_srai_epi32::<8>(_mm256_add_epi32(numbers, half)));
        }
        all.push(of_block);
    }
    Some(())
}

/// [`Products::plain`](super::Products::plain) of sixteen rows with some of the vectors, with the same
/// bits; returns with how many.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn some_vectors(
    rows: Rows<'_>,
    vectors: &[Digits],
    mut put: impl FnMut(usize, &[f32; ROWS]),
) -> usize {
    match vectors.len() / rows.n_blocks {
        4.. => tile::<4>(rows, vectors, &mut put),
        2.. => tile::<2>(rows, vectors, &mut put),
        _ => tile::<1>(rows, vectors, &mut put),
    }
}

/// Sixteen rows with `V` vectors; returns how many these are.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const V: usize>(
    rows: Rows<'_>,
    vectors: &[Digits],
    put: &mut impl FnMut(usize, &[f32; ROWS]),
) -> usize {
    let n_blocks = rows.n_blocks;
    let vectors: [&[Digits]; V] = std::array::from_fn(|i| &vectors[i * n_blocks..][..n_blocks]);
    let lower = eight_rows::<V, 0>(rows, &vectors);
    let upper = eight_rows::<V, 1>(rows, &vectors);
    for (i, halves) in lower.into_iter().zip(upper).enumerate() {
        put(i, &cast([halves.0, halves.1]));
    }
    V
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn eight_rows<const V: usize, const HALF: usize>(
    rows: Rows<'_>,
    vectors: &[&[Digits]; V],
) -> [__m256; V] {
    let (nibble, third) = (_mm256_set1_epi8(15), _mm256_set1_ps(65536.0));
    let mut sums = [_mm256_setzero_ps(); V];
    for (i, (scales, quants)) in rows.blocks().enumerate() {
        if HALF == 0 {
            rows.fetch_next(i);
        }
        let scales: [__m128i; 2] = cast(*scales);
        let scales = _mm256_cvtph_ps(scales[HALF]);
        let mut places = [_mm256_setzero_si256(); 8];
        for quarter in 0..4 {
            let quants: [__m256i; 2] = cast(quants[quarter]);
            places[quarter] = _mm256_and_si256(quants[HALF], nibble);
            places[quarter + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(quants[HALF]), nibble);
        }
        for v in 0..V {
            let block = &vectors[v][i];
            let parts = block.columns.map(|columns| {
                // No sum of sixteen products of at most 15 by 128 leaves 16 bits.
                let mut pairs = _mm256_setzero_si256();
                for (places, columns) in places.iter().zip(columns) {
                    let products = _mm256_maddubs_epi16(*places, _mm256_set1_epi32(columns));
                    pairs = _mm256_add_epi16(pairs, products);
                }
                _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
            });
            let [first, second, highest]: [__m256i; 3] = std::array::from_fn(|digit| {
                _mm256_add_epi32(parts[digit], _mm256_set1_epi32(block.offsets[digit]))
            });
            let low = _mm256_add_epi32(_mm256_slli_epi32::<8>(second), first);
            let (low, highest) = (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(highest));
            let product = _mm256_fmadd_ps(highest, third, low);
            let scale = _mm256_mul_ps(scales, _mm256_set1_ps(block.unit));
            sums[v] = _mm256_fmadd_ps(product, scale, sums[v]);
        }
    }
    sums
}
