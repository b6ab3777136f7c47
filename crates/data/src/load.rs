//! A data file to samples, with a report of what became of it.

use std::{fmt, path::Path};

use rayon::prelude::*;
use serde::Serialize;

use crate::{
    DataError, Format, Sample, Tokenizer,
    format::Example,
    read::{self, Record},
};

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
            max_length: 1024,
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
}

/// What a prompt looks like to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptStyle {
    /// As the checkpoint's chat template renders it.
    ChatTemplate,
    /// As [`alpaca_prompt`](crate::alpaca_prompt) writes it.
    AlpacaPrompt,
    /// As it is in the file.
    Verbatim,
}

/// What became of a data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataReport {
    /// How the records were laid out.
    pub format: Format,
    /// What prompts look like.
    pub prompt_style: PromptStyle,
    /// The limit that was asked for.
    pub max_length: usize,
    /// Records in the file.
    pub n_records: usize,
    /// Samples made of them.
    pub n_samples: usize,
    /// Tokens of the samples.
    pub n_tokens: usize,
    /// Those that the loss is taken on.
    pub n_trained_tokens: usize,
    /// Samples that were longer than the limit, dropped ones included.
    pub n_truncated: usize,
    /// Samples of which the limit left nothing that is trained.
    pub n_dropped: usize,
    /// Text records that were empty and left out.
    pub n_empty: usize,
    /// Tokens of the longest sample (of text, the longest document), before truncation.
    pub longest: usize,
}

/// Reads, renders and tokenises a data file.
pub fn load_samples(
    path: &Path,
    tokenizer: &Tokenizer,
    options: &DataOptions,
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
    let records = read::records(path)?;
    let format = match (options.format, records.first()) {
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
    let encoded: Vec<_> = records.par_iter().map(read).collect();
    let encoded = encoded.into_iter().collect::<Result<Vec<_>, _>>()?;

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
        let (path, n_records, max_length) = (path.to_owned(), records.len(), options.max_length);
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
        n_records: records.len(),
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

impl fmt::Display for PromptStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChatTemplate => "chat template of the checkpoint",
            Self::AlpacaPrompt => "Alpaca prompt",
            Self::Verbatim => "no template",
        })
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.n_trained_tokens as f64 / self.n_tokens as f64;
        write!(
            f,
            "{} of {}, {}: {} of {} tokens, {} ({share:.0} %) of them trained, the longest {}",
            counted(self.n_records, "record"),
            self.format,
            self.prompt_style,
            counted(self.n_samples, "sample"),
            self.n_tokens,
            self.n_trained_tokens,
            self.longest,
        )?;
        if self.n_truncated > 0 {
            write!(
                f,
                "\n{} cut to the first {} tokens",
                counted(self.n_truncated, "sample"),
                self.max_length
            )?;
        }
        if self.n_dropped > 0 {
            write!(
                f,
                ", {} of them left out because nothing trained was within",
                self.n_dropped
            )?;
        }
        if self.n_empty > 0 {
            write!(f, "\n{} left out", counted(self.n_empty, "empty record"))?;
        }
        Ok(())
    }
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
