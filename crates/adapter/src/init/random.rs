//! Starts drawn at random. All of them on the host, from the seed and the
//! layer's path alone, so that every backend, and every selection of targets,
//! starts a layer alike.

use nalgebra::DMatrix;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use super::thin_q;

/// A generator for one layer.
pub(crate) fn generator(seed: u64, path_id: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed ^ path_id)
}

/// PEFT's default `A` (`init_lora_weights: true`): Kaiming-uniform with
/// `a = √5`, which is `U(−1/√d_in, 1/√d_in)`, as `[d_in, rank]` row-major.
pub(crate) fn kaiming_uniform_a(d_in: usize, rank: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let bound = 1.0 / (d_in as f32).sqrt();
    (0..d_in * rank)
        .map(|_| rng.random_range(-bound..bound))
        .collect()
}

/// `n` values of a normal distribution with mean 0.
pub(crate) fn normal(n: usize, deviation: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..n)
        .map(|_| rng.sample::<f32, _>(StandardNormal) * deviation)
        .collect()
}

/// A matrix of standard normal values.
pub(crate) fn normal_matrix(rows: usize, columns: usize, rng: &mut ChaCha8Rng) -> DMatrix<f64> {
    DMatrix::from_fn(rows, columns, |_, _| rng.sample(StandardNormal))
}

/// PEFT's `"orthogonal"`: with `Q` a random orthogonal matrix of the rank's
/// size, `A` in the span of its even rows and `B` in that of its odd ones, each
/// a tenth of normal values. `A` is `[d_in, rank]`, `B` `[rank, d_out]`, both
/// row-major; their product is zero up to rounding.
pub(crate) fn orthogonal(
    [d_in, d_out]: [usize; 2],
    rank: usize,
    rng: &mut ChaCha8Rng,
) -> [Vec<f32>; 2] {
    let q = thin_q(normal_matrix(rank, rank, rng));
    let rows = |first: usize| {
        let indices: Vec<usize> = (first..rank).step_by(2).collect();
        q.select_rows(&indices)
    };
    let a = normal_matrix(d_in, rank / 2, rng) * rows(0) / 10.0;
    let b = normal_matrix(d_out, rank / 2, rng) * rows(1) / 10.0;
    // nalgebra is column-major: the transpose's columns are the rows wanted, and B's own columns
    // one after another are Bᵀ by rows.
    let values = |matrix: &DMatrix<f64>| matrix.iter().map(|&x| x as f32).collect();
    [values(&a.transpose()), values(&b)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kaiming_uniform_fills_its_interval_and_depends_on_seed_and_path() {
        let draw = |seed, path| kaiming_uniform_a(64, 16, &mut generator(seed, path));
        let a = draw(1, 2);
        let bound = 1.0 / 8.0;
        let largest = a.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        assert!(largest <= bound && largest > 0.95 * bound, "{largest}");
        let mean_square = a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32;
        assert!((mean_square.sqrt() / (bound / 3.0_f32.sqrt()) - 1.0).abs() < 0.1);
        assert_eq!(a, draw(1, 2));
        assert_ne!(a, draw(2, 2));
        assert_ne!(a, draw(1, 3));
    }

    #[test]
    fn normal_values_have_the_deviation_asked_for() {
        let values = normal(20_000, 0.25, &mut generator(3, 4));
        let mean = values.iter().sum::<f32>() / 20_000.0;
        let square = values.iter().map(|x| x * x).sum::<f32>() / 20_000.0;
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((square.sqrt() / 0.25 - 1.0).abs() < 0.03, "{square}");
    }

    #[test]
    fn orthogonal_factors_are_not_zero_and_their_product_is() {
        let (d_in, d_out, rank) = (40, 24, 6);
        let [a, b] = orthogonal([d_in, d_out], rank, &mut generator(1, 1));
        let a = DMatrix::from_row_slice(d_in, rank, &a);
        let b = DMatrix::from_row_slice(rank, d_out, &b);
        assert!((&a * &b).amax() < 1e-6, "{}", (&a * &b).amax());
        // Half of the rank's directions each, with a hundredth of the variance.
        for (factor, rows) in [(&a, d_in), (&b, d_out)] {
            let square = factor.norm_squared() / (rows * rank) as f32;
            assert!((square / 0.005 - 1.0).abs() < 0.3, "{square}");
        }
    }
}
