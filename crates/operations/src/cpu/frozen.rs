//! A weight that is multiplied with from both sides, dense or packed.

use std::{borrow::Cow, ops::Range};

use burn::backend::{Flex, flex::FlexTensor};

use super::{
    all_f32,
    matrix::{Before, Matrix, add_product, multiplied, size, unflipped, write_product},
    packed,
};
use crate::stored::{Host, Stored};

/// A weight whose values go in the direction of their axes.
pub(super) enum Straight<'a> {
    Dense(Cow<'a, FlexTensor>),
    Packed(&'a Host),
}

impl<'a> Straight<'a> {
    /// Where these kernels can multiply with it, as far as the dtype goes too.
    pub(super) fn of(weight: &'a Stored<Flex>) -> Option<Self> {
        match weight {
            Stored::Dense(tensor) if all_f32([tensor]) => Some(Self::Dense(unflipped(tensor))),
            Stored::Host(host) => Some(Self::Packed(host)),
            Stored::Dense(_) | Stored::Placed(_) => None,
        }
    }

    pub(super) fn frozen(&self) -> Frozen<'_> {
        match self {
            Self::Dense(tensor) => Frozen::Dense(Matrix::of(tensor)),
            Self::Packed(host) => Frozen::Packed(host),
        }
    }
}

/// A matrix `[d_in, d_out]`.
#[derive(Clone, Copy)]
pub(super) enum Frozen<'a> {
    Dense(Matrix<'a>),
    Packed(&'a Host),
}

impl Frozen<'_> {
    pub(super) fn d_in(self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.rows(),
            Self::Packed(host) => host.packed.shape()[1],
        }
    }

    pub(super) fn d_out(self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.columns(),
            Self::Packed(host) => host.packed.shape()[0],
        }
    }

    /// `left·W`, rows one after the other.
    pub(super) fn multiplied(self, left: Matrix) -> Vec<f32> {
        match self {
            Self::Dense(matrix) => multiplied(1.0, left, matrix),
            Self::Packed(host) => {
                let n = size(left.rows(), self.d_out());
                let mut output = Vec::with_capacity(n);
                // SAFETY: there is room for the product's values, which nobody else has a pointer
                // to, and they are not read. All are written when the length is set.
                unsafe {
                    packed::multiply(output.as_mut_ptr(), Before::Overwritten, left, host);
                    output.set_len(n);
                }
                output
            }
        }
    }

    /// Adds `left·W` to `output`, rows one after the other.
    pub(super) fn add_product(self, output: &mut [f32], left: Matrix) {
        match self {
            Self::Dense(matrix) => add_product(output, 1.0, left, matrix),
            Self::Packed(host) => {
                check_size(output, left, self.d_out());
                // SAFETY: the slice is as large as the product and exclusively ours.
                unsafe { packed::multiply(output.as_mut_ptr(), Before::Kept, left, host) }
            }
        }
    }

    /// Writes `left·W` over `output`, rows one after the other.
    pub(super) fn write_product(self, output: &mut [f32], left: Matrix) {
        match self {
            Self::Dense(matrix) => write_product(output, 1.0, left, matrix),
            Self::Packed(host) => {
                check_size(output, left, self.d_out());
                let output = output.as_mut_ptr();
                // SAFETY: the slice is as large as the product and exclusively ours.
                unsafe { packed::multiply(output, Before::Overwritten, left, host) }
            }
        }
    }

    /// `left·Wᵀ`, rows one after the other.
    pub(super) fn multiplied_back(self, left: Matrix) -> Vec<f32> {
        match self {
            Self::Dense(matrix) => multiplied(1.0, left, matrix.transposed()),
            Self::Packed(host) => {
                let n = size(left.rows(), self.d_in());
                let mut output = Vec::with_capacity(n);
                let rows = 0..self.d_out();
                let to = output.as_mut_ptr();
                // SAFETY: as for `multiplied`.
                unsafe {
                    packed::multiply_back(to, Before::Overwritten, left, host, rows);
                    output.set_len(n);
                }
                output
            }
        }
    }

    /// Writes `left·Wᵀ` over `output`, rows one after the other, summed over
    /// `slices` of the outputs one by one.
    pub(super) fn write_back_in_slices(
        self,
        output: &mut [f32],
        left: Matrix,
        slices: impl Iterator<Item = Range<usize>>,
    ) {
        check_size(output, left, self.d_in());
        let mut before = Before::Overwritten;
        for slice in slices {
            let left = left.some_columns(slice.clone());
            match self {
                Self::Dense(matrix) => {
                    let right = matrix.some_columns(slice).transposed();
                    match before {
                        Before::Overwritten => write_product(output, 1.0, left, right),
                        Before::Kept => add_product(output, 1.0, left, right),
                    }
                }
                Self::Packed(host) => {
                    let output = output.as_mut_ptr();
                    // SAFETY: the slice is as large as the product and exclusively ours.
                    unsafe { packed::multiply_back(output, before, left, host, slice) }
                }
            }
            before = Before::Kept;
        }
    }
}

fn check_size(output: &[f32], left: Matrix, width: usize) {
    assert_eq!(
        output.len(),
        size(left.rows(), width),
        "the values of the output and of the product"
    );
}
