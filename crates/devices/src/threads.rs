//! The threads that the CPU's kernels share their work out to.

use std::{env, thread::available_parallelism};

use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};

/// The environment variable that says how many.
pub const VARIABLE: &str = "RAYON_NUM_THREADS";

/// How many there are.
pub fn count() -> usize {
    rayon::current_num_threads()
}

/// Starts them, `n` or as many as the environment or the machine has, with the
/// calling thread among them: what it hands over it need not be woken up for
/// afterwards. For a program to call, once, from the thread that computes.
///
/// A pool of one thread alone would serve no other thread, which would wait for
/// ever: then the calling one stays outside.
///
/// # Errors
///
/// When they cannot be started, or have been.
pub fn start(n: Option<usize>) -> Result<(), ThreadPoolBuildError> {
    let given = || env::var(VARIABLE).ok()?.parse().ok().filter(|n| *n > 0);
    let n = n
        .or_else(given)
        .unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
    olora_operations::limit_threads(n);
    let mut pool = ThreadPoolBuilder::new().num_threads(n);
    if n > 1 {
        pool = pool.use_current_thread();
    }
    pool.build_global()
}
