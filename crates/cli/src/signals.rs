//! What ends a run or a server from outside: Ctrl-C, and what schedulers and
//! closing terminals send. The first finishes the step and writes a checkpoint,
//! or answers what was asked; the second ends the process at once.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use anyhow::{Context, Result};
use burn::train::Interrupter;

use crate::terminal::answer;

/// Its number is the same everywhere.
const INTERRUPT: u8 = 2;

/// The signal that came first.
static RECEIVED: AtomicU8 = AtomicU8::new(0);

/// What stops a run from outside, listening from now on.
pub(crate) fn interrupter() -> Result<Interrupter> {
    let interrupter = Interrupter::new();
    let handler = interrupter.clone();
    listen(move |signal| {
        let name = name(signal);
        if handler.should_stop() {
            answer(&format!(
                "{name}: stopped without a checkpoint of the last steps"
            ));
            end(128 + i32::from(signal));
        }
        RECEIVED.store(signal, Ordering::SeqCst);
        handler.stop(Some(name));
        answer(&format!(
            "{name}: finishing the step and writing a checkpoint; {} to stop at once",
            if signal == INTERRUPT {
                "press Ctrl-C again"
            } else {
                "send it again"
            }
        ));
    })
    .context("listening to signals")?;
    Ok(interrupter)
}

/// Has a server stop at the first signal, and the process end at the second. To end is
/// what a server is meant to do some day, so that the exit code is 0.
#[cfg(feature = "web")]
pub(crate) fn end_server(stop: &olora_web::Stop) -> Result<()> {
    let stop = stop.clone();
    listen(move |signal| {
        if stop.is_stopped() {
            end(128 + i32::from(signal));
        }
        stop.stop();
    })
    .context("listening to signals")
}

/// The exit code of a run that was interrupted: as shells count, 128 and the
/// signal's number. Leaving the full-screen view counts as Ctrl-C.
pub(crate) fn interrupted() -> ExitCode {
    let signal = match RECEIVED.load(Ordering::SeqCst) {
        0 => INTERRUPT,
        signal => signal,
    };
    ExitCode::from(128 + signal)
}

/// Lets Ctrl-C stop an answer. Where none is under way, and while one is being
/// stopped, it ends the process.
pub(crate) struct Stopper(Arc<AtomicU8>);

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
const STOPPED: u8 = 2;

impl Stopper {
    /// Listens to Ctrl-C from now on.
    pub(crate) fn new() -> Result<Self> {
        let state = Arc::new(AtomicU8::new(IDLE));
        let seen = Arc::clone(&state);
        listen_to(Wanted::Interrupt, move |signal| {
            let (from, to) = (ANSWERING, STOPPED);
            let changed = seen.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
            if changed.is_err() {
                // The terminal has shown `^C` on this line.
                answer("");
                end(128 + i32::from(signal));
            }
        })
        .context("listening to signals")?;
        Ok(Self(state))
    }

    pub(crate) fn begin(&self) {
        self.0.store(ANSWERING, Ordering::SeqCst);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.load(Ordering::SeqCst) == STOPPED
    }

    /// Returns whether the answer was stopped.
    pub(crate) fn finish(&self) -> bool {
        self.0.swap(IDLE, Ordering::SeqCst) == STOPPED
    }
}

/// Which signals are listened to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Whatever ends a run.
    All,
    /// Ctrl-C.
    Interrupt,
}

#[cfg(unix)]
fn name(signal: u8) -> &'static str {
    match i32::from(signal) {
        libc::SIGTERM => "SIGTERM",
        libc::SIGHUP => "SIGHUP",
        libc::SIGUSR1 => "SIGUSR1",
        _ => "Ctrl-C",
    }
}

#[cfg(not(unix))]
fn name(_signal: u8) -> &'static str {
    "Ctrl-C"
}

/// Calls `on` with the number of each signal that ends a run, on a thread of its own.
fn listen(on: impl FnMut(u8) + Send + 'static) -> Result<()> {
    listen_to(Wanted::All, on)
}

#[cfg(unix)]
fn listen_to(wanted: Wanted, mut on: impl FnMut(u8) + Send + 'static) -> Result<()> {
    use signal_hook::iterator::Signals;

    let mut signals = vec![libc::SIGINT];
    if wanted == Wanted::All {
        signals.extend([libc::SIGTERM, libc::SIGHUP]);
        if crate::parallel::is_one_of_several() {
            // What `mpirun` hands on to the ranks as it is; of Ctrl-C it makes an end within two seconds.
            signals.push(libc::SIGUSR1);
        }
    }
    // What was switched off stays so: `nohup` ignores SIGHUP, and a shell SIGINT for what runs in
    // the background of a script.
    let mut signals = Signals::new(signals.into_iter().filter(|signal| !is_ignored(*signal)))?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                on(signal as u8);
            }
        })?;
    Ok(())
}

/// Whether this process was started with a signal ignored.
#[cfg(unix)]
fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call changes nothing; it writes the present one to where
    // there is room for it, and a `sigaction` of zeros is a valid one if it fails.
    let action = unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// On Windows Ctrl-C, Ctrl-Break and a closing console; which one is not said.
#[cfg(not(unix))]
fn listen_to(_wanted: Wanted, mut on: impl FnMut(u8) + Send + 'static) -> Result<()> {
    Ok(ctrlc::set_handler(move || on(INTERRUPT))?)
}

/// Ends the process without waiting for other threads, whatever they are in.
#[cfg(unix)]
pub(crate) fn end(code: i32) -> ! {
    signal_hook::low_level::exit(code)
}

#[cfg(not(unix))]
pub(crate) fn end(code: i32) -> ! {
    std::process::exit(code)
}
