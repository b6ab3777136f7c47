//! What happens, for programs: with `--json`, a line of JSON on stdout for each event.
//!
//! The names are a promise: `docs/terminal.md` lists them.

use std::{
    io::{self, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Serialize;
use serde_json::{Map, Value};

use super::out;

static ON: AtomicBool = AtomicBool::new(false);

/// The first error of writing events, which is told in the end: a run does not stop
/// because its log cannot be written.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Whether events are written from here on.
pub(crate) fn set(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

/// Whether stdout is for events.
pub(crate) fn are_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Writes an event, if events are written.
pub(crate) fn emit(event: &Value) {
    if !are_on() {
        return;
    }
    // At once, so that lines of several threads are not mixed.
    let line = format!("{event}\n");
    let mut out = out();
    let written = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = written {
        FAILED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
    }
}

/// Why events could not be written, once.
pub(crate) fn failure() -> Option<io::Error> {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// An event of this name, with the fields of a structure.
pub(crate) fn tagged(name: &str, fields: &impl Serialize) -> Value {
    let mut event = Map::new();
    event.insert("event".to_owned(), name.into());
    // Our own structures have names for keys, and can be written.
    if let Ok(Value::Object(fields)) = serde_json::to_value(fields) {
        event.extend(fields);
    }
    Value::Object(event)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_begins_with_its_name() {
        let event = tagged("step", &json!({ "step": 3, "loss": f64::NAN }));
        assert_eq!(
            event.to_string(),
            r#"{"event":"step","step":3,"loss":null}"#
        );
    }
}
