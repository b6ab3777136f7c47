//! What the thread that trains and the one that sends share.

use std::{
    collections::VecDeque,
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Status, client::MOST_METRICS, unsent::Unsent};

/// How many times the patience with a single answer the end of a run has with
/// a server that takes what is left, little by little.
const IN_ALL: u32 = 6;

/// What was logged at once.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Values {
    pub(super) step: u64,
    /// Milliseconds since 1970.
    pub(super) timestamp: u64,
    pub(super) pairs: Vec<(String, f64)>,
}

impl Values {
    /// As MLflow takes them.
    pub(super) fn metrics(&self) -> impl Iterator<Item = Value> {
        self.pairs.iter().map(|(key, value)| {
            json!({
                "key": key,
                "value": number(*value),
                "timestamp": self.timestamp,
                "step": self.step,
            })
        })
    }
}

/// A number in JSON, which has no NaN and no infinity; MLflow takes them as
/// texts.
fn number(value: f64) -> Value {
    if value.is_finite() {
        json!(value)
    } else if value.is_nan() {
        json!("NaN")
    } else if value > 0.0 {
        json!("Infinity")
    } else {
        json!("-Infinity")
    }
}

/// What is to be done next.
pub(super) enum Work {
    /// Values to send, of as many entries of the buffer.
    Send(Vec<Values>),
    /// Everything is sent but how the run ended.
    End(Status),
    /// Whoever logged has gone.
    Stop,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct State {
    buffer: VecDeque<Values>,
    /// Single values in it.
    n_values: usize,
    notes: Vec<String>,
    unsent: Unsent,
    /// Single values that have left it.
    n_done: usize,
    /// Why the last request came to nothing.
    reason: String,
    /// How the run ended, once it has.
    ended: Option<Status>,
    /// Whether the server knows all, the end too.
    is_told: bool,
    /// Whether nothing is waited for any more.
    is_left: bool,
}

impl Shared {
    /// With what was left by an earlier session, and the file it is in.
    pub(super) fn new(left: Vec<Values>, unsent: Unsent, capacity: usize) -> Self {
        let n_values = left.iter().map(|values| values.pairs.len()).sum();
        Self {
            state: Mutex::new(State {
                buffer: left.into(),
                n_values,
                notes: Vec::new(),
                unsent,
                n_done: 0,
                reason: String::new(),
                ended: None,
                is_told: false,
                is_left: false,
            }),
            changed: Condvar::new(),
            capacity,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes values to be sent. Where the buffer is full they go into the file.
    pub(super) fn push(&self, values: Values) {
        let mut state = self.state();
        if state.n_values + values.pairs.len() > self.capacity {
            state.unsent.append(&[values]);
            return;
        }
        state.n_values += values.pairs.len();
        state.buffer.push_back(values);
        self.changed.notify_all();
    }

    pub(super) fn note(&self, note: String) {
        self.state().notes.push(note);
    }

    pub(super) fn take_notes(&self) -> Vec<String> {
        mem::take(&mut self.state().notes)
    }

    /// Waits for something to do.
    pub(super) fn next(&self) -> Work {
        let mut state = self.state();
        loop {
            if state.is_left {
                return Work::Stop;
            }
            if !state.buffer.is_empty() {
                let mut n_values = 0;
                let batch = state.buffer.iter().take_while(|values| {
                    n_values += values.pairs.len();
                    n_values <= MOST_METRICS
                });
                return Work::Send(batch.cloned().collect());
            }
            if let Some(status) = state.ended {
                return Work::End(status);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Forgets the first entries of the buffer, which are done with.
    pub(super) fn done(&self, n: usize) {
        let mut state = self.state();
        if state.is_left {
            return;
        }
        let done: usize = state
            .buffer
            .drain(..n)
            .map(|values| values.pairs.len())
            .sum();
        state.n_values -= done;
        state.n_done += done;
        self.changed.notify_all();
    }

    /// Keeps values in the file that the server does not take.
    pub(super) fn keep(&self, values: &[Values]) {
        let mut state = self.state();
        if !state.is_left {
            state.unsent.append(values);
        }
    }

    /// The server knows how the run ended.
    pub(super) fn told(&self) {
        self.state().is_told = true;
        self.changed.notify_all();
    }

    /// Remembers why a request came to nothing.
    pub(super) fn failed(&self, reason: &str) {
        reason.clone_into(&mut self.state().reason);
    }

    /// Whether nobody waits for anything any more.
    pub(super) fn is_left(&self) -> bool {
        self.state().is_left
    }

    /// Whether the run has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.state().ended.is_some()
    }

    /// Waits for more to send, until the run ends or a request is full.
    pub(super) fn gather(&self, pause: Duration) {
        let waits = |state: &mut State| {
            !state.is_left && state.ended.is_none() && state.n_values < MOST_METRICS
        };
        drop(
            self.changed
                .wait_timeout_while(self.state(), pause, waits)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Waits after a failure, less long if the run ends meanwhile.
    pub(super) fn pause(&self, pause: Duration) {
        let state = self.state();
        let had_ended = state.ended.is_some();
        let goes_on = |state: &mut State| !state.is_left && (had_ended || state.ended.is_none());
        drop(
            self.changed
                .wait_timeout_while(state, pause, goes_on)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Has the run end, waits until the server knows it, and keeps what it does
    /// not know in the file. It is not waited for longer than `patience` while
    /// nothing is sent, and [`IN_ALL`] times as long in all.
    pub(super) fn end(&self, status: Status, patience: Duration, address: &str) {
        let mut state = self.state();
        state.ended = Some(status);
        self.changed.notify_all();
        let began = Instant::now();
        loop {
            let n_done = state.n_done;
            let left = (patience * IN_ALL).saturating_sub(began.elapsed());
            let waits = |state: &mut State| !state.is_told && state.n_done == n_done;
            let waited = self
                .changed
                .wait_timeout_while(state, patience.min(left), waits)
                .unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if state.is_told || waited.1.timed_out() {
                break;
            }
        }
        state.is_left = true;
        self.changed.notify_all();
        let rest: Vec<Values> = state.buffer.drain(..).collect();
        let kept = state.unsent.settle(&rest);
        let reason = match state.reason.as_str() {
            "" => "it has not answered in time",
            reason => reason,
        };
        let status = status.name();
        let note = match (kept, state.is_told) {
            (None, true) => return,
            (None, false) => format!(
                "the MLflow server at {address} was not told that the run has ended ({reason}): it is not {status} \
                 there"
            ),
            (Some(kept), true) => format!("{kept} to the MLflow server at {address} ({reason})"),
            (Some(kept), false) => format!(
                "{kept} to the MLflow server at {address} ({reason}); the run is not {status} there"
            ),
        };
        state.notes.push(note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_has_no_form_for_are_texts() {
        let values = [1.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(number);
        assert_eq!(
            values,
            [
                json!(1.5),
                json!("NaN"),
                json!("Infinity"),
                json!("-Infinity")
            ]
        );
    }
}
