//! Reading a recipe: overrides, and everything that can be refused before a
//! model is in memory.

use std::{
    fs,
    path::{Path, PathBuf},
};

use olora_adapter::Method;
use olora_training::Decay;

use super::{
    AdapterSection, Dtype, Keep, OptimizerKind, Recipe, Trained, TrainingSection, Weights,
};
use crate::RunError;

impl Recipe {
    /// Reads a recipe and applies `key=value` overrides to it.
    ///
    /// A key is dotted (`training.learning_rate`), a value is TOML; one that
    /// is not valid TOML is taken as a string, so `name=second` works. Setting
    /// `training.max_steps` takes the place of `training.epochs`, and the
    /// other way around.
    ///
    /// # Errors
    ///
    /// [`RunError::Recipe`] names the file or override, the key, and what
    /// was expected.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, RunError> {
        let text =
            fs::read_to_string(path).map_err(|source| RunError::io("reading", path, source))?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// As [`load`](Self::load), from text; `origin` is what errors call it.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self, RunError> {
        let refuse = |recipe: &str, reason: String| RunError::Recipe {
            recipe: recipe.to_owned(),
            reason,
        };
        // Deserialised from the text itself first, for errors with line numbers.
        let mut table: toml::Table =
            toml::from_str(text).map_err(|error| refuse(origin, error.to_string()))?;
        if overrides.is_empty() {
            let recipe: Self =
                toml::from_str(text).map_err(|error| refuse(origin, error.to_string()))?;
            recipe.validate(origin)?;
            return Ok(recipe);
        }
        let sets = |key: &str| {
            overrides
                .iter()
                .any(|setting| setting.split('=').next().map(str::trim) == Some(key))
        };
        if sets("training.max_steps") && sets("training.epochs") {
            let reason = "give training.max_steps or training.epochs, not both".to_owned();
            return Err(refuse("--set", reason));
        }
        for setting in overrides {
            let origin = format!("--set {setting}");
            let (key, value) = setting.split_once('=').ok_or_else(|| {
                refuse(
                    &origin,
                    "expected key=value, such as training.max_steps=50".to_owned(),
                )
            })?;
            set(&mut table, key.trim(), value.trim()).map_err(|reason| refuse(&origin, reason))?;
        }
        let origin = format!(
            "{origin} with {}",
            overrides
                .iter()
                .map(|s| format!("--set {s}"))
                .collect::<Vec<_>>()
                .join(" ")
        );
        let recipe: Self = table
            .try_into()
            .map_err(|error: toml::de::Error| refuse(&origin, error.to_string()))?;
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

    fn validate(&self, origin: &str) -> Result<(), RunError> {
        let mut problems = self.training.problems();
        let mut check = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        check(
            !self.name.is_empty()
                && !self.name.contains(['/', '\\'])
                && self.name != "."
                && self.name != "..",
            "`name` must be a directory name",
        );
        check(
            self.data.train.is_empty() != self.data.sources.is_empty(),
            "give `data.train` or `[[data.sources]]`, one of the two",
        );
        check(
            (0.0..=1.0).contains(&self.data.max_skipped),
            "`data.max_skipped` must be between 0 and 1",
        );
        check(
            self.data.max_length >= 2,
            "`data.max_length` must be at least 2",
        );
        check(
            self.data.validation.is_none() || self.data.validation_samples.is_none(),
            "give `data.validation` or `data.validation_samples`, not both",
        );
        check(
            self.data.split_seed.is_none() || self.data.validation_samples.is_some(),
            "`data.split_seed` has no use without `data.validation_samples`: remove it",
        );
        let has_validation =
            self.data.validation.is_some() || self.data.validation_samples.is_some();
        check(
            self.output.keep == Keep::Last || has_validation,
            "`output.keep = \"best\"` needs validation data: set `data.validation` or `data.validation_samples`",
        );
        let full = self.adapter.everything;
        check(
            full || self.output.dtype.is_none(),
            "`output.dtype` has no use for an adapter, which is saved in float32: remove it",
        );
        check(
            !full || self.adapter == AdapterSection::everything(),
            "the other keys of `[adapter]` have no use with `method = \"none\"`: remove them",
        );
        check(
            full || self.model.weights != Weights::Random,
            "`model.weights = \"random\"` with an adapter would train an adapter on noise: \
             set `adapter.method = \"none\"`, or `weights = \"timing\"` if only speed is of interest",
        );
        check(
            !full || self.model.dtype.is_none_or(|dtype| dtype == Dtype::F32),
            "`adapter.method = \"none\"` needs `model.dtype = \"float32\"`: \
             small updates vanish in half precision",
        );
        check(
            self.adapter.rho.is_none() || (!full && self.adapter.config.method == Method::Eva),
            "`adapter.rho` has no use but with `method = \"eva\"`: remove it",
        );
        check(
            self.adapter
                .rho
                .is_none_or(|rho| rho.is_finite() && rho >= 1.0),
            "`adapter.rho` must be at least 1",
        );
        check(
            self.adapter.config.modules_to_save.is_empty()
                || self.model.dtype.is_none_or(|dtype| dtype == Dtype::F32),
            "`adapter.modules_to_save` needs `model.dtype = \"float32\"`: \
             small updates vanish in half precision",
        );
        check(
            self.training.loraplus_ratio.is_none() || !full,
            "`training.loraplus_ratio` has no use with `adapter.method = \"none\"`: remove it",
        );
        if let Trained::Adapter(config) = self.adapter.trained(true) {
            let checked = config
                .validate()
                .and_then(|()| self.adapter.form.check(&config));
            if let Err(error) = checked {
                problems.push(format!("[adapter]: {error}"));
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(RunError::Recipe {
            recipe: origin.to_owned(),
            reason: problems.join("; "),
        })
    }
}

impl TrainingSection {
    /// Everything that cannot be meant.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        check(
            self.max_steps.is_none() || self.epochs.is_none(),
            "give `training.max_steps` or `training.epochs`, not both",
        );
        check(
            self.max_steps != Some(0),
            "`training.max_steps` must be at least 1",
        );
        check(
            self.epochs
                .is_none_or(|epochs| epochs.is_finite() && epochs > 0.0),
            "`training.epochs` must be above 0",
        );
        check(
            self.batch_size > 0,
            "`training.batch_size` must be at least 1",
        );
        check(
            self.accumulation > 0,
            "`training.accumulation` must be at least 1",
        );
        check(
            self.log_every > 0,
            "`training.log_every` must be at least 1",
        );
        check(
            self.keep_checkpoints > 0,
            "`training.keep_checkpoints` must be at least 1",
        );
        check(
            self.learning_rate.is_finite() && self.learning_rate > 0.0,
            "`training.learning_rate` must be above 0",
        );
        check(
            self.loraplus_ratio
                .is_none_or(|ratio| ratio.is_finite() && ratio >= 1.0),
            "`training.loraplus_ratio` must be at least 1",
        );
        check(
            (0.0..=self.learning_rate).contains(&self.min_learning_rate),
            "`training.min_learning_rate` must be between 0 and `training.learning_rate`",
        );
        check(
            self.weight_decay.is_finite() && self.weight_decay >= 0.0,
            "`training.weight_decay` must not be negative",
        );
        check(
            self.max_grad_norm.is_finite() && self.max_grad_norm >= 0.0,
            "`training.max_grad_norm` must not be negative",
        );
        check(
            self.epsilon.is_finite() && self.epsilon as f32 > 0.0,
            "`training.epsilon` must be above 0, in 32-bit too",
        );
        check(
            self.schedule != Decay::Constant || self.min_learning_rate == 0.0,
            "`training.min_learning_rate` has no use with `schedule = \"constant\"`: remove it",
        );
        check(
            (0.0..1.0).contains(&self.beta1) && (0.0..1.0).contains(&self.beta2),
            "`training.beta1` and `training.beta2` must be at least 0 and below 1",
        );
        check(
            self.pad_to_multiple_of != Some(0),
            "`training.pad_to_multiple_of` must be at least 1",
        );
        let defaults = TrainingSection::default();
        let adam = |t: &TrainingSection| [t.weight_decay, t.beta1, t.beta2, t.epsilon];
        check(
            self.optimizer == OptimizerKind::Adamw || adam(self) == adam(&defaults),
            "`training.weight_decay`, `beta1`, `beta2` and `epsilon` have no use with `optimizer = \"sgd\"`: remove them",
        );
        problems
    }
}

/// Sets a dotted key, making tables on the way.
fn set(table: &mut toml::Table, key: &str, value: &str) -> Result<(), String> {
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut names: Vec<&str> = key.split('.').collect();
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
    // Where the recipe has a string, `name=7` means "7".
    let expects_text = inner.get(last).is_some_and(toml::Value::is_str) && !parsed.is_str();
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
}
