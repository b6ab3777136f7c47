//! Putting an adapter on a module.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleVisitor, Param, Reparameterizer},
    nn::DropoutConfig,
    tensor::{DType, Tensor, TensorData},
};
use nalgebra::DMatrix;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    AdapterError, Anchor, LowRank, Target,
    factors::param_id,
    init::{kaiming_uniform_a, thin_q},
    low_rank::as_f32,
    resolve,
};

/// How the factors start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// `A` Kaiming-uniform, `B` zero (Hu et al. 2021, arXiv 2106.09685, with
    /// PEFT's initialisation).
    Lora,
    /// `B₀ = Q[:, :r]`, `A₀ = R[:r]` of the weight's QR factorisation
    /// (Büyükakyüz 2024, arXiv 2406.01775, as merged into PEFT).
    #[default]
    Olora,
}

/// Where a nonzero start is taken out again, so that step 0 is the base model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// The frozen starting factors are subtracted in the forward pass. The
    /// base stays as it was, bit for bit.
    #[default]
    Anchored,
    /// The starting product is subtracted from the stored weight, once
    /// (the paper's and PEFT's form).
    Residual,
}

/// What to attach. The field names are those of the recipe's `[adapter]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterConfig {
    /// How the factors start.
    pub method: Method,
    /// How step 0 is kept equal to the base model; only for methods that start
    /// from a nonzero update.
    pub placement: Placement,
    /// The rank of the update.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Dropout on the adapter's input, during training.
    pub dropout: f64,
    /// Names, paths, globs, or `all-linear`: see [`resolve`].
    pub targets: Vec<String>,
    /// Layers to leave out, by the same rules.
    pub exclude: Vec<String>,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            method: Method::default(),
            placement: Placement::default(),
            rank: 16,
            alpha: 16.0,
            dropout: 0.0,
            targets: vec![crate::ALL_LINEAR.to_owned()],
            exclude: Vec::new(),
        }
    }
}

impl AdapterConfig {
    /// `alpha / rank`.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Checks what can be checked without a model.
    pub fn validate(&self) -> Result<(), AdapterError> {
        let out_of_range = |key, found: String, expected| {
            Err(AdapterError::OutOfRange {
                key,
                found,
                expected,
            })
        };
        if self.rank == 0 {
            return out_of_range("rank", self.rank.to_string(), "at least 1");
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return out_of_range("alpha", self.alpha.to_string(), "a positive number");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return out_of_range(
                "dropout",
                self.dropout.to_string(),
                "at least 0 and below 1",
            );
        }
        if self.method == Method::Lora && self.placement == Placement::Residual {
            return out_of_range(
                "placement",
                "residual".to_owned(),
                "left out for `lora`, which starts from a zero update and has nothing to take out",
            );
        }
        Ok(())
    }
}

/// Freezes every parameter of `module` and attaches trainable factors to the
/// targeted linear layers.
///
/// `progress` is called with (layers done, layers in all) as they are
/// initialised, from the calling thread.
///
/// Neither the module's type nor any base parameter's path changes; the
/// factors appear under `<layer>.weight.low_rank`.
///
/// # Errors
///
/// See [`AdapterError`]; nothing is attached then.
pub fn attach<M: Module>(
    module: M,
    config: &AdapterConfig,
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<M, AdapterError> {
    config.validate()?;
    let targets = resolve(&module, &config.targets, &config.exclude)?;
    for target in &targets {
        check_rank(target, config.rank)?;
    }
    let starts = match config.method {
        Method::Lora => targets
            .iter()
            .map(|target| lora_start(target, config.rank, seed))
            .collect(),
        Method::Olora => olora_starts(&targets, config.rank, progress)?,
    };
    let subtract_anchor = config.placement == Placement::Anchored;
    let attached = targets
        .iter()
        .zip(starts)
        .map(|(target, start)| {
            let anchor = start.anchored.then(|| (start.a.clone(), start.b.clone()));
            let factors = (start.a, start.b);
            let low_rank = low_rank(
                target,
                factors,
                anchor,
                config.scale(),
                config.dropout,
                subtract_anchor,
            );
            (target.path.clone(), low_rank)
        })
        .collect();
    // The targets hold the weights: dropped here, each weight that becomes a
    // residual is freed as soon as it is replaced.
    drop(targets);
    attach_prepared(module, attached)
}

/// The starting factors of one layer, plain tensors on its device.
struct Start {
    a: Tensor<2>,
    b: Tensor<2>,
    /// Whether `a·b` is not zero and has to be taken out again.
    anchored: bool,
}

fn lora_start(target: &Target, rank: usize, seed: u64) -> Start {
    let [d_in, d_out] = target.dims();
    let device = target.weight.device().inner();
    let a = kaiming_uniform_a(d_in, rank, seed, param_id(&target.path).val());
    Start {
        a: Tensor::from_data(TensorData::new(a, [d_in, rank]), (&device, DType::F32)),
        b: Tensor::zeros([rank, d_out], (&device, DType::F32)),
        anchored: false,
    }
}

/// OLoRA in Burn's layout, `V = Wᵀ` of shape `[d_in, d_out]`: with
/// `Q = thin_q(V[:r, :]ᵀ)`, `B₀ = Qᵀ` and `A₀ = V·Q`.
///
/// Only the slab of `r` rows goes to the host, where the layers are factorised
/// in parallel; the product with the whole weight stays on its device.
fn olora_starts(
    targets: &[Target],
    rank: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Start>, AdapterError> {
    progress(0, targets.len());
    let slabs = targets
        .iter()
        .map(|target| slab(target, rank))
        .collect::<Result<Vec<_>, _>>()?;
    let qs: Vec<DMatrix<f64>> = slabs.into_par_iter().map(thin_q).collect();
    let mut starts = Vec::with_capacity(targets.len());
    for (target, q) in targets.iter().zip(qs) {
        let weight = as_f32(target.weight.clone().without_autodiff());
        let [_, d_out] = target.dims();
        // nalgebra is column-major: the columns of Q one after another are Qᵀ row-major.
        let q: Vec<f32> = q.iter().map(|&x| x as f32).collect();
        let data = TensorData::new(q, [rank, d_out]);
        let b: Tensor<2> = Tensor::from_data(data, (&weight.device(), DType::F32));
        let a = weight.matmul(b.clone().transpose());
        starts.push(Start {
            a,
            b,
            anchored: true,
        });
        progress(starts.len(), targets.len());
    }
    Ok(starts)
}

/// `V[:r, :]ᵀ`, the weight's first `rank` input features, as `d_out × rank`.
fn slab(target: &Target, rank: usize) -> Result<DMatrix<f64>, AdapterError> {
    let [_, d_out] = target.dims();
    let rows = target
        .weight
        .clone()
        .without_autodiff()
        .slice([0..rank, 0..d_out]);
    let data = rows
        .try_into_data_as::<f32>()
        .map_err(|error| device_error(&target.path, &error))?;
    let values = data
        .try_into_vec::<f32>()
        .map_err(|error| device_error(&target.path, &error))?;
    if values.iter().any(|x| !x.is_finite()) {
        return Err(AdapterError::NotFinite(target.path.clone()));
    }
    Ok(DMatrix::from_iterator(
        d_out,
        rank,
        values.into_iter().map(f64::from),
    ))
}

/// `W − scale·A₀·B₀`, computed in f32 from the factors as stored, then rounded
/// to the weight's dtype (the order of PEFT's `lora_ga_init`, not of its
/// `olora_init`, which rounds the factors after it has subtracted them).
fn residual<const D: usize>(weight: Tensor<D>, anchor: &Anchor, scale: f64) -> Tensor<D> {
    let (dtype, shape, tracked) = (weight.dtype(), weight.shape(), weight.is_autodiff());
    let [a, b] = [&anchor.a, &anchor.b].map(|factor| factor.base().without_autodiff());
    let taken_out = a.matmul(b).mul_scalar(scale).reshape(shape);
    let residual = as_f32(weight.without_autodiff()) - taken_out;
    let residual = if dtype == DType::F32 {
        residual
    } else {
        residual.cast(dtype)
    };
    if tracked {
        Tensor::from_inner(residual)
    } else {
        residual
    }
}

pub(crate) fn check_rank(target: &Target, rank: usize) -> Result<(), AdapterError> {
    let [d_in, d_out] = target.dims();
    if rank == 0 || rank > d_in.min(d_out) {
        return Err(AdapterError::RankTooLarge {
            rank,
            path: target.path.clone(),
            d_in,
            d_out,
        });
    }
    Ok(())
}

/// Recomputes OLoRA's starting factors from a pristine weight, as PEFT does
/// when it loads an adapter saved with `init_lora_weights: "olora"`.
pub(crate) fn olora_anchors(
    targets: &[Target],
    rank: usize,
) -> Result<Vec<(Tensor<2>, Tensor<2>)>, AdapterError> {
    let starts = olora_starts(targets, rank, &mut |_, _| {})?;
    Ok(starts.into_iter().map(|start| (start.a, start.b)).collect())
}

pub(crate) fn low_rank(
    target: &Target,
    (a, b): (Tensor<2>, Tensor<2>),
    anchor: Option<(Tensor<2>, Tensor<2>)>,
    scale: f64,
    dropout: f64,
    subtract_anchor: bool,
) -> LowRank {
    let tracked = target.weight.is_autodiff();
    let param = |tensor: Tensor<2>, name: &str, trained: bool| {
        let tensor = if tracked {
            Tensor::from_inner(tensor)
        } else {
            tensor
        };
        let id = param_id(&format!("{}.{name}", target.path));
        // `from_tensor` marks the parameter as trained even on a device without
        // autodiff, so that `train()` restores it; `initialized` would not.
        let mut param = Param::from_tensor(tensor);
        param.id = id;
        if trained {
            param
        } else {
            param.set_require_grad(false)
        }
    };
    LowRank {
        a: param(a, "a", true),
        b: param(b, "b", true),
        anchor: anchor.map(|(a, b)| Anchor {
            a: param(a, "anchor.a", false),
            b: param(b, "anchor.b", false),
        }),
        dropout: DropoutConfig::new(dropout).init(),
        scale,
        subtract_anchor,
    }
}

/// Attaches prepared adapters by exact layer path, freezing everything else.
pub(crate) fn attach_prepared<M: Module>(
    module: M,
    attached: BTreeMap<String, LowRank>,
) -> Result<M, AdapterError> {
    refuse_adapted(&module)?;
    Ok(module.apply_reparameterization(Attach { attached }))
}

/// Burn stores one reparameterization per parameter, of whatever kind.
fn refuse_adapted<M: Module>(module: &M) -> Result<(), AdapterError> {
    #[derive(Default)]
    struct Finder {
        path: Vec<String>,
        found: Option<String>,
    }
    impl ModuleVisitor for Finder {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            if container_type == "Reparameterization" && self.found.is_none() {
                self.found = Some(self.path.join("."));
            }
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
    }
    let mut finder = Finder::default();
    module.visit(&mut finder);
    finder
        .found
        .map_or(Ok(()), |path| Err(AdapterError::AlreadyAdapted(path)))
}

struct Attach {
    attached: BTreeMap<String, LowRank>,
}

impl Reparameterizer for Attach {
    type Reparam = LowRank;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<LowRank>) {
        let param = param.set_require_grad(false);
        let layer = path.strip_suffix(".weight");
        let Some(low_rank) = layer.and_then(|layer| self.attached.remove(layer)) else {
            return (param, None);
        };
        let param = match &low_rank.anchor {
            Some(anchor) if !low_rank.subtract_anchor => param
                .map(|weight| residual(weight, anchor, low_rank.scale))
                .set_require_grad(false),
            _ => param,
        };
        (param, Some(low_rank))
    }
}

pub(crate) fn device_error(path: &str, reason: &impl std::fmt::Display) -> AdapterError {
    AdapterError::Device {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
