//! What each subcommand does.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use anyhow::Result;
use burn::{
    data::dataset::Dataset,
    tensor::Device,
    train::renderer::{MetricsRenderer, tui::TuiMetricsRendererWrapper},
};
use olora_adapter::PeftAdapter;
use olora_data::{Answers, DataOptions, Padding, Schedule, Share, TokenCache, Tokenizer, loader};
use olora_devices::{Details, KernelOptions, Opened};
use olora_model::{Dtype, Llama, ModelConfig, Packing};
use olora_runs::{
    Observer, RunError, Start, TrainOptions, TrainedRun, check_samples, choose_dtype, in_words,
    recipe::ObjectiveMethod,
};
use olora_training::{Evaluation, Passes, Reference};
use serde_json::json;

use crate::{
    Usage,
    args::{EvaluateArgs, ModelArgs, PlanArgs, TrainArgs},
    devices, inspect_data,
    mistaken::adapter_in,
    models::{
        Purpose, attached, base_of, data_files, fitted, load_base, packing_of, tokenizer,
        tokenizer_beside,
    },
    parallel,
    progress::{Display, print_result, this_command},
    recipes::recipe_or_options,
    signals::{interrupted, interrupter},
    tasks,
    terminal::{emit, out, say, say_detail},
};

pub(crate) fn train(args: &TrainArgs, kernels: KernelOptions) -> Result<ExitCode> {
    if args.tui && !std::io::stdout().is_terminal() {
        return Err(Usage::new("--tui needs a terminal"));
    }
    let goes_on = args.start() != Start::New;
    let recipe = recipe_or_options(&args.recipe, args.from.as_deref(), goes_on, kernels)?;
    let Opened { device, details } = devices::open(&parallel::device(&recipe.device)?, kernels)?;
    parallel::introduce(&details.to_string())?;
    say_detail(&describe_kernels(&details));
    let reference = reference(&details, args.no_check)?;
    let interrupter = interrupter()?;

    let renderer = (args.tui && !parallel::is_follower()).then(|| {
        Box::new(TuiMetricsRendererWrapper::new(interrupter.clone(), None))
            as Box<dyn MetricsRenderer>
    });
    let display = Display::new(args.tui || parallel::is_follower());
    let display = Arc::new(if args.auto_resume {
        display
    } else {
        display.with_resume()
    });
    let observer: Arc<dyn Observer> = display.clone();
    let options = TrainOptions {
        start: args.start(),
        interrupter,
        renderer,
        commit: option_env!("OLORA_COMMIT").map(str::to_owned),
        device: details,
        reference,
        ranks: parallel::ranks(),
    };
    let summary = match olora_runs::train(&recipe, &device, options, &observer) {
        Err(RunError::Complete { directory, steps }) if args.auto_resume => {
            say(&format!(
                "the run in {} is complete: there is nothing to do",
                directory.display()
            ));
            let directory = directory.display().to_string();
            emit(&json!({ "event": "complete", "directory": directory, "steps": steps }));
            return Ok(ExitCode::SUCCESS);
        }
        result => result?,
    };
    let is_new = args.start() == Start::New;
    let go_on = match (parallel::is_one_of_several(), is_new) {
        (false, _) => this_command(is_new),
        // What the launcher was asked for is not known here.
        (true, true) => "the same command with --resume".to_owned(),
        (true, false) => "the same command".to_owned(),
    };
    print_result(&summary, display.total_steps(), &go_on)?;
    Ok(if summary.finished {
        ExitCode::SUCCESS
    } else {
        interrupted()
    })
}

/// How a device's kernels are made, or by how many threads the CPU computes.
pub(crate) fn describe_kernels(details: &Details) -> String {
    let switched = |on: bool| if on { "on" } else { "off" };
    if details.accelerator {
        format!(
            "kernels: fusion {}, choosing by measurement {}",
            switched(details.fusion),
            switched(details.autotune)
        )
    } else {
        format!("threads: {}", olora_devices::threads::count())
    }
}

impl TrainArgs {
    fn start(&self) -> Start {
        match (self.auto_resume, self.resume) {
            (true, _) => Start::Auto,
            (false, true) => Start::Resume,
            (false, false) => Start::New,
        }
    }
}

/// The CPU, which a device's gradients are compared with before the first step.
pub(crate) fn reference(details: &Details, no_check: bool) -> Result<Option<Device>> {
    if no_check && !details.accelerator {
        return Err(Usage::new(
            "--no-check has no use on the CPU, which is what devices are compared with",
        ));
    }
    if no_check || !details.accelerator {
        return Ok(None);
    }
    let reference = olora_devices::reference().ok_or_else(|| {
        Usage::new(
            "this build has no CPU to compare the device's gradients with: build it with the \
             `flex` feature too, or give --no-check",
        )
    })?;
    Ok(Some(reference))
}

pub(crate) fn plan(args: &PlanArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let recipe = recipe_or_options(&args.recipe, args.from.as_deref(), false, kernels)?;
    let Opened { device, details } = devices::open(&parallel::device(&recipe.device)?, kernels)?;
    parallel::introduce(&details.to_string())?;
    let observer: Arc<dyn Observer> = Arc::new(Display::new(parallel::is_follower()));
    let (ranks, probe) = (parallel::ranks(), !args.no_probe);
    let forecast = olora_runs::plan_share(
        &recipe,
        &device,
        &details,
        probe,
        ranks.0.n_ranks(),
        &observer,
    )?;
    let shares = parallel::shares(&forecast)?;
    let mut out = out();
    if args.json {
        let mut json = serde_json::to_value(&forecast)?;
        if shares.len() > 1 {
            json["ranks"] = json!(shares);
        }
        writeln!(out, "{json:#}")?;
    } else {
        writeln!(out, "{forecast}")?;
        write!(out, "{}", parallel::table(&shares))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn evaluate(args: &EvaluateArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let Some(data) = &args.data else {
        return tasks::evaluate(args, kernels);
    };
    let (options, mut objective) = inspect_data::options(&args.set, args.max_length)?;
    let opening = Opening::new(&args.model, kernels)?;
    let (files, first) = data_files(data)?;
    let mut options = DataOptions {
        first,
        train_on_prompt: args.train_on_prompt || options.train_on_prompt,
        ..options
    };
    let cache = TokenCache::from_env();
    // What does not fit the model is told before its weights are read.
    let data = inspect_data::load_judged(&files, &opening.tokenizer, &mut options, cache.as_ref())?;
    if options.answers == Answers::Pair && objective.answers() == Answers::One {
        objective.method = ObjectiveMethod::Dpo;
    }
    if args.train_on_prompt && objective.answers() != Answers::One {
        return Err(Usage::new(
            "--train-on-prompt has no use where answers are compared",
        ));
    }
    check_samples(&data.samples, &opening.config, &opening.tokenizer)?;
    say(&data.report.to_string());
    let multiple = Padding::default_multiple(opening.details.accelerator);
    let objective = objective.objective(options.max_length, multiple);
    if args.reference.is_some() && !objective.needs_reference() {
        return Err(Usage::new(
            "--reference is what DPO and KTO compare with: give --set objective.method=dpo or kto, or pairs as --data",
        ));
    }
    let reference = args.reference.as_deref().map(read_adapter).transpose()?;
    let (loaded, reference) = opening.load_beside(reference)?;
    let passes = Passes::with_reference(objective, &loaded.llama, reference)?;
    let schedule = Schedule::sequential(data.samples, args.batch_size)?;
    let padding = Padding {
        id: loaded.tokenizer.pad_id(),
        multiple,
    };
    let ranks = parallel::ranks();
    let (rank, n_ranks, all) = (ranks.0.rank(), ranks.0.n_ranks(), 0..schedule.len());
    let batches = loader(Share::new(schedule, all, n_ranks, rank..rank + 1), padding);
    let began = Instant::now();
    let advice =
        "Lower --batch-size or --max-length, or hold the weights in half precision (--dtype)";
    let evaluation = devices::guarded(&loaded.details, advice, || {
        Ok(passes.evaluate_together(&*ranks.0, &loaded.llama, batches.iter())?)
    })?;
    let seconds = began.elapsed().as_secs_f64();
    write_evaluation(&evaluation, &passes, options.answers, seconds, args.json)?;
    Ok(ExitCode::SUCCESS)
}

fn write_evaluation(
    evaluation: &Evaluation,
    passes: &Passes,
    answers: Answers,
    seconds: f64,
    as_json: bool,
) -> Result<()> {
    let mut out = out();
    let (loss, count) = (evaluation.loss, olora_runs::whole(evaluation.count));
    let Some(perplexity) = evaluation.perplexity else {
        let name = passes.objective().name();
        let what = if answers == Answers::Pair {
            "pairs"
        } else {
            "answers"
        };
        if as_json {
            let result = json!({
                "objective": name,
                "loss": loss,
                what: count,
                "measures": evaluation.measures,
                "seconds": seconds,
            });
            writeln!(out, "{result}")?;
        } else {
            let words = in_words(&evaluation.measures);
            writeln!(
                out,
                "{name} loss {loss:.4}, {words} over {count} {what} ({seconds:.1} s)"
            )?;
        }
        return Ok(());
    };
    if as_json {
        let result = json!({
            "loss": loss,
            "perplexity": perplexity,
            "tokens": count,
            "seconds": seconds,
        });
        writeln!(out, "{result}")?;
    } else {
        writeln!(
            out,
            "loss {loss:.4}, perplexity {perplexity:.3} over {} tokens ({seconds:.1} s)",
            evaluation.count
        )?;
    }
    Ok(())
}

/// A model ready to run, with its adapter if one was given.
pub(crate) struct Loaded {
    pub(crate) llama: Llama,
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) details: Details,
    /// Where the model is.
    pub(crate) base: PathBuf,
    /// The number format of its weights in memory.
    pub(crate) dtype: Dtype,
}

/// All that is known of a model before its weights are read.
pub(crate) struct Opening {
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) details: Details,
    device: Device,
    adapter: Option<PeftAdapter>,
    base: PathBuf,
    dtype: Dtype,
    packing: Packing,
}

impl Opening {
    pub(crate) fn new(args: &ModelArgs, kernels: KernelOptions) -> Result<Self> {
        let Opened { device, details } = devices::open(&parallel::device(&args.device)?, kernels)?;
        let adapter = args.adapter.as_deref().map(read_adapter).transpose()?;
        let base = base_of(args.model.as_deref(), adapter.as_ref())?.path;
        let packing = packing_of(args.quantize, adapter.as_ref())?;
        let mut config = ModelConfig::from_path(&base)?;
        let mut beside = None;
        if let Some(adapter) = &adapter {
            beside = tokenizer_beside(adapter, &config)?;
            config = config.adapted(adapter)?;
        }
        let tokenizer = fitted(tokenizer(&base, beside.as_deref())?, &config);
        let stored = config.stored_dtype();
        let dtype = choose_dtype("--dtype", args.dtype, stored, &device, details.accelerator)?;
        Ok(Self {
            config,
            tokenizer,
            details,
            device,
            adapter,
            base,
            dtype,
            packing,
        })
    }

    /// Reads the weights.
    pub(crate) fn load(self) -> Result<Loaded> {
        Ok(self.load_beside(None)?.0)
    }

    /// Reads the weights, and says what the model is compared with: the base with
    /// another adapter if one is given, or as it is. The weights are shared.
    pub(crate) fn load_beside(self, other: Option<PeftAdapter>) -> Result<(Loaded, Reference)> {
        let (llama, _) = load_base(
            &self.base,
            self.dtype,
            self.packing,
            &self.device,
            Purpose::Run,
        )?;
        let reference = match (other, &self.adapter) {
            (Some(other), _) => Reference::frozen(&attached(other, llama.clone())?),
            (None, Some(_)) => Reference::Base,
            (None, None) => Reference::frozen(&llama),
        };
        let llama = match self.adapter {
            None => llama,
            Some(adapter) => attached(adapter, llama)?,
        };
        let loaded = Loaded {
            llama,
            config: self.config,
            tokenizer: self.tokenizer,
            details: self.details,
            base: self.base,
            dtype: self.dtype,
        };
        Ok((loaded, reference))
    }
}

/// Reads an adapter: of a directory of PEFT's or mlx-lm's, a run, or a checkpoint
/// of one.
pub(crate) fn read_adapter(path: &Path) -> Result<PeftAdapter> {
    match TrainedRun::at(path)? {
        Some(run) => Ok(run.adapter()?),
        None => Ok(PeftAdapter::read(&adapter_in(path)?)?),
    }
}
