//! What happens to gradients between backward and update.

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{DType, Tensor},
};
use olora_adapter::{Place, VisitParams, visit_params};

/// Divides the summed gradients by the count of what they were summed over and scales
/// them down to a global norm of at most `max_norm` (0 leaves them alone), as
/// `torch.nn.utils.clip_grad_norm_` does. Burn's own clipping takes each
/// tensor by its own norm.
///
/// Returns the norm before clipping, `[1]`, f32, without waiting for the
/// device. `None` if there are no gradients at all.
pub fn average_and_clip<M: Module>(
    module: &M,
    grads: &mut GradientsParams,
    count: f64,
    max_norm: f64,
) -> Option<Tensor<1>> {
    let mut squares = Squares {
        grads,
        squares: Vec::new(),
    };
    module.visit(&mut squares);
    let squares = squares.squares;
    if squares.is_empty() {
        return None;
    }
    let mean = if count > 0.0 { 1.0 / count } else { 1.0 };
    let norm = Tensor::cat(squares, 0).sum().sqrt().mul_scalar(mean);
    let factor = if max_norm > 0.0 {
        let clip = norm
            .clone()
            .add_scalar(1e-6)
            .recip()
            .mul_scalar(max_norm)
            .clamp_max(1.0);
        clip.mul_scalar(mean)
    } else {
        norm.ones_like().mul_scalar(mean)
    };
    module.visit(&mut Scale { grads, factor });
    Some(norm)
}

/// Calls `on` with the path and gradient, flattened, of every parameter that
/// has one.
pub fn for_each_gradient<M: Module>(
    module: &M,
    grads: &GradientsParams,
    on: impl FnMut(&str, Tensor<1>),
) {
    visit_params(module, &mut Each { grads, on });
}

struct Each<'a, F> {
    grads: &'a GradientsParams,
    on: F,
}

impl<F: FnMut(&str, Tensor<1>)> VisitParams for Each<'_, F> {
    fn visit<const D: usize>(&mut self, place: &Place, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            let n = grad.shape().num_elements();
            (self.on)(&place.path, grad.reshape([n]));
        }
    }
}

/// Adds the gradients of a part of the module to those of the whole.
pub(crate) fn add<M: Module>(part: &M, from: GradientsParams, into: &mut GradientsParams) {
    part.visit(&mut Add { from, into });
}

struct Add<'a> {
    from: GradientsParams,
    into: &'a mut GradientsParams,
}

impl ModuleVisitor for Add<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.from.remove::<D>(param.id) {
            let sum = match self.into.remove::<D>(param.id) {
                None => grad,
                Some(so_far) => so_far + grad,
            };
            self.into.register(param.id, sum);
        }
    }
}

struct Squares<'a> {
    grads: &'a GradientsParams,
    squares: Vec<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            self.squares.push(grad.cast(DType::F32).square().sum());
        }
    }
}

struct Scale<'a> {
    grads: &'a mut GradientsParams,
    factor: Tensor<1>,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            let factor = self.factor.clone().cast(grad.dtype()).unsqueeze::<D>();
            self.grads.register(param.id, grad * factor);
        }
    }
}
