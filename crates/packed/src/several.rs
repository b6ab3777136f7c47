//! Products of rows with several vectors at once: what generating tokens of several
//! texts together is made of. A row is fetched and unpacked once for all of them.

use std::{borrow::Cow, ops::Range, sync::OnceLock};

#[cfg(target_arch = "x86_64")]
use crate::floats::{Bf16, F32, Float};
use crate::{
    Format, Packed, PackedError,
    floats::widen,
    interleaved::Digits,
    packed::Parts,
    vector::{LANES, Work, add_products, dispatch, total},
};

/// Rows that are multiplied with several vectors at a time: with a few thousand values each, they stay
/// in a core's own cache until all vectors have been. Calls for a multiple of them are the fastest.
pub const ROWS_TOGETHER: usize = 24;

/// How many rows ahead of what is multiplied memory is fetched.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4;

/// How many vectors a row is multiplied with at once: as many as their sums, and what they are
/// made of, have registers.
const TOGETHER: [usize; 4] = [8, 4, 2, 1];

/// Vectors that rows are multiplied with, arranged once for all rows, when they are first needed.
pub struct Vectors<'a> {
    values: &'a [f32],
    width: usize,
    lines: OnceLock<Vec<Line>>,
    numbers: OnceLock<Numbers>,
}

/// Vectors in whole numbers.
struct Numbers {
    /// Blocks of one after those of another.
    digits: Vec<Digits>,
    /// Those that have none, in whose place are zeros.
    without: Vec<usize>,
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
            lines: OnceLock::new(),
            numbers: OnceLock::new(),
        }
    }

    /// Arranges them for a matrix, so that no thread waits for another that does it.
    pub fn prepare_for(&self, packed: &Packed) {
        match packed.parts {
            Parts::Interleaved(_) => {
                self.numbers();
            }
            _ => {
                self.lines();
            }
        }
    }

    fn lines(&self) -> &[Line] {
        self.lines.get_or_init(|| Line::of(self.values, self.width))
    }

    fn numbers(&self) -> &Numbers {
        self.numbers.get_or_init(|| {
            let n_blocks = self.width / Digits::COLUMNS;
            let mut digits = Vec::with_capacity(self.n() * n_blocks);
            let mut without = Vec::new();
            for (i, vector) in self.values.chunks_exact(self.width).enumerate() {
                if !Digits::add(&mut digits, vector) {
                    without.push(i);
                    digits.extend(std::iter::repeat_n(Digits::ZERO, n_blocks));
                }
            }
            Numbers { digits, without }
        })
    }

    /// How many there are.
    pub fn n(&self) -> usize {
        self.values.len() / self.width
    }
}

impl Packed {
    /// The products of rows with vectors: `output[i][v] = Σ w·x` for the `i`th of `rows` and
    /// vector `v`. The products of a row, as many as there are vectors, lie before those of the
    /// next.
    ///
    /// The same bits that [`dot_rows`](Self::dot_rows) adds for one vector after the other.
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
        let (n, n_rows) = (vectors.n(), rows.len());
        if n == 0 {
            return Ok(());
        }
        if self.is_interleaved() {
            return self.products_with(rows, vectors, |vector, first, products| {
                for (row, product) in (first..).zip(products) {
                    output[row * n + vector] = *product;
                }
            });
        }
        let mut panel = Vec::new();
        for first in (0..n_rows).step_by(ROWS_TOGETHER) {
            let some = first..(first + ROWS_TOGETHER).min(n_rows);
            let absolute = rows.start + some.start..rows.start + some.end;
            let (format, bytes) = match &self.parts {
                Parts::Floats(bytes) => {
                    let size = self.format.block_bytes() * width;
                    let of_rows = size * absolute.start..size * absolute.end;
                    (self.format, Cow::Borrowed(&bytes.as_slice()[of_rows]))
                }
                _ => {
                    panel.resize(ROWS_TOGETHER * width, 0.0);
                    self.unpack(absolute, 0..width, &mut panel, width)?;
                    (Format::F32, as_bytes(&panel[..some.len() * width]))
                }
            };
            dispatch(Several {
                format,
                bytes: &bytes,
                width,
                vectors: vectors.values,
                lines: vectors.lines(),
                output: &mut output[some.start * n..some.end * n],
            });
        }
        Ok(())
    }

    /// The products of [`dot_rows_of_several`](Self::dot_rows_of_several) as they come, for rows that
    /// are [interleaved](Self::interleaved): calls with the number of a vector, the first of some rows,
    /// counted from the beginning of `rows`, and their products.
    ///
    /// # Errors
    ///
    /// As there, and [`PackedError::Unsupported`] for rows that are not interleaved.
    pub fn products_with(
        &self,
        rows: Range<usize>,
        vectors: &Vectors<'_>,
        mut output: impl FnMut(usize, usize, &[f32]),
    ) -> Result<(), PackedError> {
        self.check_rows(&rows)?;
        PackedError::check_length("a vector", vectors.width, self.shape[1].max(1))?;
        let Parts::Interleaved(matrix) = &self.parts else {
            return Err(PackedError::Unsupported {
                what: "rows that are not interleaved",
                found: self.format.to_string(),
                supported: "those that are",
            });
        };
        let numbers = vectors.numbers();
        matrix.products(&rows, &numbers.digits, |first, vector, products| {
            // Of sixteen rows some may not be asked for.
            let some = rows.start.max(first)..rows.end.min(first + products.len());
            let products = &products[some.start - first..some.end - first];
            output(vector, some.start - rows.start, products);
        });
        for &vector in &numbers.without {
            let values = &vectors.values[vector * vectors.width..][..vectors.width];
            let mut products = vec![0.0; rows.len()];
            self.dot_rows(rows.clone(), values, &mut products)?;
            output(vector, 0, &products);
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
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "read by kernels for x86-64 alone")
)]
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
                    let values = &vector[at..end];
                    // Whole lines are copied without a call.
                    lines.push(Self(values.first_chunk().copied().unwrap_or_else(|| {
                        let mut line = [0.0; 16];
                        line[..values.len()].copy_from_slice(values);
                        line
                    })));
                }
            }
        }
        lines
    }
}

/// Sixteen of thirty-two lanes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn half_of<const HALF: usize>(lanes: &[f32; LANES]) -> [f32; 16] {
    let (halves, _) = lanes.as_chunks();
    halves[HALF]
}

struct Several<'a> {
    /// `f32` or bfloat16.
    format: Format,
    /// Of the rows.
    bytes: &'a [u8],
    width: usize,
    vectors: &'a [f32],
    /// The same.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "read by kernels for x86-64 alone")
    )]
    lines: &'a [Line],
    output: &'a mut [f32],
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

    fn n_rows(&self) -> usize {
        self.output.len() / self.n_vectors()
    }

    fn n_vectors(&self) -> usize {
        self.vectors.len() / self.width
    }

    /// `R` rows with `V` vectors: first the products of the lower sixteen lanes, then of the upper,
    /// so that the sums of one half stay in registers.
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
        let lower = self.half::<S, F, BYTES, R, V, 0>(simd, row, vector);
        let upper = self.half::<S, F, BYTES, R, V, 1>(simd, row, vector);
        // Written out: an index that is computed takes sums out of registers.
        self.put::<S, R, V, 0>(simd, &lower, &upper, row, vector);
        self.put::<S, R, V, 1>(simd, &lower, &upper, row, vector);
        self.put::<S, R, V, 2>(simd, &lower, &upper, row, vector);
        self.put::<S, R, V, 3>(simd, &lower, &upper, row, vector);
    }

    /// Adds up the lanes of the `PART`th eight products of a tile, if there are so many.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn put<S: crate::x86::Sixteen, const R: usize, const V: usize, const PART: usize>(
        &mut self,
        simd: S,
        lower: &[[S::Values; V]; R],
        upper: &[[S::Values; V]; R],
        row: usize,
        vector: usize,
    ) {
        const { assert!(R * V <= 32 && 8 % V == 0, "of four parts") };
        let n = self.n_vectors();
        let mut some = [simd.splat(0.0); 8];
        for (i, sums) in some.iter_mut().enumerate() {
            let (r, v) = ((8 * PART + i) / V, (8 * PART + i) % V);
            if r < R {
                *sums = simd.add(lower[r][v], upper[r][v]);
            }
        }
        if 8 * PART < R * V {
            let totals = simd.totals(&some);
            for i in 0..8 / V {
                let r = 8 * PART / V + i;
                if r < R {
                    self.output[(row + r) * n + vector..][..V]
                        .copy_from_slice(&totals[i * V..][..V]);
                }
            }
        }
    }

    /// The sums of half the lanes of [`tile`](Self::tile).
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn half<
        S: crate::x86::Sixteen,
        F: Float<BYTES>,
        const BYTES: usize,
        const R: usize,
        const V: usize,
        const HALF: usize,
    >(
        &self,
        simd: S,
        row: usize,
        vector: usize,
    ) -> [[S::Values; V]; R] {
        // One by one: zeros for all at once would be written to memory.
        let mut sums = std::array::from_fn::<_, R, _>(
            #[inline(always)]
            |_| {
                std::array::from_fn::<_, V, _>(
                    #[inline(always)]
                    |_| simd.splat(0.0),
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
        // Lines beyond a vector's last whole 32 values, one or two, have no part in this.
        for (i, pair) in lines
            .as_chunks::<V>()
            .0
            .as_chunks::<2>()
            .0
            .iter()
            .take(width / LANES)
            .enumerate()
        {
            if vector == 0 {
                // Each half fetches half of what lies in as many rows.
                let at = (HALF * (width / LANES) + i) * R / 2;
                for part in 0..R.div_ceil(2) {
                    crate::x86::fetch(next, BYTES * LANES, at + part);
                }
            }
            let mut left = [simd.splat(0.0); R];
            for r in 0..R {
                let Some(bytes) = rows[r].next() else {
                    break;
                };
                left[r] = F::sixteen(simd, &bytes[BYTES * 16 * HALF..][..BYTES * 16]);
            }
            for v in 0..V {
                let right = simd.load(pair[HALF][v].0);
                for r in 0..R {
                    sums[r][v] = simd.mul_add(right, left[r], sums[r][v]);
                }
            }
        }
        if whole < width {
            // A copy, as these indices are computed, which takes sums out of registers.
            let mut to_the_end = sums;
            for (r, sums) in to_the_end.iter_mut().enumerate() {
                let left = half_of::<HALF>(&self.lanes(row + r, whole));
                for (v, sum) in sums.iter_mut().enumerate() {
                    let right = half_of::<HALF>(&self.of_vector(vector + v, whole));
                    *sum = simd.mul_add(simd.load(right), simd.load(left), *sum);
                }
            }
            return to_the_end;
        }
        sums
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
        let n_rows = self.n_rows();
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
            // As many sums as there are registers for, of sixteen values each.
            match (group.len(), S::IS_ONE_REGISTER) {
                (8, true) => self.columns::<S, F, BYTES, 3, 8>(simd, group.start),
                (8, false) => self.columns::<S, F, BYTES, 1, 8>(simd, group.start),
                (4, true) => self.columns::<S, F, BYTES, 4, 4>(simd, group.start),
                (4, false) => self.columns::<S, F, BYTES, 1, 4>(simd, group.start),
                (2, true) => self.columns::<S, F, BYTES, 8, 2>(simd, group.start),
                (2, false) => self.columns::<S, F, BYTES, 2, 2>(simd, group.start),
                (_, true) => self.columns::<S, F, BYTES, 8, 1>(simd, group.start),
                (_, false) => self.columns::<S, F, BYTES, 4, 1>(simd, group.start),
            }
        }
    }
}

impl Work for Several<'_> {
    type Output = ();

    #[inline(always)]
    fn plain(self) {
        let n = self.n_vectors();
        for row in 0..self.n_rows() {
            for vector in 0..n {
                let mut sums = [0.0; LANES];
                for at in (0..self.width).step_by(LANES) {
                    let (left, right) = (self.of_vector(vector, at), self.lanes(row, at));
                    add_products(&mut sums, &left, &right);
                }
                self.output[row * n + vector] = total(sums);
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
                        let mut together = vec![9.0; n * rows.len()];
                        let several = Vectors::new(&vectors, width);
                        packed
                            .dot_rows_of_several(rows.clone(), &several, &mut together)
                            .unwrap();
                        let mut alone = together.clone();
                        for (v, vector) in vectors.chunks(width).enumerate() {
                            let mut output = vec![0.0; rows.len()];
                            packed.dot_rows(rows.clone(), vector, &mut output).unwrap();
                            for (alone, output) in alone[v..].iter_mut().step_by(n).zip(output) {
                                *alone = output;
                            }
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

    /// Whatever follows the last whole 32 values of a row is multiplied once.
    #[test]
    fn what_is_not_finite_is_that_of_each_alone() {
        for width in [15, 24, 31, 40, 56, 64] {
            let packed = Packed::pack(Format::F32, [5, width], &vec![1.0; 5 * width]).unwrap();
            for at in [0, width / 2, width - 1] {
                let mut vectors = vec![1.0; 2 * width];
                vectors[at] = f32::INFINITY;
                let mut together = vec![0.0; 10];
                let several = Vectors::new(&vectors, width);
                packed
                    .dot_rows_of_several(0..5, &several, &mut together)
                    .unwrap();
                assert_eq!(
                    together,
                    [f32::INFINITY, width as f32].repeat(5),
                    "{width}, {at}"
                );
            }
        }
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
