//! From what is typed to a recipe: a file, or a model and data.

use std::path::{Path, PathBuf};

use anyhow::Result;
use olora_devices::KernelOptions;
use olora_hub::HubError;
use olora_runs::{Recipe, TrainedRun};

use crate::{
    Usage,
    args::{RecipeArgs, RecipeFile, SetArgs, quoted},
    mistaken::adapter_in,
    models::{locate, locate_data},
    suggest::{Asked, name_for, suggest},
    terminal::say,
};

/// What is said to someone who gives nothing.
const BEGIN: &str = "nothing to train was given. One of
  olora train --model MODEL --data FILE   a model (directory, GGUF file or hub name) on your data
  olora init                              look at model, data and machine, and write a recipe to train by
  olora init --example                    write the quickstart: then `olora train quickstart.toml`
  olora train RECIPE                      a recipe that is there";

impl SetArgs {
    /// As of `--set`, the device among them.
    pub(crate) fn settings(&self) -> Vec<String> {
        let device = self.device.as_deref();
        let device = device.map(|device| format!("device={}", quoted(device)));
        self.overrides.iter().cloned().chain(device).collect()
    }
}

impl RecipeArgs {
    /// Everything that is set, options for keys among it.
    fn settings(&self, from: Option<&Path>) -> Result<Vec<String>> {
        let mut all = self.set.settings();
        all.extend(self.keys.settings());
        if let Some(output) = &self.output {
            let name = output.file_name().ok_or_else(|| {
                Usage::new("--output must be the run's own directory, such as runs/mine")
            })?;
            all.push(format!("name={}", quoted(&name.to_string_lossy())));
            let parent = output
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            all.push(format!(
                "output.directory={}",
                quoted(&parent.to_string_lossy())
            ));
        }
        if let Some(from) = from {
            all.push(format!("adapter.from={}", quoted(&from.to_string_lossy())));
        }
        Ok(all)
    }

    /// The directory of the run that the options alone name.
    fn run_directory(&self) -> Option<PathBuf> {
        if self.output.is_some() {
            return self.output.clone();
        }
        let of = |key: &str| {
            let mut sets = self.set.overrides.iter().rev();
            sets.find_map(|set| set.strip_prefix(key)?.strip_prefix('='))
        };
        let name = of("name").map(str::to_owned);
        let name = name.or_else(|| self.keys.data.first().map(|data| name_for(data)))?;
        Some(Path::new(of("output.directory").unwrap_or("runs")).join(name))
    }
}

/// The recipe of a command that takes a file.
pub(crate) fn recipe(args: &RecipeFile) -> Result<Recipe> {
    of_file(&args.path, &args.set.settings())
}

/// A recipe of a file, with everything that it names where it is.
fn of_file(path: &Path, settings: &[String]) -> Result<Recipe> {
    let recipe = Recipe::load(path, settings)?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    located(recipe).map_err(|error| match directory {
        // Such a name is looked for beside the recipe first.
        Some(directory) if error.downcast_ref::<HubError>().is_some() => error.context(format!(
            "what {} names was looked for in its directory, {}, and then on the hub",
            path.display(),
            directory.display()
        )),
        _ => error,
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
    if goes_on
        && let Some(kept) = args.run_directory().map(|run| run.join("recipe.toml"))
        && kept.exists()
    {
        return of_file(&kept, &settings);
    }
    let keys = &args.keys;
    let (model, data) = match (&keys.model, keys.data.as_slice()) {
        (None, []) => return Err(Usage::new(BEGIN)),
        (Some(_), []) => {
            return Err(Usage::new(
                "--model needs --data, what to train it on; or give a recipe",
            ));
        }
        (None, _) => {
            return Err(Usage::new(
                "--data needs --model, what to train on it; or give a recipe",
            ));
        }
        (Some(model), data) => (model, data),
    };
    let asked = Asked {
        model,
        data,
        name: name_for(data.first().map_or("", String::as_str)),
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
    located(Recipe::parse(&text, "the options", &[])?)
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
