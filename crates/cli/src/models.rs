//! Which model is meant, and whether an adapter is for it.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use burn::tensor::Device;
use indicatif::ProgressBar;
use olora_adapter::{Kind, Parameter, PeftAdapter, params};
use olora_data::{Tokenizer, find};
use olora_hub::{DatasetName, HubOptions, Progress, Resolved};
use olora_model::{Dtype, Llama, Matrices, ModelConfig, Packing};
use olora_runs::{Located, Recipe};
use serde_json::json;

use crate::{
    mistaken::{doubled, refuse_as_model},
    terminal::{self, draws_bars, emit, say, say_note, say_warning, shown},
};

/// A model as it was named, and where it is.
pub(crate) struct Base {
    pub(crate) path: PathBuf,
    /// Its name on the hub, if that is how it was named.
    pub(crate) name: Option<String>,
}

/// Finds a model by directory, GGUF file or name on the hub, downloading it if
/// need be.
pub(crate) fn locate(spec: &str) -> Result<Base> {
    let mut bars = Bars::default();
    let options = HubOptions::from_env();
    let Resolved {
        path, commit, note, ..
    } = olora_hub::resolve(spec, &options, &mut |progress| bars.on(progress))?;
    bars.finish();
    for note in note.into_iter().chain(doubled(&path)) {
        say_note(&note);
    }
    refuse_as_model(&path)?;
    let name = commit.map(|commit| {
        say(&format!(
            "{spec}: commit {}",
            commit.get(..12).unwrap_or(&commit)
        ));
        spec.to_owned()
    });
    Ok(Base { path, name })
}

/// Finds the data sets that a recipe names on the hub, downloading them if need
/// be.
pub(crate) fn locate_data(recipe: &mut Recipe) -> Result<()> {
    for name in recipe.data.names() {
        if let Some(located) = locate_set(&name)? {
            recipe.data.located.0.insert(name, located);
        }
    }
    Ok(())
}

/// The files of data, and how many of their records are meant if not all: of a
/// file, a directory, a pattern or a data set of the hub.
pub(crate) fn data_files(path: &Path) -> Result<(Vec<PathBuf>, Option<usize>)> {
    let name = path.to_string_lossy();
    if let Some(set) = locate_set(&name)? {
        return Ok((set.files, set.first));
    }
    Ok(match name.rsplit_once('#') {
        Some((of, first)) if !path.exists() && first.parse::<usize>().is_ok() => {
            (find(of)?, first.parse().ok())
        }
        _ => (find(&name)?, None),
    })
}

/// A data set of the hub; `None` for what is on this machine by its name.
fn locate_set(name: &str) -> Result<Option<Located>> {
    let DatasetName::Hub(set) = DatasetName::parse(name)? else {
        return Ok(None);
    };
    let mut bars = Bars::default();
    let options = HubOptions::from_env();
    let found = olora_hub::resolve_dataset(&set, &options, &mut |progress| bars.on(progress))?;
    bars.finish();
    say(&format!(
        "{name}: data set of the hub, commit {}, configuration {}, split {}",
        found.commit.get(..12).unwrap_or(&found.commit),
        found.config,
        found.split,
    ));
    for note in &found.notes {
        say_note(note);
    }
    Ok(Some(Located {
        files: found.files,
        first: found.first,
    }))
}

/// The model named on the command line, or else by the adapter.
pub(crate) fn base_of(model: Option<&Path>, adapter: Option<&PeftAdapter>) -> Result<Base> {
    let base = match model {
        Some(model) => locate(&model.to_string_lossy())?,
        None => {
            let recorded = adapter
                .and_then(|adapter| adapter.base.as_deref())
                .unwrap_or_default();
            if recorded.is_empty() {
                bail!(
                    "the adapter does not say what its base is: give the checkpoint with --model"
                );
            }
            say(&format!("base model: {recorded}"));
            locate(recorded).map_err(|error| {
                error.context(format!(
                    "the adapter's base is `{recorded}`; if you have it elsewhere, give it with --model"
                ))
            })?
        }
    };
    if let Some(adapter) = adapter {
        check(adapter, &base, model.is_some());
    }
    Ok(base)
}

/// Says what its files say about an adapter.
pub(crate) fn announce(adapter: &PeftAdapter) {
    for warning in &adapter.warnings {
        say_warning(warning);
    }
    for note in &adapter.notes {
        say_note(note);
    }
}

/// Says what is odd about an adapter, its base above all. What cannot be is
/// refused where it is attached.
fn check(adapter: &PeftAdapter, base: &Base, given: bool) {
    announce(adapter);
    let shown = || {
        let path = || base.path.display().to_string();
        base.name.clone().unwrap_or_else(path)
    };
    let recorded = adapter.base.as_deref().unwrap_or("unknown");
    if let Some(expected) = &adapter.base_fingerprint {
        let here = olora_model::weights_fingerprint(&base.path).ok();
        if here.is_some_and(|found| found != *expected) {
            say_warning(&format!(
                "the adapter was trained on `{recorded}`, whose files are not those of {}: if \
                 these are not the same weights, the result means nothing",
                shown()
            ));
        }
    } else if given && adapter.base.is_some() && last_name(recorded) != last_name(&shown()) {
        say_warning(&format!(
            "the adapter says that it is for `{recorded}`, and it is put on {}: if these are \
             not the same weights, the result means nothing",
            shown()
        ));
    }
}

/// What the base's matrices are to be held in: what was asked for, else what the
/// adapter was trained on.
pub(crate) fn packing_of(asked: Option<Packing>, adapter: Option<&PeftAdapter>) -> Result<Packing> {
    let recorded = adapter.and_then(|adapter| adapter.base_packing.as_deref());
    match (asked, recorded) {
        (Some(asked), _) => Ok(asked),
        (None, None) => Ok(Packing::default()),
        (None, Some(recorded)) => {
            let packing = recorded.parse().map_err(|_| {
                anyhow!(
                    "the adapter was trained on a base packed as `{recorded}`, which this version does not know: \
                     give --quantize none to use it on the base as it is"
                )
            })?;
            say_note(&format!(
                "the adapter was trained on a base packed as {recorded}, and the base is packed so here \
                 too (--quantize stored leaves it as it is)"
            ));
            Ok(packing)
        }
    }
}

/// What a base is loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To compute with it.
    Run,
    /// To write it, or what comes of it, to a file.
    Write,
}

/// The base, packed as it is asked for. What was to be packed and cannot be is
/// told; if that is all of it, there is an error.
pub(crate) fn load_base(
    path: &Path,
    dtype: Dtype,
    packing: Packing,
    device: &Device,
    purpose: Purpose,
) -> Result<(Llama, ModelConfig)> {
    let (of_tensors, mut matrices) = Matrices::to_run(packing, dtype, device);
    matrices.interleaved &= purpose == Purpose::Run;
    let (llama, config) = olora_model::load_as(path, of_tensors, matrices, device)?;
    if let Packing::As(quantize) = packing {
        let all = params(&llama);
        let is_linear = |param: &&Parameter| {
            let place = param.place();
            place.kind == Some(Kind::Linear)
                && place.name() == "weight"
                && param.layer() != "lm_head"
        };
        let linear = || all.iter().filter(is_linear);
        let n = linear().count();
        let is_packed = |param: &&Parameter| {
            let packed = param.packed();
            packed.is_some_and(|base| !base.tensor.packed().format().is_plain())
        };
        let n_dense = n - linear().filter(is_packed).count();
        if n_dense == n {
            bail!(
                "--quantize {quantize}: none of the {n} linear layers of {} would be packed: no row divides into \
                 blocks of {} values; choose a format with smaller blocks, such as q8_0 or q4_0",
                path.display(),
                quantize.format().block_values()
            );
        }
        if n_dense > 0 {
            say_note(&format!(
                "{n_dense} of {n} linear layers stay dense, as their rows do not divide into blocks of \
                 {quantize}"
            ));
        }
    }
    Ok((llama, config))
}

/// The model with the adapter on it.
pub(crate) fn attached(adapter: PeftAdapter, llama: Llama) -> Result<Llama> {
    let (llama, notes) = llama.adapted(adapter)?;
    for note in notes {
        say_note(&note);
    }
    Ok(llama)
}

/// A checkpoint's tokenizer, or the one in a directory beside.
pub(crate) fn tokenizer(base: &Path, beside: Option<&Path>) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::from_paths(base, beside)?;
    for note in tokenizer.notes() {
        say_note(note);
    }
    Ok(tokenizer)
}

/// The tokenizer for a model of this configuration, whose embedding may have no
/// rows for some of its tokens.
pub(crate) fn fitted(tokenizer: Tokenizer, config: &ModelConfig) -> Tokenizer {
    let tokenizer = tokenizer.with_rows(config.vocab_size);
    if let Some(note) = tokenizer.note_of_rows() {
        say_note(&note);
    }
    tokenizer
}

/// The directory whose tokenizer goes before the base's: an adapter that resized
/// the vocabulary was saved with the tokenizer that has the new tokens.
pub(crate) fn tokenizer_beside(
    adapter: &PeftAdapter,
    config: &ModelConfig,
) -> Result<Option<PathBuf>> {
    let tied = config.tie_word_embeddings;
    if olora_model::adapted_vocabulary(adapter, config.vocab_size, tied)?.is_none() {
        return Ok(None);
    }
    let directory = adapter.directory().map(Path::to_owned);
    let found = directory.filter(|directory| olora_data::has_tokenizer(directory));
    say_note(&match &found {
        Some(directory) => format!(
            "the tokenizer is the one beside the adapter, in {}",
            directory.display()
        ),
        None => "the adapter resized the vocabulary, and no tokenizer is beside it: the base's is used, \
                 which may not know the new tokens"
            .to_owned(),
    });
    Ok(found)
}

/// `owner/Name` and `/models/name/` are called alike.
fn last_name(name: &str) -> String {
    let name = name.trim_end_matches('/');
    name.rsplit('/').next().unwrap_or(name).to_lowercase()
}

/// One bar per file on a terminal, one line per file elsewhere.
pub(crate) struct Bars {
    /// What is being done, for the lines.
    doing: &'static str,
    file: String,
    bar: Option<ProgressBar>,
}

impl Default for Bars {
    fn default() -> Self {
        Self::new("downloading")
    }
}

impl Bars {
    pub(crate) fn new(doing: &'static str) -> Self {
        Self {
            doing,
            file: String::new(),
            bar: None,
        }
    }

    pub(crate) fn on(&mut self, progress: Progress<'_>) {
        if self.file != progress.file {
            self.finish();
            progress.file.clone_into(&mut self.file);
            emit(&json!({ "event": self.doing, "file": self.file, "bytes": progress.total }));
            if draws_bars() {
                let template = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
                let bar = terminal::bar(progress.total.unwrap_or(0), template);
                bar.set_message(shown(&self.file).into_owned());
                self.bar = Some(bar);
            } else {
                let size = progress.total.map(olora_files::size).unwrap_or_default();
                say(&format!("{} {} {size}", self.doing, self.file));
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_position(progress.done);
        }
    }

    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}
