//! Events of a run and a comparison, as lines of JSON. `docs/terminal.md` lists them.

use std::{path::Path, time::Instant};

use olora_comparison::ComparisonEvent;
use olora_runs::Event;
use serde_json::{Value, json};

use super::clock::Clock;
use crate::terminal::tagged;

/// What a program is told of an event. Notes are written where they are said, and the
/// summary where the run has ended, also if it was interrupted.
pub(super) fn of(event: &Event, clock: &Clock, total_steps: usize, now: Instant) -> Option<Value> {
    Some(match event {
        Event::Data { role, path, report } => {
            json!({ "event": "data", "role": role, "path": name(path), "report": report })
        }
        Event::ModelLoaded {
            path,
            n_params,
            n_packed,
            seconds,
        } => json!({
            "event": "model", "path": name(path), "parameters": n_params, "packed_matrices": n_packed,
            "seconds": seconds,
        }),
        Event::Looking(batch) => json!({ "event": "looking", "batch": batch }),
        Event::Attaching(done, all) if done == all => {
            json!({ "event": "attached", "layers": all })
        }
        Event::MakingKernels { measured } => json!({ "event": "kernels", "measured": measured }),
        Event::FirstStep { seconds, n_choices } => {
            json!({ "event": "first_step", "seconds": seconds, "kernel_choices": n_choices })
        }
        Event::DeviceChecked {
            dtype,
            worst,
            seconds,
        } => json!({
            "event": "device_check", "dtype": dtype, "worst": worst, "seconds": seconds,
        }),
        Event::Ready(plan) => tagged("ready", plan),
        Event::Resumed(step) => json!({ "event": "resumed", "step": step }),
        Event::Sample { when, prompt, text } => {
            json!({ "event": "sample", "when": when, "prompt": prompt, "text": text })
        }
        Event::Step(report) => {
            let mut event = tagged("step", report);
            event["total_steps"] = json!(total_steps);
            event["elapsed"] = json!(clock.elapsed(now));
            event["seconds_left"] = json!(clock.left(now));
            event
        }
        Event::Evaluated { step, evaluation } => {
            let mut event = tagged("evaluation", evaluation);
            event["step"] = json!(step);
            event
        }
        Event::Checkpoint { step, path } => {
            json!({ "event": "checkpoint", "step": step, "path": name(path) })
        }
        Event::Detail(text) => json!({ "event": "detail", "text": text }),
        Event::Took { stage, seconds } => {
            json!({ "event": "took", "stage": stage, "seconds": seconds })
        }
        Event::Interrupted(step) => json!({ "event": "interrupted", "step": step }),
        Event::Attaching(..) | Event::Note(_) | Event::Progress(_) | Event::Finished(_) => {
            return None;
        }
    })
}

/// A path that is no Unicode is not to end a run.
fn name(path: &Path) -> String {
    path.display().to_string()
}

pub(super) fn of_comparison(event: &ComparisonEvent<'_>) -> Option<Value> {
    Some(match event {
        // Has been written as the run's.
        ComparisonEvent::Run(_) => return None,
        ComparisonEvent::Trial { number, of, name } => {
            json!({ "event": "trial", "number": number, "of": of, "name": name })
        }
        ComparisonEvent::Scoring(name) => json!({ "event": "scoring", "name": name }),
        ComparisonEvent::TrialFinished {
            name,
            loss,
            seconds,
        } => json!({
            "event": "trial_finished", "name": name, "loss": loss, "seconds": seconds,
        }),
    })
}
