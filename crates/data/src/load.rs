//! A data file to samples, with a report of what became of it.

use std::path::Path;

use rayon::prelude::*;

use crate::{
    DataError, DataReport, Format, PromptStyle, Sample, TokenCache, Tokenizer,
    cache::{self, Encoded},
    format::Example,
    read::{self, Record},
};

/// The most tokens of a sample where nothing else is asked for: in
/// [`DataOptions`], in a recipe without `data.max_length` and on the command line.
pub const DEFAULT_MAX_LENGTH: usize = 512;

/// How to read a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataOptions {
    /// The format, where it is not to be told from the first record's keys.
    pub format: Option<Format>,
    /// The most tokens of a sample. A longer one keeps its first `max_length`;
    /// text is cut into blocks of `max_length`.
    pub max_length: usize,
    /// Whether the loss is taken on prompts too. Turns after the assistant's
    /// last are left out either way.
    pub train_on_prompt: bool,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            format: None,
            max_length: DEFAULT_MAX_LENGTH,
            train_on_prompt: false,
        }
    }
}

/// A data file as samples.
#[derive(Clone, Debug)]
pub struct Samples {
    /// In the order of the file.
    pub samples: Vec<Sample>,
    /// How the records were laid out.
    pub format: Format,
    /// What a user should be told.
    pub report: DataReport,
    /// Whether they were tokenised earlier and found in the cache.
    pub from_cache: bool,
}

/// Reads, renders and tokenises a data file, on all threads of rayon's pool, or
/// finds it tokenised in the user's cache ([`TokenCache::from_env`]).
///
/// # Errors
///
/// When the file cannot be read, or a record not be used: of several, the first
/// in the file is named. When no sample is left.
pub fn load_samples(
    path: &Path,
    tokenizer: &Tokenizer,
    options: &DataOptions,
) -> Result<Samples, DataError> {
    load_samples_cached(path, tokenizer, options, TokenCache::from_env().as_ref())
}

/// [`load_samples`] with a cache of the caller's choice, or none. The samples
/// are the same.
///
/// # Errors
///
/// Those of [`load_samples`]; the cache adds none.
pub fn load_samples_cached(
    path: &Path,
    tokenizer: &Tokenizer,
    options: &DataOptions,
    cache: Option<&TokenCache>,
) -> Result<Samples, DataError> {
    if options.max_length < 2 {
        return Err(DataError::OutOfRange {
            key: "maximum length",
            found: options.max_length.to_string(),
            expected: "at least 2: one token to read, one to predict".to_owned(),
        });
    }
    if let Some(format) = options
        .format
        .filter(|&format| format != Format::Text && !read::is_json(path))
    {
        return Err(DataError::PlainText {
            path: path.to_owned(),
            format,
        });
    }
    let bytes = read::bytes(path)?;
    // A tokenizer without identity makes other samples tomorrow.
    let cache = cache
        .filter(|cache| bytes.len() as u64 >= cache.min_bytes)
        .zip(tokenizer.identity())
        .map(|(cache, tokenizer)| {
            let key = cache::key(&bytes, read::is_json(path), options.format, tokenizer);
            (cache, key)
        });
    if let Some(encoded) = cache.as_ref().and_then(|(cache, key)| cache.get(key)) {
        return within_limit(path, encoded, tokenizer, options, true);
    }
    let encoded = encode(path, bytes, tokenizer, options.format)?;
    if let Some((cache, key)) = cache {
        cache.put(&key, &encoded);
    }
    within_limit(path, encoded, tokenizer, options, false)
}

/// The part that takes time.
fn encode(
    path: &Path,
    bytes: Vec<u8>,
    tokenizer: &Tokenizer,
    format: Option<Format>,
) -> Result<Encoded, DataError> {
    let records = read::records(path, bytes)?;
    let format = match (format, records.first()) {
        (Some(format), _) => format,
        (None, Some(first)) => {
            Format::detect(&first.fields).map_err(|error| error.at(&first.at))?
        }
        (None, None) => return Err(DataError::Empty(path.to_owned())),
    };
    let read = |record: &Record| {
        let example = format.parse(&record.fields, tokenizer.has_chat_template());
        example
            .and_then(|example| tokenise(&example, tokenizer))
            .map_err(|error| error.at(&record.at))
    };
    // In two steps, so that of several bad records the first is named.
    let samples: Vec<_> = records.par_iter().map(read).collect();
    let samples = samples.into_iter().collect::<Result<_, _>>()?;
    Ok(Encoded { format, samples })
}

/// Cuts what is too long and counts what became of it.
fn within_limit(
    path: &Path,
    encoded: Encoded,
    tokenizer: &Tokenizer,
    options: &DataOptions,
    from_cache: bool,
) -> Result<Samples, DataError> {
    let Encoded {
        format,
        samples: encoded,
    } = encoded;
    let n_records = encoded.len();
    let longest = encoded.iter().map(Sample::len).max().unwrap_or(0);
    let n_empty = encoded.iter().filter(|sample| sample.is_empty()).count();
    let (mut n_truncated, mut n_dropped) = (0, 0);
    let samples: Vec<_> = if format == Format::Text {
        let stream: Vec<_> = encoded
            .into_iter()
            .flat_map(|document| document.tokens)
            .collect();
        let blocks = stream
            .chunks(options.max_length)
            .filter(|block| block.len() > 1);
        blocks
            .map(|block| Sample::all_trained(block.to_vec()))
            .collect()
    } else {
        let within_limit = |mut sample: Sample| {
            if options.train_on_prompt {
                sample = Sample::all_trained(sample.tokens);
            }
            if sample.len() > options.max_length {
                n_truncated += 1;
                sample.truncate(options.max_length);
            }
            let trains = sample.n_trained() > 0;
            n_dropped += usize::from(!trains);
            trains.then_some(sample)
        };
        encoded.into_iter().filter_map(within_limit).collect()
    };
    if samples.is_empty() {
        let (path, max_length) = (path.to_owned(), options.max_length);
        return Err(if n_dropped == 0 {
            DataError::Empty(path)
        } else {
            DataError::AllDropped {
                path,
                n_records,
                max_length,
                longest,
            }
        });
    }
    let report = DataReport {
        format,
        prompt_style: match format {
            Format::Text => PromptStyle::Verbatim,
            _ if tokenizer.has_chat_template() => PromptStyle::ChatTemplate,
            Format::Alpaca => PromptStyle::AlpacaPrompt,
            _ => PromptStyle::Verbatim,
        },
        max_length: options.max_length,
        n_records,
        n_samples: samples.len(),
        n_tokens: samples.iter().map(Sample::len).sum(),
        n_trained_tokens: samples.iter().map(Sample::n_trained).sum(),
        n_truncated,
        n_dropped,
        n_empty,
        longest,
    };
    Ok(Samples {
        samples,
        format,
        report,
        from_cache,
    })
}

fn tokenise(example: &Example, tokenizer: &Tokenizer) -> Result<Sample, DataError> {
    match example {
        Example::Text(text) if text.is_empty() => Ok(Sample::all_trained(Vec::new())),
        Example::Text(text) => Ok(Sample::all_trained(tokenizer.document(text)?)),
        Example::Pair { prompt, completion } => tokenizer.pair_sample(prompt, completion),
        Example::Chat(messages) => tokenizer.chat_sample(messages),
    }
}
