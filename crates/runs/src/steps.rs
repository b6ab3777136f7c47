//! How many steps a run takes, over which micro-batches of which size.

use burn::data::dataset::Dataset;
pub(crate) use olora_data::BatchSize;
use olora_data::{Batch, Mixture, Padding, Schedule};

use crate::{Recipe, RunError, state::RunState};

/// The run's micro-batches, in order.
pub(crate) fn schedule(
    recipe: &Recipe,
    samples: &Mixture,
    n_batches: usize,
) -> Result<Schedule, RunError> {
    let (samples, batch_size) = (samples.clone(), recipe.training.batch_size);
    Ok(if recipe.data.packing {
        let max_length = recipe.data.max_length;
        Schedule::packed(samples, batch_size, max_length, recipe.seed, n_batches)?
    } else {
        Schedule::new(samples, batch_size, recipe.seed, n_batches)?
    })
}

/// How many steps, over how many micro-batches of which size.
pub(crate) struct Steps {
    pub(crate) total: usize,
    pub(crate) n_batches: usize,
    /// Whether the recipe counts passes over the data, not steps.
    by_epochs: bool,
    pub(crate) batches_per_epoch: usize,
    /// The batch with most inputs of those looked at, which are the first
    /// epoch's or as many as there are.
    pub(crate) largest: BatchSize,
    /// Inputs of those, padding included and not.
    pub(crate) n_inputs: usize,
    pub(crate) n_tokens: usize,
    /// How many were looked at.
    pub(crate) n_seen: usize,
}

impl Steps {
    pub(crate) fn new(
        recipe: &Recipe,
        samples: &Mixture,
        padding: Padding,
    ) -> Result<Self, RunError> {
        let training = &recipe.training;
        let first = schedule(recipe, samples, 1)?;
        let batches_per_epoch = first.n_batches_per_epoch();
        let (total, n_batches) = match training.max_steps {
            Some(steps) => (steps, steps.saturating_mul(training.accumulation)),
            None => {
                let epochs = training.epochs.unwrap_or(1.0);
                let n_batches = first.n_batches_in(epochs).max(1);
                // The last step takes the micro-batches that are left.
                (n_batches.div_ceil(training.accumulation), n_batches)
            }
        };
        let n_seen = n_batches.min(batches_per_epoch);
        let schedule = schedule(recipe, samples, n_seen)?;
        let mut steps = Self {
            total,
            n_batches,
            by_epochs: training.max_steps.is_none(),
            batches_per_epoch,
            largest: BatchSize::default(),
            n_inputs: 0,
            n_tokens: 0,
            n_seen,
        };
        for index in 0..n_seen {
            let size = schedule.size(index, padding)?;
            steps.n_inputs += size.n_inputs();
            steps.n_tokens += size.n_tokens;
            if size.n_inputs() > steps.largest.n_inputs() {
                steps.largest = size;
            }
        }
        Ok(steps)
    }

    /// Steps in all of a run that goes on from where it stands; `None` if it has
    /// gone further already.
    ///
    /// Where passes over the data are counted, the last step takes the
    /// micro-batches that are left. If the run stands after such a step of a
    /// shorter length, those after it are grouped from there on.
    pub(crate) fn total_after(&self, state: &RunState, accumulation: usize) -> Option<usize> {
        if self.by_epochs {
            let left = self.n_batches.checked_sub(state.n_batches)?;
            Some(state.step + left.div_ceil(accumulation))
        } else {
            (state.step <= self.total).then_some(self.total)
        }
    }

    /// Passes over the data, a last batch that is not full counting as one.
    pub(crate) fn epochs(&self) -> f64 {
        self.n_batches as f64 / self.batches_per_epoch.max(1) as f64
    }

    /// Inputs of the whole run, padding included, as far as one epoch tells.
    pub(crate) fn total_inputs(&self) -> f64 {
        self.n_inputs as f64 * self.n_batches as f64 / self.n_seen.max(1) as f64
    }
}

/// One micro-batch of a schedule.
pub(crate) fn batch(
    schedule: &Schedule,
    index: usize,
    padding: Padding,
) -> Result<Batch, RunError> {
    let item = schedule
        .get(index)
        .map_err(|error| RunError::burn(&error))?;
    Ok(item.batch(padding))
}
