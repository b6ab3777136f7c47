//! Modules of which every weight trains and is saved whole beside the factors:
//! PEFT's `modules_to_save`.

use std::collections::BTreeMap;

use burn::{
    module::{Module, Param},
    tensor::{DType, Device, Tensor, TensorData},
};

use crate::{
    AdapterError,
    error::device_error,
    factors::param_id,
    params::{Parameter, Role, params},
};

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

    /// From a parameter of any rank.
    fn of_parameter(param: &Parameter) -> Result<Self, AdapterError> {
        match param.tensor::<2>() {
            Some(matrix) => Self::of(matrix, param.is_transposed(), param.path()),
            None => Ok(Self {
                shape: param.shape(),
                ..Self::of(param.flat(), false, param.path())?
            }),
        }
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

/// Whether the parameter at `path` belongs to the module of this name or path:
/// the rule of [`AdapterConfig::modules_to_save`](crate::AdapterConfig::modules_to_save).
///
/// A name is one of the path's own, or several that follow each other: the
/// parameter `model.norm.weight` is in `norm`, in `model.norm` and in `model`,
/// but not in `nor`.
pub fn is_saved_with(path: &str, module: &str) -> bool {
    let inside = |rest: &str| rest.is_empty() || rest.starts_with('.');
    // At each dot, or at the start.
    let starts = std::iter::once(0).chain(path.match_indices('.').map(|(at, _)| at + 1));
    starts
        .filter_map(|at| path[at..].strip_prefix(module))
        .any(inside)
}

/// Every parameter of the module itself, without those of what is attached to
/// it, that is in one of the named modules.
pub fn parameters_to_save<M: Module>(module: &M, names: &[String]) -> Vec<Parameter> {
    let mut all = params(module);
    all.retain(|param| {
        let mut names = names.iter();
        matches!(param.role(), Role::Base | Role::Saved)
            && names.any(|name| is_saved_with(param.path(), name))
    });
    all
}

/// The values of every parameter of the named modules, by path.
pub(crate) fn values<M: Module>(
    module: &M,
    names: &[String],
) -> Result<BTreeMap<String, Stored>, AdapterError> {
    parameters_to_save(module, names)
        .into_iter()
        .map(|param| Ok((param.path().to_owned(), Stored::of_parameter(&param)?)))
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
        let all = parameters_to_save(module, names);
        for name in names {
            if !all.iter().any(|param| is_saved_with(param.path(), name)) {
                return Err(AdapterError::NoModule(name.clone()));
            }
        }
        let saved = all.iter().map(|param| {
            let saved = Saved {
                shape: param.torch_shape(),
                transposed: param.is_transposed(),
                value: None,
                trained: true,
            };
            (param.path().to_owned(), saved)
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
