//! Singular value decompositions, exact and randomised, of which only a few
//! components are wanted.

use nalgebra::{DMatrix, DVector};

use super::random::{generator, normal_matrix};

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
/// wanted (1536 × 576: 0.5 s against 2 s, measured), and where few of the largest
/// are wanted, the Lanczos method is faster again (0.08 s).
pub fn svd(w: &DMatrix<f64>, which: Which, k: usize) -> Svd {
    if w.nrows() < w.ncols() {
        let Svd { u, s, v } = svd(&w.transpose(), which, k);
        return Svd { u: v, s, v: u };
    }
    let k = k.min(w.ncols());
    // Ten times as fast as `tr_mul`, which is a dot product for each element.
    let squared = w.transpose() * w;
    let few = which == Which::Largest && w.ncols() >= SMALL && k <= w.ncols() / 8;
    let v = few.then(|| largest_of(&squared, k)).flatten();
    let v = v.unwrap_or_else(|| some_of_all(squared, which, k));
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

/// Columns below which all eigenvectors are found as fast as some.
const SMALL: usize = 192;

/// `k` eigenvectors of a symmetric matrix, of all that are computed; by falling
/// eigenvalues.
fn some_of_all(matrix: DMatrix<f64>, which: Which, k: usize) -> DMatrix<f64> {
    let eigen = matrix.symmetric_eigen();
    let order = falling(&eigen.eigenvalues);
    let wanted = match which {
        Which::Largest => &order[..k],
        Which::Smallest => &order[order.len() - k..],
    };
    eigen.eigenvectors.select_columns(wanted)
}

/// Indices of values, the largest first.
fn falling(values: &DVector<f64>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order
}

/// The eigenvectors of the `k` largest eigenvalues of a symmetric matrix without
/// negative ones, by the Lanczos method with every vector made orthogonal to all
/// before it (Golub and Van Loan, Matrix Computations, 4th edition, section 10.3).
///
/// They are right when `‖Gv − λv‖` is within rounding of the largest eigenvalue.
/// One starting vector may pass over a second eigenvector of the same eigenvalue,
/// so that another run looks, in what is orthogonal to those found, for any larger
/// than the smallest of them. `None` if there is one, or the largest do not stand
/// out within half of the matrix.
fn largest_of(matrix: &DMatrix<f64>, k: usize) -> Option<DMatrix<f64>> {
    const ROUNDING: f64 = 1e-13;
    let n = matrix.ncols();
    let none = DMatrix::zeros(n, 0);
    let mut lanczos = Lanczos::new(matrix, &none, 1)?;
    while lanczos.basis.len() < n / 2 {
        for _ in 0..32 {
            lanczos.extend();
        }
        let (values, vectors, residuals) = lanczos.ritz(k);
        let largest = values.first().copied().unwrap_or(0.0);
        if residuals
            .iter()
            .all(|residual| *residual <= ROUNDING * largest)
        {
            let smallest = values.last().copied().unwrap_or(0.0);
            let Some(mut rest) = Lanczos::new(matrix, &vectors, 2) else {
                return Some(vectors);
            };
            for _ in 0..32 {
                rest.extend();
            }
            let (others, ..) = rest.ritz(1);
            let passed_over = others
                .first()
                .is_some_and(|other| *other > smallest * (1.0 + 1e-9));
            return (!passed_over).then_some(vectors);
        }
    }
    None
}

/// A matrix as it acts on a growing orthonormal basis: tridiagonal.
struct Lanczos<'a> {
    matrix: &'a DMatrix<f64>,
    /// What all of the basis is orthogonal to.
    apart: &'a DMatrix<f64>,
    /// The next vector is the last of these, of which what came before has been seen.
    basis: Vec<DVector<f64>>,
    diagonal: Vec<f64>,
    beside: Vec<f64>,
    rng: rand_chacha::ChaCha8Rng,
}

impl<'a> Lanczos<'a> {
    /// `None` if nothing is orthogonal to `apart`.
    fn new(matrix: &'a DMatrix<f64>, apart: &'a DMatrix<f64>, seed: u64) -> Option<Self> {
        let mut lanczos = Self {
            matrix,
            apart,
            basis: Vec::new(),
            diagonal: Vec::new(),
            beside: Vec::new(),
            rng: generator(seed, 0),
        };
        let first = lanczos.fresh()?;
        lanczos.basis.push(first);
        Some(lanczos)
    }

    /// A random unit vector orthogonal to all others, if there is room for one.
    fn fresh(&mut self) -> Option<DVector<f64>> {
        let n = self.matrix.ncols();
        if self.basis.len() + self.apart.ncols() >= n {
            return None;
        }
        let drawn = normal_matrix(n, 1, &mut self.rng);
        let mut vector = drawn.column(0).into_owned();
        self.orthogonalise(&mut vector);
        let norm = vector.norm();
        (norm > 0.0).then(|| vector / norm)
    }

    /// Twice is enough (Giraud et al. 2005).
    fn orthogonalise(&self, vector: &mut DVector<f64>) {
        for _ in 0..2 {
            for q in &self.basis {
                let along = q.dot(vector);
                vector.axpy(-along, q, 1.0);
            }
            for q in self.apart.column_iter() {
                let along = q.dot(vector);
                vector.axpy(-along, &q, 1.0);
            }
        }
    }

    /// One more vector, unless the basis is the whole space.
    fn extend(&mut self) {
        let Some(last) = self
            .basis
            .last()
            .filter(|_| self.diagonal.len() < self.basis.len())
        else {
            return;
        };
        let mut next = self.matrix * last;
        let along = next.dot(last);
        let size = next.norm();
        self.diagonal.push(along);
        self.orthogonalise(&mut next);
        let norm = next.norm();
        // What is left of a vector within the basis is rounding: another begins anew.
        let (beside, next) = if norm > size * 1e-12 {
            (norm, Some(next / norm))
        } else {
            (0.0, self.fresh())
        };
        if let Some(next) = next {
            self.beside.push(beside);
            self.basis.push(next);
        }
    }

    /// The `k` largest eigenvalues of the matrix on the basis, falling, the vectors
    /// that belong to them, and how far each is from an eigenvector of the matrix.
    fn ritz(&self, k: usize) -> (Vec<f64>, DMatrix<f64>, Vec<f64>) {
        let n = self.diagonal.len();
        let mut small = DMatrix::from_diagonal(&DVector::from_column_slice(&self.diagonal));
        for i in 1..n {
            small[(i, i - 1)] = self.beside[i - 1];
            small[(i - 1, i)] = self.beside[i - 1];
        }
        let eigen = small.symmetric_eigen();
        let mut order = falling(&eigen.eigenvalues);
        order.truncate(k);
        // 0 where the basis is the whole space.
        let leads_out = self.beside.get(n - 1).copied().unwrap_or(0.0);
        let chosen = eigen.eigenvectors.select_columns(&order);
        let last = chosen.row(n - 1).into_owned();
        let residuals = last.iter().map(|last| (leads_out * last).abs());
        let residuals = residuals.collect();
        (
            order.iter().map(|&i| eigen.eigenvalues[i]).collect(),
            DMatrix::from_columns(&self.basis[..n]) * chosen,
            residuals,
        )
    }
}

/// The last step of a randomised decomposition: the `k` largest components from an orthonormal basis `q`,
/// `[m, p]`, of the range of `W`, and `Wᵀq`, `[n, p]`.
pub(super) fn from_basis(q: &DMatrix<f64>, projected: &DMatrix<f64>, k: usize) -> Svd {
    // Wᵀq = V·S·Uqᵀ.
    let Svd { u: v, s, v: uq } = svd(projected, Which::Largest, k);
    Svd { u: q * uq, s, v }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::thin_q;

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

    /// `U·diag(s)·Vᵀ` with random orthonormal factors.
    fn with_values(m: usize, n: usize, s: &[f64]) -> DMatrix<f64> {
        let [u, v] = [thin_q(matrix(m, s.len())), thin_q(matrix(n, s.len()))];
        u * DMatrix::from_diagonal(&DVector::from_column_slice(s)) * v.transpose()
    }

    /// Of noise, of values that fall, of few that are not zero, and where some are
    /// several times there: what all eigenvectors give.
    #[test]
    fn few_of_the_largest_are_those_of_all() {
        let (m, n, k) = (300, 220, 9);
        let falling: Vec<f64> = (0..n).map(|i| 0.97_f64.powi(i as i32)).collect();
        let of_rank_4 = [5.0, 4.0, 4.0, 1.0];
        let twice: Vec<f64> = (0..n).map(|i| 10.0 - (i / 2) as f64 * 0.05).collect();
        let all_alike = vec![2.0; n];
        for w in [
            matrix(m, n),
            with_values(m, n, &falling),
            with_values(m, n, &of_rank_4),
            with_values(m, n, &twice),
            with_values(m, n, &all_alike),
            DMatrix::zeros(m, n),
        ] {
            let found = svd(&w, Which::Largest, k);
            let v = some_of_all(w.transpose() * &w, Which::Largest, k);
            let right = DVector::from_iterator(k, (&w * v).column_iter().map(|x| x.norm()));
            let size = right[0].max(1e-300);
            assert!(
                (&found.s - &right).amax() < 1e-9 * size,
                "{} {right}",
                found.s
            );
            let kept = &found.u * DMatrix::from_diagonal(&found.s) * found.v.transpose();
            // What is left has no larger value than the first that was left out.
            let left = (&w - kept).singular_values()[0];
            let next = w.clone().singular_values();
            let mut next: Vec<f64> = next.iter().copied().collect();
            next.sort_by(|a, b| b.total_cmp(a));
            assert!(left <= next[k] + 1e-9 * size, "{left} {}", next[k]);
            let unit = found.v.tr_mul(&found.v) - DMatrix::identity(k, k);
            assert!(unit.amax() < 1e-12);
        }
        assert!(largest_of(&(matrix(m, n).transpose() * matrix(m, n)), k).is_some());
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
