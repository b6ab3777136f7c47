//! Panics of libraries as errors. Files that they did not foresee make some of them
//! break off in the middle of a computation. The error says what they said, so
//! nothing is printed.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
    thread,
};

thread_local! {
    /// How many calls of [`caught`] are under way on this thread.
    static CATCHING: Cell<u32> = const { Cell::new(0) };
}

/// Runs something. What a panic in it said is the error; the panic hook, which would
/// print it, does not hear of it.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    heed_catching();
    let n = CATCHING.get();
    CATCHING.set(n + 1);
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    CATCHING.set(n);
    result.map_err(|panic| message(&*panic))
}

/// Wraps the panic hook, once. All panics that are not caught here are still its own
/// to tell.
fn heed_catching() {
    static ONCE: Once = Once::new();
    // Hooks cannot be changed by a thread that unwinds.
    if thread::panicking() {
        return;
    }
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if CATCHING.try_with(Cell::get).unwrap_or(0) == 0 {
                before(panic);
            }
        }));
    });
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "nothing".to_owned())
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    use super::*;

    /// What the test below looks at, in a process of its own: hooks belong to all
    /// threads.
    #[test]
    #[ignore = "is run by another test"]
    fn two_panics() {
        assert_eq!(caught(|| panic!("Alder")), Err::<(), _>("Alder".to_owned()));
        let other = thread::spawn(|| panic!("Zora"));
        assert!(other.join().is_err());
    }

    #[test]
    fn only_what_is_not_caught_is_printed() {
        let mut tests = Command::new(env::current_exe().unwrap());
        let only = ["--exact", "panics::tests::two_panics", "--ignored"];
        let ran = tests.args(only).arg("--nocapture").output().unwrap();
        let printed = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{printed}");
        assert!(
            printed.contains("Zora") && !printed.contains("Alder"),
            "{printed}"
        );
    }

    #[test]
    fn what_is_caught_may_catch_too() {
        let outer = caught(|| {
            assert_eq!(caught(|| panic!("{}", 7)), Err::<(), _>("7".to_owned()));
            3
        });
        assert_eq!(outer, Ok(3));
        assert_eq!(CATCHING.get(), 0);
    }
}
