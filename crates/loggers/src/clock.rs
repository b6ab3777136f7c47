//! What the clock says.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since 1970. A clock that is set before that says 0.
pub(crate) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// The same in whole milliseconds, as MLflow has times.
pub(crate) fn milliseconds() -> u64 {
    now().as_millis() as u64
}
