//! A recipe for a model and data, by what is in the files and what the machine
//! has: for `olora init`, and for `olora train` without a recipe.
//!
//! What is chosen, and by what: the objective by how the data is laid out; the
//! longest sequence by the longest sample; epochs and the size of a step by the
//! number of samples; what is held out, a twentieth of them; the learning rate
//! by a look for one before the first step; and micro-batch, recomputation and
//! packing by what `olora plan` predicts against the memory there is. Each is
//! written with its reason. What the user has set stays as it is.

mod fit;
mod keys;
mod look;

use std::path::{Path, PathBuf};

use anyhow::Result;
use olora_data::{Answers, Format};
use olora_devices::{KernelOptions, Opened};
use olora_model::ModelConfig;
use olora_runs::{Forecast, Recipe};
use toml::Value;

use self::{
    fit::{Place, fit},
    keys::{Key, Keys, text_of},
    look::{Seen, look, named},
};
use crate::{Usage, args::Purpose, devices, models::locate, parallel};

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

/// Makes a recipe that fits.
///
/// # Errors
///
/// Model or data that cannot be read, and a run that fits no memory.
pub(crate) fn suggest(asked: &Asked<'_>, kernels: KernelOptions) -> Result<Suggestion> {
    let (given, alone) = Recipe::of_overrides(asked.overrides)?;
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

fn list(names: &[String]) -> Value {
    match names {
        [one] => Value::String(one.clone()),
        all => Value::Array(all.iter().cloned().map(Value::String).collect()),
    }
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
        for Key { name, value, .. } in &mut self.keys {
            let beside = |value: &mut Value| {
                if let Value::String(text) = value {
                    *text = olora_runs::recipe::written_beside(name, text, directory);
                }
            };
            match value {
                Value::Array(all) => all.iter_mut().for_each(beside),
                one => beside(one),
            }
        }
        self
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
}
