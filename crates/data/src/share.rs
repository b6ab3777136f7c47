//! The micro-batches of a schedule that are one process's.

use std::ops::Range;

use burn::data::dataset::{Dataset, DatasetError};

use crate::{MicroBatch, Schedule};

/// Of a schedule's micro-batches, from a first one on and in groups of equal
/// size, those at certain places of each group: what one of several processes
/// goes through. The last group may be cut short.
///
/// ```
/// use burn::data::dataset::Dataset;
/// use olora_data::{Sample, Schedule, Share};
///
/// let samples: Vec<_> = (0..5).map(|token| Sample::new(vec![token, 1], vec![true; 2])).collect();
/// let in_order = || Schedule::sequential(samples.clone(), 1);
/// // In groups of two, the second of each: 1 and 3, and 4 has no second.
/// let share = Share::new(in_order()?, 0..5, 2, 1..2);
/// assert_eq!(share.len(), 2);
/// assert_eq!(share.get(1)?.rows, in_order()?.get(3)?.rows);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Share {
    schedule: Schedule,
    range: Range<usize>,
    group: usize,
    places: Range<usize>,
}

impl Share {
    /// Of the micro-batches in `range`, in groups of `group`, those at `places`
    /// of each, which are below `group`.
    pub fn new(
        schedule: Schedule,
        range: Range<usize>,
        group: usize,
        places: Range<usize>,
    ) -> Self {
        Self {
            schedule,
            range,
            group: group.max(1),
            places,
        }
    }
}

impl Dataset<MicroBatch> for Share {
    fn get(&self, index: usize) -> Result<MicroBatch, DatasetError> {
        let at_once = self.places.len().max(1);
        let before = index / at_once * self.group;
        self.schedule
            .get(self.range.start + before + self.places.start + index % at_once)
    }

    fn len(&self) -> usize {
        let (groups, rest) = (self.range.len() / self.group, self.range.len() % self.group);
        let of_rest = rest
            .saturating_sub(self.places.start)
            .min(self.places.len());
        groups * self.places.len() + of_rest
    }
}
