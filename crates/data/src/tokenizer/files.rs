//! Where the parts of a tokenizer are.

use std::{
    io,
    path::{Path, PathBuf},
};

use olora_files::read_bounded;
use olora_gguf::{GgufFile, slow_tokenizer};
use serde_json::{Map, Value};

use crate::DataError;

pub(super) type Config = Map<String, Value>;

/// Bytes of the largest `tokenizer.json`: those of vocabularies of a quarter of a
/// million tokens have 35 million.
const MOST_TOKENIZER: u64 = 256 << 20;
/// Bytes of the largest configuration, which may list every added token.
const MOST_CONFIG: u64 = 16 << 20;

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
    pub(super) models: Vec<(Config, PathBuf)>,
    /// What was taken for granted, to be said.
    pub(super) note: Option<String>,
}

impl Files {
    pub(super) fn of_directory(dir: &Path) -> Result<Self, DataError> {
        let mut tokenizer_path = dir.join("tokenizer.json");
        let config_path = dir.join("tokenizer_config.json");
        let mut note = None;
        let (tokenizer, config) = match read_bounded(&tokenizer_path, MOST_TOKENIZER) {
            Ok(tokenizer) => (tokenizer, read_config(&config_path)?),
            Err(source) => {
                let slow = match source.kind() {
                    io::ErrorKind::NotFound => slow_tokenizer(dir)?,
                    _ => None,
                };
                let Some(slow) = slow else {
                    return Err(DataError::Read {
                        path: tokenizer_path,
                        source,
                    });
                };
                tokenizer_path = slow.path;
                note = slow.note;
                let json = slow.tokenizer.json.to_string().into_bytes();
                (json, slow.tokenizer.config)
            }
        };
        let path = dir.join("chat_template.jinja");
        let text = |bytes| {
            String::from_utf8(bytes).map_err(|_| {
                let kind = io::ErrorKind::InvalidData;
                io::Error::new(kind, "stream did not contain valid UTF-8")
            })
        };
        let template = match read_bounded(&path, MOST_CONFIG).and_then(text) {
            Ok(source) => Some(source),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(DataError::Read { path, source }),
        };
        let models = ["generation_config.json", "config.json"].map(|name| dir.join(name));
        let models = models
            .into_iter()
            .map(|path| Ok((read_config(&path)?, path)));
        Ok(Self {
            tokenizer,
            tokenizer_path,
            config,
            config_path,
            template,
            note,
            models: models.collect::<Result<_, DataError>>()?,
        })
    }

    /// Those of a directory, as far as they are there, in the place of these.
    pub(super) fn with(mut self, beside: &Path) -> Result<Self, DataError> {
        let own = Self::of_directory(beside)?;
        (self.tokenizer, self.tokenizer_path, self.note) =
            (own.tokenizer, own.tokenizer_path, own.note);
        // A configuration without a template leaves the base's in force.
        let template = self.template.take().or_else(|| {
            let template = self.config.get("chat_template")?;
            template.as_str().map(str::to_owned)
        });
        if !own.config.is_empty() {
            (self.config, self.config_path) = (own.config, own.config_path);
        }
        self.template = own.template;
        if self.template.is_none() && !self.config.contains_key("chat_template") {
            self.template = template;
        }
        Ok(self)
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
            note: None,
            models: vec![(file.config(), path.to_owned())],
        })
    }
}

/// A JSON object, empty if there is no such file.
fn read_config(path: &Path) -> Result<Config, DataError> {
    match read_bounded(path, MOST_CONFIG) {
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

/// Whether a directory has a tokenizer, in whatever files.
pub fn has_tokenizer(directory: &Path) -> bool {
    let mut names = ["tokenizer.json", "tokenizer.model", "vocab.json"].into_iter();
    names.any(|name| directory.join(name).exists())
}
