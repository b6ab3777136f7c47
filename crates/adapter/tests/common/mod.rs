//! A toy model: two linear layers with an embedding before them.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::{
    module::{Module, ModuleMapper, Param},
    nn::{Embedding, EmbeddingConfig, Linear, LinearConfig},
    tensor::{DType, Device, Distribution, Tensor},
};
use olora_adapter::{AdapterConfig, Project};

#[derive(Module, Debug)]
pub(crate) struct Toy {
    pub embed: Embedding,
    pub up: Linear,
    pub down: Linear,
}

impl Toy {
    pub(crate) fn new(d_in: usize, d_mid: usize, d_out: usize, device: &Device) -> Self {
        device.seed(7);
        Self {
            embed: EmbeddingConfig::new(11, d_in).init(device),
            up: LinearConfig::new(d_in, d_mid).with_bias(true).init(device),
            down: LinearConfig::new(d_mid, d_out)
                .with_bias(false)
                .init(device),
        }
    }

    pub(crate) fn project<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.down.project(self.up.project(x))
    }

    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.down.forward(self.up.forward(x))
    }
}

/// Holds the process's one random generator for a test, from a fixed seed, so
/// that tests in other threads do not change what this one draws.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    Device::flex().seed(7);
    guard
}

pub(crate) fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), (device, DType::F32))
}

pub(crate) fn config(rank: usize, alpha: f64) -> AdapterConfig {
    AdapterConfig {
        rank,
        alpha,
        ..AdapterConfig::default()
    }
}

pub(crate) fn silent() -> impl FnMut(usize, usize) {
    |_done, _all| {}
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .without_autodiff()
        .into_data_dtype(DType::F32)
        .try_into_vec()
        .unwrap()
}

pub(crate) fn max_diff<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    assert_eq!(a.dims(), b.dims());
    values(a)
        .iter()
        .zip(values(b))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

pub(crate) fn cast(toy: Toy, dtype: DType) -> Toy {
    struct Cast(DType);
    impl ModuleMapper for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|t| t.cast(self.0))
        }
    }
    toy.map(&mut Cast(dtype))
}
