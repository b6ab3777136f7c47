//! The order in which a run sees its samples.

mod grouping;

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use burn::data::{
    dataloader::{DataLoader, DataLoaderBuilder},
    dataset::{Dataset, DatasetError},
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    Batch, BatchCollator, BatchSize, Corpus, DataError, Mixture, Padding, Sample,
    batch::shared_inputs,
    pack::{Rows, check_lengths, pack_lengths, saturated},
};

/// The order of a whole run: item `i` is its `i`-th micro-batch, all epochs back
/// to back. Nothing but the samples, their weights, the batch size and the seed
/// decides it, so a run resumed at micro-batch `k` reads items `k..`.
///
/// Each epoch holds every sample as often as the [`Mixture`] says, exactly once
/// where nothing is mixed, in rows of their own or several in one, and rows of
/// similar length in a batch. Where the batch size does not divide the number of
/// rows, one batch of each epoch is smaller.
///
/// Where the samples are [pairs](Corpus::pairs), all of this goes for pairs: the
/// two answers of one stay together, one behind the other in a row, what both begin
/// with only once ([`Pairs`](crate::Pairs)), and the batch size counts pairs.
///
/// An epoch's order takes 4 bytes a sample, or 8 where it is packed or mixed,
/// and as much again while it is made.
#[derive(Debug)]
pub struct Schedule {
    mixture: Mixture,
    batch_size: usize,
    order: Order,
    /// Rows of the first epoch.
    n_rows: usize,
    n_batches: usize,
    units: Units,
    state: Mutex<State>,
}

/// How long samples are, or pairs.
#[derive(Debug)]
struct Units {
    corpus: Corpus,
    /// Inputs that both of each pair have; empty where there are no pairs.
    shared: Vec<u32>,
}

impl Units {
    /// Reads the tokens of pairs.
    fn of(corpus: &Corpus) -> Self {
        let shared = |i: usize| {
            let [one, other] = [2 * i, 2 * i + 1].map(|sample| corpus.sample(sample));
            saturated(shared_inputs(&one, &other))
        };
        let n_pairs = if corpus.unit() == 2 {
            corpus.n_units()
        } else {
            0
        };
        Self {
            shared: (0..n_pairs).map(shared).collect(),
            corpus: corpus.clone(),
        }
    }

    /// The samples of a unit: itself, or both of a pair.
    fn samples(&self, i: usize) -> Range<usize> {
        let unit = self.corpus.unit();
        i * unit..(i + 1) * unit
    }

    /// Inputs of a sample, or of both of a pair, what they share counting once.
    fn inputs(&self, i: usize) -> usize {
        let all = self.samples(i).map(|sample| self.corpus.n_inputs(sample));
        let twice = self.shared.get(i).map_or(0, |shared| *shared as usize);
        all.sum::<usize>() - twice
    }

    fn trained(&self, i: usize) -> usize {
        let all = self.samples(i).map(|sample| self.corpus.n_trained(sample));
        all.sum()
    }
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Shuffled { seed: u64 },
    Packed { seed: u64, max_length: usize },
    ByLength,
}

/// What is remembered of what has been worked out.
#[derive(Debug, Default)]
struct State {
    /// The number of batches up to the end of each epoch, as far as it was
    /// needed. Only of epochs that differ.
    ends: Vec<usize>,
    /// The epoch last asked for, and its batches.
    plan: Option<(usize, Plan)>,
}

/// What one epoch holds.
#[derive(Debug)]
struct Plan {
    rows: EpochRows,
    /// Of indices into the rows.
    batches: grouping::Batches,
}

/// The samples of each row, by their index; of pairs, the pairs by theirs.
#[derive(Debug)]
enum EpochRows {
    /// Row `r` is sample or pair `r`.
    All(usize),
    /// Each row is one of them.
    Each(Vec<u32>),
    Packed(Rows),
}

impl EpochRows {
    fn len(&self) -> usize {
        match self {
            Self::All(n) => *n,
            Self::Each(rows) => rows.len(),
            Self::Packed(rows) => rows.len(),
        }
    }

    fn row(&self, r: usize) -> Vec<usize> {
        match self {
            Self::All(_) => vec![r],
            Self::Each(rows) => vec![rows[r] as usize],
            Self::Packed(rows) => rows.row(r).iter().map(|&i| i as usize).collect(),
        }
    }

    /// Inputs of each row.
    fn lengths(&self, units: &Units) -> Vec<u32> {
        let inputs = |i: usize| saturated(units.inputs(i));
        match self {
            Self::All(n) => (0..*n).map(inputs).collect(),
            Self::Each(rows) => rows.iter().map(|&i| inputs(i as usize)).collect(),
            Self::Packed(rows) => (0..rows.len())
                .map(|r| {
                    let items = rows.row(r).iter();
                    saturated(items.map(|&i| units.inputs(i as usize)).sum())
                })
                .collect(),
        }
    }
}

/// An item of a [`Schedule`]: what becomes one [`Batch`].
#[derive(Clone, Debug, PartialEq)]
pub struct MicroBatch {
    /// The samples of each row.
    pub rows: Vec<Vec<Sample>>,
    /// What a row holds.
    pub kind: RowKind,
}

/// What a row of a [`MicroBatch`] holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowKind {
    /// One sample.
    #[default]
    One,
    /// One or more, packed.
    Packed,
    /// One or more pairs.
    Pairs,
}

impl MicroBatch {
    /// The batch that it becomes.
    pub fn batch(&self, padding: impl Into<Padding>) -> Batch {
        match self.kind {
            RowKind::One => Batch::from_samples(&self.rows.concat(), padding),
            RowKind::Packed => Batch::packed(&self.rows, padding),
            RowKind::Pairs => Batch::of_pairs(&self.rows, padding),
        }
    }
}

impl Schedule {
    /// A training run of `n_batches` micro-batches, over as many epochs as that takes.
    pub fn new(
        samples: impl Into<Mixture>,
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

    /// Like [`new`](Self::new), but with as many samples in a row as
    /// [`pack`](crate::pack()) puts into `max_length` inputs; `batch_size` counts
    /// rows. Every epoch of the same samples has as many of them. A row for pairs
    /// has room for twice as much, so that it has room for any pair.
    ///
    /// # Errors
    ///
    /// When a sample or a pair alone is longer than a row, as well.
    pub fn packed(
        samples: impl Into<Mixture>,
        batch_size: usize,
        max_length: usize,
        seed: u64,
        n_batches: usize,
    ) -> Result<Self, DataError> {
        let mixture: Mixture = samples.into();
        let max_length = max_length.saturating_mul(mixture.corpus().unit());
        let order = Order::Packed { seed, max_length };
        let schedule = Self::with_order(mixture, batch_size, order)?;
        let units = &schedule.units;
        let lengths = (0..units.corpus.n_units()).map(|i| units.inputs(i));
        check_lengths(lengths, max_length)?;
        let n_rows = schedule.rows_of(0).len();
        Ok(Self {
            n_rows,
            n_batches,
            ..schedule
        })
    }

    /// Every sample once, shortest first: for evaluation.
    pub fn sequential(samples: impl Into<Corpus>, batch_size: usize) -> Result<Self, DataError> {
        let corpus: Corpus = samples.into();
        Self::with_order(corpus.into(), batch_size, Order::ByLength)
    }

    fn with_order(mixture: Mixture, batch_size: usize, order: Order) -> Result<Self, DataError> {
        for (key, found) in [
            ("batch size", batch_size),
            ("number of samples", mixture.len()),
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
        let n_rows = mixture.n_samples_in(0);
        Ok(Self {
            units: Units::of(mixture.corpus()),
            mixture,
            batch_size,
            order,
            n_rows,
            n_batches: n_rows.div_ceil(batch_size),
            state: Mutex::default(),
        })
    }

    /// Rows in the first epoch. In mixtures with weights that are not whole,
    /// others may have one more or fewer of each source.
    pub fn n_rows_per_epoch(&self) -> usize {
        self.n_rows
    }

    /// Micro-batches in the first epoch.
    pub fn n_batches_per_epoch(&self) -> usize {
        self.n_rows.div_ceil(self.batch_size)
    }

    /// Micro-batches in a number of epochs from the first on, of which the last
    /// may be a part: rounded to the nearest whole number.
    ///
    /// Where epochs differ and are packed, each is packed for this.
    pub fn n_batches_in(&self, epochs: f64) -> usize {
        if self.mixture.is_even() {
            return (self.n_batches_per_epoch() as f64 * epochs).round() as usize;
        }
        let whole = epochs.floor();
        let mut state = self.state();
        let before = match whole as usize {
            0 => 0,
            n => self.end_of(n - 1, &mut state),
        };
        let last = self.end_of(whole as usize, &mut state) - before;
        before + (last as f64 * (epochs - whole)).round() as usize
    }

    /// The share of a batch's positions that is padding, over the first epoch,
    /// if rows are padded no further than the longest.
    pub fn padding_share(&self) -> f64 {
        let plan = self.plan_of(0);
        let lengths = plan.rows.lengths(&self.units);
        grouping::padding_share(plan.batches.all(), &lengths)
    }

    fn rows_of(&self, epoch: usize) -> EpochRows {
        let (seed, max_length) = match self.order {
            Order::ByLength => return EpochRows::All(self.mixture.len()),
            Order::Shuffled { seed } => (seed, None),
            Order::Packed { seed, max_length } => (seed, Some(max_length)),
        };
        let one_each = match self.mixture.indices(seed, epoch) {
            None => EpochRows::All(self.mixture.len()),
            Some(indices) => EpochRows::Each(indices),
        };
        let Some(max_length) = max_length else {
            return one_each;
        };
        let lengths = one_each.lengths(&self.units);
        let mut rows = pack_lengths(&lengths, max_length, seed, epoch);
        if let EpochRows::Each(indices) = one_each {
            for item in &mut rows.items {
                *item = indices[*item as usize];
            }
        }
        EpochRows::Packed(rows)
    }

    fn plan_of(&self, epoch: usize) -> Plan {
        let rows = self.rows_of(epoch);
        let lengths = rows.lengths(&self.units);
        let batches = match self.order {
            Order::ByLength => grouping::by_length(&lengths, self.batch_size),
            Order::Shuffled { seed } | Order::Packed { seed, .. } => {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(epoch as u64);
                grouping::grouped(&lengths, self.batch_size, &mut random)
            }
        };
        Plan { rows, batches }
    }

    /// A plan is a value, never half-written, and so are the ends: what a
    /// panicking thread left is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of batches up to the end of an epoch.
    fn end_of(&self, epoch: usize, state: &mut State) -> usize {
        if self.mixture.is_even() {
            return (epoch + 1).saturating_mul(self.n_batches_per_epoch());
        }
        for epoch in state.ends.len()..=epoch {
            let n_rows = match self.order {
                Order::Packed { .. } => self.rows_of(epoch).len(),
                Order::Shuffled { .. } | Order::ByLength => self.mixture.n_samples_in(epoch),
            };
            let before = state.ends.last().copied().unwrap_or(0);
            state.ends.push(before + n_rows.div_ceil(self.batch_size));
        }
        state.ends[epoch]
    }

    /// The epoch of a micro-batch, and which of the epoch's it is.
    fn locate(&self, index: usize, state: &mut State) -> (usize, usize) {
        if self.mixture.is_even() {
            let per_epoch = self.n_batches_per_epoch();
            return (index / per_epoch, index % per_epoch);
        }
        // No epoch is without a batch.
        while state.ends.last().is_none_or(|&end| end <= index) {
            self.end_of(state.ends.len(), state);
        }
        let epoch = state.ends.partition_point(|&end| end <= index);
        let before = epoch.checked_sub(1).map_or(0, |before| state.ends[before]);
        (epoch, index - before)
    }
}

impl Schedule {
    /// The size that micro-batch `index` has as a [`Batch`]. Its tokens are not
    /// read for that.
    ///
    /// # Errors
    ///
    /// When there are not as many.
    pub fn size(&self, index: usize, padding: impl Into<Padding>) -> Result<BatchSize, DataError> {
        let padding = padding.into();
        let rows = self.rows(index)?;
        let (mut longest, mut n_tokens, mut n_trained) = (0, 0, 0);
        for row in &rows {
            let n_inputs = row.iter().map(|&i| self.units.inputs(i)).sum();
            longest = longest.max(n_inputs);
            n_tokens += n_inputs;
            n_trained += row.iter().map(|&i| self.units.trained(i)).sum::<usize>();
        }
        Ok(BatchSize {
            n_rows: rows.len(),
            seq_len: padding.round_up(longest),
            n_targets: padding.round_up(n_trained),
            n_tokens,
        })
    }

    /// The samples of each row of a micro-batch, or the pairs.
    fn rows(&self, index: usize) -> Result<Vec<Vec<usize>>, DataError> {
        let out_of_range = || DataError::OutOfRange {
            key: "micro-batch",
            found: index.to_string(),
            expected: format!("below {}", self.n_batches),
        };
        if index >= self.n_batches {
            return Err(out_of_range());
        }
        let mut state = self.state();
        let (epoch, within) = self.locate(index, &mut state);
        // Another epoch's goes before this one's is made: two need not be in memory at once.
        let known = state.plan.take().filter(|(planned, _)| *planned == epoch);
        let plan = known.unwrap_or_else(|| (epoch, self.plan_of(epoch)));
        let (_, plan) = state.plan.insert(plan);
        let batch = plan.batches.get(within).ok_or_else(out_of_range)?;
        let rows = batch.iter().map(|&row| plan.rows.row(row as usize));
        Ok(rows.collect())
    }
}

impl Dataset<MicroBatch> for Schedule {
    fn get(&self, index: usize) -> Result<MicroBatch, DatasetError> {
        let samples = |i| self.units.samples(i);
        let sample = |i| self.units.corpus.sample(i);
        let row = |row: Vec<usize>| row.into_iter().flat_map(samples).map(sample).collect();
        let rows = self.rows(index).map_err(DatasetError::new)?;
        Ok(MicroBatch {
            rows: rows.into_iter().map(row).collect(),
            kind: match self.order {
                _ if self.units.corpus.unit() == 2 => RowKind::Pairs,
                Order::Packed { .. } => RowKind::Packed,
                Order::Shuffled { .. } | Order::ByLength => RowKind::One,
            },
        })
    }

    fn len(&self) -> usize {
        self.n_batches
    }
}

/// A Burn data loader over a schedule, or a [`Share`](crate::Share) of one,
/// prepared on one background thread.
///
/// One, because with several Burn hands batches out as they come in, and the
/// order would be lost. To resume at micro-batch `k`: `loader.slice(k, n)`.
pub fn loader(
    schedule: impl Dataset<MicroBatch> + 'static,
    padding: impl Into<Padding>,
) -> Arc<dyn DataLoader<Batch>> {
    let padding = padding.into();
    DataLoaderBuilder::new(BatchCollator { padding })
        .batch_size(1)
        .num_workers(1)
        .build(schedule)
}

#[cfg(test)]
mod tests;
