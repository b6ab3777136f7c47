//! The configuration of a checkpoint, wherever it is.

use std::path::Path;

use olora_files::read_bounded;
use olora_gguf::{GgufFile, is_gguf};

use super::source::Source;
use crate::{ModelConfig, ModelError, config::MOST_BYTES};

impl ModelConfig {
    /// Reads the configuration of a checkpoint: a directory, as
    /// [`from_dir`](Self::from_dir) does, or a GGUF file. Where the weights are
    /// there, its sizes are held against theirs.
    ///
    /// # Errors
    ///
    /// As [`from_dir`](Self::from_dir), [`ModelError::Gguf`], and
    /// [`ModelError::Mismatch`] for a model that is far larger than the files.
    pub fn from_path(path: &Path) -> Result<Self, ModelError> {
        if is_gguf(path) {
            let file = GgufFile::open(path)?;
            let config = Self::from_json(file.config(), path)?;
            config.refuse_what_the_files_cannot_hold(&Source::Gguf(file), path)?;
            return Ok(config);
        }
        let config = Self::from_dir(path)?;
        // What is wrong with the files themselves, loading says.
        if let Ok(source) = Source::open(path) {
            config.refuse_what_the_files_cannot_hold(&source, path)?;
        }
        Ok(config)
    }

    /// A model is made before its weights are compared with the files, one by
    /// one. So what is beyond all measure is found before it is made; the rest is
    /// left to that comparison, which names each weight.
    fn refuse_what_the_files_cannot_hold(
        &self,
        source: &Source,
        path: &Path,
    ) -> Result<(), ModelError> {
        const BEYOND: u128 = 64;
        let (mut n_tensors, mut n_stored) = (0_usize, 0_u128);
        for name in source.names() {
            let shape = source.shape(name).unwrap_or_default().iter();
            let elements = shape.fold(1, |all: u128, &size| all.saturating_mul(size as u128));
            n_tensors += 1;
            n_stored = n_stored.saturating_add(elements);
        }
        // A block has at least four weights.
        if self.num_hidden_layers <= n_tensors && self.least_params() / BEYOND <= n_stored {
            return Ok(());
        }
        Err(ModelError::Mismatch {
            directory: path.to_owned(),
            problems: vec![format!(
                "it asks for {} layers and {} parameters, but there are {n_tensors} tensors with {n_stored} \
                 elements",
                self.num_hidden_layers,
                self.least_params()
            )],
        })
    }
}

/// The bytes of a checkpoint's `config.json`, or of what it would be for a GGUF
/// file: they change when the model's shape does.
///
/// # Errors
///
/// [`ModelError::Io`] or [`ModelError::Gguf`].
pub fn config_bytes(path: &Path) -> Result<Vec<u8>, ModelError> {
    if is_gguf(path) {
        let config = GgufFile::open(path)?.config();
        return serde_json::to_vec(&config)
            .map_err(|error| ModelError::malformed(path, "model configuration", &error));
    }
    let path = path.join("config.json");
    read_bounded(&path, MOST_BYTES).map_err(|source| ModelError::io("reading", &path, source))
}
