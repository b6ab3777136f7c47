//! Records to samples.

use std::path::PathBuf;

use olora_records::{Location, Record};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    Conversation, DataError, DataOptions, Format, KeyUse, Message, Sample, Tokenizer,
    error::{OmittedPart, UnusedKey},
    format::{Example, Parsed, ignored, renamed},
    omitted::Omission,
};

/// Reasons that are kept of the records that are left out.
const REASONS: usize = 10;

/// Turns the records of a source into samples, batch by batch.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    options: &'a DataOptions,
    /// What was asked for, or what the first record's keys say.
    format: Option<Format>,
    report: ReadReport,
    /// The file of the first record: places in others are told with their name.
    path: Option<PathBuf>,
    /// Whether a key was found that nothing uses: nothing is encoded any more,
    /// only counted.
    is_refused: bool,
}

/// What became of a source's records, before any limit. It is kept with the
/// samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadReport {
    /// How the records were laid out.
    pub format: Format,
    /// Records.
    pub n_records: usize,
    /// Text records that were empty and left out.
    pub n_empty: usize,
    /// Tokens of the longest sample.
    pub longest: usize,
    /// Every key, and what became of it.
    pub keys: Vec<KeyReport>,
    /// Records left out because nothing of them would be trained.
    pub n_skipped: usize,
    /// The first of them, with where and why.
    pub skipped: Vec<String>,
    /// Conversations that became several samples, because the template renders a
    /// turn otherwise once others follow it.
    pub n_split: usize,
    /// The samples that they became.
    pub n_split_samples: usize,
    /// Tokens beyond those of each one's longest sample.
    pub n_split_tokens: usize,
    /// Prompts that were rendered already and taken as they are.
    pub n_rendered: usize,
    /// Turns that do not begin as the generation prompt says.
    pub n_other_beginnings: usize,
    /// Records with a weight or a flag that says what to train.
    pub n_weighted: usize,
    /// What the template left out.
    pub omitted: Vec<OmissionReport>,
}

impl ReadReport {
    /// Of nothing yet.
    pub(crate) fn new(format: Format) -> Self {
        Self {
            format,
            n_records: 0,
            n_empty: 0,
            longest: 0,
            keys: Vec::new(),
            n_skipped: 0,
            skipped: Vec::new(),
            n_split: 0,
            n_split_samples: 0,
            n_split_tokens: 0,
            n_rendered: 0,
            n_other_beginnings: 0,
            n_weighted: 0,
            omitted: Vec::new(),
        }
    }
}

/// What became of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyReport {
    /// Its name; of a turn with that of its list, `messages[].id`.
    pub key: String,
    /// What became of it.
    #[serde(rename = "use")]
    pub use_: KeyUse,
    /// In how many records it says something.
    pub n_records: usize,
    /// The first of them.
    pub first: String,
}

/// What the template left out of some records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OmissionReport {
    /// Such as `the system turn`.
    pub what: String,
    /// Of how many records.
    pub n_records: usize,
    /// The first of them.
    pub first: String,
    /// How it begins there.
    pub text: String,
}

/// What one record became.
#[derive(Default)]
struct Encoded {
    samples: Vec<Sample>,
    keys: Vec<(String, KeyUse)>,
    skipped: Option<String>,
    is_rendered: bool,
    is_weighted: bool,
    n_other_beginnings: usize,
    omitted: Vec<Omission>,
}

impl<'a> Encoder<'a> {
    pub fn new(tokenizer: &'a Tokenizer, options: &'a DataOptions) -> Self {
        Self {
            tokenizer,
            options,
            format: options.format,
            // Of no records, which are refused elsewhere, any will do.
            report: ReadReport::new(Format::Text),
            path: None,
            is_refused: false,
        }
    }

    /// On all threads of rayon's pool, in order. A record may become no sample,
    /// one or several.
    ///
    /// # Errors
    ///
    /// When a record cannot be used: of several, the first is named.
    pub fn encode(&mut self, records: Vec<Record>) -> Result<Vec<Sample>, DataError> {
        let prepare = |Record { at, mut fields }: Record| {
            let ignored = ignored(&mut fields, &self.options.ignore);
            let fields = renamed(fields, &self.options.columns);
            let fields = fields.map_err(|error| error.at(&at))?;
            Ok::<_, DataError>((Record { at, fields }, ignored))
        };
        let records: Vec<_> = records.into_par_iter().map(prepare).collect();
        let records = records.into_iter().collect::<Result<Vec<_>, _>>()?;
        let Some((first, _)) = records.first() else {
            return Ok(Vec::new());
        };
        let format = match self.format {
            Some(format) => format,
            None => Format::detect(&first.fields).map_err(|error| error.at(&first.at))?,
        };
        self.format = Some(format);
        self.report.format = format;
        self.path.get_or_insert_with(|| first.at.path.clone());
        let only_keys = self.is_refused;
        let encode = |(record, ignored): &(Record, Vec<String>)| {
            let mut encoded = self
                .one(format, record, only_keys)
                .map_err(|error| error.at(&record.at))?;
            let ignored = ignored.iter().map(|key| (key.clone(), KeyUse::Ignored));
            encoded.keys.extend(ignored);
            Ok::<_, DataError>(encoded)
        };
        // In two steps, so that of several bad records the first is named.
        let encoded: Vec<_> = records.par_iter().map(encode).collect();
        let mut samples = Vec::with_capacity(records.len());
        for ((record, _), encoded) in records.iter().zip(encoded) {
            samples.extend(self.count(&record.at, encoded?));
        }
        Ok(samples)
    }

    fn one(&self, format: Format, record: &Record, only_keys: bool) -> Result<Encoded, DataError> {
        let mut encoded = Encoded::default();
        let chat = self.tokenizer.has_chat_template();
        let Parsed {
            example,
            keys,
            rendered,
            nothing,
        } = format.parse(&record.fields, chat, self.options)?;
        (encoded.keys, encoded.is_rendered) = (keys, rendered.is_some());
        let is_unknown = |(_, use_): &(String, KeyUse)| *use_ == KeyUse::Unknown;
        if only_keys || encoded.keys.iter().any(is_unknown) {
            return Ok(encoded);
        }
        if nothing.is_some() {
            encoded.skipped = nothing;
            return Ok(encoded);
        }
        // Another model's markup would be letters here.
        if let Some(markup) = rendered.filter(|markup| markup.starts_with('<'))
            && !self.tokenizer.has_token(markup)
        {
            return Err(DataError::OthersMarkup(markup));
        }
        match self.tokenise(example, &mut encoded) {
            Err(DataError::NothingToTrain(reason)) => encoded.skipped = Some(reason),
            result => result?,
        }
        Ok(encoded)
    }

    fn tokenise(&self, example: Example, encoded: &mut Encoded) -> Result<(), DataError> {
        let tokenizer = self.tokenizer;
        match example {
            Example::Text(text) if text.is_empty() => {}
            Example::Text(text) => {
                let tokens = tokenizer.document(&text)?;
                encoded.samples.push(Sample::all_trained(tokens));
            }
            Example::Pair {
                prompt,
                completion,
                weight,
            } => {
                encoded.is_weighted = weight != 1.0;
                if weight == 0.0 {
                    return Err(all_weights_are_zero());
                }
                let is_rendered = encoded.is_rendered;
                let sample = tokenizer.pair_sample(&prompt, &completion, weight, is_rendered)?;
                encoded.samples.push(sample);
            }
            Example::Chat(conversation) => {
                encoded.is_weighted = is_weighted(&conversation);
                why_nothing(&conversation)?;
                let samples = tokenizer.chat_samples(&conversation)?;
                encoded.n_other_beginnings = samples.n_other_beginnings;
                encoded.omitted = samples.omitted;
                encoded.samples = samples.samples;
            }
        }
        Ok(())
    }

    /// Adds up what became of a record, and hands its samples on.
    fn count(&mut self, at: &Location, encoded: Encoded) -> Vec<Sample> {
        let place = if self.path.as_ref() == Some(&at.path) {
            within_file(at)
        } else {
            at.to_string()
        };
        let report = &mut self.report;
        report.n_records += 1;
        for (key, use_) in encoded.keys {
            self.is_refused |= use_ == KeyUse::Unknown;
            let known = report
                .keys
                .iter_mut()
                .find(|known| known.key == key && known.use_ == use_);
            match known {
                Some(known) => known.n_records += 1,
                None => report.keys.push(KeyReport {
                    key,
                    use_,
                    n_records: 1,
                    first: place.clone(),
                }),
            }
        }
        if let Some(reason) = encoded.skipped {
            report.n_skipped += 1;
            if report.skipped.len() < REASONS {
                report.skipped.push(format!("{place}: {reason}"));
            }
            return Vec::new();
        }
        report.n_rendered += usize::from(encoded.is_rendered);
        report.n_weighted += usize::from(encoded.is_weighted);
        report.n_other_beginnings += encoded.n_other_beginnings;
        let mut seen: Vec<String> = Vec::new();
        for omission in encoded.omitted {
            if seen.contains(&omission.what) {
                continue;
            }
            seen.push(omission.what.clone());
            let known = report
                .omitted
                .iter_mut()
                .find(|known| known.what == omission.what);
            match known {
                Some(known) => known.n_records += 1,
                None => report.omitted.push(OmissionReport {
                    what: omission.what,
                    n_records: 1,
                    first: place.clone(),
                    text: omission.text,
                }),
            }
        }
        let samples = encoded.samples;
        let longest = samples.iter().map(Sample::len).max().unwrap_or(0);
        if samples.len() > 1 {
            report.n_split += 1;
            report.n_split_samples += samples.len();
            report.n_split_tokens += samples.iter().map(Sample::len).sum::<usize>() - longest;
        }
        report.longest = report.longest.max(longest);
        report.n_empty += usize::from(samples.is_empty() && !self.is_refused);
        samples
    }

    /// What became of all records.
    ///
    /// # Errors
    ///
    /// For what can only be judged when all records have been seen: keys that
    /// nothing uses, parts that the template leaves out, too many records with
    /// nothing to train.
    pub fn finish(self) -> Result<ReadReport, DataError> {
        let (report, options) = (self.report, self.options);
        let path = self.path.unwrap_or_default();
        let unused = report.keys.iter();
        let keys: Vec<_> = unused
            .filter(|key| key.use_ == KeyUse::Unknown)
            .map(|key| UnusedKey {
                name: key.key.clone(),
                n_records: key.n_records,
                first: key.first.clone(),
            })
            .collect();
        if !keys.is_empty() {
            return Err(DataError::UnusedKeys { path, keys });
        }
        if !report.omitted.is_empty() && !options.allow_omissions {
            let parts = report.omitted.into_iter();
            let parts = parts.map(|part| OmittedPart {
                what: part.what,
                n_records: part.n_records,
                first: part.first,
                text: part.text,
            });
            let parts = parts.collect();
            return Err(DataError::Omitted { path, parts });
        }
        let share = report.n_skipped as f64 / report.n_records.max(1) as f64;
        if share > options.max_skipped || report.n_skipped == report.n_records && share > 0.0 {
            return Err(DataError::TooManySkipped {
                path,
                n_skipped: report.n_skipped,
                n_records: report.n_records,
                limit: options.max_skipped,
                first: report.skipped,
            });
        }
        Ok(report)
    }
}

/// A place, without the file.
fn within_file(at: &Location) -> String {
    match at.line {
        Some(line) => format!("record {} (line {line})", at.record),
        None => format!("record {}", at.record),
    }
}

fn is_weighted(conversation: &Conversation) -> bool {
    let mut turns = conversation.messages.iter().enumerate();
    turns.any(|(turn, _)| conversation.weight(turn) != 1.0)
}

fn all_weights_are_zero() -> DataError {
    DataError::NothingToTrain("its weights or flags say not to train it".to_owned())
}

/// Says why nothing of a conversation would be trained, if so.
fn why_nothing(conversation: &Conversation) -> Result<(), DataError> {
    if conversation.trained_turns().next().is_some() {
        return Ok(());
    }
    let mut of_assistant = conversation.messages.iter().filter(|m| m.is_assistant());
    Err(match of_assistant.next() {
        None => DataError::NothingToTrain("it has no turn of the assistant".to_owned()),
        Some(first) if first.says_nothing() && of_assistant.all(Message::says_nothing) => {
            DataError::NothingToTrain("all turns of the assistant are empty".to_owned())
        }
        Some(_) => all_weights_are_zero(),
    })
}
