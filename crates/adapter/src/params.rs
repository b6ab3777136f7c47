//! The one way through a module's float parameters: where each stands, what it
//! is to an adapter, its shape, and whether it trains.
//!
//! [`params`] lists them; most uses need no more:
//!
//! ```
//! use burn::{nn::LinearConfig, tensor::Device};
//! use olora_adapter::{AdapterConfig, Role, attach, params};
//!
//! let model = vec![LinearConfig::new(8, 6).init(&Device::flex())];
//! let config = AdapterConfig { rank: 2, ..AdapterConfig::default() };
//! let model = attach(model, &config, 42, &mut |_done, _all| {})?;
//!
//! let trained: Vec<_> = params(&model).into_iter().filter(|param| param.trains()).collect();
//! assert_eq!(trained[0].path(), "0.weight.low_rank.a");
//! assert_eq!((trained[0].role(), trained[0].shape()), (Role::A, vec![8, 2]));
//! assert_eq!(trained[0].layer(), "0");
//! assert_eq!(trained.iter().map(|param| param.num_elements()).sum::<usize>(), 2 * (8 + 6));
//! # Ok::<(), olora_adapter::AdapterError>(())
//! ```
//!
//! Where the rank must be known to the compiler, as for a gradient, a
//! [`VisitParams`] is called with each parameter itself, and a [`MapParams`] to
//! put another in its place:
//!
//! ```
//! use burn::{
//!     module::{Module, Param},
//!     nn::LinearConfig,
//!     optim::GradientsParams,
//!     tensor::{Device, Tensor},
//! };
//! use olora_adapter::{Place, VisitParams, visit_params};
//!
//! struct Norms<'a>(&'a GradientsParams, Vec<(String, f32)>);
//!
//! impl VisitParams for Norms<'_> {
//!     fn visit<const D: usize>(&mut self, place: &Place, param: &Param<Tensor<D>>) {
//!         if let Some(grad) = self.0.get::<D>(param.id) {
//!             let norm = grad.square().sum().sqrt().into_scalar::<f32>();
//!             self.1.push((place.path.clone(), norm));
//!         }
//!     }
//! }
//!
//! let device = Device::flex().autodiff();
//! let model = LinearConfig::new(4, 3).with_bias(false).init(&device);
//! let loss = model.forward(Tensor::<2>::ones([1, 4], &device)).sum();
//! let grads = GradientsParams::from_grads(loss.backward(), &model);
//! let mut norms = Norms(&grads, Vec::new());
//! visit_params(&model, &mut norms);
//! // Of twelve ones.
//! assert_eq!(norms.1, [("weight".to_owned(), 12.0_f32.sqrt())]);
//! ```

use std::{any::Any, fmt::Debug};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId, Reparameterization},
    tensor::{Device, Tensor, TensorData},
};

use crate::{
    AdapterError, Kind, LowRank,
    error::device_error,
    packed::{PackedBase, PackedWeight, packed_weights},
    watch::Watch,
};

/// What a parameter is to an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The module's own: frozen if the module is adapted. Where no adapter is
    /// attached, all are this, whether they train or not.
    Base,
    /// The module's own, and trained whole beside the factors
    /// ([`AdapterConfig::modules_to_save`](crate::AdapterConfig::modules_to_save)).
    Saved,
    /// The down-projection `A`, `[d_in, rank]`. Trains.
    A,
    /// The up-projection `B`, `[rank, d_out]`. Trains.
    B,
    /// `A₀`, `[d_in, rank]`: what `A` started from. A constant.
    AnchorA,
    /// `B₀`, `[rank, d_out]`: what `B` started from. A constant.
    AnchorB,
    /// `DoRA`'s magnitudes, `[d_out]`. Trains.
    Magnitude,
    /// What the magnitudes started from, `[d_out]`. A constant.
    MagnitudeStart,
    /// The squared norms of the frozen weight's columns, `[d_out]`. A constant.
    WeightSquares,
    /// Part of a reparameterization that is not this crate's, such as Burn's own
    /// `Lora`.
    Foreign,
}

impl Role {
    /// Whether it is part of an adapter of this crate, trained or constant.
    pub fn is_adapter(self) -> bool {
        !matches!(self, Self::Base | Self::Saved | Self::Foreign)
    }

    /// Whether it is `A` or `B`.
    pub fn is_factor(self) -> bool {
        matches!(self, Self::A | Self::B)
    }
}

/// Where a parameter stands in its module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The dotted path: `model.layers.0.self_attn.q_proj.weight`, and for a
    /// factor on it `model.layers.0.self_attn.q_proj.weight.low_rank.a`.
    pub path: String,
    /// What it is to an adapter.
    pub role: Role,
    /// The kind of layer that holds it, if that can have an adapter; for what an
    /// adapter holds, the kind of the adapted layer.
    pub kind: Option<Kind>,
    /// How much of the path is the layer's.
    layer: usize,
}

impl Place {
    /// The path of the module that holds the parameter; for what an adapter
    /// holds, that of the adapted layer: `model.layers.0.self_attn.q_proj`.
    pub fn layer(&self) -> &str {
        &self.path[..self.layer]
    }

    /// The last name of the path: `weight`.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }

    /// Whether a parameter of this rank is held the other way around than in
    /// PyTorch: the weights of linear layers are, `[d_in, d_out]`.
    pub fn is_transposed(&self, rank: usize) -> bool {
        rank == 2 && self.kind == Some(Kind::Linear) && !self.role.is_adapter()
    }
}

/// A float parameter of a module, of any rank, with its place.
///
/// It holds the parameter itself, which is a handle: neither listing nor cloning
/// copies values, and only what says so initialises a parameter that is lazy.
/// While it is kept, the values are.
#[derive(Debug)]
pub struct Parameter {
    place: Place,
    param: Box<dyn AnyParam>,
    packed: Option<PackedBase>,
}

impl Parameter {
    /// Where it stands.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The dotted path.
    pub fn path(&self) -> &str {
        &self.place.path
    }

    /// The path of the layer it belongs to: see [`Place::layer`].
    pub fn layer(&self) -> &str {
        self.place.layer()
    }

    /// What it is to an adapter.
    pub fn role(&self) -> Role {
        self.place.role
    }

    /// The kind of layer it belongs to, if that can have an adapter.
    pub fn kind(&self) -> Option<Kind> {
        self.place.kind
    }

    /// Its identity, under which gradients and the optimiser's state are kept.
    pub fn id(&self) -> ParamId {
        self.param.id()
    }

    /// The shape, without initialising it.
    pub fn shape(&self) -> Vec<usize> {
        self.param.shape()
    }

    /// The shape as PyTorch has it, without initialising it: `[d_out, d_in]` for
    /// the weight of a linear layer.
    pub fn torch_shape(&self) -> Vec<usize> {
        let mut shape = self.shape();
        if self.is_transposed() {
            shape.reverse();
        }
        shape
    }

    /// Whether PyTorch has it the other way around.
    pub fn is_transposed(&self) -> bool {
        self.place.is_transposed(self.shape().len())
    }

    /// How many values it has, without initialising it.
    pub fn num_elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether it trains, without initialising it: on a device with autodiff,
    /// whether it requires a gradient; on one without, whether it will after
    /// [`Module::train`].
    pub fn trains(&self) -> bool {
        self.param.trains()
    }

    /// Whether its values have been made yet.
    pub fn is_initialized(&self) -> bool {
        self.param.is_initialized()
    }

    /// The parameter itself, if `D` is its rank.
    pub fn param<const D: usize>(&self) -> Option<&Param<Tensor<D>>> {
        self.param.as_any().downcast_ref()
    }

    /// The packed matrix that it stands for, if it does. It is hollow then: the
    /// values that follow are those of the matrix, unpacked.
    pub fn packed(&self) -> Option<&PackedBase> {
        self.packed.as_ref()
    }

    /// The values as stored, if `D` is its rank; what an adapter adds is not in
    /// them. Initialises the parameter.
    pub fn tensor<const D: usize>(&self) -> Option<Tensor<D>> {
        let base = self.param::<D>()?.base();
        Some(match &self.packed {
            None => base,
            Some(packed) => packed.in_place_of(&base),
        })
    }

    /// The values as stored, `[num_elements]`, without autodiff. Initialises the
    /// parameter.
    pub fn flat(&self) -> Tensor<1> {
        match self.tensor::<2>().filter(|_| self.packed.is_some()) {
            None => self.param.flat(),
            Some(dense) => {
                let n = dense.shape().num_elements();
                dense.without_autodiff().reshape([n])
            }
        }
    }

    /// The values as stored, on the host. Initialises the parameter.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Device`] if they cannot be read back.
    pub fn data(&self) -> Result<TensorData, AdapterError> {
        let data = match self.tensor::<2>().filter(|_| self.packed.is_some()) {
            None => self.param.data(),
            Some(dense) => {
                let data = dense.without_autodiff().try_into_data();
                data.map_err(|error| error.to_string())
            }
        };
        data.map_err(|error| device_error(self.path(), &error))
    }
}

/// The float parameters of a module, in its own order: those of an adapter come
/// right after the weight that it is on.
pub fn params<M: Module>(module: &M) -> Vec<Parameter> {
    struct List(Vec<Parameter>);
    impl VisitParams for List {
        fn visit<const D: usize>(&mut self, place: &Place, param: &Param<Tensor<D>>) {
            self.0.push(Parameter {
                place: place.clone(),
                param: Box::new(param.clone()),
                packed: None,
            });
        }
    }
    let mut list = List(Vec::new());
    visit_params(module, &mut list);
    let mut packed = packed_weights(module);
    for param in &mut list.0 {
        if !packed.is_empty() && param.place.role == Role::Base && param.place.name() == "weight" {
            param.packed = packed.remove(param.place.layer());
        }
    }
    list.0
}

/// What is done with each float parameter, whatever its rank.
pub trait VisitParams {
    /// Called in the module's own order. An adapted weight comes without its
    /// adapter, whose parameters follow.
    fn visit<const D: usize>(&mut self, place: &Place, param: &Param<Tensor<D>>);
}

/// What is put in the place of each float parameter, whatever its rank.
pub trait MapParams {
    /// Called in the module's own order. An adapted weight comes without its
    /// adapter, whose parameters follow.
    fn map<const D: usize>(&mut self, place: &Place, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

/// Goes over the float parameters of a module, initialising none.
pub fn visit_params<M: Module>(module: &M, visitor: &mut impl VisitParams) {
    module.visit(&mut Walk::new(module, visitor));
}

/// Replaces the float parameters of a module.
pub fn map_params<M: Module>(module: M, mapper: &mut impl MapParams) -> M {
    let mut walk = Walk::new(&module, mapper);
    module.map(&mut walk)
}

/// A weight that something is attached to.
pub(crate) struct Reparameterized {
    /// The weight's path.
    pub(crate) path: String,
    /// Whether what is attached is a [`LowRank`].
    pub(crate) is_low_rank: bool,
    /// Whether it records what its layer is given.
    pub(crate) is_watch: bool,
    /// Whether it is of this crate.
    pub(crate) is_ours: bool,
}

impl Reparameterized {
    /// Whether it is a packed weight and nothing else.
    pub(crate) fn is_packed(&self) -> bool {
        self.is_ours && !self.is_low_rank && !self.is_watch
    }
}

/// The weights that something is attached to, in the module's own order.
pub(crate) fn reparameterized<M: Module>(module: &M) -> Vec<Reparameterized> {
    #[derive(Default)]
    struct Finder {
        trail: Trail,
        found: Vec<Reparameterized>,
    }
    impl ModuleVisitor for Finder {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            if container_type == REPARAMETERIZATION {
                self.found.push(Reparameterized {
                    path: self.trail.path(),
                    is_low_rank: name == LowRank::NAME,
                    is_watch: name == Watch::NAME,
                    is_ours: [LowRank::NAME, Watch::NAME, PackedWeight::NAME].contains(&name),
                });
            }
            self.trail.enter(name, container_type);
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.trail.exit();
        }
    }
    let mut finder = Finder::default();
    module.visit(&mut finder);
    finder.found
}

/// What Burn tells visitors that the state of a reparameterization is held by.
const REPARAMETERIZATION: &str = "Reparameterization";

/// The names that lead to where a visit is, each with the type that holds it.
#[derive(Default)]
struct Trail(Vec<(String, String)>);

impl Trail {
    fn enter(&mut self, name: &str, container_type: &str) {
        self.0.push((name.to_owned(), container_type.to_owned()));
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn path(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.join(".")
    }

    /// The place of the parameter here. `trains_beside` says whether it would
    /// count as trained beside an adapter.
    fn place(&self, trains_beside: impl FnOnce() -> bool) -> Place {
        let mut all = self.0.iter();
        let attached = all.position(|(_, container)| container == REPARAMETERIZATION);
        // Up to the adapted weight, whose holder is what the adapter is on.
        let own = &self.0[..attached.unwrap_or(self.0.len())];
        let role = match attached {
            None if trains_beside() => Role::Saved,
            None => Role::Base,
            Some(at) => {
                let fields = self.0[at + 1..].iter().map(|(name, _)| name.as_str());
                let fields: Vec<&str> = fields.collect();
                let ours = self.0[at].0 == LowRank::NAME;
                let role = ours.then(|| LowRank::role(&fields)).flatten();
                role.unwrap_or(Role::Foreign)
            }
        };
        let kind = match own.last().map(|(_, container)| container.as_str()) {
            Some("Struct:Linear") => Some(Kind::Linear),
            Some("Struct:Embedding") => Some(Kind::Embedding),
            _ => None,
        };
        let holders = own.len().saturating_sub(1);
        let lengths = own[..holders].iter().map(|(name, _)| name.len());
        Place {
            path: self.path(),
            role,
            kind,
            layer: lengths.sum::<usize>() + holders.saturating_sub(1),
        }
    }
}

/// Keeps the place while Burn goes through a module.
struct Walk<'a, V> {
    trail: Trail,
    is_adapted: bool,
    inner: &'a mut V,
}

impl<'a, V> Walk<'a, V> {
    fn new<M: Module>(module: &M, inner: &'a mut V) -> Self {
        let mut attached = reparameterized(module).into_iter();
        Self {
            trail: Trail::default(),
            is_adapted: attached.any(|weight| weight.is_low_rank),
            inner,
        }
    }

    fn place<const D: usize>(&self, param: &Param<Tensor<D>>) -> Place {
        self.trail.place(|| self.is_adapted && trains(param))
    }
}

impl<V: VisitParams> ModuleVisitor for Walk<'_, V> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.trail.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.trail.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let place = self.place(param);
        self.inner.visit(&place, param);
    }
}

impl<V: MapParams> ModuleMapper for Walk<'_, V> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.trail.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.trail.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let place = self.place(&param);
        self.inner.map(&place, param)
    }
}

/// A parameter whose rank is not known to the compiler.
trait AnyParam: Debug + Send + Sync {
    fn id(&self) -> ParamId;
    fn shape(&self) -> Vec<usize>;
    fn trains(&self) -> bool;
    fn is_initialized(&self) -> bool;
    fn flat(&self) -> Tensor<1>;
    fn data(&self) -> Result<TensorData, String>;
    fn as_any(&self) -> &dyn Any;
}

impl<const D: usize> AnyParam for Param<Tensor<D>> {
    fn id(&self) -> ParamId {
        self.id
    }

    fn shape(&self) -> Vec<usize> {
        self.lazy_shape().to_vec()
    }

    fn trains(&self) -> bool {
        trains(self)
    }

    fn is_initialized(&self) -> bool {
        Param::is_initialized(self)
    }

    fn flat(&self) -> Tensor<1> {
        let tensor = self.base().without_autodiff();
        let n = tensor.shape().num_elements();
        tensor.reshape([n])
    }

    fn data(&self) -> Result<TensorData, String> {
        let tensor = self.base().without_autodiff();
        tensor.try_into_data().map_err(|error| error.to_string())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Whether a parameter trains, or will once its module is put on autodiff.
///
/// Burn keeps what a parameter is set to apart from its tensor, and shows it in
/// what it makes of the parameter only.
fn trains<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    if !param.is_initialized() {
        // A value in the place of the one that is not there yet takes its setting over.
        let device: Device = param.lazy_device().autodiff();
        let value = Tensor::<D>::zeros([1; D], &device);
        let loaded = param.clone().transform_for_load(value, param.id);
        return loaded.base().is_require_grad();
    }
    let tensor = param.base();
    if tensor.is_autodiff() {
        tensor.is_require_grad()
    } else {
        Module::train(param.clone()).base().is_require_grad()
    }
}
