//! `compare` and `report`.

use std::{io::Write, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Result;
use olora_devices::{KernelOptions, Opened};
use olora_training::{CompareOptions, Comparison, Observer, Report};

use crate::{
    args::{CompareArgs, ReportArgs},
    commands::{interrupter, recipe, reference},
    devices,
    progress::{Display, say},
};

pub(crate) fn compare(args: &CompareArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let recipe = recipe(&args.recipe, &args.overrides, args.device.as_deref())?;
    let variants = args.methods.iter().map(|name| name.parse());
    let directory = args.output.clone().unwrap_or_else(|| {
        let name = format!("{}-compare", recipe.name);
        recipe.output.directory.join(name)
    });
    let seeds = (0..args.seeds).map(|index| recipe.seed + index).collect();
    let ranks = match args.ranks.as_slice() {
        [] => vec![recipe.adapter.rank],
        ranks => ranks.to_vec(),
    };
    let comparison = Comparison {
        variants: variants.collect::<Result<_, _>>()?,
        ranks,
        rates: args.lrs.clone(),
        widen: args.widen,
        seeds,
        directory,
        recipe,
    };
    let Opened { device, details } = devices::open(&comparison.recipe.device, kernels)?;
    say(&format!("device: {}", devices::describe(&details)));
    let options = CompareOptions {
        reference: reference(&details, args.no_check)?,
        interrupter: interrupter()?,
        commit: option_env!("OLORA_COMMIT").map(str::to_owned),
        device: devices::traits(&details),
    };
    let observer: Arc<dyn Observer> = Arc::new(Display::new(false));
    let finished = comparison.run(&device, options, &observer)?;
    if !finished {
        say("interrupted: run the same command again to go on where it stopped");
        return Ok(ExitCode::FAILURE);
    }
    write_report(comparison.directory)
}

pub(crate) fn report(args: &ReportArgs) -> Result<ExitCode> {
    for directory in &args.directories {
        write_report(directory.clone())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the report beside its runs, and prints it.
fn write_report(directory: PathBuf) -> Result<ExitCode> {
    let report = Report::read(&directory)?;
    let path = report.write()?;
    write!(std::io::stdout(), "{}", report.markdown())?;
    say(&format!("report: {}", path.display()));
    Ok(ExitCode::SUCCESS)
}
