//! The order in which a run sees its samples.

mod grouping;

use std::sync::{Arc, Mutex, PoisonError};

use burn::data::{
    dataloader::{DataLoader, DataLoaderBuilder},
    dataset::{Dataset, DatasetError},
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{Batch, BatchCollator, DataError, Padding, Sample, pack};

/// The order of a whole run: item `i` is its `i`-th micro-batch, all epochs back
/// to back. Nothing but the samples, the batch size and the seed decides it, so
/// a run resumed at micro-batch `k` reads items `k..`.
///
/// Each epoch holds every sample exactly once, in rows of their own or several
/// in one, and rows of similar length in a batch. Where the batch size does not
/// divide the number of rows, one batch of each epoch is smaller.
#[derive(Debug)]
pub struct Schedule {
    samples: Arc<[Sample]>,
    batch_size: usize,
    order: Order,
    n_rows: usize,
    n_batches: usize,
    /// The epoch last asked for, and its batches.
    plan: Mutex<Option<(usize, Plan)>>,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Shuffled { seed: u64 },
    Packed { seed: u64, max_length: usize },
    ByLength,
}

/// What one epoch holds.
#[derive(Debug)]
struct Plan {
    /// Indices into the samples; one each unless they are packed.
    rows: Vec<Vec<usize>>,
    /// Indices into the rows.
    batches: Vec<Vec<usize>>,
}

/// An item of a [`Schedule`]: what becomes one [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MicroBatch {
    /// The samples of each row.
    pub rows: Vec<Vec<Sample>>,
    /// Whether a row may hold more than one.
    pub is_packed: bool,
}

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

    /// Like [`new`](Self::new), but with as many samples in a row as [`pack`]
    /// puts into `max_length` inputs; `batch_size` counts rows. Every epoch has
    /// as many of them, so that a run of whole epochs is known beforehand.
    ///
    /// # Errors
    ///
    /// When a sample alone is longer than a row, as well.
    pub fn packed(
        samples: impl Into<Arc<[Sample]>>,
        batch_size: usize,
        max_length: usize,
        seed: u64,
        n_batches: usize,
    ) -> Result<Self, DataError> {
        let order = Order::Packed { seed, max_length };
        let schedule = Self::with_order(samples.into(), batch_size, order)?;
        let n_rows = pack(&schedule.samples, max_length, seed, 0)?.len();
        Ok(Self {
            n_rows,
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
        let n_rows = samples.len();
        Ok(Self {
            samples,
            batch_size,
            order,
            n_rows,
            n_batches: n_rows.div_ceil(batch_size),
            plan: Mutex::new(None),
        })
    }

    /// Rows in one pass over the samples.
    pub fn n_rows_per_epoch(&self) -> usize {
        self.n_rows
    }

    /// Micro-batches in one pass over the samples.
    pub fn n_batches_per_epoch(&self) -> usize {
        self.n_rows.div_ceil(self.batch_size)
    }

    /// The share of a batch's positions that is padding, over the first epoch,
    /// if rows are padded no further than the longest.
    pub fn padding_share(&self) -> Result<f64, DataError> {
        let plan = self.plan_of(0)?;
        let lengths = self.lengths(&plan.rows);
        let batches = plan.batches.iter().map(Vec::as_slice);
        Ok(grouping::padding_share(batches, &lengths))
    }

    /// Inputs of each row.
    fn lengths(&self, rows: &[Vec<usize>]) -> Vec<usize> {
        let length = |row: &Vec<usize>| row.iter().map(|&i| self.samples[i].n_inputs()).sum();
        rows.iter().map(length).collect()
    }

    fn plan_of(&self, epoch: usize) -> Result<Plan, DataError> {
        let rows = match self.order {
            Order::Packed { seed, max_length } => pack(&self.samples, max_length, seed, epoch)?,
            Order::Shuffled { .. } | Order::ByLength => {
                (0..self.samples.len()).map(|i| vec![i]).collect()
            }
        };
        let lengths = self.lengths(&rows);
        let batches = match self.order {
            Order::ByLength => grouping::by_length(&lengths, self.batch_size),
            Order::Shuffled { seed } | Order::Packed { seed, .. } => {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(epoch as u64);
                grouping::grouped(&lengths, self.batch_size, &mut random)
            }
        };
        Ok(Plan { rows, batches })
    }
}

impl Dataset<MicroBatch> for Schedule {
    fn get(&self, index: usize) -> Result<MicroBatch, DatasetError> {
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
            _ => {
                let plan = self.plan_of(epoch).map_err(DatasetError::new)?;
                cached.insert((epoch, plan))
            }
        };
        let batch = plan
            .batches
            .get(index % per_epoch)
            .ok_or_else(out_of_range)?;
        let row = |&row: &usize| {
            let samples = plan.rows[row].iter().map(|&i| self.samples[i].clone());
            samples.collect()
        };
        Ok(MicroBatch {
            rows: batch.iter().map(row).collect(),
            is_packed: matches!(self.order, Order::Packed { .. }),
        })
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
mod tests;
