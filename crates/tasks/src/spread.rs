//! Work on items that several processes share out.

use olora_training::{Exchange, ExchangeError, TrainError};
use serde::{Serialize, de::DeserializeOwned};

use crate::TaskError;

/// Whether a piece of work, counted from 0, is this process's.
pub(crate) fn is_mine(exchange: &dyn Exchange, piece: usize) -> bool {
    piece % exchange.n_ranks() == exchange.rank()
}

/// What all processes have found for their items, in the order of the items, of
/// which there are `n`.
pub(crate) fn together<T: Serialize + DeserializeOwned>(
    exchange: &dyn Exchange,
    mine: Vec<(usize, T)>,
    n: usize,
) -> Result<Vec<T>, TaskError> {
    let differ = |reason: String| TaskError::from(TrainError::from(ExchangeError::Differ(reason)));
    let mut all = if exchange.n_ranks() == 1 {
        mine
    } else {
        let bytes = serde_json::to_vec(&mine).map_err(|error| differ(error.to_string()))?;
        let of_ranks = exchange.gather(bytes).map_err(TrainError::from)?;
        let mut all = Vec::with_capacity(n);
        for (rank, bytes) in of_ranks.iter().enumerate() {
            let found: Vec<(usize, T)> = serde_json::from_slice(bytes).map_err(|error| {
                differ(format!(
                    "{} sent results that do not read: {error}",
                    exchange.name(rank)
                ))
            })?;
            all.extend(found);
        }
        all
    };
    all.sort_by_key(|(item, _)| *item);
    if all.len() != n || all.iter().enumerate().any(|(i, (item, _))| i != *item) {
        return Err(differ(format!(
            "the ranks have results of {} items together, but there are {n}: do all of them have the same task files?",
            all.len()
        )));
    }
    Ok(all.into_iter().map(|(_, found)| found).collect())
}
