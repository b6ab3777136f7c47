//! Models as GGUF files.

mod adapter;
mod container;
mod encode;
mod shape;
mod vocabulary;

use std::{borrow::Cow, collections::BTreeSet, error::Error, path::Path};

use serde_json::{Map, Value};

use crate::{
    GgufError,
    families::Family,
    names::{Change, Heads, to_gguf},
    read::ROPE_FREQUENCIES,
    types::TensorType,
};
use container::{Metadata, Planned};

pub use adapter::{LoraLayer, write_adapter};

/// A format in which a model's matrices are written. Vectors, such as norms and
/// biases, are always written as `f32`, which is what llama.cpp expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE half precision.
    F16,
    /// 16 bits, the upper half of an `f32`.
    Bf16,
    /// 8 bits, with a scale for each 32 numbers. Matrices whose rows are no
    /// multiple of 32 long are written as F16, as llama.cpp's converter does.
    Q8_0,
}

impl GgufType {
    /// All formats that can be written.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0];

    /// As llama.cpp's converter calls it: `f32`, `f16`, `bf16` or `q8_0`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// `enum llama_ftype`.
    const fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }

    fn stored(self, shape: &[usize]) -> TensorType {
        match (self, shape) {
            (Self::F32, _) | (_, [] | [_]) => TensorType::F32,
            (Self::F16, _) => TensorType::F16,
            (Self::Bf16, _) => TensorType::Bf16,
            (Self::Q8_0, [.., row]) if !row.is_multiple_of(32) => TensorType::F16,
            (Self::Q8_0, _) => TensorType::Q8_0,
        }
    }
}

/// A tensor to be written: its name in Hugging Face terms and its shape,
/// `[out, in]` for matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Row-major, outermost first.
    pub shape: Vec<usize>,
}

/// The files of a checkpoint that make up its tokenizer.
#[derive(Clone, Copy, Debug)]
pub struct TokenizerFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`, if there is one.
    pub config: Option<&'a [u8]>,
    /// `chat_template.jinja`, if there is one; it goes before the template in
    /// `tokenizer_config.json`.
    pub chat_template: Option<&'a str>,
}

/// Writes a whole model as one GGUF file, as llama.cpp's
/// `convert_hf_to_gguf.py` would.
///
/// `config` is what `config.json` holds. `read` is asked for the tensors one by
/// one, in the order of `tensors`, and gives their values row-major; no more
/// than one tensor is in memory. If the configuration ties the embeddings,
/// `lm_head.weight` is not written.
///
/// The file appears at `path` when it is complete; until then, and after an
/// error, whatever was there before stays.
///
/// # Errors
///
/// [`GgufError::Unwritable`] if the configuration, the tokenizer or a tensor has
/// no form in a GGUF file from which llama.cpp would compute the same, or if
/// tensors are missing; [`GgufError::Source`] with whatever `read` failed with;
/// [`GgufError::Io`].
pub fn write_model(
    path: &Path,
    config: &Map<String, Value>,
    tokenizer: TokenizerFiles<'_>,
    tensors: &[TensorSpec],
    format: GgufType,
    mut read: impl FnMut(&str) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>>,
) -> Result<(), GgufError> {
    let shape = shape::Shape::new(config)?;
    let mut metadata = Metadata::default();
    metadata.text("general.architecture", shape.family.architecture);
    metadata.text("general.type", "model");
    if let Some(name) = shape.model_name() {
        metadata.text("general.name", name);
    }
    shape.describe(&mut metadata)?;
    metadata.u32("general.file_type", format.file_type());
    metadata.u32("general.quantization_version", 2);
    vocabulary::describe(&mut metadata, tokenizer, &shape)?;

    let written: Vec<_> = tensors
        .iter()
        .filter(|spec| !(shape.tied && spec.name == "lm_head.weight"))
        .collect();
    shape.check_complete(written.iter().map(|spec| spec.name.as_str()))?;
    let factors = shape.rope_factors()?;
    let mut planned = Vec::new();
    if let Some(factors) = &factors {
        planned.push(Planned {
            name: ROPE_FREQUENCIES.to_owned(),
            shape: vec![factors.len()],
            kind: TensorType::F32,
        });
    }
    for spec in &written {
        planned.push(plan(spec, shape.family, shape.heads, format)?);
    }
    reject_duplicates(&planned)?;

    let before = usize::from(factors.is_some());
    container::write(path, &metadata, &planned, |index, output| {
        let Some(index) = index.checked_sub(before) else {
            let factors = factors.as_deref().unwrap_or_default();
            return encode::rows(&planned[index], Change::None, factors, output);
        };
        let spec = written[index];
        let values = read(&spec.name).map_err(|source| GgufError::Source {
            name: spec.name.clone(),
            source,
        })?;
        let expected: usize = spec.shape.iter().product();
        if values.len() != expected {
            return Err(GgufError::unwritable(
                format!("`{}`", spec.name),
                format!("it has {} values, but its shape {expected}", values.len()),
            ));
        }
        let change = change(&spec.name, shape.family, shape.heads);
        encode::rows(&planned[index + before], change, &values, output)
    })
}

fn change(name: &str, family: &Family, heads: Heads) -> Change {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    Change::of(family, module, heads)
}

fn plan(
    spec: &TensorSpec,
    family: &Family,
    heads: Heads,
    format: GgufType,
) -> Result<Planned, GgufError> {
    let refused = |reason: String| GgufError::unwritable(format!("`{}`", spec.name), reason);
    let name = to_gguf(&spec.name)
        .ok_or_else(|| refused("GGUF has no tensor of this name for dense decoders".to_owned()))?;
    if spec.shape.is_empty() || spec.shape.len() > 2 || spec.shape.contains(&0) {
        return Err(refused(format!(
            "its shape is {:?}, but it must be a vector or a matrix",
            spec.shape
        )));
    }
    if !change(&spec.name, family, heads).fits(spec.shape[0]) {
        return Err(refused(format!(
            "its {} rows cannot be divided among the heads",
            spec.shape[0]
        )));
    }
    Ok(Planned {
        name,
        shape: spec.shape.clone(),
        kind: format.stored(&spec.shape),
    })
}

fn reject_duplicates(planned: &[Planned]) -> Result<(), GgufError> {
    let mut seen = BTreeSet::new();
    match planned.iter().find(|tensor| !seen.insert(&tensor.name)) {
        Some(twice) => Err(GgufError::unwritable(
            format!("`{}`", twice.name),
            "it is given twice",
        )),
        None => Ok(()),
    }
}

/// Parses a JSON object; `what` is what errors call it.
fn object(bytes: &[u8], what: &str) -> Result<Map<String, Value>, GgufError> {
    serde_json::from_slice(bytes)
        .map_err(|error| GgufError::unwritable(what, format!("it is not valid JSON: {error}")))
}

/// A `config.json` key, with its text for messages.
fn key(key: &str) -> Cow<'static, str> {
    Cow::Owned(format!("the configuration's `{key}`"))
}
