//! Products of rows with a vector: what generating a token is made of.

use std::ops::Range;

use crate::{
    Packed, PackedError, floats, interleaved::Digits, kernels::Dot, packed::Parts, vector::dispatch,
};

impl Packed {
    /// Adds to each of `output` the product of a row with `vector`: `output[i] += Σ w·x` for
    /// the `i`th of `rows`.
    ///
    /// Values are unpacked a block at a time and never stored. The sum is kept in 32 parts,
    /// by the column modulo 32, to which products are added before they are rounded; the
    /// parts are then added by halves: the same bits as from an unpacked row added up so,
    /// on every processor and for every division of the rows.
    ///
    /// Where rows are [interleaved](Self::interleaved), 32 columns are added up exactly, with
    /// the vector's values rounded to within about 2⁻²³ of the largest of them, and then added to those before
    /// them.
    ///
    /// # Errors
    ///
    /// [`PackedError::Range`] for rows that are not there, [`PackedError::Length`] for a
    /// vector that is not as long as a row, or an output that has not a place for each.
    pub fn dot_rows(
        &self,
        rows: Range<usize>,
        vector: &[f32],
        output: &mut [f32],
    ) -> Result<(), PackedError> {
        self.check_rows(&rows)?;
        PackedError::check_length("the vector", vector.len(), self.shape[1])?;
        PackedError::check_length("the output", output.len(), rows.len())?;
        let per_row = self.shape[1] / self.format.block_values();
        match &self.parts {
            Parts::Blocks(format, bytes) => {
                let format = *format;
                let width = per_row * format.block_bytes();
                let bytes = &bytes.as_slice()[rows.start * width..rows.end * width];
                dispatch(Dot {
                    format,
                    bytes,
                    width,
                    vector,
                    output,
                });
            }
            Parts::Interleaved(matrix) => {
                let Some(digits) = Digits::of(vector) else {
                    let n = rows.len();
                    let rows = self.as_in_a_file(matrix, rows, &(0..self.shape[1]));
                    return rows.dot_rows(0..n, vector, output);
                };
                matrix.products(&rows, &digits, |first, _, products| {
                    for (row, product) in (first..).zip(products) {
                        if rows.contains(&row) {
                            output[row - rows.start] += product;
                        }
                    }
                });
            }
            Parts::Nf4(nf4) => {
                for (output, row) in output.iter_mut().zip(rows) {
                    *output += nf4.dot(row * per_row, vector);
                }
            }
            Parts::Groups(groups) => {
                for (output, row) in output.iter_mut().zip(rows) {
                    *output += groups.dot(row * per_row, vector);
                }
            }
            Parts::Floats(bytes) => {
                let size = self.format.block_bytes();
                dispatch(floats::Dot {
                    format: self.format,
                    bytes: &bytes.as_slice()
                        [size * rows.start * per_row..size * rows.end * per_row],
                    vector,
                    output,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        BlockFormat,
        vector::{Work, every_way},
    };

    /// [`Dot`] with an output of its own.
    struct Bits<'a>(BlockFormat, &'a [u8], &'a [f32]);

    impl Bits<'_> {
        fn by(self, run: impl FnOnce(Dot<'_>)) -> Vec<u32> {
            let mut output = vec![0.0; 3];
            run(Dot {
                format: self.0,
                bytes: self.1,
                width: self.1.len() / 3,
                vector: self.2,
                output: &mut output,
            });
            output.iter().map(|value| value.to_bits()).collect()
        }
    }

    impl Work for Bits<'_> {
        type Output = Vec<u32>;

        fn plain(self) -> Vec<u32> {
            self.by(|dot| dot.plain())
        }

        #[cfg(target_arch = "x86_64")]
        fn run<S: crate::x86::Sixteen>(self, simd: S) -> Vec<u32> {
            self.by(|dot| dot.run(simd))
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let vector: Vec<f32> = (0..512)
            .map(|i| ((i * 37) % 101) as f32 * 0.02 - 1.0)
            .collect();
        for format in BlockFormat::ALL {
            let size = format.block_bytes();
            let mut bytes: Vec<u8> = (0..3 * 512 / format.block_values() * size)
                .map(|i| (i * 131 + i / 7 * 17) as u8)
                .collect();
            for block in bytes.chunks_exact_mut(size) {
                for (at, _) in format.halves() {
                    block[at + 1] = 0x2c;
                }
                if format == BlockFormat::Q8K {
                    block[3] = 0x3c;
                }
            }
            let outputs = every_way(|| Bits(format, &bytes, &vector));
            assert!(
                outputs.iter().all(|output| output == &outputs[0]),
                "{format}"
            );
        }
    }
}
