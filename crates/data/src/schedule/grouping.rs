//! Rows into batches of similar length, in an order that looks like chance.

use rand::{Rng, seq::SliceRandom};

/// Rows are sorted by length within windows of this many batches: wide enough
/// that rows of a batch are about as long, narrow enough that epochs differ.
const WINDOW: usize = 50;

/// Where more than this share of the positions would be padding, windows grow.
const MOST_PADDING: f64 = 0.05;

/// Rows in batches: each batch is a part of an order of the rows, and the
/// batches have an order of their own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batches {
    rows: Vec<u32>,
    order: Vec<u32>,
    batch_size: usize,
}

impl Batches {
    fn in_order(rows: Vec<u32>, batch_size: usize) -> Self {
        let n = rows.len().div_ceil(batch_size);
        Self {
            rows,
            order: (0..n as u32).collect(),
            batch_size,
        }
    }

    /// The rows of the batch that comes as number `i`.
    pub(super) fn get(&self, i: usize) -> Option<&[u32]> {
        let batch = *self.order.get(i)? as usize;
        self.rows.chunks(self.batch_size).nth(batch)
    }

    /// All batches, in any order.
    pub(super) fn all(&self) -> impl Iterator<Item = &[u32]> {
        self.rows.chunks(self.batch_size)
    }
}

/// Batches of indices into `lengths`, each index once. Rows of one batch are
/// about as long, so that less than [`MOST_PADDING`] of them is padding; where
/// that cannot be, because there are few rows and lengths differ much, as
/// little as sorting all of them leaves.
pub(super) fn grouped(lengths: &[u32], batch_size: usize, random: &mut impl Rng) -> Batches {
    let mut order: Vec<_> = (0..lengths.len() as u32).collect();
    order.shuffle(random);
    let mut window = WINDOW.saturating_mul(batch_size);
    loop {
        for rows in order.chunks_mut(window) {
            rows.sort_by_key(|&i| lengths[i as usize]);
        }
        // With a long tail of lengths, the longest rows of a window have few
        // others of their kind. In a window twice as wide there are twice as many.
        let padding = padding_share(order.chunks(batch_size), lengths);
        if padding < MOST_PADDING || window >= lengths.len() {
            break;
        }
        window = window.saturating_mul(2);
    }
    let mut batches = Batches::in_order(order, batch_size);
    batches.order.shuffle(random);
    batches
}

/// Batches of all rows, shortest first.
pub(super) fn by_length(lengths: &[u32], batch_size: usize) -> Batches {
    let mut order: Vec<_> = (0..lengths.len() as u32).collect();
    order.sort_by_key(|&i| lengths[i as usize]);
    Batches::in_order(order, batch_size)
}

/// The share of positions that is padding, if each batch is padded to its
/// longest row.
pub(super) fn padding_share<'a>(batches: impl Iterator<Item = &'a [u32]>, lengths: &[u32]) -> f64 {
    let (mut real, mut all) = (0, 0);
    for batch in batches {
        let lengths = batch.iter().map(|&i| lengths[i as usize] as usize);
        all += batch.len() * lengths.clone().max().unwrap_or(0);
        real += lengths.sum::<usize>();
    }
    if all == 0 {
        0.0
    } else {
        1.0 - real as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Lengths of chats: the logarithm is normal, and long ones are cut at
    /// `most`. In SmolLM2's tokens, GSM8K has a mean of 5.3 and a spread of
    /// 0.3, `BoolQ` 5.1 and 0.4; a mix of short and long conversations spreads wider.
    fn lengths(n: usize, mean: f64, spread: f64, most: u32) -> Vec<u32> {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut uniform = || random.random_range(f64::MIN_POSITIVE..1.0);
        let length = |_| {
            let normal = (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
            ((mean + spread * normal).exp() as u32).clamp(2, most)
        };
        (0..n).map(length).collect()
    }

    fn share(lengths: &[u32], batch_size: usize, seed: u64) -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let batches = grouped(lengths, batch_size, &mut random);
        padding_share(batches.all(), lengths)
    }

    #[test]
    fn padding_stays_under_a_twentieth() {
        for (mean, spread, most) in [
            (4.0, 0.2, 511),
            (5.3, 0.3, 511),
            (5.0, 0.9, 511),
            (5.0, 1.2, 4095),
            (4.0, 1.5, 2047),
        ] {
            let lengths = lengths(5000, mean, spread, most);
            for (batch_size, seed) in [(2, 0), (8, 1), (8, 2), (16, 3)] {
                let share = share(&lengths, batch_size, seed);
                assert!(
                    share < MOST_PADDING,
                    "{share} at batch {batch_size} of spread {spread}"
                );
            }
        }
    }

    #[test]
    fn windows_are_no_wider_than_that_takes() {
        // Sorted whole, these would pad less than a thousandth.
        let lengths = lengths(20_000, 5.3, 0.3, 511);
        let share = share(&lengths, 8, 0);
        assert!(share > 0.005, "{share}");
    }

    #[test]
    fn what_cannot_be_under_it_is_sorted_whole() {
        let lengths = lengths(1000, 4.0, 2.0, 100_000);
        let least = by_length(&lengths, 16);
        let least = padding_share(least.all(), &lengths);
        assert!(least > MOST_PADDING, "{least}");
        assert_eq!(share(&lengths, 16, 0), least);
    }

    /// As batches were made before they were kept in so little room: what a run
    /// that was begun then must go on with.
    fn plainly(lengths: &[u32], batch_size: usize, random: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.shuffle(random);
        let share = |order: &[usize]| {
            let (mut real, mut all) = (0, 0);
            for batch in order.chunks(batch_size) {
                let lengths = batch.iter().map(|&i| lengths[i] as usize);
                all += batch.len() * lengths.clone().max().unwrap();
                real += lengths.sum::<usize>();
            }
            1.0 - real as f64 / all as f64
        };
        let mut window = WINDOW * batch_size;
        loop {
            for rows in order.chunks_mut(window) {
                rows.sort_by_key(|&i| lengths[i]);
            }
            if share(&order) < MOST_PADDING || window >= lengths.len() {
                break;
            }
            window *= 2;
        }
        let mut batches: Vec<_> = order.chunks(batch_size).map(<[_]>::to_vec).collect();
        batches.shuffle(random);
        batches
    }

    #[test]
    fn the_order_is_that_of_versions_before() {
        for (n, batch_size) in [(1, 1), (7, 8), (1000, 3), (5000, 8)] {
            let lengths = lengths(n, 5.0, 0.9, 511);
            let mut random = [(); 2].map(|()| {
                let mut random = ChaCha8Rng::seed_from_u64(42);
                random.set_stream(3);
                random
            });
            let plain = plainly(&lengths, batch_size, &mut random[0]);
            let batches = grouped(&lengths, batch_size, &mut random[1]);
            for (i, batch) in plain.iter().enumerate() {
                let ours = batches.get(i).unwrap().iter().map(|&row| row as usize);
                assert_eq!(ours.collect::<Vec<_>>(), *batch, "{n}, batch {i}");
            }
            assert_eq!(batches.get(plain.len()), None);
        }
    }
}
