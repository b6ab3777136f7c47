//! The errors of this crate.

use std::ops::Range;

/// Why a packed matrix could not be made or used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PackedError {
    /// There are more or fewer bytes or values than the shape needs.
    #[error(
        "{what} must be {expected} long for this shape and format, but is {found} long: the file is cut or its header wrong; copy or make it again"
    )]
    Length {
        /// The part of the matrix.
        what: String,
        /// Its length by shape and format.
        expected: usize,
        /// What was found.
        found: usize,
    },
    /// A shape whose values or bytes no machine can count.
    #[error("a matrix of {} rows and {} columns in {format} is larger than memory can be: the header is damaged", shape[0], shape[1])]
    TooLarge {
        /// The format.
        format: String,
        /// Rows and columns.
        shape: [usize; 2],
    },
    /// Rows do not divide into the format's blocks.
    #[error(
        "rows of {columns} values do not divide into {format}'s blocks of {block}: keep this matrix dense, or choose a format whose blocks divide {columns}"
    )]
    Width {
        /// The format.
        format: String,
        /// The row's length.
        columns: usize,
        /// A block's.
        block: usize,
    },
    /// A scale, minimum or entry of a code book is infinite or not a number.
    #[error(
        "the {what} of block {block} (row {row}, from column {column}) is {value}: the file is damaged, or was made from weights that were not finite; make it again"
    )]
    NotFinite {
        /// What it is in its block.
        what: &'static str,
        /// The block's number in the matrix.
        block: usize,
        /// The row that it lies in.
        row: usize,
        /// The first column that it holds.
        column: usize,
        /// What was found.
        value: f32,
    },
    /// A value that is to be packed is infinite, not a number, or too large for the format's scales.
    #[error("value {at} is {value}, which {format} does not hold: keep this matrix in bf16 or f32")]
    Unpackable {
        /// The format.
        format: String,
        /// The value's place.
        at: usize,
        /// The value.
        value: f32,
    },
    /// The format is read, not written.
    #[error("{format} can be read, not made; made are {made}")]
    NotMade {
        /// The format.
        format: String,
        /// What can be made.
        made: &'static str,
    },
    /// Rows or columns that the matrix does not have, or an output that does not hold them.
    #[error("{what} {asked:?} in what has {there}")]
    Range {
        /// Rows, columns or places of an output.
        what: &'static str,
        /// What was asked for.
        asked: Range<usize>,
        /// How many there are.
        there: usize,
    },
    /// A format that does not exist.
    #[error("{what} is {found}; supported are {supported}")]
    Unsupported {
        /// What it is of the format.
        what: &'static str,
        /// What was asked for.
        found: String,
        /// What there is.
        supported: &'static str,
    },
}
