//! Where a checkpoint's tensors come from, whatever the files are.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use burn::tensor::TensorData;
use olora_adapter::UniqueMap;
use olora_files::{read_bounded, refuse_pointer};
use olora_gguf::{GgufFile, is_gguf};
use olora_pickles::{Format, Pickles};
use serde::Deserialize;

use super::{
    Dtype,
    convert::{Unfit, check, convert, place},
    quantised::Matrices,
    safetensors::Shards,
};
use crate::{
    ModelError,
    config::{Keys, Quantization, read_object},
};

/// One file or several with an index, in the order in which transformers
/// looks for them.
const SAFETENSORS: [&str; 2] = [SINGLE, INDEX];
const PYTORCH: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
/// The name of a checkpoint's only weight file.
pub(super) const SINGLE: &str = "model.safetensors";
/// Which tensor is in which file.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Named tensors, to be read one at a time.
pub(super) enum Source {
    Safetensors(Shards, Matrices),
    Pytorch(Pickles),
    Gguf(GgufFile),
}

impl Source {
    /// Opens a GGUF file or the weights of a directory.
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        Ok(match weights(path)? {
            Weights::Safetensors(files) => {
                let shards = Shards::open(files)?;
                let config = path.join(CONFIG);
                let matrices = Matrices::find(&shards, quantization(&config)?.as_ref(), &config)?;
                Self::Safetensors(shards, matrices)
            }
            Weights::Pytorch(files) => {
                let config = path.join(CONFIG);
                if quantization(&config)?.is_some() {
                    return Err(ModelError::Unsupported {
                        path: config,
                        what: "packed weights in PyTorch's files (`quantization_config`)"
                            .to_owned(),
                        supported: "packed weights in safetensors and in GGUF files".to_owned(),
                    });
                }
                for file in &files {
                    refuse_pointer(file)
                        .map_err(|source| ModelError::io("reading", file, source))?;
                }
                Self::Pytorch(Pickles::open(files)?)
            }
            Weights::Gguf(file) => Self::Gguf(GgufFile::open(&file)?),
        })
    }

    /// The names of weights, and of whatever else there is, but not of what belongs to packed weights.
    pub(super) fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::Safetensors(shards, matrices) => Box::new(matrices.names(shards)),
            Self::Pytorch(pickles) => Box::new(pickles.names()),
            Self::Gguf(file) => Box::new(file.names()),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// Whether a tensor that no model asks for is of no use either: rotary frequencies, which old
    /// checkpoints carry as a buffer and which follow from the configuration, and biases of zeros that
    /// `AutoGPTQ` adds.
    pub(super) fn is_idle(&self, name: &str) -> bool {
        name.ends_with(".rotary_emb.inv_freq")
            || match self {
                Self::Safetensors(shards, matrices) => matrices.is_idle_bias(shards, name),
                Self::Pytorch(_) | Self::Gguf(_) => false,
            }
    }

    /// A tensor's shape as PyTorch has it: `[d_out, d_in]` for a linear layer, packed or not.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        match self {
            Self::Safetensors(shards, matrices) => matrices.shape(shards, name),
            Self::Pytorch(pickles) => pickles.shape(name),
            Self::Gguf(file) => file.shape(name),
        }
    }

    /// A tensor in `dtype` and of `shape`, which is the stored one, or the
    /// other way around if it is to be `transposed`. Packed values are unpacked.
    pub(super) fn read(
        &self,
        name: &str,
        shape: &[usize],
        transposed: bool,
        dtype: Dtype,
    ) -> Result<TensorData, ModelError> {
        if let Some(values) = self.unpacked(name)? {
            let bytes = bytemuck::cast_slice(&values);
            self.refuse_unfit(name, bytes, Dtype::F32, dtype)?;
            return Ok(convert(bytes, Dtype::F32, dtype, shape, transposed));
        }
        match self {
            Self::Safetensors(shards, _) => {
                let (bytes, stored) = shards.read(name)?;
                self.refuse_unfit(name, bytes, stored, dtype)?;
                let data = convert(bytes, stored, dtype, shape, transposed);
                shards.release(name);
                Ok(data)
            }
            Self::Pytorch(pickles) => {
                let (bytes, format) = pickles.read(name)?;
                let stored = of_pickle(format);
                self.refuse_unfit(name, &bytes, stored, dtype)?;
                Ok(convert(&bytes, stored, dtype, shape, transposed))
            }
            Self::Gguf(file) => {
                let values = file.read(name)?;
                let bytes = bytemuck::cast_slice(&values);
                self.refuse_unfit(name, bytes, Dtype::F32, dtype)?;
                Ok(convert(bytes, Dtype::F32, dtype, shape, transposed))
            }
        }
    }

    /// Refuses a tensor with values that are not finite, or would not be in
    /// `dtype`.
    fn refuse_unfit(
        &self,
        name: &str,
        bytes: &[u8],
        stored: Dtype,
        dtype: Dtype,
    ) -> Result<(), ModelError> {
        check(bytes, stored, dtype).map_err(|unfit| {
            let tensor = name.to_owned();
            let path = self.file(name).to_owned();
            match unfit {
                Unfit::NotFinite { value, first, n } => ModelError::NotFiniteWeight {
                    tensor,
                    path: Some(path),
                    value,
                    at: place(first, self.shape(name).unwrap_or_default()),
                    n,
                },
                Unfit::TooLarge { largest } => ModelError::DoesNotFit {
                    tensor,
                    path,
                    largest,
                    dtype: dtype.name(),
                    limit: dtype.limit(),
                },
            }
        })
    }

    /// The file that a tensor is in.
    pub(super) fn file(&self, name: &str) -> &Path {
        match self {
            Self::Safetensors(shards, matrices) => shards.file(&matrices.stored(name)),
            Self::Pytorch(pickles) => pickles.file(name),
            Self::Gguf(file) => file.path(),
        }
    }

    /// Whether two tensors have the same shape and bytes, or values if they are packed.
    pub(super) fn same(&self, a: &str, b: &str) -> Result<bool, ModelError> {
        if self.shape(a) != self.shape(b) {
            return Ok(false);
        }
        if let (Some(a), Some(b)) = (self.unpacked(a)?, self.unpacked(b)?) {
            return Ok(a == b);
        }
        Ok(self.format(a) == self.format(b)
            && match self {
                Self::Safetensors(shards, _) => shards.read(a)? == shards.read(b)?,
                Self::Pytorch(pickles) => pickles.read(a)? == pickles.read(b)?,
                Self::Gguf(file) => file.read(a)? == file.read(b)?,
            })
    }
}

/// A pickle's number format as ours.
pub(super) fn of_pickle(format: Format) -> Dtype {
    match format {
        Format::F32 => Dtype::F32,
        Format::F16 => Dtype::F16,
        Format::Bf16 => Dtype::Bf16,
    }
}

const CONFIG: &str = "config.json";

/// How the configuration says that matrices are packed. There need not be one.
fn quantization(config: &Path) -> Result<Option<Quantization>, ModelError> {
    if !config.exists() {
        return Ok(None);
    }
    let json = read_object(config)?;
    Quantization::of(&Keys {
        json: &json,
        path: config,
    })
}

/// The files that a checkpoint's weights are in.
enum Weights {
    Safetensors(Vec<PathBuf>),
    Pytorch(Vec<PathBuf>),
    Gguf(PathBuf),
}

fn weights(path: &Path) -> Result<Weights, ModelError> {
    if is_gguf(path) {
        return Ok(Weights::Gguf(path.to_owned()));
    }
    if let Some(files) = files(path, SAFETENSORS)? {
        return Ok(Weights::Safetensors(files));
    }
    if let Some(files) = files(path, PYTORCH)? {
        return Ok(Weights::Pytorch(files));
    }
    Err(ModelError::NoWeights {
        directory: path.to_owned(),
        hint: hint(path),
    })
}

/// What is there in the place of weights, and what to do about it.
fn hint(directory: &Path) -> String {
    let entries = directory.read_dir().into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let names: BTreeSet<String> = names.collect();
    let first = |holds: &dyn Fn(&str) -> bool| names.iter().find(|name| holds(name.as_str()));
    let is_shard = |name: &str, prefix: &str, ending: &str| {
        name.starts_with(prefix) && name.contains("-of-") && name.ends_with(ending)
    };
    for (prefix, ending, index) in [
        ("model-", ".safetensors", SAFETENSORS[1]),
        ("pytorch_model-", ".bin", PYTORCH[1]),
    ] {
        if let Some(shard) = first(&|name| is_shard(name, prefix, ending)) {
            return format!(
                ". {shard} is one of several files, and {index}, which says what is in which, is not beside it: \
                 copy or download it too"
            );
        }
    }
    if let Some(gguf) = first(&|name| has_ending(name, "gguf")) {
        return format!(". It has {gguf}: give the path of that file");
    }
    let own = first(&|name| name.starts_with("consolidated."));
    if own.is_some() || names.contains("original") || names.contains("params.json") {
        return ". What is there is the layout of the model's maker (consolidated.*, original/), which is not read: \
                download the files of transformers' layout from the same repository"
            .to_owned();
    }
    ". The path of a GGUF file is that of the file itself".to_owned()
}

fn has_ending(name: &str, ending: &str) -> bool {
    let found = Path::new(name).extension();
    found.is_some_and(|found| found.eq_ignore_ascii_case(ending))
}

/// The files that [`load`](crate::load) takes the weights of a checkpoint from,
/// sorted.
///
/// # Errors
///
/// [`ModelError::NoWeights`]; [`ModelError::Malformed`] for an index that names
/// none.
pub fn weight_files(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    Ok(match weights(path)? {
        Weights::Safetensors(files) | Weights::Pytorch(files) => files,
        Weights::Gguf(file) => match GgufFile::open(&file) {
            Ok(whole) => whole.files().map(Path::to_owned).collect(),
            // What is wrong with it, loading says.
            Err(_) => vec![file],
        },
    })
}

/// The files of one kind that a directory has: the single one, or those that
/// the index names; `None` if it has neither.
fn files(directory: &Path, [single, index]: [&str; 2]) -> Result<Option<Vec<PathBuf>>, ModelError> {
    let (single, index) = (directory.join(single), directory.join(index));
    if single.exists() {
        return Ok(Some(vec![single]));
    }
    if !index.exists() {
        return Ok(None);
    }
    let bytes = read_bounded(&index, MOST_INDEX)
        .map_err(|source| ModelError::io("reading", &index, source))?;
    let malformed = |reason: &str| ModelError::malformed(&index, "index of weights", &reason);
    let Index { weight_map } =
        serde_json::from_slice(&bytes).map_err(|error| malformed(&error.to_string()))?;
    let mut names = BTreeSet::new();
    for (tensor, name) in &weight_map.0 {
        if !is_below(name) {
            return Err(malformed(&format!(
                "`{tensor}` is said to be in {name:?}, which is no file name within the directory"
            )));
        }
        if names.insert(name.as_str()) && !directory.join(name).exists() {
            return Err(malformed(&format!(
                "`{tensor}` is said to be in {name:?}, which is not there. Copy or download it too"
            )));
        }
    }
    if names.is_empty() {
        return Err(malformed("`weight_map` names no tensor"));
    }
    Ok(Some(
        names.into_iter().map(|name| directory.join(name)).collect(),
    ))
}

/// Bytes of the largest index; that of a model with a hundred thousand tensors
/// has ten million.
const MOST_INDEX: u64 = 32 << 20;

/// What an index holds beside its totals.
#[derive(Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

/// Whether a path stays within the directory that it is relative to.
fn is_below(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}
