//! A model into a GGUF file that llama.cpp loads.

use std::{fs, io::ErrorKind, path::Path};

use olora_files::clear_leftovers;
use olora_gguf::{
    GgufFile, GgufType, TensorSpec, TensorValues, TokenizerFiles, is_gguf, write_model,
};

use super::{Dtype, save::weights};
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
    clear_leftovers(path);
    if path.exists() {
        return Err(ModelError::Exists(path.to_owned()));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|source| ModelError::io("creating", parent, source))?;
    }
    let files = Files::read(companions)?;
    let weights = weights(model, Dtype::F32)?;
    let specs: Vec<TensorSpec> = weights
        .iter()
        .map(|weight| TensorSpec {
            name: weight.name.clone(),
            shape: weight.shape.clone(),
            packed: weight.blocks,
            copied: weight.packed.is_some(),
        })
        .collect();
    if format == GgufType::AsPacked && specs.iter().all(|spec| spec.packed.is_none()) {
        return Err(ModelError::NotInBlocks);
    }
    let tokenizer = TokenizerFiles {
        tokenizer: &files.tokenizer,
        config: files.config.as_deref(),
        chat_template: files.chat_template.as_deref(),
    };
    // They are asked for in their order.
    let mut rest = weights.iter();
    write_model(path, &config.json, tokenizer, &specs, format, |name| {
        let weight = rest.find(|weight| weight.name == name);
        let weight = weight.ok_or_else(|| ModelError::Missing {
            tensor: name.to_owned(),
        })?;
        Ok(match &weight.packed {
            Some(packed) => TensorValues::Packed(packed.clone()),
            None => TensorValues::Floats(weight.values()?),
        })
    })?;
    Ok(())
}

/// What makes up a tokenizer.
struct Files {
    tokenizer: Vec<u8>,
    config: Option<Vec<u8>>,
    chat_template: Option<String>,
}

impl Files {
    fn read(companions: &Path) -> Result<Self, ModelError> {
        if is_gguf(companions) {
            let tokenizer = GgufFile::open(companions)?.tokenizer()?;
            return Ok(Self {
                tokenizer: tokenizer.json.to_string().into_bytes(),
                config: Some(
                    serde_json::Value::Object(tokenizer.config)
                        .to_string()
                        .into_bytes(),
                ),
                chat_template: None,
            });
        }
        let path = companions.join("tokenizer.json");
        let template = optional(&companions.join("chat_template.jinja"))?;
        Ok(Self {
            tokenizer: fs::read(&path)
                .map_err(|source| ModelError::io("reading", &path, source))?,
            config: optional(&companions.join("tokenizer_config.json"))?,
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
