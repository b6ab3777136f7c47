//! Rows that a layer multiplies with more than its weight: with the factors of its update, in the
//! same sums.

use rayon::prelude::*;

use super::{
    Before, EDGE, Kernel, Matrix, Pointer, ROUNDED, Rounded, Side, Sums, WORTH_THREADS,
    block::Block, lay_out_rows, multiply_rounded, rounded, tile::turn_left,
};
use crate::{
    cpu::{
        matrix::{add_product, multiplied, size},
        packed::by_panels,
    },
    stored::Host,
};

/// Rows rounded to bf16: the input of a layer, or the gradient of its output.
///
/// Every product rounds what it multiplies with, too, and sums in f32. Without a kernel the same
/// values are multiplied by `gemm`, so that results differ in the order of sums alone.
pub(in crate::cpu) struct Inputs {
    form: Form,
    /// What [`Self::append`] was given.
    appended: usize,
}

enum Form {
    LaidOut(Kernel, Rounded),
    Plain {
        values: Vec<f32>,
        columns: usize,
        appended: Vec<f32>,
    },
}

/// Every value, rounded, rows one after the other.
pub(super) fn all_rounded(matrix: Matrix) -> Vec<f32> {
    let mut values = matrix.to_vec();
    for value in &mut values {
        *value = rounded(*value);
    }
    values
}

impl Inputs {
    /// With room for so many columns more.
    pub(in crate::cpu) fn new(kernel: Option<Kernel>, left: Matrix, more: usize) -> Self {
        let form = match kernel {
            Some(kernel) => {
                kernel.check();
                Form::LaidOut(kernel, Rounded::new(ROUNDED.take(), kernel, left, more))
            }
            None => Form::Plain {
                values: all_rounded(left),
                columns: left.columns(),
                appended: Vec::new(),
            },
        };
        Self { form, appended: 0 }
    }

    /// `x·right`, rows one after the other, with a matrix of few columns and dense rows.
    pub(in crate::cpu) fn times(&self, right: Matrix) -> Vec<f32> {
        match &self.form {
            Form::LaidOut(kernel, x) => times(*kernel, x, right),
            Form::Plain {
                values, columns, ..
            } => {
                let right_values = all_rounded(right);
                let right = Matrix::of_rows(&right_values, right.columns());
                multiplied(1.0, Matrix::of_rows(values, *columns), right)
            }
        }
    }

    /// `leftᵀ·x`, `[columns of left, columns of x]`, with as many rows on the left as there are
    /// here: the gradient of a factor.
    pub(in crate::cpu) fn summed_with(&self, left: Matrix) -> Vec<f32> {
        match &self.form {
            Form::LaidOut(kernel, x) => summed_with(*kernel, x, left),
            Form::Plain {
                values, columns, ..
            } => {
                let left_values = all_rounded(left);
                let left = Matrix::of_rows(&left_values, left.columns());
                multiplied(1.0, left.transposed(), Matrix::of_rows(values, *columns))
            }
        }
    }

    /// More columns, for which there was to be room, to be multiplied with rows of another matrix
    /// than the weight.
    pub(in crate::cpu) fn append(&mut self, more: Matrix) {
        self.appended = more.columns();
        match &mut self.form {
            Form::LaidOut(kernel, x) => {
                let to = x.steps..x.all;
                x.round(*kernel, more, to);
            }
            Form::Plain { appended, .. } => *appended = all_rounded(more),
        }
    }

    /// `x·W`, or `x·Wᵀ`, and what was appended times `more`, rows one after the other.
    pub(in crate::cpu) fn multiplied(
        &self,
        host: &Host,
        side: &Side,
        more: Option<Matrix>,
    ) -> Vec<f32> {
        assert_eq!(
            self.appended,
            more.map_or(0, Matrix::rows),
            "columns that were appended"
        );
        let (inner, width, _) = side.sizes(&host.packed);
        match &self.form {
            Form::LaidOut(kernel, x) => {
                let n = size(x.rows, width);
                let mut output = Vec::with_capacity(n);
                let to = output.as_mut_ptr();
                // SAFETY: there is room for the product's values, which nobody else has a pointer
                // to, and they are not read. All are written when the length is set.
                unsafe {
                    let fresh = Before::Overwritten;
                    multiply_rounded(*kernel, to, fresh, x, &host.packed, side, more);
                    output.set_len(n);
                }
                output
            }
            Form::Plain {
                values,
                columns,
                appended,
            } => {
                assert_eq!(*columns, inner, "inner dimensions");
                let left = Matrix::of_rows(values, *columns);
                let mut output = vec![0.0; size(left.rows(), width)];
                let to = output.as_mut_ptr();
                // SAFETY: the vector is as large as the product, and ours.
                unsafe { by_panels(to, Before::Overwritten, left, &host.packed, side, true) };
                if let Some(more) = more {
                    let more_values = all_rounded(more);
                    let more = Matrix::of_rows(&more_values, more.columns());
                    add_product(
                        &mut output,
                        1.0,
                        Matrix::of_rows(appended, more.rows()),
                        more,
                    );
                }
                output
            }
        }
    }
}

impl Drop for Inputs {
    fn drop(&mut self) {
        if let Form::LaidOut(_, x) = &mut self.form {
            ROUNDED.set(std::mem::take(&mut x.blocks));
        }
    }
}

/// Runs one piece after the other with the processor ready, on all threads if that is worth it.
fn for_all(kernel: Kernel, worth: bool, n: usize, work: impl Fn(usize) + Sync) {
    if worth {
        (0..n)
            .into_par_iter()
            .for_each(|i| kernel.prepared(|| work(i)));
    } else {
        kernel.prepared(|| (0..n).for_each(work));
    }
}

fn times(kernel: Kernel, x: &Rounded, right: Matrix) -> Vec<f32> {
    assert_eq!(x.columns, right.rows(), "inner dimensions");
    let width = right.columns();
    let panels = width.div_ceil(EDGE);
    let mut laid_out = vec![Block::ZERO; panels * x.steps];
    for (panel, to) in laid_out.chunks_exact_mut(x.steps.max(1)).enumerate() {
        lay_out_rows(kernel, right, panel, to);
    }
    let n = size(x.rows, width);
    let mut output = Vec::with_capacity(n);
    let to = Pointer(output.as_mut_ptr());
    let worth = x.rows * x.columns * width >= WORTH_THREADS;
    for_all(kernel, worth, x.rows.div_ceil(EDGE), |slab| {
        let to = &to;
        let rows = (x.rows - slab * EDGE).min(EDGE);
        let mut sums = Sums::ZERO;
        for panel in 0..panels {
            let right = &laid_out[panel * x.steps..][..x.steps];
            let columns = (width - panel * EDGE).min(EDGE);
            // SAFETY: within `prepared`; rows and columns lie within the output's room, and no other piece
            // has these rows.
            unsafe {
                let at = to.0.add(slab * EDGE * width + panel * EDGE);
                let sides = [x.slab(slab), right];
                kernel.multiply_to(sides, &mut sums, at, width, [rows, columns], false);
            }
        }
    });
    // SAFETY: there is room for as many, and pieces have written all of them.
    unsafe { output.set_len(n) };
    output
}

fn summed_with(kernel: Kernel, x: &Rounded, left: Matrix) -> Vec<f32> {
    assert_eq!(x.rows, left.rows(), "rows to be summed over");
    let (height, width) = (left.columns(), x.columns);
    let slabs = x.rows.div_ceil(EDGE);
    let lines = height.div_ceil(EDGE);
    // Rows beyond the last mean nothing in what is laid out, and are zero here.
    let mut turned = vec![Block::ZERO; lines * slabs];
    turn_left(kernel, left, &mut turned, slabs);
    let last = x.rows - (slabs.max(1) - 1) * EDGE;
    let n = size(height, width);
    let mut output = Vec::with_capacity(n);
    let to = Pointer(output.as_mut_ptr());
    let worth = x.rows * width * height >= WORTH_THREADS;
    for_all(kernel, worth, width.div_ceil(EDGE), |panel| {
        let to = &to;
        let mut right = vec![Block::ZERO; slabs];
        for (slab, right) in right.iter_mut().enumerate() {
            let block = &x.slab(slab)[panel];
            if slab + 1 < slabs || last == EDGE {
                kernel.interleave(block, right);
            } else {
                // Zero times what is no number is none either.
                let mut block = *block;
                (last..EDGE).for_each(|i| *block.line(i) = [0; EDGE]);
                kernel.interleave(&block, right);
            }
        }
        let mut sums = Sums::ZERO;
        let columns = (width - panel * EDGE).min(EDGE);
        for line in 0..lines {
            let rows = (height - line * EDGE).min(EDGE);
            // SAFETY: within `prepared`; rows and columns lie within the output's room, and no other piece
            // has these columns.
            unsafe {
                let at = to.0.add(line * EDGE * width + panel * EDGE);
                let sides = [&turned[line * slabs..][..slabs], &right];
                kernel.multiply_to(sides, &mut sums, at, width, [rows, columns], false);
            }
        }
    });
    // SAFETY: there is room for as many, and pieces have written all of them.
    unsafe { output.set_len(n) };
    output
}
