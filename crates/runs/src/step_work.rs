//! What one step of the loop does with its micro-batches.

use burn::train::Interrupter;
use olora_data::Batch;
use olora_training::{Backward, RankStep, Work};

use crate::{RunError, strategy::StepStrategy, trainee::Learning};

/// Where the loop's micro-batches come from.
pub(crate) type Batches<'a> =
    dyn Iterator<Item = Result<Batch, burn::data::dataset::DatasetError>> + 'a;

/// This rank's share of one step.
pub(crate) struct StepWork<'a, 'b> {
    pub(crate) strategy: &'a StepStrategy,
    pub(crate) batches: &'a mut Batches<'b>,
    pub(crate) interrupter: &'a Interrupter,
    /// The step, from 1.
    pub(crate) number: usize,
    /// Micro-batches of it that are done here.
    pub(crate) n_done: usize,
    /// Their tokens, unpadded.
    pub(crate) tokens: u64,
}

impl<'l> Work<Learning<'l>> for StepWork<'_, '_> {
    type Error = RunError;

    fn backward(
        &mut self,
        learning: &Learning<'l>,
        micro_batch: usize,
    ) -> Result<Option<Backward>, RunError> {
        let Self {
            strategy, number, ..
        } = *self;
        let Some(batch) = self.batches.next() else {
            // Only the last step of a run by epochs may be short of micro-batches, and leave ranks
            // after the first without any.
            let is_last = number == strategy.total_steps;
            if self.n_done == 0 && (strategy.ranks.leads() || !is_last) {
                return Err(RunError::mismatch(format!(
                    "the data ended before step {number}"
                )));
            }
            if !is_last {
                return Err(RunError::mismatch(format!(
                    "the data ended during step {number}"
                )));
            }
            return Ok(None);
        };
        let batch = batch.map_err(|error| RunError::burn(&error))?;
        if batch.n_trained == 0 {
            return Err(RunError::mismatch(format!(
                "the batch of step {number} has no trained tokens: its loss would be 0 / 0"
            )));
        }
        self.n_done += 1;
        self.tokens += batch.n_tokens as u64;
        // By the micro-batch's place in the whole step: the same whichever rank has it.
        strategy
            .passes
            .seed_dropout(strategy.seed, number, micro_batch);
        let output = learning.0.train_step(batch);
        Ok(Some(Backward {
            loss: output.item.loss_sum,
            measures: output.item.measures,
            count: output.item.count,
            grads: output.grads,
        }))
    }

    fn share(&mut self) -> (u64, bool) {
        (self.tokens, self.interrupter.should_stop())
    }

    fn agreed(&mut self, learning: &Learning<'l>, ranks: &[RankStep]) {
        if ranks.iter().any(|rank| rank.stop) && self.strategy.directory.writes() {
            learning.0.model().tap().request();
        }
    }
}

/// Does what a lost device does, at the step and on the rank that a test names.
#[cfg(feature = "test-hooks")]
pub(crate) fn lose_device(step: usize, rank: usize) {
    let at = std::env::var("OLORA_TEST_LOSE_DEVICE_AT").ok();
    let on = std::env::var("OLORA_TEST_LOSE_DEVICE_ON_RANK").ok();
    let lost =
        at.is_some_and(|at| at.parse() == Ok(step)) && on.is_none_or(|on| on.parse() == Ok(rank));
    // So do tensor operations on a lost device.
    assert!(!lost, "the device is lost (a test asked for it)");
}
