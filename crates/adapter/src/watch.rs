//! What stands where an adapter would and looks at what goes through a layer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use burn::{
    module::{Module, Param, Reparameterization, Reparameterizer},
    tensor::Tensor,
};

use crate::{
    AdapterError,
    attach::refuse_adapted,
    gradient::Probes,
    init::PlannedLayer,
    packed::{Held, Mode, PackedBase, deposit, put_on, taken_off},
};

/// The latest input of each watched layer, flattened to `[rows, d_in]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs(Arc<Mutex<BTreeMap<String, Tensor<2>>>>);

impl Inputs {
    /// What has been recorded since the last call.
    pub(crate) fn take(&self) -> BTreeMap<String, Tensor<2>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is looked at, and where it is put.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    /// What the layer is given.
    Inputs(Inputs),
    /// That, and the gradient of what it gives.
    Gradients(Probes),
}

/// On the weight of a layer that is looked at.
#[derive(Module, Debug)]
pub(crate) struct Watch {
    #[module(skip)]
    path: String,
    #[module(skip)]
    seen: Seen,
    /// The weight, if it is packed and the parameter hollow.
    #[module(skip)]
    pub(crate) packed: Option<PackedBase>,
}

impl Watch {
    /// What the layer gives, of which `run` makes it, having looked at it.
    pub(crate) fn through<const D: usize>(
        &self,
        x: Tensor<D>,
        run: impl FnOnce(Tensor<D>) -> Tensor<D>,
    ) -> Tensor<D> {
        match &self.seen {
            Seen::Inputs(inputs) => {
                let input = flat(x.clone());
                let mut inputs = inputs.0.lock().unwrap_or_else(PoisonError::into_inner);
                inputs.insert(self.path.clone(), input);
                drop(inputs);
                run(x)
            }
            // A pass without autodiff has no gradients.
            Seen::Gradients(_) if !x.is_autodiff() => run(x),
            Seen::Gradients(probes) => {
                let input = flat(x.clone());
                probes.on(&self.path, input, run(x))
            }
        }
    }
}

/// `[rows, width]`, without autodiff.
fn flat<const D: usize>(x: Tensor<D>) -> Tensor<2> {
    let width = x.dims()[D - 1];
    let rows = x.shape().num_elements() / width.max(1);
    x.without_autodiff().reshape([rows, width])
}

impl Reparameterization for Watch {
    const NAME: &'static str = "watch";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let held = || Held {
            low_rank: None,
            packed: self.packed.clone(),
        };
        match (deposit(held), &self.packed) {
            (Mode::None, Some(packed)) => packed.in_place_of(&base),
            _ => base,
        }
    }
}

/// The same module, looking at what goes through these layers each time it runs.
///
/// # Errors
///
/// [`AdapterError::AlreadyAdapted`].
pub(crate) fn watch<M: Module>(
    module: M,
    planned: &[PlannedLayer],
    seen: &Seen,
) -> Result<M, AdapterError> {
    struct Watching<'a> {
        layers: BTreeSet<&'a str>,
        seen: &'a Seen,
        packed: BTreeMap<String, PackedBase>,
    }
    impl Reparameterizer for &mut Watching<'_> {
        type Reparam = Watch;
        fn reparameterize<const D: usize>(
            &mut self,
            path: &str,
            param: Param<Tensor<D>>,
        ) -> (Param<Tensor<D>>, Option<Watch>) {
            let layer = path.strip_suffix(".weight").unwrap_or_default();
            let watch = self.layers.contains(layer).then(|| Watch {
                path: layer.to_owned(),
                seen: self.seen.clone(),
                packed: self.packed.remove(layer),
            });
            (param, watch)
        }
    }
    refuse_adapted(&module)?;
    let (module, packed) = taken_off(module);
    let mut watching = Watching {
        layers: planned
            .iter()
            .map(|layer| layer.target.path.as_str())
            .collect(),
        seen,
        packed,
    };
    let module = module.apply_reparameterization(&mut watching);
    Ok(put_on(module, watching.packed))
}
