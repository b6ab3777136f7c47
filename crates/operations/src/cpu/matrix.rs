//! Matrix products over strided memory, which may add to what is there.

use gemm::Parallelism;

use super::row::{add_columns, add_rows};

/// Where a matrix begins and how far apart its rows and columns are.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    at: *const f32,
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
}

impl Matrix {
    /// Rows of `columns`, `row_stride` apart, in `values`.
    pub(super) fn new(values: &[f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= values.len());
        Self {
            at: values.as_ptr(),
            rows,
            columns,
            row_stride: row_stride as isize,
            column_stride: 1,
        }
    }

    /// Rows one after the other.
    pub(super) fn of_rows(values: &[f32], columns: usize) -> Self {
        Self::new(values, values.len() / columns.max(1), columns, columns)
    }

    /// A tensor of two axes.
    pub(super) fn of(tensor: &burn::backend::flex::FlexTensor) -> Self {
        let layout = tensor.layout();
        let (rows, columns) = (layout.shape()[0], layout.shape()[1]);
        Self {
            at: super::strided(tensor).as_ptr(),
            rows,
            columns,
            row_stride: layout.strides()[0],
            column_stride: layout.strides()[1],
        }
    }

    /// Rows and columns exchanged.
    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    pub(super) fn columns(self) -> usize {
        self.columns
    }

    /// How a row is multiplied with this, if its rows or its columns are dense
    /// and do not overlap; it must not be empty.
    fn row_product(self) -> Option<RowProduct> {
        let along = |run, stride: isize, lines: usize, length: usize| {
            let stride = usize::try_from(stride).ok()?;
            (stride >= length).then(|| RowProduct {
                run,
                stride,
                extent: (lines - 1) * stride + length,
            })
        };
        if self.column_stride == 1 {
            along(add_rows, self.row_stride, self.rows, self.columns)
        } else if self.row_stride == 1 {
            along(add_columns, self.column_stride, self.columns, self.rows)
        } else {
            None
        }
    }
}

/// How one row is multiplied with a matrix.
struct RowProduct {
    /// Takes the output, the row, the weights and the stride.
    run: fn(&mut [f32], &[f32], &[f32], usize),
    /// Between the rows or columns of the weights.
    stride: usize,
    /// Values from the first weight to the last.
    extent: usize,
}

/// What becomes of the values that a product is written over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// They are not read.
    Overwritten,
    /// The product is added to them.
    Kept,
}

/// Multiplications above which a product is worth more than one thread.
const WORTH_THREADS: usize = 1 << 20;

/// The same for a product of one row, which reads as many weights and does
/// little with them.
const ROW_WORTH_THREADS: usize = 1 << 16;

/// `output = [output +] scale·left·right` on all threads, for rows of `output`
/// that are `row_stride` apart.
///
/// # Safety
///
/// `output` must be valid for the product's rows and columns, and nothing else
/// may read or write there meanwhile.
pub(super) unsafe fn multiply(
    output: *mut f32,
    row_stride: usize,
    before: Before,
    scale: f32,
    left: Matrix,
    right: Matrix,
) {
    if left.rows == 1
        && left.columns * right.columns >= ROW_WORTH_THREADS
        && let Some(add) = right.row_product()
    {
        assert_eq!(left.columns, right.rows, "inner dimensions");
        // SAFETY: the caller's, for the only row of the output; both matrices lie within the slices
        // that they were made from.
        unsafe {
            if before == Before::Overwritten {
                output.write_bytes(0, right.columns);
            }
            let output = std::slice::from_raw_parts_mut(output, right.columns);
            let row: Vec<f32> = (0..left.columns as isize)
                .map(|i| scale * *left.at.offset(i * left.column_stride))
                .collect();
            let weights = std::slice::from_raw_parts(right.at, add.extent);
            (add.run)(output, &row, weights, add.stride);
        }
        return;
    }
    let worth = left.rows * left.columns * right.columns >= WORTH_THREADS;
    let threads = if worth {
        Parallelism::Rayon(0)
    } else {
        Parallelism::None
    };
    // SAFETY: the caller's.
    unsafe { product(output, row_stride, before, scale, left, right, threads) }
}

/// [`multiply`] on this thread alone.
///
/// # Safety
///
/// As for [`multiply`].
pub(super) unsafe fn multiply_alone(
    output: *mut f32,
    row_stride: usize,
    before: Before,
    scale: f32,
    left: Matrix,
    right: Matrix,
) {
    // SAFETY: the caller's.
    unsafe {
        product(
            output,
            row_stride,
            before,
            scale,
            left,
            right,
            Parallelism::None,
        );
    }
}

unsafe fn product(
    output: *mut f32,
    row_stride: usize,
    before: Before,
    scale: f32,
    left: Matrix,
    right: Matrix,
    threads: Parallelism,
) {
    assert_eq!(left.columns, right.rows, "inner dimensions");
    // SAFETY: both matrices lie within the slices that they were made from, the output is the
    // caller's.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            output,
            1,
            row_stride as isize,
            before == Before::Kept,
            left.at,
            left.column_stride,
            left.row_stride,
            right.at,
            right.column_stride,
            right.row_stride,
            if before == Before::Kept { 1.0 } else { 0.0 },
            scale,
            false,
            false,
            false,
            threads,
        );
    }
}

/// `scale·left·right`, rows one after the other.
pub(super) fn multiplied(scale: f32, left: Matrix, right: Matrix) -> Vec<f32> {
    let n = left.rows * right.columns;
    let mut output = Vec::with_capacity(n);
    // SAFETY: the room is there and nobody else has it; the product writes all of it.
    unsafe {
        multiply(
            output.as_mut_ptr(),
            right.columns,
            Before::Overwritten,
            scale,
            left,
            right,
        );
        output.set_len(n);
    }
    output
}

/// Writes `scale·left·right` over `output`, rows one after the other.
pub(super) fn write_product(output: &mut [f32], scale: f32, left: Matrix, right: Matrix) {
    assert_eq!(output.len(), left.rows * right.columns);
    // SAFETY: the slice is as large as the product and exclusively ours.
    unsafe {
        multiply(
            output.as_mut_ptr(),
            right.columns,
            Before::Overwritten,
            scale,
            left,
            right,
        );
    }
}

/// Adds `scale·left·right` to `output`, rows one after the other.
pub(super) fn add_product(output: &mut [f32], scale: f32, left: Matrix, right: Matrix) {
    assert_eq!(output.len(), left.rows * right.columns);
    // SAFETY: the slice is as large as the product and exclusively ours.
    unsafe {
        multiply(
            output.as_mut_ptr(),
            right.columns,
            Before::Kept,
            scale,
            left,
            right,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_times_a_large_matrix_is_what_gemm_says() {
        const INNER: usize = 300;
        const WIDTH: usize = 257;
        let some = |n: usize, step: usize| -> Vec<f32> {
            let values = (0..n).map(|i| (i * step % 1999) as f32 / 1000.0 - 1.0);
            values.collect()
        };
        let (row, weights, before) = (
            some(2 * INNER, 7),
            some(INNER * WIDTH, 31),
            some(WIDTH, 113),
        );
        // Every other value of a longer row, so that its stride counts.
        let left = Matrix {
            columns: INNER,
            column_stride: 2,
            ..Matrix::new(&row, 1, 2 * INNER, 2 * INNER)
        };
        let by_rows = Matrix::of_rows(&weights, WIDTH);
        let by_columns = Matrix::of_rows(&weights, INNER).transposed();
        for right in [by_rows, by_columns] {
            assert!(right.row_product().is_some());
            let mut expected = before.clone();
            // SAFETY: the output is as long as the product's only row, and ours.
            unsafe {
                let output = expected.as_mut_ptr();
                multiply_alone(output, WIDTH, Before::Kept, -0.5, left, right);
            }
            let mut added = before.clone();
            add_product(&mut added, -0.5, left, right);
            let product = multiplied(-0.5, left, right);
            for i in 0..WIDTH {
                assert!((added[i] - expected[i]).abs() < 1e-4, "{i}");
                assert!((product[i] + before[i] - expected[i]).abs() < 1e-4, "{i}");
            }
        }
    }
}
