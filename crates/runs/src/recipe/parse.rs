//! Reading a recipe: overrides, and everything that can be refused before a
//! model is in memory.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use olora_adapter::{Method, Placement};
use olora_model::Packing;

use super::{
    AdapterSection, Dtype, Keep, Rate, Recipe, Trained, Weights,
    bounds::{
        MAX_LENGTH, MAX_NAME, MAX_NEW_TOKENS, MAX_RHO, MAX_SAMPLES, MAX_SEED, MAX_WEIGHT, Problems,
        has_control,
    },
    paths::KEPT,
    unknown::explained,
};
use crate::RunError;

impl Recipe {
    /// Reads a recipe and applies `key=value` overrides to it.
    ///
    /// A key is dotted (`training.learning_rate`), a value is TOML; one that
    /// is not valid TOML is taken as a string, so `name=second` works. Setting
    /// `training.max_steps` takes the place of `training.epochs`, and the
    /// other way around. Paths in the file are relative to its directory, those
    /// of overrides to the working directory.
    ///
    /// # Errors
    ///
    /// [`RunError::Recipe`] names the file or override, the key, and what
    /// was expected.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, RunError> {
        let (text, origin) = read(path)?;
        Self::read(&text, &origin, overrides, path.parent())
    }

    /// The recipe that a run keeps in its directory, with overrides.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn kept(path: &Path, overrides: &[String]) -> Result<Self, RunError> {
        let (text, origin) = read(path)?;
        // Of versions before, paths are as if typed. A user may have put comments above.
        let mut comments = text.lines().take_while(|line| line.starts_with('#'));
        let says_so = comments.any(|line| line.trim_end() == KEPT.trim_end());
        Self::read(&text, &origin, overrides, path.parent().filter(|_| says_so))
    }

    /// What overrides set, by dotted key, a table of a section spread out; and a
    /// recipe of them alone, for what depends on no other key.
    ///
    /// # Errors
    ///
    /// [`RunError::Recipe`] for an override that is none, an unknown key, and a value
    /// of another type.
    pub fn of_overrides(
        overrides: &[String],
    ) -> Result<(BTreeMap<String, toml::Value>, Self), RunError> {
        let mut given = toml::Table::new();
        set_all(&mut given, overrides)?;
        let mut values = BTreeMap::new();
        for (name, value) in &given {
            match value {
                toml::Value::Table(section) => {
                    let keys = section.iter();
                    values
                        .extend(keys.map(|(key, value)| (format!("{name}.{key}"), value.clone())));
                }
                value => {
                    values.insert(name.clone(), value.clone());
                }
            }
        }
        // A name is text, whatever it looks like.
        if let Some(name) = values.get_mut("name").filter(|name| !name.is_str()) {
            *name = toml::Value::String(name.to_string());
        }
        // What a recipe cannot be without.
        let whole = [
            ("name", None),
            ("model", Some("path")),
            ("data", Some("train")),
        ];
        for (section, key) in whole {
            let text = toml::Value::String("x".to_owned());
            match key {
                None => given.insert(section.to_owned(), text),
                Some(key) => {
                    let table = toml::Value::Table(toml::Table::new());
                    let table = given.entry(section).or_insert(table).as_table_mut();
                    table.and_then(|table| table.insert(key.to_owned(), text))
                }
            };
        }
        let recipe = given.try_into().map_err(|error: toml::de::Error| {
            let set: Vec<_> = overrides.iter().map(|set| format!("--set {set}")).collect();
            RunError::Recipe {
                recipe: set.join(" "),
                reason: explained(&error.to_string()),
            }
        })?;
        Ok((values, recipe))
    }

    /// As [`load`](Self::load), from text with paths as if they were typed;
    /// `origin` is what errors call it.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self, RunError> {
        Self::read(text, origin, overrides, None)
    }

    /// Reads a recipe that lies in a directory, if its paths are relative to one.
    fn read(
        text: &str,
        origin: &str,
        overrides: &[String],
        directory: Option<&Path>,
    ) -> Result<Self, RunError> {
        let refuse = |recipe: &str, reason: String| RunError::Recipe {
            recipe: recipe.to_owned(),
            reason,
        };
        // Deserialised from the text itself if it can be, for errors with line numbers.
        let mut table: toml::Table =
            toml::from_str(text).map_err(|error| refuse(origin, error.to_string()))?;
        let gives_output = table
            .get("output")
            .is_some_and(|output| output.get("directory").is_some());
        let set_keys: Vec<&str> = overrides
            .iter()
            .filter_map(|setting| setting.split('=').next().map(str::trim))
            .collect();
        let (mut recipe, origin) = if overrides.is_empty() {
            let recipe: Self = toml::from_str(text)
                .map_err(|error| refuse(origin, explained(&error.to_string())))?;
            (recipe, origin.to_owned())
        } else {
            set_all(&mut table, overrides)?;
            let set: Vec<_> = overrides.iter().map(|s| format!("--set {s}")).collect();
            let origin = format!("{origin} with {}", set.join(" "));
            let recipe: Self = table
                .try_into()
                .map_err(|error: toml::de::Error| refuse(&origin, explained(&error.to_string())))?;
            (recipe, origin)
        };
        if let Some(directory) = directory {
            // By itself, or with the table that it is in.
            let sets = |key: &str| {
                set_keys.iter().any(|set| {
                    let rest = key.strip_prefix(set);
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                })
            };
            // The default directory of runs is nothing that the recipe says.
            let is_typed = |key: &str| sets(key) || (key == "output.directory" && !gives_output);
            recipe
                .read_beside(directory, &is_typed)
                .map_err(|reason| refuse(&origin, reason))?;
        }
        recipe.validate(&origin)?;
        Ok(recipe)
    }

    /// The recipe as TOML, with every default written out.
    ///
    /// # Errors
    ///
    /// [`RunError::Recipe`] if a value has no TOML form, such as a seed
    /// above 2⁶³.
    pub fn to_toml(&self) -> Result<String, RunError> {
        toml::to_string_pretty(self).map_err(|error| RunError::Recipe {
            recipe: self.name.clone(),
            reason: error.to_string(),
        })
    }

    /// `<output.directory>/<name>`.
    pub fn run_directory(&self) -> PathBuf {
        self.output.directory.join(&self.name)
    }

    /// Everything that can be refused without a model; `origin` is what errors call
    /// the recipe.
    pub(crate) fn validate(&self, origin: &str) -> Result<(), RunError> {
        let mut problems = Problems::default();
        self.check_names(&mut problems);
        self.check_data(&mut problems);
        self.training.check(&mut problems);
        self.check_together(&mut problems);
        self.check_rows(&mut problems);
        self.check_objective(&mut problems);
        self.logging.check(&mut problems);
        let samples = &self.samples;
        problems.within(
            "samples.max_new_tokens",
            samples.max_new_tokens,
            &(usize::from(!samples.prompts.is_empty())..=MAX_NEW_TOKENS),
            "as many tokens may be generated for each prompt",
        );
        if let Trained::Adapter(config) = self.adapter.trained(true) {
            let checked = config
                .validate()
                .and_then(|()| config.check_patterns())
                .and_then(|()| self.adapter.form.check(&config));
            if let Err(error) = checked {
                problems.0.push(format!("[adapter]: {error}"));
            }
        }
        if problems.0.is_empty() {
            return Ok(());
        }
        Err(RunError::Recipe {
            recipe: origin.to_owned(),
            reason: problems.0.join("; "),
        })
    }

    /// What becomes a name of a file, and what is printed in lines of a log.
    fn check_names(&self, problems: &mut Problems) {
        let name = &self.name;
        let is_name = !name.trim().is_empty()
            && !name.contains(['/', '\\'])
            && name != "."
            && name != ".."
            && name.len() <= MAX_NAME
            && !has_control(name);
        if !is_name {
            problems.0.push(format!(
                "`name` is {name:?}, but must be a directory name: 1 to {MAX_NAME} bytes without `/`, `\\`, line \
                 breaks and other control characters, and neither `.` nor `..`"
            ));
        }
        let directory = self.output.directory.to_string_lossy();
        if has_control(&directory) {
            problems.0.push(format!(
                "`output.directory` is {directory:?}, but must be a path without line breaks and other control \
                 characters"
            ));
        }
        let seeds = [
            ("seed", Some(self.seed)),
            ("data.split_seed", self.data.split_seed),
        ];
        for (key, seed) in seeds {
            let seed = seed.unwrap_or_default();
            problems.within(
                key,
                seed,
                &(0..=MAX_SEED),
                "TOML has no larger whole numbers",
            );
        }
    }

    fn check_data(&self, problems: &mut Problems) {
        let data = &self.data;
        problems.check(
            data.train.is_empty() != data.sources.is_empty(),
            "give `data.train` or `[[data.sources]]`, one of the two",
        );
        problems.within(
            "data.max_skipped",
            data.max_skipped,
            &(0.0..=1.0),
            "it is a share of the records",
        );
        problems.within(
            "data.max_length",
            data.max_length,
            &(2..=MAX_LENGTH),
            "one token to read and one to predict at least, and no more than positions are counted exactly",
        );
        if let Some(held_out) = data.validation_samples {
            problems.within(
                "data.validation_samples",
                held_out,
                &(1..=MAX_SAMPLES),
                "it is the number of samples that are held out; leave it out to hold out none",
            );
        }
        for source in &data.sources {
            problems.number(
                "data.sources.weight",
                source.weight,
                source.weight > 0.0 && source.weight <= MAX_WEIGHT,
                &format!(
                    "above 0 and at most {MAX_WEIGHT:?}: an epoch goes through the source as often"
                ),
            );
        }
        for name in data.names() {
            let Some((_, first)) = name.rsplit_once('#') else {
                continue;
            };
            let is_number = !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit());
            let is_count = first
                .parse::<usize>()
                .is_ok_and(|first| (1..=MAX_SAMPLES).contains(&first));
            // A file may be called so.
            if is_number && !is_count && !Path::new(&name).exists() {
                problems.0.push(format!(
                    "{name:?} asks for the first {first} records, which must be between 1 and {MAX_SAMPLES}"
                ));
            }
        }
        problems.check(
            data.validation.is_none() || data.validation_samples.is_none(),
            "give `data.validation` or `data.validation_samples`, not both",
        );
        problems.check(
            data.split_seed.is_none() || data.validation_samples.is_some(),
            "`data.split_seed` has no use without `data.validation_samples`: remove it",
        );
    }

    /// What one section asks of another.
    fn check_together(&self, problems: &mut Problems) {
        let has_validation =
            self.data.validation.is_some() || self.data.validation_samples.is_some();
        problems.check(
            self.training.patience.is_none() || has_validation,
            "`training.patience` needs validation data: set `data.validation` or `data.validation_samples`",
        );
        self.check_tasks(has_validation, problems);
        problems.check(
            self.keep() == Keep::Last || has_validation,
            "`output.keep = \"best\"` needs validation data: set `data.validation` or `data.validation_samples`",
        );
        problems.check(
            !self.adapter.everything || self.training.learning_rate != Rate::Auto,
            "`training.learning_rate = \"auto\"` is for adapters: give a number with `adapter.method = \"none\"`",
        );
        let full = self.adapter.everything;
        problems.check(
            full || self.output.dtype.is_none(),
            "`output.dtype` has no use for an adapter, which is saved in float32: remove it",
        );
        problems.check(
            !full || self.adapter == AdapterSection::everything(),
            "the other keys of `[adapter]` have no use with `method = \"none\"`: remove them",
        );
        problems.check(
            full || self.model.weights != Weights::Random,
            "`model.weights = \"random\"` with an adapter would train an adapter on noise: \
             set `adapter.method = \"none\"`, or `weights = \"timing\"` if only speed is of interest",
        );
        problems.check(
            !full || self.model.dtype.is_none_or(|dtype| dtype == Dtype::F32),
            "`adapter.method = \"none\"` needs `model.dtype = \"float32\"`: \
             small updates vanish in half precision",
        );
        let packs = matches!(self.model.quantize, Packing::As(_));
        problems.check(
            !full || !packs,
            "`model.quantize` cannot go with `adapter.method = \"none\"`, which trains the weights themselves: \
             packed ones have no gradient. Remove it, or train an adapter",
        );
        problems.check(
            self.model.weights == Weights::Checkpoint || self.model.quantize.is_stored(),
            "`model.quantize` needs a checkpoint's weights: remove it, or `model.weights`",
        );
        problems.check(
            !packs || full || self.adapter.config.placement == Placement::Anchored,
            "`model.quantize` cannot go with `adapter.placement = \"residual\"`, which rewrites the weights: \
             use \"anchored\", which leaves them as they are",
        );
        if let Some(from) = &self.adapter.from {
            let from = from.to_string_lossy();
            problems.check(
                !from.is_empty() && !has_control(&from),
                "`adapter.from` must be the path of an adapter, without line breaks and other control characters",
            );
        }
        problems.check(
            self.adapter.rho.is_none() || (!full && self.adapter.config.method == Method::Eva),
            "`adapter.rho` has no use but with `method = \"eva\"`: remove it",
        );
        if let Some(rho) = self.adapter.rho {
            problems.within(
                "adapter.rho",
                rho,
                &(1.0..=MAX_RHO),
                "it is how many times its rank a layer may get",
            );
        }
        self.check_gradient(problems);
        problems.check(
            self.adapter.config.modules_to_save.is_empty()
                || self.model.dtype.is_none_or(|dtype| dtype == Dtype::F32),
            "`adapter.modules_to_save` needs `model.dtype = \"float32\"`: \
             small updates vanish in half precision",
        );
        problems.check(
            self.training.loraplus_ratio.is_none() || !full,
            "`training.loraplus_ratio` has no use with `adapter.method = \"none\"`: remove it",
        );
    }
}

/// A recipe's text, and what errors call it.
fn read(path: &Path) -> Result<(String, String), RunError> {
    let origin = path.display().to_string();
    // The recipe is part of what was typed: one that cannot be read is wrong usage too.
    match fs::read_to_string(path) {
        Ok(text) => Ok((text, origin)),
        Err(source) => Err(RunError::Recipe {
            recipe: origin,
            reason: format!("the recipe cannot be read: {source}"),
        }),
    }
}

/// Sets what overrides say.
fn set_all(table: &mut toml::Table, overrides: &[String]) -> Result<(), RunError> {
    let refuse = |recipe: &str, reason: String| {
        Err(RunError::Recipe {
            recipe: recipe.to_owned(),
            reason,
        })
    };
    let sets = |key: &str| {
        let mut keys = overrides
            .iter()
            .filter_map(|setting| setting.split('=').next());
        keys.any(|set| set.trim() == key)
    };
    if sets("training.max_steps") && sets("training.epochs") {
        let reason = "give training.max_steps or training.epochs, not both".to_owned();
        return refuse("--set", reason);
    }
    for setting in overrides {
        let origin = format!("--set {setting}");
        let Some((key, value)) = setting.split_once('=') else {
            let reason = "expected key=value, such as training.max_steps=50".to_owned();
            return refuse(&origin, reason);
        };
        if let Err(reason) = set(table, key.trim(), value.trim()) {
            return refuse(&origin, reason);
        }
    }
    Ok(())
}

/// Keys that may be text or a number.
const TEXT_OR_NUMBER: [&str; 1] = ["training.learning_rate"];

/// Sets a dotted key, making tables on the way.
fn set(table: &mut toml::Table, key: &str, value: &str) -> Result<(), String> {
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut names: Vec<&str> = key.split('.').collect();
    // A table within a table within a table: beyond some thousands, what goes through them by
    // calling itself has no stack left.
    const DEEPEST: usize = 32;
    if names.len() > DEEPEST {
        return Err(format!(
            "the key has {} parts; a recipe's have at most {DEEPEST}",
            names.len()
        ));
    }
    let last = names
        .pop()
        .filter(|name| !name.is_empty())
        .ok_or("the key is empty")?;
    let mut inner = table;
    for name in names {
        let entry = inner
            .entry(name)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        inner = entry
            .as_table_mut()
            .ok_or_else(|| format!("`{name}` is not a table"))?;
    }
    // Where the recipe has a string, `name=7` means "7"; a list is meant as one, as of data files.
    let is_text = parsed.is_str() || parsed.is_array();
    let expects_text = inner.get(last).is_some_and(toml::Value::is_str)
        && !is_text
        && !TEXT_OR_NUMBER.contains(&key);
    let parsed = if expects_text {
        toml::Value::String(value.to_owned())
    } else {
        parsed
    };
    inner.insert(last.to_owned(), parsed);
    // Either of these is the length of the run: the one given later replaces the other.
    for (given, other) in [("max_steps", "epochs"), ("epochs", "max_steps")] {
        if key == format!("training.{given}") {
            inner.remove(other);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
