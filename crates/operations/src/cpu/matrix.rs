//! Matrix products over strided memory, which may add to what is there.

use std::{borrow::Cow, ops::Range};

use burn::backend::flex::FlexTensor;
use gemm::Parallelism;

use super::{
    row::{add_columns, add_rows},
    strided,
};
use crate::apart::rows_are_apart;

/// Rows and columns, each an equal distance apart, of values that are borrowed.
/// All elements lie within the values, which is checked when one is made.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    /// From the first element on.
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    fn strided(
        values: &'a [f32],
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Self {
        let extent = match (rows.checked_sub(1), columns.checked_sub(1)) {
            // Checked, since what is multiplied is not: a product that wraps must not pass.
            (Some(last_row), Some(last_column)) => last_row
                .checked_mul(row_stride)
                .zip(last_column.checked_mul(column_stride))
                .and_then(|(down, along)| down.checked_add(along)?.checked_add(1)),
            _ => Some(0),
        };
        let largest_stride = row_stride.max(column_stride);
        assert!(
            extent.is_some_and(|extent| extent <= values.len())
                && isize::try_from(largest_stride).is_ok(),
            "{rows} × {columns} elements, {row_stride} and {column_stride} apart, do not lie \
             within {} values",
            values.len()
        );
        Self {
            values,
            rows,
            columns,
            row_stride,
            column_stride,
        }
    }

    /// Rows of `columns`, `row_stride` apart, in `values`.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self::strided(values, [rows, columns], [row_stride, 1])
    }

    /// Rows one after the other.
    pub(super) fn of_rows(values: &'a [f32], columns: usize) -> Self {
        Self::new(values, values.len() / columns.max(1), columns, columns)
    }

    /// A tensor of two axes that [`unflipped`] gave.
    pub(super) fn of(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        assert!(
            layout.strides().iter().all(|stride| *stride >= 0),
            "a flipped matrix lies before its first element: it must be copied"
        );
        let (shape, strides) = (layout.shape(), layout.strides());
        Self::strided(
            strided(tensor),
            [shape[0], shape[1]],
            [strides[0] as usize, strides[1] as usize],
        )
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

    /// Some of the columns.
    pub(super) fn some_columns(self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.columns,
            "{range:?} of {} columns",
            self.columns
        );
        let begin = (range.start * self.column_stride).min(self.values.len());
        Self {
            values: &self.values[begin..],
            columns: range.len(),
            ..self
        }
    }

    /// Whether the values of a row lie next to each other.
    pub(super) fn has_dense_rows(self) -> bool {
        self.column_stride == 1
    }

    /// A row of a matrix that [has dense rows](Self::has_dense_rows).
    pub(super) fn row(self, i: usize) -> &'a [f32] {
        assert!(
            self.has_dense_rows() && i < self.rows,
            "row {i} of {}, whose values lie {} apart",
            self.rows,
            self.column_stride
        );
        if self.columns == 0 {
            return &[];
        }
        &self.values[i * self.row_stride..][..self.columns]
    }

    /// Every value, rows one after the other.
    pub(super) fn to_vec(self) -> Vec<f32> {
        if self.has_dense_rows() {
            let mut all = Vec::with_capacity(size(self.rows, self.columns));
            (0..self.rows).for_each(|i| all.extend_from_slice(self.row(i)));
            return all;
        }
        let row = |i| (0..self.columns).map(move |j| i * self.row_stride + j * self.column_stride);
        (0..self.rows)
            .flat_map(row)
            .map(|at| self.values[at])
            .collect()
    }

    /// [`to_vec`](Self::to_vec), borrowed if it lies so.
    pub(super) fn to_rows(self) -> Cow<'a, [f32]> {
        let apart = self.rows > 1 && self.row_stride != self.columns;
        if apart || !self.has_dense_rows() {
            return Cow::Owned(self.to_vec());
        }
        Cow::Borrowed(&self.values[..size(self.rows, self.columns)])
    }

    /// One row as a matrix of its own.
    fn only_row(self, row: usize) -> Self {
        let begin = (row * self.row_stride).min(self.values.len());
        Self {
            values: &self.values[begin..],
            rows: 1,
            ..self
        }
    }

    pub(super) fn rows(self) -> usize {
        self.rows
    }

    pub(super) fn columns(self) -> usize {
        self.columns
    }

    /// How a row is multiplied with this, if its rows or its columns are dense
    /// and do not overlap; it must not be empty.
    fn row_product(self) -> Option<RowProduct> {
        let along = |run: AddsRows, stride: usize, length: usize| {
            (stride >= length).then_some(RowProduct { run, stride })
        };
        if self.column_stride == 1 {
            along(add_rows, self.row_stride, self.columns)
        } else if self.row_stride == 1 {
            along(add_columns, self.column_stride, self.rows)
        } else {
            None
        }
    }

    /// The values from the first element to the last.
    fn extent(self) -> &'a [f32] {
        let last_row = self.rows.saturating_sub(1) * self.row_stride;
        let last_column = self.columns.saturating_sub(1) * self.column_stride;
        &self.values[..(last_row + last_column + 1).min(self.values.len())]
    }
}

/// The same tensor with its values in the direction of its axes: a flipped axis
/// has a negative stride, and what it spans lies before its first element.
pub(super) fn unflipped(tensor: &FlexTensor) -> Cow<'_, FlexTensor> {
    if tensor.layout().strides().iter().all(|stride| *stride >= 0) {
        Cow::Borrowed(tensor)
    } else {
        Cow::Owned(tensor.to_contiguous())
    }
}

/// Adds the products of rows with a matrix: to the output, of the rows, of which there are so many,
/// with the weights, whose lines are that far apart.
pub(super) type AddsRows = fn(&mut [f32], &[f32], usize, &[f32], usize);

/// How single rows are multiplied with a matrix.
struct RowProduct {
    run: AddsRows,
    /// Between the rows or columns of the weights.
    stride: usize,
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
pub(super) const WORTH_THREADS: usize = 1 << 20;

/// The same for a product of one row, which reads as many weights and does
/// little with them.
pub(super) const ROW_WORTH_THREADS: usize = 1 << 16;

/// `output = [output +] scale·left·right` on all threads, with the rows of
/// `output` one after the other.
///
/// # Safety
///
/// `output` must be valid for `left.rows · right.columns` values: for writing,
/// and if they are kept, for reading. Nothing else may read or write there
/// meanwhile.
unsafe fn multiply(output: *mut f32, before: Before, scale: f32, left: Matrix, right: Matrix) {
    let apart = left.rows > 1 && rows_are_apart();
    if (left.rows == 1 || apart)
        && left.columns * right.columns >= ROW_WORTH_THREADS
        && let Some(add) = right.row_product()
    {
        // SAFETY: the caller's.
        unsafe { multiply_rows_by(&add, output, before, scale, left, right) };
        return;
    }
    if apart {
        for row in 0..left.rows {
            let output = output.wrapping_add(row * right.columns);
            // SAFETY: the caller's, for one row of the output.
            unsafe { multiply(output, before, scale, left.only_row(row), right) };
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
    unsafe { product(output, right.columns, before, scale, left, right, threads) }
}

/// [`multiply`] of single rows, in one way.
///
/// # Safety
///
/// As for [`multiply`].
unsafe fn multiply_rows_by(
    add: &RowProduct,
    output: *mut f32,
    before: Before,
    scale: f32,
    left: Matrix,
    right: Matrix,
) {
    assert_eq!(left.columns, right.rows, "inner dimensions");
    let n = left.rows * right.columns;
    if before == Before::Overwritten {
        // SAFETY: the caller's; zero bytes are a float.
        unsafe { output.write_bytes(0, n) };
    }
    // SAFETY: the caller's; where nothing was kept, zeros have just been written.
    let output = unsafe { std::slice::from_raw_parts_mut(output, n) };
    let mut rows = left.to_vec();
    for value in &mut rows {
        *value *= scale;
    }
    (add.run)(output, &rows, left.rows, right.extent(), add.stride);
}

/// [`multiply`] on these threads, with the rows of `output` that far apart.
///
/// # Safety
///
/// As for [`multiply`], for the columns of `right` in each row of the output.
pub(super) unsafe fn product(
    output: *mut f32,
    output_stride: usize,
    before: Before,
    scale: f32,
    left: Matrix,
    right: Matrix,
    threads: Parallelism,
) {
    assert_eq!(left.columns, right.rows, "inner dimensions");
    // SAFETY: every element that is read lies within the slices that the matrices borrow, as
    // `Matrix::strided` has checked, and no stride is beyond `isize`. The output is the caller's:
    // as many rows as `left` has, each as long as those of `right`. `gemm` reads none of it if told
    // not to, and writes all of it even if there is nothing to sum.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            output,
            1,
            output_stride as isize,
            before == Before::Kept,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            if before == Before::Kept { 1.0 } else { 0.0 },
            scale,
            false,
            false,
            false,
            threads,
        );
    }
}

/// How many values a product of so many rows and columns has.
pub(super) fn size(rows: usize, columns: usize) -> usize {
    let size = rows.checked_mul(columns);
    // A broadcast matrix may have more rows than memory has values.
    assert!(
        size.is_some(),
        "a product of more values than can be counted"
    );
    size.unwrap_or_default()
}

/// Refuses an output that is not as large as the product.
fn check_size(output: &[f32], left: Matrix, right: Matrix) {
    assert_eq!(
        output.len(),
        size(left.rows, right.columns),
        "the values of the output and of the product"
    );
}

/// `scale·left·right`, rows one after the other.
pub(super) fn multiplied(scale: f32, left: Matrix, right: Matrix) -> Vec<f32> {
    let n = size(left.rows, right.columns);
    let mut output = Vec::with_capacity(n);
    // SAFETY: there is room for the product's values, which nobody else has a pointer to, and they
    // are not read. The product has written all of them when its length is set.
    unsafe {
        multiply(output.as_mut_ptr(), Before::Overwritten, scale, left, right);
        output.set_len(n);
    }
    output
}

/// Writes `scale·left·right` over `output`, rows one after the other.
pub(super) fn write_product(output: &mut [f32], scale: f32, left: Matrix, right: Matrix) {
    check_size(output, left, right);
    // SAFETY: the slice is as large as the product and exclusively ours.
    unsafe { multiply(output.as_mut_ptr(), Before::Overwritten, scale, left, right) }
}

/// Adds `scale·left·right` to `output`, rows one after the other.
pub(super) fn add_product(output: &mut [f32], scale: f32, left: Matrix, right: Matrix) {
    check_size(output, left, right);
    // SAFETY: the slice is as large as the product and exclusively ours.
    unsafe { multiply(output.as_mut_ptr(), Before::Kept, scale, left, right) }
}

/// `output = [output +] scale·left·right` on this thread alone, rows one after
/// the other.
pub(super) fn multiply_alone(
    output: &mut [f32],
    before: Before,
    scale: f32,
    left: Matrix,
    right: Matrix,
) {
    check_size(output, left, right);
    let (stride, threads) = (right.columns, Parallelism::None);
    let output = output.as_mut_ptr();
    // SAFETY: the slice is as large as the product and exclusively ours.
    unsafe { product(output, stride, before, scale, left, right, threads) }
}

#[cfg(test)]
mod tests {
    use burn::backend::TensorData;

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
        let left = Matrix::strided(&row, [1, INNER], [2 * INNER, 2]);
        let by_rows = Matrix::of_rows(&weights, WIDTH);
        let by_columns = Matrix::of_rows(&weights, INNER).transposed();
        for right in [by_rows, by_columns] {
            assert!(right.row_product().is_some());
            let mut expected = before.clone();
            multiply_alone(&mut expected, Before::Kept, -0.5, left, right);
            let mut added = before.clone();
            add_product(&mut added, -0.5, left, right);
            let product = multiplied(-0.5, left, right);
            for i in 0..WIDTH {
                assert!((added[i] - expected[i]).abs() < 1e-4, "{i}");
                assert!((product[i] + before[i] - expected[i]).abs() < 1e-4, "{i}");
            }
        }
    }

    /// What is kept for nothing must not be read: it may be anything.
    #[test]
    fn what_is_overwritten_is_not_read() {
        let values = [1.0_f32, 2.0, 3.0, 4.0];
        for (rows, inner, columns) in [(2, 2, 2), (1, 4, 1), (4, 1, 1), (2, 0, 3)] {
            let left = Matrix::new(&values, rows, inner, inner);
            let right = Matrix::new(&values, inner, columns, columns);
            let mut output = vec![f32::NAN; rows * columns];
            write_product(&mut output, 1.0, left, right);
            assert!(
                output.iter().all(|x| x.is_finite()),
                "{rows} {inner} {columns}"
            );
        }
    }

    #[test]
    #[should_panic(expected = "do not lie within 5 values")]
    fn a_matrix_beyond_its_values_is_refused() {
        let _ = Matrix::new(&[0.0; 5], 2, 3, 3);
    }

    #[test]
    #[should_panic(expected = "do not lie within 5 values")]
    fn a_stride_that_wraps_is_refused() {
        let _ = Matrix::new(&[0.0; 5], 3, 2, usize::MAX / 2 + 1);
    }

    #[test]
    #[should_panic(expected = "the values of the output")]
    fn a_product_of_another_size_is_refused() {
        let matrix = Matrix::new(&[1.0; 4], 2, 2, 2);
        write_product(&mut [0.0; 3], 1.0, matrix, matrix);
    }

    #[test]
    fn a_flipped_matrix_is_copied() {
        let tensor = FlexTensor::from_data(TensorData::new(vec![1.0_f32, 2.0, 3.0, 4.0], [2, 2]));
        let layout = tensor.layout().flip(&[0, 1]);
        let flipped = tensor.clone().with_layout(layout);
        let copy = unflipped(&flipped);
        assert_eq!(Matrix::of(&copy).extent(), [4.0, 3.0, 2.0, 1.0]);
        assert!(matches!(unflipped(&tensor), Cow::Borrowed(_)));
    }

    #[test]
    #[should_panic(expected = "it must be copied")]
    fn a_flipped_matrix_is_refused() {
        let tensor = FlexTensor::from_data(TensorData::new(vec![1.0_f32, 2.0], [2, 1]));
        let layout = tensor.layout().flip(&[0]);
        let _ = Matrix::of(&tensor.with_layout(layout));
    }
}
