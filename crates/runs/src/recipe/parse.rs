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
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        name = "run"
        [model]
        path = "base"
        [adapter]
        [data]
        train = "train.jsonl"
    "#;

    fn excluded(recipe: &Recipe, has_lm_head: bool) -> Vec<String> {
        match recipe.adapter.trained(has_lm_head) {
            Trained::Adapter(config) => config.exclude,
            Trained::Everything => panic!("there is no adapter"),
        }
    }

    fn error(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<_> = overrides.iter().map(|s| (*s).to_owned()).collect();
        Recipe::parse(text, "recipe.toml", &overrides)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn defaults_are_written_back_and_read_again() {
        let recipe = Recipe::parse(MINIMAL, "recipe.toml", &[]).unwrap();
        let text = recipe.to_toml().unwrap();
        assert!(
            text.contains("learning_rate = 0.0002") && text.contains("method = \"olora\""),
            "{text}"
        );
        assert_eq!(Recipe::parse(&text, "resolved", &[]).unwrap(), recipe);
    }

    #[test]
    fn samples_are_cut_where_reading_data_without_a_recipe_cuts_them() {
        let recipe = Recipe::parse(MINIMAL, "recipe.toml", &[]).unwrap();
        let options = olora_data::DataOptions::default();
        assert_eq!(recipe.data.max_length, options.max_length);
    }

    #[test]
    fn overrides_take_toml_values_and_bare_strings() {
        let overrides = [
            "training.max_steps=7",
            "name=second",
            "adapter.targets=[\"q_proj\"]",
            "adapter.method=lora",
        ];
        let recipe = Recipe::parse(MINIMAL, "recipe.toml", &overrides.map(str::to_owned)).unwrap();
        assert_eq!(recipe.training.max_steps, Some(7));
        assert_eq!(recipe.name, "second");
        assert_eq!(recipe.adapter.config.targets, ["q_proj"]);
        assert_eq!(recipe.adapter.config.method, Method::Lora);
        let timed = format!("{MINIMAL}\n[training]\nmax_steps = 7\n");
        let epochs = ["training.epochs=2".to_owned()];
        let replaced = Recipe::parse(&timed, "recipe.toml", &epochs).unwrap();
        assert_eq!(replaced.training.max_steps, None);
        assert_eq!(replaced.training.epochs, Some(2.0));
        let numbered = Recipe::parse(MINIMAL, "recipe.toml", &["name=7".to_owned()]).unwrap();
        assert_eq!(numbered.name, "7");
    }

    #[test]
    fn lm_head_is_left_out_of_all_linear_and_of_nothing_else() {
        let exclude = |overrides: &[&str]| {
            let overrides: Vec<_> = overrides.iter().map(|s| (*s).to_owned()).collect();
            let recipe = Recipe::parse(MINIMAL, "recipe.toml", &overrides).unwrap();
            excluded(&recipe, true)
        };
        assert_eq!(exclude(&[]), ["lm_head"]);
        assert!(exclude(&["adapter.targets=[\"q_proj\", \"lm_head\"]"]).is_empty());
        assert!(exclude(&["adapter.targets=[\"all-linear\", \"lm_head\"]"]).is_empty());
        assert!(exclude(&["adapter.exclude=[]"]).is_empty());
        let recipe = Recipe::parse(MINIMAL, "recipe.toml", &[]).unwrap();
        assert!(excluded(&recipe, false).is_empty());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let text = format!("{MINIMAL}\n[training]\nlearnig_rate = 1.0\n");
        let message = error(&text, &[]);
        assert!(
            message.contains("learnig_rate") && message.contains("line"),
            "{message}"
        );
        let message = error(MINIMAL, &["training.learnig_rate=1"]);
        assert!(message.contains("learnig_rate"), "{message}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let both = format!("{MINIMAL}\n[training]\nmax_steps = 1\nepochs = 1\n");
        assert!(error(&both, &[]).contains("not both"));
        let overrides = ["training.max_steps=1", "training.epochs=1"];
        assert!(error(MINIMAL, &overrides).contains("not both"));
        let cases = [
            (["adapter.method=none", "adapter.rank=4"], "have no use"),
            (["adapter.method=lora", "adapter.rho=2.0"], "adapter.rho"),
            (
                ["adapter.method=eva", "adapter.gradient_batches=2"],
                "adapter.gradient_batches",
            ),
            (
                ["adapter.method=olora", "adapter.gradient_scale=0.5"],
                "adapter.gradient_scale",
            ),
            (
                ["adapter.method=lora-gradient", "adapter.gradient_scale=0"],
                "adapter.gradient_scale",
            ),
            (
                [
                    "adapter.method=olora-gradient",
                    "adapter.placement=residual",
                ],
                "placement",
            ),
            (
                ["adapter.method=none", "training.loraplus_ratio=16.0"],
                "loraplus_ratio",
            ),
            (["training.loraplus_ratio=0.5", "name=x"], "loraplus_ratio"),
            (
                ["adapter.method=milora", "adapter.form=native"],
                "PEFT does not have",
            ),
            (["adapter.iterations=4", "name=x"], "iterations"),
            (["adapter.method=lora-orthogonal", "adapter.rank=5"], "even"),
            (
                [
                    "adapter.modules_to_save=[\"lm_head\"]",
                    "model.dtype=bfloat16",
                ],
                "modules_to_save",
            ),
            (["training.epsilon=1e-50", "name=x"], "epsilon"),
            (
                [
                    "training.schedule=constant",
                    "training.min_learning_rate=1e-5",
                ],
                "min_learning_rate",
            ),
            (["training.optimizer=sgd", "training.beta2=0.9"], "beta2"),
            (["adapter.rank=0", "name=x"], "rank"),
            (
                ["adapter.method=lora", "adapter.placement=residual"],
                "placement",
            ),
            (["adapter.targets=[]", "name=x"], "empty"),
            (
                ["adapter.targets=[\"q_{proj\"]", "name=x"],
                "not a valid pattern",
            ),
            (["output.keep=best", "name=x"], "validation"),
            (["model.weights=random", "name=x"], "noise"),
            (["output.dtype=bfloat16", "name=x"], "output.dtype"),
            (
                ["training.pad_to_multiple_of=0", "name=x"],
                "pad_to_multiple_of",
            ),
            (
                ["adapter.method=none", "model.dtype=bfloat16"],
                "half precision",
            ),
            (["name=a/b", "seed=1"], "`name`"),
            (
                ["training.optimizer=sgd", "training.weight_decay=0.1"],
                "weight_decay",
            ),
        ];
        for (overrides, expected) in cases {
            let message = error(MINIMAL, &overrides);
            assert!(message.contains(expected), "{overrides:?}: {message}");
        }
    }

    /// Each: settings, the key and what was found, and what is allowed. The last
    /// are what TOML or the type of the key has no form for.
    const NUMBERS: &str = r#"training.batch_size=1000000000000 | `training.batch_size` is 1000000000000 | between 1 and 65536
        training.batch_size=0 | `training.batch_size` is 0 | between 1 and 65536
        training.accumulation=1000000000 | `training.accumulation` is 1000000000 | between 1 and 65536
        training.accumulation=0 | `training.accumulation` is 0 | between 1 and 65536
        training.max_steps=9000000000000000000 | `training.max_steps` is 9000 | and 1000000000
        training.max_steps=0 | `training.max_steps` is 0 | between 1 and
        training.epochs=1e300 | `training.epochs` is 1e300 | at most 100000.0
        training.epochs=nan | `training.epochs` is NaN | above 0
        training.epochs=-1 | `training.epochs` is -1.0 | above 0
        training.warmup_steps=1000000000001 | `training.warmup_steps` is | and 1000000000
        training.log_every=0 | `training.log_every` is 0 | between 1 and
        training.evaluate_every=1000000000001 | `training.evaluate_every` is | and 1000000000
        training.checkpoint_every=1000000000001 | `training.checkpoint_every` is | and 1000000000
        training.keep_checkpoints=0 | `training.keep_checkpoints` is 0 | between 1 and
        training.keep_checkpoints=1000000000001 | `training.keep_checkpoints` is | and 1000000000
        training.pad_to_multiple_of=1000000000 | `training.pad_to_multiple_of` is | and 65536
        training.learning_rate=1e300 | `training.learning_rate` is 1e300 | 32 bits
        training.learning_rate=1e-300 | `training.learning_rate` is 1e-300 | 32 bits
        training.learning_rate=nan | `training.learning_rate` is NaN | 32 bits
        training.learning_rate=inf | `training.learning_rate` is inf | 32 bits
        training.min_learning_rate=1.0 | `training.min_learning_rate` is 1.0 | `training.learning_rate`
        training.loraplus_ratio=1e300 | `training.loraplus_ratio` is 1e300 | finite in 32 bits
        training.weight_decay=1e300 | `training.weight_decay` is 1e300 | below 1
        training.weight_decay=-0.1 | `training.weight_decay` is -0.1 | 0 or more
        training.max_grad_norm=1e-300 | `training.max_grad_norm` is 1e-300 | 32 bits
        training.max_grad_norm=inf | `training.max_grad_norm` is inf | 32 bits
        training.epsilon=1e300 | `training.epsilon` is 1e300 | 32 bits
        training.beta1=1.0 | `training.beta1` is 1.0 | below 1
        training.beta2=0.99999999999 | `training.beta2` is 0.99999999999 | in 32 bits
        data.max_length=1 | `data.max_length` is 1 | between 2 and 16777216
        data.max_length=1000000000000 | `data.max_length` is 1000000000000 | between 2 and 16777216
        data.validation_samples=0 | `data.validation_samples` is 0 | between 1 and 4294967295
        data.validation_samples=10000000000 | `data.validation_samples` is | and 4294967295
        data.max_skipped=1.5 | `data.max_skipped` is 1.5 | between 0.0 and 1.0
        data.train="village.jsonl#0" | "village.jsonl#0" asks for the first 0 records | between 1
        data.train="village.jsonl#99999999999999999999" | asks for the first 9999 | 4294967295
        adapter.rank=1000000000 | `rank` is 1000000000 | between 1 and 65536
        adapter.rank_pattern={ q_proj = 1000000000 } | `rank` is 1000000000 | between 1 and 65536
        adapter.alpha=1e300 | `alpha` is 1e300 | 32 bits
        adapter.alpha=nan | `alpha` is NaN | 32 bits
        adapter.alpha_pattern={ q_proj = 1e-300 } | `alpha` is 1e-300 | 32 bits
        adapter.dropout=0.99999999999 | `dropout` is 0.99999999999 | in 32 bits
        adapter.iterations=1000000000 & adapter.method=pissa | `iterations` is 1000000000 | at most 1000
        adapter.rho=1e300 & adapter.method=eva | `adapter.rho` is 1e300 | between 1.0 and 1000.0
        samples.max_new_tokens=1000000000000 | `samples.max_new_tokens` is | between 0 and 1048576
        samples.max_new_tokens=0 & samples.prompts=["Where is Zora?"] | `samples.max_new_tokens` is 0 | between 1
        seed=-1 | invalid value: integer `-1` | u64
        training.batch_size=1e12 | invalid type: floating point `1000000000000 | usize
        training.max_steps=-1 | invalid value: integer `-1` | usize"#;

    #[test]
    fn numbers_that_no_one_means_are_refused_by_key_with_what_is_allowed() {
        for case in NUMBERS.lines() {
            let case = case.trim();
            let [settings, found, allowed] = case.split(" | ").collect::<Vec<_>>()[..] else {
                panic!("{case}");
            };
            let overrides: Vec<&str> = settings.split(" & ").collect();
            let message = error(MINIMAL, &overrides);
            assert!(
                message.contains(found) && message.contains(allowed),
                "{case}: {message}"
            );
        }
        let weighted = MINIMAL.replace("train = \"train.jsonl\"", "")
            + "\n[[data.sources]]\npath = \"a.jsonl\"\nweight = 1e300\n";
        let message = error(&weighted, &[]);
        assert!(
            message.contains("`data.sources.weight` is 1e300"),
            "{message}"
        );
        let mut recipe = Recipe::parse(MINIMAL, "recipe.toml", &[]).unwrap();
        recipe.seed = u64::MAX;
        assert!(recipe.validate("recipe.toml").is_err());
    }

    #[test]
    fn what_others_mean_is_still_taken() {
        for setting in [
            "training.batch_size=65536",
            "training.max_steps=1000000000",
            "training.checkpoint_every=0",
            "training.evaluate_every=0",
            "training.learning_rate=1e20",
            "training.max_grad_norm=0",
            "training.warmup_steps=0",
            "data.max_length=1048576",
            "data.train=\"village.jsonl#20\"",
            "data.train=\"village.jsonl#notes\"",
            "samples.max_new_tokens=0",
            "name=\"Zora and Jorun, 2nd\"",
            "output.directory=\"../runs\"",
        ] {
            Recipe::parse(MINIMAL, "recipe.toml", &[setting.to_owned()]).unwrap();
        }
    }

    #[test]
    fn names_that_are_no_names_of_directories_are_refused() {
        let long = format!("name=\"{}\"", "a".repeat(201));
        for setting in [
            "name=\"\"",
            "name=\" \"",
            "name=\".\"",
            "name=\"..\"",
            "name=\"../Oxmere\"",
            "name=\"a\\\\b\"",
            "name=\"first\\nsecond\"",
            "name=\"\\u001b[2J\"",
            "name=\"\\u009b2J\"",
            "name=\"\\u0000\"",
            &long,
        ] {
            let message = error(MINIMAL, &[setting]);
            assert!(message.contains("`name` is \""), "{setting}: {message}");
        }
        let message = error(MINIMAL, &["output.directory=\"runs\\nmore\""]);
        assert!(
            message.contains("`output.directory` is \"runs\\nmore\""),
            "{message}"
        );
    }
}
