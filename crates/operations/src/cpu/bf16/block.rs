//! The layout of everything that is multiplied: blocks of 32 × 32 values of bf16, as their bits.
//!
//! A block has two halves, each 16 lines of 32 values, which is a tile of AMX. Lines are 64 bytes,
//! a register of AVX-512, and begin at multiples of 64.
//!
//! - On the left, a line is 32 values of one row: half `h`, line `i` is row `16h + i`.
//! - On the right, a line is 16 columns of two consecutive summands: half `h`, line `i` has
//!   `(2i, 16h + j)` and `(2i + 1, 16h + j)` side by side, for each `j`.

/// Rows and columns of a block.
pub(super) const EDGE: usize = 32;

/// Values of a line.
pub(super) const LINE: usize = 32;

/// Rows, or columns, of half a block.
pub(super) const HALF: usize = 16;

/// A block of either form.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Block(pub(super) [[[u16; LINE]; HALF]; 2]);

/// The sums of a block of the output, row by row: four tiles of AMX.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [[f32; EDGE]; EDGE]);

impl Sums {
    pub(super) const ZERO: Self = Self([[0.0; EDGE]; EDGE]);
}

impl Block {
    pub(super) const ZERO: Self = Self([[[0; LINE]; HALF]; 2]);

    /// A line of a block on the left.
    pub(super) fn line(&mut self, row: usize) -> &mut [u16; LINE] {
        &mut self.0[row / HALF][row % HALF]
    }

    /// From a block on the left to one on the right whose columns are its rows: `x·Wᵀ` of a `W`
    /// that was read by rows.
    #[cfg(test)]
    pub(super) fn turned(&self) -> Self {
        self.on_the_right(|summand, column| [column, summand])
    }

    /// From a block on the left to one on the right whose summands are its rows: `g·W` of a `W`
    /// that was read by rows.
    #[cfg(test)]
    pub(super) fn interleaved(&self) -> Self {
        self.on_the_right(|summand, column| [summand, column])
    }

    /// A block on the right of the values at the places `[row, column]` of one on the left.
    #[cfg(test)]
    fn on_the_right(&self, place: impl Fn(usize, usize) -> [usize; 2]) -> Self {
        let mut block = Self::ZERO;
        for (h, half) in block.0.iter_mut().enumerate() {
            for (i, line) in half.iter_mut().enumerate() {
                for (j, value) in line.iter_mut().enumerate() {
                    let [row, column] = place(2 * i + j % 2, HALF * h + j / 2);
                    *value = self.0[row / HALF][row % HALF][column];
                }
            }
        }
        block
    }
}

/// The nearest bf16, of two the even one. NaN stays NaN.
pub(super) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        // The part of it that is cut off may be all that made it one.
        return (bits >> 16) as u16 | 0x40;
    }
    let half = 0x7fff + ((bits >> 16) & 1);
    (bits.wrapping_add(half) >> 16) as u16
}

/// As f32, exactly.
pub(super) fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds a row into line `line` of half `half` of each block; what blocks have beyond it is zero.
#[cfg(test)]
pub(super) fn round_row(row: &[f32], blocks: &mut [Block], half: usize, line: usize) {
    for (from, block) in row.chunks(EDGE).zip(blocks) {
        let to = &mut block.0[half][line];
        *to = [0; EDGE];
        for (to, from) in to.iter_mut().zip(from) {
            *to = round(*from);
        }
    }
}

/// Writes some rows and columns of scaled sums over an output whose rows are `stride` apart, or adds them
/// to it.
///
/// # Safety
///
/// Those rows and columns of the output must be valid for writing, and for reading if they are
/// kept, and nobody else's.
#[cfg(test)]
pub(super) unsafe fn write(
    sums: &Sums,
    scale: f32,
    output: *mut f32,
    stride: usize,
    [rows, columns]: [usize; 2],
    kept: bool,
) {
    for (i, row) in sums.0[..rows].iter().enumerate() {
        for (j, sum) in row[..columns].iter().enumerate() {
            // SAFETY: the caller's.
            unsafe {
                let at = output.add(i * stride + j);
                let sum = scale * sum;
                at.write(if kept { at.read() + sum } else { sum });
            }
        }
    }
}
