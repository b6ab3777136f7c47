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

/// How many panics have been heard so far; see [`heard_since`].
pub(crate) fn n_heard() -> usize {
    HEARD.lock().unwrap_or_else(PoisonError::into_inner).len()
}

/// What panics have said after the first `n`, the first first; nothing without
/// [`record_panics`].
pub(crate) fn heard_since(n: usize) -> Vec<String> {
    let heard = HEARD.lock().unwrap_or_else(PoisonError::into_inner);
    heard.get(n..).unwrap_or_default().to_vec()
}

/// Runs something. A panic in it is returned as what it said, together with
/// what panics of other threads said meanwhile: a device fails on a thread of
/// its own, and whoever waits for it learns only that it is gone.
///
/// # Errors
///
/// What the panics said.
pub fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    let before = n_heard();
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let said = message(&*panic);
        let mut all = heard_since(before);
        all.retain(|other| *other != said);
        all.push(said);
        all.dedup();
        all.join("; then: ")
    })
}

/// Runs something and returns with it what panics said meanwhile, on whatever
/// thread; nothing without [`record_panics`].
pub fn listening<T>(run: impl FnOnce() -> T) -> (T, Vec<String>) {
    let before = n_heard();
    let result = run();
    (result, heard_since(before))
}

fn message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it panicked without a message".to_owned())
}
