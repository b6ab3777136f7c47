//! Products of rows that are rounded to bf16 with packed weights that are, too, summed in f32.
//!
//! No library at hand does this: `gemm` 0.19, which Burn's `flex` and our f32 products stand on,
//! knows f16 but not bf16, and has neither of these instructions; `matrixmultiply` and `faer` have
//! f32 and f64; oneDNN, MKL and XNNPACK are C++ that would be built, and found, beside the program.
//!
//! The rows are laid out once for a product ([`Rounded`]), and a weight some columns at a time,
//! straight from what it is packed in, in both directions: nothing of its size is kept beside it.
//! That takes a few hundredths of the time of a product with some hundred rows, as measured
//! (BENCHMARKS.md, "bf16 on the CPU").
//!
//! ## What is the same on every processor
//!
//! Products of two bf16 values are exact in f32, so kernels differ in the order of sums, and in
//! what they do at the ends of the range: the instructions take subnormal values (below 1.2e-38)
//! for zero, whether they go in or come out. NaN and infinities come out alike. With one kernel,
//! results do not depend on the number of threads, nor on what other rows are in a product.

use std::{cell::Cell, ops::Range};

use olora_packed::Packed;
use rayon::prelude::*;

use super::matrix::{Before, Matrix};
use crate::stored::unpack;
use block::{Block, EDGE, HALF, LINE, Sums};
pub(super) use inputs::Inputs;
pub(super) use kernel::Kernel;
pub(super) use tile::{multiply_alone, multiply_strided};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block;
#[cfg(test)]
mod emulated;
mod inputs;
mod kernel;
#[cfg(test)]
pub(super) mod tests;
mod tile;
#[cfg(test)]
mod update_tests;

/// Multiplications above which a product is worth more than one thread.
const WORTH_THREADS: usize = 1 << 16;

/// Blocks of a weight that are laid out at a time, at most, if one column of blocks has fewer:
/// 1 MiB, which stays in the second cache while all rows are multiplied with them.
const AT_ONCE: usize = 512;

/// Columns of blocks that are laid out at a time, at most.
const WIDEST: usize = 16;

/// Pieces for each thread, if there is enough to do, so that one that is held up does not hold up
/// all.
const PIECES: usize = 4;

/// Blocks of a row that are rounded, or read, before the next row is: whole blocks of every format.
const NEXT_ROW: usize = 8;

/// The nearest bf16 of a value, as f32.
pub(super) fn rounded(x: f32) -> f32 {
    block::widen(block::round(x))
}

/// Which way a packed matrix, `[d_out, d_in]`, is multiplied with.
#[derive(Clone, Debug)]
pub(super) enum Side {
    /// `left·W`, with outputs along the rows of the packed matrix.
    Forward,
    /// `left·Wᵀ` with some of the rows, and outputs along the columns.
    Back(Range<usize>),
}

impl Side {
    /// The inner size, the outer one, and how many columns of blocks are read together.
    fn sizes(&self, packed: &Packed) -> (usize, usize, usize) {
        let [d_out, d_in] = packed.shape();
        match self {
            Self::Forward => (d_in, d_out, 1),
            Self::Back(rows) => {
                assert!(rows.end <= d_out, "rows {rows:?} of {d_out}");
                // Blocks that are cut would be unpacked more than once.
                let unit = packed.format().block_values().div_ceil(EDGE);
                (rows.len(), d_in, unit)
            }
        }
    }
}

/// Rows that have been rounded to bf16 and laid out for a kernel, and what is to be multiplied with
/// more than a weight: see [`Inputs::append`].
struct Rounded {
    /// For each 32 rows, one block for each 32 columns, then those for what is appended.
    blocks: Vec<Block>,
    rows: usize,
    columns: usize,
    steps: usize,
    /// Blocks of 32 rows: `steps`, and those for what is appended.
    all: usize,
}

impl Rounded {
    /// On all threads, in memory that may have been used before; with room for so many more columns.
    fn new(mut blocks: Vec<Block>, kernel: Kernel, left: Matrix, more: usize) -> Self {
        let (rows, columns) = (left.rows(), left.columns());
        let steps = columns.div_ceil(EDGE);
        let all = steps + more.div_ceil(EDGE);
        // What lies in rows beyond the last is never written, but multiplied into rows that are
        // thrown away.
        blocks.resize(rows.div_ceil(EDGE) * all, Block::ZERO);
        let mut rounded = Self {
            blocks,
            rows,
            columns,
            steps,
            all,
        };
        rounded.round(kernel, left, 0..steps);
        rounded
    }

    /// Rounds rows into some of the blocks of each 32 rows.
    fn round(&mut self, kernel: Kernel, left: Matrix, to: Range<usize>) {
        let (rows, columns) = (left.rows(), left.columns());
        assert_eq!(rows, self.rows, "rows");
        assert_eq!(columns.div_ceil(EDGE), to.len(), "blocks of a row");
        let round = |(slab, blocks): (usize, &mut [Block])| {
            let here = EDGE.min(rows - slab * EDGE);
            for (some, blocks) in blocks[to.clone()].chunks_mut(NEXT_ROW).enumerate() {
                let begin = some * NEXT_ROW * EDGE;
                let columns = begin..columns.min(begin + NEXT_ROW * EDGE);
                for i in 0..here {
                    let row = left.row(slab * EDGE + i);
                    kernel.round_row(&row[columns.clone()], blocks, i / HALF, i % HALF);
                }
            }
        };
        if self.all > 0 {
            let of_a_slab = self.all;
            if rows * columns >= WORTH_THREADS {
                self.blocks
                    .par_chunks_mut(of_a_slab)
                    .enumerate()
                    .for_each(round);
            } else {
                self.blocks
                    .chunks_mut(of_a_slab)
                    .enumerate()
                    .for_each(round);
            }
        }
    }

    /// The blocks of 32 rows, without what is appended.
    fn slab(&self, slab: usize) -> &[Block] {
        &self.blocks[slab * self.all..][..self.steps]
    }
}

thread_local! {
    /// Memory that the system gives anew for each product takes longer to come than some products.
    static ROUNDED: Cell<Vec<Block>> = const { Cell::new(Vec::new()) };
    static ROOM: Cell<Room> = const { Cell::new(Room::NONE) };
}

/// What a thread lays out a weight in.
#[derive(Default)]
struct Room {
    laid_out: Vec<Block>,
    /// As it is read: at most [`WIDEST`] blocks.
    read: Vec<Block>,
    /// Unpacked values of as many.
    values: Vec<f32>,
}

impl Room {
    const NONE: Self = Self {
        laid_out: Vec::new(),
        read: Vec::new(),
        values: Vec::new(),
    };
}

/// `output = [output +] left·W`, or `left·Wᵀ`, rows of the output one after the other.
///
/// # Safety
///
/// `output` must be valid for the product's values: for writing, and if they are kept, for
/// reading. Nothing else may read or write there meanwhile.
///
/// # Panics
///
/// If the sizes do not fit, the values of a row of `left` do not lie next to each other, or the
/// processor lacks the kernel.
pub(super) unsafe fn multiply(
    kernel: Kernel,
    output: *mut f32,
    before: Before,
    left: Matrix,
    packed: &Packed,
    side: &Side,
) {
    kernel.check();
    let x = Rounded::new(ROUNDED.take(), kernel, left, 0);
    // SAFETY: the caller's.
    unsafe { multiply_rounded(kernel, output, before, &x, packed, side, None) };
    ROUNDED.set(x.blocks);
}

/// [`multiply`] of rows that are laid out; of what was appended to them with as many rows of
/// `more`, in the same sums.
///
/// # Safety
///
/// As for [`multiply`].
unsafe fn multiply_rounded(
    kernel: Kernel,
    output: *mut f32,
    before: Before,
    x: &Rounded,
    packed: &Packed,
    side: &Side,
    more: Option<Matrix>,
) {
    let (inner, width, unit) = side.sizes(packed);
    assert_eq!(x.columns, inner, "inner dimensions");
    assert_eq!(
        x.all - x.steps,
        more.map_or(0, |more| more.rows().div_ceil(EDGE)),
        "blocks for what is appended"
    );
    assert!(
        more.is_none_or(|more| more.columns() == width && more.has_dense_rows()),
        "columns of what is appended"
    );
    let worth = x.rows * inner * width >= WORTH_THREADS;
    let threads = if worth {
        rayon::current_num_threads()
    } else {
        1
    };
    let (slabs, panels) = (x.rows.div_ceil(EDGE), width.div_ceil(EDGE));
    let [down, along] = pieces([slabs, panels], x.all, unit, threads);
    let product = Product {
        kernel,
        x,
        packed,
        more,
        side,
        output: Pointer(output),
        width,
        kept: before == Before::Kept,
    };
    let units = panels.div_ceil(unit);
    let run = |piece: usize| {
        let slabs = part(slabs, down, piece % down);
        let some = part(units, along, piece / down);
        let panels = some.start * unit..(some.end * unit).min(panels);
        // SAFETY: pieces have different parts of the output, which the caller lends for all of
        // them.
        kernel.prepared(|| unsafe { product.run(slabs, panels) });
    };
    if threads > 1 {
        (0..down * along)
            .into_par_iter()
            .with_max_len(1)
            .for_each(run);
    } else {
        (0..down * along).for_each(run);
    }
}

/// Into how many pieces rows and columns of blocks are cut, columns in multiples of `unit`. No
/// result depends on it.
fn pieces([slabs, panels]: [usize; 2], steps: usize, unit: usize, threads: usize) -> [usize; 2] {
    let units = panels.div_ceil(unit);
    let widest = (AT_ONCE / steps.max(1)).clamp(unit, WIDEST.max(unit)) / unit;
    let (mut down, mut along) = (1, units.div_ceil(widest));
    while threads > 1 && down * along < threads * PIECES {
        // What is laid out is so once for all rows, unless they are cut.
        if units > along {
            along = (2 * along).min(units);
        } else if slabs > down && down * along < threads {
            down = (2 * down).min(slabs);
        } else {
            break;
        }
    }
    [down, along]
}

/// The `i`th of equal parts.
fn part(n: usize, parts: usize, i: usize) -> Range<usize> {
    i * n / parts..(i + 1) * n / parts
}

/// An output that threads share, each writing a part of its own.
#[derive(Clone, Copy)]
struct Pointer(*mut f32);

// SAFETY: it stands for an exclusive borrow of plain numbers, of which each thread is given others.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

/// A product under way.
struct Product<'a> {
    kernel: Kernel,
    x: &'a Rounded,
    packed: &'a Packed,
    /// What is multiplied with what is appended to the rows, `[appended, width]`.
    more: Option<Matrix<'a>>,
    side: &'a Side,
    output: Pointer,
    /// Columns of the output.
    width: usize,
    kept: bool,
}

impl Product<'_> {
    /// Some rows of blocks with some columns of blocks.
    ///
    /// # Safety
    ///
    /// Within [`Kernel::prepared`]. That part of the output must be valid and nobody else's.
    unsafe fn run(&self, slabs: Range<usize>, panels: Range<usize>) {
        let (kernel, steps) = (self.kernel, self.x.all);
        let mut room = ROOM.take();
        let n = panels.len() * steps;
        if room.laid_out.len() < n {
            room.laid_out.resize(n, Block::ZERO);
        }
        room.read.resize(WIDEST, Block::ZERO);
        let laid_out = &mut room.laid_out[..n];
        self.lay_out(panels.clone(), laid_out, &mut room.read, &mut room.values);
        let mut sums = Sums::ZERO;
        for slab in slabs {
            let left = &self.x.blocks[slab * steps..][..steps];
            let rows = (self.x.rows - slab * EDGE).min(EDGE);
            for (i, panel) in panels.clone().enumerate() {
                let right = &laid_out[i * steps..][..steps];
                let columns = (self.width - panel * EDGE).min(EDGE);
                let place = slab * EDGE * self.width + panel * EDGE;
                // SAFETY: the caller's; only what lies within the output is written.
                unsafe {
                    let (output, size) = (self.output.0.add(place), [rows, columns]);
                    let sides = [left, right];
                    kernel.multiply_to(sides, &mut sums, output, self.width, size, self.kept);
                }
            }
        }
        ROOM.set(room);
    }

    /// Some columns of blocks, all summands of the first, then of the next; and for each at its end
    /// what is multiplied with what is appended.
    fn lay_out(
        &self,
        panels: Range<usize>,
        to: &mut [Block],
        read: &mut [Block],
        values: &mut Vec<f32>,
    ) {
        let (kernel, steps, all) = (self.kernel, self.x.steps, self.x.all);
        let [d_out, d_in] = self.packed.shape();
        if let Some(more) = self.more {
            let panels = panels.clone().zip(to.chunks_exact_mut(all));
            for (panel, to) in panels {
                lay_out_rows(kernel, more, panel, &mut to[steps..]);
            }
        }
        match self.side {
            Side::Forward => {
                for (panel, to) in panels.zip(to.chunks_exact_mut(all.max(1))) {
                    let to = &mut to[..steps];
                    let rows = panel * EDGE..d_out.min((panel + 1) * EDGE);
                    for (some, to) in to.chunks_mut(NEXT_ROW).enumerate() {
                        let begin = some * NEXT_ROW * EDGE;
                        let columns = begin..d_in.min(begin + to.len() * EDGE);
                        let read = &mut read[..to.len()];
                        self.read(rows.clone(), columns, read, values);
                        for (read, to) in read.iter().zip(to) {
                            kernel.turn(read, to);
                        }
                    }
                }
            }
            Side::Back(rows) => {
                for step in 0..steps {
                    let begin = rows.start + step * EDGE;
                    let rows = begin..rows.end.min(begin + EDGE);
                    for first in panels.clone().step_by(WIDEST) {
                        let some = first..panels.end.min(first + WIDEST);
                        let columns = some.start * EDGE..d_in.min(some.end * EDGE);
                        let read = &mut read[..some.len()];
                        self.read(rows.clone(), columns, read, values);
                        for (panel, read) in some.zip(read) {
                            let place = (panel - panels.start) * all + step;
                            kernel.interleave(read, &mut to[place]);
                        }
                    }
                }
            }
        }
    }

    /// At most 32 rows of the packed matrix and some columns, as blocks on the left; what blocks
    /// have beyond them is zero.
    fn read(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        blocks: &mut [Block],
        values: &mut Vec<f32>,
    ) {
        for missing in rows.len()..EDGE {
            for block in blocks.iter_mut() {
                *block.line(missing) = [0; LINE];
            }
        }
        let Some(bytes) = self.packed.as_bf16() else {
            let width = columns.len();
            // What it held is written over.
            values.resize(rows.len() * width, 0.0);
            unpack(self.packed, rows, columns, values);
            for (i, row) in values.chunks_exact(width.max(1)).enumerate() {
                self.kernel.round_row(row, blocks, i / HALF, i % HALF);
            }
            return;
        };
        let d_in = self.packed.shape()[1];
        for (i, row) in rows.enumerate() {
            let row = &bytes[2 * (row * d_in + columns.start)..2 * (row * d_in + columns.end)];
            let (whole, rest) = row.as_chunks::<{ 2 * LINE }>();
            for (bytes, block) in whole.iter().zip(blocks.iter_mut()) {
                read_line(bytes, block.line(i));
            }
            if let Some(block) = blocks.get_mut(whole.len()) {
                let mut bytes = [0; 2 * LINE];
                bytes[..rest.len()].copy_from_slice(rest);
                read_line(&bytes, block.line(i));
            }
        }
    }
}

/// One column of blocks on the right, of a matrix whose rows are the summands.
fn lay_out_rows(kernel: Kernel, matrix: Matrix, panel: usize, to: &mut [Block]) {
    let columns = panel * EDGE..matrix.columns().min((panel + 1) * EDGE);
    for (step, to) in to.iter_mut().enumerate() {
        let mut block = Block::ZERO;
        for i in 0..EDGE.min(matrix.rows() - step * EDGE) {
            let row = &matrix.row(step * EDGE + i)[columns.clone()];
            let block = std::slice::from_mut(&mut block);
            kernel.round_row(row, block, i / HALF, i % HALF);
        }
        kernel.interleave(&block, to);
    }
}

/// A line of values from their bytes, the low one first.
#[inline]
fn read_line(bytes: &[u8; 2 * LINE], line: &mut [u16; LINE]) {
    for (value, bytes) in line.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = u16::from_le_bytes(*bytes);
    }
}
