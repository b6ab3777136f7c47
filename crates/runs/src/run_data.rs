//! A run's samples, and whether they fit its model.

use std::path::{Path, PathBuf};

use olora_data::{
    Corpus, DataError, DataOptions, DataReport, Format, Mixture, Sample, TokenCache, Tokenizer,
    ValidationSplit, load_files,
};
use olora_files::Fnv1a;
use olora_model::{ModelConfig, config_bytes, sample_weights};

use serde::Serialize;

use crate::{
    Event, Observer, Recipe, RunError,
    recipe::{DataSection, Located, Paths, Weights},
};

/// Training and validation samples.
pub struct Data {
    /// What is trained on.
    pub train: Mixture,
    /// What is held out, if anything is.
    pub validation: Option<Corpus>,
    /// What was read, in order.
    pub reports: Vec<DataRead>,
    /// Whether all of it is text without turns.
    is_text: bool,
}

/// What became of the data under one name.
#[derive(Clone, Debug, Serialize)]
pub struct DataRead {
    /// `training` or `validation`.
    pub role: &'static str,
    /// As the recipe calls it.
    pub name: String,
    /// What became of it.
    pub report: DataReport,
}

/// Files that are read together.
struct Part {
    name: String,
    files: Vec<PathBuf>,
    first: Option<usize>,
}

fn find(name: &str) -> Result<Vec<PathBuf>, RunError> {
    Ok(olora_data::find(name).map_err(DataError::from)?)
}

/// The files behind names. All that are read whole are one part.
fn parts(paths: &Paths, section: &DataSection) -> Result<Vec<Part>, RunError> {
    let mut parts = Vec::new();
    for name in &paths.0 {
        let (files, first) = match section.located.0.get(name) {
            Some(Located { files, first }) => (files.clone(), *first),
            None => match split_first(name) {
                Some((path, first)) => (find(path)?, Some(first)),
                None => (find(name)?, None),
            },
        };
        let name = name.clone();
        parts.push(Part { name, files, first });
    }
    if parts.len() > 1 && parts.iter().all(|part| part.first.is_none()) {
        let files = parts.into_iter().flat_map(|part| part.files).collect();
        let name = paths.to_string();
        return Ok(vec![Part {
            name,
            files,
            first: None,
        }]);
    }
    Ok(parts)
}

/// A name that ends in `#` and a number, where no file is called so.
fn split_first(name: &str) -> Option<(&str, usize)> {
    let (path, first) = name.rsplit_once('#')?;
    if Path::new(name).exists() {
        return None;
    }
    Some((path, first.parse().ok()?))
}

impl Data {
    /// Reads, tokenises and splits the data of a recipe.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or holds nothing to train on.
    pub fn load(
        recipe: &Recipe,
        tokenizer: &Tokenizer,
        observer: &dyn Observer,
    ) -> Result<Self, RunError> {
        let section = &recipe.data;
        let mut formats = Vec::new();
        let mut reports = Vec::new();
        let mut read = |role: &'static str, paths: &Paths, options: &DataOptions| {
            let mut corpora = Vec::new();
            for part in parts(paths, section)? {
                let options = DataOptions {
                    first: part.first,
                    ..options.clone()
                };
                let cache = TokenCache::from_env();
                let samples = load_files(&part.files, tokenizer, &options, cache.as_ref())?;
                observer.on(&Event::Data {
                    role,
                    path: part.name.clone().into(),
                    report: samples.report.to_string(),
                });
                reports.push(DataRead {
                    role,
                    name: part.name,
                    report: samples.report,
                });
                formats.push(samples.format);
                corpora.push(samples.samples);
            }
            Ok::<_, RunError>(Corpus::join(corpora))
        };
        let mut sources = Vec::new();
        for source in section.all_sources() {
            let options = section.options(Some(&source));
            let samples = read("training", &source.path, &options)?;
            sources.push((samples, source.weight));
        }
        let train = Mixture::new(sources)?;
        let (train, validation) = match (&section.validation, section.validation_samples) {
            (Some(paths), _) => {
                let validation = read("validation", paths, &section.options(None))?;
                (train, Some(validation))
            }
            (None, Some(count)) => {
                let n_split: usize = reports.iter().map(|read| read.report.reading.n_split).sum();
                if n_split > 0 {
                    observer.on(&Event::Note(format!(
                        "{n_split} conversations are several samples: of some, a part may be held out and \
                         another trained. Files of their own (data.validation) keep them apart"
                    )));
                }
                let seed = section.split_seed.unwrap_or(recipe.seed);
                let (train, validation) = train.split(ValidationSplit::Count(count), seed)?;
                (train, Some(validation))
            }
            (None, None) => (train, None),
        };
        Ok(Self {
            train,
            validation,
            reports,
            is_text: formats.iter().all(|format| *format == Format::Text),
        })
    }

    pub(crate) fn check_against(
        &self,
        config: &ModelConfig,
        tokenizer: &Tokenizer,
    ) -> Result<(), RunError> {
        check_samples(self.train.corpus(), config, tokenizer)?;
        if let Some(validation) = &self.validation {
            check_samples(validation, config, tokenizer)?;
        }
        let stop = tokenizer.stop_ids_with(&config.eos_token_ids);
        let ends = |sample: Sample| {
            let trained = sample.tokens.iter().zip(&sample.trained);
            trained
                .into_iter()
                .any(|(token, trained)| *trained && stop.contains(token))
        };
        if !self.is_text && !stop.is_empty() && !self.train.iter().any(ends) {
            return Err(RunError::mismatch(
                "no training sample contains its end-of-sequence token, so the model would never \
                 learn to stop: raise data.max_length"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

/// Refuses samples that the model would index out of its embedding, or beyond
/// the positions it was made for.
///
/// # Errors
///
/// [`RunError::Train`], saying which.
pub fn check_samples(
    samples: &Corpus,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<(), RunError> {
    if tokenizer.n_vocab() > config.vocab_size {
        return Err(RunError::mismatch(format!(
            "the tokenizer knows {} tokens, but the model's embedding has only {} rows: \
             this is not the tokenizer of this checkpoint",
            tokenizer.n_vocab(),
            config.vocab_size
        )));
    }
    // The last token is only ever predicted: it takes no position.
    let longest = (0..samples.len()).map(|i| samples.n_inputs(i)).max();
    let longest = longest.unwrap_or(0);
    if longest > config.max_position_embeddings {
        return Err(RunError::mismatch(format!(
            "the longest sequence takes {longest} positions, but the model was made for {}: \
             lower the maximum length",
            config.max_position_embeddings
        )));
    }
    Ok(())
}

/// A number that changes when the samples or the base do: 64-bit FNV-1a over
/// every token and what its loss counts, the configuration, and, unless the weights are drawn afresh, the
/// weight files' sizes and one block in each mebibyte.
///
/// # Errors
///
/// When a file of the base cannot be read.
pub fn fingerprint(data: &Data, recipe: &Recipe) -> Result<u64, RunError> {
    let mut hash = Fnv1a::default();
    let base = recipe.model.path.as_path();
    for sample in data
        .train
        .iter()
        .chain(data.validation.iter().flat_map(Corpus::iter))
    {
        for (token, trained) in sample.tokens.iter().zip(&sample.trained) {
            hash.add(&token.to_le_bytes());
            hash.add(&[u8::from(*trained)]);
        }
        // Nothing where all count alike, so that runs of before there were weights go on.
        for weight in sample.weights.iter().flatten() {
            hash.add(&weight.to_le_bytes());
        }
        hash.add(&[0xff]);
    }
    hash.add(&config_bytes(base)?);
    if recipe.model.weights == Weights::Checkpoint {
        sample_weights(base, &mut |bytes| hash.add(bytes))?;
    }
    Ok(hash.value())
}
