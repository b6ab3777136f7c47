//! Matrix products over strided memory, which may add to what is there.

use gemm::Parallelism;

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
