//! The thread that serves MPI: it alone calls it, so that a rank shows that it
//! lives, hears of failures, and exchanges, whatever its other threads are in.

use std::{
    ops::Range,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use olora_training::ExchangeError;

use crate::{
    control::{Control, Failure},
    exchange::Shared,
    job::{Incoming, Job},
    wire::{Flight, Kept, Tag, World},
};

/// How often a rank shows that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// How long a rank that has heard of a failure may take to end in order.
const GRACE: Duration = Duration::from_secs(3);
/// How long the first rank waits for the others to hear of a failure.
const PARTING: Duration = Duration::from_secs(2);
/// A pause of this thread beyond which it was not the others that were silent.
const ASLEEP: Duration = Duration::from_secs(2);
/// Bytes that go with their length in one message.
const SHORT: usize = 1 << 16;

pub(crate) type Answer<T> = Sender<Result<T, ExchangeError>>;

/// What this process's other threads ask for.
pub(crate) enum Order {
    Gather(Vec<u8>, Answer<Vec<Vec<u8>>>),
    Trade {
        values: Arc<Vec<f32>>,
        to: Vec<Range<usize>>,
        lengths: Vec<usize>,
        answer: Answer<Vec<Vec<f32>>>,
    },
    /// This rank has failed, by itself or because another has. Answers when the
    /// others know, or cannot.
    Fail(String, u8, Sender<()>),
    /// This rank has done all its work. Answers when all have.
    Finish(Answer<()>),
}

/// What is waited for at the end.
enum Ending {
    No,
    /// Until others know of a failure.
    Parting(Sender<()>, Instant),
    Finishing(Answer<()>),
    /// Others know, or cannot; the process ends now.
    Parted,
}

pub(crate) struct Service {
    world: World,
    orders: Receiver<Order>,
    shared: Arc<Shared>,
    /// When each rank was last heard of; of others than the first, only the
    /// first is.
    heard: Vec<Instant>,
    last_beat: Instant,
    last_turn: Instant,
    /// How long a rank may be silent.
    limit: Duration,
    /// What others have not taken yet.
    outgoing: Vec<(usize, Flight)>,
    job: Option<Job>,
    failed_since: Option<Instant>,
    /// Who has heard of a failure and ends.
    gone: Vec<bool>,
    /// Who has done all its work.
    done: Vec<bool>,
    /// Whether the first rank has told all that all is done.
    told_done: bool,
    ending: Ending,
}

impl Service {
    pub(crate) fn new(
        world: World,
        orders: Receiver<Order>,
        shared: Arc<Shared>,
        limit: Duration,
    ) -> Self {
        let now = Instant::now();
        let n = world.n_ranks;
        Self {
            world,
            orders,
            shared,
            // MPI starts in all ranks at once, so the others are here as well.
            heard: vec![now; n],
            // The first is due at once.
            last_beat: now.checked_sub(BEAT).unwrap_or(now),
            last_turn: now,
            limit,
            outgoing: Vec::new(),
            job: None,
            failed_since: None,
            gone: vec![false; n],
            done: vec![false; n],
            told_done: false,
            ending: Ending::No,
        }
    }

    /// Serves until the run has ended.
    pub(crate) fn run(mut self) {
        loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => return self.finish(),
                Err(broken) => self.broken(&broken),
            }
            self.wait();
        }
    }

    fn leads(&self) -> bool {
        self.world.rank == 0
    }

    /// Those whose signs of life are looked for: of the first rank, all others;
    /// of another, the first.
    fn watched(&self) -> Range<usize> {
        if self.leads() {
            1..self.world.n_ranks
        } else {
            0..1
        }
    }

    /// Does what can be done now. `false` if all is done.
    fn turn(&mut self) -> Result<bool, String> {
        self.hear()?;
        self.beat()?;
        self.look_for_lost();
        self.progress()?;
        let mut on_the_way = Vec::new();
        for (to, mut flight) in std::mem::take(&mut self.outgoing) {
            if !flight.landed(&self.world)? {
                on_the_way.push((to, flight));
            }
        }
        self.outgoing = on_the_way;
        self.leave_at_last();
        Ok(!self.ended()?)
    }

    /// Takes the next order, or gives others a while.
    fn wait(&mut self) {
        let order = match &self.job {
            // Whoever computes is not to be disturbed; an order wakes this up.
            None => match self.orders.recv_timeout(Duration::from_millis(3)) {
                Err(RecvTimeoutError::Timeout) => return,
                // Nobody is left to ask for anything; what is on its way goes on.
                Err(RecvTimeoutError::Disconnected) => {
                    thread::sleep(Duration::from_millis(3));
                    return;
                }
                Ok(order) => order,
            },
            Some(job) => {
                // Values move only while MPI is called; for ranks that compute, it can be waited for.
                let waits = matches!(job, Job::Gather { since, .. } if since.elapsed() > Duration::from_millis(2));
                if waits {
                    thread::sleep(Duration::from_micros(200));
                } else {
                    thread::yield_now();
                }
                match self.orders.try_recv() {
                    Ok(order) => order,
                    Err(_) => return,
                }
            }
        };
        if let Err(broken) = self.take(order) {
            self.broken(&broken);
        }
    }

    fn take(&mut self, order: Order) -> Result<(), String> {
        let (rank, n) = (self.world.rank, self.world.n_ranks);
        match order {
            Order::Fail(_, _, answer) if self.failed_since.is_some() => {
                // What another rank's failure has led to.
                if !self.leads() {
                    self.tell(0, &Control::Gone)?;
                }
                self.ending = Ending::Parting(answer, Instant::now());
            }
            Order::Fail(message, code, answer) => {
                self.note(Failure {
                    rank,
                    code,
                    silent: None,
                    message,
                })?;
                self.ending = Ending::Parting(answer, Instant::now());
            }
            Order::Finish(answer) => match self.shared.failure() {
                Some(error) => drop(answer.send(Err(error))),
                None => {
                    self.done[rank] = true;
                    if !self.leads() {
                        self.tell(0, &Control::Done)?;
                    }
                    self.ending = Ending::Finishing(answer);
                }
            },
            Order::Gather(bytes, answer) => {
                if let Some(error) = self.shared.failure() {
                    drop(answer.send(Err(error)));
                    return Ok(());
                }
                let mut sent = Vec::new();
                for to in (0..n).filter(|to| *to != rank) {
                    let mut first = (bytes.len() as u64).to_le_bytes().to_vec();
                    let is_short = bytes.len() <= SHORT;
                    if is_short {
                        first.extend(&bytes);
                    }
                    sent.push(self.world.send(Kept::Bytes(first), to, Tag::Gather)?);
                    if !is_short {
                        sent.push(
                            self.world
                                .send(Kept::Bytes(bytes.clone()), to, Tag::Gather)?,
                        );
                    }
                }
                let mut from: Vec<_> = (0..n).map(|_| Incoming::Nothing).collect();
                from[rank] = Incoming::Here(bytes);
                self.job = Some(Job::Gather {
                    sent,
                    from,
                    answer,
                    since: Instant::now(),
                });
            }
            Order::Trade {
                values,
                to,
                lengths,
                answer,
            } => {
                if let Some(error) = self.shared.failure() {
                    drop(answer.send(Err(error)));
                    return Ok(());
                }
                let (mut sent, mut received) = (Vec::new(), Vec::new());
                for (other, (range, length)) in to.into_iter().zip(&lengths).enumerate() {
                    let comes = other != rank && *length > 0;
                    received.push(if comes {
                        let room = Kept::Room(vec![0.0; *length]);
                        Some(self.world.receive(room, other, Tag::Trade)?)
                    } else {
                        None
                    });
                    if other != rank && !range.is_empty() {
                        let slice = Kept::Slice(Arc::clone(&values), range);
                        sent.push(self.world.send(slice, other, Tag::Trade)?);
                    }
                }
                self.job = Some(Job::Trade {
                    sent,
                    received,
                    answer,
                });
            }
        }
        Ok(())
    }

    /// Takes what others have said beside the run.
    fn hear(&mut self) -> Result<(), String> {
        while let Some((from, length)) = self.world.waiting(None, Tag::Control)? {
            let room = Kept::Bytes(vec![0; length]);
            let mut flight = self.world.receive(room, from, Tag::Control)?;
            // It is there, so this does not take long.
            while !flight.landed(&self.world)? {
                thread::yield_now();
            }
            self.heard[from] = Instant::now();
            let Kept::Bytes(bytes) = flight.into_kept() else {
                continue;
            };
            match Control::from_bytes(&bytes) {
                Some(Control::Failed(failure)) => {
                    self.shared.told_by_first(from == 0);
                    self.note(failure)?;
                }
                Some(Control::Gone) => self.gone[from] = true,
                Some(Control::Done) => self.done[from] = true,
                Some(Control::Alive) | None => {}
            }
        }
        Ok(())
    }

    fn beat(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let pause = now.duration_since(self.last_turn);
        self.last_turn = now;
        if pause > ASLEEP {
            // The machine slept, or this process was stopped: the others get their time again.
            self.heard.iter_mut().for_each(|heard| *heard += pause);
        }
        if now.duration_since(self.last_beat) < BEAT || self.failed_since.is_some() {
            return Ok(());
        }
        self.last_beat = now;
        for to in self.watched() {
            let waits = self.outgoing.iter().any(|(other, _)| *other == to);
            if !waits && !self.done[to] {
                self.tell(to, &Control::Alive)?;
            }
        }
        Ok(())
    }

    fn look_for_lost(&mut self) {
        if self.failed_since.is_some() {
            return;
        }
        let lost = self.watched().find(|rank| {
            let silent = self.heard[*rank].elapsed() > self.limit;
            silent && !self.done[*rank]
        });
        let Some(rank) = lost else { return };
        let failure = Failure {
            rank,
            code: 1,
            silent: Some(self.limit.as_secs()),
            message: String::new(),
        };
        if let Err(broken) = self.note(failure) {
            self.broken(&broken);
        }
    }

    /// Begins to tell a rank something.
    fn tell(&mut self, to: usize, control: &Control) -> Result<(), String> {
        let bytes = Kept::Bytes(control.to_bytes());
        let flight = self.world.send(bytes, to, Tag::Control)?;
        self.outgoing.push((to, flight));
        Ok(())
    }

    /// A rank has failed: nothing is exchanged any more. The first rank tells all
    /// others, another tells the first of its own failure.
    fn note(&mut self, failure: Failure) -> Result<(), String> {
        if self.failed_since.is_some() {
            return Ok(());
        }
        self.failed_since = Some(Instant::now());
        let is_own = failure.rank == self.world.rank;
        let control = Control::Failed(failure.clone());
        let error = self.shared.set_failure(failure);
        match self.job.take() {
            Some(Job::Gather { answer, .. }) => drop(answer.send(Err(error.clone()))),
            Some(Job::Trade { answer, .. }) => drop(answer.send(Err(error.clone()))),
            None => {}
        }
        if let Ending::Finishing(answer) = std::mem::replace(&mut self.ending, Ending::No) {
            drop(answer.send(Err(error)));
        }
        if self.leads() {
            for to in 1..self.world.n_ranks {
                self.tell(to, &control)?;
            }
        } else if is_own {
            self.tell(0, &control)?;
        }
        Ok(())
    }

    /// A rank has ended its work while another goes on.
    fn out_of_step(&self) -> Failure {
        Failure {
            rank: self.world.rank,
            code: 1,
            silent: None,
            message: "the ranks are not in step: one has ended its work while another goes on"
                .to_owned(),
        }
    }

    /// MPI itself has failed.
    fn broken(&mut self, reason: &str) {
        let failure = Failure {
            rank: self.world.rank,
            code: 1,
            silent: None,
            message: format!("exchanging with the other ranks failed: {reason}"),
        };
        if self.failed_since.is_none() {
            // Telling others may fail as well, in which case they miss this rank's signs of life.
            drop(self.note(failure));
        }
        thread::sleep(Duration::from_millis(3));
    }

    fn progress(&mut self) -> Result<(), String> {
        let Some(job) = &mut self.job else {
            return Ok(());
        };
        let world = &self.world;
        let mut complete = true;
        let sent = match job {
            Job::Gather { sent, from, .. } => {
                for (rank, incoming) in from.iter_mut().enumerate() {
                    complete &= incoming.progress(world, rank)?;
                }
                sent
            }
            Job::Trade { sent, received, .. } => {
                for flight in received.iter_mut().flatten() {
                    complete &= flight.landed(world)?;
                }
                sent
            }
        };
        for flight in sent.iter_mut() {
            complete &= flight.landed(world)?;
        }
        // Who has ended its work sends nothing any more.
        let waits_for_ended = match job {
            Job::Gather { from, .. } if !complete => from
                .iter()
                .zip(&self.done)
                .any(|(incoming, done)| *done && matches!(incoming, Incoming::Nothing)),
            _ => false,
        };
        if waits_for_ended {
            return self.note(self.out_of_step());
        }
        if !complete {
            return Ok(());
        }
        match self.job.take() {
            Some(Job::Gather { from, answer, .. }) => {
                let all = from.into_iter().map(Incoming::into_bytes);
                drop(answer.send(Ok(all.collect())));
            }
            Some(Job::Trade {
                received, answer, ..
            }) => {
                let all = received.into_iter().map(|flight| match flight {
                    Some(flight) => match flight.into_kept() {
                        Kept::Room(values) => values,
                        _ => Vec::new(),
                    },
                    None => Vec::new(),
                });
                drop(answer.send(Ok(all.collect())));
            }
            None => {}
        }
        Ok(())
    }

    /// Ends the process if its other threads do not, long after a failure: they
    /// may be in a step that takes minutes.
    fn leave_at_last(&mut self) {
        let waited = self
            .failed_since
            .is_some_and(|since| since.elapsed() > GRACE);
        if !waited || !matches!(self.ending, Ending::No) {
            return;
        }
        if !self.leads() {
            drop(self.tell(0, &Control::Gone));
        }
        self.shared.leave();
    }

    /// Whether the run is over for this thread.
    fn ended(&mut self) -> Result<bool, String> {
        match &self.ending {
            Ending::No | Ending::Parted => Ok(false),
            Ending::Parting(answer, since) => {
                let know = if self.leads() {
                    self.gone[1..].iter().all(|gone| *gone)
                } else {
                    self.outgoing.is_empty() && self.shared.is_told()
                };
                if know || since.elapsed() > PARTING {
                    let _ = answer.send(());
                    self.ending = Ending::Parted;
                }
                Ok(false)
            }
            Ending::Finishing(_) if self.world.waiting(None, Tag::Gather)?.is_some() => {
                self.note(self.out_of_step())?;
                Ok(false)
            }
            Ending::Finishing(_) if !self.leads() => Ok(self.done[0] && self.outgoing.is_empty()),
            Ending::Finishing(_) => {
                if !self.done.iter().all(|done| *done) {
                    return Ok(false);
                }
                if !self.told_done {
                    self.told_done = true;
                    for to in 1..self.world.n_ranks {
                        self.tell(to, &Control::Done)?;
                    }
                }
                Ok(self.outgoing.is_empty())
            }
        }
    }

    /// After all ranks have done all their work.
    fn finish(self) {
        let Ending::Finishing(answer) = self.ending else {
            return;
        };
        let ended = self.world.finalize().map_err(ExchangeError::Broken);
        drop(answer.send(ended));
    }
}
