//! How the processes of one run tell each other things: a trait, and the one
//! process that has nobody to tell.

use std::{fmt::Debug, ops::Range, sync::Arc};

/// What the processes of one run have in common, each with a device of its own.
///
/// Every process calls the same methods in the same order; a call returns when
/// all have made it. What is computed with the answers is the business of whoever
/// calls: an exchange moves bytes and adds nothing, since no library of messages
/// promises the order in which it adds.
///
/// [`Local`] is one process. `olora-mpi` has one over MPI; one over NCCL, for
/// the devices of a machine, would be another.
pub trait Exchange: Debug + Send + Sync {
    /// Which process this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn n_ranks(&self) -> usize;

    /// What people call a process: `rank 3 on node2`.
    fn name(&self, rank: usize) -> String {
        format!("rank {rank}")
    }

    /// Gives every process the bytes of all, in the order of their ranks.
    ///
    /// # Errors
    ///
    /// When another process has failed or is gone.
    fn gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, ExchangeError>;

    /// Sends `values[to[r]]` to each rank `r`, and returns what each sent here,
    /// which is `lengths[r]` values; of this rank itself, nothing.
    ///
    /// # Errors
    ///
    /// When another process has failed or is gone, or sends another number of
    /// values.
    fn trade(
        &self,
        values: &Arc<Vec<f32>>,
        to: &[Range<usize>],
        lengths: &[usize],
    ) -> Result<Vec<Vec<f32>>, ExchangeError>;

    /// Whether another process has failed, without waiting: to be asked now and
    /// then by whoever works long between two exchanges.
    ///
    /// # Errors
    ///
    /// What became of it.
    fn check(&self) -> Result<(), ExchangeError> {
        Ok(())
    }
}

/// Why processes could not exchange anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// Another process failed, and has said why.
    #[error("{who}: {message}")]
    Failed {
        /// Which process, for people.
        who: String,
        /// Its error.
        message: String,
    },
    /// Another process does not answer any more.
    #[error(
        "{who} has not been heard of for {seconds} s: it was killed, its machine is down, or the network between \
         the machines is. All ranks end; start them again with --auto-resume to go on from the last checkpoint"
    )]
    Lost {
        /// Which process, for people.
        who: String,
        /// Seconds without a sign of life.
        seconds: u64,
    },
    /// The library of messages failed.
    #[error("exchanging with the other ranks failed: {0}")]
    Broken(String),
    /// The processes are not in the same place of the same run.
    #[error("{0}")]
    Differ(String),
}

/// One process: what it has is what there is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

impl Exchange for Local {
    fn rank(&self) -> usize {
        0
    }

    fn n_ranks(&self) -> usize {
        1
    }

    fn gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        Ok(vec![bytes])
    }

    fn trade(
        &self,
        _values: &Arc<Vec<f32>>,
        _to: &[Range<usize>],
        _lengths: &[usize],
    ) -> Result<Vec<Vec<f32>>, ExchangeError> {
        Ok(vec![Vec::new()])
    }
}

/// The micro-batches of a step that are a rank's: of `accumulation`, a block of
/// neighbours. All of them if there is one rank.
///
/// # Errors
///
/// [`ExchangeError::Differ`] if the ranks cannot have equally many, with the
/// numbers of ranks that could.
pub fn share(
    accumulation: usize,
    rank: usize,
    n_ranks: usize,
) -> Result<Range<usize>, ExchangeError> {
    if n_ranks == 0 || !accumulation.is_multiple_of(n_ranks) {
        let fitting = (1..=accumulation.min(1024)).filter(|n| accumulation.is_multiple_of(*n));
        let fitting: Vec<_> = fitting.map(|n| n.to_string()).collect();
        return Err(ExchangeError::Differ(format!(
            "training.accumulation is {accumulation}: it counts the micro-batches of a whole step, which {n_ranks} \
             ranks cannot share out equally. Numbers of ranks that would do: {}; or set training.accumulation to \
             a multiple of {n_ranks}, with a training.batch_size that is smaller by as much for the same step",
            fitting.join(", ")
        )));
    }
    let block = accumulation / n_ranks;
    Ok(rank * block..(rank + 1) * block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_ranks_that_does_not_divide_is_told_which_would() {
        assert_eq!(share(12, 2, 3), Ok(8..12));
        assert_eq!(share(1, 0, 1), Ok(0..1));
        let error = share(12, 0, 5).unwrap_err().to_string();
        assert!(error.contains("1, 2, 3, 4, 6, 12"), "{error}");
        assert!(error.contains("a multiple of 5"), "{error}");
    }
}
