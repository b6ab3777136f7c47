//! All formats but the rare by AVX2 and AVX-512: the loops of [`crate::kernels`] with
//! the instructions named. The compiler finds vectors in those too, but shuffles values
//! about; named, they are two to four times as fast.
//!
//! Sixteen quants are worked on as bytes, then widened to `f32`, scaled and stored.

use std::arch::x86_64::{__m128i, __m256, __m512};

use pulp::{
    cast,
    core_arch::x86::Sse2,
    x86::{V3, V4},
};

use crate::{
    blocks::scale_and_least,
    kernels,
    nf4::CODE,
    vector::{LANES, half, total},
};

/// Sixteen values of `f32`.
pub(crate) trait Sixteen: Copy {
    /// Where they are.
    type Values: Copy;
    /// Whether that is one register, of which there are 32; else it is two of sixteen.
    const IS_ONE_REGISTER: bool;

    fn sse2(self) -> Sse2;
    fn splat(self, value: f32) -> Self::Values;
    /// Signed bytes as values.
    fn widen(self, bytes: __m128i) -> Self::Values;
    /// Unsigned bytes as values.
    fn widen_unsigned(self, bytes: __m128i) -> Self::Values;
    /// Values of bfloat16, low byte first.
    fn widen_bf16(self, bytes: [u8; 32]) -> Self::Values;
    /// Values of NF4's code book, by the lowest four bits of bytes.
    fn look_up(self, places: __m128i) -> Self::Values;
    /// Low nibbles of bytes less eight, and high ones, scaled.
    fn nibbles_less_eight(self, bytes: __m128i, scale: f32) -> [Self::Values; 2];
    fn mul(self, a: Self::Values, b: Self::Values) -> Self::Values;
    fn add(self, a: Self::Values, b: Self::Values) -> Self::Values;
    fn sub(self, a: Self::Values, b: Self::Values) -> Self::Values;
    /// `a·b + c`, rounded once.
    fn mul_add(self, a: Self::Values, b: Self::Values, c: Self::Values) -> Self::Values;
    fn load(self, values: [f32; 16]) -> Self::Values;
    /// Values from their bytes, low byte first.
    fn load_bytes(self, bytes: [u8; 64]) -> Self::Values;
    fn store(self, values: Self::Values) -> [f32; 16];
    /// The sum of each, by halves.
    fn totals(self, sums: &[Self::Values; 8]) -> [f32; 8];
}

/// The sum of sixteen, by halves.
#[inline(always)]
fn total_of_sixteen(mut sums: [f32; 16]) -> f32 {
    let mut width = 8;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

impl Sixteen for V4 {
    type Values = __m512;
    const IS_ONE_REGISTER: bool = true;

    #[inline(always)]
    fn sse2(self) -> Sse2 {
        self.sse2
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        self.avx512f._mm512_set1_ps(value)
    }

    #[inline(always)]
    fn widen(self, bytes: __m128i) -> __m512 {
        let avx512 = self.avx512f;
        avx512._mm512_cvtepi32_ps(avx512._mm512_cvtepi8_epi32(bytes))
    }

    #[inline(always)]
    fn widen_unsigned(self, bytes: __m128i) -> __m512 {
        let avx512 = self.avx512f;
        avx512._mm512_cvtepi32_ps(avx512._mm512_cvtepu8_epi32(bytes))
    }

    #[inline(always)]
    fn widen_bf16(self, bytes: [u8; 32]) -> __m512 {
        let avx512 = self.avx512f;
        let bits = avx512._mm512_cvtepu16_epi32(cast(bytes));
        cast(avx512._mm512_slli_epi32::<16>(bits))
    }

    #[inline(always)]
    fn look_up(self, places: __m128i) -> __m512 {
        let avx512 = self.avx512f;
        // It looks at the lowest four bits.
        avx512._mm512_permutexvar_ps(avx512._mm512_cvtepu8_epi32(places), cast(CODE))
    }

    #[inline(always)]
    fn nibbles_less_eight(self, bytes: __m128i, scale: f32) -> [__m512; 2] {
        const VALUES: [f32; 16] = [
            -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,
        ];
        let avx512 = self.avx512f;
        let places = avx512._mm512_cvtepu8_epi32(bytes);
        let values = self.mul(cast(VALUES), self.splat(scale));
        // It looks at the lowest four bits.
        [places, avx512._mm512_srli_epi32::<4>(places)].map(
            #[inline(always)]
            |places| avx512._mm512_permutexvar_ps(places, values),
        )
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_mul_ps(a, b)
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_add_ps(a, b)
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        self.avx512f._mm512_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_sub_ps(a, b)
    }

    #[inline(always)]
    fn load_bytes(self, bytes: [u8; 64]) -> __m512 {
        cast(bytes)
    }

    #[inline(always)]
    fn load(self, values: [f32; 16]) -> __m512 {
        cast(values)
    }

    #[inline(always)]
    fn store(self, values: __m512) -> [f32; 16] {
        cast(values)
    }

    #[inline(always)]
    fn totals(self, sums: &[__m512; 8]) -> [f32; 8] {
        totals_of_eight(self, sums)
    }
}

impl Sixteen for V3 {
    type Values = [__m256; 2];
    const IS_ONE_REGISTER: bool = false;

    #[inline(always)]
    fn sse2(self) -> Sse2 {
        self.sse2
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [__m256; 2] {
        [self.avx._mm256_set1_ps(value); 2]
    }

    #[inline(always)]
    fn widen(self, bytes: __m128i) -> [__m256; 2] {
        let (avx, avx2) = (self.avx, self.avx2);
        let high = self.sse2._mm_unpackhi_epi64(bytes, bytes);
        [
            avx._mm256_cvtepi32_ps(avx2._mm256_cvtepi8_epi32(bytes)),
            avx._mm256_cvtepi32_ps(avx2._mm256_cvtepi8_epi32(high)),
        ]
    }

    #[inline(always)]
    fn widen_unsigned(self, bytes: __m128i) -> [__m256; 2] {
        let (avx, avx2) = (self.avx, self.avx2);
        let high = self.sse2._mm_unpackhi_epi64(bytes, bytes);
        [
            avx._mm256_cvtepi32_ps(avx2._mm256_cvtepu8_epi32(bytes)),
            avx._mm256_cvtepi32_ps(avx2._mm256_cvtepu8_epi32(high)),
        ]
    }

    #[inline(always)]
    fn widen_bf16(self, bytes: [u8; 32]) -> [__m256; 2] {
        let (avx2, halves): (_, [__m128i; 2]) = (self.avx2, cast(bytes));
        [
            cast(avx2._mm256_slli_epi32::<16>(avx2._mm256_cvtepu16_epi32(halves[0]))),
            cast(avx2._mm256_slli_epi32::<16>(avx2._mm256_cvtepu16_epi32(halves[1]))),
        ]
    }

    #[inline(always)]
    fn look_up(self, places: __m128i) -> [__m256; 2] {
        let (avx, avx2) = (self.avx, self.avx2);
        let [low, high]: [__m256; 2] = cast(CODE);
        [places, self.sse2._mm_unpackhi_epi64(places, places)].map(
            #[inline(always)]
            |places| {
                let places = avx2._mm256_cvtepu8_epi32(places);
                // It looks at the lowest three bits; the fourth says in which half.
                let lows = avx2._mm256_permutevar8x32_ps(low, places);
                let highs = avx2._mm256_permutevar8x32_ps(high, places);
                let fourth = cast(avx2._mm256_slli_epi32::<28>(places));
                avx._mm256_blendv_ps(lows, highs, fourth)
            },
        )
    }

    #[inline(always)]
    fn nibbles_less_eight(self, bytes: __m128i, scale: f32) -> [[__m256; 2]; 2] {
        let (zero, scale) = (self.sse2._mm_set1_epi8(8), self.splat(scale));
        let low = self.sse2._mm_sub_epi8(low(self, bytes), zero);
        let high = self.sse2._mm_sub_epi8(high(self, bytes), zero);
        // Written out: `map` of arrays of these is not inlined everywhere, and then takes 25 times as
        // long.
        [
            self.mul(self.widen(low), scale),
            self.mul(self.widen(high), scale),
        ]
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        let avx = self.avx;
        [avx._mm256_mul_ps(a[0], b[0]), avx._mm256_mul_ps(a[1], b[1])]
    }

    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        let avx = self.avx;
        [avx._mm256_add_ps(a[0], b[0]), avx._mm256_add_ps(a[1], b[1])]
    }

    #[inline(always)]
    fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        let fma = self.fma;
        [
            fma._mm256_fmadd_ps(a[0], b[0], c[0]),
            fma._mm256_fmadd_ps(a[1], b[1], c[1]),
        ]
    }

    #[inline(always)]
    fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        let avx = self.avx;
        [avx._mm256_sub_ps(a[0], b[0]), avx._mm256_sub_ps(a[1], b[1])]
    }

    #[inline(always)]
    fn load_bytes(self, bytes: [u8; 64]) -> [__m256; 2] {
        cast(bytes)
    }

    #[inline(always)]
    fn load(self, values: [f32; 16]) -> [__m256; 2] {
        cast(values)
    }

    #[inline(always)]
    fn store(self, values: [__m256; 2]) -> [f32; 16] {
        cast(values)
    }

    #[inline(always)]
    fn totals(self, sums: &[[__m256; 2]; 8]) -> [f32; 8] {
        let mut totals = [0.0; 8];
        for (total, sums) in totals.iter_mut().zip(sums) {
            *total = total_of_sixteen(self.store(*sums));
        }
        totals
    }
}

/// The sums of eight: halves of two are put into one register, and added.
///
/// Written without `map`, whose closures were not inlined and called each instruction as a function.
#[inline(always)]
fn totals_of_eight(simd: V4, sums: &[__m512; 8]) -> [f32; 8] {
    let avx512 = simd.avx512f;
    // Of two registers the first and the second halves, added.
    let halves = |a, b| {
        let lows = avx512._mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
        let highs = avx512._mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
        avx512._mm512_add_ps(lows, highs)
    };
    // The first and the third quarters, and the second and the fourth.
    let quarters = |a, b| {
        let lows = avx512._mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        let highs = avx512._mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
        avx512._mm512_add_ps(lows, highs)
    };
    let first = quarters(halves(sums[0], sums[1]), halves(sums[2], sums[3]));
    let second = quarters(halves(sums[4], sums[5]), halves(sums[6], sums[7]));
    // Of quarter i, two lanes of sum i and two of sum i + 4.
    let lows = avx512._mm512_shuffle_ps::<0b01_00_01_00>(first, second);
    let highs = avx512._mm512_shuffle_ps::<0b11_10_11_10>(first, second);
    let twos = avx512._mm512_add_ps(lows, highs);
    let lows = avx512._mm512_shuffle_ps::<0b10_00_10_00>(twos, twos);
    let highs = avx512._mm512_shuffle_ps::<0b11_01_11_01>(twos, twos);
    let ones: [f32; 16] = cast(avx512._mm512_add_ps(lows, highs));
    [
        ones[0], ones[4], ones[8], ones[12], ones[1], ones[5], ones[9], ones[13],
    ]
}

/// [`kernels::each`].
#[inline(always)]
pub(crate) fn each<S: Sixteen, const BYTES: usize, const N: usize>(
    _simd: S,
    bytes: &[u8],
    output: &mut [f32],
    one: impl Fn(&[u8; BYTES], &mut [f32; N]),
) {
    kernels::each(bytes, output, one);
}

/// Prefetches the `i`th of the parts, `bytes` long, that begin at `from`; an address that is not mapped
/// is ignored.
///
/// Parts that lie one after the other come at the full speed of memory. Two cores of an EPYC read 48 GB/s
/// so, 28 with rows fetched apart from each other, four at a time, and 27 with nothing fetched.
#[inline(always)]
pub(crate) fn fetch(from: *const u8, bytes: usize, i: usize) {
    for line in 0..bytes.div_ceil(64) {
        let at = from.wrapping_add(i * bytes + 64 * line);
        // SAFETY: it is advice, which reads nothing: any address will do.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
        }
    }
}

/// [`kernels::each_dot`] with the sums in registers, for some rows, so that none waits for
/// another's.
#[inline(always)]
pub(crate) fn each_dot<S: Sixteen, const ROWS: usize, const BYTES: usize, const N: usize>(
    simd: S,
    rows: [&[u8]; ROWS],
    vector: &[f32],
    one: impl Fn(&[u8; BYTES], &mut [f32; N]),
) -> [f32; ROWS] {
    let mut sums = [(); ROWS].map(
        #[inline(always)]
        |()| Sums::new(simd),
    );
    let rows = rows.map(
        #[inline(always)]
        |row| row.as_chunks::<BYTES>().0,
    );
    // The rows that come next lie one after the other, and are fetched so.
    let next = rows[0].as_ptr().cast::<u8>();
    let next = next.wrapping_add(ROWS * BYTES * rows[0].len());
    for (i, vector) in vector.as_chunks::<N>().0.iter().enumerate() {
        fetch(next, ROWS * BYTES, i);
        for row in 0..ROWS {
            let Some(block) = rows[row].get(i) else {
                continue;
            };
            let mut values = [0.0; N];
            one(block, &mut values);
            sums[row].add(simd, vector, &values);
        }
    }
    sums.map(
        #[inline(always)]
        |sums| sums.total(simd),
    )
}

/// The sums of [`LANES`] lanes.
pub(crate) struct Sums<S: Sixteen>([S::Values; 2]);

impl<S: Sixteen> Sums<S> {
    #[inline(always)]
    pub(crate) fn new(simd: S) -> Self {
        Self([simd.splat(0.0); 2])
    }

    /// Those that there are already.
    #[inline(always)]
    pub(crate) fn of(simd: S, lanes: &[f32; LANES]) -> Self {
        let (halves, _) = lanes.as_chunks();
        Self([simd.load(halves[0]), simd.load(halves[1])])
    }

    /// [`crate::vector::add_products`].
    #[inline(always)]
    pub(crate) fn add<const N: usize>(&mut self, simd: S, left: &[f32; N], right: &[f32; N]) {
        let (left, right) = (left.as_chunks::<16>().0, right.as_chunks::<16>().0);
        for (i, (left, right)) in left.iter().zip(right).enumerate() {
            self.0[i % 2] = simd.mul_add(simd.load(*left), simd.load(*right), self.0[i % 2]);
        }
    }

    /// The products of half the lanes.
    #[inline(always)]
    pub(crate) fn add_sixteen(&mut self, simd: S, half: usize, left: S::Values, right: S::Values) {
        self.0[half] = simd.mul_add(left, right, self.0[half]);
    }

    #[inline(always)]
    pub(crate) fn lanes(self, simd: S) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        put(&mut lanes, 0, simd.store(self.0[0]));
        put(&mut lanes, 16, simd.store(self.0[1]));
        lanes
    }

    #[inline(always)]
    pub(crate) fn total(self, simd: S) -> f32 {
        total(self.lanes(simd))
    }
}

#[inline(always)]
fn low<S: Sixteen>(simd: S, quants: __m128i) -> __m128i {
    let sse2 = simd.sse2();
    sse2._mm_and_si128(quants, sse2._mm_set1_epi8(15))
}

#[inline(always)]
fn high<S: Sixteen>(simd: S, quants: __m128i) -> __m128i {
    low(simd, simd.sse2()._mm_srli_epi16::<4>(quants))
}

/// Signed quants, scaled.
#[inline(always)]
fn scaled<S: Sixteen>(simd: S, quants: __m128i, scale: f32) -> [f32; 16] {
    simd.store(simd.mul(simd.widen(quants), simd.splat(scale)))
}

/// Signed quants, scaled, with something added.
#[inline(always)]
fn raised<S: Sixteen>(simd: S, quants: __m128i, scale: f32, least: f32) -> [f32; 16] {
    let values = simd.mul(simd.widen(quants), simd.splat(scale));
    simd.store(simd.add(values, simd.splat(least)))
}

/// Signed quants, scaled, with something subtracted.
#[inline(always)]
fn lowered<S: Sixteen>(simd: S, quants: __m128i, scale: f32, offset: f32) -> [f32; 16] {
    let values = simd.mul(simd.widen(quants), simd.splat(scale));
    simd.store(simd.sub(values, simd.splat(offset)))
}

/// Sixteen bytes of a block.
#[inline(always)]
fn sixteen(bytes: &[u8], at: usize) -> __m128i {
    let all = bytes[at..].first_chunk::<16>();
    cast(all.copied().unwrap_or_default())
}

/// Sixteen values of a block.
#[inline(always)]
fn put(out: &mut [f32], at: usize, values: [f32; 16]) {
    out[at..at + 16].copy_from_slice(&values);
}

#[inline(always)]
pub(crate) fn q4_0<S: Sixteen>(simd: S, block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half([block[0], block[1]]);
    let [low, high] = simd.nibbles_less_eight(sixteen(block, 2), scale);
    put(out, 0, simd.store(low));
    put(out, 16, simd.store(high));
}

#[inline(always)]
pub(crate) fn q4_1<S: Sixteen>(simd: S, block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, least) = (half([block[0], block[1]]), half([block[2], block[3]]));
    let quants = sixteen(block, 4);
    put(out, 0, raised(simd, low(simd, quants), scale, least));
    put(out, 16, raised(simd, high(simd, quants), scale, least));
}

/// Sixteen bits, from two bytes on, as bytes of 16 or 0.
#[inline(always)]
fn fifth<S: Sixteen>(simd: S, bits: [u8; 2]) -> __m128i {
    let sse2 = simd.sse2();
    let [a, b] = bits;
    let bytes: __m128i = cast([a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b]);
    let mask: __m128i = cast([0x8040_2010_0804_0201_u64; 2]);
    let set = sse2._mm_cmpeq_epi8(sse2._mm_and_si128(bytes, mask), mask);
    sse2._mm_and_si128(set, sse2._mm_set1_epi8(16))
}

#[inline(always)]
pub(crate) fn q5_0<S: Sixteen>(simd: S, block: &[u8; 22], out: &mut [f32; 32]) {
    let sse2 = simd.sse2();
    let scale = half([block[0], block[1]]);
    let (quants, zero) = (sixteen(block, 6), sse2._mm_set1_epi8(16));
    let first = sse2._mm_or_si128(low(simd, quants), fifth(simd, [block[2], block[3]]));
    let second = sse2._mm_or_si128(high(simd, quants), fifth(simd, [block[4], block[5]]));
    put(out, 0, scaled(simd, sse2._mm_sub_epi8(first, zero), scale));
    put(
        out,
        16,
        scaled(simd, sse2._mm_sub_epi8(second, zero), scale),
    );
}

#[inline(always)]
pub(crate) fn q5_1<S: Sixteen>(simd: S, block: &[u8; 24], out: &mut [f32; 32]) {
    let sse2 = simd.sse2();
    let (scale, least) = (half([block[0], block[1]]), half([block[2], block[3]]));
    let quants = sixteen(block, 8);
    let first = sse2._mm_or_si128(low(simd, quants), fifth(simd, [block[4], block[5]]));
    let second = sse2._mm_or_si128(high(simd, quants), fifth(simd, [block[6], block[7]]));
    put(out, 0, raised(simd, first, scale, least));
    put(out, 16, raised(simd, second, scale, least));
}

#[inline(always)]
pub(crate) fn q8_0<S: Sixteen>(simd: S, block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half([block[0], block[1]]);
    put(out, 0, scaled(simd, sixteen(block, 2), scale));
    put(out, 16, scaled(simd, sixteen(block, 18), scale));
}

#[inline(always)]
pub(crate) fn q4_k<S: Sixteen>(simd: S, block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, least) = (half([block[0], block[1]]), half([block[2], block[3]]));
    let packed = &block[4..16];
    for pair in 0..4 {
        let (first, first_least) = scale_and_least(packed, 2 * pair);
        let (second, second_least) = scale_and_least(packed, 2 * pair + 1);
        let (first, first_least) = (scale * first, least * first_least);
        let (second, second_least) = (scale * second, least * second_least);
        for side in [0, 16] {
            let quants = sixteen(block, 16 + pair * 32 + side);
            let at = pair * 64 + side;
            put(
                out,
                at,
                lowered(simd, low(simd, quants), first, first_least),
            );
            put(
                out,
                at + 32,
                lowered(simd, high(simd, quants), second, second_least),
            );
        }
    }
}

#[inline(always)]
pub(crate) fn q5_k<S: Sixteen>(simd: S, block: &[u8; 176], out: &mut [f32; 256]) {
    let sse2 = simd.sse2();
    let (scale, least) = (half([block[0], block[1]]), half([block[2], block[3]]));
    let packed = &block[4..16];
    let sixteens = sse2._mm_set1_epi8(16);
    let bit = |bytes: __m128i, group: usize| {
        let mask = sse2._mm_set1_epi8((1_u8 << group).cast_signed());
        let set = sse2._mm_cmpeq_epi8(sse2._mm_and_si128(bytes, mask), mask);
        sse2._mm_and_si128(set, sixteens)
    };
    for pair in 0..4 {
        let (first, first_least) = scale_and_least(packed, 2 * pair);
        let (second, second_least) = scale_and_least(packed, 2 * pair + 1);
        let (first, first_least) = (scale * first, least * first_least);
        let (second, second_least) = (scale * second, least * second_least);
        for side in [0, 16] {
            let (fifth, quants) = (
                sixteen(block, 16 + side),
                sixteen(block, 48 + pair * 32 + side),
            );
            let at = pair * 64 + side;
            let lows = sse2._mm_or_si128(low(simd, quants), bit(fifth, 2 * pair));
            put(out, at, lowered(simd, lows, first, first_least));
            let highs = sse2._mm_or_si128(high(simd, quants), bit(fifth, 2 * pair + 1));
            put(out, at + 32, lowered(simd, highs, second, second_least));
        }
    }
}

#[inline(always)]
pub(crate) fn q6_k<S: Sixteen>(simd: S, block: &[u8; 210], out: &mut [f32; 256]) {
    let sse2 = simd.sse2();
    let scale = half([block[208], block[209]]);
    let zero = sse2._mm_set1_epi8(32);
    for part in 0..2 {
        for side in 0..2 {
            let first = sixteen(block, part * 64 + side * 16);
            let second = sixteen(block, part * 64 + 32 + side * 16);
            let highs = sixteen(block, 128 + part * 32 + side * 16);
            // Two bits of each, moved to where they belong.
            let two = |bits: i8| sse2._mm_and_si128(highs, sse2._mm_set1_epi8(bits));
            let quarters = [
                (low(simd, first), sse2._mm_slli_epi16::<4>(two(0x03))),
                (low(simd, second), sse2._mm_slli_epi16::<2>(two(0x0c))),
                (high(simd, first), two(0x30)),
                (
                    high(simd, second),
                    sse2._mm_srli_epi16::<2>(two(0xc0_u8.cast_signed())),
                ),
            ];
            for (quarter, (four, two)) in quarters.into_iter().enumerate() {
                let factor = block[192 + part * 8 + quarter * 2 + side].cast_signed();
                let quants = sse2._mm_sub_epi8(sse2._mm_or_si128(four, two), zero);
                let at = part * 128 + quarter * 32 + side * 16;
                put(out, at, scaled(simd, quants, scale * f32::from(factor)));
            }
        }
    }
}

/// Nibbles of MLX: the first value in the low bits of a byte.
#[inline(always)]
pub(crate) fn affine_4<S: Sixteen>(
    simd: S,
    quants: &[u8; 16],
    scale: f32,
    bias: f32,
    out: &mut [f32; 32],
) {
    let sse2 = simd.sse2();
    let quants = sixteen(quants, 0);
    let (lows, highs) = (low(simd, quants), high(simd, quants));
    let first = sse2._mm_unpacklo_epi8(lows, highs);
    let second = sse2._mm_unpackhi_epi8(lows, highs);
    put(out, 0, raised(simd, first, scale, bias));
    put(out, 16, raised(simd, second, scale, bias));
}

#[inline(always)]
pub(crate) fn affine_8<S: Sixteen>(
    simd: S,
    quants: &[u8; 32],
    scale: f32,
    bias: f32,
    out: &mut [f32; 32],
) {
    for at in [0, 16] {
        let values = simd.mul(simd.widen_unsigned(sixteen(quants, at)), simd.splat(scale));
        put(out, at, simd.store(simd.add(values, simd.splat(bias))));
    }
}

/// A block of NF4: two values a byte, the first in the high bits.
#[inline(always)]
pub(crate) fn nf4<S: Sixteen>(simd: S, quants: &[u8; 32], scale: f32, out: &mut [f32; 64]) {
    let sse2 = simd.sse2();
    let scale = simd.splat(scale);
    for half in 0..2 {
        let lows = sixteen(quants, half * 16);
        let highs = sse2._mm_srli_epi16::<4>(lows);
        for (i, places) in [
            sse2._mm_unpacklo_epi8(highs, lows),
            sse2._mm_unpackhi_epi8(highs, lows),
        ]
        .into_iter()
        .enumerate()
        {
            let values = simd.mul(simd.look_up(places), scale);
            put(out, half * 32 + i * 16, simd.store(values));
        }
    }
}
