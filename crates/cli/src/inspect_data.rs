//! `olora inspect data`: what becomes of a data file.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use olora_data::{
    Answers, Corpus, DataError, DataOptions, DataReport, Format, KeyUse, Piece, Sample, Samples,
    TokenCache, Tokenizer, UnusedKey, describe_sample, load_files,
};
use olora_model::ModelConfig;
use olora_runs::{Recipe, check_ends, recipe::ObjectiveSection};
use serde_json::json;

use crate::{
    Usage,
    args::InspectArgs,
    models::{data_files, fitted, locate, tokenizer},
    terminal::{Line, Out, line, out, say, say_note},
};

/// Bars of the histogram of lengths.
const BARS: usize = 8;
/// Characters of the longest of them.
const WIDTH: usize = 32;

pub(crate) fn data(args: &InspectArgs) -> Result<ExitCode> {
    let Some(model) = &args.model else {
        return Err(Usage::new(
            "give the checkpoint whose tokenizer to use with --model",
        ));
    };
    let (options, _) = options(&args.set, args.max_length)?;
    let model = locate(&model.to_string_lossy())?.path;
    let mut tokenizer = tokenizer(&model, None)?;
    // A tokenizer may be looked at without a model beside it.
    let of_model = ModelConfig::from_path(&model).ok();
    if let Some(config) = &of_model {
        tokenizer = fitted(tokenizer, config);
    }
    let (files, first) = data_files(&args.path)?;
    let mut options = DataOptions { first, ..options };
    let cache = TokenCache::from_env();
    let read = load(
        &files,
        &tokenizer,
        &mut options,
        cache.as_ref(),
        Told::First,
    )?;
    let (data, mut refusals) = (read.samples, read.refusals);
    if data.format != Format::Text {
        let of_model = of_model.map(|config| config.eos_token_ids);
        let stop = tokenizer.stop_ids_with(&of_model.unwrap_or_default());
        if let Err(error) = check_ends(data.samples.iter(), &stop) {
            refusals.push(error.to_string());
        }
    }
    let n_samples = data.samples.len();
    let begin = args.sample.unwrap_or(0);
    if begin >= n_samples {
        anyhow::bail!("there is no sample {begin}: the file has {n_samples}, counted from 0");
    }
    // Of pairs, one is shown whole.
    let usual = data.samples.unit() - begin % data.samples.unit();
    let end = begin
        .saturating_add(args.samples.unwrap_or(usual))
        .min(n_samples);
    let shown = (begin..end).map(|index| {
        let sample = data.samples.get(index).context("a sample in range")?;
        let pieces = describe_sample(&sample, &tokenizer)?;
        Ok((index, sample, pieces))
    });
    let shown: Vec<(usize, Sample, Vec<Piece>)> = shown.collect::<Result<_>>()?;
    let lengths = Lengths::of(&data.samples);
    let duplicates = duplicates(&data.samples);
    let code = if refusals.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    if args.json {
        as_json(&data.report, &lengths, duplicates, &refusals, &shown)?;
        return Ok(code);
    }
    say(&data.report.to_string());
    let keys = &data.report.reading.keys;
    let used: Vec<_> = keys
        .iter()
        .filter(|key| key.use_ == KeyUse::Used)
        .map(|key| match key.n_records {
            n if n == data.report.n_records => format!("`{}`", key.key),
            n => format!("`{}` (in {n})", key.key),
        })
        .collect();
    if !used.is_empty() {
        say(&format!("keys used: {}", used.join(", ")));
    }
    if duplicates > 0 {
        say(&format!(
            "{duplicates} of {n_samples} samples are the same as one before them"
        ));
    }
    say(&lengths.drawn());
    let mut out = out();
    for (index, sample, pieces) in &shown {
        let judged = match (sample.preferred, data.samples.unit()) {
            (None, _) => "",
            (Some(true), 2) => ", the chosen answer of a pair",
            (Some(false), 2) => ", the rejected answer of a pair",
            (Some(true), _) => ", a good answer",
            (Some(false), _) => ", a bad answer",
        };
        say(&format!(
            "sample {index} of {n_samples}{judged}: {} tokens, the {} marked ones are trained on",
            sample.len(),
            sample.n_trained()
        ));
        print(&mut out, pieces)?;
    }
    for refusal in &refusals {
        line(
            Line::Error,
            "error:",
            &format!(" a run is refused: {refusal}"),
        );
    }
    Ok(code)
}

/// What was read, whatever a run would say to it.
pub(crate) struct Read {
    pub(crate) samples: Samples,
    /// Why a run would refuse it.
    pub(crate) refusals: Vec<String>,
    /// The refusal of a key that is known for changing what is learnt, and was left out.
    pub(crate) matters: Option<String>,
}

/// Which of several refusals is told where nothing can be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// What a run says.
    First,
    /// What is in the way when all else is out of it.
    Last,
}

/// Reads data, also what a run would refuse: what is in the way is then left out
/// to show the rest, and the refusals are returned. `options` are then what reads
/// it.
pub(crate) fn load(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &mut DataOptions,
    cache: Option<&TokenCache>,
    told: Told,
) -> Result<Read> {
    let mut refusals = Vec::new();
    let mut matters = None;
    let n_asked = options.ignore.len();
    loop {
        let error = match load_judged(files, tokenizer, options, cache) {
            Ok(mut data) => {
                // Nobody asked for what was ignored here.
                for key in &mut data.report.reading.keys {
                    if options.ignore[n_asked..].contains(&key.key) {
                        key.use_ = KeyUse::Unknown;
                    }
                }
                return Ok(Read {
                    samples: data,
                    refusals,
                    matters,
                });
            }
            Err(error) => error,
        };
        match &error {
            DataError::UnusedKeys { keys, .. } => {
                let known = options.ignore.len();
                let names = keys.iter().map(|key| key.name.clone());
                let new: Vec<_> = names
                    .filter(|name| !options.ignore.contains(name))
                    .collect();
                options.ignore.extend(new);
                if options.ignore.len() == known {
                    return Err(error.into());
                }
                if keys.iter().any(UnusedKey::is_known_to_matter) {
                    matters.get_or_insert_with(|| error.to_string());
                }
            }
            DataError::Omitted { .. } if !options.allow_omissions => options.allow_omissions = true,
            DataError::Markup { .. } if !options.allow_markup => options.allow_markup = true,
            DataError::TooManySkipped {
                n_skipped,
                n_records,
                ..
            } if n_skipped < n_records && options.max_skipped < 1.0 => options.max_skipped = 1.0,
            _ => {
                let first = refusals.into_iter().next().filter(|_| told == Told::First);
                return Err(first.map_or_else(|| error.into(), anyhow::Error::msg));
            }
        }
        refusals.push(error.to_string());
    }
}

/// The options of `[data]` that `--set` gives, and `[objective]`.
pub(crate) fn options(
    set: &[String],
    max_length: Option<usize>,
) -> Result<(DataOptions, ObjectiveSection)> {
    let is_ours = |set: &&String| {
        ["data.", "objective."]
            .iter()
            .any(|section| set.trim_start().starts_with(section))
    };
    if let Some(other) = set.iter().find(|set| !is_ours(set)) {
        return Err(Usage::new(&format!(
            "--set here is for `[data]`, such as data.ignore='[\"score\"]', and `[objective]`, such as \
             objective.method=dpo; found `{other}`"
        )));
    }
    let minimal = "name = \"inspect\"\n[model]\npath = \".\"\n[data]\ntrain = \".\"\n";
    let recipe = Recipe::parse(minimal, "--set", set)?;
    let options = recipe.data_options(None);
    let options = DataOptions {
        max_length: max_length.unwrap_or(options.max_length),
        ..options
    };
    Ok((options, recipe.objective))
}

/// Reads data, and data of chosen and rejected answers as pairs where nothing was
/// said of an objective: `options` are then for that.
pub(crate) fn load_judged(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &mut DataOptions,
    cache: Option<&TokenCache>,
) -> Result<Samples, DataError> {
    match load_files(files, tokenizer, options, cache) {
        Err(DataError::Record { problem, .. })
            if matches!(*problem, DataError::Preferences { .. })
                && options.answers == Answers::One =>
        {
            options.answers = Answers::Pair;
            say_note(
                "these are pairs of a chosen and a rejected answer, read as for objective.method = \"dpo\"",
            );
            load_files(files, tokenizer, options, cache)
        }
        found => found,
    }
}

/// Green where there are colours, else in brackets; with the weight of
/// what does not count 1.
fn print(out: &mut Out, pieces: &[Piece]) -> Result<()> {
    let (open, close) = if out.has_colours() {
        ("\u{1b}[32;1m", "\u{1b}[0m")
    } else {
        ("⟦", "⟧")
    };
    let mut inside: Option<f32> = None;
    let mut turn = |out: &mut Out, now: Option<f32>| -> Result<()> {
        if now != inside {
            if let Some(weight) = inside {
                out.control(close)?;
                if weight != 1.0 {
                    write!(out, "×{weight}")?;
                }
            }
            if now.is_some() {
                out.control(open)?;
            }
            inside = now;
        }
        Ok(())
    };
    for piece in pieces {
        turn(out, piece.trained.then_some(piece.weight))?;
        write!(out, "{}", piece.text)?;
    }
    turn(out, None)?;
    writeln!(out)?;
    Ok(())
}

fn as_json(
    report: &DataReport,
    lengths: &Lengths,
    duplicates: usize,
    refusals: &[String],
    shown: &[(usize, Sample, Vec<Piece>)],
) -> Result<()> {
    let first = shown.first().map(|(_, _, pieces)| pieces);
    let samples: Vec<_> = shown
        .iter()
        .map(|(index, sample, pieces)| {
            json!({
                "index": index,
                "tokens": sample.tokens,
                "trained": sample.n_trained(),
                "preferred": sample.preferred,
                "pieces": pieces,
            })
        })
        .collect();
    let facts = json!({
        "report": report.to_string(),
        "data": report,
        "samples": report.n_samples,
        "duplicates": duplicates,
        "refused": refusals,
        "lengths": lengths.bars,
        "pieces": first,
        "shown": samples,
    });
    writeln!(out(), "{facts}")?;
    Ok(())
}

/// Samples that are the same as one before them. Two that differ are taken for
/// the same once in 2⁶⁴ pairs.
fn duplicates(samples: &Corpus) -> usize {
    let mut seen = HashSet::with_capacity(samples.len());
    let fresh = samples.iter().filter(|sample| {
        let mut hash = DefaultHasher::new();
        (&sample.tokens, &sample.trained, sample.preferred).hash(&mut hash);
        seen.insert(hash.finish())
    });
    samples.len() - fresh.count()
}

/// How many samples are how long.
struct Lengths {
    /// From, to, and how many.
    bars: Vec<[usize; 3]>,
}

impl Lengths {
    fn of(samples: &Corpus) -> Self {
        let lengths: Vec<_> = (0..samples.len())
            .map(|i| samples.n_inputs(i) + 1)
            .collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let step = longest.div_ceil(BARS).max(1);
        let mut bars: Vec<_> = (0..longest.div_ceil(step))
            .map(|bar| [bar * step + 1, (bar + 1) * step, 0])
            .collect();
        for length in lengths {
            if let Some(bar) = bars.get_mut(length.saturating_sub(1) / step) {
                bar[2] += 1;
            }
        }
        Self { bars }
    }

    fn drawn(&self) -> String {
        let most = self.bars.iter().map(|bar| bar[2]).max().unwrap_or(0).max(1);
        let line = |[from, to, n]: &[usize; 3]| {
            let bar = "█".repeat((n * WIDTH).div_ceil(most));
            format!("{:>10} {n:>7} {bar}", format!("{from}-{to}"))
        };
        let lines = self.bars.iter().map(line);
        let head = format!("{:>10} samples", "tokens");
        std::iter::once(head)
            .chain(lines)
            .collect::<Vec<_>>()
            .join("\n")
    }
}
