//! Numbers in the formats that are written.

use std::{io::Write, path::Path};

use half::{bf16, f16};
use olora_packed::{Packed, PackedError, pack_blocks};
use rayon::prelude::*;

use super::container::Planned;
use crate::{GgufError, names::Change, types::TensorType};

/// Values that one thread encodes at a time.
const AT_ONCE: usize = 1 << 16;

/// Writes a tensor row by row, in the file's order of rows. Rows are encoded on
/// all threads: k-quants take long to make.
pub(super) fn rows(
    tensor: &Planned,
    change: Change,
    values: &[f32],
    output: &mut dyn Write,
) -> Result<(), GgufError> {
    let rows = tensor.shape[0];
    let width = values.len() / rows;
    let some = |first: usize, last: usize| {
        let mut raised = Vec::new();
        let mut bytes = Vec::new();
        for row in first..last {
            let mut values = &values[change.source_row(row, rows) * width..][..width];
            if change == Change::PlusOne {
                raised.clear();
                raised.extend(values.iter().map(|value| value + 1.0));
                values = &raised;
            }
            encode(tensor, values, &mut bytes)?;
        }
        Ok(bytes)
    };
    in_parts(tensor, width, some, output)
}

/// Writes a matrix that is packed: as it is, if the file is to have the same
/// format.
pub(super) fn packed(
    tensor: &Planned,
    change: Change,
    packed: &Packed,
    output: &mut dyn Write,
) -> Result<(), GgufError> {
    let [rows, columns] = packed.shape();
    if let Some((format, blocks)) = packed.as_blocks()
        && tensor.kind == TensorType::of_blocks(format)
        && change != Change::PlusOne
    {
        let width = blocks.len() / rows.max(1);
        let some = |first: usize, last: usize| {
            let order = (first..last).map(|row| change.source_row(row, rows) * width);
            Ok(order
                .flat_map(|at| &blocks[at..at + width])
                .copied()
                .collect())
        };
        return in_parts(tensor, columns, some, output);
    }
    let some = |first: usize, last: usize| {
        let mut values = vec![0.0; columns];
        let mut bytes = Vec::new();
        for row in first..last {
            let source = change.source_row(row, rows);
            packed
                .unpack(source..source + 1, 0..columns, &mut values, columns)
                .map_err(|error| {
                    GgufError::unwritable(format!("`{}`", tensor.name), error.to_string())
                })?;
            if change == Change::PlusOne {
                for value in &mut values {
                    *value += 1.0;
                }
            }
            encode(tensor, &values, &mut bytes)?;
        }
        Ok(bytes)
    };
    in_parts(tensor, columns, some, output)
}

/// Encodes rows of `width` on all threads and writes them in order.
fn in_parts(
    tensor: &Planned,
    width: usize,
    some: impl Fn(usize, usize) -> Result<Vec<u8>, GgufError> + Sync,
    output: &mut dyn Write,
) -> Result<(), GgufError> {
    let rows = tensor.shape[0];
    let step = (AT_ONCE / width.max(1)).max(1);
    let starts: Vec<usize> = (0..rows).step_by(step).collect();
    // Few parts at a time, so that a large tensor is not in memory twice.
    for starts in starts.chunks(4 * rayon::current_num_threads()) {
        let parts: Vec<_> = starts
            .par_iter()
            .map(|&first| some(first, (first + step).min(rows)))
            .collect();
        // In order, so that it is always the first fault that is named.
        for bytes in parts {
            output
                .write_all(&bytes?)
                // The container puts in the file's name.
                .map_err(|source| GgufError::io("writing", Path::new(&tensor.name), source))?;
        }
    }
    Ok(())
}

fn encode(tensor: &Planned, values: &[f32], bytes: &mut Vec<u8>) -> Result<(), GgufError> {
    if let Some(format) = tensor.kind.blocks() {
        return pack_blocks(format, values, bytes).map_err(|error| match error {
            PackedError::Unpackable { value, .. } => beyond(tensor, value),
            other => GgufError::unwritable(format!("`{}`", tensor.name), other.to_string()),
        });
    }
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
        TensorType::F16 => ("65504", "bf16 or f32"),
        _ => ("what its scales hold", "bf16 or f32"),
    };
    GgufError::unwritable(
        what,
        format!("it contains {value:e}, and the format ends at {largest}; use {instead}"),
    )
}
