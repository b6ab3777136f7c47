//! Numbers that are the same on every device and exact in every number format.

use burn::tensor::{Device, Tensor, TensorData};
use olora_files::fnv1a;
use olora_model::Dtype;

use crate::Bench;

impl Bench<'_> {
    /// A constant tensor in the bench's dtype, of numbers between `-size` and
    /// `size` that `name` decides.
    pub(super) fn constant<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        size: f32,
    ) -> Tensor<D> {
        tensor(name, shape, size, self.dtype, self.device)
    }

    /// As [`constant`](Self::constant), on the device with autodiff, tracked.
    pub(super) fn variable<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        size: f32,
    ) -> Tensor<D> {
        Tensor::from_inner(self.constant(name, shape, size)).require_grad()
    }

    /// Where a test may break the gradient: the values stay, what flows back
    /// is a quarter too large.
    pub(super) fn faulty<const D: usize>(&self, operation: &str, x: Tensor<D>) -> Tensor<D> {
        if self.fault == Some(operation) {
            x.clone().mul_scalar(1.25) - x.detach().mul_scalar(0.25)
        } else {
            x
        }
    }
}

pub(super) fn tensor<const D: usize>(
    name: &str,
    shape: [usize; D],
    size: f32,
    dtype: Dtype,
    device: &Device,
) -> Tensor<D> {
    let values = numbers(name, shape.iter().product(), size);
    Tensor::from_data(TensorData::new(values, shape), (device, dtype.into()))
}

/// `n` multiples of `size / 64` between `-size` and `size`: with a `size` that
/// is a power of two, seven bits, which bf16 and f16 hold exactly. `SplitMix64`
/// (Steele, Lea, Flood 2014), seeded by the name's 64-bit FNV-1a hash.
pub(super) fn numbers(name: &str, n: usize, size: f32) -> Vec<f32> {
    let mut state = fnv1a(name.as_bytes());
    (0..n)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let step = ((z ^ (z >> 31)) % 129) as f32 - 64.0;
            size * step / 64.0
        })
        .collect()
}
