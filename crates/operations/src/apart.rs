//! Rows that are computed as if each were the only one.
//!
//! A product of several rows is summed in another order than that of one, so that the
//! last bits of a text's logits would depend on which other texts are continued with it.
//! Where answers must not depend on that, rows are kept apart: on the CPU each has the
//! bits then that it has alone, while weights are still read once for all of them.

use std::cell::Cell;

thread_local! {
    static APART: Cell<bool> = const { Cell::new(false) };
}

/// Has the products of `work`, on this thread, compute each row of their input as if it
/// were the only one: for inputs whose rows are tokens of different texts.
///
/// On the CPU the results are those of the rows one by one, bit for bit. Other devices
/// take no notice.
pub fn rows_apart<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            APART.set(self.0);
        }
    }
    let _restore = Restore(APART.replace(true));
    work()
}

/// Whether rows are to be kept apart on this thread.
pub(crate) fn rows_are_apart() -> bool {
    APART.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_apart_within_and_not_after_even_if_it_fails() {
        assert!(!rows_are_apart());
        rows_apart(|| {
            assert!(rows_are_apart());
            rows_apart(|| ());
            assert!(rows_are_apart());
        });
        let failed = std::panic::catch_unwind(|| rows_apart(|| panic!("on purpose")));
        assert!(failed.is_err() && !rows_are_apart());
    }
}
