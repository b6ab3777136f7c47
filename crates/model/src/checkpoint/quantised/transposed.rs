//! GPTQ's and AWQ's 4 bits: `X.qweight` and `X.qzeros` (words), `X.scales`, all by inputs, and
//! GPTQ's `X.g_idx`, the group of each input. The weight is `X.weight`; it is repacked by outputs when
//! it is read, since its parts are not what a product of rows can use.

use std::collections::BTreeSet;

use olora_packed::{Affine, GptqZeros, Packed, PackedError, ScaleType, TransposedParts};
use safetensors::Dtype;

use super::{Kind, Matrices, Parts};
use crate::{ModelError, checkpoint::safetensors::Shards, config::Quantization};

/// Values in a word.
const WORD: usize = 8;

/// How the parts lie.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Inputs that share a scale.
    group: usize,
    maker: Maker,
}

#[derive(Clone, Copy)]
enum Maker {
    Gptq(GptqZeros),
    Awq,
}

/// The tensor with the values of a weight.
pub(super) fn stored(weight: &str) -> String {
    let layer = weight.strip_suffix(".weight").unwrap_or(weight);
    format!("{layer}.qweight")
}

pub(super) fn find(
    shards: &Shards,
    quantization: &Quantization,
    found: &mut Matrices,
) -> Result<(), ModelError> {
    let (layout, reordered) = match *quantization {
        Quantization::Gptq {
            group,
            zeros,
            reordered,
        } => {
            let maker = Maker::Gptq(zeros);
            (Layout { group, maker }, reordered)
        }
        Quantization::Awq { group } => {
            let maker = Maker::Awq;
            (Layout { group, maker }, false)
        }
        Quantization::Nf4 { .. } | Quantization::Mlx(_) => return Ok(()),
    };
    let layer = |name: &str| {
        let parts = [".qweight", ".qzeros", ".scales", ".g_idx"];
        let layer = parts.iter().find_map(|part| name.strip_suffix(part));
        layer.map(str::to_owned)
    };
    let layers: BTreeSet<String> = shards.names().filter_map(layer).collect();
    for layer in layers {
        let weight = format!("{layer}.weight");
        let values = stored(&weight);
        let parts = Parts {
            shards,
            values: &values,
        };
        let shape = layout.checked(parts, &layer, reordered)?;
        if shards.raw(&weight).is_some() {
            let reason = format!("`{layer}` is in it twice, as `{weight}` and as `{values}`");
            return Err(parts.malformed(&reason));
        }
        let names = ["qweight", "qzeros", "scales", "g_idx"];
        let names = names.map(|part| format!("{layer}.{part}"));
        found.parts.extend(names);
        found.insert(weight, shape, Kind::Transposed(layout));
    }
    Ok(())
}

impl Layout {
    pub(super) fn affine(self) -> Result<Affine, PackedError> {
        Affine::new(4, self.group, ScaleType::F32)
    }

    fn checked(
        self,
        parts: Parts<'_>,
        layer: &str,
        reordered: bool,
    ) -> Result<[usize; 2], ModelError> {
        let (_, [high, wide]) = parts.matrix(parts.values, &[Dtype::I32])?;
        let shape = match self.maker {
            Maker::Gptq(_) => high.checked_mul(WORD).map(|inputs| [wide, inputs]),
            Maker::Awq => wide.checked_mul(WORD).map(|outputs| [outputs, high]),
        };
        let Some(shape @ [outputs, inputs]) = shape else {
            return Err(parts.malformed(&format!("`{}` is {:?}", parts.values, [high, wide])));
        };
        if inputs == 0 || !inputs.is_multiple_of(self.group) || !outputs.is_multiple_of(WORD) {
            let reason = format!(
                "`{}` has {inputs} inputs and {outputs} outputs, which do not divide into groups of {} and words of \
                 {WORD}. Of GPTQ and AWQ, `quant_method` may name the wrong one",
                parts.values, self.group
            );
            return Err(parts.malformed(&reason));
        }
        let groups = inputs / self.group;
        let name = |part: &str| format!("{layer}.{part}");
        parts.exactly(
            &name("qzeros"),
            &[Dtype::I32],
            &[groups, outputs / WORD],
            shape,
        )?;
        parts.exactly(&name("scales"), &[Dtype::F16], &[groups, outputs], shape)?;
        let order = name("g_idx");
        let is_there = parts.shards.raw(&order).is_some();
        if matches!(self.maker, Maker::Gptq(_)) && (is_there || reordered) {
            let raw = parts.exactly(&order, &[Dtype::I32], &[inputs], shape)?;
            let words = raw
                .bytes
                .as_chunks()
                .0
                .iter()
                .map(|word| i32::from_le_bytes(*word));
            let mut odd = words.enumerate();
            let odd = odd.find(|(input, group)| *group != (input / self.group) as i32);
            if let Some((input, group)) = odd {
                let reason = format!(
                    "`{order}` has input {input} in group {group} instead of {}: groups in another order than the \
                     inputs (`desc_act: true`, act-order) are not read. Take a file that was made without, or the \
                     model's original in bf16",
                    input / self.group
                );
                return Err(parts.malformed(&reason));
            }
        }
        Ok(shape)
    }

    pub(super) fn packed(
        self,
        shards: &Shards,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Result<Packed, PackedError>, ModelError> {
        let layer = name.strip_suffix(".weight").unwrap_or(name);
        let names = ["qweight", "qzeros", "scales"].map(|part| format!("{layer}.{part}"));
        let [quants, zeros, scales] = names.each_ref().map(|name| shards.bytes(name));
        let (quants, zeros, scales) = (quants?, zeros?, scales?);
        let parts = TransposedParts {
            quants: quants.as_slice(),
            zeros: zeros.as_slice(),
            scales: scales.as_slice(),
        };
        let made = match self.maker {
            // The order of groups was looked at when the file was opened.
            Maker::Gptq(zeros) => Packed::from_gptq(self.group, shape, parts, None, zeros),
            Maker::Awq => Packed::from_awq(self.group, shape, parts),
        };
        // They were copied.
        for name in &names {
            shards.release(name);
        }
        Ok(made)
    }
}
