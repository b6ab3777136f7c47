//! MLflow, by its REST interface (2.0): a run with parameters, tags and
//! metrics on a tracking server.
//!
//! A thread of its own sends. Whoever logs puts values into a buffer and goes
//! on, whatever the server does; [`Pace`] says how patient the thread is.

mod client;
mod names;
mod opening;
mod server;
mod shared;
mod unsent;
mod worker;

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

pub use self::server::{MlflowError, Server, check_address};
use self::{
    client::Client,
    opening::Opening,
    shared::{Shared, Values},
    unsent::Unsent,
    worker::Worker,
};
use crate::clock;

/// Where the run's identity is kept, in [`MlflowOptions::directory`].
const IDENTITY: &str = "mlflow.json";
/// Where what was not delivered is kept.
const UNSENT: &str = "mlflow-unsent.jsonl";

/// A run on a tracking server, and how it is called there.
#[derive(Clone, Debug)]
pub struct MlflowOptions {
    /// The server.
    pub server: Server,
    /// The experiment's name; it is made where it is missing.
    pub experiment: String,
    /// The run's name.
    pub run_name: String,
    /// What was asked for, by key. Keys are brought into the form that MLflow
    /// allows, and long values are cut.
    pub params: Vec<(String, String)>,
    /// What else there is to say.
    pub tags: Vec<(String, String)>,
    /// A directory that is there, which keeps `mlflow.json`, by which a run
    /// that is resumed goes on with the same run on the server, and
    /// `mlflow-unsent.jsonl`, what was not delivered.
    pub directory: PathBuf,
    /// The step that the run is resumed after. What was not delivered of it and
    /// earlier ones is then sent first. A run that begins has nothing to send.
    pub resumed_after: Option<u64>,
    /// How patient it is.
    pub pace: Pace,
}

/// How patiently a server is asked.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long a request may take.
    pub request: Duration,
    /// How long values are gathered after a request that was answered, unless
    /// there are enough for another already.
    pub gather: Duration,
    /// How long to wait after a failure; twice as long after each in a row.
    pub first_wait: Duration,
    /// The longest such wait.
    pub longest_wait: Duration,
    /// How long the end of a run may wait for an answer while something is left
    /// to be sent, and six times as long in all.
    pub at_end: Duration,
    /// How many values are kept in memory. Further ones go into the file.
    pub capacity: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            gather: Duration::from_secs(1),
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(30),
            at_end: Duration::from_secs(10),
            capacity: 200_000,
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// All that it was to do is done.
    Finished,
    /// It stopped by an error.
    Failed,
    /// Somebody stopped it.
    Killed,
}

impl Status {
    /// As MLflow calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }
}

/// A run on a tracking server, from here.
///
/// Nothing here fails and nothing waits for the server but [`finish`](Self::finish),
/// for a bounded time. One that is dropped without has failed.
#[derive(Debug)]
pub struct Mlflow {
    shared: Arc<Shared>,
    address: String,
    at_end: Duration,
    is_finished: bool,
}

impl Mlflow {
    /// Begins the run on the server, or goes on with it, in a thread of its own.
    pub fn begin(options: MlflowOptions) -> Self {
        let MlflowOptions {
            server,
            experiment,
            run_name,
            params,
            tags,
            directory,
            resumed_after,
            pace,
        } = options;
        let address = server.address().to_owned();
        let (unsent, left) = Unsent::open(directory.join(UNSENT), resumed_after);
        let shared = Arc::new(Shared::new(left, unsent, pace.capacity));
        let client = Client::new(&server, pace.request);
        let opening = Opening::new(
            directory.join(IDENTITY),
            &address,
            experiment,
            run_name,
            params,
            tags,
        );
        let worker = Worker::new(client, opening, Arc::clone(&shared), pace, &address);
        let thread = thread::Builder::new().name("mlflow".to_owned());
        let mut begun = Self {
            shared,
            address,
            at_end: pace.at_end,
            is_finished: false,
        };
        if let Err(error) = thread.spawn(move || worker.work()) {
            let reason = format!("there is no thread for it: {error}");
            begun.shared.failed(&reason);
            begun
                .shared
                .note(format!("nothing is sent to MLflow: {reason}"));
            begun.at_end = Duration::ZERO;
        }
        begun
    }

    /// Has values of one step sent, by their keys, as of now.
    pub fn log(&self, step: u64, values: &[(String, f64)]) {
        let timestamp = clock::milliseconds();
        for values in values.chunks(client::MOST_METRICS) {
            self.shared.push(Values {
                step,
                timestamp,
                pairs: values
                    .iter()
                    .map(|(key, value)| (names::metric(key), *value))
                    .collect(),
            });
        }
    }

    /// What there is to tell a user since the last call.
    pub fn notes(&self) -> Vec<String> {
        self.shared.take_notes()
    }

    /// Waits until everything is sent, the run's end too, as long as
    /// [`Pace::at_end`] says. Returns what there is to tell a user.
    pub fn finish(mut self, status: Status) -> Vec<String> {
        self.end(status);
        self.notes()
    }

    fn end(&mut self, status: Status) {
        self.is_finished = true;
        self.shared.end(status, self.at_end, &self.address);
    }
}

impl Drop for Mlflow {
    fn drop(&mut self) {
        if !self.is_finished {
            self.end(Status::Failed);
        }
    }
}
