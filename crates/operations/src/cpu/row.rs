//! Products of one row with a matrix: what generating a token is made of.
//!
//! Each weight is read once and used once, so that they wait for memory, and
//! one core alone does not fetch as fast as the machine can. `gemm` has them
//! all on one thread.

use super::{rows::rows_per_chunk, team::hand_out_pieces, vector::vectorised};

/// Rows that one piece of work sums at least: beside as many, what its sums
/// take to be added up is little.
const FEWEST_ROWS: usize = 32;

/// Sums of a dot product. With twice as many the compiler's code is slower, as
/// measured, though `vector::sum` does well with them.
const LANES: usize = 16;

/// Adds `row·weights` to `output`, for weights whose rows, as long as `output`,
/// begin `stride` apart.
///
/// Threads share out the rows of the weights, not the columns, since memory is
/// fetched fastest from beginning to end.
pub(super) fn add_rows(output: &mut [f32], row: &[f32], weights: &[f32], stride: usize) {
    let width = output.len();
    let piece = rows_per_chunk(width).max(FEWEST_ROWS);
    let mut sums = vec![Vec::new(); row.len().div_ceil(piece)];
    hand_out_pieces(&mut sums, 1, |i, sums| {
        let row = &row[i * piece..row.len().min((i + 1) * piece)];
        let weights = &weights[i * piece * stride..];
        let mut to = vec![0.0; width];
        let of_piece = &mut to[..];
        vectorised!(<'a>(
            of_piece: &'a mut [f32],
            row: &'a [f32],
            weights: &'a [f32],
            stride: usize,
        ) {
            add_some_rows(of_piece, row, weights, stride);
        });
        sums[0] = to;
    });
    for sums in sums {
        for (output, sum) in output.iter_mut().zip(sums) {
            *output += sum;
        }
    }
}

/// [`add_rows`] on this thread, two rows at a time: the sums are read and
/// written half as often.
#[inline(always)]
fn add_some_rows(sums: &mut [f32], row: &[f32], weights: &[f32], stride: usize) {
    let width = sums.len();
    let (pairs, last) = row.as_chunks::<2>();
    for (i, [first, second]) in pairs.iter().enumerate() {
        let firsts = &weights[2 * i * stride..][..width];
        let seconds = &weights[(2 * i + 1) * stride..][..width];
        for j in 0..width {
            sums[j] = sums[j] + first * firsts[j] + second * seconds[j];
        }
    }
    if let [value] = last {
        let weights = &weights[2 * pairs.len() * stride..][..width];
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum += value * weight;
        }
    }
}

/// Adds `row·weights` to `output`, for weights whose columns, as long as `row`,
/// begin `stride` apart.
pub(super) fn add_columns(output: &mut [f32], row: &[f32], weights: &[f32], stride: usize) {
    let piece = rows_per_chunk(row.len());
    hand_out_pieces(output, piece, |i, output| {
        let weights = &weights[i * piece * stride..];
        vectorised!(<'a>(
            output: &'a mut [f32],
            row: &'a [f32],
            weights: &'a [f32],
            stride: usize,
        ) {
            for (i, output) in output.iter_mut().enumerate() {
                *output += dot(row, &weights[i * stride..][..row.len()]);
            }
        });
    });
}

#[inline(always)]
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (lefts, left) = left.as_chunks::<LANES>();
    let (rights, right) = right.as_chunks::<LANES>();
    for (left, right) in lefts.iter().zip(rights) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
        *sum += left * right;
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::team::hand_out;

    /// Values between -1 and 1.
    fn some(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0)
            .collect()
    }

    /// In f64, weight by weight, with the sum of the magnitudes.
    fn slowly(row: &[f32], at: impl Fn(usize) -> f32) -> (f64, f64) {
        row.iter()
            .enumerate()
            .fold((0.0, 0.0), |(sum, size), (i, x)| {
                let product = f64::from(*x) * f64::from(at(i));
                (sum + product, size + product.abs())
            })
    }

    /// Rows and columns about the sizes of pieces, pairs and lanes.
    const SIZES: [[usize; 2]; 6] = [[1, 1], [2, 3], [17, 31], [65, 1030], [301, 33], [2049, 70]];

    fn compare(add: impl Fn(&mut [f32], &[f32], &[f32], usize), columns_lie: bool) {
        for [rows, columns] in SIZES {
            for gap in [0, 5] {
                let (length, lines) = if columns_lie {
                    (rows, columns)
                } else {
                    (columns, rows)
                };
                let stride = length + gap;
                // As short as a view into the end of a buffer may be.
                let weights = some((lines - 1) * stride + length, 1);
                let (row, before) = (some(rows, 2), some(columns, 3));
                let mut output = before.clone();
                add(&mut output, &row, &weights, stride);
                for (column, (found, before)) in output.iter().zip(&before).enumerate() {
                    let (sum, size) = slowly(&row, |i| {
                        let [line, at] = if columns_lie {
                            [column, i]
                        } else {
                            [i, column]
                        };
                        weights[line * stride + at]
                    });
                    let wrong = (f64::from(*found) - f64::from(*before) - sum).abs();
                    assert!(
                        wrong <= 1e-6 * (size + 1.0),
                        "{rows} x {columns}, {gap} between, column {column}: {wrong} beside {size}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_are_added_as_in_f64() {
        compare(add_rows, false);
    }

    #[test]
    fn columns_are_added_as_in_f64() {
        compare(add_columns, true);
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (row, weights) = (some(700, 4), some(700 * 90, 5));
        let with = |alone: bool, add: fn(&mut [f32], &[f32], &[f32], usize), stride| {
            let output = std::sync::Mutex::new(some(90, 6));
            let work = || add(&mut output.lock().unwrap(), &row, &weights, stride);
            if alone {
                // Within other work of the team there are no others.
                hand_out(2, |i| {
                    if i == 0 {
                        work();
                    }
                });
            } else {
                work();
            }
            output.into_inner().unwrap()
        };
        for (add, stride) in [
            (add_rows as fn(&mut [f32], &[f32], &[f32], usize), 90),
            (add_columns, 700),
        ] {
            assert_eq!(with(true, add, stride), with(false, add, stride));
        }
    }
}
