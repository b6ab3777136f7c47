//! MLX's affine 4 and 8 bits as mlx-lm writes them: `X.weight` (words), `X.scales` and
//! `X.biases`, embeddings included.
//!
//! mlx rounds values to the scales' format; here they are `f32`.

use std::collections::BTreeSet;

use olora_packed::{Affine, Packed, PackedError, ScaleType};
use safetensors::Dtype;

use super::{Kind, Matrices, Parts};
use crate::{
    ModelError,
    checkpoint::safetensors::Shards,
    config::{Groups, Mlx},
};

/// Types of scales and biases.
const SCALES: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

pub(super) fn find(
    shards: &Shards,
    settings: &Mlx,
    found: &mut Matrices,
) -> Result<(), ModelError> {
    let layers = layers(shards);
    // A layer that is named as packed is expected to be.
    for (layer, groups) in &settings.layers {
        let values = format!("{layer}.weight");
        if groups.is_some() && !layers.contains(layer) && shards.raw(&values).is_some() {
            let parts = Parts {
                shards,
                values: &values,
            };
            // Says what is missing.
            parts.part(&format!("{layer}.scales"), &SCALES)?;
        }
    }
    for layer in layers {
        let values = format!("{layer}.weight");
        let parts = Parts {
            shards,
            values: &values,
        };
        let Some(groups) = settings.of(&layer) else {
            let reason = format!(
                "`{layer}.scales` is there, but config.json says that `{layer}` is not packed (`false`)"
            );
            return Err(parts.malformed(&reason));
        };
        let (shape, affine) = checked(parts, &layer, groups)?;
        found.parts.insert(format!("{layer}.scales"));
        found.parts.insert(format!("{layer}.biases"));
        found.insert(values, shape, Kind::Affine(affine));
    }
    Ok(())
}

/// Layers that are packed, or of which some part stands there.
fn layers(shards: &Shards) -> BTreeSet<String> {
    let packed = |name: &str| {
        let layer = name
            .strip_suffix(".scales")
            .or_else(|| name.strip_suffix(".biases"))
            .or_else(|| {
                let raw = shards.raw(name)?;
                name.strip_suffix(".weight")
                    .filter(|_| raw.dtype == Dtype::U32)
            });
        layer.map(str::to_owned)
    };
    shards.names().filter_map(packed).collect()
}

fn checked(
    parts: Parts<'_>,
    layer: &str,
    groups: Groups,
) -> Result<([usize; 2], Affine), ModelError> {
    let (_, [rows, words]) = parts.matrix(parts.values, &[Dtype::U32])?;
    let Some(columns) = words
        .checked_mul(32 / groups.bits)
        .filter(|columns| *columns > 0 && columns.is_multiple_of(groups.size))
    else {
        let reason = format!(
            "`{}` has rows of {words} words, no multiple of groups of {} values of {} bits, as config.json says they \
             are",
            parts.values, groups.size, groups.bits
        );
        return Err(parts.malformed(&reason));
    };
    let matrix = [rows, columns];
    let shape = [rows, columns / groups.size];
    let scales = parts.exactly(&format!("{layer}.scales"), &SCALES, &shape, matrix)?;
    parts.exactly(&format!("{layer}.biases"), &[scales.dtype], &shape, matrix)?;
    let kind = match scales.dtype {
        Dtype::F16 => ScaleType::F16,
        Dtype::BF16 => ScaleType::Bf16,
        _ => ScaleType::F32,
    };
    let affine = Affine::new(groups.bits, groups.size, kind);
    let affine = affine.map_err(|error| parts.malformed(&error.to_string()))?;
    Ok((matrix, affine))
}

/// The matrix as it lies in the file.
pub(super) fn packed(
    affine: Affine,
    shards: &Shards,
    name: &str,
    shape: [usize; 2],
) -> Result<Result<Packed, PackedError>, ModelError> {
    let layer = name.strip_suffix(".weight").unwrap_or(name);
    let part = |part: &str| shards.bytes(&format!("{layer}.{part}"));
    Ok(Packed::from_affine(
        affine,
        shape,
        part("weight")?,
        part("scales")?,
        part("biases")?,
    ))
}
