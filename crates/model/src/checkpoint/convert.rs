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

/// How many of the elements are infinite or not a number.
pub(super) fn count_not_finite(bytes: &[u8], format: Dtype) -> usize {
    // All bits of the exponent set, which is what those values are in all three formats.
    fn count<const N: usize>(bytes: &[u8], exponent: [u8; N]) -> usize {
        let odd = |element: &[u8; N]| (0..N).all(|i| element[i] & exponent[i] == exponent[i]);
        let elements = bytes.as_chunks::<N>().0;
        elements.par_iter().filter(|element| odd(element)).count()
    }
    match format {
        Dtype::F32 => count(bytes, 0x7f80_0000_u32.to_le_bytes()),
        Dtype::Bf16 => count(bytes, 0x7f80_u16.to_le_bytes()),
        Dtype::F16 => count(bytes, 0x7c00_u16.to_le_bytes()),
    }
}

/// The largest finite magnitude among the elements.
pub(super) fn largest(bytes: &[u8], format: Dtype) -> f32 {
    elements::<f32>(bytes, format, None)
        .into_par_iter()
        .map(f32::abs)
        .filter(|magnitude| magnitude.is_finite())
        .reduce(|| 0.0, f32::max)
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
    fn only_what_is_infinite_or_no_number_is_counted() {
        let values = [0.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 6e4];
        for format in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            assert_eq!(count_not_finite(&bytes(&values, format), format), 3);
            assert!((largest(&bytes(&values, format), format) - 6e4).abs() < 200.0);
        }
        assert_eq!(count_not_finite(&f32::MAX.to_le_bytes(), Dtype::F32), 0);
    }
}
