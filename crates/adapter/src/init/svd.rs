//! Singular value decompositions, exact and randomised, of which only a few
//! components are wanted.

use nalgebra::{DMatrix, DVector};

/// Some components of `W ≈ U·diag(s)·Vᵀ`.
#[derive(Clone, Debug)]
pub struct Svd {
    /// `[m, k]`, orthonormal columns where the singular value is not zero.
    pub u: DMatrix<f64>,
    /// `k` singular values, falling.
    pub s: DVector<f64>,
    /// `[n, k]`, orthonormal columns.
    pub v: DMatrix<f64>,
}

/// Which components are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those with the largest singular values.
    Largest,
    /// Those with the smallest.
    Smallest,
}

/// `k` components of `w`, through the eigenvectors of the smaller of `WᵀW` and
/// `WWᵀ` in f64.
///
/// Squaring halves the digits, of which weights in f32 use less than half of
/// f64's. For matrices as large as here it is several times faster than
/// nalgebra's bidiagonal decomposition, which gives all components whatever is
/// wanted (1536 × 576: 0.5 s against 2 s, measured).
pub fn svd(w: &DMatrix<f64>, which: Which, k: usize) -> Svd {
    if w.nrows() < w.ncols() {
        let Svd { u, s, v } = svd(&w.transpose(), which, k);
        return Svd { u: v, s, v: u };
    }
    let eigen = w.tr_mul(w).symmetric_eigen();
    let mut order: Vec<usize> = (0..w.ncols()).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let k = k.min(order.len());
    let wanted = match which {
        Which::Largest => &order[..k],
        Which::Smallest => &order[order.len() - k..],
    };
    let v = eigen.eigenvectors.select_columns(wanted);
    let mut u = w * &v;
    let mut s = DVector::zeros(k);
    for (mut column, s) in u.column_iter_mut().zip(s.iter_mut()) {
        // More exact than the eigenvalue's root.
        *s = column.norm();
        if *s > 0.0 {
            column.unscale_mut(*s);
        }
    }
    Svd { u, s, v }
}

/// The last step of a randomised decomposition: the `k` largest components from an orthonormal basis `q`,
/// `[m, p]`, of the range of `W`, and `Wᵀq`, `[n, p]`.
pub fn from_basis(q: &DMatrix<f64>, projected: &DMatrix<f64>, k: usize) -> Svd {
    // Wᵀq = V·S·Uqᵀ.
    let Svd { u: v, s, v: uq } = svd(projected, Which::Largest, k);
    Svd { u: q * uq, s, v }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{
        random::{generator, normal_matrix},
        thin_q,
    };

    fn matrix(m: usize, n: usize) -> DMatrix<f64> {
        normal_matrix(m, n, &mut generator(5, 6))
    }

    #[test]
    fn all_components_make_the_matrix_and_are_orthonormal() {
        for (m, n) in [(12, 7), (7, 12), (9, 9)] {
            let w = matrix(m, n);
            let Svd { u, s, v } = svd(&w, Which::Largest, m.min(n));
            let rebuilt = &u * DMatrix::from_diagonal(&s) * v.transpose();
            assert!((rebuilt - &w).amax() < 1e-12);
            for q in [&u, &v] {
                let k = q.ncols();
                assert!((q.tr_mul(q) - DMatrix::identity(k, k)).amax() < 1e-12);
            }
        }
    }

    #[test]
    fn singular_values_are_nalgebras_from_either_end() {
        let w = matrix(20, 11);
        let theirs = w.clone().svd(false, false).singular_values;
        let (largest, smallest) = (svd(&w, Which::Largest, 3), svd(&w, Which::Smallest, 3));
        for i in 0..3 {
            assert!((largest.s[i] - theirs[i]).abs() < 1e-12);
            assert!((smallest.s[i] - theirs[8 + i]).abs() < 1e-12);
        }
        let smallest_u = &smallest.u;
        assert!((smallest_u.tr_mul(smallest_u) - DMatrix::identity(3, 3)).amax() < 1e-10);
    }

    #[test]
    fn a_zero_matrix_has_zero_components_and_no_nan() {
        let Svd { u, s, v } = svd(&DMatrix::zeros(5, 4), Which::Largest, 2);
        assert_eq!(s.amax(), 0.0);
        assert!(u.iter().chain(v.iter()).all(|x| x.is_finite()));
    }

    #[test]
    fn a_basis_of_the_range_gives_the_exact_components() {
        // Of rank 3, so that three columns are the whole range.
        let w = matrix(20, 3) * matrix(3, 15);
        let q = thin_q(&w * matrix(15, 3));
        let random = from_basis(&q, &w.tr_mul(&q), 3);
        let exact = svd(&w, Which::Largest, 3);
        assert!((random.s - exact.s).amax() < 1e-10);
    }
}
