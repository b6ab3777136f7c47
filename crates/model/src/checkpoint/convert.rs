//! Bytes of one number format into elements of another, in parallel.

use burn::tensor::TensorData;
use half::{bf16, f16};
use rayon::prelude::*;

use super::Dtype;

/// Little-endian bytes in the format `from`, as data of the format `to`.
///
/// `shape` is what the data is to have. If `transposed`, the bytes hold the
/// matrix the other way around, as `[shape[1], shape[0]]`.
pub(super) fn convert(
    bytes: &[u8],
    from: Dtype,
    to: Dtype,
    shape: &[usize],
    transposed: bool,
) -> TensorData {
    let dims = match shape {
        [rows, columns] if transposed => Some([*rows, *columns]),
        _ => None,
    };
    match to {
        Dtype::F32 => TensorData::new(elements::<f32>(bytes, from, dims), shape),
        Dtype::Bf16 => TensorData::new(elements::<bf16>(bytes, from, dims), shape),
        Dtype::F16 => TensorData::new(elements::<f16>(bytes, from, dims), shape),
    }
}

/// A number format that weights are held in. Each is read from itself without
/// a change of bits.
trait Element: Copy + Default + Send {
    fn from_f32(value: f32) -> Self;
    fn from_bf16(value: bf16) -> Self;
    fn from_f16(value: f16) -> Self;
}

impl Element for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }
    fn from_bf16(value: bf16) -> Self {
        value.to_f32()
    }
    fn from_f16(value: f16) -> Self {
        value.to_f32()
    }
}

impl Element for bf16 {
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn from_bf16(value: bf16) -> Self {
        value
    }
    fn from_f16(value: f16) -> Self {
        Self::from_f32(value.to_f32())
    }
}

impl Element for f16 {
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn from_bf16(value: bf16) -> Self {
        Self::from_f32(value.to_f32())
    }
    fn from_f16(value: f16) -> Self {
        value
    }
}

fn elements<T: Element>(bytes: &[u8], from: Dtype, dims: Option<[usize; 2]>) -> Vec<T> {
    match from {
        Dtype::F32 => ordered(bytes, dims, |b| T::from_f32(f32::from_le_bytes(b))),
        Dtype::Bf16 => ordered(bytes, dims, |b| T::from_bf16(bf16::from_le_bytes(b))),
        Dtype::F16 => ordered(bytes, dims, |b| T::from_f16(f16::from_le_bytes(b))),
    }
}

/// With `dims`, transposes a stored `[dims[1], dims[0]]` matrix into
/// `[dims[0], dims[1]]`.
fn ordered<const N: usize, T: Element>(
    bytes: &[u8],
    dims: Option<[usize; 2]>,
    read: impl Fn([u8; N]) -> T + Sync,
) -> Vec<T> {
    // Cache-sized pieces; for a transposition, bands of output rows that read
    // whole cache lines of the input.
    const PIECE: usize = 16 * 1024;
    const BAND: usize = 32;
    let elements = bytes.as_chunks::<N>().0;
    let mut output = vec![T::default(); elements.len()];
    match dims {
        None => output
            .par_chunks_mut(PIECE)
            .zip(elements.par_chunks(PIECE))
            .for_each(|(to, from)| {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = read(*from);
                }
            }),
        Some([rows, columns]) => {
            output
                .par_chunks_mut(BAND * columns.max(1))
                .enumerate()
                .for_each(|(band, to)| {
                    let first = band * BAND;
                    let height = to.len() / columns.max(1);
                    for column in 0..columns {
                        let stored = &elements[column * rows + first..][..height];
                        for (row, from) in stored.iter().enumerate() {
                            to[row * columns + column] = read(*from);
                        }
                    }
                });
        }
    }
    output
}

/// Why elements cannot be had in a format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unfit {
    /// Some are infinite or not a number: the first of them, its place and how
    /// many there are.
    NotFinite { value: f32, first: usize, n: usize },
    /// All are finite, and the largest magnitude is beyond the format.
    TooLarge { largest: f32 },
}

/// Refuses elements that are not finite, or would not be in the format `to`.
///
/// One pass with integers, whose order is that of the magnitudes: each weight
/// that is read or written goes through it.
pub(super) fn check(bytes: &[u8], from: Dtype, to: Dtype) -> Result<(), Unfit> {
    let largest = largest(bytes, from);
    if !largest.is_finite() {
        return Err(not_finite(bytes, from));
    }
    let fits = match to {
        Dtype::F32 => true,
        Dtype::Bf16 => bf16::from_f32(largest).is_finite(),
        Dtype::F16 => f16::from_f32(largest).is_finite(),
    };
    if fits {
        Ok(())
    } else {
        Err(Unfit::TooLarge { largest })
    }
}

/// Elements that are looked at by one thread at a time.
const PIECE: usize = 64 * 1024;

/// The largest magnitude: a NaN is larger than infinity.
fn largest(bytes: &[u8], format: Dtype) -> f32 {
    /// Without their signs, numbers of each format are ordered as integers are.
    fn halves(bytes: &[u8]) -> u16 {
        let pieces = bytes.as_chunks::<2>().0.par_chunks(PIECE);
        let of_piece = pieces.map(|piece| {
            let magnitudes = piece.iter().map(|&b| u16::from_le_bytes(b) & 0x7fff);
            magnitudes.fold(0, u16::max)
        });
        of_piece.reduce(|| 0, u16::max)
    }
    match format {
        Dtype::F32 => {
            let pieces = bytes.as_chunks::<4>().0.par_chunks(PIECE);
            let of_piece = pieces.map(|piece| {
                let magnitudes = piece.iter().map(|&b| u32::from_le_bytes(b) & 0x7fff_ffff);
                magnitudes.fold(0, u32::max)
            });
            f32::from_bits(of_piece.reduce(|| 0, u32::max))
        }
        Dtype::Bf16 => bf16::from_bits(halves(bytes)).to_f32(),
        Dtype::F16 => f16::from_bits(halves(bytes)).to_f32(),
    }
}

/// What is wrong with elements of which some are not finite.
fn not_finite(bytes: &[u8], format: Dtype) -> Unfit {
    let values = elements::<f32>(bytes, format, None);
    let mut odd = values.iter().enumerate();
    let mut odd = odd.by_ref().filter(|(_, value)| !value.is_finite());
    let (first, value) = odd.next().map_or((0, f32::NAN), |(i, value)| (i, *value));
    Unfit::NotFinite {
        value,
        first,
        n: 1 + odd.count(),
    }
}

/// The place of an element in a tensor of this shape.
pub(super) fn place(mut element: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for (at, &size) in at.iter_mut().zip(shape).rev() {
        let size = size.max(1);
        (*at, element) = (element % size, element / size);
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32], format: Dtype) -> Vec<u8> {
        let one = |&value: &f32| match format {
            Dtype::F32 => value.to_le_bytes().to_vec(),
            Dtype::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        };
        values.iter().flat_map(one).collect()
    }

    #[test]
    fn every_format_becomes_every_other_either_way_around() {
        const ALL: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];
        // More rows than a band, and not a multiple of it; exact in all formats.
        let (rows, columns) = (71, 3);
        let value = |row: usize, column: usize| (row * columns + column) as f32 - 100.0;
        let straight: Vec<f32> = (0..rows * columns)
            .map(|i| value(i / columns, i % columns))
            .collect();
        let across: Vec<f32> = (0..rows * columns)
            .map(|i| value(i % rows, i / rows))
            .collect();
        for from in ALL {
            for to in ALL {
                let shape = [rows, columns];
                let plain = convert(&bytes(&straight, from), from, to, &shape, false);
                assert_eq!(plain.as_bytes(), bytes(&straight, to), "{from:?} {to:?}");
                let turned = convert(&bytes(&across, from), from, to, &shape, true);
                assert_eq!(turned.as_bytes(), bytes(&straight, to), "{from:?} {to:?}");
            }
        }
    }

    #[test]
    fn what_is_infinite_or_no_number_is_found_and_counted() {
        // Beyond the end of a piece.
        let mut values = vec![-6e4; PIECE + 9];
        for format in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            values[PIECE + 1..][..3].fill(-6e4);
            let sound = bytes(&values, format);
            assert_eq!(check(&sound, format, Dtype::F32), Ok(()));
            assert!((largest(&sound, format) - 6e4).abs() < 200.0);
            values[PIECE + 1] = f32::NEG_INFINITY;
            values[PIECE + 3] = f32::NAN;
            let found = Unfit::NotFinite {
                value: f32::NEG_INFINITY,
                first: PIECE + 1,
                n: 2,
            };
            assert_eq!(check(&bytes(&values, format), format, format), Err(found));
        }
        assert_eq!(check(&[], Dtype::F32, Dtype::F16), Ok(()));
    }

    #[test]
    fn what_the_format_does_not_hold_is_told_from_what_is_not_finite() {
        let large = bytes(&[1.0, -1.2e5], Dtype::F32);
        for to in [Dtype::F32, Dtype::Bf16] {
            assert_eq!(check(&large, Dtype::F32, to), Ok(()));
        }
        let largest = 1.2e5;
        let unfit = check(&large, Dtype::F32, Dtype::F16);
        assert_eq!(unfit, Err(Unfit::TooLarge { largest }));
        // What rounds to the largest that there is fits.
        let edge = bytes(&[65519.0], Dtype::F32);
        assert_eq!(check(&edge, Dtype::F32, Dtype::F16), Ok(()));
        let most = f32::MAX.to_le_bytes();
        assert_eq!(check(&most, Dtype::F32, Dtype::F32), Ok(()));
        assert!(check(&most, Dtype::F32, Dtype::Bf16).is_err());
    }

    #[test]
    fn a_place_counts_rows_first() {
        assert_eq!(place(0, &[2, 3]), [0, 0]);
        assert_eq!(place(5, &[2, 3]), [1, 2]);
        assert_eq!(place(7, &[9]), [7]);
    }
}
