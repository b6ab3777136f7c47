//! LoRA adapters as GGUF files.

use std::path::Path;

use serde_json::{Map, Value};

use super::{
    change,
    container::{self, Metadata, Planned},
    encode, reject_duplicates,
    shape::Shape,
};
use crate::{
    GgufError,
    families::Family,
    names::{Change, module_to_gguf},
    types::TensorType,
};

/// The two factors of one adapted layer.
#[derive(Clone, Copy, Debug)]
pub struct LoraLayer<'a> {
    /// The layer's path in the Hugging Face model, such as
    /// `model.layers.0.self_attn.q_proj`.
    pub module: &'a str,
    /// `[rank, in]`, row-major.
    pub a: &'a [f32],
    /// `[out, rank]`, row-major.
    pub b: &'a [f32],
    /// Columns of B and rows of A.
    pub rank: usize,
    /// What the product is multiplied by in this layer: alpha / rank as a rule,
    /// alpha / √rank in rsLoRA.
    pub scale: f64,
}

/// Writes a LoRA adapter as llama.cpp's `convert_lora_to_gguf.py` would, in `f32`.
///
/// `config` is the base model's `config.json`. llama.cpp multiplies every
/// layer by `alpha` / its rank; where a layer's own scale is another, the
/// difference is multiplied into its B.
///
/// The file appears at `path` when it is complete; until then, and after an
/// error, whatever was there before stays.
///
/// # Errors
///
/// [`GgufError::Unwritable`] if a layer is not one that llama.cpp adapts (the
/// embedding, or the output layer where it is tied to it), if its factors do
/// not fit its rank, or if `alpha` is not a positive number; [`GgufError::Io`].
pub fn write_adapter(
    path: &Path,
    config: &Map<String, Value>,
    alpha: f64,
    layers: &[LoraLayer<'_>],
) -> Result<(), GgufError> {
    if !(alpha.is_finite() && alpha > 0.0) {
        return Err(GgufError::unwritable(
            format!("an adapter with alpha {alpha}"),
            "it must be a positive number",
        ));
    }
    if layers.is_empty() {
        return Err(GgufError::unwritable("an adapter", "it has no layers"));
    }
    let shape = Shape::new(config)?;
    let mut metadata = Metadata::default();
    metadata.text("general.architecture", shape.family.architecture);
    metadata.text("general.type", "adapter");
    metadata.text("adapter.type", "lora");
    metadata.f32("adapter.lora.alpha", alpha as f32);
    metadata.u32("general.quantization_version", 2);

    let mut planned = Vec::new();
    for layer in layers {
        let name = name(layer, shape.family, shape.tied)?;
        let (outputs, inputs) = sides(layer)?;
        if !change(
            &format!("{}.weight", layer.module),
            shape.family,
            shape.heads,
        )
        .fits(outputs)
        {
            return Err(refused(
                layer,
                format!("its {outputs} outputs cannot be divided among the heads"),
            ));
        }
        let factor = |suffix, shape| Planned {
            name: format!("{name}.weight.{suffix}"),
            shape,
            kind: TensorType::F32,
        };
        planned.push(factor("lora_a", vec![layer.rank, inputs]));
        planned.push(factor("lora_b", vec![outputs, layer.rank]));
    }
    reject_duplicates(&planned)?;

    container::write(path, &metadata, &planned, |index, output| {
        let layer = &layers[index / 2];
        if index % 2 == 0 {
            return encode::rows(&planned[index], Change::None, layer.a, output);
        }
        let name = format!("{}.weight", layer.module);
        let change = change(&name, shape.family, shape.heads);
        // The layer's scale as a share of the one that llama.cpp applies.
        let share = layer.scale * layer.rank as f64 / alpha;
        if share == 1.0 {
            return encode::rows(&planned[index], change, layer.b, output);
        }
        let scaled: Vec<_> = layer
            .b
            .iter()
            .map(|&value| (f64::from(value) * share) as f32)
            .collect();
        encode::rows(&planned[index], change, &scaled, output)
    })
}

fn refused(layer: &LoraLayer<'_>, reason: impl Into<String>) -> GgufError {
    GgufError::unwritable(format!("the adapter of `{}`", layer.module), reason)
}

fn name(layer: &LoraLayer<'_>, family: &Family, tied: bool) -> Result<String, GgufError> {
    if layer.module == "lm_head" && tied {
        return Err(refused(
            layer,
            "the base model ties its output layer to the embedding, and llama.cpp adapts neither \
             then; merge the adapter and write the model instead",
        ));
    }
    module_to_gguf(family, layer.module)
        .filter(|name| !name.ends_with("norm") && name != "token_embd")
        .ok_or_else(|| refused(layer, "llama.cpp adapts no layer of this name"))
}

/// Outputs and inputs of the layer, from the sizes of its factors.
fn sides(layer: &LoraLayer<'_>) -> Result<(usize, usize), GgufError> {
    let LoraLayer { a, b, rank, .. } = *layer;
    let fits = |factor: &[f32]| rank > 0 && !factor.is_empty() && factor.len().is_multiple_of(rank);
    if !(fits(a) && fits(b)) {
        return Err(refused(
            layer,
            format!(
                "factors of {} and {} numbers do not fit rank {rank}",
                a.len(),
                b.len()
            ),
        ));
    }
    if !layer.scale.is_finite() {
        return Err(refused(layer, format!("its scale is {}", layer.scale)));
    }
    Ok((b.len() / rank, a.len() / rank))
}
