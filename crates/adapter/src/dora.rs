//! `DoRA`: the direction of each output's weights from the factors, their
//! magnitude trained by itself (Liu et al. 2024, arXiv 2402.09353).
//!
//! With `V = W + ΔW`, output `j` is `mⱼ/‖Vⱼ‖ · (x·V)ⱼ + biasⱼ`. The norm counts as
//! a constant in the backward pass, as in section 4.3 of the paper and in PEFT.

use burn::{
    module::{Module, Param},
    tensor::{DType, Device, Tensor, TensorData},
};

use olora_operations::{PackedTensor, Weight, project};

use crate::{LowRank, low_rank::as_f32};

/// The trained magnitudes of one layer's outputs.
#[derive(Module, Debug)]
pub struct Dora {
    /// `m`, `[d_out]`.
    pub magnitude: Param<Tensor<1>>,
    /// The magnitudes at which the layer is the base's own, `[d_out]`: a
    /// constant.
    pub start: Param<Tensor<1>>,
    /// `‖Wⱼ‖²` of the frozen weight as stored, `[d_out]`: a constant.
    pub weight_squares: Param<Tensor<1>>,
}

/// `‖Wⱼ‖²` over the inputs of each output, `[d_out]`.
pub(crate) fn column_squares(weight: Tensor<2>) -> Tensor<1> {
    let [_, d_out] = weight.dims();
    as_f32(weight).square().sum_dim(0).reshape([d_out])
}

/// The same of a packed weight, some outputs at a time.
pub(crate) fn packed_squares(packed: &PackedTensor, device: &Device) -> Tensor<1> {
    /// Values that are there at once.
    const AT_ONCE: usize = 1 << 18;
    let packed = packed.packed();
    let [d_out, d_in] = packed.shape();
    let rows = (AT_ONCE / d_in.max(1)).max(1);
    let mut values = vec![0.0_f32; rows * d_in];
    let mut squares = Vec::with_capacity(d_out);
    for first in (0..d_out).step_by(rows) {
        let last = (first + rows).min(d_out);
        let values = &mut values[..(last - first) * d_in];
        let unpacked = packed.unpack(first..last, 0..d_in, values, d_in);
        debug_assert!(unpacked.is_ok(), "the rows of a matrix are there");
        squares.extend(values.chunks_exact(d_in.max(1)).map(|row| {
            let sum: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            sum as f32
        }));
    }
    let data = TensorData::new(squares, [d_out]);
    Tensor::from_data(data, (device, DType::F32))
}

impl LowRank {
    /// `m / ‖V‖`, `[d_out]`, with the norm as a constant; `None` without `DoRA`.
    ///
    /// `weight` is the frozen weight as stored, `[d_in, d_out]`.
    pub(crate) fn magnitude_ratio(&self, weight: &Weight) -> Option<Tensor<1>> {
        let dora = self.dora.as_ref()?;
        let magnitude = dora.magnitude.val();
        let norms = self.norms(weight, dora.weight_squares.val());
        let norms = if magnitude.is_autodiff() {
            Tensor::from_inner(norms)
        } else {
            norms
        };
        Some(magnitude / norms)
    }

    /// `‖W + s·(A·B − A₀·B₀)‖` over the inputs of each output, without making
    /// anything of the weight's size:
    /// `‖W‖² + 2s·(WᵀA·B − WᵀA₀·B₀) + s²·‖A·B − A₀·B₀‖²`, each term for its own
    /// column.
    ///
    /// While the factors equal the anchor, this is exactly `√‖W‖²`.
    pub(crate) fn norms(&self, weight: &Weight, squares: Tensor<1>) -> Tensor<1> {
        let factor = |factor: &Param<Tensor<2>>| factor.val().without_autodiff();
        let (a, b) = (factor(&self.a), factor(&self.b));
        let [_, d_out] = b.dims();
        let per_output = |tensor: Tensor<2>| tensor.sum_dim(0).reshape([d_out]);
        // Column j: (Wⱼᵀ·A)·Bⱼ.
        let along = |a: &Tensor<2>, b: &Tensor<2>| {
            let products = match weight {
                Weight::Dense(weight) => {
                    let weight = as_f32(weight.clone().without_autodiff());
                    weight.transpose().matmul(a.clone()).transpose()
                }
                // As rows that go through the layer: nothing of the weight's size is made.
                Weight::Packed(_) => project(a.clone().transpose(), weight.clone(), None, None),
            };
            per_output(products * b.clone())
        };
        // Column j: Bⱼᵀ·(AᵀC)·Dⱼ.
        let between = |a: &Tensor<2>, b: &Tensor<2>, c: &Tensor<2>, d: &Tensor<2>| {
            let gram = a.clone().transpose().matmul(c.clone());
            per_output(gram.matmul(d.clone()) * b.clone())
        };
        let anchor = self.anchor.as_ref().filter(|_| self.subtract_anchor);
        let (linear, quadratic) = match anchor {
            None => (along(&a, &b), between(&a, &b, &a, &b)),
            Some(anchor) => {
                let (a0, b0) = (factor(&anchor.a), factor(&anchor.b));
                let squares = between(&a, &b, &a, &b) + between(&a0, &b0, &a0, &b0);
                (
                    along(&a, &b) - along(&a0, &b0),
                    squares - between(&a, &b, &a0, &b0).mul_scalar(2.0),
                )
            }
        };
        let sum = squares.without_autodiff()
            + linear.mul_scalar(2.0 * self.scale)
            + quadratic.mul_scalar(self.scale * self.scale);
        // Rounding must not make the square of a vanishing norm negative.
        sum.clamp_min(f32::MIN_POSITIVE).sqrt()
    }
}
