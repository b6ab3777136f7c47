//! What a whole model is written as: the options that `merge` and `convert` share.

use std::path::{Path, PathBuf};

use anyhow::Result;
use olora_files::clear_leftovers;
use olora_gguf::{GgufFile, GgufType};
use olora_model::{Dtype, ModelConfig, ModelError, SaveOptions};
use serde_json::json;

use crate::{
    Usage,
    args::MergedFormat,
    inspect::tensor_types,
    modelfile::Modelfile,
    terminal::{emit, say},
};

/// A place for a model, which is free, and how it is to be written there.
pub(crate) struct Written<'a> {
    pub(crate) output: &'a Path,
    /// Whether it is a GGUF file, by its name.
    pub(crate) to_file: bool,
    dtype: Option<MergedFormat>,
    shard_size: Option<u64>,
    modelfile: Option<PathBuf>,
}

impl<'a> Written<'a> {
    /// Refuses a place that is taken, and options that do not go together.
    pub(crate) fn new(
        output: &'a Path,
        dtype: Option<MergedFormat>,
        shard_size: Option<u64>,
        modelfile: bool,
    ) -> Result<Self> {
        refuse_existing(output)?;
        let to_file = is_gguf_name(output);
        if to_file && shard_size.is_some() {
            return Err(Usage::new(
                "--shard-size is for directories: a GGUF file is always one file",
            ));
        }
        if let Some(MergedFormat::Gguf(format)) = dtype
            && !to_file
        {
            let name = format.name();
            let message =
                format!("{name} is a format of GGUF files: let the name of --output end in .gguf");
            return Err(Usage::new(&message));
        }
        if modelfile && !to_file {
            return Err(Usage::new(
                "--modelfile is for a GGUF file, which Ollama runs: let the name of --output end in .gguf",
            ));
        }
        let modelfile = modelfile.then(|| output.with_file_name("Modelfile"));
        if let Some(path) = modelfile.as_deref().filter(|path| path.exists()) {
            return Err(ModelError::Exists(path.to_owned()).into());
        }
        Ok(Self {
            output,
            to_file,
            dtype,
            shard_size,
            modelfile,
        })
    }

    /// Whether matrices are written in few bits.
    pub(crate) fn is_packed(&self) -> bool {
        matches!(self.dtype, Some(MergedFormat::Gguf(_)))
    }

    /// Whether what is computed in float32 is rounded.
    pub(crate) fn rounds(&self, config: &ModelConfig) -> bool {
        self.is_packed() || self.weight_type(config) != Dtype::F32
    }

    /// Whether each matrix keeps the blocks that it has.
    pub(crate) fn keeps_blocks(&self) -> bool {
        matches!(self.dtype, Some(MergedFormat::Gguf(GgufType::AsPacked)))
    }

    /// The number format asked for, else the model's own.
    fn weight_type(&self, config: &ModelConfig) -> Dtype {
        self.dtype
            .and_then(MergedFormat::weights)
            .or(config.stored_dtype())
            .unwrap_or(Dtype::F32)
    }

    /// For a directory.
    pub(crate) fn options(&self, config: &ModelConfig) -> SaveOptions {
        let mut options = SaveOptions::from(self.weight_type(config));
        if let Some(shard_bytes) = self.shard_size {
            options.shard_bytes = shard_bytes;
        }
        options
    }

    /// For a GGUF file.
    pub(crate) fn gguf_type(&self, config: &ModelConfig) -> GgufType {
        match (self.dtype, self.weight_type(config)) {
            (Some(MergedFormat::Gguf(format)), _) => format,
            (_, Dtype::F32) => GgufType::F32,
            (_, Dtype::Bf16) => GgufType::Bf16,
            (_, Dtype::F16) => GgufType::F16,
        }
    }

    /// Says what has been written, in `format`, and writes what goes beside it.
    pub(crate) fn finish(&self, format: &str) -> Result<()> {
        let path = self.output.display().to_string();
        say(&format!("wrote {path} ({format})"));
        let mut event = json!({ "event": "written", "path": path, "format": format });
        if !self.to_file {
            emit(&event);
            return Ok(());
        }
        let types = tensor_types(&GgufFile::open(self.output)?);
        event["tensors"] = json!(types);
        emit(&event);
        let types = types.iter().map(|(kind, n)| format!("{n} {kind}"));
        say(&format!(
            "tensors: {}",
            types.collect::<Vec<_>>().join(", ")
        ));
        match &self.modelfile {
            Some(path) => Modelfile::of(self.output)?.write(path),
            None => Ok(()),
        }
    }
}

/// Whether something of that name is to be a GGUF file.
pub(crate) fn is_gguf_name(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Refuses a place where something is; takes away what a killed process left
/// beside it.
pub(crate) fn refuse_existing(output: &Path) -> Result<()> {
    clear_leftovers(output);
    let taken = output.is_file()
        || output
            .read_dir()
            .is_ok_and(|mut entries| entries.next().is_some());
    if taken {
        return Err(ModelError::Exists(output.to_owned()).into());
    }
    Ok(())
}
