//! A recipe for a model and data, by what is in the files and what the machine
//! has: for `olora init`, and for `olora train` without a recipe.
//!
//! What is chosen, and by what: the objective by how the data is laid out; the
//! longest sequence by the longest sample; epochs and the size of a step by the
//! number of samples; what is held out, a twentieth of them; the learning rate
//! by a look for one before the first step; and micro-batch, recomputation and
//! packing by what `olora plan` predicts against the memory there is. Each is
//! written with its reason. What the user has set stays as it is.

#![allow(
    clippy::format_push_string,
    reason = "writing to text returns an error that there is not"
)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::Device;
use olora_data::{Answers, DataOptions, Format, TokenCache};
use olora_devices::{Details, KernelOptions, Opened};
use olora_files::size;
use olora_model::ModelConfig;
use olora_runs::{Event, Forecast, Observer, Recipe};
use toml::Value;

use crate::{
    Usage,
    args::Purpose,
    devices,
    inspect_data::{self, Told},
    models::{data_files, fitted, locate, locate_data, tokenizer},
    parallel,
};

/// The share of the free memory that a run is fitted into.
const SHARE: f64 = 0.9;
/// The longest sequence that is suggested, in tokens: attention over more takes
/// more than most machines have.
const LONGEST: usize = 2048;
/// Blocks that text is cut into, in tokens.
const BLOCK: usize = 512;
/// Lengths are rounded up to a multiple, so that a few longer samples more change nothing.
const MULTIPLE: usize = 64;
const RANK: i64 = 16;

/// What a recipe is asked for.
pub(crate) struct Asked<'a> {
    pub(crate) purpose: Option<Purpose>,
    /// The most memory, in bytes.
    pub(crate) memory: Option<u64>,
    /// Model, data, and all else that is set, as of `--set`.
    pub(crate) overrides: &'a [String],
}

/// A recipe that fits.
pub(crate) struct Suggestion {
    keys: Vec<Key>,
    /// What the data was found to be.
    pub(crate) report: String,
    /// What the run will take.
    pub(crate) forecast: Forecast,
}

/// A key of the recipe, with the reason for its value.
#[derive(Clone)]
struct Key {
    /// Dotted.
    name: String,
    value: Value,
    why: String,
}

/// The recipe's keys in the making.
struct Keys {
    keys: Vec<Key>,
    /// What the user has set.
    given: BTreeMap<String, Value>,
}

impl Keys {
    /// Sets a key, unless the user has.
    fn set(&mut self, key: &str, value: impl Into<Value>, why: impl Into<String>) {
        let (value, why) = match self.given.get(key) {
            Some(given) => (given.clone(), String::new()),
            None => (value.into(), why.into()),
        };
        self.keys.retain(|known| known.name != key);
        self.keys.push(Key {
            name: key.to_owned(),
            value,
            why,
        });
    }

    fn is_given(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// Text that the user has set.
    fn text(&self, key: &str) -> Option<&str> {
        self.given.get(key).and_then(Value::as_str)
    }

    fn trains_everything(&self) -> bool {
        self.text("adapter.method") == Some("none")
    }

    /// With what the user has set besides.
    fn whole(&self) -> Vec<Key> {
        let mut all = self.keys.clone();
        for (key, value) in &self.given {
            if all.iter().all(|known| known.name != *key) {
                all.push(Key {
                    name: key.clone(),
                    value: value.clone(),
                    why: String::new(),
                });
            }
        }
        all
    }
}

fn list(names: &[String]) -> Value {
    match names {
        [one] => Value::String(one.clone()),
        all => Value::Array(all.iter().cloned().map(Value::String).collect()),
    }
}

/// The data, as far as a recipe depends on it.
struct Seen {
    options: DataOptions,
    /// Pairs count one.
    n_samples: usize,
    format: Format,
    /// The longest sample, in tokens.
    longest: usize,
    report: String,
}

/// Makes a recipe that fits.
///
/// # Errors
///
/// Model or data that cannot be read, and a run that fits no memory.
pub(crate) fn suggest(asked: &Asked<'_>, kernels: KernelOptions) -> Result<Suggestion> {
    let (mut given, alone) = Recipe::of_overrides(asked.overrides)?;
    // A name is text, whatever it looks like.
    if let Some(name) = given.get_mut("name").filter(|name| !name.is_str()) {
        *name = Value::String(name.to_string());
    }
    let names = |key: &str| named_in(given.get(key));
    let (model, data) = (names("model.path"), names("data.train"));
    let model = model.first().cloned();
    let model = model.ok_or_else(|| Usage::new("no model was given: --model"))?;
    if data.is_empty() {
        return Err(Usage::new(
            "no data was given: --data (`data.sources` is for a recipe of your own)",
        ));
    }
    let mut keys = Keys {
        keys: Vec::new(),
        given,
    };
    if keys.text("training.optimizer") == Some("sgd") && !keys.is_given("training.learning_rate") {
        return Err(Usage::new(
            "a rate for `training.optimizer = \"sgd\"` cannot be looked for: give one with --lr",
        ));
    }
    let base = locate(&model)?.path;
    let config = ModelConfig::from_path(&base)?;
    let Opened { device, details } = devices::open(&parallel::device(&alone.device)?, kernels)?;
    let seen = look(&data, asked.purpose, &keys, &alone, &base, &config)?;

    let name = name_for(data.first().map_or("", String::as_str));
    keys.set("name", name, "The run's directory is runs/NAME.");
    keys.set("model.path", model, "");
    of_adapter(&mut keys);
    of_data(&mut keys, &data, &seen, &config);
    let per_step = of_training(&mut keys, &seen);
    let forecast = fit(
        &mut keys,
        asked,
        &seen,
        per_step,
        &Place {
            device,
            details,
            base,
        },
    )?;
    let every = (forecast.steps / 8).max(1);
    keys.set(
        "training.evaluate_every",
        i64::try_from(every)?,
        "About eight times in the run.",
    );
    Ok(Suggestion {
        keys: keys.whole(),
        report: seen.report,
        forecast,
    })
}

/// A name or several of a value.
pub(crate) fn named_in(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => {
            let all = all.iter().filter_map(Value::as_str);
            all.map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

/// Reads the data.
fn look(
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
    let may_prefer = matches!(purpose, None | Some(Purpose::Prefer));
    let tokenizer = fitted(tokenizer(base, None)?, config);
    let cache = TokenCache::from_env();
    let read = |files: &[PathBuf], options: &mut DataOptions| {
        inspect_data::load(files, &tokenizer, options, cache.as_ref(), Told::Last)
    };
    let mut seen: Option<Seen> = None;
    for name in data {
        let (files, first) = data_files(Path::new(name))?;
        options.first = first;
        let n_ignored = options.ignore.len();
        let mut tried = options.clone();
        let mut found = read(&files, &mut tried);
        let new = tried.ignore.get(n_ignored..).unwrap_or_default();
        let has = |key: &str| new.iter().any(|ignored| ignored == key);
        // What nothing would use may be what to learn from: labels, or pairs that lie in another way.
        let others = [
            (Answers::Labelled, has("label")),
            (Answers::Pair, has("chosen") && has("rejected")),
        ];
        for (answers, is_there) in others {
            if !may_prefer || options.answers == answers {
                continue;
            }
            if is_there || (found.is_err() && purpose == Some(Purpose::Prefer)) {
                let mut otherwise = DataOptions {
                    answers,
                    ..options.clone()
                };
                let again = read(&files, &mut otherwise);
                if again.as_ref().is_ok_and(|again| again.matters.is_none()) {
                    (found, tried) = (again, otherwise);
                    break;
                }
            }
        }
        let mut found = found.with_context(|| format!("reading {name}"))?;
        if let Some(refusal) = found
            .matters
            .take()
            .filter(|_| purpose != Some(Purpose::Continue))
        {
            return Err(anyhow!("{refusal}").context(format!("reading {name}")));
        }
        if found.samples.format == Format::Text && !keys.is_given("data.max_length") {
            tried.max_length = BLOCK.min(limit);
            found = read(&files, &mut tried)?;
        }
        let samples = found.samples;
        let (answers, format) = (tried.answers, samples.format);
        let n_samples = samples.samples.len() / samples.samples.unit();
        match &mut seen {
            Some(seen) if seen.options.answers != answers => bail!(
                "{name} and the data before it are not of one kind: some have answers to prefer, and some have not. Train \
                 on one kind at a time"
            ),
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

fn of_adapter(keys: &mut Keys) {
    // The keys of an adapter to start from are its own.
    if keys.is_given("adapter.from") {
        return;
    }
    let why = "How the low-rank factors start. `lora` is plain LoRA, `none` trains every weight.";
    keys.set("adapter.method", "olora", why);
    if keys.trains_everything() {
        return;
    }
    keys.set("adapter.rank", RANK, "How much the adapter can hold.");
    let rank = keys.given.get("adapter.rank").and_then(Value::as_integer);
    let alpha = rank.unwrap_or(RANK) as f64;
    keys.set(
        "adapter.alpha",
        alpha,
        "The update is scaled by alpha / rank.",
    );
}

fn of_data(keys: &mut Keys, data: &[String], seen: &Seen, config: &ModelConfig) {
    let counted = format!(
        "{} samples, laid out as {}.",
        seen.n_samples,
        named(seen.format)
    );
    // Given it is, and told nevertheless.
    keys.given.remove("data.train");
    keys.set("data.train", list(data), counted);
    let objective = match seen.options.answers {
        Answers::One => None,
        Answers::Pair => Some((
            "dpo",
            "The data has pairs of a chosen and a rejected answer.",
        )),
        Answers::Labelled => Some(("kto", "The data has answers that are labelled good or bad.")),
    };
    if let Some((method, why)) = objective {
        keys.set("objective.method", method, why);
    }
    // Half of few samples says little, and takes what there is to learn from.
    if !keys.is_given("data.validation") && seen.n_samples >= 20 {
        let held_out = (seen.n_samples / 20).clamp(2, 200) as i64;
        let why = "Held out of the training data, to see the loss on. Other files: `validation`.";
        keys.set("data.validation_samples", held_out, why);
    }
    let limit = config.longest_sequence().min(LONGEST);
    let (length, why) = if seen.format == Format::Text {
        let why = "Text is cut into blocks of so many tokens.".to_owned();
        (BLOCK.min(limit), why)
    } else {
        let needed = seen.longest.max(2).next_multiple_of(MULTIPLE);
        let cut = if seen.longest > limit {
            ", and is cut"
        } else {
            ""
        };
        let why = format!("In tokens. The longest sample has {}{cut}.", seen.longest);
        (needed.min(limit), why)
    };
    keys.set("data.max_length", length as i64, why);
    let options = &seen.options;
    if !options.ignore.is_empty() {
        let ignored = options.ignore.iter().cloned().map(Value::String).collect();
        let why = "Keys of the data that nothing uses.";
        // With those that the user has named.
        keys.given.remove("data.ignore");
        keys.set("data.ignore", Value::Array(ignored), why);
    }
    for (key, is_on, why) in [
        (
            "data.allow_omissions",
            options.allow_omissions,
            "The model's chat template leaves parts of some records out: `olora inspect data` shows what is left.",
        ),
        (
            "data.allow_markup",
            options.allow_markup,
            "Some records hold the words with which the chat template tells turns apart.",
        ),
    ] {
        if is_on {
            keys.set(key, true, why);
        }
    }
    if options.max_skipped >= 1.0 {
        let why = "More than half of the records have nothing to train on, and are left out.";
        keys.set("data.max_skipped", 1.0, why);
    }
}

fn named(format: Format) -> String {
    let name = serde_json::to_value(format).unwrap_or_default();
    name.as_str().unwrap_or_default().to_owned()
}

/// How long, how large and at which rate; returns the sequences of a step.
fn of_training(keys: &mut Keys, seen: &Seen) -> usize {
    let (epochs, per_step) = match seen.n_samples {
        ..200 => (3.0, 4),
        200..500 => (3.0, 8),
        500..2000 => (2.0, 8),
        2000..5000 => (2.0, 16),
        _ => (1.0, 16),
    };
    if !keys.is_given("training.max_steps") {
        let why = "Passes over the data: more for less data.";
        keys.set("training.epochs", epochs, why);
    }
    if keys.trains_everything() {
        let why = "A usual one where every weight trains.";
        keys.set("training.learning_rate", 2e-5, why);
    } else if parallel::is_one_of_several() {
        keys.set("training.learning_rate", 2e-4, "A usual one.");
    } else {
        let why = "Looked for before the first step, by at most 5 % of the run: for this model, method, rank and data.";
        keys.set("training.learning_rate", "auto", why);
    }
    per_step
}

/// Where the run is to be made.
struct Place {
    device: Device,
    details: Details,
    base: PathBuf,
}

/// What else than smaller micro-batches makes a step fit.
#[derive(Clone, Copy)]
struct Way {
    recompute: bool,
    packing: Option<&'static str>,
}

/// Chooses how the step is computed so that it fits the memory.
fn fit(
    keys: &mut Keys,
    asked: &Asked<'_>,
    seen: &Seen,
    per_step: usize,
    place: &Place,
) -> Result<Forecast> {
    let limit = asked.memory.or_else(|| free(&place.details));
    // Answers are compared with those beside them.
    let fewest = if seen.options.answers == Answers::Labelled {
        2
    } else {
        1
    };
    let sizes: Vec<Option<usize>> = if keys.is_given("training.batch_size") {
        vec![None]
    } else {
        let halved = std::iter::successors(Some(per_step), |size| Some(size / 2));
        halved
            .take_while(|size| *size >= fewest)
            .map(Some)
            .collect()
    };
    let mut ways = vec![
        (false, None),
        (true, None),
        (true, Some("q8_0")),
        (true, Some("nf4")),
    ];
    // Only weights of a checkpoint that stay as they are can be packed.
    let is_fixed = !keys.trains_everything()
        && keys.text("adapter.placement") != Some("residual")
        && !keys.is_given("model.weights")
        && !keys.is_given("model.quantize");
    ways.retain(|(recompute, packing)| {
        (!*recompute || !keys.is_given("training.recompute")) && (packing.is_none() || is_fixed)
    });
    let mut least: Option<(Forecast, String)> = None;
    for (recompute, packing) in ways {
        for size in &sizes {
            let mut tried = Keys {
                keys: keys.keys.clone(),
                given: keys.given.clone(),
            };
            let way = Way { recompute, packing };
            let said = of_step(&mut tried, *size, per_step, way);
            let forecast = predict(&tried.whole(), place)?;
            if limit.is_none_or(|limit| forecast.peak_memory <= limit) {
                keys.keys = tried.keys;
                return Ok(forecast);
            }
            let is_less =
                |(least, _): &(Forecast, String)| forecast.peak_memory < least.peak_memory;
            if least.as_ref().is_none_or(is_less) {
                least = Some((forecast, said));
            }
        }
    }
    let (least, said) = least.map_or((0, String::new()), |(least, said)| {
        (least.peak_memory, said)
    });
    let length = keys.keys.iter().find(|key| key.name == "data.max_length");
    let length = length.map_or_else(String::new, |key| key.value.to_string());
    let more = if asked.memory.is_some() {
        ", or more --memory"
    } else {
        ""
    };
    bail!(
        "the run does not fit into {}: {said} it is predicted to take {}. Give a smaller model, a shorter --max-length \
         than {length}, or a lower --rank{more}",
        size(limit.unwrap_or_default()),
        size(least),
    )
}

/// The micro-batches of a step and how they are computed; returns it in words. No
/// `size` is the user's.
fn of_step(keys: &mut Keys, size: Option<usize>, per_step: usize, way: Way) -> String {
    let mut said = "with the micro-batches that were asked for".to_owned();
    if let Some(size) = size {
        said = format!("with micro-batches of {size}");
        if keys.is_given("training.accumulation") {
            let why = "Sequences that are computed at once.";
            keys.set("training.batch_size", size as i64, why);
        } else {
            let why = format!("Sequences that are computed at once; {per_step} make a step.");
            keys.set("training.batch_size", size as i64, why);
            if size < per_step {
                let why = "Micro-batches of a step: the result is that of one large batch.";
                keys.set("training.accumulation", (per_step / size) as i64, why);
            }
        }
    }
    if way.recompute {
        let why = "Blocks are computed again in the backward pass: less memory, a third more work.";
        keys.set("training.recompute", "blocks", why);
        said.push_str(", blocks computed again");
    }
    if let Some(packing) = way.packing {
        let why = "The base's matrices are packed as they are read, to fit the memory.";
        keys.set("model.quantize", packing, why);
        said.push_str(&format!(" and the base packed as {packing}"));
    }
    said
}

fn predict(keys: &[Key], place: &Place) -> Result<Forecast> {
    struct Silent;
    impl Observer for Silent {
        fn on(&self, _: &Event) {}
    }
    let mut recipe = Recipe::parse(&text_of(keys, false), "what was given", &[])?;
    place.base.clone_into(&mut recipe.model.path);
    locate_data(&mut recipe)?;
    let observer: Arc<dyn Observer> = Arc::new(Silent);
    let (device, details) = (&place.device, &place.details);
    Ok(olora_runs::plan(
        &recipe, device, details, false, &observer,
    )?)
}

/// The memory that a run may take, where it is known.
fn free(details: &Details) -> Option<u64> {
    let free = if details.accelerator {
        details.free_memory.or(details.memory)?
    } else {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let free = system.available_memory();
        // Of a container, what it may take. What it has cached of files is given back when needed.
        let group = system.cgroup_limits();
        let group = group.map(|limits| limits.total_memory.saturating_sub(limits.rss));
        group.map_or(free, |group| group.min(free))
    };
    (free > 0).then_some((free as f64 * SHARE) as u64)
}

impl Suggestion {
    /// The recipe, with the reason above each key.
    pub(crate) fn text(&self) -> String {
        text_of(&self.keys, true)
    }

    /// The same without reasons.
    pub(crate) fn plain(&self) -> String {
        text_of(&self.keys, false)
    }

    /// The recipe with its paths for a file in another directory than the working
    /// directory.
    pub(crate) fn for_directory(mut self, directory: &Path) -> Self {
        const PATHS: [&str; 7] = [
            "model.path",
            "data.train",
            "data.validation",
            "adapter.from",
            "tasks.data",
            "output.directory",
            "logging.tensorboard",
        ];
        for key in &mut self.keys {
            if !PATHS.contains(&key.name.as_str()) {
                continue;
            }
            let name = &key.name;
            let beside = |value: &mut Value| {
                if let Value::String(path) = value {
                    *path = olora_runs::recipe::written_beside(name, path, directory);
                }
            };
            match &mut key.value {
                Value::Array(all) => all.iter_mut().for_each(beside),
                one => beside(one),
            }
        }
        self
    }
}

/// Keys as TOML, by sections.
fn text_of(keys: &[Key], with_reasons: bool) -> String {
    let mut sections: Vec<(&str, Vec<(&str, &Key)>)> = vec![("", Vec::new())];
    for name in ["model", "adapter", "objective", "data", "training"] {
        sections.push((name, Vec::new()));
    }
    for key in keys {
        let (section, name) = key.name.split_once('.').unwrap_or(("", &key.name));
        match sections.iter_mut().find(|(known, _)| *known == section) {
            Some((_, all)) => all.push((name, key)),
            None => sections.push((section, vec![(name, key)])),
        }
    }
    let mut text = String::new();
    for (section, all) in sections {
        if all.is_empty() {
            continue;
        }
        if !section.is_empty() {
            text.push_str(&format!("\n[{section}]\n"));
        }
        for (name, key) in all {
            if with_reasons && !key.why.is_empty() {
                text.push_str(&format!("# {}\n", key.why));
            }
            text.push_str(&format!("{name} = {}\n", written(&key.value)));
        }
    }
    text
}

/// A value as TOML, small numbers as people write them.
fn written(value: &Value) -> String {
    match value {
        Value::Float(number) if *number != 0.0 && number.abs() < 1e-2 => format!("{number:e}"),
        other => other.to_string(),
    }
}

/// A name for a run on data: that of its file, without what names do not have.
pub(crate) fn name_for(data: &str) -> String {
    let plain = data.split(['#', '@', ':', '*', '?']).next().unwrap_or(data);
    let path = PathBuf::from(plain.trim_end_matches(['/', '\\']));
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = file.split('.').find(|part| !part.is_empty());
    let name: String = stem
        .unwrap_or_default()
        .chars()
        .map(|letter| {
            if letter.is_alphanumeric() || "-_".contains(letter) {
                letter
            } else {
                '-'
            }
        })
        .take(60)
        .collect();
    if name.trim_matches('-').is_empty() {
        "run".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_named_after_its_data() {
        for (data, expected) in [
            ("my-data.jsonl", "my-data"),
            ("data/train.csv.gz#500", "train"),
            ("owner/name@v1:test", "name"),
            ("data/*.jsonl", "data"),
            ("my data.json", "my-data"),
            ("..", "run"),
        ] {
            assert_eq!(name_for(data), expected, "{data}");
        }
    }

    #[test]
    fn what_the_user_has_set_stays() {
        let given = [
            ("adapter.rank".to_owned(), Value::from(4)),
            ("data.system".to_owned(), Value::from("merge")),
            ("training.min_learning_rate".to_owned(), Value::from(1e-5)),
        ];
        let mut keys = Keys {
            keys: Vec::new(),
            given: given.into(),
        };
        keys.set("adapter.rank", 16, "Why.");
        keys.set("adapter.alpha", 16.0, "Why.");
        let text = text_of(&keys.whole(), true);
        assert_eq!(
            text,
            "\n[adapter]\nrank = 4\n# Why.\nalpha = 16.0\n\n[data]\nsystem = \"merge\"\n\n[training]\n\
             min_learning_rate = 1e-5\n"
        );
    }
}
