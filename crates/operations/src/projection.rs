//! A frozen linear layer with a trainable low-rank update, as one operation.
//!
//! With `h = s·x·A`, `y = x·W + h·B` (anchored: `− (s·x·A₀)·B₀`). For the
//! gradient `g` of `y`: `dB = hᵀ·g`, `dh = s·g·Bᵀ`, `dA = xᵀ·dh`,
//! `dx = g·Wᵀ + dh·Aᵀ`. The frozen weight has no gradient, and layers that share
//! an input keep it once.

use burn::{
    backend::{Backend, DType, backend_extension, tensor::FloatTensor},
    tensor::{Tensor, module::linear},
};

use crate::{
    Weight,
    portable::Portable,
    stored::{Maybe, Stored},
    support::{for_backends, supports, to_dtype},
};

mod backward;

/// The factors of a low-rank update, in f32.
#[derive(Clone, Debug)]
pub struct LowRankFactors {
    /// `[d_in, rank]`, trainable.
    pub a: Tensor<2>,
    /// `[rank, d_out]`, trainable.
    pub b: Tensor<2>,
    /// `A₀` and `B₀`, shaped alike, constants, whose product is subtracted.
    pub anchor: Option<[Tensor<2>; 2]>,
    /// What the products are scaled by.
    pub scale: f64,
}

/// `x·W + bias + s·((x·A)·B − (x·A₀)·B₀)`, made for weights that are constants;
/// where one trains after all, it has its gradient.
///
/// While the factors equal the anchor, the update is exactly zero: the two
/// products are computed alike and subtracted before anything is added.
///
/// A packed weight is unpacked a panel at a time, again in the backward pass,
/// which keeps nothing of it but the packed bytes. On the CPU in f32 the numbers
/// are those of the unpacked weight, bit for bit; but where x is a single row,
/// sums are in another order, and differ by rounding. With
/// [`Products::Rounded`](crate::Products::Rounded) the products with the factors
/// are of rounded values too, where x has several rows, and an anchored update is
/// `s·(x·(A − A₀)·B + x·A₀·(B − B₀))`, exactly zero at the anchor as well.
///
/// # Shapes
///
/// - x: `[.., d_in]`
/// - weight: `[d_in, d_out]`, if dense of x's dtype; bias: `[d_out]`, of x's dtype
/// - output: `[.., d_out]`, in x's dtype
///
/// # Panics
///
/// If these do not fit each other.
pub fn project<const D: usize>(
    x: Tensor<D>,
    weight: impl Into<Weight>,
    bias: Option<Tensor<1>>,
    factors: Option<LowRankFactors>,
) -> Tensor<D> {
    let weight = weight.into();
    assert!(
        fits(&x, &weight, bias.as_ref(), factors.as_ref()),
        "an input of {:?}, a weight of {:?}, its bias and its factors do not fit each other",
        x.dims(),
        weight.dims()
    );
    if !supports(&x.device()) {
        let weight = weight.dense(&x.device(), x.dtype());
        return composed(x, weight, bias, factors);
    }
    let weight = weight.stored(&x.device());
    let bias = Maybe::new(bias.map(Tensor::into_dispatch));
    let x = x.into_dispatch();
    Tensor::from_dispatch(match factors {
        None => <burn::backend::Dispatch as ProjectionExtension>::frozen_extension(x, weight, bias),
        Some(factors) => {
            let [a0, b0] = match factors.anchor {
                None => [Maybe::Nothing, Maybe::Nothing],
                Some(anchor) => anchor.map(|factor| Maybe::Tensor(factor.into_dispatch())),
            };
            <burn::backend::Dispatch as ProjectionExtension>::adapted_extension(
                x,
                weight,
                bias,
                factors.a.into_dispatch(),
                factors.b.into_dispatch(),
                a0,
                b0,
                factors.scale,
            )
        }
    })
}

/// Whether the parts of [`project`] fit each other.
pub(crate) fn fits<const D: usize>(
    x: &Tensor<D>,
    weight: &Weight,
    bias: Option<&Tensor<1>>,
    factors: Option<&LowRankFactors>,
) -> bool {
    let [d_in, d_out] = weight.dims();
    let layer_fits = |a: &Tensor<2>, b: &Tensor<2>| {
        let ([rows, rank], [rank_of_b, columns]) = (a.dims(), b.dims());
        [rows, rank, columns] == [d_in, rank_of_b, d_out]
    };
    x.dims()[D - 1] == d_in
        && bias.is_none_or(|bias| bias.dims() == [d_out])
        && factors.is_none_or(|factors| {
            let anchor = factors.anchor.as_ref();
            layer_fits(&factors.a, &factors.b)
                && anchor.is_none_or(|[a, b]| layer_fits(a, b) && a.dims() == factors.a.dims())
        })
}

/// [`project`] as a composition of Burn's operations.
pub fn composed<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    factors: Option<LowRankFactors>,
) -> Tensor<D> {
    let output = linear(x.clone(), weight, bias);
    match factors {
        None => output,
        Some(factors) => output + update(x, &factors),
    }
}

/// The update alone, `s·((x·A)·B − (x·A₀)·B₀)`, as a composition of Burn's
/// operations.
///
/// # Shapes
///
/// - x: `[.., d_in]`, any float dtype
/// - output: `[.., d_out]`, in the dtype of `x`
pub fn update<const D: usize>(x: Tensor<D>, factors: &LowRankFactors) -> Tensor<D> {
    let dtype = x.dtype();
    let x = to_dtype(x, DType::F32);
    let product = |x: Tensor<D>, a: &Tensor<2>, b: &Tensor<2>| {
        // Scaling the `[.., rank]` side costs rank / d_out of scaling the output.
        let down = linear(x, a.clone(), None).mul_scalar(factors.scale);
        linear(down, b.clone(), None)
    };
    let update = match &factors.anchor {
        None => product(x, &factors.a, &factors.b),
        Some([a0, b0]) => product(x.clone(), &factors.a, &factors.b) - product(x, a0, b0),
    };
    to_dtype(update, dtype)
}

/// The projection as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait ProjectionExtension: Backend {
    /// See [`project`], without factors.
    fn frozen_extension(
        x: FloatTensor<Self>,
        #[extension_type] weight: Stored<Self>,
        #[extension_type] bias: Maybe<Self>,
    ) -> FloatTensor<Self>;

    /// See [`project`], with factors.
    #[allow(
        clippy::too_many_arguments,
        reason = "tensors, which the macro takes one by one"
    )]
    fn adapted_extension(
        x: FloatTensor<Self>,
        #[extension_type] weight: Stored<Self>,
        #[extension_type] bias: Maybe<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        #[extension_type] a0: Maybe<Self>,
        #[extension_type] b0: Maybe<Self>,
        scale: f64,
    ) -> FloatTensor<Self>;
}

/// A layer as a backend sees it.
#[derive(Clone, Debug)]
pub(crate) struct Layer<B: Backend> {
    /// `[d_in, d_out]`.
    pub weight: Stored<B>,
    /// `[d_out]`.
    pub bias: Option<FloatTensor<B>>,
    /// `A` and `B`.
    pub factors: Option<[FloatTensor<B>; 2]>,
    /// `A₀` and `B₀`.
    pub anchor: Option<[FloatTensor<B>; 2]>,
    /// What the products are scaled by.
    pub scale: f64,
}

/// What a layer's gradients are.
pub(crate) struct LayerGradients<B: Backend> {
    /// As x, if wanted.
    pub grad_x: Option<FloatTensor<B>>,
    /// As the factors, if there are any.
    pub grad_factors: Option<[FloatTensor<B>; 2]>,
}

/// Forward and backward of the projection, which a backend may do in its own
/// way.
pub(crate) trait ProjectionKernel: Backend {
    /// The output and, if there are factors, `s·x·A`, `[rows, rank]` in f32.
    fn projection_forward(
        x: FloatTensor<Self>,
        layer: &Layer<Self>,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        portable_forward::<Self>(x, layer)
    }

    /// The gradients, from that of the output, given x and `s·x·A` again if
    /// there are factors.
    fn projection_backward(
        layer: &Layer<Self>,
        kept: Option<[FloatTensor<Self>; 2]>,
        grad: FloatTensor<Self>,
        for_x: bool,
    ) -> LayerGradients<Self> {
        portable_backward::<Self>(layer, kept, grad, for_x)
    }
}

#[cfg(feature = "cube")]
impl ProjectionKernel for burn::backend::Cube {}

for_backends!(ProjectionExtension {
    fn frozen_extension(
        x: FloatTensor<Self>,
        weight: Stored<Self>,
        bias: Maybe<Self>,
    ) -> FloatTensor<Self> {
        let bias = bias.into_option();
        let layer = Layer { weight, bias, factors: None, anchor: None, scale: 0.0 };
        Self::projection_forward(x, &layer).0
    }

    fn adapted_extension(
        x: FloatTensor<Self>,
        weight: Stored<Self>,
        bias: Maybe<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        a0: Maybe<Self>,
        b0: Maybe<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        let bias = bias.into_option();
        let anchor = a0.into_option().zip(b0.into_option()).map(|(a0, b0)| [a0, b0]);
        let layer = Layer { weight, bias, factors: Some([a, b]), anchor, scale };
        Self::projection_forward(x, &layer).0
    }
});

/// `[.., width]` as `[rows, width]`.
fn rows<B: Backend>(x: Portable<B>) -> Portable<B> {
    let shape = x.shape();
    let width = shape[shape.len() - 1];
    let n_rows = shape.iter().product::<usize>() / width.max(1);
    x.reshape([n_rows, width])
}

pub(crate) fn portable_forward<B: Backend>(
    x: FloatTensor<B>,
    layer: &Layer<B>,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let x = Portable::<B>(x);
    let dtype = x.dtype();
    let mut shape = x.shape();
    let x = rows(x);
    let [_, d_out] = layer.weight.dims();
    let mut output = layer.weight.multiplied(x.clone());
    if let Some(bias) = &layer.bias {
        output = output + Portable::<B>(bias.clone()).reshape([1, d_out]);
    }
    let mut kept = None;
    if let Some([a, b]) = layer.factors.clone() {
        let x = x.f32();
        let down = x.clone().matmul(Portable(a)).scale(layer.scale);
        kept = Some(down.0.clone());
        let mut update = down.matmul(Portable(b));
        if let Some([a0, b0]) = layer.anchor.clone() {
            update = update
                - x.matmul(Portable(a0))
                    .scale(layer.scale)
                    .matmul(Portable(b0));
        }
        output = output + update.cast(dtype);
    }
    if let Some(last) = shape.last_mut() {
        *last = d_out;
    }
    (output.reshape(shape).0, kept)
}

pub(crate) fn portable_backward<B: Backend>(
    layer: &Layer<B>,
    kept: Option<[FloatTensor<B>; 2]>,
    grad: FloatTensor<B>,
    for_x: bool,
) -> LayerGradients<B> {
    let grad = Portable::<B>(grad);
    let (dtype, mut shape) = (grad.dtype(), grad.shape());
    if let Some(last) = shape.last_mut() {
        *last = layer.weight.dims()[0];
    }
    let grad = rows(grad);
    let mut grad_x = for_x.then(|| layer.weight.multiplied_back(grad.clone()));
    let mut grad_factors = None;
    if let (Some([a, b]), Some([x, down])) = (layer.factors.clone(), kept) {
        let (x, grad) = (rows(Portable::<B>(x)).f32(), grad.f32());
        let back = |b: FloatTensor<B>| {
            let up = Portable::<B>(b).transpose();
            grad.clone().matmul(up).scale(layer.scale)
        };
        let grad_b = Portable::<B>(down).transpose().matmul(grad.clone());
        let grad_down = back(b);
        let grad_a = x.transpose().matmul(grad_down.clone());
        if let Some(sum) = grad_x {
            let mut update = grad_down.matmul(Portable::<B>(a).transpose());
            if let Some([a0, b0]) = layer.anchor.clone() {
                update = update - back(b0).matmul(Portable::<B>(a0).transpose());
            }
            grad_x = Some(sum + update.cast(dtype));
        }
        grad_factors = Some([grad_a.0, grad_b.0]);
    }
    LayerGradients {
        grad_x: grad_x.map(|grad_x| grad_x.reshape(shape).0),
        grad_factors,
    }
}
