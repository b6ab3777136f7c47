//! The bar at the bottom of a terminal. Lines go above it, from whichever thread.

use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, WeakProgressBar};

use super::{Level, is_at_least, is_mute};

/// The bar that was begun last.
static BAR: Mutex<Option<WeakProgressBar>> = Mutex::new(None);

/// Whether bars are drawn: where stderr is a terminal that can move its cursor, and
/// how things go is said.
pub(crate) fn draws_bars() -> bool {
    !is_mute() && is_at_least(Level::Usual) && !ProgressDrawTarget::stderr().is_hidden()
}

/// A bar of so many parts; nothing is drawn of it where bars are not.
pub(crate) fn bar(total: u64, template: &str) -> ProgressBar {
    let target = if draws_bars() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    let style = ProgressStyle::with_template(template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.downgrade());
    bar
}

/// Writes with the bar out of the way.
pub(super) fn above(write: impl FnOnce()) {
    let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar.and_then(|bar| bar.upgrade()) {
        Some(bar) if !bar.is_finished() => bar.suspend(write),
        _ => write(),
    }
}
