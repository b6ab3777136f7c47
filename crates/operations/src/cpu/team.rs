//! Threads that stand ready for short work.
//!
//! A token is some hundred products of a few microseconds, one after the other.
//! Threads that sleep between them take longer to wake than a product takes, and
//! those of `rayon` sleep soon. These look for work for half a millisecond before
//! they do, so that while tokens are made they do not sleep at all.
//!
//! Whoever has work takes part in it. The pieces are claimed one by one, so that
//! a thread that comes late holds up nobody; one that loses its core to another
//! process holds up its piece.

use std::{
    any::Any,
    cell::UnsafeCell,
    hint::spin_loop,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    slice,
    sync::{
        Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

/// How long a thread looks for work before it sleeps.
const PATIENCE: Duration = Duration::from_micros(500);

/// Threads beside the caller's, at most: more do not read memory faster.
const MOST: usize = 31;

/// What [`limit`] was given; 0 if nothing was.
static LIMIT: AtomicUsize = AtomicUsize::new(0);

/// Has no more than `n` threads compute, the caller's among them. To be said before
/// they are first needed; without it they are as many as the environment says for
/// `rayon`, or the cores there are.
pub(super) fn limit(n: usize) {
    LIMIT.store(n, SeqCst);
}

/// Threads that compute, the caller's among them.
fn n_threads() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let given = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok();
    let n = match LIMIT.load(SeqCst) {
        0 => given().filter(|n| *n > 0).unwrap_or(cores),
        n => n,
    };
    // More than there are cores would wait for each other.
    n.min(cores)
}

/// Calls `work` with each of `0..n`, once each, on several threads. `work` must not
/// itself have work for these threads: it does that alone.
pub(super) fn hand_out(n: usize, work: impl Fn(usize) + Sync) {
    if n > 1
        && let Some(team) = Team::of_this_process()
        && team.try_lead(n, &work)
    {
        return;
    }
    (0..n).for_each(work);
}

/// [`hand_out`] of pieces of a slice: `work` is given each and its number.
pub(super) fn hand_out_pieces<T: Send>(
    all: &mut [T],
    piece: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    struct Shared<T>(*mut T);
    // SAFETY: it stands for an exclusive borrow of what may go to other threads, each of which is
    // given other parts of it.
    unsafe impl<T: Send> Sync for Shared<T> {}
    impl<T> Shared<T> {
        fn from(&self, at: usize) -> *mut T {
            self.0.wrapping_add(at)
        }
    }
    let (len, piece) = (all.len(), piece.max(1));
    let shared = Shared(all.as_mut_ptr());
    hand_out(len.div_ceil(piece), |i| {
        let start = i * piece;
        let n = piece.min(len - start);
        // SAFETY: the pieces lie within the slice, which is borrowed until all are done, and no two
        // have an element in common; each is asked for once.
        work(i, unsafe {
            slice::from_raw_parts_mut(shared.from(start), n)
        });
    });
}

/// [`hand_out`] of items, and what `work` made of each, in their order.
pub(super) fn at_once<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let mut places: Vec<_> = items.into_iter().map(|item| (Some(item), None)).collect();
    hand_out_pieces(&mut places, 1, |_, places| {
        for (item, result) in places {
            *result = item.take().map(&work);
        }
    });
    // Each was asked for: if one had panicked, so would this thread have.
    places
        .into_iter()
        .filter_map(|(_, result)| result)
        .collect()
}

/// What there is to do; alive as long as [`OPEN`] stands or a helper is within.
type Work = *const (dyn Fn(usize) + Sync);

/// In [`Team::state`]: helpers may begin. Below it, how many are within; above it,
/// the number of the work.
const OPEN: usize = 1 << 16;
const ONE_FURTHER: usize = OPEN << 1;

struct Team {
    state: AtomicUsize,
    work: UnsafeCell<Option<Work>>,
    n: AtomicUsize,
    next: AtomicUsize,
    /// Whether somebody leads.
    led: AtomicBool,
    /// What a helper panicked with.
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
}

// SAFETY: `work` is written by whoever leads, before the work is open, and read by helpers that
// have entered while it is; it points to what may be shared among threads.
unsafe impl Sync for Team {}
// SAFETY: as above; a static never moves.
unsafe impl Send for Team {}

impl Team {
    const fn new() -> Self {
        Self {
            state: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            n: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            led: AtomicBool::new(false),
            panicked: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
        }
    }

    /// That of this process; none if one thread computes, or others cannot be
    /// started.
    fn of_this_process() -> Option<&'static Self> {
        static TEAM: Team = Team::new();
        static STARTED: OnceLock<bool> = OnceLock::new();
        let started = STARTED.get_or_init(|| {
            let n = n_threads().saturating_sub(1).min(MOST);
            let begun = (0..n).map(|i| {
                let name = format!("olora {i}");
                thread::Builder::new().name(name).spawn(|| TEAM.help())
            });
            begun.flatten().count() > 0
        });
        started.then_some(&TEAM)
    }

    /// Does the work together with the others; false, and nothing done, if they are
    /// at other work.
    fn try_lead<'a>(&self, n: usize, work: &'a (dyn Fn(usize) + Sync + 'a)) -> bool {
        if self
            .led
            .compare_exchange(false, true, SeqCst, SeqCst)
            .is_err()
        {
            return false;
        }
        // SAFETY: the two differ in how long they live, and nobody calls it when this returns.
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        let work: Work = std::ptr::from_ref(work);
        // SAFETY: whoever leads is alone, and no helper is within.
        unsafe { *self.work.get() = Some(work) };
        self.n.store(n, SeqCst);
        self.next.store(0, SeqCst);
        self.state.fetch_add(ONE_FURTHER | OPEN, SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
        // Closed whatever happens: helpers must be out before the work's borrows end.
        let mine = catch_unwind(AssertUnwindSafe(|| self.do_pieces(work)));
        self.state.fetch_and(!OPEN, SeqCst);
        let mut looks = 0_u32;
        while self.state.load(SeqCst) & (OPEN - 1) > 0 {
            // One that has lost its core may need this one to finish its piece.
            looks += 1;
            if looks > 1000 {
                thread::yield_now();
            } else {
                spin_loop();
            }
        }
        let mut panicked = self.panicked.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = panicked.take();
        drop(panicked);
        self.led.store(false, SeqCst);
        if let Some(panic) = mine.err().or(theirs) {
            resume_unwind(panic);
        }
        true
    }

    /// Claims pieces until there are none.
    fn do_pieces(&self, work: Work) {
        let n = self.n.load(SeqCst);
        loop {
            let i = self.next.fetch_add(1, SeqCst);
            if i >= n {
                return;
            }
            // SAFETY: the work is open, or was when this thread entered, and whoever leads waits.
            unsafe { (*work)(i) };
        }
    }

    /// A helper's life.
    fn help(&self) {
        let mut done = 0;
        loop {
            let found = self.wait(done);
            // Entered, unless it was closed in the meantime or others came first: then again.
            if self
                .state
                .compare_exchange(found, found + 1, SeqCst, SeqCst)
                .is_err()
            {
                spin_loop();
                continue;
            }
            done = found / ONE_FURTHER;
            // SAFETY: it was written before the work was opened, and is not again before this
            // helper has left.
            let work = unsafe { *self.work.get() };
            if let Some(work) = work
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.do_pieces(work)))
            {
                *self.panicked.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            self.state.fetch_sub(1, SeqCst);
        }
    }

    /// The state, once there is open work other than number `done`.
    fn wait(&self, done: usize) -> usize {
        let fresh = || {
            let state = self.state.load(SeqCst);
            (state & OPEN > 0 && state / ONE_FURTHER != done).then_some(state)
        };
        let since = Instant::now();
        loop {
            for _ in 0..64 {
                if let Some(state) = fresh() {
                    return state;
                }
                spin_loop();
            }
            if since.elapsed() < PATIENCE {
                continue;
            }
            let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
            self.sleepers.fetch_add(1, SeqCst);
            // Whoever opens work after this look sees a sleeper, and rings.
            let found = loop {
                if let Some(state) = fresh() {
                    break state;
                }
                bed = self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner);
            };
            self.sleepers.fetch_sub(1, SeqCst);
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_at_once_is_in_the_order_of_the_items() {
        for n in [0, 1, 2, 100] {
            let items: Vec<usize> = (0..n).collect();
            let right: Vec<String> = items.iter().map(|i| format!("{i}")).collect();
            assert_eq!(at_once(items, |i| format!("{i}")), right);
        }
    }

    #[test]
    fn every_piece_is_done_once_before_it_returns() {
        for round in 0..2000 {
            let n = round % 37;
            let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            hand_out(n, |i| {
                counts[i].fetch_add(1, SeqCst);
            });
            assert!(
                counts.iter().all(|count| count.load(SeqCst) == 1),
                "{round}"
            );
            if round % 500 == 0 {
                // Long enough for helpers to fall asleep.
                thread::sleep(2 * PATIENCE);
            }
        }
    }

    #[test]
    fn pieces_are_those_of_the_slice() {
        let mut all = vec![0; 103];
        hand_out_pieces(&mut all, 10, |i, part| {
            for (k, value) in part.iter_mut().enumerate() {
                *value = 10 * i + k;
            }
        });
        assert_eq!(all, (0..103).collect::<Vec<_>>());
        hand_out_pieces(&mut all[..0], 10, |_, _| unreachable!());
    }

    /// Work of several threads at once, and work within work, is done all the same.
    #[test]
    fn who_finds_the_team_at_work_works_alone() {
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        hand_out(5, |_| {
                            hand_out(3, |i| {
                                total.fetch_add(i, SeqCst);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 200 * 5 * 3);
    }

    #[test]
    fn a_panic_reaches_whoever_asked_and_the_team_goes_on() {
        for _ in 0..50 {
            let result = catch_unwind(|| {
                hand_out(20, |i| assert!(i != 13, "piece {i}"));
            });
            let said = result.unwrap_err();
            assert_eq!(said.downcast_ref::<String>().unwrap(), "piece 13");
        }
        let sum = AtomicUsize::new(0);
        hand_out(20, |i| {
            sum.fetch_add(i, SeqCst);
        });
        assert_eq!(sum.into_inner(), 190);
    }
}
