//! Checkpoints as Hugging Face directories: `config.json` beside
//! `model.safetensors`, or beside shards with an index.
//!
//! A parameter's path is its name in the file, so there is no table of names.
//! The one difference is orientation: PyTorch holds a linear weight as
//! `[d_out, d_in]`, Burn as `[d_in, d_out]`.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{DType, Device, Tensor, TensorData},
};
use half::{bf16, f16};
use olora_adapter::{make_readable, write_atomically};
use rayon::prelude::*;
use safetensors::{Dtype, View};
use serde_json::{Map, Value, json};

use crate::{
    Llama, ModelConfig, ModelError,
    naming::{HEAD, StoredNames},
    shards::{SINGLE, Shards},
};

/// Files beside the weights that a merged checkpoint takes along unchanged.
const COMPANIONS: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

/// The number format that weights are held or written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// 32-bit.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl WeightType {
    fn safetensors(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    /// As `config.json` and the command line spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }
}

impl From<WeightType> for DType {
    fn from(dtype: WeightType) -> Self {
        match dtype {
            WeightType::F32 => Self::F32,
            WeightType::Bf16 => Self::BF16,
            WeightType::F16 => Self::F16,
        }
    }
}

/// Loads a checkpoint directory.
///
/// The weights are memory-mapped and converted one at a time into `dtype`, so
/// the peak is the model and one tensor. All of them are frozen or trained as
/// the caller decides later; none is tracked by autodiff here.
///
/// # Errors
///
/// [`ModelError::Mismatch`] lists every missing, unused and misshapen tensor.
pub fn load(
    directory: &Path,
    dtype: WeightType,
    device: &Device,
) -> Result<(Llama, ModelConfig), ModelError> {
    let config = ModelConfig::from_dir(directory)?;
    let model = load_weights(config.init(device), directory, dtype)?;
    Ok((model, config))
}

fn load_weights(model: Llama, directory: &Path, dtype: WeightType) -> Result<Llama, ModelError> {
    let shards = Shards::open(directory)?;
    let tied = model.lm_head.is_none();
    let names = StoredNames {
        embedding: model.embedding_name(),
        tied,
    };
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    let expected = expected_tensors(&model);
    for (name, (shape, _)) in &expected {
        let stored_as = names.of(name, &shards);
        used.insert(stored_as.to_owned());
        match shards.shape(stored_as)? {
            None => problems.push(format!("missing: `{name}`, expected as {shape:?}")),
            Some(found) if found != *shape => {
                problems.push(format!(
                    "misshapen: `{stored_as}` is {found:?}, expected {shape:?}"
                ));
            }
            Some(_) => {}
        }
    }
    for name in shards.names() {
        // Old checkpoints carry the rotary frequencies as a buffer; they follow from the config.
        if !used.contains(name) && !name.ends_with(".rotary_emb.inv_freq") {
            // A tied checkpoint may repeat the embedding under the head's name.
            if tied && name == HEAD {
                if shards.bytes(HEAD)? != shards.bytes(names.of(names.embedding, &shards))? {
                    problems.push(format!(
                        "unused: `{HEAD}` differs from the embedding that config.json ties it to"
                    ));
                }
            } else {
                problems.push(format!("unused: `{name}`"));
            }
        }
    }
    if !problems.is_empty() {
        return Err(ModelError::Mismatch {
            directory: directory.to_owned(),
            problems,
        });
    }

    let mut loader = Loader {
        path: Vec::new(),
        linear: Vec::new(),
        shards,
        names,
        dtype,
        error: None,
    };
    let model = model.map(&mut loader);
    loader.error.map_or(Ok(model), Err)
}

/// Name → shape as the file has it, and whether that is transposed.
fn expected_tensors(model: &Llama) -> BTreeMap<String, (Vec<usize>, bool)> {
    #[derive(Default)]
    struct Expected {
        path: Vec<String>,
        linear: Vec<bool>,
        tensors: BTreeMap<String, (Vec<usize>, bool)>,
    }
    impl ModuleVisitor for Expected {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.push(name.to_owned());
            self.linear.push(container_type == "Struct:Linear");
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
            self.linear.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let transposed = D == 2 && self.linear.last() == Some(&true);
            let mut shape = param.lazy_shape().to_vec();
            if transposed {
                shape.reverse();
            }
            self.tensors
                .insert(self.path.join("."), (shape, transposed));
        }
    }
    let mut expected = Expected::default();
    model.visit(&mut expected);
    expected.tensors
}

/// Puts the stored tensors in the place of the (never initialised) random ones.
struct Loader {
    path: Vec<String>,
    linear: Vec<bool>,
    shards: Shards,
    names: StoredNames,
    dtype: WeightType,
    error: Option<ModelError>,
}

impl Loader {
    fn read(
        &self,
        name: &str,
        shape: &[usize],
        transposed: bool,
    ) -> Result<TensorData, ModelError> {
        let stored_as = self.names.of(name, &self.shards);
        let (view, file) = self.shards.view(stored_as)?;
        let bytes = view.data();
        // Rows as Burn wants them; a transposed weight is stored the other way around.
        let dims = if transposed {
            Some([shape[0], shape[1]])
        } else {
            None
        };
        let data = match (view.dtype(), self.dtype) {
            (Dtype::F32, WeightType::F32) => {
                TensorData::new(convert(bytes, dims, f32::from_le_bytes), shape)
            }
            (Dtype::BF16, WeightType::F32) => TensorData::new(
                convert(bytes, dims, |b| bf16::from_le_bytes(b).to_f32()),
                shape,
            ),
            (Dtype::F16, WeightType::F32) => TensorData::new(
                convert(bytes, dims, |b| f16::from_le_bytes(b).to_f32()),
                shape,
            ),
            (Dtype::F32, WeightType::Bf16) => TensorData::new(
                convert(bytes, dims, |b| bf16::from_f32(f32::from_le_bytes(b))),
                shape,
            ),
            (Dtype::BF16, WeightType::Bf16) => {
                TensorData::new(convert(bytes, dims, bf16::from_le_bytes), shape)
            }
            (Dtype::F16, WeightType::Bf16) => TensorData::new(
                convert(bytes, dims, |b| {
                    bf16::from_f32(f16::from_le_bytes(b).to_f32())
                }),
                shape,
            ),
            (Dtype::F32, WeightType::F16) => TensorData::new(
                convert(bytes, dims, |b| f16::from_f32(f32::from_le_bytes(b))),
                shape,
            ),
            (Dtype::BF16, WeightType::F16) => TensorData::new(
                convert(bytes, dims, |b| {
                    f16::from_f32(bf16::from_le_bytes(b).to_f32())
                }),
                shape,
            ),
            (Dtype::F16, WeightType::F16) => {
                TensorData::new(convert(bytes, dims, f16::from_le_bytes), shape)
            }
            (other, _) => {
                return Err(ModelError::malformed(
                    file,
                    "checkpoint",
                    &format!("`{stored_as}` has dtype {other:?}; expected F32, F16 or BF16"),
                ));
            }
        };
        self.shards.release(stored_as);
        Ok(data)
    }
}

impl ModuleMapper for Loader {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push(name.to_owned());
        self.linear.push(container_type == "Struct:Linear");
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
        self.linear.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let shape = param.lazy_shape().to_vec();
        let transposed = D == 2 && self.linear.last() == Some(&true);
        match self.read(&self.path.join("."), &shape, transposed) {
            Ok(data) => {
                let device = param.lazy_device();
                let tensor = Tensor::<D>::from_data(data, (&device, DType::from(self.dtype)));
                let id = param.id;
                param.transform_for_load(tensor, id)
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}

/// Little-endian bytes to elements; with `dims`, transposing a stored
/// `[dims[1], dims[0]]` matrix into `[dims[0], dims[1]]`.
fn convert<const N: usize, T: Send + Copy + Default>(
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

/// Writes a checkpoint directory that transformers loads: weights as `dtype`,
/// `config.json` as it was read with only the dtype changed, and the tokenizer
/// and generation files of `companions`.
///
/// The directory is written under a temporary name beside `directory` and
/// renamed when it is complete.
///
/// # Errors
///
/// [`ModelError::Exists`] if `directory` is there already and not empty.
pub fn save(
    model: &Llama,
    config: &ModelConfig,
    dtype: WeightType,
    companions: Option<&Path>,
    directory: &Path,
) -> Result<(), ModelError> {
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(ModelError::Exists(directory.to_owned()));
    }
    let parent = directory
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(parent).map_err(|source| ModelError::io("creating", parent, source))?;
    let temporary = tempfile::Builder::new()
        .prefix(".olora-")
        .tempdir_in(parent)
        .map_err(|source| ModelError::io("writing to", parent, source))?;

    let staged = temporary.path().join("checkpoint");
    fs::create_dir(&staged).map_err(|source| ModelError::io("creating", &staged, source))?;
    write_weights(model, dtype, &staged.join(SINGLE))?;
    let mut json = config.json.clone();
    // The key of the transformers version that the file was written by.
    let key = if json.contains_key("torch_dtype") {
        "torch_dtype"
    } else {
        "dtype"
    };
    json.insert(key.to_owned(), json!(dtype.name()));
    write_config(&json, &staged.join("config.json"))?;
    for name in COMPANIONS {
        let Some(from) = companions
            .map(|companions| companions.join(name))
            .filter(|from| from.exists())
        else {
            continue;
        };
        fs::copy(&from, staged.join(name))
            .map_err(|source| ModelError::io("copying", &from, source))?;
    }
    fs::rename(&staged, directory)
        .map_err(|source| ModelError::io("renaming to", directory, source))
}

fn write_config(json: &Map<String, Value>, path: &Path) -> Result<(), ModelError> {
    let text = serde_json::to_string_pretty(json)
        .map_err(|error| ModelError::malformed(path, "JSON configuration", &error))?;
    write_atomically(path, |file| file.write_all(text.as_bytes()))
        .map_err(|source| ModelError::io("writing", path, source))
}

fn write_weights(model: &Llama, dtype: WeightType, path: &Path) -> Result<(), ModelError> {
    #[derive(Default)]
    struct Collector {
        path: Vec<String>,
        linear: Vec<bool>,
        tensors: Vec<(String, Stored)>,
    }
    impl ModuleVisitor for Collector {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.push(name.to_owned());
            self.linear.push(container_type == "Struct:Linear");
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
            self.linear.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.base().without_autodiff();
            let shape = tensor.shape().to_vec();
            let (tensor, shape) = if D == 2 && self.linear.last() == Some(&true) {
                (tensor.transpose(), vec![shape[1], shape[0]])
            } else {
                (tensor, shape)
            };
            let elements: usize = shape.iter().product();
            self.tensors.push((
                self.path.join("."),
                Stored {
                    tensor: tensor.reshape([elements]),
                    shape,
                    dtype: WeightType::F32,
                },
            ));
        }
    }
    let mut collector = Collector::default();
    model.visit(&mut collector);
    let tensors = collector
        .tensors
        .into_iter()
        .map(|(name, stored)| (name, Stored { dtype, ..stored }));
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    let failed = |error: &dyn std::fmt::Display| {
        ModelError::io("writing", path, std::io::Error::other(error.to_string()))
    };
    safetensors::serialize_to_file(tensors, metadata, path).map_err(|error| failed(&error))?;
    let file = fs::File::open(path).map_err(|source| ModelError::io("opening", path, source))?;
    make_readable(&file)
        .and_then(|()| file.sync_all())
        .map_err(|source| ModelError::io("syncing", path, source))
}

/// A tensor that is read from its device only when it is written.
struct Stored {
    tensor: Tensor<1>,
    shape: Vec<usize>,
    dtype: WeightType,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype.safetensors()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let data = self.tensor.clone().into_data_dtype(DType::from(self.dtype));
        Cow::Owned(data.as_bytes().to_vec())
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * DType::from(self.dtype).size()
    }
}
