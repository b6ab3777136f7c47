//! What data holds, as far as a recipe depends on it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use olora_data::{Answers, DataOptions, Format, TokenCache};
use olora_model::ModelConfig;
use olora_runs::Recipe;

use super::{BLOCK, LONGEST, keys::Keys};
use crate::{
    args::Purpose,
    inspect_data::{self, Read, Told},
    models::{data_files, fitted, tokenizer},
};

/// The data, as far as a recipe depends on it.
pub(super) struct Seen {
    pub(super) options: DataOptions,
    /// Pairs count one.
    pub(super) n_samples: usize,
    pub(super) format: Format,
    /// The longest sample, in tokens.
    pub(super) longest: usize,
    pub(super) report: String,
}

/// Reads the data.
pub(super) fn look(
    data: &[String],
    purpose: Option<Purpose>,
    keys: &Keys,
    alone: &Recipe,
    base: &Path,
    config: &ModelConfig,
) -> Result<Seen> {
    let mut options = alone.data_options(None);
    let limit = config.longest_sequence().min(LONGEST);
    if !keys.is_given("data.max_length") {
        options.max_length = limit;
    }
    if purpose == Some(Purpose::Prefer) && options.answers == Answers::One {
        options.answers = Answers::Pair;
    }
    let tokenizer = fitted(tokenizer(base, None)?, config);
    let cache = TokenCache::from_env();
    let read = |files: &[PathBuf], options: &mut DataOptions| {
        inspect_data::load(files, &tokenizer, options, cache.as_ref(), Told::Last)
    };
    let mut seen: Option<Seen> = None;
    for name in data {
        let (files, first) = data_files(Path::new(name))?;
        options.first = first;
        let (mut found, mut tried) = as_meant(&options, purpose, |options| read(&files, options))?;
        if found.samples.format == Format::Text && !keys.is_given("data.max_length") {
            tried.max_length = BLOCK.min(limit);
            found = read(&files, &mut tried)?;
        }
        let samples = found.samples;
        let (answers, format) = (tried.answers, samples.format);
        let n_samples = samples.samples.len() / samples.samples.unit();
        match &mut seen {
            Some(seen)
                if seen.options.answers != answers
                    || (seen.format == Format::Text) != (format == Format::Text) =>
            {
                bail!(
                    "{name} and the data before it are not of one kind: text, answers, and answers to prefer are each \
                     learnt by themselves. Train on one kind at a time, or mix them in a recipe of your own \
                     ([[data.sources]])"
                )
            }
            Some(seen) => {
                seen.n_samples += n_samples;
                seen.longest = seen.longest.max(samples.report.longest);
                seen.report = format!("{}\n{}", seen.report, samples.report);
                seen.options = tried.clone();
            }
            None => {
                seen = Some(Seen {
                    options: tried.clone(),
                    n_samples,
                    format,
                    longest: samples.report.longest,
                    report: samples.report.to_string(),
                });
            }
        }
        // Blocks of text are short, and are no limit of what comes after.
        tried.max_length = options.max_length;
        options = tried;
    }
    let seen = seen.context("no data was given")?;
    let is_text = seen.format == Format::Text;
    match purpose {
        Some(Purpose::Continue) if !is_text => bail!(
            "the data is laid out as {}, and to go on as texts do takes text: give text, or leave out --purpose",
            named(seen.format)
        ),
        Some(Purpose::Answer) if is_text => bail!(
            "the data is text, which has no answers: a model learns to go on as it does (--purpose continue)"
        ),
        Some(Purpose::Answer) if seen.options.answers == Answers::Pair => bail!(
            "the data has pairs of a chosen and a rejected answer (--purpose prefer). To train on the better answer \
             alone: --set data.columns='{{ completion = \"chosen\" }}' --set data.ignore='[\"rejected\"]'"
        ),
        _ => {}
    }
    Ok(seen)
}

/// Reads one of the data as what it is for, and says how it is read then: as answers
/// that are labelled or lie in pairs too, where nothing was said against it.
fn as_meant(
    options: &DataOptions,
    purpose: Option<Purpose>,
    read: impl Fn(&mut DataOptions) -> Result<Read>,
) -> Result<(Read, DataOptions)> {
    let n_ignored = options.ignore.len();
    let mut tried = options.clone();
    let mut found = read(&mut tried);
    let new = tried.ignore.get(n_ignored..).unwrap_or_default();
    let has = |key: &str| new.iter().any(|ignored| ignored == key);
    // What nothing would use may be what to learn from: labels, or pairs that lie in another way.
    let others = [
        (Answers::Labelled, has("label")),
        (Answers::Pair, has("chosen") && has("rejected")),
    ];
    let may_prefer = matches!(purpose, None | Some(Purpose::Prefer));
    for (answers, is_there) in others {
        if !may_prefer || options.answers == answers {
            continue;
        }
        if is_there || (found.is_err() && purpose == Some(Purpose::Prefer)) {
            let mut otherwise = DataOptions {
                answers,
                ..options.clone()
            };
            let again = read(&mut otherwise);
            if again.as_ref().is_ok_and(|again| again.matters.is_none()) {
                (found, tried) = (again, otherwise);
                break;
            }
        }
    }
    let mut found = found?;
    let matters = found.matters.take();
    match matters.filter(|_| purpose != Some(Purpose::Continue)) {
        Some(refusal) => Err(anyhow!("{refusal}")),
        None => Ok((found, tried)),
    }
}

pub(super) fn named(format: Format) -> String {
    let name = serde_json::to_value(format).unwrap_or_default();
    name.as_str().unwrap_or_default().to_owned()
}
