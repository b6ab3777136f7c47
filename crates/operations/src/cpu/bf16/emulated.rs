//! The instructions as plain Rust, after Intel's manual: they test the layouts on processors that
//! lack them, and on one that has them are compared with it bit for bit.

use super::block::{Block, HALF, Sums, widen};

/// Subnormal values are zero, going in and coming out, with the sign that they had.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() {
        0.0_f32.copysign(x)
    } else {
        x
    }
}

fn plus_product(sum: f32, x: u16, y: u16) -> f32 {
    flushed(flushed(widen(x)).mul_add(flushed(widen(y)), flushed(sum)))
}

/// `tdpbf16ps`: the even and the odd summands are added up apart, then together, then to what was
/// there.
pub(super) fn multiply_tiles(
    sums: &mut [[f32; HALF]; HALF],
    left: &[[u16; 32]; HALF],
    right: &[[u16; 32]; HALF],
) {
    for (sums, left) in sums.iter_mut().zip(left) {
        for (j, sum) in sums.iter_mut().enumerate() {
            let [mut even, mut odd] = [0.0, 0.0];
            for (k, right) in right.iter().enumerate() {
                even = plus_product(even, left[2 * k], right[2 * j]);
                odd = plus_product(odd, left[2 * k + 1], right[2 * j + 1]);
            }
            *sum = flushed(flushed(*sum) + flushed(even + odd));
        }
    }
}

/// `vdpbf16ps`: first the odd summands are added, then the even.
pub(super) fn multiply_pairs(sums: &mut [f32; HALF], left: [u16; 2], right: &[u16; 32]) {
    for (j, sum) in sums.iter_mut().enumerate() {
        *sum = plus_product(*sum, left[1], right[2 * j + 1]);
        *sum = plus_product(*sum, left[0], right[2 * j]);
    }
}

/// `amx::multiply_whole` and `amx::multiply_half`.
pub(super) fn by_tiles(left: &[Block], right: &[Block], sums: &mut Sums, rows: usize) {
    for down in 0..rows.div_ceil(HALF) {
        for along in 0..2 {
            let mut tile = [[0.0; HALF]; HALF];
            for (left, right) in left.iter().zip(right) {
                multiply_tiles(&mut tile, &left.0[down], &right.0[along]);
            }
            for (i, tile) in tile.iter().enumerate() {
                sums.0[HALF * down + i][HALF * along..][..HALF].copy_from_slice(tile);
            }
        }
    }
}

/// `avx512::multiply`.
pub(super) fn by_lines(left: &[Block], right: &[Block], sums: &mut Sums, rows: usize) {
    for (row, sums) in sums.0[..rows].iter_mut().enumerate() {
        let (lines, _) = sums.as_chunks_mut::<HALF>();
        for (along, sums) in lines.iter_mut().enumerate() {
            *sums = [0.0; HALF];
            for (left, right) in left.iter().zip(right) {
                let left = &left.0[row / HALF][row % HALF];
                for (k, right) in right.0[along].iter().enumerate() {
                    multiply_pairs(sums, [left[2 * k], left[2 * k + 1]], right);
                }
            }
        }
    }
}
