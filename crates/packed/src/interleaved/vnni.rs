//! With AVX-512 VNNI: sixteen rows in a register, four columns of each multiplied by an instruction.

use std::arch::x86_64::{
    __m512, __m512i, _mm_dpbusd_epi32, _mm_hadd_epi32, _mm_set1_epi8, _mm_setzero_si128,
    _mm512_add_epi32, _mm512_and_si512, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
    _mm512_cvtps_epi32, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_max_epi32, _mm512_mul_ps,
    _mm512_reduce_max_epi32, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_slli_epi32, _mm512_srai_epi32, _mm512_srli_epi16,
};

use pulp::cast;

use super::{Digits, ROWS, Rows, SIGN, Units, ZERO};

/// [`Digits::of_block`] of all, as far as they have digits.
#[target_feature(enable = "avx512f,avx512vl,avx512vnni,ssse3")]
pub(super) fn add_digits(all: &mut Vec<Digits>, vector: &[f32]) -> Option<()> {
    let magnitude = _mm512_set1_epi32((!SIGN).cast_signed());
    let (half, eights) = (_mm512_set1_epi32(128), _mm_set1_epi8(ZERO as i8));
    for block in vector.as_chunks::<32>().0 {
        let (halves, _) = block.as_chunks::<16>();
        let [left, right]: [__m512; 2] = [cast(halves[0]), cast(halves[1])];
        let magnitudes = [left, right].map(|values| _mm512_and_si512(cast(values), magnitude));
        let largest = _mm512_reduce_max_epi32(_mm512_max_epi32(magnitudes[0], magnitudes[1]));
        let Units { unit, per_unit } = Units::of(largest.cast_unsigned())?;
        let per_unit = _mm512_set1_ps(per_unit);
        let mut numbers =
            [left, right].map(|values| _mm512_cvtps_epi32(_mm512_mul_ps(values, per_unit)));
        let mut of_block = Digits {
            unit,
            ..Digits::ZERO
        };
        let mut sums = [_mm_setzero_si128(); 3];
        for (columns, sum) in of_block.columns.iter_mut().zip(&mut sums) {
            let [left, right] = numbers.map(|numbers| _mm512_cvtepi32_epi8(numbers));
            *columns = cast([left, right]);
            *sum = _mm_dpbusd_epi32(_mm_dpbusd_epi32(*sum, eights, left), eights, right);
            numbers =
                numbers.map(|numbers| _mm512_srai_epi32::<8>(_mm512_add_epi32(numbers, half)));
        }
        let last = _mm_hadd_epi32(sums[2], sums[2]);
        let sums: [i32; 4] = cast(_mm_hadd_epi32(_mm_hadd_epi32(sums[0], sums[1]), last));
        of_block.offsets = [-sums[0], -sums[1], -sums[2]];
        all.push(of_block);
    }
    Some(())
}

/// [`Products::plain`] of sixteen rows with some of the vectors, with the same bits; returns with how many.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn some_vectors(
    rows: Rows<'_>,
    vectors: &[Digits],
    mut put: impl FnMut(usize, &[f32; ROWS]),
) -> usize {
    match vectors.len() / rows.n_blocks {
        6.. => tile::<6>(rows, vectors, &mut put),
        3.. => tile::<3>(rows, vectors, &mut put),
        2 => tile::<2>(rows, vectors, &mut put),
        _ => tile::<1>(rows, vectors, &mut put),
    }
}

/// Sixteen rows with `V` vectors; returns how many these are.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const V: usize>(
    rows: Rows<'_>,
    vectors: &[Digits],
    put: &mut impl FnMut(usize, &[f32; ROWS]),
) -> usize {
    let n_blocks = rows.n_blocks;
    let vectors: [&[Digits]; V] = std::array::from_fn(|i| &vectors[i * n_blocks..][..n_blocks]);
    let (nibble, third) = (_mm512_set1_epi8(15), _mm512_set1_ps(65536.0));
    let mut sums = [_mm512_setzero_ps(); V];
    for (i, (scales, quants)) in rows.blocks().enumerate() {
        rows.fetch_next(i);
        let scales = _mm512_cvtph_ps(cast(*scales));
        let mut places = [_mm512_set1_epi8(0); 8];
        for quarter in 0..4 {
            let quants: __m512i = cast(quants[quarter]);
            places[quarter] = _mm512_and_si512(quants, nibble);
            places[quarter + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(quants), nibble);
        }
        for v in 0..V {
            let block = &vectors[v][i];
            let mut parts = block.offsets.map(|offset| _mm512_set1_epi32(offset));
            for (four, places) in places.iter().enumerate() {
                for (part, columns) in parts.iter_mut().zip(&block.columns) {
                    *part = _mm512_dpbusd_epi32(*part, *places, _mm512_set1_epi32(columns[four]));
                }
            }
            let [first, second, highest] = parts;
            let low = _mm512_add_epi32(_mm512_slli_epi32::<8>(second), first);
            let (low, highest) = (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(highest));
            let product = _mm512_fmadd_ps(highest, third, low);
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(block.unit));
            sums[v] = _mm512_fmadd_ps(product, scale, sums[v]);
        }
    }
    for (i, sums) in sums.into_iter().enumerate() {
        put(i, &cast(sums));
    }
    V
}
