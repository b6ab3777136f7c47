//! Randomised singular value decompositions of tensors: products with them on
//! their device, what is left, few columns each, on the host.

use burn::tensor::{DType, Tensor, TensorData};
use nalgebra::DMatrix;
use olora_operations::is_host;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{
    qr::basis,
    random::normal_matrix,
    svd::{Svd, from_basis},
};
use crate::{AdapterError, error::device_error};

/// A tensor to decompose.
pub(crate) struct Sketched<'a> {
    /// `[m, n]`, f32, without autodiff.
    pub(crate) matrix: Tensor<2>,
    /// What errors call it.
    pub(crate) path: &'a str,
    /// How many components are wanted, the largest.
    pub(crate) rank: usize,
    /// How many columns are looked at to find them; at least the rank.
    pub(crate) width: usize,
    /// Where the first of them come from.
    pub(crate) rng: ChaCha8Rng,
}

/// Decomposes several tensors: on the host each by a thread, which has it in its
/// cache from one product to the next, and elsewhere their products one after the
/// other and the host's part of them in parallel.
///
/// As `torch.svd_lowrank`: Halko, Martinsson and Tropp 2011 (arXiv 0909.4061),
/// algorithms 4.4 and 5.1.
pub(crate) fn randomised(
    all: Vec<Sketched<'_>>,
    iterations: usize,
) -> Result<Vec<Svd>, AdapterError> {
    if !all
        .iter()
        .all(|sketched| is_host(&sketched.matrix.device()))
    {
        return together(all, iterations);
    }
    let each = all
        .into_par_iter()
        .map(|one| together(vec![one], iterations));
    let each: Result<Vec<Vec<Svd>>, AdapterError> = each.collect();
    Ok(each?.into_iter().flatten().collect())
}

fn together(mut all: Vec<Sketched<'_>>, iterations: usize) -> Result<Vec<Svd>, AdapterError> {
    let drawn = all.iter_mut().map(|sketched| {
        let [m, n] = sketched.matrix.dims();
        normal_matrix(n, sketched.width.min(m).min(n), &mut sketched.rng)
    });
    let drawn = drawn.collect();
    // M·x or Mᵀ·x.
    let times = |x: Vec<DMatrix<f64>>, transposed: bool| {
        let products = all.iter().zip(x).map(|(sketched, x)| {
            let x = to_device(&x, &sketched.matrix);
            let matrix = sketched.matrix.clone();
            let matrix = if transposed {
                matrix.transpose()
            } else {
                matrix
            };
            Ok(transposed_to_host(matrix.matmul(x), sketched.path)?.transpose())
        });
        products.collect::<Result<Vec<_>, AdapterError>>()
    };
    let bases = |products: Vec<DMatrix<f64>>| products.into_par_iter().map(basis).collect();
    let mut q: Vec<DMatrix<f64>> = bases(times(drawn, false)?);
    for _ in 0..iterations {
        let back = bases(times(q, true)?);
        q = bases(times(back, false)?);
    }
    let projected = times(q.clone(), true)?;
    let ranks: Vec<usize> = all.iter().map(|sketched| sketched.rank).collect();
    Ok((ranks, q, projected)
        .into_par_iter()
        .map(|(rank, q, projected)| from_basis(&q, &projected, rank))
        .collect())
}

/// A matrix as an f32 tensor beside `like`.
pub(crate) fn to_device(matrix: &DMatrix<f64>, like: &Tensor<2>) -> Tensor<2> {
    let values: Vec<f32> = matrix.transpose().iter().map(|&x| x as f32).collect();
    let data = TensorData::new(values, [matrix.nrows(), matrix.ncols()]);
    Tensor::from_data(data, (&like.device(), DType::F32))
}

/// The transpose of a tensor, on the host; `path` is what errors call it.
pub(crate) fn transposed_to_host(
    tensor: Tensor<2>,
    path: &str,
) -> Result<DMatrix<f64>, AdapterError> {
    let [rows, columns] = tensor.dims();
    let values = tensor
        .try_into_data_as::<f32>()
        .and_then(|data| Ok(data.try_into_vec::<f32>()?))
        .map_err(|error| device_error(path, &error))?;
    if values.iter().any(|x| !x.is_finite()) {
        return Err(AdapterError::NotFinite(path.to_owned()));
    }
    Ok(DMatrix::from_iterator(
        columns,
        rows,
        values.into_iter().map(f64::from),
    ))
}
