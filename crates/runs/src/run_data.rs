//! A run's samples, and whether they fit its model.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use olora_data::{
    Corpus, DataError, DataOptions, DataReport, Example, Format, KeyUse, Mixture, Sample,
    TokenCache, Tokenizer, ValidationSplit, load_files,
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
    /// A sample, or both answers of a pair, as the tokenizer gives it back: nothing
    /// where the tokenizer cannot, which is no reason to refuse a run.
    pub examples: Vec<Example>,
}

/// What became of each key, whatever it is.
fn keys_in_words(role: &str, report: &DataReport) -> String {
    let keys = report.reading.keys.iter().map(|key| {
        let use_ = match key.use_ {
            KeyUse::Used => "used",
            KeyUse::Repeated => "said again elsewhere",
            KeyUse::Harmless => "without a part in what is learnt",
            KeyUse::Ignored => "ignored, as asked",
            KeyUse::Unknown => "unknown",
        };
        format!("`{}` in {} records ({use_})", key.key, key.n_records)
    });
    format!("{role} data, keys: {}", keys.collect::<Vec<_>>().join(", "))
}

/// Files that are read together.
struct Part {
    name: String,
    files: Vec<PathBuf>,
    first: Option<usize>,
    /// Those that a directory or a pattern stands for: nobody has named them.
    gathered: Vec<PathBuf>,
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
        let is_named = split_first(&name).map_or(name.as_str(), |(path, _)| path);
        let is_named = Path::new(is_named).is_file() || section.located.0.contains_key(&name);
        parts.push(Part {
            gathered: if is_named { Vec::new() } else { files.clone() },
            name,
            files,
            first,
        });
    }
    if parts.len() > 1 && parts.iter().all(|part| part.first.is_none()) {
        let (mut files, mut gathered) = (Vec::new(), Vec::new());
        for part in parts {
            files.extend(part.files);
            gathered.extend(part.gathered);
        }
        return Ok(vec![Part {
            name: paths.to_string(),
            files,
            first: None,
            gathered,
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

/// Refuses validation data that a pattern or a directory of the training data
/// holds as well, and says so of a file that is named in both.
fn check_apart(section: &DataSection) -> Result<Option<String>, RunError> {
    let Some(validation) = &section.validation else {
        return Ok(None);
    };
    // The same file may have several names.
    let whole = |path: &PathBuf| fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let mut held_out = BTreeSet::new();
    for part in parts(validation, section)? {
        held_out.extend(part.files.iter().map(whole));
    }
    let mut note = None;
    for source in section.all_sources() {
        for part in parts(&source.path, section)? {
            if let Some(path) = part.gathered.iter().find(|p| held_out.contains(&whole(p))) {
                return Err(RunError::mismatch(format!(
                    "{} is in data.validation, and is among the files of the training data `{}` as well: what is \
                     held out would be trained on. Name the training files, or move one of them elsewhere",
                    path.display(),
                    part.name
                )));
            }
            if let Some(path) = part.files.iter().find(|p| held_out.contains(&whole(p))) {
                note = Some(format!(
                    "{} is named as training data and as validation data: the validation loss says nothing about \
                     what the model has not seen",
                    path.display()
                ));
            }
        }
    }
    Ok(note)
}

/// Says that a file is trained on more often than others, which may be meant.
fn given_twice(section: &DataSection) -> Result<Option<String>, RunError> {
    let mut seen = BTreeSet::new();
    for source in section.all_sources() {
        for part in parts(&source.path, section)? {
            for path in &part.files {
                if !seen.insert(fs::canonicalize(path).unwrap_or_else(|_| path.clone())) {
                    return Ok(Some(format!(
                        "{} is given more than once as training data: its records are trained on as often",
                        path.display()
                    )));
                }
            }
        }
    }
    Ok(None)
}

/// What a recipe's run is evaluated on; `None` if on nothing.
///
/// Samples that were held out of the training data are chosen among all of it,
/// which is not read for this where it is large.
pub(crate) fn validation(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
) -> Result<Option<Corpus>, RunError> {
    /// Bytes of training data.
    const MOST_BYTES: u64 = 64 << 20;
    struct Silent;
    impl Observer for Silent {
        fn on(&self, _: &Event) {}
    }
    let section = &recipe.data;
    if let Some(paths) = &section.validation {
        let mut corpora = Vec::new();
        for part in parts(paths, section)? {
            let options = DataOptions {
                first: part.first,
                ..recipe.data_options(None)
            };
            let cache = TokenCache::from_env();
            corpora.push(load_files(&part.files, tokenizer, &options, cache.as_ref())?.samples);
        }
        return Ok(Some(Corpus::join(corpora)));
    }
    if section.validation_samples.is_none() {
        return Ok(None);
    }
    let mut bytes = 0;
    for source in section.all_sources() {
        for part in parts(&source.path, section)? {
            let sizes = part.files.iter().filter_map(|file| fs::metadata(file).ok());
            bytes += sizes.map(|of| of.len()).sum::<u64>();
        }
    }
    if bytes > MOST_BYTES {
        return Err(RunError::mismatch(
            "it was held out of training data of more than 64 MiB, all of which would be read for it",
        ));
    }
    Ok(Data::load(recipe, tokenizer, &Silent)?.validation)
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
        for note in check_apart(section)?
            .into_iter()
            .chain(given_twice(section)?)
        {
            observer.on(&Event::Note(note));
        }
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
                if !samples.report.reading.keys.is_empty() {
                    let keys = keys_in_words(role, &samples.report);
                    observer.on(&Event::Detail(keys));
                }
                reports.push(DataRead {
                    role,
                    name: part.name,
                    report: samples.report,
                    examples: Example::of(&samples.samples, tokenizer).unwrap_or_default(),
                });
                formats.push(samples.format);
                corpora.push(samples.samples);
            }
            Ok::<_, RunError>(Corpus::join(corpora))
        };
        let mut sources = Vec::new();
        for source in section.all_sources() {
            let options = recipe.data_options(Some(&source));
            let samples = read("training", &source.path, &options)?;
            sources.push((samples, source.weight));
        }
        let train = Mixture::new(sources)?;
        let (train, validation) = match (&section.validation, section.validation_samples) {
            (Some(paths), _) => {
                let validation = read("validation", paths, &recipe.data_options(None))?;
                (train, Some(validation))
            }
            (None, Some(count)) => {
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
        if !self.is_text {
            let stop = tokenizer.stop_ids_with(&config.eos_token_ids);
            check_ends(self.train.iter(), &stop)?;
        }
        Ok(())
    }
}

/// Refuses samples of which none trains a token that ends a text: `stop`, which
/// may be empty if the model has none.
///
/// # Errors
///
/// [`RunError::Mismatch`](RunError), saying what to do.
pub fn check_ends(mut samples: impl Iterator<Item = Sample>, stop: &[u32]) -> Result<(), RunError> {
    let ends = |sample: Sample| {
        let mut trained = sample.tokens.iter().zip(&sample.trained);
        trained.any(|(token, trained)| *trained && stop.contains(token))
    };
    if stop.is_empty() || samples.any(ends) {
        return Ok(());
    }
    Err(RunError::mismatch(
        "no training sample contains its end-of-sequence token, so the model would never learn to \
         stop: raise data.max_length"
            .to_owned(),
    ))
}

/// Refuses samples that the model would index out of its embedding, or beyond
/// the positions it was made for.
///
/// # Errors
///
/// [`RunError::Train`] names the token, or says the length.
pub fn check_samples(
    samples: &Corpus,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<(), RunError> {
    if tokenizer.n_vocab() > config.vocab_size {
        for sample in samples.iter() {
            tokenizer.check_rows(&sample.tokens, config.vocab_size)?;
        }
    }
    // The last token is only ever predicted: it takes no position.
    let longest = (0..samples.len()).map(|i| samples.n_inputs(i)).max();
    let longest = longest.unwrap_or(0);
    let limit = config.longest_sequence();
    if longest > limit {
        return Err(RunError::mismatch(format!(
            "the longest sequence takes {longest} positions, but the model was made for {limit}: \
             lower the maximum length"
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
        if let Some(good) = sample.preferred {
            hash.add(&[0xf0 | u8::from(good)]);
        }
        hash.add(&[0xff]);
    }
    hash.add(&config_bytes(base)?);
    if recipe.model.weights == Weights::Checkpoint {
        sample_weights(base, &mut |bytes| hash.add(bytes))?;
    }
    Ok(hash.value())
}
