//! Rows into batches of similar length, in an order that looks like chance.

use rand::{Rng, seq::SliceRandom};

/// Rows are sorted by length within windows of this many batches: wide enough
/// that rows of a batch are about as long, narrow enough that epochs differ.
const WINDOW: usize = 50;

/// Where more than this share of the positions would be padding, windows grow.
const MOST_PADDING: f64 = 0.05;

/// Batches of indices into `lengths`, each index once. Rows of one batch are
/// about as long, so that less than [`MOST_PADDING`] of them is padding; where
/// that cannot be, because there are few rows and lengths differ much, as
/// little as sorting all of them leaves.
pub(super) fn grouped(
    lengths: &[usize],
    batch_size: usize,
    random: &mut impl Rng,
) -> Vec<Vec<usize>> {
    let mut order: Vec<_> = (0..lengths.len()).collect();
    order.shuffle(random);
    let mut window = WINDOW.saturating_mul(batch_size);
    loop {
        for rows in order.chunks_mut(window) {
            rows.sort_by_key(|&i| lengths[i]);
        }
        // With a long tail of lengths, the longest rows of a window have few
        // others of their kind. In a window twice as wide there are twice as many.
        let padding = padding_share(order.chunks(batch_size), lengths);
        if padding < MOST_PADDING || window >= lengths.len() {
            break;
        }
        window = window.saturating_mul(2);
    }
    let mut batches = cut(&order, batch_size);
    batches.shuffle(random);
    batches
}

/// Batches of all rows, shortest first.
pub(super) fn by_length(lengths: &[usize], batch_size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<_> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| lengths[i]);
    cut(&order, batch_size)
}

fn cut(order: &[usize], batch_size: usize) -> Vec<Vec<usize>> {
    order.chunks(batch_size).map(<[_]>::to_vec).collect()
}

/// The share of positions that is padding, if each batch is padded to its
/// longest row.
pub(super) fn padding_share<'a>(
    batches: impl Iterator<Item = &'a [usize]>,
    lengths: &[usize],
) -> f64 {
    let (mut real, mut all) = (0, 0);
    for batch in batches {
        let lengths = batch.iter().map(|&i| lengths[i]);
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
    fn lengths(n: usize, mean: f64, spread: f64, most: usize) -> Vec<usize> {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut uniform = || random.random_range(f64::MIN_POSITIVE..1.0);
        let length = |_| {
            let normal = (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
            ((mean + spread * normal).exp() as usize).clamp(2, most)
        };
        (0..n).map(length).collect()
    }

    fn share(lengths: &[usize], batch_size: usize, seed: u64) -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let batches = grouped(lengths, batch_size, &mut random);
        padding_share(batches.iter().map(Vec::as_slice), lengths)
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
        let least = padding_share(least.iter().map(Vec::as_slice), &lengths);
        assert!(least > MOST_PADDING, "{least}");
        assert_eq!(share(&lengths, 16, 0), least);
    }
}
