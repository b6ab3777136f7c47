//! What a person sees of a run: a bar on a terminal, lines elsewhere.

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use olora_comparison::{ComparisonEvent, ComparisonObserver};
use olora_files::size;
use olora_runs::{Event, Observer, RunPlan, StepReport, Summary, in_words};

use crate::terminal::say;

/// Shows the events of a run on stderr.
pub(crate) struct Display {
    /// Nothing but errors is shown while Burn's full-screen view is up.
    quiet: bool,
    terminal: bool,
    /// What an interrupted run is continued with.
    go_on: &'static str,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    total_steps: usize,
    attaching_since: Option<Instant>,
    attaching: Option<ProgressBar>,
}

impl Display {
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            terminal: std::io::stderr().is_terminal(),
            go_on: "Give the same command again to go on",
            state: Mutex::default(),
        }
    }

    /// For a run that the same command does not go on with by itself.
    pub(crate) fn with_resume(mut self) -> Self {
        self.go_on = "Run the same command with --resume to go on";
        self
    }

    fn line(state: &State, text: &str) {
        match &state.bar {
            Some(bar) if !bar.is_finished() => bar.suspend(|| say(text)),
            _ => say(text),
        }
    }
}

impl Observer for Display {
    #[expect(
        clippy::too_many_lines,
        reason = "one arm after another, each a sentence"
    )]
    fn on(&self, event: &Event) {
        if self.quiet {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Data { role, path, report } => {
                say(&format!(
                    "{role} data: {}\n  {}",
                    path.display(),
                    report.replace('\n', "\n  ")
                ));
            }
            Event::ModelLoaded {
                path,
                n_params,
                n_packed,
                seconds,
            } => {
                let packed = match n_packed {
                    0 => String::new(),
                    n => format!(", {n} matrices packed"),
                };
                say(&format!(
                    "model: {} ({}{packed}) in {seconds:.1} s",
                    path.display(),
                    parameters(*n_params)
                ));
            }
            Event::DeviceChecked {
                dtype,
                worst,
                seconds,
            } => say(&format!(
                "device check: loss and gradients in {dtype} as on the CPU, to {worst:.1e} ({seconds:.1} s)"
            )),
            Event::MakingKernels { measured } => say(if *measured {
                "choosing kernels, once per shape: the first steps take longer, in a first run above all"
            } else {
                "making kernels, once per shape: the first steps take longer"
            }),
            Event::FirstStep { seconds, n_choices } => Self::line(
                &state,
                &match n_choices {
                    0 => {
                        format!(
                            "first step: {seconds:.1} s, all kernel choices known from an earlier run"
                        )
                    }
                    n => format!(
                        "first step: {seconds:.1} s; kernels chosen for {n} new shapes so far, kept for later runs"
                    ),
                },
            ),
            Event::Note(note) => say(&format!("note: {note}")),
            Event::Looking(batch) => {
                if *batch == 1 {
                    say("looking at data to find where the factors start");
                }
            }
            Event::Attaching(done, all) => attaching(&mut state, *done, *all, self.terminal),
            Event::Ready(plan) => {
                say(&describe(plan));
                state.total_steps = plan.total_steps;
                if self.terminal {
                    state.bar = Some(step_bar(plan.total_steps));
                }
            }
            Event::Resumed(step) => {
                say(&format!("resuming after step {step}"));
                if let Some(bar) = &state.bar {
                    bar.set_position(*step as u64);
                    bar.reset_eta();
                }
            }
            Event::Sample { when, prompt, text } => {
                Self::line(
                    &state,
                    &format!(
                        "sample {when} training\n  > {prompt}\n  {}",
                        text.trim().replace('\n', "\n  ")
                    ),
                );
            }
            Event::Step(report) => match &state.bar {
                Some(bar) => {
                    bar.set_position(report.step as u64);
                    bar.set_message(short(report));
                    if report.step == state.total_steps {
                        bar.finish();
                    }
                }
                None => say(&format!(
                    "step {}/{} | {}",
                    report.step,
                    state.total_steps,
                    long(report)
                )),
            },
            Event::Evaluated { step, evaluation } => Self::line(
                &state,
                &match evaluation.perplexity {
                    Some(perplexity) => format!(
                        "step {step}: validation loss {:.4}, perplexity {perplexity:.3} over {} tokens",
                        evaluation.loss, evaluation.count
                    ),
                    None => format!(
                        "step {step}: validation loss {:.4}{}",
                        evaluation.loss,
                        measured(", ", &evaluation.measures)
                    ),
                },
            ),
            Event::Checkpoint { step, path } => {
                if !self.terminal {
                    say(&format!("step {step}: checkpoint {}", path.display()));
                }
            }
            Event::Interrupted(step) => {
                if let Some(bar) = &state.bar {
                    bar.abandon();
                }
                say(&format!(
                    "interrupted after step {step}; a checkpoint is written. {}",
                    self.go_on
                ));
            }
            Event::Finished(summary) => say(&finished(summary)),
        }
    }
}

impl ComparisonObserver for Display {
    fn on(&self, event: &ComparisonEvent<'_>) {
        match event {
            ComparisonEvent::Run(event) => Observer::on(self, event),
            ComparisonEvent::Trial { number, of, name } => {
                say(&format!("[{number}/{of}] {name}"));
            }
            ComparisonEvent::Scoring(name) => say(&format!("scoring {name}")),
            ComparisonEvent::TrialFinished {
                name,
                loss,
                seconds,
            } => say(&if loss.is_finite() {
                format!("{name}: validation loss {loss:.4} ({seconds:.1} s)")
            } else {
                format!("{name}: diverged, which is noted as its result")
            }),
        }
    }
}

/// A bar only if initialisation takes longer than a second.
fn attaching(state: &mut State, done: usize, all: usize, terminal: bool) {
    let since = *state.attaching_since.get_or_insert_with(Instant::now);
    if terminal && done < all && since.elapsed() > Duration::from_secs(1) {
        let bar = state.attaching.get_or_insert_with(|| {
            let bar = ProgressBar::new(all as u64);
            bar.set_prefix("initialising adapters");
            bar
        });
        bar.set_position(done as u64);
    }
    if done == all
        && let Some(bar) = state.attaching.take()
    {
        bar.finish_and_clear();
    }
}

fn step_bar(total: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
    let template = "{bar:24} {pos}/{len} | {msg} | {eta} left";
    bar.set_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar
}

fn describe(plan: &RunPlan) -> String {
    let share = 100.0 * plan.n_trained_params as f64 / plan.n_params as f64;
    let adapters = match plan.n_adapted_layers {
        0 => "every weight trains".to_owned(),
        n => format!(
            "adapters on {n} layers, initialised in {:.2} s",
            plan.attach_seconds
        ),
    };
    format!(
        "{adapters}\ntrainable: {} of {} ({share:.2} %)\nprecision: {}\nmemory, by estimate: {}{}\nplan: {} steps of {} {}, {:.2} epochs over {} {}\nrun directory: {}",
        parameters(plan.n_trained_params),
        parameters(plan.n_params),
        plan.precision,
        plan.memory,
        plan.device_memory
            .map(|memory| format!("; the device has {}", size(memory)))
            .unwrap_or_default(),
        plan.total_steps,
        plan.sequences_per_step,
        if plan.in_pairs { "pairs" } else { "sequences" },
        plan.epochs,
        plan.n_samples,
        if plan.in_pairs { "pairs" } else { "samples" },
        plan.directory.display()
    )
}

fn short(report: &StepReport) -> String {
    format!(
        "loss {:.4} | lr {:.2e} | {:.0} tok/s{}",
        report.loss,
        report.learning_rate,
        report.tokens_per_second,
        of_ranks(report)
    )
}

/// Of several processes, the slowest and what exchanging took.
fn of_ranks(report: &StepReport) -> String {
    let Some(ranks) = &report.ranks else {
        return String::new();
    };
    let more = 100.0 * (ranks.slowest_seconds / ranks.median_seconds.max(1e-9) - 1.0);
    format!(
        " of {} ranks, exchange {:.2} s, slowest {} (+{more:.0} %)",
        ranks.n, ranks.exchange_seconds, ranks.slowest
    )
}

fn long(report: &StepReport) -> String {
    // Where the work is on a device, so is the memory that counts.
    let memory = match (report.device_memory, report.peak_memory) {
        (Some(bytes), _) => format!(" | device {}", size(bytes)),
        (None, Some(bytes)) => format!(" | peak {}", size(bytes)),
        (None, None) => String::new(),
    };
    format!(
        "loss {:.4}{} | lr {:.2e} | grad norm {:.3} | {:.0} tok/s{}{memory}",
        report.loss,
        measured(" | ", &report.measures),
        report.learning_rate,
        report.grad_norm,
        report.tokens_per_second,
        of_ranks(report)
    )
}

/// What is measured beside the loss, after a separator if there is anything.
fn measured(separator: &str, measures: &BTreeMap<String, f64>) -> String {
    match in_words(measures) {
        words if words.is_empty() => words,
        words => format!("{separator}{words}"),
    }
}

pub(crate) fn finished(summary: &Summary) -> String {
    let mut text = format!(
        "{}: {} steps, {} tokens in {:.1} s of training ({:.0} tok/s), {:.1} s in all",
        if summary.finished {
            "done"
        } else {
            "interrupted, to be continued with --resume or --auto-resume"
        },
        summary.steps,
        summary.tokens,
        summary.train_seconds,
        summary.tokens_per_second,
        summary.wall_seconds
    );
    let estimated = size(summary.estimated_memory.total());
    match (summary.peak_memory, summary.peak_device_memory) {
        (Some(bytes), None) => {
            text = format!("{text}, peak {} (estimated {estimated})", size(bytes));
        }
        (peak, device) => {
            if let Some(bytes) = peak {
                text = format!("{text}, peak {}", size(bytes));
            }
            if let Some(bytes) = device {
                let on_device = size(bytes);
                text = format!("{text}, on the device {on_device} (estimated {estimated})");
            }
        }
    }
    if let (Some(before), Some(after)) = (summary.validation_loss_before, summary.validation_loss) {
        text = format!("{text}\nvalidation loss: {before:.4} before, {after:.4} after");
    }
    if let (Some(best), Some(step)) = (summary.best_validation_loss, summary.best_step) {
        text = format!("{text} (lowest {best:.4} at step {step})");
    }
    for (when, measures) in [
        ("before", &summary.validation_measures_before),
        ("after", &summary.validation_measures),
    ] {
        let of = format!("\nvalidation, {when}: ");
        text += &measured(&of, measures);
    }
    text + &format!("\nresult: {}", summary.result.display())
}

pub(crate) fn parameters(n: usize) -> String {
    match n {
        0..10_000 => format!("{n} parameters"),
        10_000..10_000_000 => format!("{:.1} k parameters", n as f64 / 1e3),
        _ => format!("{:.1} M parameters", n as f64 / 1e6),
    }
}
