//! NF4 as transformers saves it with bitsandbytes: beside `X.weight`, its values, stand
//! `X.weight.absmax`, `.quant_map`, `.quant_state.bitsandbytes__nf4` (JSON in bytes) and, with
//! double quantisation, `.nested_absmax` and `.nested_quant_map` (`QuantState.as_dict` of
//! `bitsandbytes/functional.py`).
//!
//! bitsandbytes rounds values to the model's dtype (`dtype` of the JSON); here they are `f32`.

use std::collections::BTreeSet;

use olora_packed::{Bytes, Format, NestedScales, Packed, PackedError, dynamic_code, nf4_code};
use safetensors::Dtype;
use serde::Deserialize;

use super::{Kind, Matrices, Parts, floats};
use crate::{ModelError, checkpoint::safetensors::Shards};

/// Values with one largest value, and largest values with one scale.
const BLOCK: usize = 64;
const NESTED: usize = 256;
/// Bytes of the largest JSON; those that are known have 170.
const MOST_STATE: usize = 1 << 16;
/// How far an entry of the 8-bit code book may be from the known one. PyTorch computes it, with
/// other last bits by processor.
const TOLERANCE: f32 = 1e-6;

/// What is known of a matrix beyond its shape.
#[derive(Clone, Copy)]
pub(super) struct Nf4 {
    /// The offset of double quantisation, if there is that.
    offset: Option<f32>,
}

/// The JSON.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
    nested_dtype: Option<String>,
}

pub(super) fn find(
    shards: &Shards,
    storage: Dtype,
    found: &mut Matrices,
) -> Result<(), ModelError> {
    for values in weights(shards) {
        let parts = Parts {
            shards,
            values: &values,
        };
        let (shape, nf4, names) = checked(parts, storage)?;
        found.parts.extend(names);
        found.insert(values, shape, Kind::Nf4(nf4));
    }
    Ok(())
}

/// Names of weights that are packed, or of which some part stands there.
fn weights(shards: &Shards) -> BTreeSet<String> {
    const PARTS: [&str; 5] = [
        "absmax",
        "quant_map",
        "nested_absmax",
        "nested_quant_map",
        "quant_state.",
    ];
    let of_part = |name: &str| {
        let (module, part) = name.split_once(".weight.")?;
        let known = PARTS.iter().any(|known| part.starts_with(known));
        known.then(|| format!("{module}.weight"))
    };
    let bytes = |name: &&str| {
        let raw = shards.raw(name);
        name.ends_with(".weight") && raw.is_some_and(|raw| raw.dtype == Dtype::U8)
    };
    let named = shards.names().filter_map(of_part);
    named
        .chain(shards.names().filter(bytes).map(str::to_owned))
        .collect()
}

/// Shape and statistics of a matrix, and the names of its other parts.
fn checked(parts: Parts<'_>, storage: Dtype) -> Result<([usize; 2], Nf4, Vec<String>), ModelError> {
    let Parts { shards, values } = parts;
    let name = |part: &str| format!("{values}.{part}");
    for (other, what) in [
        (name("quant_state.bitsandbytes__fp4"), "FP4"),
        (values.replace(".weight", ".SCB"), "8 bits (LLM.int8)"),
    ] {
        if shards.raw(&other).is_some() {
            let reason = format!(
                "`{values}` is in bitsandbytes' {what} (`{other}`); of bitsandbytes' formats NF4 is read. Take the \
                 model's original in bf16"
            );
            return Err(parts.malformed(&reason));
        }
    }
    let state_name = name("quant_state.bitsandbytes__nf4");
    let state = parts.part(&state_name, &[Dtype::U8])?;
    let State {
        quant_type,
        blocksize,
        shape,
        nested_blocksize,
        nested_offset,
        nested_dtype,
    } = serde_json::from_slice(&state.bytes[..state.bytes.len().min(MOST_STATE)]).map_err(
        |error| parts.malformed(&format!("`{state_name}` is no description of NF4: {error}")),
    )?;
    let expect = |what: &str, found: &str, expected: &str| {
        if found == expected {
            return Ok(());
        }
        let reason = format!(
            "`{state_name}` says `{what}: {found}`; read is {expected}. Take the model's original in bf16"
        );
        Err(parts.malformed(&reason))
    };
    expect("quant_type", &quant_type, "nf4")?;
    expect("blocksize", &blocksize.to_string(), "64")?;
    let &[rows, columns] = shape.as_slice() else {
        return Err(parts.malformed(&format!(
            "`{state_name}` says `shape: {shape:?}`, no matrix"
        )));
    };
    let matrix = [rows, columns];
    let size = match storage {
        Dtype::U8 => 1,
        Dtype::F32 => 4,
        _ => 2,
    };
    let raw = parts.part(values, &[storage])?;
    let count = rows
        .checked_mul(columns)
        .filter(|count| *count > 0 && count.is_multiple_of(2 * size));
    if count.map(|count| count / 2) != Some(raw.bytes.len()) {
        let reason = format!(
            "`{values}` has {} bytes, but a matrix {matrix:?}, as `{state_name}` says it is, has 4 bits for each value",
            raw.bytes.len()
        );
        return Err(parts.malformed(&reason));
    }
    // Two values are a byte.
    let count = 2 * raw.bytes.len();
    if !count.is_multiple_of(BLOCK) {
        let reason = format!(
            "`{values}` has {count} values, no multiple of the {BLOCK} of a block. Take the model's original in bf16"
        );
        return Err(parts.malformed(&reason));
    }
    let blocks = count / BLOCK;
    let mut names = vec![name("absmax"), name("quant_map"), state_name.clone()];
    let code = parts.exactly(&name("quant_map"), &[Dtype::F32], &[16], matrix)?;
    compare(parts, "quant_map", code.bytes, &nf4_code(), 0.0)?;
    let nested = [name("nested_absmax"), name("nested_quant_map")];
    let Some(offset) = nested_offset else {
        parts.exactly(&name("absmax"), &[Dtype::F32], &[blocks], matrix)?;
        if let Some(odd) = nested.iter().find(|name| shards.raw(name).is_some()) {
            let reason = format!("it has `{odd}`, but `{state_name}` has no `nested_offset`");
            return Err(parts.malformed(&reason));
        }
        return Ok((matrix, Nf4 { offset: None }, names));
    };
    let size = nested_blocksize.unwrap_or(NESTED);
    expect("nested_blocksize", &size.to_string(), "256")?;
    expect(
        "nested_dtype",
        nested_dtype.as_deref().unwrap_or("float32"),
        "float32",
    )?;
    if !offset.is_finite() {
        return Err(parts.malformed(&format!("`{state_name}` says `nested_offset: {offset}`")));
    }
    parts.exactly(&name("absmax"), &[Dtype::U8], &[blocks], matrix)?;
    let scales = blocks.div_ceil(NESTED);
    parts.exactly(&nested[0], &[Dtype::F32], &[scales], matrix)?;
    let code = parts.exactly(&nested[1], &[Dtype::F32], &[256], matrix)?;
    let known = dynamic_code();
    compare(parts, "nested_quant_map", code.bytes, &*known, TOLERANCE)?;
    names.extend(nested);
    let offset = Some(offset);
    Ok((matrix, Nf4 { offset }, names))
}

/// Refuses a code book that is another than the known one.
fn compare(
    parts: Parts<'_>,
    part: &str,
    bytes: &[u8],
    known: &[f32],
    tolerance: f32,
) -> Result<(), ModelError> {
    let found = floats(bytes);
    let mut pairs = found.iter().zip(known).enumerate();
    let odd = pairs.find(|(_, (found, known))| {
        let difference = (**found - **known).abs();
        difference.is_nan() || difference > tolerance
    });
    match odd {
        None => Ok(()),
        Some((i, (found, known))) => {
            let reason = format!(
                "entry {i} of `{}.{part}` is {found}, but {known} in bitsandbytes' code book: either the file is \
                 damaged, or it was made by another method. Take the model's original in bf16",
                parts.values
            );
            Err(parts.malformed(&reason))
        }
    }
}

impl Nf4 {
    pub(super) fn format(self) -> Format {
        match self.offset {
            None => Format::Nf4,
            Some(_) => Format::Nf4Double,
        }
    }

    /// bitsandbytes packs matrices as if they were one row.
    pub(super) fn packed(
        self,
        shards: &Shards,
        name: &str,
        [rows, columns]: [usize; 2],
    ) -> Result<Result<Packed, PackedError>, ModelError> {
        let shape = if columns.is_multiple_of(BLOCK) {
            [rows, columns]
        } else {
            [1, rows * columns]
        };
        let part = |part: &str| shards.bytes(&format!("{name}.{part}"));
        let quants = shards.bytes(name)?;
        let largest = part("absmax")?;
        let Some(offset) = self.offset else {
            return Ok(Packed::from_nf4(shape, quants, largest));
        };
        let numbers = |bytes: &Bytes| floats(bytes.as_slice());
        let mut code = dynamic_code();
        code.iter_mut()
            .zip(numbers(&part("nested_quant_map")?))
            .for_each(|(entry, stored)| *entry = stored);
        let scales = NestedScales {
            places: largest,
            code,
            scales: numbers(&part("nested_absmax")?),
            offset,
        };
        Ok(Packed::from_nf4_double(shape, quants, scales))
    }
}
