//! From a method and a weight to the starting factors, in Burn's layout:
//! weights are `[d_in, d_out]`, the transposes of the papers'.

use burn::tensor::{DType, Tensor, TensorData};
use nalgebra::DMatrix;
use rayon::prelude::*;

use super::{
    random::{generator, kaiming_uniform_a, normal, orthogonal},
    sketch::{Sketched, randomised, to_device, transposed_to_host},
    svd::{Svd, Which, svd},
    thin_q,
};
use crate::{
    AdapterError, LayerShape, Method, Target, factors::param_id, low_rank::as_f32, target::Kind,
};

/// Columns that a randomised decomposition has more than the rank: a few make
/// it nearly exact (Halko et al. 2011, section 4.2).
const OVERSAMPLING: usize = 8;

/// The starting factors of one layer, plain tensors on its device.
pub(crate) struct InitialFactors {
    /// `[d_in, rank]`.
    pub(crate) a: Tensor<2>,
    /// `[rank, d_out]`.
    pub(crate) b: Tensor<2>,
    /// Whether `a·b` is not zero and has to be taken out again.
    pub(crate) anchored: bool,
}

impl InitialFactors {
    /// Nothing but zeros.
    pub(crate) fn empty(layer: &PlannedLayer, anchored: bool) -> Self {
        let ([d_in, d_out], rank) = (layer.target.dims(), layer.shape.rank);
        layer.initial(vec![0.0; d_in * rank], vec![0.0; rank * d_out], anchored)
    }
}

/// A layer with the rank and scale that its update is to have.
#[derive(Clone)]
pub(crate) struct PlannedLayer {
    pub(crate) target: Target,
    pub(crate) shape: LayerShape,
}

impl PlannedLayer {
    fn initial(&self, a: Vec<f32>, b: Vec<f32>, anchored: bool) -> InitialFactors {
        let [d_in, d_out] = self.target.dims();
        let device = self.target.device();
        let tensor = |values, shape: [usize; 2]| {
            Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32))
        };
        InitialFactors {
            a: tensor(a, [d_in, self.shape.rank]),
            b: tensor(b, [self.shape.rank, d_out]),
            anchored,
        }
    }

    /// The weight in f32, without autodiff.
    fn weight(&self) -> Tensor<2> {
        as_f32(self.target.weight())
    }
}

/// The starting factors of every layer, by a method that needs no data.
///
/// `progress` is called with (layers done, layers in all).
pub(crate) fn initial_factors(
    method: Method,
    iterations: Option<usize>,
    planned: &[PlannedLayer],
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<InitialFactors>, AdapterError> {
    match method {
        // Those that need data are refused before, and start from it.
        Method::Lora
        | Method::LoraGaussian
        | Method::LoraOrthogonal
        | Method::Eva
        | Method::OloraGradient
        | Method::LoraGradient => Ok(planned
            .iter()
            .map(|layer| drawn(method, layer, seed))
            .collect()),
        Method::Olora => olora(planned, progress),
        Method::Pissa => match iterations {
            Some(iterations) => randomised_pissa(planned, iterations, seed, progress),
            None => singular(method, planned, progress),
        },
        Method::OloraTail | Method::Milora => singular(method, planned, progress),
    }
}

/// The starts that do not look at the weight.
fn drawn(method: Method, layer: &PlannedLayer, seed: u64) -> InitialFactors {
    let [d_in, d_out] = layer.target.dims();
    let rank = layer.shape.rank;
    let mut rng = generator(seed, param_id(&layer.target.path).val());
    if layer.target.kind == Kind::Embedding {
        // PEFT's `reset_lora_parameters`: the other way around, so that the rows start alike.
        return layer.initial(
            vec![0.0; d_in * rank],
            normal(rank * d_out, 1.0, &mut rng),
            false,
        );
    }
    match method {
        Method::LoraOrthogonal => {
            let [a, b] = orthogonal([d_in, d_out], rank, &mut rng);
            layer.initial(a, b, false)
        }
        Method::LoraGaussian => {
            let a = normal(d_in * rank, 1.0 / rank as f32, &mut rng);
            layer.initial(a, vec![0.0; rank * d_out], false)
        }
        _ => {
            let a = kaiming_uniform_a(d_in, rank, &mut rng);
            layer.initial(a, vec![0.0; rank * d_out], false)
        }
    }
}

/// `OLoRA`: with `Q = thin_q(V[:r, :]ᵀ)`, `B₀ = Qᵀ` and `A₀ = V·Q`.
///
/// Only the slab of `r` rows goes to the host, where the layers are factorised
/// in parallel; the product with the whole weight stays on its device.
fn olora(
    planned: &[PlannedLayer],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<InitialFactors>, AdapterError> {
    progress(0, planned.len());
    let slabs = planned
        .iter()
        .map(|layer| {
            let [_, d_out] = layer.target.dims();
            let rank = layer.shape.rank;
            if let Some(slab) = packed_slab(layer) {
                return Ok(slab);
            }
            let rows = layer.target.weight().slice([0..rank, 0..d_out]);
            transposed_to_host(rows, &layer.target.path)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let qs: Vec<DMatrix<f64>> = slabs.into_par_iter().map(thin_q).collect();
    let mut starts = Vec::with_capacity(planned.len());
    for (layer, q) in planned.iter().zip(qs) {
        let weight = layer.weight();
        let b = to_device(&q.transpose(), &weight);
        let a = weight.matmul(b.clone().transpose());
        starts.push(InitialFactors {
            a,
            b,
            anchored: true,
        });
        progress(starts.len(), planned.len());
    }
    Ok(starts)
}

/// The first `rank` rows of a packed weight, transposed: no more of it is
/// unpacked.
fn packed_slab(layer: &PlannedLayer) -> Option<DMatrix<f64>> {
    let packed = layer.target.packed.as_ref()?.tensor.packed();
    let ([_, d_out], rank) = (layer.target.dims(), layer.shape.rank);
    let mut values = vec![0.0_f32; d_out * rank];
    packed.unpack(0..d_out, 0..rank, &mut values, rank).ok()?;
    let values = values.into_iter().map(f64::from);
    Some(DMatrix::from_row_iterator(d_out, rank, values))
}

/// As many layers as are to be looked at together: no more than `most`, nor than
/// fit into half a gigabyte with `bytes` for each of their values.
fn at_once(
    planned: &[PlannedLayer],
    most: usize,
    bytes: usize,
) -> impl Iterator<Item = &[PlannedLayer]> {
    const LIMIT: usize = 512 << 20;
    let mut rest = planned;
    std::iter::from_fn(move || {
        let mut sum = 0_usize;
        let fitting = rest.iter().take(most.max(1)).take_while(|layer| {
            let [d_in, d_out] = layer.target.dims();
            sum = sum.saturating_add(d_in * d_out * bytes);
            sum <= LIMIT
        });
        let n = fitting.count().max(1).min(rest.len());
        let (chunk, left) = rest.split_at(n);
        rest = left;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// From the exact decomposition of each weight, a few of them at a time.
fn singular(
    method: Method,
    planned: &[PlannedLayer],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<InitialFactors>, AdapterError> {
    progress(0, planned.len());
    let mut all = Vec::with_capacity(planned.len());
    for layers in at_once(planned, rayon::current_num_threads(), 8) {
        let weights = layers
            .iter()
            .map(|layer| transposed_to_host(layer.weight(), &layer.target.path))
            .collect::<Result<Vec<_>, _>>()?;
        let decomposed: Vec<Svd> = layers
            .par_iter()
            .zip(weights)
            .map(|(layer, weight)| {
                let which = if method == Method::Pissa {
                    Which::Largest
                } else {
                    Which::Smallest
                };
                svd(&weight, which, layer.shape.rank)
            })
            .collect();
        for (layer, svd) in layers.iter().zip(decomposed) {
            all.push(from_components(method, layer, &svd));
        }
        progress(all.len(), planned.len());
    }
    Ok(all)
}

/// The factors that a decomposition `W ≈ U·diag(s)·Vᵀ` gives, `W` being `[d_out, d_in]`.
fn from_components(method: Method, layer: &PlannedLayer, Svd { u, s, v }: &Svd) -> InitialFactors {
    let (a, b) = if method == Method::OloraTail {
        // Where the weight has no such direction, any orthonormal one will do.
        (v.clone(), thin_q_like(u))
    } else {
        let roots = DMatrix::from_diagonal(&s.map(|s| (s / layer.shape.scale).sqrt()));
        (v * &roots, u * &roots)
    };
    // Column-major, so that a transpose's values are the rows wanted.
    let values = |matrix: &DMatrix<f64>| matrix.iter().map(|&x| x as f32).collect();
    layer.initial(values(&a.transpose()), values(&b), true)
}

/// Orthonormal columns with the directions of those given, which nearly are.
fn thin_q_like(columns: &DMatrix<f64>) -> DMatrix<f64> {
    let mut q = thin_q(columns.clone());
    for (mut q, column) in q.column_iter_mut().zip(columns.column_iter()) {
        if q.dot(&column) < 0.0 {
            q.neg_mut();
        }
    }
    q
}

/// Orthonormal factors along a decomposition `M ≈ U·diag(s)·Vᵀ`, `U` and `Vᵀ`, beside `like`.
///
/// Where the matrix has no more directions, any orthonormal ones will do: of as little gradient
/// as there are tokens, a layer may have fewer than the rank.
pub(crate) fn along(svd: &Svd, like: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let a = to_device(&thin_q_like(&svd.u), like);
    let b = to_device(&thin_q_like(&svd.v).transpose(), like);
    (a, b)
}

/// `PiSSA` from randomised decompositions.
fn randomised_pissa(
    planned: &[PlannedLayer],
    iterations: usize,
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<InitialFactors>, AdapterError> {
    /// Enough to keep all cores busy, and few enough to show progress.
    const AT_ONCE: usize = 16;
    progress(0, planned.len());
    let mut all = Vec::with_capacity(planned.len());
    for layers in at_once(planned, AT_ONCE, 4) {
        let matrices: Vec<Sketched> = layers
            .iter()
            .map(|layer| Sketched {
                // W, the transpose of what Burn holds.
                matrix: layer.weight().transpose(),
                path: &layer.target.path,
                rank: layer.shape.rank,
                width: layer.shape.rank + OVERSAMPLING,
                rng: generator(seed, param_id(&layer.target.path).val()),
            })
            .collect();
        for (layer, svd) in layers.iter().zip(randomised(matrices, iterations)?) {
            all.push(from_components(Method::Pissa, layer, &svd));
        }
        progress(all.len(), planned.len());
    }
    Ok(all)
}
