//! `experiment.log`, and what can be heard in it: Burn's own record of the run.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::RunError;

static LOG: RunLog = RunLog(Mutex::new(None));
static INSTALLED: Once = Once::new();
static CHOICES: AtomicUsize = AtomicUsize::new(0);

struct RunLog(Mutex<Option<(File, Instant)>>);

/// For how many shapes a device has chosen a kernel in this process, by
/// measuring or not; those known from an earlier run are not among them.
pub(crate) fn n_choices() -> usize {
    CHOICES.load(Ordering::Relaxed)
}

/// Hears what is logged from here on. A program that has installed a logger of
/// its own keeps it; `experiment.log` then stays empty and kernel choices are
/// not counted.
pub(crate) fn listen() {
    INSTALLED.call_once(|| {
        if log::set_logger(&LOG).is_ok() {
            log::set_max_level(LevelFilter::Info);
        }
    });
}

/// From here on, what is logged is appended to `path`.
pub(crate) fn write_to(path: &Path) -> Result<(), RunError> {
    listen();
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|source| RunError::io("opening", path, source))?;
    *LOG.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((file, Instant::now()));
    Ok(())
}

impl Log for RunLog {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // wgpu tells every step it takes.
        let chatty = ["wgpu", "naga"]
            .iter()
            .any(|name| metadata.target().starts_with(name));
        metadata.level() <= if chatty { Level::Warn } else { Level::Info }
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if record.target() == "cubecl_runtime::tune::tuner" && record.level() == Level::Info {
            CHOICES.fetch_add(1, Ordering::Relaxed);
        }
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((file, began)) = log.as_mut() {
            let seconds = began.elapsed().as_secs_f64();
            // A full disk must not stop the run for the sake of its log.
            let _ = writeln!(
                file,
                "{seconds:9.3} {:5} {}: {}",
                record.level(),
                record.target(),
                record.args()
            );
        }
    }

    fn flush(&self) {}
}
