//! What happens to gradients between backward and update.

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{DType, Tensor},
};
use olora_adapter::{Place, VisitParams, visit_params};
use olora_operations::is_host;

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
    let mut flat = Flat {
        grads,
        parts: Vec::new(),
        together: true,
    };
    module.visit(&mut flat);
    let Flat {
        parts, together, ..
    } = flat;
    let mean = if count > 0.0 { 1.0 / count } else { 1.0 };
    let n: usize = parts.iter().map(|part| part.shape().num_elements()).sum();
    let launches = !is_host(&parts.first()?.device());
    if together && launches && n <= TOGETHER {
        // One kernel for each gradient that is copied, and a few for all of them: elsewhere each
        // has four of its own, which take longer to launch than they run.
        let all = Tensor::cat(parts, 0);
        let norm = all.clone().square().sum().sqrt().mul_scalar(mean);
        let all = all * clip(&norm, mean, max_norm);
        module.visit(&mut Apart {
            grads,
            all,
            begin: 0,
        });
        return Some(norm);
    }
    let squares = parts.into_iter().map(|part| part.square().sum()).collect();
    let norm = Tensor::cat(squares, 0).sum().sqrt().mul_scalar(mean);
    let factor = clip(&norm, mean, max_norm);
    module.visit(&mut Scale { grads, factor });
    Some(norm)
}

/// Gradients of no more values are clipped together, on devices that launch kernels. That takes up
/// to three times their memory beside them for a moment, 384 MiB of as many: laid side by side,
/// squared, and scaled.
const TOGETHER: usize = 1 << 25;

/// What sums of gradients are multiplied with.
fn clip(norm: &Tensor<1>, mean: f64, max_norm: f64) -> Tensor<1> {
    if max_norm > 0.0 {
        let clip = norm
            .clone()
            .add_scalar(1e-6)
            .recip()
            .mul_scalar(max_norm)
            .clamp_max(1.0);
        clip.mul_scalar(mean)
    } else {
        norm.ones_like().mul_scalar(mean)
    }
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

/// The same gradients once more: an update takes them.
pub fn copied<M: Module>(module: &M, grads: &GradientsParams) -> GradientsParams {
    let mut copy = Copied {
        grads,
        copy: GradientsParams::new(),
    };
    module.visit(&mut copy);
    copy.copy
}

struct Copied<'a> {
    grads: &'a GradientsParams,
    copy: GradientsParams,
}

impl ModuleVisitor for Copied<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            self.copy.register(param.id, grad);
        }
    }
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

/// Every gradient, flattened, in f32.
struct Flat<'a> {
    grads: &'a GradientsParams,
    parts: Vec<Tensor<1>>,
    /// Whether all are in f32, on one device.
    together: bool,
}

impl ModuleVisitor for Flat<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            let n = grad.shape().num_elements();
            let first = self.parts.first();
            self.together &= grad.dtype() == DType::F32
                && first.is_none_or(|first| first.device() == grad.device());
            self.parts.push(grad.cast(DType::F32).reshape([n]));
        }
    }
}

/// Gives each parameter its part of all gradients back, in the order in which [`Flat`] came by.
struct Apart<'a> {
    grads: &'a mut GradientsParams,
    all: Tensor<1>,
    begin: usize,
}

impl ModuleVisitor for Apart<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            let shape = grad.shape();
            let n = shape.num_elements();
            let part = self.all.clone().narrow(0, self.begin, n);
            let part: Tensor<D> = part.reshape(shape);
            self.begin += n;
            self.grads.register(param.id, part);
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
