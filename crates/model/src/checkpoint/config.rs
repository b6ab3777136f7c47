//! The configuration of a checkpoint, wherever it is.

use std::{fs, path::Path};

use olora_gguf::{GgufFile, is_gguf};

use crate::{ModelConfig, ModelError};

impl ModelConfig {
    /// Reads the configuration of a checkpoint: a directory, as
    /// [`from_dir`](Self::from_dir) does, or a GGUF file.
    ///
    /// # Errors
    ///
    /// As [`from_dir`](Self::from_dir), and [`ModelError::Gguf`].
    pub fn from_path(path: &Path) -> Result<Self, ModelError> {
        if is_gguf(path) {
            return Self::from_json(GgufFile::open(path)?.config(), path);
        }
        Self::from_dir(path)
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
    fs::read(&path).map_err(|source| ModelError::io("reading", &path, source))
}
