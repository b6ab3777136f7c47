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

/// Columns of weights that several rows are multiplied with before the next are fetched.
const BLOCK: usize = 2048;

/// Adds `row·weights` to `output`, for weights whose rows begin `stride` apart, and for
/// `n` rows that lie one after the other, each with an output of its own. Rows of
/// weights are as long as an output.
///
/// Threads share out the rows of the weights, not the columns, since memory is
/// fetched fastest from beginning to end. Each row gets the bits that it gets alone.
pub(super) fn add_rows(output: &mut [f32], rows: &[f32], n: usize, weights: &[f32], stride: usize) {
    let (width, length) = (output.len() / n, rows.len() / n);
    if width == 0 || length == 0 {
        return;
    }
    let piece = rows_per_chunk(width).max(FEWEST_ROWS);
    let mut sums = vec![Vec::new(); length.div_ceil(piece)];
    let block = if n == 1 { width } else { BLOCK };
    hand_out_pieces(&mut sums, 1, |i, sums| {
        let range = i * piece..length.min((i + 1) * piece);
        let weights = &weights[i * piece * stride..];
        let mut to = vec![0.0; width * n];
        for first in (0..width).step_by(block) {
            let columns = first..(first + block).min(width);
            for (to, row) in to.chunks_exact_mut(width).zip(rows.chunks_exact(length)) {
                let (to, row) = (&mut to[columns.clone()], &row[range.clone()]);
                let weights = &weights[first..];
                vectorised!(<'a>(
                    to: &'a mut [f32],
                    row: &'a [f32],
                    weights: &'a [f32],
                    stride: usize,
                ) {
                    add_some_rows(to, row, weights, stride);
                });
            }
        }
        sums[0] = to;
    });
    for sums in sums {
        for (output, sum) in output.iter_mut().zip(sums) {
            *output += sum;
        }
    }
}

/// [`add_rows`] on this thread, two rows at a time where the sums do not stay in
/// registers: they are read and written half as often.
#[inline(always)]
pub(super) fn add_some_rows(sums: &mut [f32], row: &[f32], weights: &[f32], stride: usize) {
    let width = sums.len();
    // Most heads are so wide, and the sums of 64 stay in registers.
    match width {
        64 => return add_narrow_rows::<64>(sums, row, weights, stride),
        128 => return add_narrow_rows::<128>(sums, row, weights, stride),
        _ => {}
    }
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

/// [`add_some_rows`] of a width that is known, with its bits.
#[inline(always)]
fn add_narrow_rows<const WIDTH: usize>(
    output: &mut [f32],
    row: &[f32],
    weights: &[f32],
    stride: usize,
) {
    let mut sums = [0.0; WIDTH];
    sums.copy_from_slice(output);
    for (i, value) in row.iter().enumerate() {
        let weights = &weights[i * stride..][..WIDTH];
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum += value * weight;
        }
    }
    output.copy_from_slice(&sums);
}

/// [`add_rows`] for weights whose columns, as long as a row, begin `stride` apart.
pub(super) fn add_columns(
    output: &mut [f32],
    rows: &[f32],
    n: usize,
    weights: &[f32],
    stride: usize,
) {
    let (width, length) = (output.len() / n, rows.len() / n);
    let piece = rows_per_chunk(length);
    // All rows' products with a column, column after column.
    let mut products = vec![0.0; output.len()];
    hand_out_pieces(&mut products, piece * n, |i, products| {
        let weights = &weights[i * piece * stride..];
        vectorised!(<'a>(
            products: &'a mut [f32],
            rows: &'a [f32],
            n: usize,
            weights: &'a [f32],
            stride: usize,
            length: usize,
        ) {
            for (i, products) in products.chunks_exact_mut(n).enumerate() {
                let column = &weights[i * stride..][..length];
                for (row, product) in products.iter_mut().enumerate() {
                    *product = dot(&rows[row * length..][..length], column);
                }
            }
        });
    });
    for (row, output) in output.chunks_exact_mut(width.max(1)).enumerate() {
        for (column, output) in output.iter_mut().enumerate() {
            *output += products[column * n + row];
        }
    }
}

/// `Σ left·right`, the same on every processor.
#[inline(always)]
pub(super) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (lefts, left) = left.as_chunks::<LANES>();
    let (rights, right) = right.as_chunks::<LANES>();
    for (left, right) in lefts.iter().zip(rights) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    if !left.is_empty() {
        // Padded to a whole number of lanes: a loop of unknown length would move the sums out of
        // their register.
        let [mut lefts, mut rights] = [[0.0; LANES]; 2];
        lefts[..left.len()].copy_from_slice(left);
        rights[..right.len()].copy_from_slice(right);
        for lane in 0..LANES {
            sums[lane] += lefts[lane] * rights[lane];
        }
    }
    // By halves: one after the other, each would wait for the one before.
    let eight = halved::<16, 8>(sums);
    let [a, b] = halved::<4, 2>(halved::<8, 4>(eight));
    a + b
}

/// The first half of the values and the second, added.
#[inline(always)]
fn halved<const N: usize, const HALF: usize>(values: [f32; N]) -> [f32; HALF] {
    let mut sums = [0.0; HALF];
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum = values[i] + values[i + HALF];
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::{super::matrix::AddsRows, *};
    use crate::cpu::team::hand_out;

    /// Values between -1 and 1.
    fn some(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0)
            .collect()
    }

    #[test]
    fn several_rows_have_the_bits_of_each_alone() {
        for [length, width] in
            SIZES
                .into_iter()
                .chain([[70, 5000], [70, BLOCK + 64], [70, BLOCK + 128]])
        {
            for (add, stride) in [(add_rows as AddsRows, width + 3), (add_columns, length + 3)] {
                let weights = some((length + 3) * (width + 3), 1);
                for n in [2, 3, 8] {
                    let (rows, before) = (some(n * length, 2), some(n * width, 3));
                    let mut together = before.clone();
                    add(&mut together, &rows, n, &weights, stride);
                    let mut alone = before.clone();
                    for (row, output) in rows.chunks(length).zip(alone.chunks_mut(width)) {
                        add(output, row, 1, &weights, stride);
                    }
                    let bits =
                        |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&together), bits(&alone), "{n} of {length} x {width}");
                }
            }
        }
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
    const SIZES: [[usize; 2]; 8] = [
        [1, 1],
        [2, 3],
        [17, 31],
        [65, 1030],
        [301, 33],
        [2049, 70],
        [301, 64],
        [17, 128],
    ];

    fn compare(add: impl Fn(&mut [f32], &[f32], usize, &[f32], usize), columns_lie: bool) {
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
                add(&mut output, &row, 1, &weights, stride);
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
        let with = |alone: bool, add: AddsRows, stride| {
            let output = std::sync::Mutex::new(some(90, 6));
            let work = || add(&mut output.lock().unwrap(), &row, 1, &weights, stride);
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
        for (add, stride) in [(add_rows as AddsRows, 90), (add_columns, 700)] {
            assert_eq!(with(true, add, stride), with(false, add, stride));
        }
    }
}
