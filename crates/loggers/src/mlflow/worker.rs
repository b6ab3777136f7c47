//! The thread that sends.

use std::sync::Arc;

use super::{
    Pace,
    client::{Client, Failure},
    opening::{Opening, end},
    shared::{Shared, Work},
};

pub(super) struct Worker {
    client: Client,
    opening: Opening,
    /// The run's id on the server, once it is there.
    run_id: Option<String>,
    shared: Arc<Shared>,
    pace: Pace,
    address: String,
    /// Requests in a row that came to nothing.
    n_failures: u32,
    /// Whether it was said that the server is away.
    said_away: bool,
    /// Whether it was said that values were refused.
    said_refused: bool,
}

impl Worker {
    pub(super) fn new(
        client: Client,
        opening: Opening,
        shared: Arc<Shared>,
        pace: Pace,
        address: &str,
    ) -> Self {
        Self {
            client,
            opening,
            run_id: None,
            shared,
            pace,
            address: address.to_owned(),
            n_failures: 0,
            said_away: false,
            said_refused: false,
        }
    }

    /// Until the server knows all, or nobody waits for that any more.
    pub(super) fn work(mut self) {
        loop {
            match self.once() {
                Ok(true) => self.reached(),
                Ok(false) => return,
                Err(failure) => self.failed(&failure.into_reason()),
            }
        }
    }

    /// Does what is next. Returns whether there is more to do.
    fn once(&mut self) -> Result<bool, Failure> {
        if self.shared.is_left() {
            return Ok(false);
        }
        let Some(run_id) = &self.run_id else {
            let mut notes = Vec::new();
            let opened = self.opening.open(&self.client, &mut notes);
            for note in notes {
                self.shared.note(note);
            }
            self.run_id = Some(opened?);
            return Ok(true);
        };
        match self.shared.next() {
            Work::Send(values) => {
                match self.client.log_metrics(run_id, &values) {
                    Err(Failure::Refused { reason, .. }) => {
                        self.shared.keep(&values);
                        self.refused(&reason);
                    }
                    sent => sent?,
                }
                self.shared.done(values.len());
                Ok(true)
            }
            Work::End(status) => {
                match end(&self.client, run_id, status) {
                    Err(Failure::Refused { reason, .. }) => self.refused(&reason),
                    ended => ended?,
                }
                self.back();
                self.shared.told();
                Ok(false)
            }
            Work::Stop => Ok(false),
        }
    }

    /// The server has answered.
    fn reached(&mut self) {
        self.back();
        self.shared.gather(self.pace.gather);
    }

    fn back(&mut self) {
        self.n_failures = 0;
        if self.said_away {
            self.said_away = false;
            self.shared.note(format!(
                "the MLflow server at {} is back: it gets what was kept",
                self.address
            ));
        }
    }

    /// It has not, or not with what was asked for. A single failure is not worth
    /// a word.
    fn failed(&mut self, reason: &str) {
        self.shared.failed(reason);
        self.n_failures = self.n_failures.saturating_add(1);
        if self.n_failures > 1 && !self.said_away {
            self.said_away = true;
            self.shared.note(format!(
                "the MLflow server at {} does not take what is sent: {reason}. The run goes on; what it logs is kept \
                 and sent when the server is back",
                self.address
            ));
        }
        let pause = if self.shared.has_ended() {
            self.pace.first_wait
        } else {
            let doubled = self.pace.first_wait * (1 << (self.n_failures - 1).min(16));
            doubled.min(self.pace.longest_wait)
        };
        self.shared.pause(pause);
    }

    fn refused(&mut self, reason: &str) {
        self.shared.failed(reason);
        if !self.said_refused {
            self.said_refused = true;
            self.shared.note(format!(
                "the MLflow server at {} refuses values: {reason}. The run goes on; they are kept in a file",
                self.address
            ));
        }
    }
}
