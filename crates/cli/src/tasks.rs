//! `olora evaluate --tasks`.

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use olora_devices::KernelOptions;
use olora_files::write_atomically;
use olora_tasks::{
    self as tasks, DEFINITION, Score, TaskName, TaskOptions, TaskProgress, TaskResult,
};
use serde_json::{Value, json};

use crate::{
    Usage,
    args::{EvaluateArgs, TaskArgs},
    commands::{Loaded, Opening},
    devices, parallel,
    terminal::{self, draws_bars, emit, out, say},
};

/// The file of results in a directory.
const RESULTS: &str = "results.json";

pub(crate) fn evaluate(args: &EvaluateArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let of_tasks = &args.of_tasks;
    check(of_tasks, args.max_length)?;
    let output = of_tasks.output.as_deref().map(Output::new).transpose()?;
    if let Some(output) = &output {
        output.check(&of_tasks.tasks)?;
    }
    let directory = of_tasks.task_data.as_deref().unwrap_or(Path::new("."));
    // What cannot be read is told before a model is loaded.
    let tasks = tasks::load(&of_tasks.tasks, directory, of_tasks.limit)?;
    let opening = Opening::new(&args.model, kernels)?;
    let limit = opening.config.longest_sequence();
    if let Some(length) = args.max_length.filter(|length| *length > limit) {
        bail!(
            "--max-length is {length}, but the model was made for {limit} positions: leave it out to read as \
             many, longer inputs being cut on the left"
        );
    }
    let loaded = opening.load()?;
    let options = options(args, &loaded);
    let mut bar = Bar::default();
    let advice = "Lower --batch-tokens, or hold the weights in half precision (--dtype)";
    let results = devices::guarded(&loaded.details, advice, || {
        Ok(tasks::score_together(
            &*parallel::ranks().0,
            &loaded.llama,
            &loaded.tokenizer,
            &tasks,
            &options,
            &mut |progress| bar.on(progress),
        )?)
    })?;
    let summary = json!({
        "definition": DEFINITION,
        "model": loaded.base,
        "adapter": args.model.adapter,
        "device": loaded.details.device,
        "dtype": loaded.dtype.name(),
        "max_length": options.max_length,
        "limit": of_tasks.limit,
        "chat": options.chat,
        "tasks": results,
    });
    if let Some(output) = output.as_ref().filter(|_| !parallel::is_follower()) {
        output.write(&summary, &results)?;
    }
    let mut out = out();
    if args.json {
        writeln!(out, "{summary}")?;
    } else {
        write!(out, "{}", table(&results))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses what would have no effect, and what cannot be.
fn check(args: &TaskArgs, max_length: Option<usize>) -> Result<()> {
    if let (Some(answer), Some(whole)) = (args.max_new_tokens, max_length)
        && answer >= whole
    {
        return Err(Usage::new(&format!(
            "--max-new-tokens is {answer}, which leaves no room for the question within --max-length {whole}"
        )));
    }
    let distinct: BTreeSet<&TaskName> = args.tasks.iter().collect();
    if distinct.len() < args.tasks.len() {
        return Err(Usage::new("--tasks names a task twice"));
    }
    if let (true, Some(task)) = (args.chat, args.tasks.iter().find(|task| !task.generates())) {
        return Err(Usage::new(&format!(
            "--chat is not supported for {task}, which is multiple choice: give it with gsm8k alone"
        )));
    }
    if args.max_new_tokens.is_some() && !args.tasks.iter().any(|task| task.generates()) {
        return Err(Usage::new(
            "--max-new-tokens has no use: none of these tasks is answered by generating",
        ));
    }
    if args.no_shared_prefix && args.tasks.iter().all(|task| task.generates()) {
        return Err(Usage::new(
            "--no-shared-prefix has no use: gsm8k has no choices that could share a prefix",
        ));
    }
    Ok(())
}

fn options(args: &EvaluateArgs, loaded: &Loaded) -> TaskOptions {
    let usual = TaskOptions::new(
        &loaded.config,
        &loaded.tokenizer,
        loaded.details.accelerator,
    );
    let of_tasks = &args.of_tasks;
    TaskOptions {
        max_length: args.max_length.unwrap_or(usual.max_length),
        batch_tokens: of_tasks.batch_tokens.unwrap_or(usual.batch_tokens),
        share_prefix: !of_tasks.no_shared_prefix,
        max_new_tokens: of_tasks.max_new_tokens.unwrap_or(usual.max_new_tokens),
        chat: of_tasks.chat,
        ..usual
    }
}

/// Where results go.
struct Output {
    /// The file of all results.
    results: PathBuf,
    /// The directory of each task's items, if they are written.
    items: Option<PathBuf>,
}

impl Output {
    fn new(path: &Path) -> Result<Self> {
        let is_file = path.extension().is_some_and(|end| end == "json");
        if !is_file && path.is_file() {
            bail!(
                "{} is a file: give a directory, or a name that ends in .json",
                path.display()
            );
        }
        Ok(Self {
            results: if is_file {
                path.to_owned()
            } else {
                path.join(RESULTS)
            },
            items: (!is_file).then(|| path.to_owned()),
        })
    }

    /// Refuses, before hours are spent, to write over what is there.
    fn check(&self, tasks: &[TaskName]) -> Result<()> {
        let items = self
            .items
            .as_deref()
            .map(|items| tasks::files_of(items, tasks));
        let mut files = items.unwrap_or_default();
        files.push(self.results.clone());
        match files.iter().find(|file| file.exists()) {
            Some(file) => bail!(
                "{} exists already: give another --output, or remove it",
                file.display()
            ),
            None => Ok(()),
        }
    }

    fn write(&self, summary: &Value, results: &[TaskResult]) -> Result<()> {
        if let Some(items) = &self.items {
            tasks::write_items(items, results)?;
        }
        write_atomically(&self.results, |file| writeln!(file, "{summary:#}"))
            .with_context(|| format!("writing {}", self.results.display()))?;
        say(&format!("results: {}", self.results.display()));
        Ok(())
    }
}

/// A line for each task: its scores with their standard errors, and what it took.
fn table(results: &[TaskResult]) -> String {
    let mut lines = vec![[
        "task".to_owned(),
        "items".to_owned(),
        "metric".to_owned(),
        "value".to_owned(),
        "± stderr".to_owned(),
        "tokens".to_owned(),
        "seconds".to_owned(),
    ]];
    for result in results {
        for (i, (metric, score)) in result.metrics.iter().enumerate() {
            let once = |text: String| if i == 0 { text } else { String::new() };
            let Score { value, stderr } = score;
            lines.push([
                once(result.task.to_string()),
                once(result.n_items.to_string()),
                metric.clone(),
                format!("{value:.4}"),
                stderr.map_or_else(|| "–".to_owned(), |stderr| format!("{stderr:.4}")),
                once(result.tokens.to_string()),
                once(format!("{:.1}", result.seconds)),
            ]);
        }
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..7).map(|column| width(column).unwrap_or(0)).collect();
    let lines = lines.iter().map(|line| {
        let cells = line.iter().zip(&widths).enumerate();
        // Names on the left, numbers on the right.
        let cells = cells.map(|(column, (cell, width))| match column {
            0 | 2 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    });
    lines.collect()
}

/// A bar for each task on a terminal, a line at each tenth elsewhere.
#[derive(Default)]
struct Bar {
    task: Option<TaskName>,
    shown: Option<ProgressBar>,
    tenths: usize,
}

impl Bar {
    fn on(&mut self, progress: TaskProgress) {
        let TaskProgress { task, done, total } = progress;
        let begins = self.task != Some(task);
        if begins {
            *self = Self {
                task: Some(task),
                ..Self::default()
            };
            if draws_bars() {
                let template = "{prefix:14} {bar:24} {pos}/{len} | {eta} left";
                let bar = terminal::bar(total as u64, template);
                bar.set_prefix(task.to_string());
                self.shown = Some(bar);
            } else {
                say(&format!("{task}: {total} items"));
            }
        }
        let tenths = 10 * done / total.max(1);
        let is_next = tenths > self.tenths;
        self.tenths = self.tenths.max(tenths);
        if begins || is_next {
            let task = task.to_string();
            emit(&json!({ "event": "task", "task": task, "done": done, "total": total }));
        }
        match &self.shown {
            Some(bar) if done == total => bar.finish(),
            Some(bar) => bar.set_position(done as u64),
            None if is_next => say(&format!("{task}: {done} of {total}")),
            None => {}
        }
    }
}
