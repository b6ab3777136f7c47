//! What is said of a run, in words.

use std::collections::BTreeMap;

use olora_files::size;
use olora_runs::{RunPlan, StepReport, Summary, in_words};
use olora_training::Evaluation;

/// What a run is going to do: what each part is of, and the part.
pub(super) fn plan(plan: &RunPlan) -> Vec<(&'static str, String)> {
    let share = 100.0 * plan.n_trained_params as f64 / plan.n_params as f64;
    let adapters = match plan.n_adapted_layers {
        0 => "every weight trains".to_owned(),
        n => format!(
            "adapters on {n} layers, initialised in {:.2} s",
            plan.attach_seconds
        ),
    };
    let device = plan
        .device_memory
        .map(|memory| format!("; the device has {}", size(memory)));
    let (sequences, samples) = if plan.in_pairs {
        ("pairs", "pairs")
    } else {
        ("sequences", "samples")
    };
    vec![
        ("", adapters),
        (
            "trainable:",
            format!(
                " {} of {} ({share:.2} %)",
                parameters(plan.n_trained_params),
                parameters(plan.n_params)
            ),
        ),
        ("precision:", format!(" {}", plan.precision)),
        (
            "memory, by estimate:",
            format!(" {}{}", plan.memory, device.unwrap_or_default()),
        ),
        (
            "plan:",
            format!(
                " {} steps of {} {sequences}, {:.2} epochs over {} {samples}",
                plan.total_steps, plan.sequences_per_step, plan.epochs, plan.n_samples
            ),
        ),
        ("run directory:", format!(" {}", plan.directory.display())),
    ]
}

pub(super) fn making_kernels(measured: bool) -> &'static str {
    if measured {
        "choosing kernels, once per shape: the first steps take longer, in a first run above all"
    } else {
        "making kernels, once per shape: the first steps take longer"
    }
}

pub(super) fn first_step(seconds: f64, n_choices: usize) -> String {
    match n_choices {
        0 => format!("first step: {seconds:.1} s, all kernel choices known from an earlier run"),
        n => format!(
            "first step: {seconds:.1} s; kernels chosen for {n} new shapes so far, kept for later runs"
        ),
    }
}

/// A logged line, without its number and times.
pub(super) fn step(report: &StepReport) -> String {
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

pub(super) fn evaluated(step: usize, evaluation: &Evaluation) -> String {
    match evaluation.perplexity {
        Some(perplexity) => format!(
            "step {step}: validation loss {:.4}, perplexity {perplexity:.3} over {} tokens",
            evaluation.loss, evaluation.count
        ),
        None => format!(
            "step {step}: validation loss {:.4}{}",
            evaluation.loss,
            measured(", ", &evaluation.measures)
        ),
    }
}

/// What is measured beside the loss, after a separator if there is anything.
pub(super) fn measured(separator: &str, measures: &BTreeMap<String, f64>) -> String {
    match in_words(measures) {
        words if words.is_empty() => words,
        words => format!("{separator}{words}"),
    }
}

pub(super) fn finished(summary: &Summary) -> String {
    let text = format!(
        "done: {} steps, {} tokens in {:.1} s of training ({:.0} tok/s), {:.1} s in all{}",
        summary.steps,
        summary.tokens,
        summary.train_seconds,
        summary.tokens_per_second,
        summary.wall_seconds,
        match memory(summary) {
            memory if memory.is_empty() => memory,
            memory => format!(", {memory}"),
        }
    );
    let mut text = match validation(summary) {
        Some(validation) => format!("{text}\nvalidation loss: {validation}"),
        None => text,
    };
    for (when, measures) in validation_measures(summary) {
        text = format!("{text}\nvalidation, {when}: {measures}");
    }
    if let Some(concern) = &summary.concern {
        text = format!("{text}\nwarning: {concern}");
    }
    format!("{text}\nresult: {}", summary.result.display())
}

/// The memory that a run took, and was expected to.
pub(super) fn memory(summary: &Summary) -> String {
    let estimated = size(summary.estimated_memory.total());
    match (summary.peak_memory, summary.peak_device_memory) {
        (None, None) => String::new(),
        (Some(bytes), None) => format!("peak {} (estimated {estimated})", size(bytes)),
        (None, Some(bytes)) => format!("on the device {} (estimated {estimated})", size(bytes)),
        (Some(peak), Some(bytes)) => format!(
            "peak {}, on the device {} (estimated {estimated})",
            size(peak),
            size(bytes)
        ),
    }
}

/// Losses before and after, and the lowest between.
pub(super) fn validation(summary: &Summary) -> Option<String> {
    let (before, after) = (summary.validation_loss_before?, summary.validation_loss?);
    let text = format!("{before:.4} before, {after:.4} after");
    Some(match (summary.best_validation_loss, summary.best_step) {
        (Some(best), Some(step)) => format!("{text} (lowest {best:.4} at step {step})"),
        _ => text,
    })
}

/// What else was measured, before and after.
pub(super) fn validation_measures(summary: &Summary) -> Vec<(&'static str, String)> {
    let all = [
        ("before", &summary.validation_measures_before),
        ("after", &summary.validation_measures),
    ];
    all.into_iter()
        .map(|(when, measures)| (when, in_words(measures)))
        .filter(|(_, words)| !words.is_empty())
        .collect()
}

pub(crate) fn parameters(n: usize) -> String {
    match n {
        0..10_000 => format!("{n} parameters"),
        10_000..10_000_000 => format!("{:.1} k parameters", n as f64 / 1e3),
        _ => format!("{:.1} M parameters", n as f64 / 1e6),
    }
}
