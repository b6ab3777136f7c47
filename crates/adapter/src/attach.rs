//! Putting an adapter on a module.

use std::collections::BTreeMap;

use burn::{
    module::{Module, Param, Reparameterizer},
    nn::DropoutConfig,
    tensor::Tensor,
};

use olora_operations::Weight;

use crate::{
    AdapterConfig, AdapterError, Anchor, Dora, GradientDirections, LowRank, Method, Placement,
    Target,
    dora::{column_squares, packed_squares},
    eva::{Directions, distribute},
    factors::param_id,
    init::{InitialFactors, PlannedLayer, initial_factors},
    low_rank::as_f32,
    packed::{PackedBase, put_on, taken_off},
    params::reparameterized,
    planned::planned_layers,
    saved::SavedModules,
    target::Kind,
};

/// Freezes every parameter of `module` and attaches trainable factors to the
/// targeted layers; the modules to save stay trainable.
///
/// `progress` is called with (layers done, layers in all) as they are
/// initialised, from the calling thread.
///
/// Neither the module's type nor any base parameter's path changes; the
/// factors appear under `<layer>.weight.low_rank`.
///
/// # Errors
///
/// See [`AdapterError`]; nothing is attached then. [`Method::Eva`] needs
/// [`attach_along`], and methods of the gradient [`attach_along_gradient`].
pub fn attach<M: Module>(
    module: M,
    config: &AdapterConfig,
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<M, AdapterError> {
    if config.method.needs_data() {
        return Err(AdapterError::OutOfRange {
            key: "method",
            found: config.method.name().to_owned(),
            expected: "attached along directions that a pass over data has found",
        });
    }
    let planned = planned_layers(&module, config)?;
    let starts = initial_factors(config.method, config.iterations, &planned, seed, progress)?;
    attach_starts(module, config, planned, starts)
}

/// As [`attach`], with `A` along the given directions of each layer's inputs,
/// `B` zero, and as many ranks as there are directions. A layer without any
/// gets no adapter.
///
/// # Errors
///
/// As [`attach`]; and if a targeted layer is not among the directions.
pub fn attach_along<M: Module>(
    module: M,
    config: &AdapterConfig,
    directions: &Directions,
) -> Result<M, AdapterError> {
    let mut all = planned_layers(&module, config)?;
    distribute(config, directions.ranks_found(), &mut all)?;
    let starts = all
        .iter()
        .map(|layer| directions.start(layer))
        .collect::<Result<Vec<_>, _>>()?;
    attach_starts(module, config, all, starts)
}

/// As [`attach`], with factors along the directions of each weight's gradient, each of whose
/// columns (of `A`) and rows (of `B`) is `scale` long; with a method that is not anchored, `B`
/// is zero.
///
/// # Errors
///
/// As [`attach`]; and if a targeted layer is not among the directions.
pub fn attach_along_gradient<M: Module>(
    module: M,
    config: &AdapterConfig,
    directions: &GradientDirections,
    scale: f64,
) -> Result<M, AdapterError> {
    let planned = planned_layers(&module, config)?;
    let starts = planned
        .iter()
        .map(|layer| directions.start(layer, config.method, scale))
        .collect::<Result<Vec<_>, _>>()?;
    attach_starts(module, config, planned, starts)
}

/// As [`attach_along`], with factors that are zero: for values that are put in
/// their place, when the ranks are known from before.
///
/// # Errors
///
/// As [`attach`]; and if there are no ranks. A layer that is not among them gets
/// no adapter.
pub fn attach_empty<M: Module>(
    module: M,
    config: &AdapterConfig,
    ranks: &BTreeMap<String, usize>,
) -> Result<M, AdapterError> {
    let mut all = planned_layers(&module, config)?;
    let mut ranks = ranks.clone();
    if !ranks.is_empty() {
        // Those that were found to need none are not among the adapted ones.
        for layer in &all {
            ranks.entry(layer.target.path.clone()).or_insert(0);
        }
    }
    distribute(config, &ranks, &mut all)?;
    let anchored = config.method.is_anchored();
    let starts = all
        .iter()
        .map(|layer| InitialFactors::empty(layer, anchored))
        .collect();
    attach_starts(module, config, all, starts)
}

fn attach_starts<M: Module>(
    module: M,
    config: &AdapterConfig,
    planned: Vec<PlannedLayer>,
    starts: Vec<InitialFactors>,
) -> Result<M, AdapterError> {
    let subtract_anchor = config.placement == Placement::Anchored;
    let attached = planned
        .iter()
        .zip(starts)
        .map(|(layer, start)| {
            let anchor = start.anchored.then(|| (start.a.clone(), start.b.clone()));
            let low_rank = low_rank(
                &layer.target,
                (start.a, start.b),
                anchor,
                layer.shape.scale,
                config.dropout,
                subtract_anchor,
            );
            let magnitude = if config.dora {
                Magnitude::Fresh
            } else {
                Magnitude::None
            };
            (
                layer.target.path.clone(),
                Attached {
                    low_rank,
                    magnitude,
                },
            )
        })
        .collect();
    let saved = SavedModules::new(&module, &config.modules_to_save)?;
    refuse_both(
        planned.iter().map(|layer| layer.target.path.as_str()),
        &saved,
    )?;
    // The targets hold the weights: dropped here, each weight that becomes a
    // residual is freed as soon as it is replaced.
    drop(planned);
    attach_prepared(module, attached, saved)
}

/// A layer cannot be adapted and trained whole at once.
pub(crate) fn refuse_both<'a>(
    mut targets: impl Iterator<Item = &'a str>,
    saved: &SavedModules,
) -> Result<(), AdapterError> {
    match targets.find(|path| saved.trains(&format!("{path}.weight"))) {
        None => Ok(()),
        Some(path) => Err(AdapterError::Impossible {
            path: path.to_owned(),
            what: "an adapter".to_owned(),
            reason: "it is also in `modules_to_save`, where its weights train themselves: \
                     leave it out of one of them"
                .to_owned(),
        }),
    }
}

/// `W − scale·A₀·B₀`, computed in f32 from the factors as stored, then rounded
/// to the weight's dtype (the order of PEFT's `lora_ga_init`, not of its
/// `olora_init`, which rounds the factors after it has subtracted them).
fn residual<const D: usize>(weight: Tensor<D>, anchor: &Anchor, scale: f64) -> Tensor<D> {
    let (dtype, shape, tracked) = (weight.dtype(), weight.shape(), weight.is_autodiff());
    let [a, b] = [&anchor.a, &anchor.b].map(|factor| factor.base().without_autodiff());
    let taken_out = a.matmul(b).mul_scalar(scale).reshape(shape);
    let residual = as_f32(weight.without_autodiff()) - taken_out;
    let residual = crate::to_dtype(residual, dtype);
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

/// Refuses what the kind of layer cannot have.
pub(crate) fn check_kind(target: &Target, method: Method, dora: bool) -> Result<(), AdapterError> {
    if target.kind == Kind::Linear {
        return Ok(());
    }
    let what = if dora {
        "`dora`".to_owned()
    } else if method == Method::Lora {
        return Ok(());
    } else {
        format!("`method = \"{}\"`", method.name())
    };
    Err(AdapterError::Impossible {
        path: target.path.clone(),
        what,
        reason: "it is an embedding, and only `method = \"lora\"` is defined for one; \
                 leave it out of the targets"
            .to_owned(),
    })
}

/// A parameter beside `target`'s weight, under a stable identity.
fn param<const D: usize>(
    target: &Target,
    tensor: Tensor<D>,
    name: &str,
    trained: bool,
) -> Param<Tensor<D>> {
    let tensor = if target.stored.is_autodiff() {
        Tensor::from_inner(tensor)
    } else {
        tensor
    };
    // `from_tensor` marks the parameter as trained even on a device without
    // autodiff, so that `train()` restores it; `initialized` would not.
    let mut param = Param::from_tensor(tensor);
    param.id = param_id(&format!("{}.{name}", target.path));
    if trained {
        param
    } else {
        param.set_require_grad(false)
    }
}

pub(crate) fn low_rank(
    target: &Target,
    (a, b): (Tensor<2>, Tensor<2>),
    anchor: Option<(Tensor<2>, Tensor<2>)>,
    scale: f64,
    dropout: f64,
    subtract_anchor: bool,
) -> LowRank {
    LowRank {
        a: param(target, a, "a", true),
        b: param(target, b, "b", true),
        anchor: anchor.map(|(a, b)| Anchor {
            a: param(target, a, "anchor.a", false),
            b: param(target, b, "anchor.b", false),
        }),
        dora: None,
        dropout: DropoutConfig::new(dropout).init(),
        scale,
        subtract_anchor,
        packed: target.packed.clone(),
    }
}

/// An adapter for one layer.
pub(crate) struct Attached {
    pub(crate) low_rank: LowRank,
    pub(crate) magnitude: Magnitude,
}

/// Whether a layer is weight-decomposed, and where its magnitudes come from.
pub(crate) enum Magnitude {
    /// It is not.
    None,
    /// From the weight as it is.
    Fresh,
    /// From an adapter that was trained.
    Trained(Box<Tensor<1>>),
}

impl Attached {
    /// With the magnitudes for the weight as stored.
    fn on(mut self, target: &Target) -> LowRank {
        let trained = match self.magnitude {
            Magnitude::None => return self.low_rank,
            Magnitude::Fresh => None,
            Magnitude::Trained(magnitude) => Some(*magnitude),
        };
        let weight = target.operand();
        let squares = match &weight {
            Weight::Dense(weight) => column_squares(weight.clone()),
            Weight::Packed(packed) => packed_squares(packed, &target.device()),
        };
        // A trained update has moved away from the start, but is measured from the weight itself.
        let start = match &trained {
            Some(_) => squares.clone().clamp_min(f32::MIN_POSITIVE).sqrt(),
            None => self.low_rank.norms(&weight, squares.clone()),
        };
        let magnitude = trained.unwrap_or_else(|| start.clone());
        self.low_rank.dora = Some(Dora {
            magnitude: param(target, magnitude, "dora.magnitude", true),
            start: param(target, start, "dora.start", false),
            weight_squares: param(target, squares, "dora.weight_squares", false),
        });
        self.low_rank
    }
}

/// Attaches prepared adapters by exact layer path, freezing everything else but
/// the modules to save.
pub(crate) fn attach_prepared<M: Module>(
    module: M,
    attached: BTreeMap<String, Attached>,
    saved: SavedModules,
) -> Result<M, AdapterError> {
    refuse_adapted(&module)?;
    let (module, packed) = taken_off(module);
    for (path, layer) in &attached {
        let anchored = layer.low_rank.anchor.is_some();
        if packed.contains_key(path) && anchored && !layer.low_rank.subtract_anchor {
            return Err(AdapterError::Impossible {
                path: path.clone(),
                what: "`placement = \"residual\"`".to_owned(),
                reason: "it rewrites the weight, and this one is packed in a few bits: use \
                         `placement = \"anchored\"`, which leaves it as it is"
                    .to_owned(),
            });
        }
    }
    let mut attach = Attach {
        attached,
        saved,
        packed,
    };
    let module = module.apply_reparameterization(&mut attach);
    Ok(put_on(module, attach.packed))
}

/// Burn stores one reparameterization per parameter, of whatever kind.
pub(crate) fn refuse_adapted<M: Module>(module: &M) -> Result<(), AdapterError> {
    let mut attached = reparameterized(module).into_iter();
    match attached.find(|weight| !weight.is_packed()) {
        None => Ok(()),
        Some(weight) => Err(AdapterError::AlreadyAdapted(weight.path)),
    }
}

struct Attach {
    attached: BTreeMap<String, Attached>,
    saved: SavedModules,
    /// The packed weights that have not found their layer yet.
    packed: BTreeMap<String, PackedBase>,
}

impl Reparameterizer for &mut Attach {
    type Reparam = LowRank;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<LowRank>) {
        let layer = path.strip_suffix(".weight");
        let packed = layer.and_then(|layer| self.packed.get(layer));
        let param = match packed.filter(|_| self.saved.has(path)) {
            None => param,
            // What trains whole, or comes with the adapter, is dense from then on.
            Some(packed) => {
                let dense = packed.in_place_of(&param.base());
                self.packed.remove(layer.unwrap_or_default());
                param.map(|_| dense)
            }
        };
        if self.saved.trains(path) {
            return (self.saved.placed(path, &param), None);
        }
        let param = if self.saved.has(path) {
            self.saved.placed(path, &param)
        } else {
            param
        };
        let param = param.set_require_grad(false);
        let Some((layer, attached)) =
            layer.and_then(|layer| Some((layer, self.attached.remove(layer)?)))
        else {
            return (param, None);
        };
        let low_rank = &attached.low_rank;
        let param = match &low_rank.anchor {
            Some(anchor) if !low_rank.subtract_anchor => param
                .map(|weight| residual(weight, anchor, low_rank.scale))
                .set_require_grad(false),
            _ => param,
        };
        let dims = [param.lazy_shape()[0], param.lazy_shape()[1]];
        let target = Target {
            path: layer.to_owned(),
            stored: param.base().reshape(dims),
            packed: attached.low_rank.packed.clone(),
            kind: Kind::Linear,
        };
        self.packed.remove(layer);
        (param, Some(attached.on(&target)))
    }
}
