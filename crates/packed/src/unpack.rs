//! Rows and panels as `f32`.

use std::ops::Range;

use crate::{Packed, PackedError, floats, kernels::Each, packed::Parts, vector::dispatch};

/// Values of the largest block.
const LARGEST: usize = 256;

impl Packed {
    /// Writes a row's values.
    ///
    /// # Errors
    ///
    /// [`PackedError::Range`] if there is no such row, or `output` is not as long as a row.
    pub fn unpack_row(&self, row: usize, output: &mut [f32]) -> Result<(), PackedError> {
        let columns = self.shape[1];
        self.unpack(row..row.saturating_add(1), 0..columns, output, columns)
    }

    /// Writes a panel: some columns of some rows. Rows of `output` begin `stride` apart; what
    /// lies between them is left as it is.
    ///
    /// Columns may begin and end inside of blocks, which are then unpacked for each such
    /// panel again.
    ///
    /// # Errors
    ///
    /// [`PackedError::Range`] for rows or columns that are not there, and an `output` or a
    /// `stride` that does not hold them.
    pub fn unpack(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        output: &mut [f32],
        stride: usize,
    ) -> Result<(), PackedError> {
        self.check_rows(&rows)?;
        PackedError::check_range("there are no columns", &columns, self.shape[1])?;
        let width = columns.len();
        if rows.is_empty() || width == 0 {
            return Ok(());
        }
        PackedError::check_range("a stride does not hold columns", &(0..width), stride)?;
        let places = (rows.len() - 1)
            .saturating_mul(stride)
            .saturating_add(width);
        PackedError::check_range("an output does not hold places", &(0..places), output.len())?;
        if let Parts::Interleaved(matrix) = &self.parts {
            let n = rows.len();
            let part = self.as_in_a_file(matrix, rows, &columns);
            let before = columns.start / self.format.block_values() * self.format.block_values();
            let columns = columns.start - before..columns.end - before;
            return part.unpack(0..n, columns, output, stride);
        }
        let block = self.format.block_values();
        if !columns.start.is_multiple_of(block) || !width.is_multiple_of(block) {
            for (row, output) in rows.zip(output.chunks_mut(stride)) {
                self.some_of_row(row, columns.clone(), &mut output[..width]);
            }
            return Ok(());
        }
        // All rows at once: for a few blocks of each, choosing the instructions takes as long.
        let output = &mut output[..places];
        let per_row = self.shape[1] / block;
        let first = rows.start * per_row + columns.start / block;
        match &self.parts {
            Parts::Blocks(format, bytes) => dispatch(Each {
                format: *format,
                bytes: &bytes.as_slice()[first * format.block_bytes()..],
                row_bytes: per_row * format.block_bytes(),
                output,
                stride,
                width,
            }),
            // Done above.
            Parts::Interleaved(_) => {}
            Parts::Nf4(nf4) => nf4.unpack_rows(first, [per_row, width], output, stride),
            Parts::Groups(groups) => {
                groups.unpack_rows(first, [per_row, width], output, stride);
            }
            Parts::Floats(bytes) => dispatch(floats::Each {
                format: self.format,
                bytes: &bytes.as_slice()[self.format.block_bytes() * first..],
                per_row,
                output,
                stride,
                width,
            }),
        }
        Ok(())
    }

    /// Columns that begin and end anywhere.
    fn some_of_row(&self, row: usize, columns: Range<usize>, output: &mut [f32]) {
        let block = self.format.block_values();
        let of_row = row * (self.shape[1] / block);
        let mut part = [0.0; LARGEST];
        let mut at = columns.start;
        let mut output = output;
        // What stands before the first whole block, all of it if there is none.
        if !at.is_multiple_of(block) {
            let here = (block - at % block).min(output.len());
            let (begun, rest) = output.split_at_mut(here);
            self.whole(of_row + at / block, &mut part[..block]);
            begun.copy_from_slice(&part[at % block..][..here]);
            output = rest;
            at += here;
        }
        let (whole, rest) = output.split_at_mut(output.len() / block * block);
        if !whole.is_empty() {
            self.whole(of_row + at / block, whole);
            at += whole.len();
        }
        if !rest.is_empty() {
            self.whole(of_row + at / block, &mut part[..block]);
            rest.copy_from_slice(&part[..rest.len()]);
        }
    }

    /// Whole blocks from the matrix's `first` on, as many as `output` holds.
    fn whole(&self, first: usize, output: &mut [f32]) {
        match &self.parts {
            Parts::Blocks(format, bytes) => {
                let format = *format;
                let bytes = &bytes.as_slice()[first * format.block_bytes()..];
                let width = output.len();
                dispatch(Each {
                    format,
                    bytes,
                    row_bytes: bytes.len().max(1),
                    output,
                    stride: width,
                    width,
                });
            }
            // They are put in order before.
            Parts::Interleaved(_) => {}
            Parts::Nf4(nf4) => nf4.unpack(first, output),
            Parts::Groups(groups) => groups.unpack(first, output),
            // Columns of it are always whole blocks.
            Parts::Floats(bytes) => {
                let bytes = &bytes.as_slice()[self.format.block_bytes() * first..];
                floats::widen(self.format, bytes, output);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{
        BlockFormat, Bytes, unpack_blocks,
        vector::{Work, every_way},
    };

    fn packed(format: BlockFormat, rows: usize, columns: usize) -> Packed {
        let blocks = rows * columns / format.block_values();
        let mut bytes: Vec<u8> = (0..blocks * format.block_bytes())
            .map(|i| (i * 131 + i / 7 * 17 + i / 1009) as u8)
            .collect();
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

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// [`Each`] with an output of its own.
    struct Bits<'a>(BlockFormat, &'a [u8]);

    impl Bits<'_> {
        fn by(self, run: impl FnOnce(Each<'_>)) -> Vec<u32> {
            let mut output = vec![0.0; 7 * 768];
            run(Each {
                format: self.0,
                bytes: self.1,
                row_bytes: self.1.len() / 7,
                output: &mut output,
                stride: 768,
                width: 768,
            });
            bits(&output)
        }
    }

    impl Work for Bits<'_> {
        type Output = Vec<u32>;

        fn plain(self) -> Vec<u32> {
            self.by(|each| each.plain())
        }

        #[cfg(target_arch = "x86_64")]
        fn run<S: crate::x86::Sixteen>(self, simd: S) -> Vec<u32> {
            self.by(|each| each.run(simd))
        }
    }

    #[test]
    fn fast_is_what_the_slow_version_gives() {
        for format in BlockFormat::ALL {
            let packed = packed(format, 7, 768);
            let mut right = vec![0.0; 7 * 768];
            unpack_blocks(format, &packed.as_blocks().unwrap().1, &mut right);
            let mut fast = vec![0.0; 7 * 768];
            packed.unpack(0..7, 0..768, &mut fast, 768).unwrap();
            assert_eq!(bits(&fast), bits(&right), "{format}");
            let bytes = packed.as_blocks().unwrap().1;
            for output in every_way(|| Bits(format, &bytes)) {
                assert!(output == bits(&right), "{format}");
            }
        }
    }

    #[test]
    fn panels_are_parts_of_rows() {
        for format in [BlockFormat::Q5_0, BlockFormat::Q6K] {
            let packed = packed(format, 5, 512);
            let mut all = vec![0.0; 5 * 512];
            packed.unpack(0..5, 0..512, &mut all, 512).unwrap();
            for columns in [
                0..512,
                0..1,
                3..5,
                31..33,
                250..260,
                256..512,
                100..511,
                7..7,
            ] {
                let stride = columns.len() + 3;
                let mut panel = vec![9.0; 3 * stride];
                packed
                    .unpack(1..4, columns.clone(), &mut panel, stride)
                    .unwrap();
                for (row, panel) in panel.chunks(stride).enumerate() {
                    let (panel, between) = panel.split_at(columns.len());
                    let right = &all[(row + 1) * 512..][columns.clone()];
                    assert_eq!(bits(panel), bits(right), "{format} {columns:?}");
                    assert_eq!(between, [9.0; 3]);
                }
            }
        }
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let packed = packed(BlockFormat::Q4_0, 2, 64);
        let mut output = [0.0; 128];
        let mut refused = |rows, columns, stride: usize, length: usize| {
            packed
                .unpack(rows, columns, &mut output[..length], stride)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused(1..3, 0..64, 64, 128),
            "there are no rows 1..3 in what has 2"
        );
        assert_eq!(
            refused(0..1, 60..65, 64, 128),
            "there are no columns 60..65 in what has 64"
        );
        assert_eq!(
            refused(0..2, 0..64, 63, 128),
            "a stride does not hold columns 0..64 in what has 63"
        );
        assert_eq!(
            refused(0..2, 0..64, 64, 127),
            "an output does not hold places 0..128 in what has 127"
        );
    }
}
