//! bfloat16: the upper half of an `f32`.

use crate::vector::{LANES, Work, add_products, total};

/// The values of whole rows, or of parts of them.
#[inline(always)]
pub(crate) fn widen(bytes: &[u8], output: &mut [f32]) {
    for (output, [low, high]) in output.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *output = f32::from_bits(u32::from(u16::from_le_bytes([*low, *high])) << 16);
    }
}

/// `width` values of some rows. Rows begin `per_row` values and, in the output, `stride`
/// values apart.
pub(crate) struct Each<'a> {
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
        for (output, bytes) in rows.zip(self.bytes.chunks(2 * self.per_row)) {
            widen(bytes, &mut output[..self.width]);
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
    pub bytes: &'a [u8],
    pub vector: &'a [f32],
    pub output: &'a mut [f32],
}

impl Work for Dot<'_> {
    type Output = ();

    #[inline(always)]
    fn plain(self) {
        let width = 2 * self.vector.len();
        for (output, bytes) in self.output.iter_mut().zip(self.bytes.chunks_exact(width)) {
            let mut sums = [0.0; LANES];
            let (whole, rest) = bytes.as_chunks::<{ 2 * LANES }>();
            let (vectors, last) = self.vector.as_chunks::<LANES>();
            let mut values = [0.0; LANES];
            for (bytes, vector) in whole.iter().zip(vectors) {
                widen(bytes, &mut values);
                add_products(&mut sums, vector, &values);
            }
            if !last.is_empty() {
                widen(rest, &mut values);
                for ((sum, x), y) in sums.iter_mut().zip(last).zip(values) {
                    *sum += x * y;
                }
            }
            *output += total(sums);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run<S: crate::x86::Sixteen>(self, _: S) {
        self.plain();
    }
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
        for width in (1..=70).chain([1000]) {
            let (values, vector) = (some(3 * width), some(width));
            let packed = Packed::pack(Format::Bf16, [3, width], &values).unwrap();
            let mut sums = [0.5, 0.25];
            packed.dot_rows(1..3, &vector, &mut sums).unwrap();
            for (row, sum) in (1..).zip(sums) {
                let values = values[row * width..][..width].iter();
                let products = values
                    .zip(&vector)
                    .map(|(w, x)| f64::from(bf16::from_f32(*w).to_f32()) * f64::from(*x));
                let right = products.sum::<f64>() + if row == 1 { 0.5 } else { 0.25 };
                assert!((f64::from(sum) - right).abs() < 1e-4, "{width}: {sum}");
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let packed = Packed::pack(Format::Bf16, [4, 99], &some(4 * 99)).unwrap();
        let vector = some(99);
        struct Bits<'a>(&'a [u8], &'a [f32]);
        impl crate::vector::Work for Bits<'_> {
            type Output = Vec<u32>;
            #[inline(always)]
            fn plain(self) -> Vec<u32> {
                let mut output = [0.0; 4];
                super::Dot {
                    bytes: self.0,
                    vector: self.1,
                    output: &mut output,
                }
                .plain();
                output.map(f32::to_bits).to_vec()
            }
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            fn run<S: crate::x86::Sixteen>(self, _: S) -> Vec<u32> {
                self.plain()
            }
        }
        let bytes = packed.as_bf16().unwrap();
        let outputs = every_way(|| Bits(bytes, &vector));
        assert!(outputs.iter().all(|output| output == &outputs[0]));
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
        let error = Packed::from_bf16([2, 3], Bytes::from(bytes)).unwrap_err();
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
