//! A model into a GGUF file that llama.cpp loads.

use std::{collections::BTreeMap, fs, io::ErrorKind, path::Path};

use olora_files::clear_leftovers;
use olora_gguf::{
    GgufFile, GgufType, TensorSpec, TensorValues, TokenizerFiles, is_gguf, slow_tokenizer,
    write_model,
};

use super::{
    Dtype,
    save::{Weight, weights},
};
use crate::{Llama, ModelConfig, ModelError};

/// Writes a model with its tokenizer as one GGUF file.
///
/// The tokenizer is that of `companions`, a checkpoint's directory or a GGUF
/// file. Weights are taken from their device one at a time, and the file appears
/// under its name when it is complete.
///
/// # Errors
///
/// [`ModelError::Exists`] if there is something at `path` already,
/// [`ModelError::NotFiniteWeight`] if a weight is NaN or infinite,
/// [`ModelError::Gguf`] if the model, a weight or the tokenizer has no form in
/// such a file.
pub fn save_gguf(
    model: &Llama,
    config: &ModelConfig,
    format: GgufType,
    companions: &Path,
    path: &Path,
) -> Result<(), ModelError> {
    save_gguf_with(model, config, format, companions, None, path)
}

/// [`save_gguf`] with the tokenizer's files of another directory, as far as they
/// are there, in the place of the checkpoint's.
///
/// # Errors
///
/// As [`save_gguf`].
pub fn save_gguf_with(
    model: &Llama,
    config: &ModelConfig,
    format: GgufType,
    companions: &Path,
    beside: Option<&Path>,
    path: &Path,
) -> Result<(), ModelError> {
    let weights = || weights(model, Dtype::F32);
    write_gguf(weights, config, format, (companions, beside), path)
}

/// A file whole or not at all, of the weights that `weights` gives, which are
/// asked for in `f32`; with the tokenizer of a checkpoint, or of a directory
/// beside.
pub(super) fn write_gguf<'a>(
    weights: impl FnOnce() -> Result<Vec<Weight<'a>>, ModelError>,
    config: &ModelConfig,
    format: GgufType,
    (companions, beside): (&Path, Option<&Path>),
    path: &Path,
) -> Result<(), ModelError> {
    clear_leftovers(path);
    if path.exists() {
        return Err(ModelError::Exists(path.to_owned()));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|source| ModelError::io("creating", parent, source))?;
    }
    let files = Files::read(companions, beside)?;
    let Some(tokenizer) = &files.tokenizer else {
        let file = companions.join("tokenizer.json");
        let source = fs::read(&file).err();
        let source = source.unwrap_or_else(|| ErrorKind::NotFound.into());
        return Err(ModelError::io("reading", &file, source));
    };
    let weights = weights()?;
    let specs: Vec<TensorSpec> = weights
        .iter()
        .map(|weight| TensorSpec {
            name: weight.name.clone(),
            shape: weight.shape.clone(),
            packed: weight.blocks,
            copied: weight.copied,
        })
        .collect();
    if format == GgufType::AsPacked && specs.iter().all(|spec| spec.packed.is_none()) {
        return Err(ModelError::NotInBlocks);
    }
    let tokenizer = TokenizerFiles {
        tokenizer,
        config: files.config.as_deref(),
        chat_template: files.chat_template.as_deref(),
    };
    let by_name: BTreeMap<&str, &_> = weights
        .iter()
        .map(|weight| (weight.name.as_str(), weight))
        .collect();
    write_model(path, &config.json, tokenizer, &specs, format, |name| {
        let weight = by_name.get(name).ok_or_else(|| ModelError::Missing {
            tensor: name.to_owned(),
        })?;
        Ok(match weight.packed()? {
            Some(packed) => TensorValues::Packed(packed),
            None => TensorValues::Floats(weight.values()?),
        })
    })?;
    Ok(())
}

/// What makes up a tokenizer.
#[derive(Default)]
struct Files {
    tokenizer: Option<Vec<u8>>,
    config: Option<Vec<u8>>,
    chat_template: Option<String>,
}

impl Files {
    fn read(companions: &Path, beside: Option<&Path>) -> Result<Self, ModelError> {
        let own = match beside {
            None => Self::default(),
            Some(directory) => Self::of_directory(directory)?,
        };
        let base = if own.tokenizer.is_some() && own.config.is_some() && own.chat_template.is_some()
        {
            Self::default()
        } else if is_gguf(companions) {
            let tokenizer = GgufFile::open(companions)?.tokenizer()?;
            Self {
                tokenizer: Some(tokenizer.json.to_string().into_bytes()),
                config: Some(
                    serde_json::Value::Object(tokenizer.config)
                        .to_string()
                        .into_bytes(),
                ),
                chat_template: None,
            }
        } else {
            Self::of_directory(companions)?
        };
        Ok(Self {
            tokenizer: own.tokenizer.or(base.tokenizer),
            config: own.config.or(base.config),
            chat_template: own.chat_template.or(base.chat_template),
        })
    }

    fn of_directory(directory: &Path) -> Result<Self, ModelError> {
        let template = optional(&directory.join("chat_template.jinja"))?;
        let tokenizer = match optional(&directory.join("tokenizer.json"))? {
            Some(bytes) => Some(bytes),
            None => {
                slow_tokenizer(directory)?.map(|slow| slow.tokenizer.json.to_string().into_bytes())
            }
        };
        Ok(Self {
            tokenizer,
            config: optional(&directory.join("tokenizer_config.json"))?,
            chat_template: template.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        })
    }
}

fn optional(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ModelError::io("reading", path, source)),
    }
}
