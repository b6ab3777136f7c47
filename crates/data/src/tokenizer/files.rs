//! Where the parts of a tokenizer are.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use olora_gguf::GgufFile;
use serde_json::{Map, Value};

use crate::DataError;

pub(super) type Config = Map<String, Value>;

/// What decides a checkpoint's tokenizer, and what errors about it are to name.
pub(super) struct Files {
    /// `tokenizer.json`.
    pub(super) tokenizer: Vec<u8>,
    pub(super) tokenizer_path: PathBuf,
    /// `tokenizer_config.json`, empty if there is none.
    pub(super) config: Config,
    pub(super) config_path: PathBuf,
    /// `chat_template.jinja`, which goes before the configuration's template.
    pub(super) template: Option<String>,
    /// What may name special tokens by their ids, first things first.
    pub(super) models: Vec<Config>,
}

impl Files {
    pub(super) fn of_directory(dir: &Path) -> Result<Self, DataError> {
        let tokenizer_path = dir.join("tokenizer.json");
        let tokenizer = fs::read(&tokenizer_path).map_err(|source| DataError::Read {
            path: tokenizer_path.clone(),
            source,
        })?;
        let config_path = dir.join("tokenizer_config.json");
        let path = dir.join("chat_template.jinja");
        let template = match fs::read_to_string(&path) {
            Ok(source) => Some(source),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(DataError::Read { path, source }),
        };
        Ok(Self {
            tokenizer,
            tokenizer_path,
            config: read_config(&config_path)?,
            config_path,
            template,
            models: vec![
                read_config(&dir.join("generation_config.json"))?,
                read_config(&dir.join("config.json"))?,
            ],
        })
    }

    pub(super) fn of_gguf(path: &Path) -> Result<Self, DataError> {
        let wrong = |reason: String| DataError::Checkpoint {
            path: path.to_owned(),
            reason,
        };
        let file = GgufFile::open(path)?;
        let tokenizer = file.tokenizer()?;
        Ok(Self {
            tokenizer: serde_json::to_vec(&tokenizer.json)
                .map_err(|error| wrong(error.to_string()))?,
            tokenizer_path: path.to_owned(),
            config: tokenizer.config,
            config_path: path.to_owned(),
            template: None,
            models: vec![file.config()],
        })
    }
}

/// A JSON object, empty if there is no such file.
fn read_config(path: &Path) -> Result<Config, DataError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| DataError::Checkpoint {
            path: path.to_owned(),
            reason: error.to_string(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Config::new()),
        Err(source) => Err(DataError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}
