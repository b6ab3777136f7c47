//! Data files to samples, with a report of what became of them.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    slice,
    sync::Arc,
    time::SystemTime,
};

use olora_records::{self as records, Form, Record, RecordsError};
use tempfile::tempfile_in;

use crate::{
    Answers, Corpus, DataError, DataOptions, DataReport, Format, MIN_CACHED_BYTES, PromptStyle,
    TokenCache, Tokenizer,
    cache::{self, Key},
    corpus::{
        Cut,
        store::Store,
        writer::{Place, Writer, Written},
    },
    encode::{Encoder, ReadReport},
};

/// Records that are encoded together.
const BATCH: usize = 4096;

/// The bytes of text, roughly, after which fewer are.
const BATCH_BYTES: usize = 8 << 20;

/// Data files as samples.
#[derive(Clone, Debug)]
pub struct Samples {
    /// In the order of the files and of the records in each.
    pub samples: Corpus,
    /// How the records were laid out.
    pub format: Format,
    /// What a user should be told.
    pub report: DataReport,
    /// Whether they were tokenised earlier and found in the cache.
    pub from_cache: bool,
}

/// Reads, renders and tokenises one data file: [`load_files`] of it, with the
/// user's cache ([`TokenCache::from_env`]).
///
/// # Errors
///
/// Those of [`load_files`].
pub fn load_samples(
    path: &Path,
    tokenizer: &Tokenizer,
    options: &DataOptions,
) -> Result<Samples, DataError> {
    load_samples_cached(path, tokenizer, options, TokenCache::from_env().as_ref())
}

/// [`load_files`] of one file.
///
/// # Errors
///
/// Those of [`load_files`].
pub fn load_samples_cached(
    path: &Path,
    tokenizer: &Tokenizer,
    options: &DataOptions,
    cache: Option<&TokenCache>,
) -> Result<Samples, DataError> {
    load_files(slice::from_ref(&path.to_owned()), tokenizer, options, cache)
}

/// Reads, renders and tokenises the data files of one source, on all threads of
/// rayon's pool, or finds them tokenised in the cache. The samples are the same,
/// and the records of all files are laid out alike.
///
/// Records are read one after the other and their tokens written to a file,
/// which is mapped: a source may be larger than memory. The file is the cache's,
/// or one without a name, in the system's directory for temporary files, where
/// there is no cache. The samples of small sources ([`TokenCache::min_bytes`])
/// stay in memory.
///
/// # Errors
///
/// When a file cannot be read, or a record not be used: of several, the first in
/// the files is named. When no sample is left. When there is no room for the
/// tokens.
pub fn load_files(
    paths: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &DataOptions,
    cache: Option<&TokenCache>,
) -> Result<Samples, DataError> {
    check(paths, options)?;
    let source = Source {
        paths,
        tokenizer,
        options,
    };
    let before = source.state()?;
    let n_bytes: u64 = before.iter().map(|(size, _)| size).sum();
    if n_bytes < cache.map_or(MIN_CACHED_BYTES, |cache| cache.min_bytes) {
        let (written, report) = source.encode(Place::Memory, &[0; 32])?;
        let store = Source::store(written, &env::temp_dir())?;
        return source.within_limit(store, &report, false);
    }
    // A tokenizer without identity makes other samples tomorrow.
    let key = match cache.and(tokenizer.identity()) {
        Some(identity) => Some(source.key(identity)?),
        None => None,
    };
    let found = cache.zip(key.as_ref());
    if let Some((store, report)) = found.and_then(|(cache, key)| cache.get(key)) {
        return source.within_limit(store, &report, true);
    }
    // A cache that cannot be written to is done without: of what was tokenised
    // by then, nothing can be had back.
    if let Some(cache) = cache
        && let Ok(file) = cache.begin()
    {
        let place = Place::Cache(file, cache.directory.clone());
        match source.encode(place, key.as_ref().unwrap_or(&[0; 32])) {
            Ok((Written::Cache(file, layout), report)) => {
                // Files that were written to meanwhile are not what the key says.
                let key = key.filter(|_| source.state().is_ok_and(|after| after == before));
                if let Ok(store) = cache.keep(file, layout, key.as_ref()) {
                    return source.within_limit(store, &report, false);
                }
            }
            Ok(_) | Err(Halt::Write(_)) => {}
            Err(halt) => return Err(halt.into()),
        }
    }
    let directory = env::temp_dir();
    // Where no file can be made at all, there is memory.
    let place = match tempfile_in(&directory) {
        Ok(_) => Place::Unnamed(directory.clone()),
        Err(_) => Place::Memory,
    };
    let (written, report) = source.encode(place, &[0; 32])?;
    let store = Source::store(written, &directory)?;
    source.within_limit(store, &report, false)
}

fn check(paths: &[PathBuf], options: &DataOptions) -> Result<(), DataError> {
    let out_of_range = |key, found: usize, expected: &str| DataError::OutOfRange {
        key,
        found: found.to_string(),
        expected: expected.to_owned(),
    };
    if paths.is_empty() {
        return Err(out_of_range("number of data files", 0, "at least 1"));
    }
    if options.max_length < 2 {
        let expected = "at least 2: one token to read, one to predict";
        return Err(out_of_range("maximum length", options.max_length, expected));
    }
    if options.first == Some(0) {
        return Err(out_of_range("number of records", 0, "at least 1"));
    }
    if let Some(format) = options
        .format
        .filter(|format| !options.answers.fits(*format))
    {
        let answers = options.answers;
        return Err(DataError::FormatOfAnswers { format, answers });
    }
    if let Some(format) = options.format.filter(|format| *format != Format::Text) {
        for path in paths {
            if records::kind(path)?.form == Form::Text {
                return Err(DataError::PlainText {
                    path: path.clone(),
                    format,
                });
            }
        }
    }
    Ok(())
}

/// Why reading ended before the files did.
enum Halt {
    /// As many records as were asked for have been read.
    Enough,
    Data(DataError),
    /// The tokens could not be written.
    Write(io::Error),
}

impl From<RecordsError> for Halt {
    fn from(error: RecordsError) -> Self {
        Self::Data(error.into())
    }
}

impl From<DataError> for Halt {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

impl From<Halt> for DataError {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Data(error) => error,
            Halt::Write(source) => no_room(&env::temp_dir(), source),
            Halt::Enough => no_room(&env::temp_dir(), io::Error::other("nothing was written")),
        }
    }
}

fn no_room(directory: &Path, source: io::Error) -> DataError {
    DataError::NoRoom {
        directory: directory.to_owned(),
        source,
    }
}

/// Files that are read together, and how.
struct Source<'a> {
    paths: &'a [PathBuf],
    tokenizer: &'a Tokenizer,
    options: &'a DataOptions,
}

impl Source<'_> {
    /// The size and date of each file.
    fn state(&self) -> Result<Vec<(u64, Option<SystemTime>)>, DataError> {
        let state = |path: &PathBuf| {
            let about = fs::metadata(path).map_err(|source| DataError::Read {
                path: path.clone(),
                source,
            })?;
            Ok((about.len(), about.modified().ok()))
        };
        self.paths.iter().map(state).collect()
    }

    fn key(&self, tokenizer: &Key) -> Result<Key, DataError> {
        cache::key(self.paths, self.options, tokenizer)
    }

    /// The part that takes time.
    fn encode(&self, place: Place, key: &Key) -> Result<(Written, ReadReport), Halt> {
        let mut writer = Writer::new(place, key).map_err(Halt::Write)?;
        let mut encoder = Encoder::new(self.tokenizer, self.options);
        let mut flush = |records: &mut Vec<Record>| -> Result<(), Halt> {
            for (sample, continues) in encoder.encode(std::mem::take(records))? {
                writer.push(&sample, continues).map_err(Halt::Write)?;
            }
            Ok(())
        };
        let (mut records, mut n_bytes, mut n_records) = (Vec::new(), 0, 0);
        for path in self.paths {
            let read = records::for_each(path, &mut |record: Record| {
                n_records += 1;
                n_bytes += record.fields.values().map(text_bytes).sum::<usize>();
                records.push(record);
                // What comes after them is not so much as looked at.
                if self.options.first == Some(n_records) {
                    return Err(Halt::Enough);
                }
                if records.len() >= BATCH || n_bytes >= BATCH_BYTES {
                    n_bytes = 0;
                    flush(&mut records)?;
                }
                Ok(())
            });
            match read {
                Ok(()) => {}
                Err(Halt::Enough) => break,
                Err(halt) => {
                    // An earlier record that is bad goes first.
                    flush(&mut records)?;
                    return Err(halt);
                }
            }
        }
        flush(&mut records)?;
        if n_records == 0 {
            return Err(DataError::Empty(self.name()).into());
        }
        let report = encoder.finish()?;
        let json = serde_json::to_vec(&report).map_err(|error| Halt::Write(error.into()))?;
        let written = writer.finish(&json).map_err(Halt::Write)?;
        Ok((written, report))
    }

    /// What lies in memory or in a file without a name.
    fn store(written: Written, directory: &Path) -> Result<Store, DataError> {
        let store = match written {
            Written::Memory(store) => Ok(store),
            Written::Unnamed(file, layout) => Store::mapped(file, layout),
            Written::Cache(file, layout) => Store::mapped(file.into_file(), layout),
        };
        store.map_err(|source| no_room(directory, source))
    }

    /// Cuts what is too long and counts what became of it.
    fn within_limit(
        &self,
        store: Store,
        read: &ReadReport,
        from_cache: bool,
    ) -> Result<Samples, DataError> {
        let ReadReport {
            format,
            n_records,
            n_empty,
            longest,
            ..
        } = *read;
        if self.options.train_on_prompt && read.n_weighted > 0 {
            return Err(DataError::PromptsWithWeights {
                path: self.name(),
                n_records: read.n_weighted,
            });
        }
        let max_length = self.options.max_length;
        let cut = match format {
            Format::Text => Cut::Blocks { length: max_length },
            Format::Preference if self.options.answers == Answers::Pair => {
                Cut::Pairs { max_length }
            }
            _ => Cut::Each { max_length },
        };
        let (samples, counts) = Corpus::of(Arc::new(store), cut, self.options.train_on_prompt);
        if samples.is_empty() {
            let path = self.name();
            return Err(if counts.n_dropped == 0 {
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
        if self.options.answers == Answers::Labelled {
            let n = samples.len();
            let n_good = (0..n)
                .filter(|&i| samples.preferred(i) == Some(true))
                .count();
            if n_good == 0 || n_good == n {
                return Err(DataError::OneClass {
                    path: self.name(),
                    n,
                    label: n_good > 0,
                });
            }
        }
        self.check_rows(&samples, format)?;
        let report = DataReport {
            format,
            prompt_style: match format {
                Format::Text => PromptStyle::Verbatim,
                _ if self.tokenizer.has_chat_template() => PromptStyle::ChatTemplate,
                Format::Alpaca => PromptStyle::AlpacaPrompt,
                Format::Preference | Format::Labelled
                    if read.keys.iter().any(|key| key.key == "instruction") =>
                {
                    PromptStyle::AlpacaPrompt
                }
                _ => PromptStyle::Verbatim,
            },
            max_length,
            n_records,
            n_samples: samples.len(),
            n_tokens: counts.n_tokens,
            n_trained_tokens: counts.n_trained,
            n_truncated: counts.n_truncated,
            n_dropped: counts.n_dropped,
            n_empty,
            longest,
            reading: read.clone(),
        };
        Ok(Samples {
            samples,
            format,
            report,
            from_cache,
        })
    }

    /// Refuses samples with a token that the model has no row for, naming the
    /// record.
    fn check_rows(&self, samples: &Corpus, format: Format) -> Result<(), DataError> {
        let rows = self.tokenizer.rows().unwrap_or(usize::MAX);
        if self.tokenizer.n_vocab() <= rows {
            return Ok(());
        }
        for sample in samples.iter() {
            if let Err(error) = self.tokenizer.check(&sample.tokens) {
                return Err(self.first_beyond(format)?.unwrap_or(error));
            }
        }
        Ok(())
    }

    /// The first record with such a token, as an error. Where each sample is from is
    /// not kept: the files are read once more, up to there.
    fn first_beyond(&self, format: Format) -> Result<Option<DataError>, DataError> {
        let options = DataOptions {
            format: Some(format),
            ..self.options.clone()
        };
        let mut encoder = Encoder::new(self.tokenizer, &options);
        let (mut found, mut n_records) = (None, 0);
        let mut look = |record: Record| -> Result<(), Halt> {
            let at = record.at.clone();
            for (mut sample, _) in encoder.encode(vec![record])? {
                // Of a record, what is beyond the limit is not used; text goes on in the next block.
                if format != Format::Text {
                    sample.truncate(options.max_length);
                    if !options.train_on_prompt && sample.n_trained() == 0 {
                        continue;
                    }
                }
                if let Err(error) = self.tokenizer.check(&sample.tokens) {
                    found = Some(error.at(&at));
                    return Err(Halt::Enough);
                }
            }
            n_records += 1;
            if options.first == Some(n_records) {
                return Err(Halt::Enough);
            }
            Ok(())
        };
        for path in self.paths {
            match records::for_each(path, &mut look) {
                Ok(()) => {}
                Err(Halt::Enough) => break,
                Err(halt) => return Err(halt.into()),
            }
        }
        Ok(found)
    }

    /// For errors about all files.
    fn name(&self) -> PathBuf {
        match self.paths {
            [] => PathBuf::new(),
            [path] => path.clone(),
            [first, rest @ ..] => {
                let mut name = first.clone().into_os_string();
                let s = if rest.len() == 1 { "" } else { "s" };
                name.push(format!(" with {} other file{s}", rest.len()));
                name.into()
            }
        }
    }
}

/// The text in a value, roughly, in bytes.
fn text_bytes(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.values().map(text_bytes).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}
