//! Several samples in one row.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{DataError, Sample};

/// Puts whole samples together into rows of at most `max_length` inputs (a
/// sample of `n` tokens has `n - 1`): each sample, longest first, into the first
/// row with room for it. The rows hold indices into `samples`, each once.
///
/// Which of equally long samples goes first is drawn from the seed and the
/// epoch, so epochs differ in which samples share a row, but not in the number
/// of rows or how long they are.
///
/// # Errors
///
/// When a sample alone is longer than a row.
pub fn pack(
    samples: &[Sample],
    max_length: usize,
    seed: u64,
    epoch: usize,
) -> Result<Vec<Vec<usize>>, DataError> {
    let lengths: Vec<_> = samples.iter().map(Sample::n_inputs).collect();
    if let Some(i) = lengths.iter().position(|&length| length > max_length) {
        return Err(DataError::TooLongToPack {
            sample: i + 1,
            n_inputs: lengths[i],
            max_length,
        });
    }
    let mut order: Vec<_> = (0..samples.len()).collect();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch as u64);
    order.shuffle(&mut random);
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut room = Room::new(samples.len(), max_length);
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for i in order {
        let row = room.take(lengths[i]);
        if row >= rows.len() {
            rows.resize_with(row + 1, Vec::new);
        }
        rows[row].push(i);
    }
    Ok(rows)
}

/// The room left in each of many rows, as a tree in which every node holds the
/// most of the two below it: the first row with enough of it is found in as
/// many steps as the tree is high.
struct Room {
    /// Node `k` has the children `2k` and `2k + 1`; the rows are the last half.
    tree: Vec<usize>,
}

impl Room {
    fn new(n_rows: usize, room: usize) -> Self {
        Self {
            tree: vec![room; 2 * n_rows.max(1).next_power_of_two()],
        }
    }

    /// Takes `length` from the first row that has it, and says which. There
    /// must be such a row: there are as many rows as samples, and none is longer.
    fn take(&mut self, length: usize) -> usize {
        let first_row = self.tree.len() / 2;
        let mut node = 1;
        while node < first_row {
            node *= 2;
            node += usize::from(self.tree[node] < length);
        }
        let row = node - first_row;
        self.tree[node] = self.tree[node].saturating_sub(length);
        while node > 1 {
            node /= 2;
            self.tree[node] = self.tree[2 * node].max(self.tree[2 * node + 1]);
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(lengths: &[usize]) -> Vec<Sample> {
        let sample = |&n_inputs: &usize| Sample::all_trained(vec![1; n_inputs + 1]);
        lengths.iter().map(sample).collect()
    }

    /// Many lengths, each of several samples.
    fn many() -> Vec<Sample> {
        samples(&(0..500).map(|i| 1 + i * i % 100).collect::<Vec<_>>())
    }

    #[test]
    fn each_sample_is_in_one_row_and_no_row_is_too_long() {
        let samples = many();
        let rows = pack(&samples, 128, 1, 0).unwrap();
        for row in &rows {
            let length: usize = row.iter().map(|&i| samples[i].n_inputs()).sum();
            assert!((1..=128).contains(&length), "{length}");
        }
        let mut all = rows.concat();
        all.sort_unstable();
        assert_eq!(all, (0..samples.len()).collect::<Vec<_>>());
    }

    #[test]
    fn a_row_is_the_first_with_room_for_the_longest_that_is_left() {
        let rows = pack(&samples(&[3, 9, 1, 4, 6, 10]), 10, 0, 0).unwrap();
        assert_eq!(rows, [vec![5], vec![1, 2], vec![4, 3], vec![0]]);
        // The slow and plain way.
        let samples = many();
        let mut plain: Vec<usize> = Vec::new();
        let mut lengths: Vec<_> = samples.iter().map(Sample::n_inputs).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        for length in lengths {
            match plain.iter_mut().find(|row| **row + length <= 128) {
                Some(row) => *row += length,
                None => plain.push(length),
            }
        }
        let rows = pack(&samples, 128, 0, 0).unwrap();
        let sums = rows
            .iter()
            .map(|row| row.iter().map(|&i| samples[i].n_inputs()).sum());
        assert_eq!(sums.collect::<Vec<usize>>(), plain);
    }

    #[test]
    fn seed_and_epoch_decide_who_shares_a_row_and_not_how_many_rows() {
        let samples = many();
        let rows = |seed, epoch| pack(&samples, 128, seed, epoch).unwrap();
        assert_eq!(rows(1, 0), rows(1, 0));
        for other in [rows(1, 1), rows(2, 0)] {
            assert_ne!(other, rows(1, 0));
            assert_eq!(other.len(), rows(1, 0).len());
        }
    }

    #[test]
    fn what_fits_no_row_is_named() {
        let error = pack(&samples(&[3, 11, 12]), 10, 0, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "sample 2 takes 11 positions, but a packed row has only 10: \
             cut samples to at most 11 tokens, or pack into longer rows"
        );
        assert!(pack(&[], 10, 0, 0).unwrap().is_empty());
    }
}
