//! `olora init`: a recipe for what there is, or the quickstart.

use std::{
    fs,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use dialoguer::Input;
use olora_data::ENDINGS;
use olora_devices::KernelOptions;
use olora_files::{size, write_atomically};
use olora_recipes::QUICKSTART;
use olora_runs::Recipe;

use crate::{
    Usage,
    args::{InitArgs, Purpose, quoted},
    progress::quoted as shell_quoted,
    suggest::{Asked, name_for, named_in, suggest},
    terminal::{out, say},
};

/// What is taken where no model is given and none lies here.
const SMALL: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

pub(crate) fn init(args: &InitArgs, kernels: KernelOptions) -> Result<ExitCode> {
    if args.example {
        return example();
    }
    if let Some(path) = &args.path {
        refuse_existing(path)?;
        if path.to_string_lossy().ends_with(['/', '\\']) {
            return Err(Usage::new(
                "the recipe to write must be a file, such as mine.toml",
            ));
        }
    }
    let asks = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let mut settings = args.set.settings(args.keys.options())?;
    let (given, _) = Recipe::of_overrides(&settings)?;
    let here = Here::look()?;
    if !given.contains_key("model.path") {
        settings.push(format!("model.path={}", quoted(&here.model(asks)?)));
    }
    let data = match named_in(given.get("data.train")).first() {
        Some(data) => data.clone(),
        None => {
            let data = here.data(asks)?;
            settings.push(format!("data.train={}", quoted(&data)));
            data
        }
    };
    let path = args.path.clone();
    let path = path.unwrap_or_else(|| PathBuf::from(format!("{}.toml", name_for(&data))));
    refuse_existing(&path)?;
    let purpose = match args.purpose {
        None if asks => ask_purpose()?,
        purpose => purpose,
    };
    let asked = Asked {
        purpose,
        memory: args.memory,
        overrides: &settings,
    };
    let suggestion = suggest(&asked, kernels)?;
    say(&suggestion.report);
    let forecast = &suggestion.forecast;
    say(&format!(
        "{} steps, {} tokens, {:.2} M of {:.2} M parameters train; predicted to take {} of memory",
        forecast.steps,
        forecast.tokens,
        forecast.n_trained_params as f64 / 1e6,
        forecast.n_params as f64 / 1e6,
        size(forecast.peak_memory)
    ));
    let directory = path.parent().unwrap_or(Path::new(""));
    let text = suggestion.for_directory(directory).text();
    let shown = path.display();
    let typed = shell_quoted(&path.to_string_lossy());
    if asks && !is_yes(&format!("Write {shown}? (y/n)"))? {
        writeln!(out(), "{text}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let head = format!(
        "# Written by `olora init`. Train by it, or look first what the run will take:\n#\n\
         #   olora train {typed}\n#   olora plan {typed}\n#\n\
         # Paths are relative to this file. All keys: docs/recipe.md, or `olora schema` for editors.\n"
    );
    if !directory.as_os_str().is_empty() {
        fs::create_dir_all(directory)
            .with_context(|| format!("{} could not be made", directory.display()))?;
    }
    write_atomically(&path, |file| write!(file, "{head}{text}"))
        .with_context(|| format!("{shown} could not be written"))?;
    writeln!(out(), "wrote {shown}; next: olora train {typed}")?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the quickstart beside the working directory's files.
fn example() -> Result<ExitCode> {
    for file in QUICKSTART {
        refuse_existing(Path::new(file.path))?;
    }
    // The recipe last: what is there without it says nothing of being whole.
    for file in QUICKSTART.iter().rev() {
        let path = Path::new(file.path);
        if let Some(directory) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            fs::create_dir_all(directory)
                .with_context(|| format!("{} could not be made", directory.display()))?;
        }
        write_atomically(path, |to| to.write_all(file.bytes))
            .with_context(|| format!("{} could not be written", path.display()))?;
    }
    writeln!(
        out(),
        "wrote quickstart.toml, and quickstart/ with its model and data; next: olora train quickstart.toml"
    )?;
    Ok(ExitCode::SUCCESS)
}

fn refuse_existing(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("looking for {}", path.display())),
        Ok(_) => bail!(
            "{} is there already, and is not overwritten: remove it, or write elsewhere",
            path.display()
        ),
    }
}

/// What lies in the working directory.
struct Here {
    models: Vec<String>,
    data: Vec<String>,
}

impl Here {
    fn look() -> Result<Self> {
        let mut here = Self {
            models: Vec::new(),
            data: Vec::new(),
        };
        let entries = fs::read_dir(".").context("reading the working directory")?;
        for entry in entries {
            let path = entry.context("reading the working directory")?.path();
            let path = path.strip_prefix(".").unwrap_or(&path).to_owned();
            let Some(name) = path.to_str().map(str::to_owned) else {
                continue;
            };
            let lower = name.to_lowercase();
            let ending = Path::new(&lower).extension();
            if ending.is_some_and(|ending| ending == "gguf")
                || (path.is_dir() && path.join(MODEL_CONFIG).is_file())
            {
                here.models.push(name);
            } else if path.is_file() && ends_as_data(&lower) {
                here.data.push(name);
            }
        }
        here.models.sort();
        here.data.sort();
        Ok(here)
    }

    fn model(&self, asks: bool) -> Result<String> {
        let found = match self.models.as_slice() {
            [one] => one.as_str(),
            _ => SMALL,
        };
        if asks {
            let prompt = "Model: a checkpoint directory, a GGUF file or a name on the hub";
            return ask(prompt, Some(found));
        }
        if self.models.len() > 1 {
            return Err(Usage::new(&format!(
                "there are several models here ({}): choose one with --model",
                self.models.join(", ")
            )));
        }
        say(&format!("model: {found} (another with --model)"));
        Ok(found.to_owned())
    }

    fn data(&self, asks: bool) -> Result<String> {
        let found = match self.data.as_slice() {
            [one] => Some(one.as_str()),
            _ => None,
        };
        if asks {
            return ask(
                "Data: a file, a directory, a pattern or a data set of the hub",
                found,
            );
        }
        match (found, self.data.as_slice()) {
            (Some(found), _) => {
                say(&format!("data: {found} (other with --data)"));
                Ok(found.to_owned())
            }
            (None, []) => Err(Usage::new("no data file lies here: give one with --data")),
            (None, all) => Err(Usage::new(&format!(
                "there are several data files here ({}): choose with --data, which may be repeated",
                all.join(", ")
            ))),
        }
    }
}

/// What makes a directory a checkpoint.
const MODEL_CONFIG: &str = "config.json";
/// Whether a name ends as data does, with `.gz` or `.zst` after it or without. Other
/// things end in `.json` and `.md` too, and are taken for data only where they are
/// named.
fn ends_as_data(name: &str) -> bool {
    let plain = [".gz", ".zst"]
        .iter()
        .find_map(|end| name.strip_suffix(end));
    let ending = plain
        .unwrap_or(name)
        .rsplit_once('.')
        .map(|(_, ending)| ending);
    ending.is_some_and(|ending| ENDINGS.contains(&ending) && !["json", "md"].contains(&ending))
}

/// What is to be learned; nothing is what the data is laid out for.
fn ask_purpose() -> Result<Option<Purpose>> {
    const BY_DATA: &str = "data";
    let names: Vec<_> = Purpose::value_variants()
        .iter()
        .filter_map(ValueEnum::to_possible_value)
        .map(|value| value.get_name().to_owned())
        .collect();
    let prompt = format!(
        "To be learned: {}, or what the {BY_DATA} is laid out for",
        names.join(", ")
    );
    let answer = ask(&prompt, Some(BY_DATA))?;
    if answer == BY_DATA {
        return Ok(None);
    }
    let purpose = Purpose::from_str(&answer, true);
    purpose.map(Some).map_err(|_| {
        Usage::new(&format!(
            "there is no purpose {answer:?}: {}, or {BY_DATA}",
            names.join(", ")
        ))
    })
}

/// Whether the answer is yes, as it is by itself.
fn is_yes(prompt: &str) -> Result<bool> {
    // Of its questions, this one hides no cursor, which Ctrl-C would leave hidden.
    let answer = ask(prompt, Some("y"))?;
    Ok(answer.to_lowercase().starts_with('y'))
}

fn ask(prompt: &str, default: Option<&str>) -> Result<String> {
    let mut input = Input::<String>::new().with_prompt(prompt);
    if let Some(default) = default {
        input = input.default(default.to_owned());
    }
    let answer = input.interact_text().context("reading the answer")?;
    if answer.trim().is_empty() {
        bail!("nothing was given");
    }
    Ok(answer.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_known_by_its_ending() {
        for name in ["a.jsonl", "a.csv.gz", "a.tsv.zst", "a.parquet", "a.b.txt"] {
            assert!(ends_as_data(name), "{name}");
        }
        for name in ["package.json", "readme.md", "jsonl", "a.gguf", "a.gz"] {
            assert!(!ends_as_data(name), "{name}");
        }
    }
}
