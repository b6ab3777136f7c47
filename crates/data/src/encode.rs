//! Records to samples.

mod judged;

use std::path::PathBuf;

use olora_records::{Location, Record};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    Answers, Conversation, DataError, DataOptions, Format, KeyUse, Message, Sample, Tokenizer,
    chat::Adaptation,
    error::{OmittedPart, UnusedKey},
    format::{Example, Parsed, check_answers, has_key, ignored, in_small_letters, renamed},
    tokenizer::Markup,
};

/// Reasons that are kept of the records that are left out.
const REASONS: usize = 10;

/// Turns the records of a source into samples, batch by batch.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    options: &'a DataOptions,
    markup: Markup,
    /// What was asked for, or what the first record's keys say.
    format: Option<Format>,
    report: ReadReport,
    /// The file of the first record: places in others are told with their name.
    path: Option<PathBuf>,
    /// Whether a key was found that nothing uses: nothing is encoded any more,
    /// only counted.
    is_refused: bool,
    /// Keys that the user names and no record had so far.
    absent: Vec<String>,
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
    /// What records were given that the template fails without.
    #[serde(default)]
    pub adapted: Vec<AdaptationReport>,
    /// What the template left out.
    pub omitted: Vec<OmissionReport>,
    /// Answers that are true or false, as JSON writes them.
    pub n_booleans: usize,
    /// Turns whose end was written out, and is not doubled.
    pub n_ended: usize,
    /// Words with which the template tells turns apart, in turns.
    pub markup: Vec<OmissionReport>,
    /// Keys that `data.columns` or `data.ignore` names and no record has.
    #[serde(default)]
    pub absent: Vec<String>,
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
            adapted: Vec::new(),
            omitted: Vec::new(),
            n_booleans: 0,
            n_ended: 0,
            markup: Vec::new(),
            absent: Vec::new(),
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

/// What some records were given because the template fails without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdaptationReport {
    /// Such as `arguments of calls given as JSON text`.
    pub what: String,
    /// In how many records.
    pub n_records: usize,
    /// The first of them.
    pub first: String,
}

/// What the template left out of some records, or is in some that it would write.
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
    is_boolean: bool,
    n_other_beginnings: usize,
    n_ended: usize,
    /// What, and how it begins.
    omitted: Vec<(String, String)>,
    markup: Vec<(String, String)>,
    adaptations: Vec<Adaptation>,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, options: &'a DataOptions) -> Self {
        Self {
            tokenizer,
            options,
            markup: tokenizer.markup(),
            format: options.format,
            // Of no records, which are refused elsewhere, any will do.
            report: ReadReport::new(Format::Text),
            path: None,
            is_refused: false,
            absent: named(options),
        }
    }

    /// On all threads of rayon's pool, in order. A record may become no sample,
    /// one or several, of which all but the first continue it.
    ///
    /// # Errors
    ///
    /// When a record cannot be used: of several, the first is named.
    pub(crate) fn encode(
        &mut self,
        records: Vec<Record>,
    ) -> Result<Vec<(Sample, bool)>, DataError> {
        if let Some(first) = records.first().filter(|_| self.report.n_records == 0) {
            let fields = records.iter().map(|record| &record.fields);
            check_answers(fields, &self.options.columns).map_err(|error| error.at(&first.at))?;
        }
        self.absent.retain(|key| {
            let has = |record: &Record| has_key(&record.fields, key);
            !records.iter().any(has)
        });
        let prepare = |Record { at, mut fields }: Record| {
            let ignored = ignored(&mut fields, &self.options.ignore);
            let fields = renamed(fields, &self.options.columns);
            let fields = fields.map_err(|error| error.at(&at))?;
            let fields = in_small_letters(fields);
            Ok::<_, DataError>((Record { at, fields }, ignored))
        };
        let records: Vec<_> = records.into_par_iter().map(prepare).collect();
        let records = records.into_iter().collect::<Result<Vec<_>, _>>()?;
        let Some((first, _)) = records.first() else {
            return Ok(Vec::new());
        };
        let format = match self.format {
            Some(format) => format,
            None => {
                let found = detect(&records, self.options.answers);
                found.map_err(|error| error.at(&first.at))?
            }
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
            let of_record = self.count(&record.at, encoded?).into_iter().enumerate();
            samples.extend(of_record.map(|(i, sample)| (sample, i > 0)));
        }
        Ok(samples)
    }

    fn one(&self, format: Format, record: &Record, only_keys: bool) -> Result<Encoded, DataError> {
        match format {
            Format::Preference => return self.pair(record, only_keys),
            Format::Labelled => return self.labelled(record, only_keys),
            _ => {}
        }
        self.answer(format, record, only_keys)
    }

    /// A record of one answer.
    fn answer(
        &self,
        format: Format,
        record: &Record,
        only_keys: bool,
    ) -> Result<Encoded, DataError> {
        let (parsed, mut encoded) = self.parsed(format, record, self.options)?;
        let is_unknown = |(_, use_): &(String, KeyUse)| *use_ == KeyUse::Unknown;
        if !only_keys && !encoded.keys.iter().any(is_unknown) {
            self.take(parsed, &mut encoded)?;
        }
        Ok(encoded)
    }

    /// A record of one answer, with what became of its keys.
    fn parsed(
        &self,
        format: Format,
        record: &Record,
        options: &DataOptions,
    ) -> Result<(Parsed, Encoded), DataError> {
        let chat = self.tokenizer.has_chat_template();
        let mut parsed = format.parse(&record.fields, chat, options)?;
        let encoded = Encoded {
            keys: std::mem::take(&mut parsed.keys),
            is_rendered: parsed.rendered.is_some(),
            is_boolean: parsed.is_boolean,
            ..Encoded::default()
        };
        Ok((parsed, encoded))
    }

    /// Makes samples of what was read.
    fn take(&self, parsed: Parsed, encoded: &mut Encoded) -> Result<(), DataError> {
        if parsed.nothing.is_some() {
            encoded.skipped = parsed.nothing;
            return Ok(());
        }
        // Another model's markup would be letters here.
        let is_text = matches!(parsed.example, Example::Text(_));
        if let Some(markup) = parsed
            .rendered
            .filter(|markup| markup.starts_with('<') && !is_text)
            && !self.tokenizer.has_token(markup)
        {
            return Err(DataError::OthersMarkup(markup));
        }
        match self.tokenise(parsed.example, encoded) {
            Err(DataError::NothingToTrain(reason)) => encoded.skipped = Some(reason),
            result => result?,
        }
        Ok(())
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
            Example::Chat(mut conversation) => {
                if !self.options.allow_markup {
                    encoded.n_ended = self.markup.take_ends(&mut conversation);
                }
                encoded.markup = self.markup.found(&conversation);
                encoded.is_weighted = is_weighted(&conversation);
                why_nothing(&conversation)?;
                let samples = tokenizer.chat_samples(&conversation)?;
                encoded.n_other_beginnings = samples.n_other_beginnings;
                let omitted = samples.omitted.into_iter();
                encoded.omitted = omitted.map(|part| (part.what, part.text)).collect();
                encoded.adaptations = samples.adaptations;
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
        report.n_booleans += usize::from(encoded.is_boolean);
        report.n_ended += encoded.n_ended;
        tally(&mut report.omitted, encoded.omitted, &place);
        tally(&mut report.markup, encoded.markup, &place);
        for what in encoded.adaptations.iter().map(|one| one.words()) {
            let known = report.adapted.iter_mut();
            match known.into_iter().find(|known| known.what == what) {
                Some(known) => known.n_records += 1,
                None => report.adapted.push(AdaptationReport {
                    what: what.to_owned(),
                    n_records: 1,
                    first: place.clone(),
                }),
            }
        }
        let samples = encoded.samples;
        let longest = samples.iter().map(Sample::len).max().unwrap_or(0);
        let is_pair = samples.iter().any(|sample| sample.preferred.is_some());
        if samples.len() > 1 && !is_pair {
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
    pub(crate) fn finish(self) -> Result<ReadReport, DataError> {
        let (mut report, options) = (self.report, self.options);
        report.absent = self.absent;
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
            let parts = parts(report.omitted);
            return Err(DataError::Omitted { path, parts });
        }
        if !report.markup.is_empty() && !options.allow_markup {
            let parts = parts(report.markup);
            return Err(DataError::Markup { path, parts });
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

/// The keys that a user names, but those of turns, which are found with them.
fn named(options: &DataOptions) -> Vec<String> {
    let mut keys: Vec<_> = options.columns.values().chain(&options.ignore).collect();
    keys.retain(|key| !key.contains("[]"));
    keys.sort();
    keys.dedup();
    keys.into_iter().cloned().collect()
}

/// The layout of the first record, or of the first that has an answer where that
/// is all that the first lacks.
fn detect(records: &[(Record, Vec<String>)], answers: Answers) -> Result<Format, DataError> {
    let mut fields = records.iter().map(|(record, _)| &record.fields);
    let Some(first) = fields.next() else {
        return Ok(Format::Text);
    };
    if answers != Answers::One {
        // Of a file some records may lack an answer.
        return answers.detect(first).or_else(|error| {
            let mut others = fields.filter_map(|fields| answers.detect(fields).ok());
            others.next().ok_or(error)
        });
    }
    Format::detect(first).or_else(|error| {
        let is_unknown = matches!(error, DataError::UnknownFormat { .. });
        let other = fields.find_map(|fields| Format::detect(fields).ok());
        other
            .filter(|other| is_unknown && other.lacks_answer(first))
            .ok_or(error)
    })
}

/// Adds what was found in one record, each thing once.
fn tally(known: &mut Vec<OmissionReport>, found: Vec<(String, String)>, place: &str) {
    let mut seen: Vec<String> = Vec::new();
    for (what, text) in found {
        if seen.contains(&what) {
            continue;
        }
        seen.push(what.clone());
        match known.iter_mut().find(|known| known.what == what) {
            Some(known) => known.n_records += 1,
            None => known.push(OmissionReport {
                what,
                n_records: 1,
                first: place.to_owned(),
                text,
            }),
        }
    }
}

/// For an error.
fn parts(found: Vec<OmissionReport>) -> Vec<OmittedPart> {
    let part = |part: OmissionReport| OmittedPart {
        what: part.what,
        n_records: part.n_records,
        first: part.first,
        text: part.text,
    };
    found.into_iter().map(part).collect()
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

/// Roles beside the assistant's that are no misspelling of it.
const USUAL: [&str; 4] = ["system", "developer", "user", "tool"];

/// Says why nothing of a conversation would be trained, if so.
fn why_nothing(conversation: &Conversation) -> Result<(), DataError> {
    if conversation.trained_turns().next().is_some() {
        return Ok(());
    }
    let mut of_assistant = conversation.messages.iter().filter(|m| m.is_assistant());
    Err(match of_assistant.next() {
        None => {
            let mut others = Vec::new();
            for role in conversation.messages.iter().map(Message::role) {
                if !USUAL.contains(&role) && !others.contains(&role) {
                    others.push(role);
                }
            }
            let others: Vec<_> = others.iter().map(|role| format!("`{role}`")).collect();
            let whose = if others.is_empty() {
                String::new()
            } else {
                format!(", but of {}, whom nobody here knows", others.join(", "))
            };
            DataError::NothingToTrain(format!("it has no turn of the assistant{whose}"))
        }
        Some(first) if first.says_nothing() && of_assistant.all(Message::says_nothing) => {
            DataError::NothingToTrain("all turns of the assistant are empty".to_owned())
        }
        Some(_) => all_weights_are_zero(),
    })
}
