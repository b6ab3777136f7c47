//! The exchange between the ranks of a run, as its threads see it.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
    time::Duration,
};

use olora_training::{Exchange, ExchangeError};

use crate::{
    Launch,
    control::Failure,
    service::{Order, Service},
    wire::World,
};

/// How a process ends whose other threads do not notice a failure: told an
/// error, or nothing where another rank tells it, and an exit code.
pub type Ended = fn(Option<&str>, u8) -> !;

/// The ranks of a run, over MPI.
///
/// MPI is called by a thread of its own. By it each rank shows once a second
/// that it lives; one that does not for some seconds is lost, and its loss, like
/// a failure that a rank tells itself, reaches all others while they compute.
/// They may end in order for three seconds, and end then.
pub struct Mpi {
    rank: usize,
    n_ranks: usize,
    hosts: Vec<String>,
    orders: Sender<Order>,
    shared: Arc<Shared>,
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mpi({} of {})", self.rank, self.n_ranks)
    }
}

/// What the thread that serves MPI shares with others.
pub(crate) struct Shared {
    rank: usize,
    names: OnceLock<Vec<String>>,
    failure: Mutex<Option<Failure>>,
    /// Whether the first rank has told of the failure, so that it shows it.
    told: AtomicBool,
    ended: Ended,
}

impl Shared {
    fn name(&self, rank: usize) -> String {
        let names = self.names.get();
        let name = names.and_then(|names| names.get(rank)).cloned();
        name.unwrap_or_else(|| format!("rank {rank}"))
    }

    fn noted(&self) -> Option<Failure> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone()
    }

    /// What has become of another rank, or of this one.
    pub(crate) fn failure(&self) -> Option<ExchangeError> {
        let failure = self.noted()?;
        Some(failure.error(self.name(failure.rank)))
    }

    pub(crate) fn set_failure(&self, failure: Failure) -> ExchangeError {
        let error = failure.error(self.name(failure.rank));
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
        error
    }

    pub(crate) fn told_by_first(&self, told: bool) {
        self.told.fetch_or(told, Ordering::SeqCst);
    }

    /// Whether the first rank shows the failure.
    pub(crate) fn is_told(&self) -> bool {
        self.told.load(Ordering::SeqCst)
    }

    /// Ends the process, telling what nobody else does.
    pub(crate) fn leave(&self) {
        let code = self.noted().map_or(1, |failure| failure.code);
        let error = self.failure().map(|error| error.to_string());
        let error = error.filter(|_| self.rank == 0 || !self.is_told());
        (self.ended)(error.as_deref(), code)
    }
}

impl Mpi {
    /// Joins the ranks of a run that a launcher has started. A rank that shows no
    /// sign of life for `limit` counts as lost. `ended` ends the process where
    /// its other threads do not.
    ///
    /// # Errors
    ///
    /// In a sentence: when MPI does not start, or its number of ranks is not the
    /// launcher's.
    pub fn join(launch: &Launch, limit: Duration, ended: Ended) -> Result<Self, String> {
        let (orders, taken) = channel();
        let (started, start) = channel();
        let shared = Arc::new(Shared {
            rank: launch.rank,
            names: OnceLock::new(),
            failure: Mutex::new(None),
            told: AtomicBool::new(false),
            ended,
        });
        let of_thread = Arc::clone(&shared);
        let serve = move || {
            let world = match World::new() {
                Ok(world) => world,
                Err(reason) => {
                    drop(started.send(Err(reason)));
                    return;
                }
            };
            let who = (world.rank, world.n_ranks, world.host.clone());
            drop(started.send(Ok(who)));
            Service::new(world, taken, of_thread, limit).run();
        };
        thread::Builder::new()
            .name("mpi".to_owned())
            .spawn(serve)
            .map_err(|error| format!("a thread for MPI could not be started: {error}"))?;
        let (rank, n_ranks, host) = start
            .recv()
            .map_err(|_| "the thread for MPI has ended".to_owned())?
            .map_err(|reason| format!("MPI does not start: {reason}"))?;
        if n_ranks != launch.n_ranks || rank != launch.rank {
            return Err(format!(
                "{} started {} processes, of which this is number {}, but MPI knows of {n_ranks}, and calls this one \
                 {rank}. Is `mpirun` (or the plugin of `srun --mpi=…`) of the same MPI as the one that olora was \
                 built with?",
                launch.launcher, launch.n_ranks, launch.rank
            ));
        }
        let mut mpi = Self {
            rank,
            n_ranks,
            hosts: vec![String::new(); n_ranks],
            orders,
            shared,
        };
        let hosts = mpi
            .gather(host.into_bytes())
            .map_err(|error| error.to_string())?;
        mpi.hosts = hosts
            .iter()
            .map(|host| String::from_utf8_lossy(host).into_owned())
            .collect();
        let names = mpi.hosts.iter().enumerate();
        let names = names.map(|(rank, host)| format!("rank {rank} on {host}"));
        // It was empty until now.
        let _ = mpi.shared.names.set(names.collect());
        Ok(mpi)
    }

    /// The machine of each rank.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Which this is of the ranks on its machine, and how many those are.
    pub fn local(&self) -> (usize, usize) {
        let own = &self.hosts[self.rank];
        let here = |ranks: &[String]| ranks.iter().filter(|host| *host == own).count();
        (here(&self.hosts[..self.rank]), here(&self.hosts))
    }

    /// Ends this rank after an error, its own or another's: the others hear of
    /// it. Returns whether the error is still to be shown, and the exit code.
    ///
    /// The first rank shows every error, so that it is shown once; another shows
    /// one only where the first cannot.
    pub fn part(&self, error: &str, code: u8) -> (bool, u8) {
        let (answer, answered) = channel();
        let order = Order::Fail(error.to_owned(), code, answer);
        if self.orders.send(order).is_ok() {
            // The thread has deadlines of its own; this is in case it hangs in MPI.
            let _ = answered.recv_timeout(Duration::from_secs(4));
        }
        let code = self.shared.noted().map_or(code, |failure| failure.code);
        (self.rank == 0 || !self.shared.is_told(), code)
    }

    /// Waits until all ranks have done their work, and ends MPI.
    ///
    /// # Errors
    ///
    /// When another rank has failed meanwhile.
    pub fn finish(&self) -> Result<(), ExchangeError> {
        self.ask(Order::Finish)
    }

    fn ask<T>(
        &self,
        order: impl FnOnce(Sender<Result<T, ExchangeError>>) -> Order,
    ) -> Result<T, ExchangeError> {
        let (answer, answered) = channel();
        let gone = || {
            let broken =
                || ExchangeError::Broken("the thread that serves MPI has ended".to_owned());
            self.shared.failure().unwrap_or_else(broken)
        };
        self.orders.send(order(answer)).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }
}

impl Exchange for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    fn name(&self, rank: usize) -> String {
        self.shared.name(rank)
    }

    fn gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        self.ask(|answer| Order::Gather(bytes, answer))
    }

    fn trade(
        &self,
        values: &Arc<Vec<f32>>,
        to: &[Range<usize>],
        lengths: &[usize],
    ) -> Result<Vec<Vec<f32>>, ExchangeError> {
        self.ask(|answer| Order::Trade {
            values: Arc::clone(values),
            to: to.to_vec(),
            lengths: lengths.to_vec(),
            answer,
        })
    }

    fn check(&self) -> Result<(), ExchangeError> {
        match self.shared.failure() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}
