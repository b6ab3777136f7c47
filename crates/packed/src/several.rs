//! Products of rows with several vectors at once: what generating tokens of several
//! texts together is made of. A row is fetched and unpacked once for all of them.

use std::{borrow::Cow, ops::Range};

use crate::{
    Format, Packed, PackedError,
    floats::{Bf16, F32, Float, widen},
    packed::Parts,
    vector::{LANES, Work, add_products, dispatch, total},
};

/// Rows that are unpacked at a time: with a few thousand values each, they stay in a core's own
/// cache until all vectors have been multiplied with them.
const ROWS: usize = 16;

/// How many rows ahead of what is multiplied memory is fetched.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 8;

/// How many vectors a row is multiplied with at once: as many as their sums, and what they are
/// made of, have registers.
const TOGETHER: [usize; 4] = [8, 4, 2, 1];

/// Vectors that rows are multiplied with, arranged once for all rows.
pub struct Vectors<'a> {
    values: &'a [f32],
    width: usize,
    lines: Vec<Line>,
}

/// Vectors, by number, in groups of as many as are multiplied at once.
fn groups(n: usize) -> impl Iterator<Item = Range<usize>> {
    let mut end = 0;
    std::iter::from_fn(move || {
        let start = end;
        let size = TOGETHER.into_iter().find(|size| *size <= n - start)?;
        end = start + size;
        Some(start..end)
    })
}

impl<'a> Vectors<'a> {
    /// Vectors of `width` values, one after the other; what is left over counts for nothing.
    pub fn new(values: &'a [f32], width: usize) -> Self {
        let width = width.max(1);
        let values = &values[..values.len() / width * width];
        Self {
            values,
            width,
            lines: Line::of(values, width),
        }
    }

    /// How many there are.
    pub fn n(&self) -> usize {
        self.values.len() / self.width
    }
}

impl Packed {
    /// Adds to the outputs the products of rows with vectors: `output[v][i] += Σ w·x` for
    /// the `i`th of `rows` and vector `v`. The outputs of a vector, as many as there are
    /// `rows`, lie before those of the next.
    ///
    /// The same bits as from [`dot_rows`](Self::dot_rows) for one vector after the other.
    ///
    /// # Errors
    ///
    /// [`PackedError::Range`] for rows that are not there, [`PackedError::Length`] for
    /// vectors that are not as long as a row, or an output that has not a place for each
    /// product.
    pub fn dot_rows_of_several(
        &self,
        rows: Range<usize>,
        vectors: &Vectors<'_>,
        output: &mut [f32],
    ) -> Result<(), PackedError> {
        self.check_rows(&rows)?;
        let width = vectors.width;
        PackedError::check_length("a vector", width, self.shape[1].max(1))?;
        PackedError::check_length("the output", output.len(), vectors.n() * rows.len())?;
        let n_rows = rows.len();
        let mut panel = Vec::new();
        for first in (0..n_rows).step_by(ROWS) {
            let some = first..(first + ROWS).min(n_rows);
            let absolute = rows.start + some.start..rows.start + some.end;
            let (format, bytes) = match &self.parts {
                Parts::Floats(bytes) => {
                    let size = self.format.block_bytes() * width;
                    let of_rows = size * absolute.start..size * absolute.end;
                    (self.format, Cow::Borrowed(&bytes.as_slice()[of_rows]))
                }
                _ => {
                    panel.resize(ROWS * width, 0.0);
                    self.unpack(absolute, 0..width, &mut panel, width)?;
                    (Format::F32, as_bytes(&panel[..some.len() * width]))
                }
            };
            dispatch(Several {
                format,
                bytes: &bytes,
                width,
                vectors: vectors.values,
                lines: &vectors.lines,
                output: &mut *output,
                place: some,
                stride: n_rows,
            });
        }
        Ok(())
    }
}

/// Values as bytes of files, the low one first: on most machines what they are.
fn as_bytes(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        )
    }
}

/// Sixteen values that lie in one line of a cache: of a load that reaches into two, a processor does
/// half as many.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([f32; 16]);

impl Line {
    /// Vectors in lines, the last of each filled up with zeros. Of each group the first line of all
    /// its vectors, then the second, so that what a value is multiplied with lies together.
    fn of(vectors: &[f32], width: usize) -> Vec<Self> {
        let mut lines = Vec::with_capacity(vectors.len() / width * width.div_ceil(16));
        for group in groups(vectors.len() / width) {
            let group = &vectors[group.start * width..group.end * width];
            for at in (0..width).step_by(16) {
                let end = (at + 16).min(width);
                for vector in group.chunks_exact(width) {
                    let mut line = [0.0; 16];
                    line[..end - at].copy_from_slice(&vector[at..end]);
                    lines.push(Self(line));
                }
            }
        }
        lines
    }
}

struct Several<'a> {
    /// `f32` or bfloat16.
    format: Format,
    /// Of the rows.
    bytes: &'a [u8],
    width: usize,
    vectors: &'a [f32],
    /// The same.
    lines: &'a [Line],
    output: &'a mut [f32],
    /// Where the rows' products are within those of a vector.
    place: Range<usize>,
    /// Between the products of one vector and of the next.
    stride: usize,
}

impl Several<'_> {
    /// Thirty-two values of a row, from column `at` on; zeros beyond its end.
    #[inline(always)]
    fn lanes(&self, row: usize, at: usize) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        let n = LANES.min(self.width - at);
        let size = self.format.block_bytes();
        let start = size * (row * self.width + at);
        widen(
            self.format,
            &self.bytes[start..start + size * n],
            &mut lanes[..n],
        );
        lanes
    }

    /// Thirty-two values of a vector, from column `at` on; zeros beyond its end.
    #[inline(always)]
    fn of_vector(&self, vector: usize, at: usize) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        let n = LANES.min(self.width - at);
        lanes[..n].copy_from_slice(&self.vectors[vector * self.width + at..][..n]);
        lanes
    }

    #[inline(always)]
    fn add(&mut self, vector: usize, row: usize, sum: f32) {
        self.output[vector * self.stride + self.place.start + row] += sum;
    }

    fn n_vectors(&self) -> usize {
        self.vectors.len() / self.width
    }

    /// `R` rows with `V` vectors, eight products at most: the sums of all stay in registers.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn tile<
        S: crate::x86::Sixteen,
        F: Float<BYTES>,
        const BYTES: usize,
        const R: usize,
        const V: usize,
    >(
        &mut self,
        simd: S,
        row: usize,
        vector: usize,
    ) {
        let mut sums = [(); R].map(
            #[inline(always)]
            |()| {
                [(); V].map(
                    #[inline(always)]
                    |()| crate::x86::Sums::new(simd),
                )
            },
        );
        let (width, whole) = (self.width, self.width / LANES * LANES);
        let mut rows: [_; R] = std::array::from_fn(
            #[inline(always)]
            |r| {
                self.bytes[BYTES * (row + r) * width..][..BYTES * whole].chunks_exact(BYTES * LANES)
            },
        );
        // Rows lie one after the other, and are fetched so.
        let next = self
            .bytes
            .as_ptr()
            .wrapping_add(BYTES * (row + AHEAD) * width);
        let per_vector = width.div_ceil(16);
        let lines = &self.lines[vector * per_vector..][..V * per_vector];
        // A vector may have a line beyond its last whole 32 values, which comes in no pair.
        for (i, pair) in lines
            .as_chunks::<V>()
            .0
            .as_chunks::<2>()
            .0
            .iter()
            .enumerate()
        {
            for r in 0..R {
                let Some(bytes) = rows[r].next() else {
                    break;
                };
                if vector == 0 {
                    crate::x86::fetch(next, BYTES * LANES, i * R + r);
                }
                // Written out, so that sums stay in registers: an index that is computed takes
                // them out.
                for half in 0..2 {
                    let left = F::sixteen(simd, &bytes[BYTES * 16 * half..][..BYTES * 16]);
                    for v in 0..V {
                        sums[r][v].add_sixteen(simd, half, simd.load(pair[half][v].0), left);
                    }
                }
            }
        }
        if whole < width {
            for (r, sums) in sums.iter_mut().enumerate() {
                let left = self.lanes(row + r, whole);
                for (v, sums) in sums.iter_mut().enumerate() {
                    let right = self.of_vector(vector + v, whole);
                    sums.add(simd, &right, &left);
                }
            }
        }
        let mut of_all = [simd.splat(0.0); 8];
        for (r, sums) in sums.into_iter().enumerate() {
            for (v, sums) in sums.into_iter().enumerate() {
                of_all[r * V + v] = sums.sixteen(simd);
            }
        }
        let totals = simd.totals(&of_all);
        for r in 0..R {
            for v in 0..V {
                self.add(vector + v, row + r, totals[r * V + v]);
            }
        }
    }

    /// All rows with `V` vectors, `R` rows at a time.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn columns<
        S: crate::x86::Sixteen,
        F: Float<BYTES>,
        const BYTES: usize,
        const R: usize,
        const V: usize,
    >(
        &mut self,
        simd: S,
        vector: usize,
    ) {
        let n_rows = self.place.len();
        let whole = n_rows / R * R;
        for row in (0..whole).step_by(R) {
            self.tile::<S, F, BYTES, R, V>(simd, row, vector);
        }
        for row in whole..n_rows {
            self.tile::<S, F, BYTES, 1, V>(simd, row, vector);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn all<S: crate::x86::Sixteen, F: Float<BYTES>, const BYTES: usize>(&mut self, simd: S) {
        for group in groups(self.n_vectors()) {
            match group.len() {
                8 => self.columns::<S, F, BYTES, 1, 8>(simd, group.start),
                4 => self.columns::<S, F, BYTES, 2, 4>(simd, group.start),
                2 => self.columns::<S, F, BYTES, 4, 2>(simd, group.start),
                _ => self.columns::<S, F, BYTES, 4, 1>(simd, group.start),
            }
        }
    }
}

impl Work for Several<'_> {
    type Output = ();

    #[inline(always)]
    fn plain(mut self) {
        for row in 0..self.place.len() {
            for vector in 0..self.n_vectors() {
                let mut sums = [0.0; LANES];
                for at in (0..self.width).step_by(LANES) {
                    let (left, right) = (self.of_vector(vector, at), self.lanes(row, at));
                    add_products(&mut sums, &left, &right);
                }
                self.add(vector, row, total(sums));
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run<S: crate::x86::Sixteen>(mut self, simd: S) {
        if self.format == Format::Bf16 {
            self.all::<S, Bf16, 2>(simd);
        } else {
            self.all::<S, F32, 4>(simd);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::vector::every_way;

    fn some(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0)
            .collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Every format, rows about the sizes of tiles and panels, and every number of vectors that
    /// goes another way.
    #[test]
    fn several_vectors_have_the_bits_of_each_alone() {
        let blocks = crate::BlockFormat::ALL.map(Format::Blocks);
        let others = [Format::Nf4, Format::Nf4Double, Format::Bf16, Format::F32];
        for format in blocks.into_iter().chain(others) {
            let unit = format.block_values().max(1);
            for width in [
                unit,
                3 * unit,
                24 * unit,
                56 * unit,
                unit.max(512),
                37 * unit,
            ] {
                let n_rows = 35;
                let Ok(packed) = Packed::pack(format, [n_rows, width], &some(n_rows * width, 1))
                else {
                    // Nothing is packed into this format here.
                    continue;
                };
                for n in [1, 2, 3, 5, 8] {
                    for rows in [0..n_rows, 3..4, 7..25] {
                        let vectors = some(n * width, 2);
                        let before = some(n * rows.len(), 3);
                        let mut together = before.clone();
                        let several = Vectors::new(&vectors, width);
                        packed
                            .dot_rows_of_several(rows.clone(), &several, &mut together)
                            .unwrap();
                        let mut alone = before.clone();
                        for (vector, output) in
                            vectors.chunks(width).zip(alone.chunks_mut(rows.len()))
                        {
                            packed.dot_rows(rows.clone(), vector, output).unwrap();
                        }
                        assert_eq!(
                            bits(&together),
                            bits(&alone),
                            "{format:?} {width} {n} {rows:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        struct Bits<'a>(&'a [f32], &'a [f32]);
        impl Bits<'_> {
            fn by(self, run: impl FnOnce(Several<'_>)) -> Vec<u32> {
                let mut output = vec![0.0; 3 * 5];
                run(Several {
                    format: Format::F32,
                    bytes: &as_bytes(self.0),
                    width: 99,
                    vectors: self.1,
                    lines: &Line::of(self.1, 99),
                    output: &mut output,
                    place: 0..3,
                    stride: 3,
                });
                bits(&output)
            }
        }
        impl Work for Bits<'_> {
            type Output = Vec<u32>;
            fn plain(self) -> Vec<u32> {
                self.by(|several| several.plain())
            }
            #[cfg(target_arch = "x86_64")]
            fn run<S: crate::x86::Sixteen>(self, simd: S) -> Vec<u32> {
                self.by(|several| several.run(simd))
            }
        }
        let (values, vectors) = (some(3 * 99, 1), some(5 * 99, 2));
        let outputs = every_way(|| Bits(&values, &vectors));
        assert!(outputs.iter().all(|output| output == &outputs[0]));
    }

    #[test]
    fn vectors_of_another_length_are_refused() {
        let packed = Packed::pack(Format::F32, [2, 4], &some(8, 1)).unwrap();
        let dot = |width, rows, n_outputs: usize| {
            let values = [0.0; 8];
            let vectors = Vectors::new(&values, width);
            packed.dot_rows_of_several(rows, &vectors, &mut vec![0.0; n_outputs])
        };
        assert!(dot(4, 0..2, 4).is_ok());
        assert!(dot(2, 0..2, 8).is_err());
        assert!(dot(4, 0..2, 3).is_err());
        assert!(dot(4, 0..3, 6).is_err());
    }
}
