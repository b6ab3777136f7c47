//! From what is typed to a recipe: a file, or a model and data.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use olora_devices::KernelOptions;
use olora_hub::HubError;
use olora_runs::{Recipe, TrainedRun};

use crate::{
    Usage,
    args::{RecipeArgs, RecipeFile, SetArgs, quoted},
    mistaken::adapter_in,
    models::{locate, locate_data},
    suggest::{Asked, name_for, named_in, suggest},
    terminal::say,
};

/// What is said to someone who gives nothing.
const BEGIN: &str = "nothing to train was given. One of
  olora train --model MODEL --data FILE   a model (directory, GGUF file or hub name) on your data
  olora init                              look at model, data and machine, and write a recipe to train by
  olora init --example                    write the quickstart: then `olora train quickstart.toml`
  olora train RECIPE                      a recipe that is there";

/// The options that set a key of the recipe, and the key.
type Options = Vec<(&'static str, String)>;

impl SetArgs {
    /// As of `--set`, the device and other options among them.
    ///
    /// # Errors
    ///
    /// A key that is set twice, once by `--set` and once by an option.
    pub(crate) fn settings(&self, mut options: Options) -> Result<Vec<String>> {
        if let Some(device) = &self.device {
            options.push(("--device", format!("device={}", quoted(device))));
        }
        let (given, _) = Recipe::of_overrides(&self.overrides)?;
        for (option, set) in &options {
            let key = set.split('=').next().unwrap_or_default();
            if given.contains_key(key) {
                return Err(Usage::new(&format!(
                    "{option} and --set both set `{key}`: give one of the two"
                )));
            }
        }
        let options = options.into_iter().map(|(_, set)| set);
        Ok(self.overrides.iter().cloned().chain(options).collect())
    }
}

impl RecipeArgs {
    /// Everything that is set, options for keys among it.
    fn settings(&self, from: Option<&Path>) -> Result<Vec<String>> {
        let mut options = self.keys.options();
        if let Some(output) = &self.output {
            let wrong = || {
                Usage::new("--output must be the run's own directory, such as runs/mine, and UTF-8")
            };
            let name = output
                .file_name()
                .and_then(OsStr::to_str)
                .ok_or_else(wrong)?;
            if output.exists() && !output.is_dir() {
                return Err(Usage::new(&format!(
                    "--output {} is a file: a run is a directory",
                    output.display()
                )));
            }
            options.push(("--output", format!("name={}", quoted(name))));
            let parent = output
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent
                .unwrap_or(Path::new("."))
                .to_str()
                .ok_or_else(wrong)?;
            options.push(("--output", format!("output.directory={}", quoted(parent))));
        }
        if let Some(from) = from {
            let from = quoted(&from.to_string_lossy());
            options.push(("--from", format!("adapter.from={from}")));
        }
        self.set.settings(options)
    }
}

/// The directory of the run that options alone name, and whether they name it
/// themselves rather than by the data.
fn run_directory(settings: &[String]) -> Result<Option<(PathBuf, bool)>> {
    let (given, _) = Recipe::of_overrides(settings)?;
    let text = |key: &str| given.get(key)?.as_str().map(str::to_owned);
    let named = text("name");
    let is_named = named.is_some();
    let data = || {
        named_in(given.get("data.train"))
            .first()
            .map(|data| name_for(data))
    };
    let directory = text("output.directory").unwrap_or_else(|| "runs".to_owned());
    let name = named.or_else(data);
    Ok(name.map(|name| (Path::new(&directory).join(name), is_named)))
}

/// The recipe of a command that takes a file.
pub(crate) fn recipe(args: &RecipeFile) -> Result<Recipe> {
    of_file(&args.path, &args.set.settings(Vec::new())?)
}

/// A recipe of a file, with everything that it names where it is.
fn of_file(path: &Path, settings: &[String]) -> Result<Recipe> {
    located(Recipe::load(path, settings)?).map_err(|error| {
        // Such a name is looked for beside the recipe first.
        if error.downcast_ref::<HubError>().is_none() {
            return error;
        }
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let beside = directory.map_or_else(String::new, |directory| {
            format!(", whose paths are relative to {}", directory.display())
        });
        error.context(format!("by {}{beside}", path.display()))
    })
}

/// The recipe of a command that takes a file, or a model and data; of a run that
/// is gone on with, its own.
pub(crate) fn recipe_or_options(
    args: &RecipeArgs,
    from: Option<&Path>,
    goes_on: bool,
    kernels: KernelOptions,
) -> Result<Recipe> {
    let settings = args.settings(from)?;
    if let Some(path) = &args.path {
        return of_file(path, &settings);
    }
    if goes_on && let Some((run, is_named)) = run_directory(&settings)? {
        let kept = run.join("recipe.toml");
        if kept.exists() {
            return located(Recipe::kept(&kept, &settings)?);
        }
        if is_named && args.keys.model.is_none() {
            return Err(Usage::new(&format!(
                "there is no run in {}: give a recipe, or --model and --data",
                run.display()
            )));
        }
    }
    let (given, _) = Recipe::of_overrides(&settings)?;
    match ["model.path", "data.train"].map(|key| given.contains_key(key)) {
        [false, false] => return Err(Usage::new(BEGIN)),
        [true, false] => {
            return Err(Usage::new(
                "--model needs --data, what to train it on; or give a recipe",
            ));
        }
        [false, true] => {
            return Err(Usage::new(
                "--data needs --model, what to train on it; or give a recipe",
            ));
        }
        [true, true] => {}
    }
    let asked = Asked {
        purpose: None,
        memory: None,
        overrides: &settings,
    };
    let suggestion = suggest(&asked, kernels)?;
    let text = suggestion.plain();
    say(
        "no recipe was given: by model, data and machine it is this (`olora init` writes it with reasons)",
    );
    for line in text.lines().filter(|line| !line.is_empty()) {
        say(&format!("  {line}"));
    }
    located(Recipe::parse(&text, "what was given", &[])?)
}

/// A recipe with everything that it names where it is.
fn located(mut recipe: Recipe) -> Result<Recipe> {
    if let Some(from) = &recipe.adapter.from
        && TrainedRun::at(from)?.is_none()
    {
        // Says what it is, if it is no adapter.
        adapter_in(from)?;
    }
    let base = locate(&recipe.model.path.to_string_lossy())?;
    recipe.model.path = base.path;
    recipe.model.base_name = recipe.model.base_name.or(base.name);
    locate_data(&mut recipe)?;
    Ok(recipe)
}
