//! What a person sees of a run: lines, and below them a bar on a terminal. With
//! `--json`, what a program sees of it, too.

mod clock;
mod events;
mod result;
#[cfg(test)]
mod tests;
mod words;

use std::{
    io::IsTerminal,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use olora_comparison::{ComparisonEvent, ComparisonObserver};
use olora_runs::{Event, Observer, RunPlan};

use crate::terminal::{self, Line, are_events, draws_bars, emit};

pub(crate) use result::{print_result, quoted, this_command};
pub(crate) use words::parameters;

use clock::Clock;

/// Where lines go: what they are, what stands out at their beginning, and the rest.
type Lines = Box<dyn Fn(Line, &str, &str) + Send + Sync>;

/// Shows the events of a run on stderr.
pub(crate) struct Display {
    /// Nothing but errors is shown while Burn's full-screen view is up.
    quiet: bool,
    /// Whether a bar is drawn below the lines.
    draws: bool,
    /// Whether the summary on stdout is seen beside what is said here.
    has_result: bool,
    /// What an interrupted run is continued with.
    go_on: &'static str,
    lines: Lines,
    state: Mutex<State>,
    total_steps: AtomicUsize,
}

#[derive(Default)]
struct State {
    clock: Arc<Mutex<Clock>>,
    bar: Option<ProgressBar>,
    attaching_since: Option<Instant>,
    attaching: Option<ProgressBar>,
}

impl Display {
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            draws: draws_bars(),
            has_result: std::io::stdout().is_terminal() && std::io::stderr().is_terminal(),
            go_on: "Give the same command again to go on",
            lines: Box::new(terminal::line),
            state: Mutex::default(),
            total_steps: AtomicUsize::new(0),
        }
    }

    /// For a run that the same command does not go on with by itself.
    pub(crate) fn with_resume(mut self) -> Self {
        self.go_on = "Run the same command with --resume to go on";
        self
    }

    /// The steps of the run, once it has begun.
    pub(crate) fn total_steps(&self) -> usize {
        self.total_steps.load(Ordering::Relaxed)
    }

    fn say(&self, text: &str) {
        (self.lines)(Line::Say, "", text);
    }

    /// What stands out at the beginning of a line, and the rest of it.
    fn say_headed(&self, head: &str, text: &str) {
        (self.lines)(Line::Say, head, text);
    }

    fn say_detail(&self, text: &str) {
        (self.lines)(Line::Detail, "", text);
    }

    /// The parts of a plan, and the bar.
    fn ready(&self, plan: &RunPlan, state: &mut State) {
        for (head, text) in words::plan(plan) {
            self.say_headed(head, &text);
        }
        {
            let mut clock = state.clock.lock().unwrap_or_else(PoisonError::into_inner);
            clock.begin(Instant::now());
        }
        if self.draws {
            state.bar = Some(clock::bar(plan.total_steps, &state.clock));
        }
    }

    /// What is said before the first step.
    fn on_beginning(&self, event: &Event, state: &mut State) {
        match event {
            Event::Data { role, path, report } => self.say_headed(
                &format!("{role} data:"),
                &format!(" {}\n  {}", path.display(), report.replace('\n', "\n  ")),
            ),
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
                let (path, n) = (path.display(), parameters(*n_params));
                self.say_headed(
                    "model:",
                    &format!(" {path} ({n}{packed}) in {seconds:.1} s"),
                );
            }
            Event::DeviceChecked {
                dtype,
                worst,
                seconds,
            } => self.say_headed(
                "device check:",
                &format!(
                    " loss and gradients in {dtype} as on the CPU, to {worst:.1e} ({seconds:.1} s)"
                ),
            ),
            Event::MakingKernels { measured } => self.say(words::making_kernels(*measured)),
            Event::Looking(1) => self.say("looking at data to find where the factors start"),
            Event::Looking(batch) => self.say_detail(&format!("looking at batch {batch}")),
            Event::Attaching(done, all) => attaching(state, *done, *all),
            Event::Ready(plan) => self.ready(plan, state),
            Event::Resumed(step) => {
                self.say(&format!("resuming after step {step}"));
                if let Some(bar) = &state.bar {
                    bar.set_position(*step as u64);
                }
            }
            _ => {}
        }
    }

    /// What is said of steps, and after the last.
    fn on_training(&self, event: &Event, state: &mut State) {
        match event {
            Event::FirstStep { seconds, n_choices } => {
                self.say(&words::first_step(*seconds, *n_choices));
            }
            Event::Sample { when, prompt, text } => self.say_headed(
                &format!("sample {when} training"),
                &format!("\n  > {prompt}\n  {}", text.trim().replace('\n', "\n  ")),
            ),
            Event::Progress(progress) => {
                {
                    let mut clock = state.clock.lock().unwrap_or_else(PoisonError::into_inner);
                    clock.set(progress.seconds_left, Instant::now());
                }
                if let Some(bar) = &state.bar {
                    bar.set_position(progress.step as u64);
                }
            }
            Event::Step(report) => {
                let (total, told) = (self.total_steps(), words::step(report));
                let times = {
                    let clock = state.clock.lock().unwrap_or_else(PoisonError::into_inner);
                    clock.in_words(Instant::now())
                };
                self.say(&format!("step {}/{total} | {told} | {times}", report.step));
                if report.step == total {
                    end(state);
                }
            }
            Event::Evaluated { step, evaluation } => self.say(&words::evaluated(*step, evaluation)),
            Event::Checkpoint { step, path } => {
                self.say(&format!("step {step}: checkpoint {}", path.display()));
            }
            Event::Interrupted(step) => {
                end(state);
                self.say(&format!(
                    "interrupted after step {step}; a checkpoint is written. {}",
                    self.go_on
                ));
            }
            Event::Finished(summary) => {
                end(state);
                if !self.has_result {
                    self.say(&words::finished(summary));
                }
            }
            _ => {}
        }
    }
}

impl Observer for Display {
    fn on(&self, event: &Event) {
        if let Event::Ready(plan) = event {
            self.total_steps.store(plan.total_steps, Ordering::Relaxed);
        }
        if self.quiet {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Note(note) => (self.lines)(Line::Note, "note:", &format!(" {note}")),
            Event::Detail(text) => self.say_detail(text),
            Event::Took { stage, seconds } => self.say_detail(&format!("{stage}: {seconds:.2} s")),
            _ => {
                self.on_beginning(event, &mut state);
                self.on_training(event, &mut state);
            }
        }
        if are_events() {
            let clock = state.clock.lock().unwrap_or_else(PoisonError::into_inner);
            let event = events::of(event, &clock, self.total_steps(), Instant::now());
            drop(clock);
            if let Some(event) = event {
                emit(&event);
            }
        }
    }
}

impl ComparisonObserver for Display {
    fn on(&self, event: &ComparisonEvent<'_>) {
        match event {
            ComparisonEvent::Run(event) => Observer::on(self, event),
            ComparisonEvent::Trial { number, of, name } => {
                self.say_headed(&format!("[{number}/{of}]"), &format!(" {name}"));
            }
            ComparisonEvent::Scoring(name) => self.say(&format!("scoring {name}")),
            ComparisonEvent::TrialFinished {
                name,
                loss,
                seconds,
            } => self.say(&if loss.is_finite() {
                format!("{name}: validation loss {loss:.4} ({seconds:.1} s)")
            } else {
                format!("{name}: diverged, which is noted as its result")
            }),
        }
        if let Some(event) = events::of_comparison(event) {
            emit(&event);
        }
    }
}

/// Takes the bar away: the lines say it all.
fn end(state: &mut State) {
    if let Some(bar) = state.bar.take() {
        bar.finish_and_clear();
    }
}

/// A bar only if initialisation takes longer than a second.
fn attaching(state: &mut State, done: usize, all: usize) {
    let since = *state.attaching_since.get_or_insert_with(Instant::now);
    if done < all && since.elapsed() > Duration::from_secs(1) {
        let bar = state.attaching.get_or_insert_with(|| {
            let template = "initialising adapters {bar:24} {pos}/{len}";
            terminal::bar(all as u64, template)
        });
        bar.set_position(done as u64);
    }
    if done == all
        && let Some(bar) = state.attaching.take()
    {
        bar.finish_and_clear();
    }
}
