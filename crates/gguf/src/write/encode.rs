//! Numbers in the formats that are written.

use std::{io::Write, path::Path};

use half::{bf16, f16};

use super::container::Planned;
use crate::{GgufError, names::Change, types::TensorType};

/// Writes a tensor row by row, in the file's order of rows.
pub(super) fn rows(
    tensor: &Planned,
    change: Change,
    values: &[f32],
    output: &mut dyn Write,
) -> Result<(), GgufError> {
    let rows = tensor.shape[0];
    let width = values.len() / rows;
    let mut raised = Vec::new();
    let mut bytes = Vec::new();
    for row in 0..rows {
        let mut values = &values[change.source_row(row, rows) * width..][..width];
        if change == Change::PlusOne {
            raised.clear();
            raised.extend(values.iter().map(|value| value + 1.0));
            values = &raised;
        }
        encode(tensor, values, &mut bytes)?;
        if bytes.len() >= 1 << 16 || row + 1 == rows {
            output
                .write_all(&bytes)
                // The container puts in the file's name.
                .map_err(|source| GgufError::io("writing", Path::new(&tensor.name), source))?;
            bytes.clear();
        }
    }
    Ok(())
}

fn encode(tensor: &Planned, values: &[f32], bytes: &mut Vec<u8>) -> Result<(), GgufError> {
    match tensor.kind {
        TensorType::Bf16 => {
            for &value in values {
                let half = bf16::from_f32(value);
                if !half.is_finite() {
                    return Err(beyond(tensor, value));
                }
                bytes.extend(half.to_le_bytes());
            }
        }
        TensorType::F16 => {
            for &value in values {
                bytes.extend(in_range(tensor, value, value)?.to_le_bytes());
            }
        }
        TensorType::Q8_0 => {
            for block in values.chunks_exact(32) {
                q8_0(tensor, block, bytes)?;
            }
        }
        // The only other one that is ever planned.
        _ => {
            if let Some(&value) = values.iter().find(|value| !value.is_finite()) {
                return Err(beyond(tensor, value));
            }
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
    Ok(())
}

/// `quantize_row_q8_0_ref` of `ggml-quants.c`.
fn q8_0(tensor: &Planned, block: &[f32], bytes: &mut Vec<u8>) -> Result<(), GgufError> {
    let mut largest = 0.0_f32;
    for &value in block {
        // A NaN would vanish in a maximum.
        if !value.is_finite() {
            in_range(tensor, value, value)?;
        }
        largest = largest.max(value.abs());
    }
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    bytes.extend(in_range(tensor, scale, largest)?.to_le_bytes());
    let quants = block.iter().map(|value| (value * inverse).round() as i8);
    bytes.extend(quants.map(i8::cast_unsigned));
    Ok(())
}

/// A number as `f16`, unless it is beyond what that holds.
fn in_range(tensor: &Planned, stored: f32, value: f32) -> Result<f16, GgufError> {
    let half = f16::from_f32(stored);
    if half.is_finite() {
        return Ok(half);
    }
    Err(beyond(tensor, value))
}

fn beyond(tensor: &Planned, value: f32) -> GgufError {
    let what = format!("`{}` as {}", tensor.name, tensor.kind.name());
    if !value.is_finite() {
        let reason = format!("it holds {value}, from which nothing can be computed");
        return GgufError::unwritable(what, reason);
    }
    let (largest, instead) = match tensor.kind {
        TensorType::Bf16 => ("3.3895e38", "f32"),
        TensorType::Q8_0 => ("8.3e6", "bf16 or f32"),
        _ => ("65504", "bf16 or f32"),
    };
    GgufError::unwritable(
        what,
        format!("it contains {value:e}, and the format ends at {largest}; use {instead}"),
    )
}
