//! A start along the loss's gradient: factors whose columns and rows are the leading
//! singular directions of the gradient of the layer's weight.
//!
//! Relatives: LoRA-GA (Wang et al. 2024, [arXiv 2407.05000](https://arxiv.org/abs/2407.05000))
//! gives `A` and `B` different directions and scales them by the layer's width, LoRA-One
//! (Zhang et al. 2025, [arXiv 2502.01235](https://arxiv.org/abs/2502.01235)) starts from the
//! gradient itself, one step of full fine-tuning cut to the rank. Here, as in `OLoRA`, both
//! factors are orthonormal and their product is taken out again.
//!
//! [`probed`] has a module's layers show the gradients of their weights, which autodiff need
//! not compute for frozen ones: `G = xᵀ·g` of what the layer is given and the gradient of what
//! it gives. Whoever runs the module hands each to [`GradientDirections::take`], which keeps a
//! few directions of it. So no more than one weight's gradient has to be there at a time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use burn::{
    module::Module,
    tensor::{DType, Gradients, Tensor},
};

use crate::{
    AdapterConfig, AdapterError, Method,
    factors::param_id,
    init::{InitialFactors, PlannedLayer, Sketched, along, generator, randomised},
    low_rank::as_f32,
    params::reparameterized,
    planned::planned_layers,
    watch::{Seen, watch},
};

/// Power iterations of each decomposition, and columns beyond the rank. A direction is found to
/// the ratio of its singular value and the first that is left out, to the power of twice the
/// iterations and one.
const ITERATIONS: usize = 12;
const OVERSAMPLING: usize = 16;

/// What the layers of a [`probed`] module were given and gave since it was last asked.
#[derive(Clone, Debug, Default)]
pub struct Probes(Arc<Mutex<Vec<Probe>>>);

/// One run through one layer.
#[derive(Clone, Debug)]
struct Probe {
    path: String,
    /// What the layer was given, `[rows, d_in]`, without autodiff.
    input: Tensor<2>,
    /// Zeros that were added to what it gave, `[rows, d_out]`: their gradient is that of it.
    output: Tensor<2>,
}

/// What the gradient of one weight is the product of.
#[derive(Clone, Debug)]
pub struct ProbedLayer {
    /// The layer's path.
    pub path: String,
    /// What the layer was given, `[rows, d_in]`.
    pub input: Tensor<2>,
    /// The loss's gradient with respect to what it gave, `[rows, d_out]`.
    pub output_gradient: Tensor<2>,
}

impl ProbedLayer {
    /// The loss's gradient with respect to the weight, `[d_in, d_out]`, f32.
    pub fn weight_gradient(self) -> Tensor<2> {
        as_f32(self.input)
            .transpose()
            .matmul(as_f32(self.output_gradient))
    }
}

impl Probes {
    /// Puts a probe on what a layer gives.
    pub(crate) fn on<const D: usize>(
        &self,
        path: &str,
        input: Tensor<2>,
        output: Tensor<D>,
    ) -> Tensor<D> {
        let shape = output.dims();
        let [rows, _] = input.dims();
        let options = (&output.device(), output.dtype());
        let zeros = Tensor::<2>::zeros([rows, shape[D - 1]], options).require_grad();
        let mut probes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        probes.push(Probe {
            path: path.to_owned(),
            input,
            output: zeros.clone(),
        });
        output + zeros.reshape(shape)
    }

    /// What the layers that have run since the last call were given, each with the gradient
    /// that a backward pass has found; those that have none in it are left out.
    pub fn take(&self, gradients: &mut Gradients) -> Vec<ProbedLayer> {
        let probes = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        probes
            .into_iter()
            .filter_map(|probe| {
                Some(ProbedLayer {
                    output_gradient: probe.output.grad_remove(gradients)?,
                    path: probe.path,
                    input: probe.input,
                })
            })
            .collect()
    }
}

/// The module with its targeted layers probed, and everything frozen.
///
/// # Errors
///
/// As [`attach`](crate::attach).
pub fn probed<M: Module>(module: M, config: &AdapterConfig) -> Result<(M, Probes), AdapterError> {
    let planned = planned_layers(&module, config)?;
    let probes = Probes::default();
    let module = watch(module.no_grad(), &planned, &Seen::Gradients(probes.clone()))?;
    Ok((module, probes))
}

/// Whether any layer of a module, or of a part of one, is probed or watched.
pub fn is_probed<M: Module>(module: &M) -> bool {
    reparameterized(module).iter().any(|weight| weight.is_watch)
}

/// The leading singular directions of the gradient of each targeted layer's weight.
#[derive(Clone, Debug)]
pub struct GradientDirections {
    ranks: BTreeMap<String, usize>,
    seed: u64,
    /// `U`, `[d_in, rank]`, and `Vᵀ`, `[rank, d_out]`, f32, orthonormal.
    found: BTreeMap<String, (Tensor<2>, Tensor<2>)>,
}

impl GradientDirections {
    /// Of the layers that `config` means, none known yet.
    ///
    /// # Errors
    ///
    /// As [`attach`](crate::attach).
    pub fn new<M: Module>(
        module: &M,
        config: &AdapterConfig,
        seed: u64,
    ) -> Result<Self, AdapterError> {
        let planned = planned_layers(module, config)?.into_iter();
        Ok(Self {
            ranks: planned
                .map(|layer| (layer.target.path, layer.shape.rank))
                .collect(),
            seed,
            found: BTreeMap::new(),
        })
    }

    /// How many layers are known, and how many there are.
    pub fn progress(&self) -> (usize, usize) {
        (self.found.len(), self.ranks.len())
    }

    /// Takes the directions of one layer from its weight's gradient, `[d_in, d_out]`, f32; a
    /// layer that is not targeted is left alone.
    ///
    /// # Errors
    ///
    /// [`AdapterError::NotFinite`] with the layer's path, and those of the device.
    pub fn take(&mut self, path: &str, gradient: &Tensor<2>) -> Result<(), AdapterError> {
        let Some(&rank) = self.ranks.get(path) else {
            return Ok(());
        };
        let sketched = Sketched {
            matrix: gradient.clone().without_autodiff(),
            path,
            rank,
            width: rank + OVERSAMPLING,
            rng: generator(self.seed, param_id(path).val()),
        };
        for svd in randomised(vec![sketched], ITERATIONS)? {
            self.found.insert(path.to_owned(), along(&svd, gradient));
        }
        Ok(())
    }

    /// The start of a layer: both factors `scale` long with their product taken out again, or,
    /// for a method without an anchor, `A` alone.
    pub(crate) fn start(
        &self,
        layer: &PlannedLayer,
        method: Method,
        scale: f64,
    ) -> Result<InitialFactors, AdapterError> {
        let path = &layer.target.path;
        let (a, b) = self
            .found
            .get(path)
            .ok_or_else(|| AdapterError::Impossible {
                path: path.clone(),
                what: format!("`method = \"{}\"`", method.name()),
                reason: "no gradient has reached it: the model was run without it".to_owned(),
            })?;
        let [_, d_out] = layer.target.dims();
        let anchored = method.is_anchored();
        let b = if anchored {
            b.clone().mul_scalar(scale)
        } else {
            Tensor::zeros([layer.shape.rank, d_out], (&b.device(), DType::F32))
        };
        Ok(InitialFactors {
            a: a.clone().mul_scalar(scale),
            b,
            anchored,
        })
    }
}
