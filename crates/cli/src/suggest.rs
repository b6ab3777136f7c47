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

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use olora_data::{Answers, DataOptions, Format, TokenCache};
use olora_devices::{Details, KernelOptions, Opened};
use olora_files::size;
use olora_model::ModelConfig;
use olora_runs::{Event, Forecast, Observer, Recipe};

use crate::{
    Usage,
    args::{Purpose, quoted},
    devices, inspect_data,
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
const RANK: usize = 16;

/// What a recipe is asked for.
pub(crate) struct Asked<'a> {
    pub(crate) model: &'a str,
    pub(crate) data: &'a [String],
    pub(crate) name: String,
    pub(crate) purpose: Option<Purpose>,
    /// The most memory, in bytes.
    pub(crate) memory: Option<u64>,
    /// As of `--set`.
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
    /// As in TOML.
    value: String,
    why: String,
}

/// The recipe's keys in the making.
struct Keys<'a> {
    keys: Vec<Key>,
    overrides: &'a [String],
}

impl Keys<'_> {
    /// Sets a key, unless the user has.
    fn set(&mut self, key: &str, value: impl Into<String>, why: impl Into<String>) {
        let (value, why) = match self.given(key) {
            Some(given) => (given, String::new()),
            None => (value.into(), why.into()),
        };
        self.keys.retain(|known| known.name != key);
        self.keys.push(Key {
            name: key.to_owned(),
            value,
            why,
        });
    }

    /// What the user has set a key to, as TOML: the last that was said.
    fn given(&self, key: &str) -> Option<String> {
        let all = self.overrides.iter().rev();
        let mut values = all.filter_map(|set| {
            let (name, value) = set.split_once('=')?;
            (name.trim() == key).then(|| value.trim())
        });
        values.next().map(as_toml)
    }

    fn is_given(&self, key: &str) -> bool {
        self.given(key).is_some()
    }

    /// With what the user has set besides.
    fn whole(&self) -> Vec<Key> {
        let mut all = self.keys.clone();
        for set in self.overrides {
            if let Some((key, _)) = set.split_once('=')
                && all.iter().all(|known| known.name != key.trim())
                && let Some(value) = self.given(key.trim())
            {
                all.push(Key {
                    name: key.trim().to_owned(),
                    value,
                    why: String::new(),
                });
            }
        }
        all
    }
}

/// A value of `--set` as TOML: text where it is nothing else.
fn as_toml(value: &str) -> String {
    let is_toml = toml::from_str::<toml::Table>(&format!("value = {value}")).is_ok();
    if is_toml {
        value.to_owned()
    } else {
        quoted(value)
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
    let base = locate(asked.model)?.path;
    let config = ModelConfig::from_path(&base)?;
    let mut keys = Keys {
        keys: Vec::new(),
        overrides: asked.overrides,
    };
    let device = keys.given("device").unwrap_or_else(|| quoted("cpu"));
    let device = device.trim_matches('"').to_owned();
    let Opened { device, details } = devices::open(&parallel::device(&device)?, kernels)?;
    let seen = look(asked, &base, &config)?;

    keys.set(
        "name",
        quoted(&asked.name),
        "The run's directory is runs/NAME.",
    );
    if details.accelerator {
        keys.set("device", quoted(&details.device), "");
    }
    keys.set("model.path", quoted(asked.model), "");
    of_adapter(&mut keys);
    of_data(&mut keys, asked, &seen, &config);
    let per_step = of_training(&mut keys, &seen);
    let forecast = fit(&mut keys, asked, &seen, per_step, &device, &details, &base)?;
    if !keys.is_given("training.evaluate_every") {
        let every = (forecast.steps / 8).max(1);
        let why = "About eight times in the run.";
        keys.set("training.evaluate_every", every.to_string(), why);
    }
    Ok(Suggestion {
        keys: keys.whole(),
        report: seen.report,
        forecast,
    })
}

/// Reads the data.
fn look(asked: &Asked<'_>, base: &Path, config: &ModelConfig) -> Result<Seen> {
    let of_data = asked.overrides.iter().filter(|set| {
        let set = set.trim_start();
        set.starts_with("data.") || set.starts_with("objective.")
    });
    // Where data lies is another matter than how it is read.
    let of_data = of_data.filter(|set| !set.trim_start().starts_with("data.train="));
    let of_data: Vec<_> = of_data.cloned().collect();
    let minimal = "name = \"x\"\n[model]\npath = \".\"\n[data]\ntrain = \".\"\n";
    let recipe = Recipe::parse(minimal, "--set", &of_data)?;
    let mut options = recipe.data_options(None);
    if asked.purpose == Some(Purpose::Prefer) && options.answers == Answers::One {
        options.answers = Answers::Pair;
    }
    let tokenizer = fitted(tokenizer(base, None)?, config);
    let cache = TokenCache::from_env();
    let mut n_samples = 0;
    let mut longest = 0;
    let mut format = None;
    let mut reports = Vec::new();
    for name in asked.data {
        let (files, first) = data_files(Path::new(name))?;
        options.first = first;
        let n_ignored = options.ignore.len();
        let mut tried = options.clone();
        let mut read = inspect_data::load(&files, &tokenizer, &mut tried, cache.as_ref());
        // A label that nothing would use is what to learn from.
        let new = tried.ignore.get(n_ignored..).unwrap_or_default();
        let has_label = new.iter().any(|key| key == "label");
        let may_be_labelled = has_label && asked.purpose != Some(Purpose::Answer);
        if may_be_labelled || (read.is_err() && asked.purpose == Some(Purpose::Prefer)) {
            let mut labelled = DataOptions {
                answers: Answers::Labelled,
                ..options.clone()
            };
            let again = inspect_data::load(&files, &tokenizer, &mut labelled, cache.as_ref());
            if again.is_ok() {
                (read, tried) = (again, labelled);
            }
        }
        let (samples, _) = read.with_context(|| format!("reading {name}"))?;
        options = tried;
        n_samples += samples.samples.len() / samples.samples.unit();
        longest = longest.max(samples.report.longest);
        format = format.or(Some(samples.format));
        reports.push(samples.report.to_string());
    }
    let format = format.ok_or_else(|| Usage::new("no data was given"))?;
    let is_text = format == Format::Text;
    match asked.purpose {
        Some(Purpose::Continue) if !is_text => bail!(
            "the data is laid out as {format:?}, and to go on as texts do takes text: give text, or leave out \
             --purpose"
        ),
        Some(Purpose::Answer) if is_text => bail!(
            "the data is text, which has no answers: a model learns to go on as it does (--purpose continue)"
        ),
        _ => {}
    }
    Ok(Seen {
        options,
        n_samples,
        format,
        longest,
        report: reports.join("\n"),
    })
}

fn of_adapter(keys: &mut Keys<'_>) {
    // The keys of an adapter to start from are its own.
    if keys.is_given("adapter.from") {
        return;
    }
    let why = "How the low-rank factors start. `lora` is plain LoRA, `none` trains every weight.";
    keys.set("adapter.method", quoted("olora"), why);
    if keys.given("adapter.method") == Some(quoted("none")) {
        return;
    }
    let why = "How much the adapter can hold.";
    keys.set("adapter.rank", RANK.to_string(), why);
    let rank = keys.given("adapter.rank");
    let alpha = rank.unwrap_or_else(|| RANK.to_string());
    let why = "The update is scaled by alpha / rank.";
    keys.set("adapter.alpha", format!("{alpha}.0"), why);
}

fn of_data(keys: &mut Keys<'_>, asked: &Asked<'_>, seen: &Seen, config: &ModelConfig) {
    let train = match asked.data {
        [one] => quoted(one),
        all => {
            let all: Vec<_> = all.iter().map(|one| quoted(one)).collect();
            format!("[{}]", all.join(", "))
        }
    };
    let counted = format!(
        "{} samples, laid out as {}.",
        seen.n_samples,
        named(seen.format)
    );
    keys.set("data.train", train, counted);
    let objective = match seen.options.answers {
        Answers::One => None,
        Answers::Pair => Some((
            "dpo",
            "The data has pairs of a chosen and a rejected answer.",
        )),
        Answers::Labelled => Some(("kto", "The data has answers that are labelled good or bad.")),
    };
    if let Some((method, why)) = objective {
        keys.set("objective.method", quoted(method), why);
    }
    if !keys.is_given("data.validation") {
        // Half of few samples says little, and takes what there is to learn from.
        let held_out = (seen.n_samples / 20).clamp(2, 200);
        if seen.n_samples >= 20 {
            let why =
                "Held out of the training data, to see the loss on. Other files: `validation`.";
            keys.set("data.validation_samples", held_out.to_string(), why);
        }
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
    keys.set("data.max_length", length.to_string(), why);
    let options = &seen.options;
    if !options.ignore.is_empty() {
        let ignored: Vec<_> = options.ignore.iter().map(|key| quoted(key)).collect();
        let why = "Keys of the data that nothing uses.";
        keys.set("data.ignore", format!("[{}]", ignored.join(", ")), why);
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
            keys.set(key, "true", why);
        }
    }
    if options.max_skipped >= 1.0 {
        let why = "More than half of the records have nothing to train on, and are left out.";
        keys.set("data.max_skipped", "1.0", why);
    }
}

fn named(format: Format) -> String {
    let name = serde_json::to_value(format).unwrap_or_default();
    name.as_str().unwrap_or_default().to_owned()
}

/// How long, how large and at which rate; returns the sequences of a step.
fn of_training(keys: &mut Keys<'_>, seen: &Seen) -> usize {
    let (epochs, per_step) = match seen.n_samples {
        ..200 => ("3.0", 4),
        200..500 => ("3.0", 8),
        500..2000 => ("2.0", 8),
        2000..5000 => ("2.0", 16),
        _ => ("1.0", 16),
    };
    if !keys.is_given("training.max_steps") {
        let why = "Passes over the data: more for less data.";
        keys.set("training.epochs", epochs, why);
    }
    let everything = keys.given("adapter.method") == Some(quoted("none"));
    let sgd = keys.given("training.optimizer") == Some(quoted("sgd"));
    if everything || sgd || parallel::is_one_of_several() {
        let rate = if everything { "2e-5" } else { "2e-4" };
        keys.set("training.learning_rate", rate, "A usual one.");
    } else {
        let why = "Looked for before the first step, by at most 5 % of the run: for this model, method, rank and data.";
        keys.set("training.learning_rate", quoted("auto"), why);
    }
    per_step
}

/// Chooses how the step is computed so that it fits the memory.
fn fit(
    keys: &mut Keys<'_>,
    asked: &Asked<'_>,
    seen: &Seen,
    per_step: usize,
    device: &burn::tensor::Device,
    details: &Details,
    base: &Path,
) -> Result<Forecast> {
    let limit = asked.memory.or_else(|| free(details));
    // Answers are compared with those beside them.
    let fewest = if seen.options.answers == Answers::Labelled {
        2
    } else {
        1
    };
    let sizes: Vec<usize> = if keys.is_given("training.batch_size") {
        vec![0]
    } else {
        let halved = std::iter::successors(Some(per_step), |size| Some(size / 2));
        halved.take_while(|size| *size >= fewest).collect()
    };
    let mut ways = vec![
        (false, None),
        (true, None),
        (true, Some("q8_0")),
        (true, Some("nf4")),
    ];
    let everything = keys.given("adapter.method") == Some(quoted("none"));
    ways.retain(|(recompute, packing)| {
        (!*recompute || !keys.is_given("training.recompute"))
            && (packing.is_none() || !(everything || keys.is_given("model.quantize")))
    });
    let mut least: Option<Forecast> = None;
    for (recompute, packing) in ways {
        let forecast_of = |size: usize| -> Result<(Vec<Key>, Forecast)> {
            let mut tried = Keys {
                keys: keys.keys.clone(),
                overrides: keys.overrides,
            };
            of_step(&mut tried, size, per_step);
            if recompute {
                let why = "Blocks are computed again in the backward pass: less memory, a third more work.";
                tried.set("training.recompute", quoted("blocks"), why);
            }
            if let Some(packing) = packing {
                let why = "The base's matrices are packed as they are read, to fit the memory.";
                tried.set("model.quantize", quoted(packing), why);
            }
            let forecast = predict(&tried.whole(), device, details, base)?;
            Ok((tried.keys, forecast))
        };
        let fits = |forecast: &Forecast| limit.is_none_or(|limit| forecast.peak_memory <= limit);
        // If the smallest does not fit, none does.
        let Some(smallest) = sizes.last() else {
            continue;
        };
        let (chosen, forecast) = forecast_of(*smallest)?;
        if !fits(&forecast) {
            let less = least
                .as_ref()
                .is_none_or(|least| forecast.peak_memory < least.peak_memory);
            if less {
                least = Some(forecast);
            }
            continue;
        }
        for size in sizes.iter().take(sizes.len() - 1) {
            let (chosen, forecast) = forecast_of(*size)?;
            if fits(&forecast) {
                keys.keys = chosen;
                return Ok(forecast);
            }
        }
        keys.keys = chosen;
        return Ok(forecast);
    }
    let least = least.map_or(0, |least| least.peak_memory);
    bail!(
        "the run fits no {}: with micro-batches of {fewest}, blocks computed again and the base packed in 4 bits it is \
         predicted to take {}. Give a smaller model, a shorter --max-length than {}, a lower --rank, or more --memory",
        size(limit.unwrap_or_default()),
        size(least),
        keys.keys
            .iter()
            .find(|key| key.name == "data.max_length")
            .map_or("512", |key| key.value.as_str()),
    )
}

/// The micro-batches of a step; a `size` of 0 is the user's.
fn of_step(keys: &mut Keys<'_>, size: usize, per_step: usize) {
    if size == 0 {
        keys.set("training.batch_size", "4", "");
        return;
    }
    let count = per_step / size;
    let why = format!("Sequences that are computed at once; {per_step} make a step.");
    keys.set("training.batch_size", size.to_string(), why);
    if count > 1 {
        let why = "Micro-batches of a step: the result is that of one large batch.";
        keys.set("training.accumulation", count.to_string(), why);
    }
}

fn predict(
    keys: &[Key],
    device: &burn::tensor::Device,
    details: &Details,
    base: &Path,
) -> Result<Forecast> {
    struct Silent;
    impl Observer for Silent {
        fn on(&self, _: &Event) {}
    }
    let mut recipe = Recipe::parse(&text_of(keys, false), "the suggested recipe", &[])?;
    base.clone_into(&mut recipe.model.path);
    locate_data(&mut recipe)?;
    let observer: std::sync::Arc<dyn Observer> = std::sync::Arc::new(Silent);
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
        // Of a container, what it may take.
        let group = system.cgroup_limits().map(|limits| limits.free_memory);
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
        for key in &mut self.keys {
            let is_path = [
                "model.path",
                "data.train",
                "data.validation",
                "adapter.from",
                "tasks.data",
            ];
            if !is_path.contains(&key.name.as_str()) {
                continue;
            }
            let Ok(mut table) = toml::from_str::<toml::Table>(&format!("value = {}", key.value))
            else {
                continue;
            };
            let beside = |value: &mut toml::Value| {
                if let toml::Value::String(path) = value {
                    *path = olora_runs::recipe::written_beside(&key.name, path, directory);
                }
            };
            match table.get_mut("value") {
                Some(toml::Value::Array(all)) => all.iter_mut().for_each(beside),
                Some(value) => beside(value),
                None => {}
            }
            if let Some(value) = table.get("value") {
                key.value = value.to_string();
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
            text.push_str(&format!("{name} = {}\n", key.value));
        }
    }
    text
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
        let overrides = ["adapter.rank=4", "data.system=merge"].map(str::to_owned);
        let mut keys = Keys {
            keys: Vec::new(),
            overrides: &overrides,
        };
        keys.set("adapter.rank", "16", "Why.");
        keys.set("adapter.alpha", "16.0", "Why.");
        let text = text_of(&keys.whole(), true);
        assert_eq!(
            text,
            "\n[adapter]\nrank = 4\n# Why.\nalpha = 16.0\n\n[data]\nsystem = \"merge\"\n"
        );
    }
}
