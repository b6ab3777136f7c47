//! `olora serve`: a base and its adapters over HTTP.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use burn::tensor::Device;
use olora_adapter::PeftAdapter;
use olora_devices::{KernelOptions, Opened};
use olora_model::{ModelConfig, Packing};
use olora_runs::{TrainedRun, choose_dtype};
use olora_serve::{Limits, Log, Model, Service, Shelf};
use olora_web::{Server, Settings};

use crate::{
    Usage,
    args::serve::ServeArgs,
    board::told,
    commands::read_adapter,
    devices,
    models::{
        Purpose, announce, attached, base_of, fitted, load_base, packing_of, tokenizer,
        tokenizer_beside,
    },
    parallel,
    signals::end_server,
    terminal::{answer, say, say_note},
};

pub(crate) fn serve(args: &ServeArgs, kernels: KernelOptions) -> Result<ExitCode> {
    // An address that cannot be had is told before a model is read.
    let server = Server::bind(Settings {
        host: args.host,
        port: args.port,
        key: Settings::key_from_env().map_err(told)?,
        origins: args.allow_origin.clone(),
        open: &["/health"],
        ..Settings::default()
    })
    .map_err(told)?;
    let named: Vec<(String, PathBuf)> = args
        .adapters
        .iter()
        .map(|given| named(given))
        .collect::<Result<_>>()?;
    let adapters: Vec<(String, PeftAdapter)> = named
        .into_iter()
        .map(|(name, path)| Ok((name, read_adapter(&path)?)))
        .collect::<Result<_>>()?;

    let Opened { device, details } = devices::open(&parallel::device(&args.device)?, kernels)?;
    let first = adapters.first().map(|(_, adapter)| adapter);
    let found = base_of(args.model.as_deref(), first)?;
    for (_, adapter) in adapters.iter().skip(1) {
        announce(adapter);
    }
    let called = found
        .name
        .clone()
        .unwrap_or_else(|| found.path.to_string_lossy().into_owned());
    let name = match &args.name {
        Some(name) => name.clone(),
        None => last_part(Path::new(&called))?,
    };
    let packing = packing_of(args.quantize, first)?;
    let config = ModelConfig::from_path(&found.path)?;
    let stored = config.stored_dtype();
    let dtype = choose_dtype("--dtype", args.dtype, stored, &device, details.accelerator)?;
    let base = base(&found.path, &config, dtype, packing, &device)?;
    let shelf = Arc::new(Directory {
        base: found.path,
        directory: args.adapters_dir.clone(),
    });
    // What cannot be read is told before anybody asks.
    shelf.names().map_err(anyhow::Error::msg)?;
    let limits = Limits {
        max_batch: args.max_batch,
        queue: args.queue,
        max_tokens: args.max_tokens,
        cache_tokens: args.cache_tokens,
        max_body: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        max_time: Duration::from_secs(args.max_seconds as u64),
    };
    let log = args
        .log_prompts
        .then(|| Arc::new(|text: &str| say(text)) as Log);
    let loaded: Vec<(String, Model)> = adapters
        .into_iter()
        .map(|(name, adapter)| {
            let model = adapted(&shelf.base, adapter, &base);
            Ok((
                name.clone(),
                model.with_context(|| format!("the adapter `{name}`"))?,
            ))
        })
        .collect::<Result<_>>()?;
    let mut service = Service::new(&name, base, shelf, limits, log);
    for (name, model) in loaded {
        service.add(&name, model).map_err(anyhow::Error::msg)?;
    }
    say(&format!("models: {}", service.names().join(", ")));
    end_server(&service.stop())?;
    answer(&format!("serving on {}", server.url()));
    service.run(server)?;
    Ok(ExitCode::SUCCESS)
}

fn base(
    path: &Path,
    config: &ModelConfig,
    dtype: olora_model::Dtype,
    packing: Packing,
    device: &Device,
) -> Result<Model> {
    let tokenizer = fitted(tokenizer(path, None)?, config);
    let stop = tokenizer.stop_ids_with(&config.eos_token_ids);
    if let Some(note) = tokenizer.check_stops(&stop)? {
        say_note(&note);
    }
    let (llama, config) = load_base(path, dtype, packing, device, Purpose::Run)?;
    Ok(Model {
        llama,
        tokenizer: Arc::new(tokenizer),
        config,
    })
}

/// The base with an adapter on it, and the adapter's tokenizer if it resized the
/// vocabulary.
fn adapted(path: &Path, adapter: PeftAdapter, base: &Model) -> Result<Model> {
    let beside = tokenizer_beside(&adapter, &base.config)?;
    let config = base.config.clone().adapted(&adapter)?;
    let tokenizer = match beside {
        None if config.vocab_size == base.config.vocab_size => Arc::clone(&base.tokenizer),
        beside => Arc::new(fitted(tokenizer(path, beside.as_deref())?, &config)),
    };
    Ok(Model {
        llama: attached(adapter, base.llama.clone())?,
        tokenizer,
        config,
    })
}

/// `NAME=PATH`, or a path by its last part.
fn named(given: &str) -> Result<(String, PathBuf)> {
    let split = given
        .split_once('=')
        .filter(|(name, _)| !name.contains('/'));
    match split {
        Some((name, path)) if !Path::new(given).exists() => {
            if name.is_empty() || path.is_empty() {
                return Err(Usage::new(&format!(
                    "--adapter {given}: expected a path, or NAME=PATH"
                )));
            }
            Ok((name.to_owned(), PathBuf::from(path)))
        }
        _ => Ok((last_part(Path::new(given))?, PathBuf::from(given))),
    }
}

/// What a path is called: of an adapter in a run's directory, the run's name.
fn last_part(path: &Path) -> Result<String> {
    let whole = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut named = whole.as_path();
    if let (Some(name), Some(parent)) = (named.file_name(), named.parent())
        && name == "adapter"
        && matches!(TrainedRun::at(parent), Ok(Some(_)))
    {
        named = parent;
    }
    match named.file_name().map(|name| name.to_string_lossy()) {
        Some(name) if !name.is_empty() => Ok(name.trim_end_matches(".gguf").to_owned()),
        _ => Err(Usage::new(&format!(
            "{} has no name of its own: give one with --name, or as NAME=PATH for an adapter",
            path.display()
        ))),
    }
}

/// Adapters in the directory that was given.
struct Directory {
    base: PathBuf,
    directory: Option<PathBuf>,
}

impl Shelf for Directory {
    fn names(&self) -> Result<Vec<String>, String> {
        let Some(directory) = &self.directory else {
            return Ok(Vec::new());
        };
        let failed = |error: std::io::Error| {
            format!("reading the adapters in {}: {error}", directory.display())
        };
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let is_adapter = ["adapter_config.json", "recipe.toml"]
                .iter()
                .any(|file| path.join(file).is_file());
            if let Some(name) = path.file_name().and_then(|name| name.to_str())
                && is_adapter
            {
                names.insert(name.to_owned());
            }
        }
        Ok(names.into_iter().collect())
    }

    fn is_there(&self) -> bool {
        self.directory.is_some()
    }

    fn load(&self, name: &str, base: &Model) -> Result<Model, String> {
        // One of the names that are there, and so no path.
        let found = self.names()?.into_iter().find(|there| there == name);
        let (Some(directory), Some(found)) = (&self.directory, found) else {
            return Err("it is not there any more".to_owned());
        };
        let load = || {
            let adapter = read_adapter(&directory.join(found))?;
            announce(&adapter);
            adapted(&self.base, adapter, base)
        };
        load().map_err(|error: anyhow::Error| crate::message(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_called_by_its_name_or_its_path() {
        let called = |given: &str| named(given).map(|(name, _)| name).unwrap_or_default();
        assert_eq!(called("crier=runs/x/adapter"), "crier");
        assert_eq!(called("runs/x"), "x");
        assert_eq!(called("runs/a=b/"), "a=b");
        assert!(named("=runs/x").is_err() && named("x=").is_err() && named("/").is_err());
    }
}
