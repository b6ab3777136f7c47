//! `compare` and `report`.

use std::{io::Write, path::Path, process::ExitCode, sync::Arc};

use anyhow::Result;
use olora_comparison::{CompareOptions, Comparison, ComparisonObserver, Report};
use olora_devices::{KernelOptions, Opened};
use olora_runs::recipe::bounds::MAX_SEED;
use olora_tasks::load;
use serde_json::json;

use crate::{
    Usage,
    args::{CompareArgs, ReportArgs},
    commands::{describe_kernels, reference},
    devices, parallel,
    progress::Display,
    recipes::recipe,
    signals::{interrupted, interrupter},
    terminal::{are_events, emit, out, say, say_detail},
};

pub(crate) fn compare(args: &CompareArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let variants = args.methods.iter().map(|name| name.parse());
    let variants = variants.collect::<Result<_, _>>()?;
    let recipe = recipe(&args.recipe)?;
    let n_seeds = args.tuning_seeds + args.seeds;
    if n_seeds == 0 {
        return Err(Usage::new(
            "--tuning-seeds and --seeds are both 0: give one seed at least",
        ));
    }
    if recipe.seed.saturating_add(n_seeds - 1) > MAX_SEED {
        return Err(Usage::new(&format!(
            "--tuning-seeds and --seeds ask for {n_seeds} seeds from {} on, and a recipe holds none above {MAX_SEED}: \
             set a smaller `seed`",
            recipe.seed
        )));
    }
    let directory = args.output.clone().unwrap_or_else(|| {
        let name = format!("{}-compare", recipe.name);
        recipe.output.directory.join(name)
    });
    let seeds = (0..n_seeds)
        .map(|index| recipe.seed.wrapping_add(index))
        .collect();
    let ranks = match args.ranks.as_slice() {
        [] => vec![recipe.adapter.config.rank],
        ranks => ranks.to_vec(),
    };
    let comparison = Comparison {
        variants,
        ranks,
        rates: args.lrs.clone(),
        widen: args.widen,
        refine: args.refine.0,
        one_rates: args.one_rate.clone(),
        lengths: args.steps.clone(),
        seeds,
        tuning_seeds: usize::try_from(args.tuning_seeds)?,
        directory,
        recipe,
    };
    // What cannot be read is told before hours are spent.
    let tasks = args.task_data.as_deref();
    let tasks = tasks
        .map(|directory| load(&args.tasks, directory, args.limit))
        .transpose()?;
    let Opened { device, details } = devices::open(&comparison.recipe.device, kernels)?;
    parallel::introduce(&details.to_string())?;
    say_detail(&describe_kernels(&details));
    let options = CompareOptions {
        reference: reference(&details, args.no_check)?,
        interrupter: interrupter()?,
        commit: option_env!("OLORA_COMMIT").map(str::to_owned),
        device: details,
    };
    let observer: Arc<dyn ComparisonObserver> = Arc::new(Display::new(false));
    let mut finished = comparison.run(&device, &options, &observer)?;
    if let Some(tasks) = tasks.filter(|_| finished) {
        finished = comparison.score(&device, &options, (&tasks, args.limit), &observer)?;
    }
    if !finished {
        say("interrupted: run the same command again to go on where it stopped");
        emit(&json!({ "event": "interrupted" }));
        return Ok(interrupted());
    }
    write_report(&comparison.directory)
}

pub(crate) fn report(args: &ReportArgs) -> Result<ExitCode> {
    for directory in &args.directories {
        write_report(directory)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the report beside its runs, and prints it.
fn write_report(directory: &Path) -> Result<ExitCode> {
    let report = Report::read(directory)?;
    let path = report.write()?;
    if are_events() {
        let path = path.display().to_string();
        emit(&json!({ "event": "report", "path": path, "markdown": report.markdown() }));
    } else {
        write!(out(), "{}", report.markdown())?;
    }
    say(&format!("report: {}", path.display()));
    Ok(ExitCode::SUCCESS)
}
