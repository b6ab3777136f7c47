//! Products of two matrices of f32 that are rounded to bf16 for them, on one thread: those of
//! attention.

use std::cell::Cell;

use super::{
    Before, EDGE, HALF, Kernel, Matrix, Sums, block::Block, inputs::all_rounded, lay_out_rows,
};
use crate::cpu::matrix;

thread_local! {
    static ROOM: Cell<[Vec<Block>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}

/// `output = [output +] scale·left·right` with rows of the output one after the other. Both matrices
/// are rounded to bf16, and sums are in f32.
///
/// Rows or columns of each matrix must be dense.
pub(in crate::cpu) fn multiply_alone(
    kernel: Option<Kernel>,
    output: &mut [f32],
    before: Before,
    scale: f32,
    left: Matrix,
    right: Matrix,
) {
    multiply_strided(kernel, output, right.columns(), before, scale, left, right);
}

/// [`multiply_alone`] with the rows of the output that far apart.
pub(in crate::cpu) fn multiply_strided(
    kernel: Option<Kernel>,
    output: &mut [f32],
    stride: usize,
    before: Before,
    scale: f32,
    left: Matrix,
    right: Matrix,
) {
    let [rows, inner, width] = [left.rows(), left.columns(), right.columns()];
    assert_eq!(inner, right.rows(), "inner dimensions");
    if rows == 0 || width == 0 {
        return;
    }
    let reach = (rows - 1).checked_mul(stride);
    let reach = reach.and_then(|reach| reach.checked_add(width));
    assert!(
        width <= stride && reach.is_some_and(|reach| reach <= output.len()),
        "{rows} rows of {width}, {stride} apart, do not lie within {} values",
        output.len()
    );
    let Some(kernel) = kernel else {
        let [left_values, right_values] = [left, right].map(all_rounded);
        let left = Matrix::of_rows(&left_values, inner);
        let right = Matrix::of_rows(&right_values, width);
        let threads = gemm::Parallelism::None;
        let output = output.as_mut_ptr();
        // SAFETY: it has been checked that the rows lie within the slice, which is ours.
        unsafe { matrix::product(output, stride, before, scale, left, right, threads) };
        return;
    };
    let [mut on_left, mut on_right] = ROOM.take();
    let steps = inner.div_ceil(EDGE);
    let (slabs, panels) = (rows.div_ceil(EDGE), width.div_ceil(EDGE));
    for (room, n) in [(&mut on_left, slabs), (&mut on_right, panels)] {
        if room.len() < n * steps {
            room.resize(n * steps, Block::ZERO);
        }
    }
    let output = output.as_mut_ptr();
    kernel.prepared(|| {
        lay_out_left(kernel, left, &mut on_left, steps);
        lay_out_right(kernel, right, &mut on_right, steps);
        let mut sums = Sums::ZERO;
        for slab in 0..slabs {
            let left = &on_left[slab * steps..][..steps];
            let some_rows = (rows - slab * EDGE).min(EDGE);
            for panel in 0..panels {
                let right = &on_right[panel * steps..][..steps];
                let columns = (width - panel * EDGE).min(EDGE);
                // SAFETY: within `prepared`; it has been checked that these rows and columns lie
                // within the output, which is ours.
                unsafe {
                    kernel.multiply(left, right, &mut sums, some_rows);
                    let at = output.add(slab * EDGE * stride + panel * EDGE);
                    let kept = before == Before::Kept;
                    kernel.write_scaled(&sums, scale, at, stride, [some_rows, columns], kept);
                }
            }
        }
    });
    ROOM.set([on_left, on_right]);
}

/// Every row of a matrix, as blocks on the left. Rows beyond the last are left as they were.
fn lay_out_left(kernel: Kernel, matrix: Matrix, to: &mut [Block], steps: usize) {
    if !matrix.has_dense_rows() {
        return turn_left(kernel, matrix.transposed(), to, steps);
    }
    for i in 0..matrix.rows() {
        let blocks = &mut to[i / EDGE * steps..][..steps];
        let line = i % EDGE;
        kernel.round_row(matrix.row(i), blocks, line / HALF, line % HALF);
    }
}

/// The columns of a matrix of dense rows, as rows on the left.
pub(super) fn turn_left(kernel: Kernel, matrix: Matrix, to: &mut [Block], steps: usize) {
    let lines = matrix.columns().div_ceil(EDGE);
    let mut read = vec![Block::ZERO; lines];
    for step in 0..steps {
        let here = EDGE.min(matrix.rows() - step * EDGE);
        for i in 0..here {
            let row = matrix.row(step * EDGE + i);
            kernel.round_row(row, &mut read, i / HALF, i % HALF);
        }
        for (line, read) in read.iter().enumerate() {
            let to = &mut to[line * steps + step];
            if here < EDGE {
                *to = Block::ZERO;
            }
            for i in 0..here {
                let from = &read.0[i / HALF][i % HALF];
                for (j, value) in from.iter().enumerate() {
                    to.line(j)[i] = *value;
                }
            }
        }
    }
}

fn lay_out_right(kernel: Kernel, matrix: Matrix, to: &mut [Block], steps: usize) {
    let panels = to.chunks_exact_mut(steps.max(1)).enumerate();
    let panels = panels.take(matrix.columns().div_ceil(EDGE));
    if matrix.has_dense_rows() {
        for (panel, to) in panels {
            lay_out_rows(kernel, matrix, panel, to);
        }
        return;
    }
    let columns = matrix.transposed();
    let mut read = vec![Block::ZERO; steps];
    for (panel, to) in panels {
        let here = EDGE.min(columns.rows() - panel * EDGE);
        if here < EDGE {
            // What is no column must be a number, as it may be multiplied with zero.
            read.fill(Block::ZERO);
        }
        for i in 0..here {
            let row = columns.row(panel * EDGE + i);
            kernel.round_row(row, &mut read, i / HALF, i % HALF);
        }
        for (read, to) in read.iter().zip(to) {
            kernel.turn(read, to);
        }
    }
}
