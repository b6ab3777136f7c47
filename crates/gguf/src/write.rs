//! Models as GGUF files.

mod adapter;
mod container;
mod encode;
mod own;
mod rope;
mod shape;
mod vocabulary;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    error::Error,
    path::Path,
};

use olora_packed::{BlockFormat, Packed};
use serde_json::{Map, Value};

use crate::{
    GgufError,
    families::{Family, ROUTER},
    names::{Change, Heads, in_stack, to_gguf},
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
    /// Blocks of 4 to 8 bits, all matrices alike. Where a row does not divide into
    /// the blocks, another format is taken, as `llama-quantize` does: `Q5_0` for
    /// `Q4_K`, `Q5_1` for `Q5_K`, `Q8_0` for `Q6_K`, and `F16` for all others.
    Blocks(BlockFormat),
    /// What each matrix is packed in ([`TensorSpec::packed`]); dense ones in the
    /// number format that the configuration says.
    AsPacked,
}

impl GgufType {
    /// All formats that can be written.
    pub const ALL: [Self; 12] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Blocks(BlockFormat::Q8_0),
        Self::Blocks(BlockFormat::Q6K),
        Self::Blocks(BlockFormat::Q5K),
        Self::Blocks(BlockFormat::Q5_1),
        Self::Blocks(BlockFormat::Q5_0),
        Self::Blocks(BlockFormat::Q4K),
        Self::Blocks(BlockFormat::Q4_1),
        Self::Blocks(BlockFormat::Q4_0),
        Self::AsPacked,
    ];

    /// Whether matrices are in blocks, which GGUF files alone have.
    pub const fn is_packed(self) -> bool {
        matches!(self, Self::Blocks(_) | Self::AsPacked)
    }

    /// As llama.cpp's converter calls it, in small letters: `f32`, `f16`, `bf16`,
    /// `q8_0`, `q4_k`; and `same`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Blocks(BlockFormat::Q2K) => "q2_k",
            Self::Blocks(BlockFormat::Q3K) => "q3_k",
            Self::Blocks(BlockFormat::Q4_0) => "q4_0",
            Self::Blocks(BlockFormat::Q4_1) => "q4_1",
            Self::Blocks(BlockFormat::Q4K) => "q4_k",
            Self::Blocks(BlockFormat::Q5_0) => "q5_0",
            Self::Blocks(BlockFormat::Q5_1) => "q5_1",
            Self::Blocks(BlockFormat::Q5K) => "q5_k",
            Self::Blocks(BlockFormat::Q6K) => "q6_k",
            Self::Blocks(BlockFormat::Q8_0) => "q8_0",
            Self::Blocks(BlockFormat::Q8K) => "q8_k",
            Self::AsPacked => "same",
        }
    }

    /// The format of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// `enum llama_ftype`.
    fn file_type(self, tensors: &[TensorSpec]) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 32,
            Self::Blocks(format) => blocks_file_type(format),
            // The one that most values have.
            Self::AsPacked => {
                let mut values: Vec<(BlockFormat, usize)> = Vec::new();
                for (format, n) in tensors
                    .iter()
                    .filter_map(|spec| Some((spec.packed?, spec.shape.iter().product::<usize>())))
                {
                    match values.iter_mut().find(|(known, _)| *known == format) {
                        Some((_, sum)) => *sum += n,
                        None => values.push((format, n)),
                    }
                }
                let most = values.into_iter().max_by_key(|(_, n)| *n);
                most.map_or(32, |(format, _)| blocks_file_type(format))
            }
        }
    }

    fn stored(self, spec: &TensorSpec, dense: TensorType, is_router: bool) -> TensorType {
        let [.., _, row] = spec.shape.as_slice() else {
            return TensorType::F32;
        };
        if is_router {
            return TensorType::F32;
        }
        let divides = |format: BlockFormat| row.is_multiple_of(format.block_values());
        let fitting = |format: BlockFormat| {
            let instead = match format {
                BlockFormat::Q4K => BlockFormat::Q5_0,
                BlockFormat::Q5K => BlockFormat::Q5_1,
                _ => BlockFormat::Q8_0,
            };
            let format = if divides(format) { format } else { instead };
            divides(format).then(|| TensorType::of_blocks(format))
        };
        match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::Bf16 => TensorType::Bf16,
            Self::Blocks(format) => fitting(format).unwrap_or(TensorType::F16),
            Self::AsPacked => spec.packed.and_then(fitting).unwrap_or(dense),
        }
    }
}

fn blocks_file_type(format: BlockFormat) -> u32 {
    match format {
        BlockFormat::Q4_0 => 2,
        BlockFormat::Q4_1 => 3,
        BlockFormat::Q8_0 | BlockFormat::Q8K => 7,
        BlockFormat::Q5_0 => 8,
        BlockFormat::Q5_1 => 9,
        BlockFormat::Q2K => 10,
        BlockFormat::Q3K => 12,
        // Those of the files in which all matrices are alike.
        BlockFormat::Q4K => 14,
        BlockFormat::Q5K => 16,
        BlockFormat::Q6K => 18,
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
    /// The blocks that the matrix has in the base, if it does.
    pub packed: Option<BlockFormat>,
    /// Whether it comes in those blocks, with nothing added.
    pub copied: bool,
}

/// A tensor's values, as a checkpoint has them.
#[derive(Clone, Debug)]
pub enum TensorValues {
    /// Row-major.
    Floats(Vec<f32>),
    /// A matrix in blocks, which are copied where the file has the same format.
    Packed(Packed),
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
/// one, in the order of `tensors`, but for experts: one matrix of all experts of
/// a block after the other. It gives their values; no more than one tensor is in
/// memory. If the configuration ties the embeddings,
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
    mut read: impl FnMut(&str) -> Result<TensorValues, Box<dyn Error + Send + Sync>>,
) -> Result<(), GgufError> {
    let shape = shape::Shape::new(config)?;
    let mut metadata = Metadata::default();
    metadata.text("general.architecture", shape.family.architecture);
    metadata.text("general.type", "model");
    if let Some(name) = shape.model_name() {
        metadata.text("general.name", name);
    }
    shape.describe(&mut metadata)?;
    metadata.u32("general.file_type", format.file_type(tensors));
    metadata.u32("general.quantization_version", 2);
    vocabulary::describe(&mut metadata, tokenizer, &shape)?;

    let written: Vec<_> = tensors
        .iter()
        .filter(|spec| !(shape.tied && spec.name == "lm_head.weight"))
        .collect();
    shape.check_complete(written.iter().map(|spec| spec.name.as_str()))?;
    let factors = shape.rope_factors()?;
    let dense = (["dtype", "torch_dtype"].iter()).find_map(|key| config.get(*key)?.as_str());
    let dense = match dense {
        Some("float32") => TensorType::F32,
        Some("float16") => TensorType::F16,
        _ => TensorType::Bf16,
    };
    let mut planned = Vec::new();
    for (name, factors) in &factors {
        planned.push(Planned {
            name: (*name).to_owned(),
            shape: vec![factors.len()],
            kind: TensorType::F32,
        });
    }
    let written = together(written, shape.family);
    for specs in &written {
        planned.push(plan_together(
            specs,
            shape.family,
            shape.heads,
            format,
            dense,
        )?);
    }
    reject_duplicates(&planned)?;

    let before = factors.len();
    container::write(path, &metadata, &planned, |index, output| {
        let Some(index) = index.checked_sub(before) else {
            let (_, factors) = &factors[index];
            return encode::rows(&planned[index], Change::None, factors, output);
        };
        for spec in &written[index] {
            let values = read(&spec.name).map_err(|source| GgufError::Source {
                name: spec.name.clone(),
                source,
            })?;
            let found = match &values {
                TensorValues::Floats(values) => values.len(),
                TensorValues::Packed(packed) => packed.shape().iter().product(),
            };
            let expected: usize = spec.shape.iter().product();
            if found != expected {
                return Err(GgufError::unwritable(
                    format!("`{}`", spec.name),
                    format!("it has {found} values, but its shape {expected}"),
                ));
            }
            let change = change(&spec.name, shape.family, shape.heads);
            let planned = &Planned {
                name: planned[index + before].name.clone(),
                shape: spec.shape.clone(),
                kind: planned[index + before].kind,
            };
            match values {
                TensorValues::Floats(values) => encode::rows(planned, change, &values, output)?,
                TensorValues::Packed(packed) => encode::packed(planned, change, &packed, output)?,
            }
        }
        Ok(())
    })
}

/// The tensors as the file is to have them: the matrices of a block's experts
/// together, in the order of their numbers, and all others alone.
fn together<'a>(specs: Vec<&'a TensorSpec>, family: &Family) -> Vec<Vec<&'a TensorSpec>> {
    let mut all: Vec<Vec<&TensorSpec>> = Vec::new();
    let mut stacks: BTreeMap<String, usize> = BTreeMap::new();
    for spec in specs {
        let stack = to_gguf(family, &spec.name).and_then(|name| in_stack(&name));
        match stack.map(|(stack, _)| stacks.entry(stack).or_insert(all.len())) {
            Some(at) if *at < all.len() => all[*at].push(spec),
            _ => all.push(vec![spec]),
        }
    }
    let number = |spec: &&TensorSpec| {
        let name = to_gguf(family, &spec.name);
        name.and_then(|name| in_stack(&name))
            .map(|(_, number)| number)
    };
    for specs in &mut all {
        specs.sort_by_key(number);
    }
    all
}

/// One tensor of the file, of the matrices of several experts or of one tensor.
fn plan_together(
    specs: &[&TensorSpec],
    family: &Family,
    heads: Heads,
    format: GgufType,
    dense: TensorType,
) -> Result<Planned, GgufError> {
    let Some((first, rest)) = specs.split_first() else {
        return Err(GgufError::unwritable("a tensor", "it is none"));
    };
    let mut planned = plan(first, family, heads, format, dense)?;
    let Some((stack, _)) = in_stack(&planned.name) else {
        return Ok(planned);
    };
    if let Some(other) = rest.iter().find(|spec| spec.shape != first.shape) {
        return Err(GgufError::unwritable(
            format!("`{}`", other.name),
            format!(
                "it is {:?}, and that of another expert {:?}",
                other.shape, first.shape
            ),
        ));
    }
    planned.name = stack;
    planned.shape.insert(0, specs.len());
    Ok(planned)
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
    dense: TensorType,
) -> Result<Planned, GgufError> {
    let refused = |reason: String| GgufError::unwritable(format!("`{}`", spec.name), reason);
    let name = to_gguf(family, &spec.name)
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
    let kind = format.stored(spec, dense, name.ends_with(&format!(".{ROUTER}.weight")));
    if let Some(made @ (BlockFormat::Q2K | BlockFormat::Q3K | BlockFormat::Q8K)) = kind.blocks()
        && !spec.copied
    {
        return Err(refused(format!(
            "it is in {made}, which is read and not made: choose another format, such as q4_k or q8_0"
        )));
    }
    Ok(Planned {
        name,
        shape: spec.shape.clone(),
        kind,
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
