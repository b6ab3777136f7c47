//! Numbers that are not packed: `f32`, and bfloat16, which is its upper half.

use crate::{
    Format,
    vector::{LANES, Work, add_products, total},
};

/// A kind of number.
pub(crate) trait Float<const BYTES: usize> {
    /// Of bytes, the low one first.
    fn read(bytes: [u8; BYTES]) -> f32;
    /// Sixteen of them.
    #[cfg(target_arch = "x86_64")]
    fn sixteen<S: crate::x86::Sixteen>(simd: S, bytes: &[u8]) -> S::Values;
}

pub(crate) struct Bf16;

impl Float<2> for Bf16 {
    #[inline(always)]
    fn read(bytes: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn sixteen<S: crate::x86::Sixteen>(simd: S, bytes: &[u8]) -> S::Values {
        simd.widen_bf16(bytes.first_chunk().copied().unwrap_or([0; 32]))
    }
}

pub(crate) struct F32;

impl Float<4> for F32 {
    #[inline(always)]
    fn read(bytes: [u8; 4]) -> f32 {
        f32::from_le_bytes(bytes)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn sixteen<S: crate::x86::Sixteen>(simd: S, bytes: &[u8]) -> S::Values {
        simd.load_bytes(bytes.first_chunk().copied().unwrap_or([0; 64]))
    }
}

/// As many values as `output` holds.
#[inline(always)]
fn read_all<F: Float<BYTES>, const BYTES: usize>(bytes: &[u8], output: &mut [f32]) {
    for (output, bytes) in output.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
        *output = F::read(*bytes);
    }
}

/// As many values of one of the formats of plain numbers as `output` holds.
#[inline(always)]
pub(crate) fn widen(format: Format, bytes: &[u8], output: &mut [f32]) {
    if format == Format::Bf16 {
        read_all::<Bf16, 2>(bytes, output);
    } else {
        read_all::<F32, 4>(bytes, output);
    }
}

/// `width` values of some rows. Rows begin `per_row` values and, in the output, `stride`
/// values apart.
pub(crate) struct Each<'a> {
    pub format: Format,
    /// From the first row's first value on.
    pub bytes: &'a [u8],
    pub per_row: usize,
    pub output: &'a mut [f32],
    pub stride: usize,
    pub width: usize,
}

impl Work for Each<'_> {
    type Output = ();

    #[inline(always)]
    fn plain(self) {
        let rows = self.output.chunks_mut(self.stride);
        let row_bytes = self.format.block_bytes() * self.per_row;
        for (output, bytes) in rows.zip(self.bytes.chunks(row_bytes)) {
            widen(self.format, bytes, &mut output[..self.width]);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run<S: crate::x86::Sixteen>(self, _: S) {
        self.plain();
    }
}

/// Adds to each output the product of a row with the vector.
pub(crate) struct Dot<'a> {
    pub format: Format,
    pub bytes: &'a [u8],
    pub vector: &'a [f32],
    pub output: &'a mut [f32],
}

impl Dot<'_> {
    #[inline(always)]
    fn each<F: Float<BYTES>, const BYTES: usize>(self) {
        let width = BYTES * self.vector.len();
        for (output, bytes) in self.output.iter_mut().zip(self.bytes.chunks_exact(width)) {
            let mut sums = [0.0; LANES];
            let (vectors, last) = self.vector.as_chunks::<LANES>();
            let mut parts = bytes.chunks(BYTES * LANES);
            for (vector, bytes) in vectors.iter().zip(&mut parts) {
                let mut values = [0.0; LANES];
                read_all::<F, BYTES>(bytes, &mut values);
                add_products(&mut sums, vector, &values);
            }
            if let Some(rest) = parts.next() {
                let (mut vector, mut values) = ([0.0; LANES], [0.0; LANES]);
                vector[..last.len()].copy_from_slice(last);
                read_all::<F, BYTES>(rest, &mut values);
                add_products(&mut sums, &vector, &values);
            }
            *output += total(sums);
        }
    }

    /// One row after the other. Nothing is unpacked here, so memory is what is waited for, and some
    /// processors read it fastest from beginning to end; they begin the next row before they have added
    /// up this one.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn in_order<S: crate::x86::Sixteen, F: Float<BYTES>, const BYTES: usize>(self, simd: S) {
        let width = BYTES * self.vector.len();
        for (i, output) in self.output.iter_mut().enumerate() {
            let row = &self.bytes[i * width..][..width];
            let [sum] = float_rows::<S, F, 1, BYTES>(simd, [row], self.vector);
            *output += sum;
        }
    }

    /// Four rows at a time, while those that come next are fetched.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn by_fours<S: crate::x86::Sixteen, F: Float<BYTES>, const BYTES: usize>(self, simd: S) {
        let width = BYTES * self.vector.len();
        let row = |i: usize| &self.bytes[i * width..][..width];
        let (fours, rest) = self.output.as_chunks_mut::<4>();
        let done = 4 * fours.len();
        for (i, output) in fours.iter_mut().enumerate() {
            let rows = [row(4 * i), row(4 * i + 1), row(4 * i + 2), row(4 * i + 3)];
            let sums = float_rows::<S, F, 4, BYTES>(simd, rows, self.vector);
            for (output, sum) in output.iter_mut().zip(sums) {
                *output += sum;
            }
        }
        for (i, output) in rest.iter_mut().enumerate() {
            let [sum] = float_rows::<S, F, 1, BYTES>(simd, [row(done + i)], self.vector);
            *output += sum;
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn by<S: crate::x86::Sixteen>(self, simd: S, in_order: bool) {
        match (self.format == Format::Bf16, in_order) {
            (true, true) => self.in_order::<S, Bf16, 2>(simd),
            (true, false) => self.by_fours::<S, Bf16, 2>(simd),
            (false, true) => self.in_order::<S, F32, 4>(simd),
            (false, false) => self.by_fours::<S, F32, 4>(simd),
        }
    }
}

/// Whether this processor reads rows fastest in their order, with nothing fetched ahead. Measured: an
/// EPYC does (SmolLM2 in bf16 73 to 90 tokens/s); a Xeon read twice as much with what comes next
/// fetched ahead (benchmarks/LOG.md).
#[cfg(target_arch = "x86_64")]
fn reads_in_order() -> bool {
    static OF_AMD: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *OF_AMD.get_or_init(|| {
        let id = std::arch::x86_64::__cpuid(0);
        [id.ebx, id.edx, id.ecx]
            .map(u32::to_le_bytes)
            .as_flattened()
            == b"AuthenticAMD"
    })
}

impl Work for Dot<'_> {
    type Output = ();

    #[inline(always)]
    fn plain(self) {
        if self.format == Format::Bf16 {
            self.each::<Bf16, 2>();
        } else {
            self.each::<F32, 4>();
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run<S: crate::x86::Sixteen>(self, simd: S) {
        self.by(simd, reads_in_order());
    }
}

/// Products of some rows, which lie one after the other, with a vector.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn float_rows<S: crate::x86::Sixteen, F: Float<BYTES>, const ROWS: usize, const BYTES: usize>(
    simd: S,
    rows: [&[u8]; ROWS],
    vector: &[f32],
) -> [f32; ROWS] {
    let mut sums = [(); ROWS].map(
        #[inline(always)]
        |()| crate::x86::Sums::new(simd),
    );
    let next = rows[0].as_ptr().wrapping_add(ROWS * BYTES * vector.len());
    let (vectors, last) = vector.as_chunks::<LANES>();
    for (i, vector) in vectors.iter().enumerate() {
        let halves = vector.as_chunks::<16>().0;
        if ROWS > 1 {
            crate::x86::fetch(next, ROWS * BYTES * LANES, i);
        }
        for row in 0..ROWS {
            let bytes = &rows[row][BYTES * LANES * i..][..BYTES * LANES];
            for half in 0..2 {
                let values = F::sixteen(simd, &bytes[BYTES * 16 * half..]);
                sums[row].add_sixteen(simd, half, simd.load(halves[half]), values);
            }
        }
    }
    if !last.is_empty() {
        let mut vector = [0.0; LANES];
        vector[..last.len()].copy_from_slice(last);
        for row in 0..ROWS {
            let mut values = [0.0; LANES];
            read_all::<F, BYTES>(&rows[row][BYTES * LANES * vectors.len()..], &mut values);
            sums[row].add(simd, &vector, &values);
        }
    }
    sums.map(
        #[inline(always)]
        |sums| sums.total(simd),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use half::bf16;

    use crate::{Bytes, Format, Packed, PackedError, vector::every_way};

    fn some(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| (i * 7919 % 2003) as f32 / 1000.0 - 1.0)
            .collect()
    }

    #[test]
    fn panels_are_the_rounded_values() {
        let values = some(5 * 77);
        let packed = Packed::pack(Format::Bf16, [5, 77], &values).unwrap();
        assert_eq!(packed.bytes(), 2 * 5 * 77);
        for columns in [0..77, 0..1, 3..50, 76..77] {
            let stride = columns.len() + 2;
            let mut panel = vec![9.0; 3 * stride];
            packed
                .unpack(1..4, columns.clone(), &mut panel, stride)
                .unwrap();
            for (row, panel) in panel.chunks(stride).enumerate() {
                let right = values[(row + 1) * 77..][columns.clone()].iter();
                let right: Vec<f32> = right.map(|x| bf16::from_f32(*x).to_f32()).collect();
                assert_eq!(panel[..columns.len()], right);
                assert_eq!(panel[columns.len()..], [9.0; 2]);
            }
        }
    }

    #[test]
    fn products_of_rows_are_those_of_the_values_for_every_length() {
        for (width, format) in (1..=70)
            .chain([1000])
            .flat_map(|width| [(width, Format::Bf16), (width, Format::F32)])
        {
            let (values, vector) = (some(3 * width), some(width));
            let packed = Packed::pack(format, [3, width], &values).unwrap();
            let stored = |w: f32| match format {
                Format::Bf16 => bf16::from_f32(w).to_f32(),
                _ => w,
            };
            let mut sums = [0.5, 0.25];
            packed.dot_rows(1..3, &vector, &mut sums).unwrap();
            for (row, sum) in (1..).zip(sums) {
                let values = values[row * width..][..width].iter();
                let products = values
                    .zip(&vector)
                    .map(|(w, x)| f64::from(stored(*w)) * f64::from(*x));
                let right = products.sum::<f64>() + if row == 1 { 0.5 } else { 0.25 };
                assert!((f64::from(sum) - right).abs() < 1e-4, "{width}: {sum}");
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        struct Bits<'a>(Format, &'a [u8], &'a [f32], bool);
        impl crate::vector::Work for Bits<'_> {
            type Output = Vec<u32>;
            #[inline(always)]
            fn plain(self) -> Vec<u32> {
                let mut output = [0.0; 7];
                let dot = super::Dot {
                    format: self.0,
                    bytes: self.1,
                    vector: self.2,
                    output: &mut output,
                };
                dot.plain();
                output.map(f32::to_bits).to_vec()
            }
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            fn run<S: crate::x86::Sixteen>(self, simd: S) -> Vec<u32> {
                let mut output = [0.0; 7];
                let dot = super::Dot {
                    format: self.0,
                    bytes: self.1,
                    vector: self.2,
                    output: &mut output,
                };
                dot.by(simd, self.3);
                output.map(f32::to_bits).to_vec()
            }
        }
        let vector = some(99);
        for format in [Format::Bf16, Format::F32] {
            let packed = Packed::pack(format, [7, 99], &some(7 * 99)).unwrap();
            let crate::packed::Parts::Floats(bytes) = &packed.parts else {
                unreachable!()
            };
            let [of_one, of_four] = [true, false]
                .map(|in_order| every_way(|| Bits(format, bytes.as_slice(), &vector, in_order)));
            assert!(
                of_one
                    .iter()
                    .chain(&of_four)
                    .all(|output| output == &of_one[0])
            );
        }
    }

    #[test]
    fn what_is_no_number_is_refused_with_its_place() {
        let mut values = vec![1.0; 6];
        values[4] = f32::INFINITY;
        let error = Packed::pack(Format::Bf16, [2, 3], &values).unwrap_err();
        assert!(matches!(error, PackedError::Unpackable { at: 4, .. }));
        values[4] = f32::MAX;
        assert!(Packed::pack(Format::Bf16, [2, 3], &values).is_err());
        let mut bytes = vec![0; 12];
        [bytes[8], bytes[9]] = [0x80, 0x7f];
        let error = Packed::from_floats(Format::Bf16, [2, 3], Bytes::from(bytes)).unwrap_err();
        assert!(
            matches!(
                error,
                PackedError::NotFinite {
                    row: 1,
                    column: 1,
                    ..
                }
            ),
            "{error}"
        );
    }
}
