//! What the program tells of itself: its recipe's schema, completions, man pages,
//! and the references of the documentation.

#![allow(
    clippy::format_push_string,
    reason = "writing to text returns an error that there is not"
)]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, Command, CommandFactory};
use olora_runs::recipe::{schema as recipe_schema, tables};

use crate::{
    args::{Cli, CompletionsArgs, ManArgs, ReferenceArgs},
    terminal::out,
};

const NAME: &str = "olora";

pub(crate) fn schema() -> Result<ExitCode> {
    writeln!(out(), "{:#}", recipe_schema())?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut text);
    out().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(args: &ManArgs) -> Result<ExitCode> {
    let command = built();
    let Some(directory) = &args.directory else {
        out().write_all(&page(&command)?)?;
        return Ok(ExitCode::SUCCESS);
    };
    fs::create_dir_all(directory)
        .with_context(|| format!("{} could not be made", directory.display()))?;
    let shown: Vec<_> = command
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .cloned()
        .collect();
    let mut n_pages = 0;
    for command in [command].into_iter().chain(shown) {
        let name = command.get_bin_name().unwrap_or(NAME).replace(' ', "-");
        let path = directory.join(format!("{name}.1"));
        fs::write(&path, page(&command)?)
            .with_context(|| format!("{} could not be written", path.display()))?;
        n_pages += 1;
    }
    writeln!(out(), "wrote {n_pages} pages into {}", directory.display())?;
    Ok(ExitCode::SUCCESS)
}

/// A man page.
fn page(command: &Command) -> Result<Vec<u8>> {
    let name = command.get_bin_name().unwrap_or(NAME).replace(' ', "-");
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name.to_uppercase())
        .render(&mut page)?;
    Ok(page)
}

/// The command line with everything that follows from it.
fn built() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// The files that are made, with what they hold.
fn made(directory: &Path) -> Result<Vec<(PathBuf, String)>> {
    let recipe = directory.join("recipe.md");
    let text = fs::read_to_string(&recipe)
        .with_context(|| format!("{} could not be read", recipe.display()))?;
    Ok(vec![
        (
            directory.join("recipe.schema.json"),
            format!("{:#}\n", recipe_schema()),
        ),
        (recipe, with_tables(&text)?),
        (directory.join("commands.md"), commands()),
    ])
}

pub(crate) fn reference(args: &ReferenceArgs) -> Result<ExitCode> {
    let mut stale = Vec::new();
    for (path, text) in made(&args.directory)? {
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            continue;
        }
        if !args.check {
            fs::write(&path, text)
                .with_context(|| format!("{} could not be written", path.display()))?;
        }
        stale.push(path.display().to_string());
    }
    match (stale.as_slice(), args.check) {
        ([], _) => writeln!(out(), "the references are up to date")?,
        (stale, false) => writeln!(out(), "wrote {}", stale.join(", "))?,
        (stale, true) => bail!(
            "{} is not what the program says of itself: run `olora reference {}`",
            stale.join(", "),
            args.directory.display()
        ),
    }
    Ok(ExitCode::SUCCESS)
}

const BEGIN: &str = "<!-- keys of ";
const END: &str = "<!-- end of keys -->";

/// The recipe's documentation with its tables made anew, each between its marks.
fn with_tables(text: &str) -> Result<String> {
    let mut tables = tables();
    let mut made = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        made.push_str(line);
        made.push('\n');
        let Some(heading) = line.strip_prefix(BEGIN) else {
            continue;
        };
        let heading = heading.trim_end_matches(" -->");
        let at = tables.iter().position(|(name, _)| name == heading);
        let at = at.with_context(|| format!("there are no keys of {heading}"))?;
        made.push_str(&tables.remove(at).1);
        if !lines.any(|line| line == END) {
            bail!("the keys of {heading} have no end: {END}");
        }
        made.push_str(END);
        made.push('\n');
    }
    if let Some((heading, _)) = tables.first() {
        bail!("the documentation has no place for the keys of {heading}: {BEGIN}{heading} -->");
    }
    Ok(made)
}

/// Every command with its options, as Markdown.
fn commands() -> String {
    let mut text = "# Commands\n\n\
        Made from the program by `olora reference docs`. `olora COMMAND --help` says the same, `olora man` as a man page, and `olora completions SHELL` completes it.\n"
        .to_owned();
    let command = built();
    let mut add = |command: &Command, heading: String| {
        text.push_str(&format!("\n## {heading}\n\n"));
        if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
            text.push_str(&format!("{}\n\n", one_line(&about.to_string())));
        }
        let usage = command.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ");
        text.push_str(&format!("`{}`\n", one_line(usage)));
        let mut shown: Vec<&Arg> = command
            .get_arguments()
            .filter(|arg| !arg.is_hide_set() && !is_of_all(arg) && !is_of_kernels(arg))
            .collect();
        shown.sort_by_key(|arg| arg.get_index().is_none());
        if shown.is_empty() {
            return;
        }
        text.push_str("\n| | default | |\n|---|---|---|\n");
        for arg in shown {
            text.push_str(&row(arg));
        }
    };
    let shown = command.get_subcommands().filter(|c| !c.is_hide_set());
    for command in shown.filter(|c| c.get_name() != "help") {
        add(command, format!("`olora {}`", command.get_name()));
    }
    text.push_str("\n## With every command\n\n| | default | |\n|---|---|---|\n");
    for arg in command.get_arguments().filter(|arg| is_of_all(arg)) {
        text.push_str(&row(arg));
    }
    text.push_str("\n## On a GPU\n\nOf each command that computes on a device, in a build with a GPU's backend.\n\n| | default | |\n|---|---|---|\n");
    let train = command.find_subcommand("train").into_iter();
    for arg in train
        .flat_map(Command::get_arguments)
        .filter(|arg| is_of_kernels(arg))
    {
        text.push_str(&row(arg));
    }
    text.push_str(&format!(
        "\n## Exit codes\n\n<!-- not run: the end of what `olora --help` says -->\n```text\n{}\n```\n",
        crate::args::EXIT_CODES
    ));
    text
}

fn is_of_all(arg: &Arg) -> bool {
    ["quiet", "verbose", "color", "help", "version"].contains(&arg.get_id().as_str())
}

fn is_of_kernels(arg: &Arg) -> bool {
    ["no_fusion", "no_autotune", "autotune"].contains(&arg.get_id().as_str())
}

fn row(arg: &Arg) -> String {
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let names = arg.get_value_names().unwrap_or_default();
    let value = names.first().map_or("VALUE", |name| name.as_str());
    let mut name = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (None, Some(long)) => format!("--{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, None) => value.to_owned(),
    };
    if takes && arg.get_long().is_some() {
        name.push_str(&format!(" {value}"));
    }
    let defaults = arg.get_default_values().iter();
    let defaults: Vec<_> = defaults.map(|value| value.to_string_lossy()).collect();
    let default = if defaults.is_empty() || !takes || arg.is_hide_default_value_set() {
        String::new()
    } else {
        format!("`{}`", defaults.join(","))
    };
    let help = arg.get_long_help().or_else(|| arg.get_help());
    let mut help = help.map(ToString::to_string).unwrap_or_default();
    let values: Vec<_> = arg.get_possible_values();
    let values: Vec<_> = values
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|v| format!("`{}`", v.get_name()))
        .collect();
    if takes && !values.is_empty() && values.len() <= 16 {
        help.push_str(&format!(". One of {}", values.join(", ")));
    }
    let cells = [format!("`{name}`"), default, one_line(&help)];
    let cells = cells.map(|cell| cell.replace('|', "\\|"));
    format!("| {} |\n", cells.join(" | "))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
