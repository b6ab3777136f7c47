//! Which method learns faster: `olora compare` on a tiny model that comes along
//! and on a real one, each method at its own learning rate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use olora_comparison::{
    CompareOptions, Comparison, ComparisonEvent, ComparisonObserver, Report, Variant,
};
use olora_runs::{Event, Recipe};
use olora_tasks::{TaskName, load};
use olora_training::record_panics;
use serde_json::json;

use crate::{device::device, replay};

/// What is trained on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Setting {
    /// The quickstart's tiny model and its questions.
    Quickstart,
    /// The same, LoRA and OLoRA at one rate for both, as papers have it.
    OneRate,
    /// SmolLM2-135M-Instruct on 1,100 instructions.
    Instruction,
    /// SmolLM2-135M-Instruct on GSM8K.
    Gsm8k,
    /// What OLoRA's author trains: TinyLlama on Alpaca's instructions. For a GPU.
    Paper,
    /// PEFT's comparison of methods: Llama-3.2-3B on `MetaMathQA`. For a GPU.
    Metamathqa,
}

impl Setting {
    fn name(self) -> &'static str {
        match self {
            Self::Quickstart => "quickstart",
            Self::OneRate => "one-rate",
            Self::Instruction => "instruction",
            Self::Gsm8k => "gsm8k",
            Self::Paper => "paper",
            Self::Metamathqa => "metamathqa",
        }
    }

    fn comparison(
        self,
        backend: &str,
        directory: PathBuf,
        overrides: &[String],
    ) -> anyhow::Result<Comparison> {
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("convergence");
        let path = recipes.join(format!("{}.toml", self.name()));
        // From the root of the repository, results hold paths that are the same in every clone.
        let here = std::env::current_dir()?;
        let path = path.strip_prefix(&here).unwrap_or(&path);
        let mut overrides = overrides.to_vec();
        overrides.push(format!("device={backend}"));
        let recipe = Recipe::load(path, &overrides)?;
        let protocol = self.protocol();
        let variants: Result<Vec<Variant>, _> =
            protocol.methods.iter().map(|name| name.parse()).collect();
        let n_seeds = (protocol.tuning_seeds + protocol.seeds) as u64;
        Ok(Comparison {
            seeds: (0..n_seeds).map(|index| recipe.seed + index).collect(),
            tuning_seeds: protocol.tuning_seeds,
            recipe,
            variants: variants?,
            ranks: protocol.ranks.to_vec(),
            rates: protocol.rates.to_vec(),
            widen: 6,
            refine: Some(3_f64.sqrt()),
            one_rates: protocol.one_rates.to_vec(),
            lengths: protocol.lengths.to_vec(),
            directory,
        })
    }

    /// As `benchmarks/convergence/PROTOCOL.md` has it, written before the runs.
    fn protocol(self) -> Protocol {
        /// What a real model's runs are of.
        const FEW: Protocol = Protocol {
            methods: &["lora", "olora", "olora-gradient", "olora-gradient+c0.5"],
            ranks: &[8],
            rates: &[3e-4, 1e-3],
            one_rates: &[1e-4, 2e-4],
            lengths: &[],
            tuning_seeds: 1,
            seeds: 5,
        };
        match self {
            Self::Quickstart => Protocol {
                methods: &[
                    "lora",
                    "olora",
                    "olora-gradient",
                    "olora-gradient+c0.5",
                    "lora-gradient",
                    "eva",
                    "pissa",
                ],
                rates: &[1e-3, 3e-3, 1e-2],
                one_rates: &[],
                lengths: &[56, 112, 168],
                tuning_seeds: 2,
                seeds: 10,
                ..FEW
            },
            Self::OneRate => Protocol {
                methods: &["lora", "olora"],
                rates: &[1e-3, 3e-3],
                one_rates: &[3.3e-4, 1e-3, 3e-3],
                tuning_seeds: 2,
                seeds: 10,
                ..FEW
            },
            Self::Instruction | Self::Gsm8k => FEW,
            Self::Paper => Protocol {
                methods: &["lora", "olora", "rslora", "pissa"],
                ranks: &[32],
                rates: &[1e-4, 3e-4, 1e-3],
                one_rates: &[],
                seeds: 3,
                ..FEW
            },
            Self::Metamathqa => Protocol {
                methods: &["lora", "olora", "rslora", "pissa"],
                ranks: &[32],
                rates: &[3e-5, 1e-4, 3e-4],
                one_rates: &[],
                seeds: 3,
                ..FEW
            },
        }
    }
}

/// What is compared in a setting.
struct Protocol {
    methods: &'static [&'static str],
    ranks: &'static [usize],
    /// Those that each method is tried at first.
    rates: &'static [f64],
    /// Those that all methods are run at besides.
    one_rates: &'static [f64],
    /// Steps; the recipe's own if empty.
    lengths: &'static [usize],
    tuning_seeds: usize,
    seeds: usize,
}

/// Prints what a comparison does.
struct Printer;

impl ComparisonObserver for Printer {
    fn on(&self, event: &ComparisonEvent<'_>) {
        match event {
            ComparisonEvent::Trial { number, of, name } => eprintln!("[{number}/{of}] {name}"),
            ComparisonEvent::TrialFinished {
                name,
                loss,
                seconds,
            } => eprintln!("{name}: validation loss {loss:.4} ({seconds:.1} s)"),
            ComparisonEvent::Scoring(name) => eprintln!("scoring {name}"),
            ComparisonEvent::Run(Event::Note(note)) => eprintln!("note: {note}"),
            ComparisonEvent::Run(_) => {}
        }
    }
}

/// Tasks to put models to: where, which, and how many items.
pub(crate) type Tasks<'a> = (&'a Path, &'a [TaskName], usize);

/// What is to be compared, and where runs are kept.
pub(crate) struct Work<'a> {
    /// Those that a CPU can do, if there are none.
    pub(crate) settings: &'a [Setting],
    pub(crate) backend: &'a str,
    pub(crate) results: &'a Path,
    /// Keys of the recipes.
    pub(crate) overrides: &'a [String],
    pub(crate) tasks: Option<Tasks<'a>>,
    /// Makes the first seeds again.
    pub(crate) peer: Option<&'a Path>,
}

/// Makes the runs that are missing, and the reports.
pub(crate) fn run(work: &Work<'_>) -> anyhow::Result<()> {
    let on_a_cpu = [
        Setting::Quickstart,
        Setting::OneRate,
        Setting::Instruction,
        Setting::Gsm8k,
    ];
    let settings = match work.settings {
        [] => &on_a_cpu,
        settings => settings,
    };
    let mut reports = Vec::new();
    for setting in settings {
        let directory = work.results.join(setting.name());
        let comparison = setting.comparison(work.backend, directory, work.overrides)?;
        let mut report = report(&comparison, work.backend, work.tasks)?;
        if let Some(python) = work.peer {
            let again = replay::run(&report, &comparison.directory, python)?;
            report["peer"] = again.into();
        }
        reports.push(report);
    }
    println!(
        "{}",
        json!({ "suite": "convergence", "quick": false, "reports": reports })
    );
    Ok(())
}

/// Two methods, two seeds, 24 steps: shows that the suite works.
pub(crate) fn quick(backend: &str) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let whole = Setting::Quickstart.comparison(backend, directory.path().to_owned(), &[])?;
    let mut recipe = whole.recipe;
    recipe.training.epochs = None;
    recipe.training.max_steps = Some(24);
    recipe.training.evaluate_every = 6;
    let comparison = Comparison {
        recipe,
        variants: vec!["lora".parse()?, "olora".parse()?],
        rates: vec![3e-3],
        one_rates: Vec::new(),
        lengths: Vec::new(),
        seeds: vec![1, 2],
        tuning_seeds: 1,
        widen: 0,
        refine: None,
        ..whole
    };
    let report = report(&comparison, backend, None)?;
    println!(
        "{}",
        json!({ "suite": "convergence", "quick": true, "reports": [report] })
    );
    Ok(())
}

fn report(
    comparison: &Comparison,
    backend: &str,
    tasks: Option<Tasks<'_>>,
) -> anyhow::Result<serde_json::Value> {
    record_panics();
    let (device, details) = device(backend)?;
    let options = CompareOptions {
        commit: option_env!("OLORA_COMMIT").map(str::to_owned),
        reference: details.accelerator.then(olora_devices::reference).flatten(),
        device: details,
        ..CompareOptions::default()
    };
    let observer: Arc<dyn ComparisonObserver> = Arc::new(Printer);
    let place = comparison.recipe.model.path.display().to_string();
    comparison
        .run(&device, &options, &observer)
        .with_context(|| {
            format!("comparing on {place}; benchmarks/convergence/README.md says what goes where")
        })?;
    if let Some((directory, names, limit)) = tasks {
        let tasks = load(names, directory, Some(limit))?;
        comparison.score(&device, &options, (&tasks, Some(limit)), &observer)?;
    }
    let report = Report::read(&comparison.directory)?;
    report.write()?;
    println!("{}", report.markdown());
    Ok(report.to_json())
}
