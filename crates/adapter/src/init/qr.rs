//! Orthonormal columns: the Householder QR that OLoRA starts from.

use nalgebra::{DMatrix, DVector};

/// The first `r` columns of `Q` in the Householder QR of an `m × r` matrix,
/// `m ≥ r`, with LAPACK's signs.
///
/// This is `dgeqr2` followed by `dorg2r` (LAPACK 3.12), column by column, in
/// f64: reflectors `H = I − τ·v·vᵀ`, `R_jj = −sign(pivot)·‖column‖`, and no
/// reflection where everything below the pivot is already zero. PEFT's factors
/// come from LAPACK through `torch.linalg.qr`, so equal signs make ours equal
/// to its, and not only their product. Since the first `r` columns of `Q`
/// depend on the first `r` columns of the matrix alone, this is all of the
/// full factorisation that OLoRA needs.
///
/// Dependent columns are no problem: their part of `Q` is then not unique, and
/// this gives one orthonormal completion.
pub fn thin_q(mut columns: DMatrix<f64>) -> DMatrix<f64> {
    let (m, r) = columns.shape();
    debug_assert!(r <= m, "thin_q needs at least as many rows as columns");
    let mut reflectors: Vec<(f64, DVector<f64>)> = Vec::with_capacity(r);

    for j in 0..r {
        let mut v: DVector<f64> = columns.view((j, j), (m - j, 1)).column(0).into_owned();
        let pivot = v[0];
        let below = v.rows(1, m - j - 1).norm();
        let mut tau = 0.0;
        if below > 0.0 {
            let beta = -pivot.signum() * pivot.hypot(below);
            tau = (beta - pivot) / beta;
            v.unscale_mut(pivot - beta);
            v[0] = 1.0;
            let mut rest = columns.view_mut((j, j + 1), (m - j, r - j - 1));
            reflect(&mut rest, &v, tau);
        }
        reflectors.push((tau, v));
    }

    let mut q = DMatrix::identity(m, r);
    for (j, (tau, v)) in reflectors.iter().enumerate().rev() {
        if *tau != 0.0 {
            reflect(&mut q.view_mut((j, j), (m - j, r - j)), v, *tau);
        }
    }
    q
}

/// An orthonormal basis of what the columns span, by Cholesky's decomposition of their products,
/// twice (Yamamoto et al. 2015, "Roundoff error analysis of the `CholeskyQR2` algorithm"): all of it
/// products of matrices, and several times as fast as [`thin_q`] for as many columns as a sketch
/// has. Where columns are too nearly dependent for it, it is [`thin_q`]'s.
pub(super) fn basis(columns: DMatrix<f64>) -> DMatrix<f64> {
    let once = |columns: &DMatrix<f64>| {
        // Ten times as fast as `tr_mul`.
        let products = columns.transpose() * columns;
        let lower = products.cholesky()?.unpack();
        let diagonal = lower.diagonal();
        // Squared, what is lost of f64 must leave f32's digits.
        let dependent = diagonal.min() <= 1e-5 * diagonal.max();
        if dependent || !diagonal.iter().all(|x| x.is_finite()) {
            return None;
        }
        let mut inverse = DMatrix::identity(lower.nrows(), lower.ncols());
        let solved = lower.solve_lower_triangular_mut(&mut inverse);
        solved.then(|| columns * inverse.transpose())
    };
    match once(&columns).and_then(|basis| once(&basis)) {
        Some(basis) => basis,
        None => thin_q(columns),
    }
}

/// `rest ← (I − τ·v·vᵀ)·rest`.
fn reflect(rest: &mut nalgebra::DMatrixViewMut<'_, f64>, v: &DVector<f64>, tau: f64) {
    for mut column in rest.column_iter_mut() {
        let along = tau * column.dot(v);
        column.axpy(-along, v, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn random(m: usize, r: usize, seed: u64) -> DMatrix<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        DMatrix::from_fn(m, r, |_, _| rng.random_range(-1.0..1.0))
    }

    #[test]
    fn columns_are_orthonormal_and_span_the_input() {
        for (m, r) in [(7, 1), (40, 8), (8, 8), (300, 32)] {
            let w = random(m, r, 3);
            let q = thin_q(w.clone());
            let gram = q.tr_mul(&q);
            assert!((gram - DMatrix::identity(r, r)).amax() < 1e-13, "{m} x {r}");
            let rebuilt = &q * q.tr_mul(&w);
            assert!((rebuilt - w).amax() < 1e-13, "{m} x {r}");
        }
    }

    #[test]
    fn a_basis_is_orthonormal_and_spans_the_input_even_if_columns_depend_on_each_other() {
        for (m, r) in [(7, 1), (40, 8), (8, 8), (300, 32)] {
            let w = random(m, r, 3);
            let mut scaled = w.clone();
            for (j, mut column) in scaled.column_iter_mut().enumerate() {
                column.scale_mut(0.5_f64.powi(j as i32));
            }
            let mut dependent = w.clone();
            let first = w.column(0).into_owned();
            dependent.set_column(r - 1, &first);
            for w in [w, scaled, dependent, DMatrix::zeros(m, r)] {
                let q = basis(w.clone());
                let gram = q.tr_mul(&q);
                assert!((gram - DMatrix::identity(r, r)).amax() < 1e-13, "{m} x {r}");
                let rebuilt = &q * q.tr_mul(&w);
                assert!((rebuilt - w).amax() < 1e-13, "{m} x {r}");
            }
        }
    }

    #[test]
    fn equals_nalgebra_up_to_the_sign_of_each_column() {
        let w = random(24, 5, 9);
        let ours = thin_q(w.clone());
        let theirs = w.qr().q();
        for (ours, theirs) in ours.column_iter().zip(theirs.column_iter()) {
            let same = (ours - theirs).amax().min((ours + theirs).amax());
            assert!(same < 1e-13, "columns differ by {same}");
        }
    }

    #[test]
    fn r_has_lapacks_signs() {
        // The sign of R_jj is opposite to the pivot's; the last column of a
        // square matrix is not reflected and keeps its own.
        let w = DMatrix::from_row_slice(2, 2, &[3.0, 2.0, 4.0, 6.0]);
        let r = thin_q(w.clone()).tr_mul(&w);
        assert!((r[(0, 0)] + 5.0).abs() < 1e-12, "{r}");
        assert!((r[(1, 1)] - 2.0).abs() < 1e-12, "{r}");
    }

    #[test]
    fn dependent_and_zero_columns_still_give_orthonormal_ones() {
        let mut w = random(9, 4, 1);
        let first = w.column(0).into_owned();
        w.set_column(1, &first);
        w.column_mut(2).fill(0.0);
        let q = thin_q(w);
        assert!((q.tr_mul(&q) - DMatrix::identity(4, 4)).amax() < 1e-12);
    }
}
