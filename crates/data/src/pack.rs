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
    let lengths = samples.iter().map(Sample::n_inputs);
    check_lengths(lengths.clone(), max_length)?;
    let lengths: Vec<_> = lengths.map(saturated).collect();
    let rows = pack_lengths(&lengths, max_length, seed, epoch);
    let row = |r| rows.row(r).iter().map(|&i| i as usize).collect();
    Ok((0..rows.len()).map(row).collect())
}

/// A number of inputs in 32 bits: there is no sample of more.
pub(crate) fn saturated(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Refuses what fits no row.
pub(crate) fn check_lengths(
    mut lengths: impl Iterator<Item = usize>,
    max_length: usize,
) -> Result<(), DataError> {
    let mut sample = 0;
    let too_long = lengths.find(|&length| {
        sample += 1;
        length > max_length
    });
    match too_long {
        None => Ok(()),
        Some(n_inputs) => Err(DataError::TooLongToPack {
            sample,
            n_inputs,
            max_length,
        }),
    }
}

/// Indices in rows, one row behind the other.
#[derive(Debug)]
pub(crate) struct Rows {
    pub items: Vec<u32>,
    ends: Vec<u32>,
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn row(&self, r: usize) -> &[u32] {
        let start = r.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.items[start as usize..self.ends[r] as usize]
    }
}

/// [`pack`] of inputs of which none is longer than `max_length`.
pub(crate) fn pack_lengths(lengths: &[u32], max_length: usize, seed: u64, epoch: usize) -> Rows {
    let mut order: Vec<_> = (0..lengths.len() as u32).collect();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch as u64);
    order.shuffle(&mut random);
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i as usize]));
    // Two rows hold more than one has room for, or the second would not have
    // been begun. So there are at most twice as many as the inputs fill.
    let total: usize = lengths.iter().map(|&length| length as usize).sum();
    let most_rows = (2 * total / max_length.max(1) + 2).min(lengths.len());
    let mut room = Room::new(most_rows, max_length);
    // How many are in each row, and in which each is.
    let mut ends: Vec<u32> = Vec::new();
    let mut row_of = Vec::with_capacity(order.len());
    for &i in &order {
        let row = room.take(lengths[i as usize] as usize);
        if row >= ends.len() {
            ends.resize(row + 1, 0);
        }
        ends[row] += 1;
        row_of.push(row as u32);
    }
    // From how many there are to where each row begins; then, with each that is
    // put there, to where it ends.
    let mut start = 0;
    for n in &mut ends {
        start += std::mem::replace(n, start);
    }
    let mut items = vec![0; order.len()];
    for (i, row) in order.into_iter().zip(row_of) {
        let at = &mut ends[row as usize];
        items[*at as usize] = i;
        *at += 1;
    }
    Rows { items, ends }
}

/// The room left in each of many rows, as a tree in which every node holds the
/// most of the two below it: the first row with enough of it is found in as
/// many steps as the tree is high.
struct Room {
    /// Node `k` has the children `2k` and `2k + 1`; the rows are the last half.
    tree: Vec<u32>,
}

impl Room {
    fn new(n_rows: usize, room: usize) -> Self {
        Self {
            tree: vec![saturated(room); 2 * n_rows.max(1).next_power_of_two()],
        }
    }

    /// Takes `length` from the first row that has it, and says which. There
    /// must be such a row.
    fn take(&mut self, length: usize) -> usize {
        let length = saturated(length);
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

    /// As rows were made before they were kept in so little room: what a run that
    /// was begun then must go on with.
    fn plainly(lengths: &[usize], max_length: usize, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(epoch);
        order.shuffle(&mut random);
        order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
        let mut rows: Vec<(usize, Vec<usize>)> = Vec::new();
        for i in order {
            let fits = |(length, _): &&mut (usize, Vec<usize>)| *length + lengths[i] <= max_length;
            match rows.iter_mut().find(fits) {
                Some((length, row)) => {
                    *length += lengths[i];
                    row.push(i);
                }
                None => rows.push((lengths[i], vec![i])),
            }
        }
        rows.into_iter().map(|(_, row)| row).collect()
    }

    #[test]
    fn the_rows_are_those_of_versions_before() {
        for (n, most) in [(1, 100), (500, 100), (2000, 7), (300, 1)] {
            let lengths: Vec<_> = (0..n).map(|i| i * i % (most + 1)).collect();
            for (max_length, epoch) in [(most, 0), (128, 1), (1000, 2)] {
                let rows = pack(&samples(&lengths), max_length.max(most), 3, epoch).unwrap();
                let plain = plainly(&lengths, max_length.max(most), 3, epoch as u64);
                assert_eq!(rows, plain, "{n} up to {most} in {max_length}");
            }
        }
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
