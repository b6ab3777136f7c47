//! Making packed matrices of `f32`.

mod k_quants;
mod legacy;

use half::{bf16, f16};

use crate::{BlockFormat, Bytes, Format, Packed, PackedError, nf4, packed::Parts};

impl Packed {
    /// Packs a matrix, row-major, as llama.cpp or bitsandbytes do on the CPU, byte for byte.
    ///
    /// llama.cpp's k-quants are those of `quantize_row_*_ref` without contraction of floating
    /// point; built for FMA it gives other bytes in 1 to 2 of 100 rows. NF4's mean of the
    /// largest values is summed in `f64`, where PyTorch's last bit depends on its threads.
    ///
    /// # Errors
    ///
    /// [`PackedError::NotMade`] for a format that is only read, [`PackedError::Width`],
    /// [`PackedError::Length`], and [`PackedError::Unpackable`] for values that are not finite
    /// or beyond the format's scales.
    pub fn pack(
        format: impl Into<Format>,
        shape: [usize; 2],
        values: &[f32],
    ) -> Result<Self, PackedError> {
        let format = format.into();
        format.bytes(shape)?;
        PackedError::check_length("the values", values.len(), shape[0] * shape[1])?;
        let rows = PackedRows::pack(format, shape[1], values)?;
        Self::from_rows(format, shape, [rows])
    }

    /// A matrix of rows that were packed in parts, in their order: byte for byte what
    /// [`Self::pack`] makes of all of them. Each part is freed as it is taken over.
    ///
    /// # Errors
    ///
    /// [`PackedError::Width`], [`PackedError::Length`] if the parts are not all of the rows, and
    /// [`PackedError::Unsupported`] for parts in another format.
    pub fn from_rows(
        format: impl Into<Format>,
        shape: [usize; 2],
        parts: impl IntoIterator<Item = PackedRows>,
    ) -> Result<Self, PackedError> {
        let format = format.into();
        let mut quants = Vec::with_capacity(format.bytes(shape)?);
        let mut largest = Vec::new();
        for part in parts {
            if part.format != format {
                return Err(PackedError::Unsupported {
                    what: "the format of some rows",
                    found: part.format.to_string(),
                    supported: "rows that are all in the matrix's format",
                });
            }
            quants.extend_from_slice(&part.quants);
            largest.extend_from_slice(&part.largest);
        }
        let blocks = shape[0] * shape[1] / format.block_values();
        match format {
            Format::Blocks(kind) => {
                let expected = blocks * kind.block_bytes();
                PackedError::check_length("the packed values", quants.len(), expected)?;
                Ok(Self {
                    shape,
                    format,
                    parts: Parts::Blocks(kind, Bytes::from(quants)),
                })
            }
            Format::Nf4 | Format::Nf4Double => {
                quants.shrink_to_fit();
                let quants = Bytes::from(quants);
                if format == Format::Nf4Double {
                    return Self::from_nf4_double(shape, quants, nf4::nest(&largest));
                }
                let largest: Vec<u8> = largest.iter().flat_map(|most| most.to_le_bytes()).collect();
                Self::from_nf4(shape, quants, Bytes::from(largest))
            }
            Format::Affine(_) => Err(not_made(format)),
            Format::Bf16 | Format::F32 => {
                let expected = format.bytes(shape)?;
                PackedError::check_length("the values", quants.len(), expected)?;
                Ok(Self {
                    shape,
                    format,
                    parts: Parts::Floats(Bytes::from(quants)),
                })
            }
        }
    }
}

/// Some rows of a matrix, packed by themselves: so that not all of its `f32` are there at
/// once, and that threads share the work. [`Packed::from_rows`] puts them together.
#[derive(Clone, Debug)]
pub struct PackedRows {
    format: Format,
    /// Blocks, or NF4's quants.
    quants: Vec<u8>,
    /// Of each of NF4's blocks. What double quantisation makes of them depends on all.
    largest: Vec<f32>,
}

impl PackedRows {
    /// Packs whole rows of `columns` values.
    ///
    /// # Errors
    ///
    /// As [`Packed::pack`]; places are counted from the first of `values`.
    pub fn pack(
        format: impl Into<Format>,
        columns: usize,
        values: &[f32],
    ) -> Result<Self, PackedError> {
        let format = format.into();
        let row = format.row_bytes(columns)?;
        let rows = values.len() / columns;
        PackedError::check_length("the values of rows", values.len(), rows * columns)?;
        let (quants, largest) = match format {
            Format::Blocks(blocks) => {
                let mut bytes = Vec::with_capacity(rows * row);
                pack_blocks(blocks, values, &mut bytes)?;
                (bytes, Vec::new())
            }
            Format::Nf4 | Format::Nf4Double => {
                within(format, f32::INFINITY, values)?;
                nf4::pack(values)
            }
            Format::Affine(_) => return Err(not_made(format)),
            Format::Bf16 => {
                // What rounds to infinity does not fit.
                within(format, BEYOND_BF16, values)?;
                let rounded = values.iter().map(|value| bf16::from_f32(*value));
                (rounded.flat_map(bf16::to_le_bytes).collect(), Vec::new())
            }
            Format::F32 => {
                within(format, f32::INFINITY, values)?;
                let bytes = values.iter().flat_map(|value| value.to_le_bytes());
                (bytes.collect(), Vec::new())
            }
        };
        Ok(Self {
            format,
            quants,
            largest,
        })
    }
}

/// The least that rounds to infinity: half a step above the largest bfloat16.
const BEYOND_BF16: f32 = f32::from_bits(0x7f7f_8000);

fn not_made(format: Format) -> PackedError {
    PackedError::NotMade {
        format: format.to_string(),
        made: Format::MADE,
    }
}

/// Appends the blocks that `values` make, as `quantize_row_*_ref` of `ggml-quants.c` does.
/// Values beyond the last whole block are not packed.
///
/// # Errors
///
/// [`PackedError::NotMade`], and [`PackedError::Unpackable`] with the value's place.
pub fn pack_blocks(
    format: BlockFormat,
    values: &[f32],
    output: &mut Vec<u8>,
) -> Result<(), PackedError> {
    let one = match format {
        BlockFormat::Q4_0 => legacy::q4_0,
        BlockFormat::Q4_1 => legacy::q4_1,
        BlockFormat::Q5_0 => legacy::q5_0,
        BlockFormat::Q5_1 => legacy::q5_1,
        BlockFormat::Q8_0 => legacy::q8_0,
        BlockFormat::Q4K => k_quants::q4_k,
        BlockFormat::Q5K => k_quants::q5_k,
        BlockFormat::Q6K => k_quants::q6_k,
        BlockFormat::Q2K | BlockFormat::Q3K | BlockFormat::Q8K => {
            return Err(PackedError::NotMade {
                format: format.to_string(),
                made: Format::MADE,
            });
        }
    };
    // The k-quants square values; none as large could be stored by any of their scales.
    let beyond = match format.block_values() {
        256 => 1e9,
        _ => f32::INFINITY,
    };
    within(format.into(), beyond, values)?;
    let size = format.block_values();
    for (i, block) in values.chunks_exact(size).enumerate() {
        let begin = output.len();
        one(block, output);
        let made = &output[begin..];
        for &(at, _) in format.halves() {
            let scale = f16::from_le_bytes([made[at], made[at + 1]]);
            if !scale.is_finite() {
                // The largest value made it so.
                let largest = (0..size).max_by(|&a, &b| block[a].abs().total_cmp(&block[b].abs()));
                let at = largest.unwrap_or_default();
                return Err(PackedError::Unpackable {
                    format: format.to_string(),
                    at: i * size + at,
                    value: block[at],
                });
            }
        }
    }
    Ok(())
}

/// That no value is NaN, or `beyond` or more.
fn within(format: Format, beyond: f32, values: &[f32]) -> Result<(), PackedError> {
    match values
        .iter()
        .position(|value| value.is_nan() || value.abs() >= beyond)
    {
        None => Ok(()),
        Some(at) => Err(PackedError::Unpackable {
            format: format.to_string(),
            at,
            value: values[at],
        }),
    }
}

/// A scale as it is stored.
fn store(output: &mut Vec<u8>, scale: f32) {
    output.extend(f16::from_f32(scale).to_le_bytes());
}

/// One over a number, zero for zero.
fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}
