//! A model out of a checkpoint's tensors.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use burn::{
    module::Param,
    tensor::{DType, Device, Tensor},
};
use olora_adapter::{MapParams, Place, map_params, params};

use super::{Dtype, source::Source};
use crate::{Llama, ModelConfig, ModelError};

const HEAD: &str = "lm_head.weight";
const PREFIX: &str = "model.";

/// Loads a checkpoint: a GGUF file, or a directory with `config.json` beside
/// safetensors, or beside what `torch.save` wrote (`pytorch_model.bin`), each in
/// one file or in several with an index.
///
/// The weights are read and converted one at a time into `dtype`, so the peak
/// is the model and one tensor, which all but safetensors hold twice: as it
/// was read and as it will be. Quantised weights are dequantised. All of them
/// are frozen or trained as the caller decides later; none is tracked by
/// autodiff here.
///
/// # Errors
///
/// [`ModelError::Mismatch`] lists every missing, unused and misshapen tensor;
/// [`ModelError::NotFiniteWeight`] and [`ModelError::DoesNotFit`] name one whose
/// values are no numbers, or not in `dtype`.
pub fn load(
    path: &Path,
    dtype: Dtype,
    device: &Device,
) -> Result<(Llama, ModelConfig), ModelError> {
    let config = ModelConfig::from_path(path)?;
    let model = config.init(device);
    let expected = expected_tensors(&model);
    let names = Names {
        source: Source::open(path)?,
        // A tied head is the embedding, whatever the family calls that.
        embedding: expected
            .keys()
            .find(|name| name.ends_with("embed_tokens.weight"))
            .filter(|_| !expected.contains_key(HEAD))
            .cloned(),
    };
    let problems = names.problems(&expected)?;
    if !problems.is_empty() {
        return Err(ModelError::Mismatch {
            directory: path.to_owned(),
            problems,
        });
    }
    let mut loader = Loader {
        names,
        dtype,
        error: None,
    };
    let model = map_params(model, &mut loader);
    loader.error.map_or(Ok((model, config)), Err)
}

/// Name → shape as PyTorch has it.
type Shapes = BTreeMap<String, Vec<usize>>;

fn expected_tensors(model: &Llama) -> Shapes {
    let all = params(model).into_iter();
    all.map(|param| (param.path().to_owned(), param.torch_shape()))
        .collect()
}

/// The stored tensors by the names that the model has for them.
struct Names {
    source: Source,
    /// The embedding's name if `config.json` ties the head to it.
    embedding: Option<String>,
}

impl Names {
    /// The stored name: the model's own, or without the prefix if only the
    /// decoder below the head was saved, or the head's if it is tied to the
    /// embedding and stored in its place.
    fn stored<'a>(&self, name: &'a str) -> &'a str {
        if self.source.has(name) {
            return name;
        }
        if let Some(bare) = name.strip_prefix(PREFIX)
            && self.source.has(bare)
        {
            return bare;
        }
        if self.embedding.as_deref() == Some(name) && self.source.has(HEAD) {
            return HEAD;
        }
        name
    }

    /// What is missing, misshapen or unused.
    fn problems(&self, expected: &Shapes) -> Result<Vec<String>, ModelError> {
        let mut problems = Vec::new();
        let mut used = BTreeSet::new();
        for (name, shape) in expected {
            let stored = self.stored(name);
            used.insert(stored);
            match self.source.shape(stored) {
                None => problems.push(format!("missing: `{name}`, expected as {shape:?}")),
                Some(found) if found != shape => problems.push(format!(
                    "misshapen: `{stored}` is {found:?}, expected {shape:?}"
                )),
                Some(_) => {}
            }
        }
        for name in self.source.names() {
            if used.contains(name) || self.source.is_idle(name) {
                continue;
            }
            match &self.embedding {
                // A tied checkpoint may repeat the embedding under the head's name.
                Some(embedding) if name == HEAD => {
                    if !self.source.same(HEAD, self.stored(embedding))? {
                        problems.push(format!(
                            "unused: `{HEAD}` differs from the embedding that config.json ties it to"
                        ));
                    }
                }
                _ => problems.push(format!("unused: `{name}`")),
            }
        }
        Ok(problems)
    }
}

/// Puts the stored tensors in the place of the (never initialised) random ones.
struct Loader {
    names: Names,
    dtype: Dtype,
    error: Option<ModelError>,
}

impl MapParams for Loader {
    fn map<const D: usize>(&mut self, place: &Place, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let shape = param.lazy_shape().to_vec();
        let stored = self.names.stored(&place.path);
        let transposed = place.is_transposed(D);
        let data = self
            .names
            .source
            .read(stored, &shape, transposed, self.dtype);
        match data {
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
