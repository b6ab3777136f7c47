//! Several processes of one command: joining them, their devices and threads,
//! and how they end.
//!
//! The first rank speaks for all: what the others would print is the same, or
//! reaches it as an error.

use std::process::ExitCode;
#[cfg(feature = "mpi")]
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Result;
use olora_files::size;
use olora_mpi::Launch;
#[cfg(feature = "mpi")]
use olora_mpi::Mpi;
use olora_runs::{Forecast, Ranks};
#[cfg(feature = "mpi")]
use olora_training::Exchange;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[cfg(feature = "mpi")]
use crate::signals;
use crate::{Usage, terminal};

/// The ranks, once they are joined.
#[cfg(feature = "mpi")]
static JOINED: OnceLock<(Launch, Arc<Mpi>)> = OnceLock::new();

/// Seconds without a sign of life after which a rank counts as lost.
#[cfg(feature = "mpi")]
const TIMEOUT: &str = "OLORA_RANK_TIMEOUT";

/// Joins the other processes, if a launcher has started several. Returns how many
/// threads this one is to compute with, if that is not all that there are.
///
/// # Errors
///
/// Usage errors: a command that several processes have no use for, or a build
/// without MPI, which would do the same work several times over.
pub(crate) fn join(shared_by_ranks: bool) -> Result<Option<usize>> {
    let launch = Launch::from_env(|name| std::env::var(name).ok());
    let Some(launch) = launch.map_err(|error| Usage::new(&error.to_string()))? else {
        return Ok(None);
    };
    if launch.rank > 0 {
        terminal::mute();
    }
    if !shared_by_ranks {
        return Err(Usage::new(&format!(
            "{} has started {} processes of this command, but only `train`, `plan` and `evaluate` are shared out: \
             start it once, without the launcher",
            launch.launcher, launch.n_ranks
        )));
    }
    join_launched(launch)
}

#[cfg(not(feature = "mpi"))]
#[expect(clippy::needless_pass_by_value, reason = "as with the feature")]
fn join_launched(launch: Launch) -> Result<Option<usize>> {
    Err(Usage::new(&format!(
        "{} has started {} processes of this command, and this build cannot share the work out among them: each \
         would do all of it. Build olora with `--features mpi` (it needs an MPI and libclang: docs/parallel.md), \
         or start it once, without the launcher",
        launch.launcher, launch.n_ranks
    )))
}

#[cfg(feature = "mpi")]
fn join_launched(launch: Launch) -> Result<Option<usize>> {
    let limit = match std::env::var(TIMEOUT) {
        Err(_) => 6,
        Ok(text) => text.parse().ok().filter(|seconds| (3..=3600).contains(seconds)).ok_or_else(|| {
            Usage::new(&format!(
                "{TIMEOUT} is {text:?}, but must be a whole number between 3 and 3600: the seconds without a sign of \
                 life after which a rank counts as lost"
            ))
        })?,
    };
    let mpi = Mpi::join(&launch, Duration::from_secs(limit), leave)
        .map_err(|reason| anyhow::anyhow!("{reason}"))?;
    let mpi = Arc::new(mpi);
    let (_, n_local) = mpi.local();
    // It is set once: there is one `main`.
    let _ = JOINED.set((launch, mpi));
    Ok(threads(n_local))
}

/// Shares the machine's cores out: as many threads for each rank as there are
/// cores for it, and at least one. What `RAYON_NUM_THREADS` says is done, and
/// where a launcher has bound this process to some cores, those are its.
#[cfg(feature = "mpi")]
fn threads(n_local: usize) -> Option<usize> {
    let is_given =
        std::env::var(olora_devices::threads::VARIABLE).is_ok_and(|n| !n.is_empty() && n != "0");
    if is_given {
        return None;
    }
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let of_each = usable / n_local.max(1);
    (!is_bound(usable)).then(|| of_each.max(1))
}

/// Whether this process may use fewer cores than the machine has.
#[cfg(all(feature = "mpi", unix))]
fn is_bound(usable: usize) -> bool {
    // SAFETY: a plain question about the machine.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(online).is_ok_and(|online| usable < online)
}

#[cfg(all(feature = "mpi", not(unix)))]
fn is_bound(_usable: usize) -> bool {
    false
}

/// Ends the process where its other threads do not.
#[cfg(feature = "mpi")]
fn leave(error: Option<&str>, code: u8) -> ! {
    if let Some(error) = error {
        terminal::error_anyway(error);
    }
    signals::end(i32::from(code))
}

/// The ranks of a run; one alone if no others were joined.
pub(crate) fn ranks() -> Ranks {
    #[cfg(feature = "mpi")]
    if let Some((_, mpi)) = JOINED.get() {
        let mpi: Arc<dyn Exchange> = mpi.clone();
        return Ranks(mpi);
    }
    Ranks::default()
}

/// Whether others do the same work.
pub(crate) fn is_one_of_several() -> bool {
    ranks().0.n_ranks() > 1
}

/// Whether another rank speaks for this one.
pub(crate) fn is_follower() -> bool {
    ranks().0.rank() > 0
}

/// What a planned run takes on one rank.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Share {
    /// Which rank, for people.
    rank: String,
    /// Bytes at the peak, by estimate.
    peak_memory: u64,
    /// Bytes that its device has, where it is known.
    device_memory: Option<u64>,
    /// Seconds for its share of the run, by a trial.
    train_seconds: Option<f64>,
}

/// What a planned run takes on each rank.
pub(crate) fn shares(forecast: &Forecast) -> Result<Vec<Share>> {
    let ranks = ranks();
    let own = Share {
        rank: ranks.0.name(ranks.0.rank()),
        peak_memory: forecast.peak_memory,
        device_memory: forecast.device_memory,
        train_seconds: forecast.probe.as_ref().map(|probe| probe.train_seconds),
    };
    let all = ranks.0.gather(serde_json::to_vec(&own)?)?;
    let all = all.iter().map(|share| Ok(serde_json::from_slice(share)?));
    all.collect()
}

/// A line for each rank; nothing for one alone.
pub(crate) fn table(shares: &[Share]) -> String {
    if shares.len() < 2 {
        return String::new();
    }
    let mut lines: Vec<String> = shares.iter().map(Share::line).collect();
    let seconds = shares.iter().filter_map(|share| share.train_seconds);
    lines.extend(seconds.reduce(f64::max).map(|slowest| {
        format!("together: {slowest:.1} s, the slowest rank's, and the exchange of each step")
    }));
    lines.join("\n") + "\n"
}

impl Share {
    fn line(&self) -> String {
        let mut line = format!("{}: peak {}", self.rank, size(self.peak_memory));
        if let Some(bytes) = self.device_memory {
            line = format!("{line} of {}", size(bytes));
        }
        if let Some(seconds) = self.train_seconds {
            line = format!("{line}, its share in {seconds:.1} s");
        }
        line
    }
}

/// The device of this rank, of those that a name stands for: `cuda` is the
/// machine's device of the rank's number on that machine.
#[cfg_attr(
    not(feature = "mpi"),
    expect(clippy::unnecessary_wraps, reason = "as with the feature")
)]
pub(crate) fn device(name: &str) -> Result<String> {
    #[cfg(feature = "mpi")]
    if let Some((launch, mpi)) = JOINED.get() {
        return device_of_rank(name, launch, mpi);
    }
    Ok(name.to_owned())
}

#[cfg(feature = "mpi")]
fn device_of_rank(name: &str, launch: &Launch, mpi: &Mpi) -> Result<String> {
    let (local, n_local) = mpi.local();
    if name == "cpu" {
        return Ok(name.to_owned());
    }
    // Slurm and Kubernetes may show each rank a device of its own, which it then sees as the only one.
    let visible = [
        "CUDA_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
    ];
    let own = visible.iter().find_map(|name| std::env::var(name).ok());
    let all = mpi.gather(own.unwrap_or_default().into_bytes())?;
    let here = mpi.hosts().iter().zip(&all);
    let own_host = &mpi.hosts()[mpi.rank()];
    let mut here: Vec<_> = here
        .filter(|(host, _)| *host == own_host)
        .map(|(_, set)| set)
        .collect();
    here.sort();
    here.dedup();
    let each_has_its_own = here.len() == n_local && here.iter().all(|set| !set.is_empty());
    if name.contains(':') {
        return if n_local == 1 || each_has_its_own {
            Ok(name.to_owned())
        } else {
            Err(Usage::new(&format!(
                "--device {name} is one device, which the {n_local} ranks on {own_host} would share: give the \
                 backend alone, and rank i of a machine takes its device i"
            )))
        };
    }
    let index = if each_has_its_own && n_local > 1 {
        0
    } else {
        launch.local_rank.unwrap_or(local)
    };
    Ok(format!("{name}:{index}"))
}

/// Says which rank has which device, on the first; `own` is this one's.
pub(crate) fn introduce(own: &str) -> Result<()> {
    let ranks = ranks();
    if ranks.0.n_ranks() == 1 {
        terminal::say_under("device:", own);
        terminal::emit(&json!({ "event": "device", "device": own }));
        return Ok(());
    }
    let threads = format!("{own}, {} threads", olora_devices::threads::count());
    let all = ranks.0.gather(threads.into_bytes())?;
    /// As many as fit on a screen.
    const SHOWN: usize = 16;
    let shared = "which share out the micro-batches of each step";
    terminal::say_under("ranks:", &format!("{}, {shared}", all.len()));
    let devices: Vec<_> = all
        .iter()
        .map(|device| String::from_utf8_lossy(device))
        .collect();
    terminal::emit(&json!({ "event": "ranks", "devices": devices }));
    for (rank, device) in all.iter().enumerate().take(SHOWN) {
        let device = String::from_utf8_lossy(device);
        terminal::say(&format!("  {}: {device}", ranks.0.name(rank)));
    }
    if all.len() > SHOWN {
        terminal::say(&format!("  and {} more", all.len() - SHOWN));
    }
    Ok(())
}

/// After all work: waits for the other ranks.
#[cfg_attr(
    not(feature = "mpi"),
    expect(clippy::unnecessary_wraps, reason = "as with the feature")
)]
pub(crate) fn finish(code: ExitCode) -> Result<ExitCode> {
    #[cfg(feature = "mpi")]
    if let Some((_, mpi)) = JOINED.get() {
        mpi.finish()?;
    }
    Ok(code)
}

/// After an error: shows it, once, and has the other ranks end.
pub(crate) fn part(error: &str, code: u8) -> ExitCode {
    #[cfg(feature = "mpi")]
    if let Some((_, mpi)) = JOINED.get() {
        if mpi.rank() == 0 {
            terminal::say_error(error, code);
        }
        let (is_to_show, code) = mpi.part(error, code);
        if is_to_show && mpi.rank() > 0 {
            terminal::error_anyway(error);
        }
        // MPI would wait for ranks that may be gone.
        signals::end(i32::from(code));
    }
    terminal::say_error(error, code);
    ExitCode::from(code)
}
