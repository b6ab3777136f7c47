//! Frozen weights that stay packed: where they stand in a module.
//!
//! The weight's parameter is *hollow*: of the right shape and dtype, with one zero
//! behind it. A reparameterization on it holds the packed matrix, so that paths,
//! counts, freezing and `valid()` go on as for any weight, and whoever asks Burn for the weight itself (`Param::val`, Burn's own
//! `forward`, `materialize`) is given it whole. Burn has one place for a
//! reparameterization: an adapter takes it over and holds the packed matrix itself.

use std::{cell::RefCell, collections::BTreeMap};

use burn::{
    module::{Module, Param, Reparameterization, Reparameterizer},
    tensor::{DType, Device, Tensor},
};
use olora_operations::{PackedTensor, Weight};

use crate::{LowRank, params::reparameterized, target::Kind, watch::Watch};

/// A packed weight and how the layer holds it.
#[derive(Clone, Debug)]
pub struct PackedBase {
    /// `[d_out, d_in]`, or `[vocabulary, width]` for an embedding.
    pub tensor: PackedTensor,
    /// Whether the layer is linear, which Burn holds the other way around.
    pub kind: Kind,
}

impl PackedBase {
    /// The shape of Burn's parameter: `[d_in, d_out]`, or `[vocabulary, width]`.
    pub fn dims(&self) -> [usize; 2] {
        let [d_in, d_out] = self.tensor.dims();
        match self.kind {
            Kind::Linear => [d_in, d_out],
            Kind::Embedding => [d_out, d_in],
        }
    }

    /// All values, in the orientation of Burn's parameter, without autodiff.
    pub fn dense(&self, device: &Device, dtype: DType) -> Tensor<2> {
        let dense = self.tensor.dense(device, dtype);
        match self.kind {
            Kind::Linear => dense,
            Kind::Embedding => dense.transpose(),
        }
    }

    /// All values in the place of a hollow parameter's.
    pub(crate) fn in_place_of<const D: usize>(&self, hollow: &Tensor<D>) -> Tensor<D> {
        let dense = self.dense(&hollow.device(), hollow.dtype());
        let dense = dense.reshape(hollow.shape());
        if hollow.is_autodiff() {
            Tensor::from_inner(dense)
        } else {
            dense
        }
    }
}

/// A tensor of this shape and dtype with one zero behind all of it.
pub fn hollow<const D: usize>(dims: [usize; D], device: &Device, dtype: DType) -> Tensor<D> {
    Tensor::<D>::zeros([1; D], (device, dtype)).expand(dims)
}

/// Stands on the hollow weight of a layer without an adapter.
#[derive(Module, Debug)]
pub struct PackedWeight {
    #[module(skip)]
    pub(crate) base: PackedBase,
}

impl Reparameterization for PackedWeight {
    const NAME: &'static str = "packed";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let held = || Held {
            low_rank: None,
            packed: Some(self.base.clone()),
        };
        match deposit(held) {
            Mode::None => self.base.in_place_of(&base),
            Mode::Look | Mode::TakeOff => base,
        }
    }
}

/// The weight that a linear layer's parameter stands for, without any adapter.
///
/// # Shapes
///
/// `[d_in, d_out]`
pub fn stored_weight(param: &Param<Tensor<2>>) -> Weight {
    match packed_of(param) {
        Some(packed) => Weight::Packed(packed.tensor.clone()),
        None => Weight::Dense(param.base()),
    }
}

/// An embedding's table as the weight of a vocabulary projection that is tied to
/// it, without any adapter.
///
/// # Shapes
///
/// `[width, vocabulary]`
pub fn tied_weight(table: &Param<Tensor<2>>) -> Weight {
    match packed_of(table) {
        Some(packed) => Weight::Packed(packed.tensor.clone()),
        None => Weight::Dense(table.base().transpose()),
    }
}

/// The packed matrix that a parameter stands for, if it does.
pub fn packed_of(param: &Param<Tensor<2>>) -> Option<&PackedBase> {
    if let Some(weight) = param.reparameterization::<PackedWeight>() {
        return Some(&weight.base);
    }
    if let Some(adapter) = param.reparameterization::<LowRank>() {
        return adapter.packed.as_ref();
    }
    param.reparameterization::<Watch>()?.packed.as_ref()
}

/// What stands on one weight.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) low_rank: Option<LowRank>,
    pub(crate) packed: Option<PackedBase>,
}

/// What `apply` is to do beside leaving a copy of what it is called on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing is left, and the weight is made.
    None,
    /// No weight is made.
    Look,
    /// A packed weight stays hollow.
    TakeOff,
}

thread_local! {
    /// Burn hands a reparameterization to nobody but itself: not to a visitor, not
    /// to a mapper. `Module::materialize` calls each one's `apply` in the module's
    /// own order, and while this is filled, that leaves a copy here.
    static LEFT: RefCell<Option<(Mode, Vec<Held>)>> = const { RefCell::new(None) };
}

/// Leaves what `held` makes, if it is asked for, and says what `apply` is to do.
pub(crate) fn deposit(held: impl FnOnce() -> Held) -> Mode {
    LEFT.with_borrow_mut(|left| match left {
        None => Mode::None,
        Some((mode, all)) => {
            all.push(held());
            *mode
        }
    })
}

/// Materialises a module and gives it with what stood on its weights, by the
/// path of the layer.
fn materialised<M: Module>(module: M, mode: Mode) -> (M, BTreeMap<String, Held>) {
    let ours = reparameterized(&module).into_iter();
    let paths: Vec<String> = ours
        .filter(|weight| weight.is_ours)
        .map(|weight| {
            let layer = weight.path.strip_suffix(".weight");
            layer.unwrap_or(&weight.path).to_owned()
        })
        .collect();
    // Taken back even if a device fails in between, so that weights are made again afterwards.
    struct Emptied;
    impl Drop for Emptied {
        fn drop(&mut self) {
            LEFT.set(None);
        }
    }
    let emptied = Emptied;
    LEFT.set(Some((mode, Vec::with_capacity(paths.len()))));
    let module = module.materialize();
    let all = LEFT.take().map(|(_, all)| all).unwrap_or_default();
    drop(emptied);
    // A wrong pairing would give every layer another's weight.
    assert_eq!(paths.len(), all.len(), "each leaves what it is, once");
    (module, paths.into_iter().zip(all).collect())
}

/// What stands on the weights of a module, by the path of the layer.
pub(crate) fn held<M: Module>(module: &M) -> BTreeMap<String, Held> {
    if reparameterized(module).iter().all(|weight| !weight.is_ours) {
        return BTreeMap::new();
    }
    materialised(module.clone(), Mode::Look).1
}

/// The module without its adapter and with the weights that lie there, nothing of
/// which is copied; `None` where these are not the base's output bit for bit: a
/// residual adapter has rewritten them, and magnitudes are those of norms that
/// round. `None` too if there is no adapter.
pub(crate) fn bare<M: Module>(module: &M) -> Option<M> {
    let (bare, all) = materialised(module.clone(), Mode::Look);
    let mut adapters = all.values().filter_map(|held| held.low_rank.as_ref());
    let is_exact = |adapter: &LowRank| {
        adapter.dora.is_none() && (adapter.anchor.is_none() || adapter.subtract_anchor)
    };
    let mut is_adapted = false;
    if !adapters.all(|adapter| {
        is_adapted = true;
        is_exact(adapter)
    }) || !is_adapted
    {
        return None;
    }
    let packed = all
        .into_iter()
        .filter_map(|(path, held)| Some((path, held.packed?)));
    Some(put_on(bare, packed.collect()))
}

/// The packed matrices of a module, by the path of the layer.
pub fn packed_weights<M: Module>(module: &M) -> BTreeMap<String, PackedBase> {
    held(module)
        .into_iter()
        .filter_map(|(path, held)| Some((path, held.packed?)))
        .collect()
}

/// The module with hollow weights in the place of packed ones, and those. An
/// adapter's update, if there is one, is added to dense weights and lost on
/// packed ones.
pub(crate) fn taken_off<M: Module>(module: M) -> (M, BTreeMap<String, PackedBase>) {
    let any = reparameterized(&module)
        .iter()
        .any(|weight| weight.is_ours && !weight.is_watch);
    if !any {
        return (module, BTreeMap::new());
    }
    let (module, all) = materialised(module, Mode::TakeOff);
    let packed = all
        .into_iter()
        .filter_map(|(path, held)| Some((path, held.packed?)));
    (module, packed.collect())
}

/// The module with these packed matrices, by the path of the layer, in the place
/// of its weights, which are [`hollow`] already and to be frozen.
///
/// Burn's own records of such a module (`into_record`) hold the zeros of hollow
/// weights, not the matrices: those come from the checkpoint again.
///
/// # Panics
///
/// If the module has no layer of such a path.
pub fn put_on<M: Module>(module: M, packed: BTreeMap<String, PackedBase>) -> M {
    struct PutOn(BTreeMap<String, PackedBase>);
    impl Reparameterizer for &mut PutOn {
        type Reparam = PackedWeight;
        fn reparameterize<const D: usize>(
            &mut self,
            path: &str,
            param: Param<Tensor<D>>,
        ) -> (Param<Tensor<D>>, Option<PackedWeight>) {
            let layer = path.strip_suffix(".weight");
            match layer.and_then(|layer| self.0.remove(layer)) {
                None => (param, None),
                Some(base) => (param, Some(PackedWeight { base })),
            }
        }
    }
    if packed.is_empty() {
        return module;
    }
    let mut put_on = PutOn(packed);
    let module = module.apply_reparameterization(&mut put_on);
    let left: Vec<&String> = put_on.0.keys().collect();
    assert!(left.is_empty(), "the module has no layers {left:?}");
    module
}
