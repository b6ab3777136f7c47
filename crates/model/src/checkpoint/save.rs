//! A model into a directory that transformers loads.

use std::{borrow::Cow, cell::RefCell, fs, path::Path, rc::Rc};

use burn::tensor::{DType, TensorData};
use olora_adapter::{AdapterError, merged_params};
use olora_files::{StagedDirectory, clear_leftovers, make_readable, write_atomically};
use olora_gguf::{GgufFile, is_gguf};
use olora_packed::{BlockFormat, Format, Packed};
use safetensors::View;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    Dtype,
    convert::{Unfit, check, convert, place},
    source::{INDEX, SINGLE, Source},
};
use crate::{Llama, ModelConfig, ModelError};

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

/// How [`save`] writes weights.
#[derive(Clone, Copy, Debug)]
pub struct SaveOptions {
    /// The number format.
    pub dtype: Dtype,
    /// The most bytes of weights in one file; beyond it, there are several with
    /// an index. A tensor larger than that has a file of its own.
    pub shard_bytes: u64,
    /// Whose files they say they are.
    pub layout: Layout,
}

/// What reads a directory, which its files say of themselves. Names, shapes and
/// orientation are the same for both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// PyTorch's, for transformers and all that reads its files.
    #[default]
    Transformers,
    /// MLX's, for mlx-lm. Each directory has an index, as mlx-lm writes it.
    Mlx,
}

impl Layout {
    /// The value of `format` in the files' metadata.
    const fn format(self) -> &'static str {
        match self {
            Self::Transformers => "pt",
            Self::Mlx => "mlx",
        }
    }
}

impl From<Dtype> for SaveOptions {
    /// With the 5 GB to a file that transformers splits at.
    fn from(dtype: Dtype) -> Self {
        Self {
            dtype,
            shard_bytes: 5_000_000_000,
            layout: Layout::default(),
        }
    }
}

/// Writes a checkpoint directory that transformers loads: the weights as
/// safetensors, `config.json` as it was read but for the dtype and how it was packed, and
/// the tokenizer and generation files that `companions` are.
///
/// Weights are taken from their device one at a time. The directory is written
/// under a temporary name beside `directory` and renamed when it is complete.
///
/// # Errors
///
/// [`ModelError::Exists`] if `directory` is there already and not empty,
/// [`ModelError::Overflow`] if a weight would become infinite in the format,
/// [`ModelError::NotFiniteWeight`] if it is so already.
pub fn save(
    model: &Llama,
    config: &ModelConfig,
    options: impl Into<SaveOptions>,
    companions: Option<&Companions>,
    directory: &Path,
) -> Result<(), ModelError> {
    let options = options.into();
    let weights = || weights(model, options.dtype);
    write_checkpoint(weights, config, options, companions, directory)
}

/// A directory whole or not at all, of the weights that `weights` gives.
pub(super) fn write_checkpoint<'a>(
    weights: impl FnOnce() -> Result<Vec<Weight<'a>>, ModelError>,
    config: &ModelConfig,
    options: SaveOptions,
    companions: Option<&Companions>,
    directory: &Path,
) -> Result<(), ModelError> {
    clear_leftovers(directory);
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(ModelError::Exists(directory.to_owned()));
    }
    let staged = StagedDirectory::new(directory)
        .map_err(|source| ModelError::io("creating", directory, source))?;
    let path = staged.path();
    write_weights(weights()?, options, path)?;
    let mut json = config.json.clone();
    // The key of the transformers version that the file was written by.
    let key = if json.contains_key("torch_dtype") {
        "torch_dtype"
    } else {
        "dtype"
    };
    json.insert(key.to_owned(), json!(options.dtype.name()));
    // What was packed is written dense.
    for key in ["quantization", "quantization_config"] {
        json.shift_remove(key);
    }
    write_json(&json, &path.join("config.json"))?;
    if let Some(companions) = companions {
        companions.write(path)?;
    }
    staged
        .commit()
        .map_err(|source| ModelError::io("writing", directory, source))
}

/// The tokenizer and generation files of a checkpoint, in memory: what a result
/// takes along from its base, which may be gone when the result is written.
#[derive(Clone, Debug, Default)]
pub struct Companions(Vec<(&'static str, Vec<u8>)>);

impl Companions {
    /// Those of a directory, or what the metadata of a GGUF file make of them.
    ///
    /// # Errors
    ///
    /// When there is nothing at the path, or a file that is there cannot be read.
    pub fn read(from: &Path) -> Result<Self, ModelError> {
        if is_gguf(from) {
            let tokenizer = GgufFile::open(from)?.tokenizer()?;
            return Ok(Self(vec![
                ("tokenizer.json", pretty(&tokenizer.json, from)?),
                ("tokenizer_config.json", pretty(&tokenizer.config, from)?),
            ]));
        }
        // A directory without any of them is one thing, a directory that is gone another.
        fs::metadata(from).map_err(|source| ModelError::io("reading", from, source))?;
        let mut files = Vec::new();
        for &name in COMPANIONS {
            let file = from.join(name);
            if file.exists() {
                let bytes =
                    fs::read(&file).map_err(|source| ModelError::io("reading", &file, source))?;
                files.push((name, bytes));
            }
        }
        Ok(Self(files))
    }

    /// The same, with those of a directory in the place of others of their names.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn with(mut self, beside: Option<&Path>) -> Result<Self, ModelError> {
        if let Some(directory) = beside {
            for (name, bytes) in Self::read(directory)?.0 {
                self.0.retain(|(other, _)| *other != name);
                self.0.push((name, bytes));
            }
        }
        Ok(self)
    }

    /// Writes them into a directory.
    ///
    /// # Errors
    ///
    /// [`ModelError::Io`] names the file.
    pub fn write(&self, to: &Path) -> Result<(), ModelError> {
        for (name, bytes) in &self.0 {
            let file = to.join(name);
            write_atomically(&file, |to| to.write_all(bytes))
                .map_err(|source| ModelError::io("writing", &file, source))?;
        }
        Ok(())
    }
}

fn pretty(json: &impl Serialize, path: &Path) -> Result<Vec<u8>, ModelError> {
    serde_json::to_vec_pretty(json)
        .map_err(|error| ModelError::malformed(path, "JSON file", &error))
}

fn write_json(json: &impl Serialize, path: &Path) -> Result<(), ModelError> {
    let text = pretty(json, path)?;
    write_atomically(path, |file| file.write_all(&text))
        .map_err(|source| ModelError::io("writing", path, source))
}

/// Files of at most `shard_bytes`, filled in the model's order, and an index if
/// there is more than one or the layout has one always.
fn write_weights(
    weights: Vec<Weight<'_>>,
    options: SaveOptions,
    staged: &Path,
) -> Result<(), ModelError> {
    let sizes: Vec<u64> = weights.iter().map(Weight::size).collect();
    let ends = shard_ends(&sizes, options.shard_bytes);
    let n_parameters: usize = weights.iter().map(Weight::n_elements).sum();
    let mut weights = weights.into_iter();
    let mut map = Map::new();
    let mut start = 0;
    for (i, &end) in ends.iter().enumerate() {
        let file = match ends.len() {
            1 => SINGLE.to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        let shard: Vec<Weight<'_>> = weights.by_ref().take(end - start).collect();
        for weight in &shard {
            map.insert(weight.name.clone(), json!(file));
        }
        write_file(shard, options.layout, &staged.join(file))?;
        start = end;
    }
    if ends.len() > 1 || options.layout == Layout::Mlx {
        map.sort_keys();
        let mut index = Map::new();
        let about = json!({
            "total_parameters": n_parameters,
            "total_size": sizes.iter().sum::<u64>(),
        });
        index.insert("metadata".to_owned(), about);
        index.insert("weight_map".to_owned(), Value::Object(map));
        write_json(&index, &staged.join(INDEX))?;
    }
    Ok(())
}

/// Behind which tensors a file ends.
fn shard_ends(sizes: &[u64], limit: u64) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut filled = 0_u64;
    for (i, &size) in sizes.iter().enumerate() {
        if i > 0 && filled.saturating_add(size) > limit {
            ends.push(i);
            filled = 0;
        }
        filled = filled.saturating_add(size);
    }
    ends.push(sizes.len());
    ends
}

fn write_file(weights: Vec<Weight<'_>>, layout: Layout, path: &Path) -> Result<(), ModelError> {
    let failure = Rc::new(RefCell::new(None));
    let tensors = weights.into_iter().map(|weight| {
        let failure = Rc::clone(&failure);
        (weight.name.clone(), Writing { weight, failure })
    });
    let metadata = Some([("format".to_owned(), layout.format().to_owned())].into());
    let written = safetensors::serialize_to_file(tensors, metadata, path);
    if let Some(error) = failure.take() {
        return Err(error);
    }
    written.map_err(|error| {
        ModelError::io("writing", path, std::io::Error::other(error.to_string()))
    })?;
    let file = fs::File::open(path).map_err(|source| ModelError::io("opening", path, source))?;
    make_readable(&file).map_err(|source| ModelError::io("writing", path, source))
}

/// A tensor to be read when it is written.
pub(super) struct Weight<'a> {
    pub(super) name: String,
    /// As PyTorch has it.
    pub(super) shape: Vec<usize>,
    /// The blocks that the base has it in, whatever is added.
    pub(super) blocks: Option<BlockFormat>,
    /// Whether it is packed, with nothing added: [`packed`](Self::packed) gives it.
    pub(super) copied: bool,
    dtype: Dtype,
    values: Values<'a>,
}

/// Where a tensor's values are.
enum Values<'a> {
    /// In a model, on its device.
    Held {
        /// Whether the device has it the other way around.
        transposed: bool,
        packed: Option<Packed>,
        read: Box<dyn Fn() -> Result<TensorData, String>>,
    },
    /// In a checkpoint's files, by this name.
    Stored(&'a Source, String),
}

/// The weights of a model, with its adapter merged if it has one: each as it is
/// asked for.
pub(super) fn weights(model: &Llama, dtype: Dtype) -> Result<Vec<Weight<'static>>, ModelError> {
    let all = merged_params(model)
        .map_err(|error| ModelError::device("the adapter", &error))?
        .into_iter();
    let weights = all.map(|merged| {
        let param = merged.param();
        Weight {
            name: param.path().to_owned(),
            shape: param.torch_shape(),
            blocks: param
                .packed()
                .and_then(|base| match base.tensor.packed().format() {
                    Format::Blocks(format) => Some(format),
                    _ => None,
                }),
            copied: merged.packed().is_some(),
            dtype,
            values: Values::Held {
                transposed: param.is_transposed(),
                packed: merged.packed().map(|base| base.tensor.packed().clone()),
                read: Box::new(move || {
                    merged.data().map_err(|error| match error {
                        AdapterError::Device { reason, .. } => reason,
                        other => other.to_string(),
                    })
                }),
            },
        }
    });
    Ok(weights.collect())
}

impl<'a> Weight<'a> {
    /// A tensor of a checkpoint, which has it under the name `stored`.
    pub(super) fn stored(
        name: String,
        shape: Vec<usize>,
        source: &'a Source,
        stored: &str,
        dtype: Dtype,
    ) -> Self {
        let format = source.format(stored).filter(|_| shape.len() == 2);
        Self {
            name,
            shape,
            blocks: match format {
                Some(Format::Blocks(blocks)) => Some(blocks),
                _ => None,
            },
            copied: format.is_some(),
            dtype,
            values: Values::Stored(source, stored.to_owned()),
        }
    }

    fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn size(&self) -> u64 {
        (self.n_elements() * self.dtype.size()) as u64
    }

    /// The matrix as it is packed, if it is and nothing is added to it.
    pub(super) fn packed(&self) -> Result<Option<Packed>, ModelError> {
        match &self.values {
            Values::Held { packed, .. } => Ok(packed.clone()),
            Values::Stored(source, name) if self.copied => source.packed(name),
            Values::Stored(..) => Ok(None),
        }
    }

    /// As it is to be written.
    fn data(&self) -> Result<TensorData, ModelError> {
        let (transposed, read) = match &self.values {
            Values::Held {
                transposed, read, ..
            } => (*transposed, read),
            Values::Stored(source, name) => {
                return source.read(name, &self.shape, false, self.dtype);
            }
        };
        let data = read().map_err(|error| ModelError::device(&self.name, &error))?;
        let (data, held) = match data.dtype() {
            DType::F32 => (data, Dtype::F32),
            DType::BF16 => (data, Dtype::Bf16),
            DType::F16 => (data, Dtype::F16),
            _ => (data.convert_dtype(DType::F32), Dtype::F32),
        };
        let bytes = data.as_bytes();
        check(bytes, held, self.dtype).map_err(|unfit| self.unwritable(unfit, transposed))?;
        Ok(convert(bytes, held, self.dtype, &self.shape, transposed))
    }

    fn unwritable(&self, unfit: Unfit, transposed: bool) -> ModelError {
        let tensor = self.name.clone();
        match unfit {
            Unfit::NotFinite { value, first, n } => {
                let mut held = self.shape.clone();
                if transposed {
                    held.reverse();
                }
                let mut at = place(first, &held);
                if transposed {
                    at.reverse();
                }
                ModelError::NotFiniteWeight {
                    tensor,
                    path: None,
                    value,
                    at,
                    n,
                }
            }
            Unfit::TooLarge { largest } => ModelError::Overflow {
                tensor,
                largest,
                dtype: self.dtype.name(),
                limit: self.dtype.limit(),
            },
        }
    }

    /// For a weight that is to be written as f32.
    pub(super) fn values(&self) -> Result<Vec<f32>, ModelError> {
        self.data()?
            .try_into_vec()
            .map_err(|error| ModelError::device(&self.name, &error))
    }
}

/// A weight as the writer of safetensors wants it, which takes no errors: the
/// first is kept beside it, and what is written from then on is thrown away.
struct Writing<'a> {
    weight: Weight<'a>,
    failure: Rc<RefCell<Option<ModelError>>>,
}

impl View for Writing<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        super::stored(self.weight.dtype)
    }

    fn shape(&self) -> &[usize] {
        &self.weight.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.failure.borrow().is_some() {
            return Cow::Borrowed(&[]);
        }
        match self.weight.data() {
            Ok(data) => Cow::Owned(data.as_bytes().to_vec()),
            Err(error) => {
                self.failure.replace(Some(error));
                Cow::Borrowed(&[])
            }
        }
    }

    fn data_len(&self) -> usize {
        self.weight.n_elements() * self.weight.dtype.size()
    }
}

#[cfg(test)]
mod tests {
    use super::shard_ends;

    #[test]
    fn a_file_ends_before_the_tensor_that_would_overfill_it() {
        assert_eq!(shard_ends(&[4, 4, 4, 4], 8), [2, 4]);
        assert_eq!(shard_ends(&[4, 4, 4], 7), [1, 2, 3]);
        assert_eq!(shard_ends(&[4, 9, 1, 1], 8), [1, 2, 4]);
        assert_eq!(shard_ends(&[4, 4], 8), [2]);
        assert_eq!(shard_ends(&[4, 4], 0), [1, 2]);
    }
}
