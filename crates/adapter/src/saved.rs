//! Modules of which every weight trains and is saved whole beside the factors:
//! PEFT's `modules_to_save`.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, Device, Tensor, TensorData},
};

use crate::{AdapterError, error::device_error, factors::param_id};

/// A tensor on the host, in PyTorch's orientation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    /// The shape as a file has it.
    pub(crate) shape: Vec<usize>,
    /// Row-major values.
    pub(crate) values: Vec<f32>,
}

impl Stored {
    /// From a parameter; a linear weight is `[d_in, d_out]` in Burn.
    pub(crate) fn of<const D: usize>(
        tensor: Tensor<D>,
        transposed: bool,
        path: &str,
    ) -> Result<Self, AdapterError> {
        let tensor = tensor.without_autodiff();
        let tensor = if transposed {
            tensor.transpose()
        } else {
            tensor
        };
        let shape = tensor.shape().to_vec();
        let values = tensor
            .try_into_data_as::<f32>()
            .and_then(|data| Ok(data.try_into_vec::<f32>()?))
            .map_err(|error| device_error(path, &error))?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(AdapterError::NotFinite(path.to_owned()));
        }
        Ok(Self { shape, values })
    }

    /// As Burn lays it out, in f32.
    fn into_tensor<const D: usize>(self, transposed: bool, device: &Device) -> Tensor<D> {
        let data = TensorData::new(self.values, self.shape);
        let tensor = Tensor::<D>::from_data(data, (device, DType::F32));
        if transposed {
            tensor.transpose()
        } else {
            tensor
        }
    }
}

/// A parameter as a visit finds it.
pub(crate) struct Parameter {
    pub(crate) path: String,
    /// The shape as a file has it.
    pub(crate) shape: Vec<usize>,
    transposed: bool,
    /// Its value, if it was asked for.
    value: Option<Result<Stored, AdapterError>>,
}

impl Parameter {
    /// Whether it belongs to the module of this name or path.
    fn is_in(&self, name: &str) -> bool {
        let inside = |rest: &str| rest.is_empty() || rest.starts_with('.');
        // At each dot, or at the start.
        let starts = std::iter::once(0).chain(self.path.match_indices('.').map(|(at, _)| at + 1));
        starts
            .filter_map(|at| self.path[at..].strip_prefix(name))
            .any(inside)
    }
}

/// Every parameter but those of an adapter; with its value where `wants` it.
pub(crate) fn parameters<M: Module>(
    module: &M,
    wants: impl FnMut(&Parameter) -> bool,
) -> Vec<Parameter> {
    struct Visitor<W> {
        path: Vec<String>,
        containers: Vec<String>,
        wants: W,
        found: Vec<Parameter>,
    }
    impl<W: FnMut(&Parameter) -> bool> ModuleVisitor for Visitor<W> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.push(name.to_owned());
            self.containers.push(container_type.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
            self.containers.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self
                .containers
                .iter()
                .any(|name| name == "Reparameterization")
            {
                return;
            }
            let is_linear = self
                .containers
                .last()
                .is_some_and(|last| last == "Struct:Linear");
            let transposed = D == 2 && is_linear;
            let mut shape = param.lazy_shape().to_vec();
            if transposed {
                shape.reverse();
            }
            let mut parameter = Parameter {
                path: self.path.join("."),
                shape,
                transposed,
                value: None,
            };
            if (self.wants)(&parameter) {
                let value = Stored::of(param.base(), transposed, &parameter.path);
                parameter.value = Some(value);
            }
            self.found.push(parameter);
        }
    }
    let mut visitor = Visitor {
        path: Vec::new(),
        containers: Vec::new(),
        wants,
        found: Vec::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

/// The values of every parameter of the named modules, by path.
pub(crate) fn values<M: Module>(
    module: &M,
    names: &[String],
) -> Result<BTreeMap<String, Stored>, AdapterError> {
    let is_saved = |parameter: &Parameter| names.iter().any(|name| parameter.is_in(name));
    parameters(module, is_saved)
        .into_iter()
        .filter_map(|parameter| Some((parameter.path, parameter.value?)))
        .map(|(path, value)| Ok((path, value?)))
        .collect()
}

/// The parameters of the modules to save, and what to put in their place.
#[derive(Debug, Default)]
pub(crate) struct SavedModules(BTreeMap<String, Saved>);

#[derive(Debug)]
struct Saved {
    shape: Vec<usize>,
    transposed: bool,
    /// `None` keeps the value that is there.
    value: Option<Stored>,
    trained: bool,
}

impl SavedModules {
    /// Finds every parameter of the named modules.
    pub(crate) fn new<M: Module>(module: &M, names: &[String]) -> Result<Self, AdapterError> {
        let mut all = parameters(module, |_| false);
        for name in names {
            if !all.iter().any(|parameter| parameter.is_in(name)) {
                return Err(AdapterError::NoTargets(format!(
                    "`{name}` in `modules_to_save` is no module of this model \
                     (an `lm_head` that is tied to the embedding is not one either)"
                )));
            }
        }
        all.retain(|parameter| names.iter().any(|name| parameter.is_in(name)));
        let saved = all.into_iter().map(|parameter| {
            let saved = Saved {
                shape: parameter.shape,
                transposed: parameter.transposed,
                value: None,
                trained: true,
            };
            (parameter.path, saved)
        });
        Ok(Self(saved.collect()))
    }

    /// Puts a stored value in a parameter's place, or says what does not fit.
    pub(crate) fn set(&mut self, path: &str, value: Stored, trained: bool) -> Result<(), String> {
        match self.0.get_mut(path) {
            None => Err(format!("unused: `{path}` is in no module to save")),
            Some(saved) if saved.shape != value.shape => Err(format!(
                "misshapen: `{path}` is {:?}, but the model's is {:?}",
                value.shape, saved.shape
            )),
            Some(saved) => {
                saved.value = Some(value);
                saved.trained = trained;
                Ok(())
            }
        }
    }

    /// The parameters that nothing has been set for.
    pub(crate) fn unset(&self) -> impl Iterator<Item = &str> {
        let unset = self.0.iter().filter(|(_, saved)| saved.value.is_none());
        unset.map(|(path, _)| path.as_str())
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// Whether the parameter trains whole.
    pub(crate) fn trains(&self, path: &str) -> bool {
        self.0.get(path).is_some_and(|saved| saved.trained)
    }

    /// The parameter with its value, trained unless it only came along, under an
    /// identity that outlives the process.
    pub(crate) fn placed<const D: usize>(
        &mut self,
        path: &str,
        param: &Param<Tensor<D>>,
    ) -> Param<Tensor<D>> {
        let mut value = param.val();
        let saved = self.0.remove(path);
        let trained = saved.as_ref().is_none_or(|saved| saved.trained);
        if let Some(saved) = saved
            && let Some(stored) = saved.value
        {
            let device = value.device().inner();
            let dtype = value.dtype();
            let tensor = stored
                .into_tensor::<D>(saved.transposed, &device)
                .cast(dtype);
            value = if value.is_autodiff() {
                Tensor::from_inner(tensor)
            } else {
                tensor
            };
        }
        let mut param = Param::from_tensor(value);
        param.id = param_id(path);
        if trained {
            param
        } else {
            param.set_require_grad(false)
        }
    }
}
