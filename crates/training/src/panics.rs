//! Panics as errors: a tensor operation has no other way to say that its device
//! failed, and says it on a thread of its own.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
};

/// What panics have said since [`record_panics`].
static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// From now on, panics of this process are written to the run's log and kept
/// for the error that follows from them, instead of being printed. For
/// binaries: a library should leave the panic hook to its user.
pub fn record_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let said = message(panic.payload());
        let place = panic
            .location()
            .map_or_else(String::new, |place| format!(" at {place}"));
        log::error!("panic{place}: {said}");
        HEARD
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(said);
    }));
}

/// What panics have said so far, the first first; nothing without
/// [`record_panics`].
pub(crate) fn heard() -> Vec<String> {
    HEARD.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Runs something; a panic in it is returned as what it said.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it panicked without a message".to_owned())
}
