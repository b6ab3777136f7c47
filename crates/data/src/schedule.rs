//! The order in which a run sees its samples.

mod grouping;

use std::sync::{Arc, Mutex, PoisonError};

use burn::data::{
    dataloader::{DataLoader, DataLoaderBuilder},
    dataset::{Dataset, DatasetError},
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{Batch, BatchCollator, DataError, Padding, Sample};

/// The order of a whole run: item `i` is its `i`-th micro-batch, all epochs back
/// to back. Nothing but the samples, the batch size and the seed decides it, so
/// a run resumed at micro-batch `k` reads items `k..`.
///
/// Each epoch holds every sample exactly once, in batches of similar length.
/// Where the batch size does not divide the number of samples, one batch of each
/// epoch is smaller.
#[derive(Debug)]
pub struct Schedule {
    samples: Arc<[Sample]>,
    batch_size: usize,
    order: Order,
    n_batches: usize,
    /// The epoch last asked for, and its batches.
    plan: Mutex<Option<(usize, Plan)>>,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Shuffled { seed: u64 },
    ByLength,
}

/// Batches of indices into the samples.
type Plan = Vec<Vec<usize>>;

impl Schedule {
    /// A training run of `n_batches` micro-batches, over as many epochs as that takes.
    pub fn new(
        samples: impl Into<Arc<[Sample]>>,
        batch_size: usize,
        seed: u64,
        n_batches: usize,
    ) -> Result<Self, DataError> {
        let schedule = Self::with_order(samples.into(), batch_size, Order::Shuffled { seed })?;
        Ok(Self {
            n_batches,
            ..schedule
        })
    }

    /// Every sample once, shortest first: for evaluation.
    pub fn sequential(
        samples: impl Into<Arc<[Sample]>>,
        batch_size: usize,
    ) -> Result<Self, DataError> {
        Self::with_order(samples.into(), batch_size, Order::ByLength)
    }

    fn with_order(
        samples: Arc<[Sample]>,
        batch_size: usize,
        order: Order,
    ) -> Result<Self, DataError> {
        for (key, found) in [
            ("batch size", batch_size),
            ("number of samples", samples.len()),
        ] {
            if found == 0 {
                let expected = "at least 1".to_owned();
                return Err(DataError::OutOfRange {
                    key,
                    found: "0".to_owned(),
                    expected,
                });
            }
        }
        let n_batches = samples.len().div_ceil(batch_size);
        Ok(Self {
            samples,
            batch_size,
            order,
            n_batches,
            plan: Mutex::new(None),
        })
    }

    /// Micro-batches in one pass over the samples.
    pub fn n_batches_per_epoch(&self) -> usize {
        self.samples.len().div_ceil(self.batch_size)
    }

    /// The share of a batch's positions that is padding, over the first epoch,
    /// if rows are padded no further than the longest.
    pub fn padding_share(&self) -> f64 {
        let plan = self.plan_of(0);
        grouping::padding_share(plan.iter().map(Vec::as_slice), &self.lengths())
    }

    fn lengths(&self) -> Vec<usize> {
        self.samples.iter().map(Sample::n_inputs).collect()
    }

    fn plan_of(&self, epoch: usize) -> Plan {
        let lengths = self.lengths();
        match self.order {
            Order::ByLength => grouping::by_length(&lengths, self.batch_size),
            Order::Shuffled { seed } => {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(epoch as u64);
                grouping::grouped(&lengths, self.batch_size, &mut random)
            }
        }
    }
}

impl Dataset<Vec<Sample>> for Schedule {
    fn get(&self, index: usize) -> Result<Vec<Sample>, DatasetError> {
        let out_of_range = || {
            DatasetError::new(DataError::OutOfRange {
                key: "micro-batch",
                found: index.to_string(),
                expected: format!("below {}", self.n_batches),
            })
        };
        if index >= self.n_batches {
            return Err(out_of_range());
        }
        let per_epoch = self.n_batches_per_epoch();
        let epoch = index / per_epoch;
        // A plan is a value, never half-written: one that a panicking thread left is whole.
        let mut cached = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, plan) = match cached.take() {
            Some((planned, plan)) if planned == epoch => cached.insert((epoch, plan)),
            _ => cached.insert((epoch, self.plan_of(epoch))),
        };
        let batch = plan.get(index % per_epoch).ok_or_else(out_of_range)?;
        Ok(batch.iter().map(|&i| self.samples[i].clone()).collect())
    }

    fn len(&self) -> usize {
        self.n_batches
    }
}

/// A Burn data loader over a schedule, prepared on one background thread.
///
/// One, because with several Burn hands batches out as they come in, and the
/// order would be lost. To resume at micro-batch `k`: `loader.slice(k, n)`.
pub fn loader(schedule: Schedule, padding: impl Into<Padding>) -> Arc<dyn DataLoader<Batch>> {
    let padding = padding.into();
    DataLoaderBuilder::new(BatchCollator { padding })
        .batch_size(1)
        .num_workers(1)
        .build(schedule)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sample `i` begins with token `i` and has a length all its own.
    fn samples(n: u32) -> Vec<Sample> {
        let tokens = |i: u32| (0..i * 7 % n + 2).map(|j| i + j).collect();
        (0..n).map(|i| Sample::all_trained(tokens(i))).collect()
    }

    fn firsts(schedule: &Schedule, batches: std::ops::Range<usize>) -> Vec<u32> {
        batches
            .flat_map(|i| schedule.get(i).unwrap())
            .map(|sample| sample.tokens[0])
            .collect()
    }

    #[test]
    fn each_epoch_has_every_sample_once_and_an_order_of_its_own() {
        let schedule = Schedule::new(samples(103), 4, 42, 78).unwrap();
        assert_eq!(schedule.n_batches_per_epoch(), 26);
        let epochs: Vec<_> = (0..3)
            .map(|e| firsts(&schedule, e * 26..(e + 1) * 26))
            .collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..103).collect::<Vec<_>>());
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
        // Going back to an epoch gives the same order, and so does a second schedule.
        let again = Schedule::new(samples(103), 4, 42, 78).unwrap();
        assert_eq!(firsts(&schedule, 0..26), epochs[0]);
        assert_eq!(firsts(&again, 26..52), epochs[1]);
        let other = Schedule::new(samples(103), 4, 43, 78).unwrap();
        assert_ne!(firsts(&other, 0..26), epochs[0]);
    }

    #[test]
    fn grouping_by_length_pads_less() {
        let grouped = Schedule::new(samples(1000), 8, 1, 125)
            .unwrap()
            .padding_share();
        let best = Schedule::sequential(samples(1000), 8)
            .unwrap()
            .padding_share();
        assert!(
            best > 0.0 && best < grouped && grouped < 0.05,
            "{best} {grouped}"
        );
        // Batches do not come shortest first: what a window sorts, the batches' shuffle undoes.
        let schedule = Schedule::new(samples(1000), 8, 1, 125).unwrap();
        let lengths: Vec<_> = (0..125)
            .map(|i| schedule.get(i).unwrap()[0].len())
            .collect();
        assert!(!lengths[..50].is_sorted());
    }

    #[test]
    fn sequential_is_every_sample_once_shortest_first() {
        let schedule = Schedule::sequential(samples(10), 3).unwrap();
        let lengths: Vec<_> = (0..schedule.len())
            .flat_map(|i| schedule.get(i).unwrap())
            .map(|s| s.len())
            .collect();
        assert_eq!(lengths, (2..12).collect::<Vec<_>>());
    }

    #[test]
    fn the_loader_keeps_the_order_and_a_slice_is_the_tail() {
        // More batches than Burn queues, so that several workers would show.
        let schedule = || Schedule::new(samples(50), 4, 7, 500).unwrap();
        let expected: Vec<_> = (0..500)
            .map(|i| Batch::from_samples(&schedule().get(i).unwrap(), 0))
            .collect();
        let loader = loader(schedule(), 0);
        let all: Vec<_> = loader.iter().map(Result::unwrap).collect();
        assert_eq!(all, expected);
        let tail: Vec<_> = loader.slice(217, 500).iter().map(Result::unwrap).collect();
        assert_eq!(tail, expected[217..]);
    }

    #[test]
    fn what_cannot_be_scheduled_is_refused() {
        let error = Schedule::new(samples(3), 0, 0, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`batch size` is 0, but must be at least 1"
        );
        let error = Schedule::sequential(Vec::new(), 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`number of samples` is 0, but must be at least 1"
        );
        let error = Schedule::sequential(samples(3), 1)
            .unwrap()
            .get(3)
            .unwrap_err();
        assert_eq!(error.to_string(), "`micro-batch` is 3, but must be below 3");
    }
}
