//! `Q4_0` with the rows interleaved, and products with vectors in whole numbers.
//!
//! A processor multiplies 64 pairs of bytes with one instruction (`vpdpbusd` of AVX-512 VNNI), and
//! 16 pairs of `f32`. So a vector is written in whole numbers: 32 values at a time are rounded to
//! multiples of a power of two, which moves none by more than about 2⁻²³ of the largest of them (1.008
//! times that; `f32` moves each by 2⁻²⁴ of itself at most). Such a number has three digits to the base 256,
//! and each digit is multiplied with the four bits of a weight exactly. What is rounded otherwise are,
//! as always, sums.
//!
//! For that, four columns of sixteen rows lie together. Sixteen sums are then in a register, and none
//! is added up across it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use crate::{BlockFormat, Bytes, vector::half};

/// Rows that lie together.
pub(crate) const ROWS: usize = 16;

/// Values of a block.
const COLUMNS: usize = 32;

/// Bytes of a block's scale.
const SCALE: usize = 2;

/// Bytes that a block's quants are divided into, of which each has two columns.
const QUARTER: usize = 4;

/// What the four bits of a zero are.
const ZERO: i32 = 8;

/// A matrix of [`BlockFormat::Q4_0`] whose rows are interleaved by sixteen.
///
/// Sixteen rows after the other; of them, of each block, first the sixteen scales. Then, of each
/// block and each quarter of its quants, those of sixteen rows, four bytes each.
#[derive(Clone, Debug)]
pub(crate) struct Interleaved {
    bytes: Bytes,
    /// Of a row.
    n_blocks: usize,
}

impl Interleaved {
    /// A matrix as files have it, rows of `n_blocks` after each other; `None` unless they are
    /// sixteen, or a multiple of it.
    pub(crate) fn new(file: &[u8], n_blocks: usize) -> Option<Self> {
        const LINE: usize = 64;
        let size = BlockFormat::Q4_0.block_bytes();
        let sixteen = ROWS * n_blocks * size;
        if sixteen == 0 || !file.len().is_multiple_of(sixteen) {
            return None;
        }
        // Quants that lie in two lines of a cache take twice as long.
        let mut bytes: Vec<u8> = Vec::with_capacity(file.len() + LINE);
        let before = bytes.as_ptr().align_offset(LINE).min(LINE);
        bytes.resize(before, 0);
        for rows in file.chunks_exact(sixteen) {
            let block = |row: usize, i: usize| &rows[(row * n_blocks + i) * size..][..size];
            for i in 0..n_blocks {
                for row in 0..ROWS {
                    bytes.extend_from_slice(&block(row, i)[..SCALE]);
                }
            }
            for i in 0..n_blocks {
                for quarter in (SCALE..size).step_by(QUARTER) {
                    for row in 0..ROWS {
                        bytes.extend_from_slice(&block(row, i)[quarter..][..QUARTER]);
                    }
                }
            }
        }
        let range = before..bytes.len();
        let bytes = Bytes::part(Arc::new(bytes), range).ok()?;
        Some(Self { bytes, n_blocks })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of sixteen rows.
    fn sixteen(&self) -> usize {
        ROWS * self.n_blocks * BlockFormat::Q4_0.block_bytes()
    }

    /// Some blocks of some rows, as files have them.
    pub(crate) fn rows(&self, rows: Range<usize>, blocks: &Range<usize>) -> Vec<u8> {
        const BLOCK: usize = BlockFormat::Q4_0.block_bytes();
        let width = blocks.len() * BLOCK;
        let mut file = vec![0; rows.len() * width];
        for (row, file) in rows.zip(file.chunks_exact_mut(width.max(1))) {
            let group = &self.bytes.as_slice()[row / ROWS * self.sixteen()..][..self.sixteen()];
            let rows = Rows::new(group, self.n_blocks);
            let found = rows.blocks().skip(blocks.start);
            for (block, (scales, quants)) in file.as_chunks_mut::<BLOCK>().0.iter_mut().zip(found) {
                let (scale, of_block) = block.split_at_mut(SCALE);
                scale.copy_from_slice(&scales.as_chunks::<SCALE>().0[row % ROWS]);
                let quarters = of_block.as_chunks_mut::<QUARTER>().0;
                for (of_block, quarter) in quarters.iter_mut().zip(quants) {
                    *of_block = quarter.as_chunks().0[row % ROWS];
                }
            }
        }
        file
    }

    /// Calls for each sixteen rows of which some are among `rows`, and for each vector, with the
    /// first row, the vector and the products.
    pub(crate) fn products(
        &self,
        rows: &Range<usize>,
        vectors: &[Digits],
        output: impl FnMut(usize, usize, &[f32; ROWS]),
    ) {
        let groups = rows.start / ROWS..rows.end.div_ceil(ROWS);
        let bytes = groups.start * self.sixteen()..groups.end * self.sixteen();
        let work = Products {
            bytes: &self.bytes.as_slice()[bytes],
            first: groups.start * ROWS,
            n_blocks: self.n_blocks,
            vectors,
        };
        work.by(Instructions::best(), output);
    }
}

/// What sixteen rows are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instructions {
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Those that every processor has.
    Plain,
}

impl Instructions {
    /// Those that this processor has, the fastest first.
    #[allow(clippy::vec_init_then_push, reason = "not on every processor's kind")]
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let features = [
                is_x86_feature_detected!("avx512f"),
                is_x86_feature_detected!("avx512bw"),
                is_x86_feature_detected!("avx512vl"),
                is_x86_feature_detected!("avx512vnni"),
            ];
            if features.iter().all(|has| *has) {
                all.push(Self::Vnni);
            }
            let features = [
                is_x86_feature_detected!("avx2"),
                is_x86_feature_detected!("fma"),
                is_x86_feature_detected!("f16c"),
            ];
            if features.iter().all(|has| *has) {
                all.push(Self::Avx2);
            }
        }
        all.push(Self::Plain);
        all
    }

    fn best() -> Self {
        static BEST: OnceLock<Instructions> = OnceLock::new();
        *BEST.get_or_init(|| Self::all()[0])
    }
}

/// Whether this processor has instructions for which rows are interleaved.
pub(crate) fn is_fast() -> bool {
    Instructions::best() != Instructions::Plain
}

/// Thirty-two values of a vector as whole numbers of `unit`, of three digits to the base 256, each
/// from −128 to 127.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Digits {
    /// By digit, the lowest first: four columns in a number, the first of them in its lowest byte.
    columns: [[i32; COLUMNS / 4]; 3],
    /// What is to be added to products with nibbles, of which eight is zero: −8 times the sum of
    /// the digits.
    offsets: [i32; 3],
    unit: f32,
}

impl Digits {
    /// Values of a block.
    pub(crate) const COLUMNS: usize = COLUMNS;

    /// Those of zeros.
    pub(crate) const ZERO: Self = Self {
        columns: [[0; COLUMNS / 4]; 3],
        offsets: [0; 3],
        unit: 0.0,
    };

    /// Adds those of a vector of whole blocks to `all`; adds none and says so if it holds something that
    /// is infinite or not a number, or a block whose largest value is about 2¹²⁴ or more, or less than
    /// about 2⁻⁶³ and not 0.
    pub(crate) fn add(all: &mut Vec<Self>, vector: &[f32]) -> bool {
        Self::add_by(Instructions::best(), all, vector)
    }

    fn add_by(instructions: Instructions, all: &mut Vec<Self>, vector: &[f32]) -> bool {
        let before = all.len();
        let added = match instructions {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has the instructions.
            Instructions::Vnni => unsafe { vnni::add_digits(all, vector) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Instructions::Avx2 => unsafe { avx2::add_digits(all, vector) },
            Instructions::Plain => vector.as_chunks().0.iter().try_for_each(|block| {
                all.push(Self::of_block(block)?);
                Some(())
            }),
        };
        if added.is_none() {
            all.truncate(before);
        }
        added.is_some()
    }

    /// Those of a vector, if it has some.
    pub(crate) fn of(vector: &[f32]) -> Option<Vec<Self>> {
        let mut all = Vec::with_capacity(vector.len() / COLUMNS);
        Self::add(&mut all, vector).then_some(all)
    }

    /// The slow, obvious version.
    fn of_block(values: &[f32; COLUMNS]) -> Option<Self> {
        let magnitudes = values.iter().map(|value| value.to_bits() & !SIGN);
        let Units { unit, per_unit } = Units::of(magnitudes.max().unwrap_or(0))?;
        let mut found = Self { unit, ..Self::ZERO };
        for (i, value) in values.iter().enumerate() {
            let mut number = (value * per_unit).round_ties_even() as i32;
            for digit in 0..3 {
                let lowest = number as i8;
                let place = 8 * (i % 4);
                found.columns[digit][i / 4] |= i32::from(lowest.cast_unsigned()) << place;
                found.offsets[digit] -= ZERO * i32::from(lowest);
                // What is left, divided by 256, is whole.
                number = (number + 128) >> 8;
            }
        }
        Some(found)
    }
}

/// The bit of an `f32` that says that it is negative.
const SIGN: u32 = 1 << 31;

/// What a block's values are whole numbers of, and how many of it are one.
struct Units {
    unit: f32,
    per_unit: f32,
}

impl Units {
    /// For a block, given the bits of the largest magnitude in it.
    #[inline(always)]
    fn of(largest: u32) -> Option<Self> {
        /// Of numbers from 2⁻⁶³ to 2¹²⁴: with the scales of weights, no product is out of reach.
        const EXPONENTS: Range<u32> = 64..251;
        if largest == 0 {
            return Some(Self {
                unit: 0.0,
                per_unit: 0.0,
            });
        }
        // A little more, so that the highest digit of the largest number is one.
        let exponent = (f32::from_bits(largest) * (1.0 + 1.0 / 128.0)).to_bits() >> 23;
        EXPONENTS.contains(&exponent).then(|| Self {
            unit: f32::from_bits((exponent - 22) << 23),
            per_unit: f32::from_bits((254 + 22 - exponent) << 23),
        })
    }
}

/// Sixteen rows.
#[derive(Clone, Copy)]
struct Rows<'a> {
    scales: &'a [[u8; ROWS * SCALE]],
    quants: &'a [[[u8; ROWS * QUARTER]; 4]],
    #[cfg(target_arch = "x86_64")]
    n_blocks: usize,
    /// Whether those that come next are to be fetched meanwhile.
    #[cfg(target_arch = "x86_64")]
    fetches: bool,
}

impl<'a> Rows<'a> {
    fn new(bytes: &'a [u8], n_blocks: usize) -> Self {
        let (scales, quants) = bytes.split_at(ROWS * n_blocks * SCALE);
        Self {
            scales: scales.as_chunks().0,
            quants: quants.as_chunks().0.as_chunks().0,
            #[cfg(target_arch = "x86_64")]
            n_blocks,
            #[cfg(target_arch = "x86_64")]
            fetches: false,
        }
    }

    /// The scales and quants of one block after the other.
    #[inline(always)]
    fn blocks(
        self,
    ) -> impl Iterator<Item = (&'a [u8; ROWS * SCALE], &'a [[u8; ROWS * QUARTER]; 4])> {
        self.scales.iter().zip(self.quants)
    }

    /// Fetches a part of the next sixteen rows, which lie behind these, while block `i` is worked on.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn fetch_next(self, i: usize) {
        if self.fetches {
            let next = self.quants.as_ptr_range().end.cast();
            crate::x86::fetch(next, ROWS * BlockFormat::Q4_0.block_bytes(), i);
        }
    }
}

/// Sixteen rows after the other, and what they are multiplied with.
struct Products<'a> {
    bytes: &'a [u8],
    /// The number of the first row.
    first: usize,
    n_blocks: usize,
    /// The blocks of one vector after those of another.
    vectors: &'a [Digits],
}

impl Products<'_> {
    fn by(&self, instructions: Instructions, output: impl FnMut(usize, usize, &[f32; ROWS])) {
        match instructions {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has the instructions.
            Instructions::Vnni => self.in_tiles(output, |rows, vectors, put| unsafe {
                vnni::some_vectors(rows, vectors, put)
            }),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Instructions::Avx2 => self.in_tiles(output, |rows, vectors, put| unsafe {
                avx2::some_vectors(rows, vectors, put)
            }),
            Instructions::Plain => self.plain(output),
        }
    }

    /// By a function that multiplies sixteen rows with some of the vectors it is given, says how many,
    /// and gives the products of each.
    #[cfg(target_arch = "x86_64")]
    fn in_tiles(
        &self,
        mut output: impl FnMut(usize, usize, &[f32; ROWS]),
        tile: impl Fn(Rows<'_>, &[Digits], &mut dyn FnMut(usize, &[f32; ROWS])) -> usize,
    ) {
        /// Bytes of the vectors that all rows are multiplied with before others: a core's cache has
        /// room for them, and for sixteen rows.
        const VECTORS: usize = 1 << 18;
        /// A multiple of as many as are multiplied at once, whatever the instructions.
        const TOGETHER: usize = 12;
        let n_blocks = self.n_blocks;
        let sixteen = ROWS * n_blocks * BlockFormat::Q4_0.block_bytes();
        let at_once = (VECTORS / size_of::<Digits>() / n_blocks / TOGETHER).max(1) * TOGETHER;
        for (part, vectors) in self.vectors.chunks(at_once * n_blocks).enumerate() {
            for (group, bytes) in self.bytes.chunks_exact(sixteen).enumerate() {
                let first = self.first + group * ROWS;
                let mut done = 0;
                while done * n_blocks < vectors.len() {
                    let number = part * at_once + done;
                    let rows = Rows {
                        fetches: number == 0,
                        ..Rows::new(bytes, n_blocks)
                    };
                    done += tile(rows, &vectors[done * n_blocks..], &mut |i, products| {
                        output(first, number + i, products);
                    });
                }
            }
        }
    }

    /// The slow, obvious version.
    ///
    /// The sum over a block is exact but for one rounding, and those of blocks are added as they come.
    fn plain(&self, mut output: impl FnMut(usize, usize, &[f32; ROWS])) {
        let sixteen = ROWS * self.n_blocks * BlockFormat::Q4_0.block_bytes();
        for (group, bytes) in self.bytes.chunks_exact(sixteen).enumerate() {
            let (scales, quants) = bytes.split_at(ROWS * self.n_blocks * SCALE);
            for (vector, blocks) in self.vectors.chunks_exact(self.n_blocks).enumerate() {
                let mut sums = [0.0; ROWS];
                for (i, block) in blocks.iter().enumerate() {
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let scale = &scales[(i * ROWS + row) * SCALE..];
                        let scale = half([scale[0], scale[1]]) * block.unit;
                        let mut parts = block.offsets;
                        for column in 0..COLUMNS {
                            // Low nibbles are the first half of the columns.
                            let (byte, shift) = (column % 16, column / 16 * 4);
                            let at = (4 * i + byte / QUARTER) * ROWS + row;
                            let quant = quants[at * QUARTER + byte % QUARTER] >> shift & 15;
                            for (part, columns) in parts.iter_mut().zip(&block.columns) {
                                let digit = columns[column / 4].to_le_bytes()[column % 4];
                                *part += i32::from(quant) * i32::from(digit.cast_signed());
                            }
                        }
                        let low = ((parts[1] << 8) + parts[0]) as f32;
                        let product = (parts[2] as f32).mul_add(65536.0, low);
                        *sum = product.mul_add(scale, *sum);
                    }
                }
                output(self.first + group * ROWS, vector, &sums);
            }
        }
    }
}
