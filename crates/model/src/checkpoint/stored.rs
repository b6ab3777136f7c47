//! A checkpoint into another form, without a model in between.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::Device;
use olora_adapter::params;
use olora_gguf::GgufType;
use olora_packed::Format;

use super::{
    Companions, Dtype, SaveOptions,
    load::Names,
    save::{Weight, write_checkpoint},
    save_gguf::write_gguf,
};
use crate::{ModelConfig, ModelError};

/// A checkpoint whose names and shapes are what its configuration asks for, and
/// whose weights stay in their files until they are written elsewhere, one
/// tensor at a time: from each form that [`load`](crate::load) reads into each
/// that [`save`](crate::save) and [`save_gguf`](crate::save_gguf) write.
///
/// ```no_run
/// use std::path::Path;
///
/// use olora_model::{Companions, Dtype, StoredModel};
///
/// # fn main() -> Result<(), olora_model::ModelError> {
/// let path = Path::new("model.gguf");
/// let model = StoredModel::open(path)?;
/// let tokenizer = Companions::read(path)?;
/// model.save(Dtype::Bf16, Some(&tokenizer), Path::new("model"))?;
/// # Ok(())
/// # }
/// ```
pub struct StoredModel {
    config: ModelConfig,
    names: Names,
    /// In the model's order: name, and shape as PyTorch has it.
    tensors: Vec<(String, Vec<usize>)>,
}

impl StoredModel {
    /// Opens a GGUF file or a checkpoint's directory, and reads headers alone.
    ///
    /// # Errors
    ///
    /// As [`load`](crate::load), but for what is wrong with values: those are
    /// read when they are written.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let config = ModelConfig::from_path(path)?;
        // Nothing is allocated: only the shapes are asked for.
        let model = config.init(&Device::default());
        let names = Names::checked(path, &config, &model)?;
        let tensors = params(&model)
            .into_iter()
            .map(|param| (param.path().to_owned(), param.torch_shape()))
            .collect();
        Ok(Self {
            config,
            names,
            tensors,
        })
    }

    /// What its configuration says.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How many matrices of which packed format would not keep it: in a GGUF file
    /// of the format `to`, or, without one, in a directory.
    pub fn unpacked(&self, to: Option<GgufType>) -> BTreeMap<String, usize> {
        let mut formats = BTreeMap::new();
        for (name, shape) in &self.tensors {
            let format = self.names.source.format(self.names.stored(name));
            let Some(format) = format.filter(|_| shape.len() == 2) else {
                continue;
            };
            let kept = match to {
                Some(GgufType::AsPacked) => matches!(format, Format::Blocks(_)),
                Some(GgufType::Blocks(blocks)) => format == blocks.into(),
                _ => false,
            };
            if !kept {
                *formats.entry(format.to_string()).or_default() += 1;
            }
        }
        formats
    }

    /// Writes it as a directory, see [`save`](crate::save). What is packed is
    /// unpacked.
    ///
    /// # Errors
    ///
    /// As [`save`](crate::save); [`ModelError::DoesNotFit`] for a weight that
    /// would become infinite in the format.
    pub fn save(
        &self,
        options: impl Into<SaveOptions>,
        companions: Option<&Companions>,
        directory: &Path,
    ) -> Result<(), ModelError> {
        let options = options.into();
        let weights = || Ok(self.weights(options.dtype));
        write_checkpoint(weights, &self.config, options, companions, directory)
    }

    /// Writes it as a GGUF file, see [`save_gguf`](crate::save_gguf). A matrix in
    /// blocks that the file is to have is copied.
    ///
    /// # Errors
    ///
    /// As [`save_gguf`](crate::save_gguf).
    pub fn save_gguf(
        &self,
        format: GgufType,
        companions: &Path,
        path: &Path,
    ) -> Result<(), ModelError> {
        let weights = || Ok(self.weights(Dtype::F32));
        write_gguf(weights, &self.config, format, (companions, None), path)
    }

    fn weights(&self, dtype: Dtype) -> Vec<Weight<'_>> {
        let source = &self.names.source;
        let tensors = self.tensors.iter();
        let weights = tensors.map(|(name, shape)| {
            let stored = self.names.stored(name);
            Weight::stored(name.clone(), shape.clone(), source, stored, dtype)
        });
        weights.collect()
    }
}
