//! Golden values made by transformers: see `fixtures/make_fixtures.py`.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::{ModuleMapper, Param},
    tensor::{DType, Device, Distribution, Int, Tensor, TensorData},
};
use safetensors::SafeTensors;

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}

/// A tensor of a safetensors file as (shape, i32 or f32 bit patterns).
fn read(file: &Path, name: &str) -> (Vec<usize>, Vec<u32>) {
    let bytes = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors
        .tensor(name)
        .unwrap_or_else(|_| panic!("{name} in {}", file.display()));
    let values = view
        .data()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&b| u32::from_le_bytes(b))
        .collect();
    (view.shape().to_vec(), values)
}

pub(crate) fn ints(file: &Path, name: &str) -> (Vec<usize>, Vec<i32>) {
    let (shape, values) = read(file, name);
    (shape, values.into_iter().map(|bits| bits as i32).collect())
}

pub(crate) fn floats(file: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let (shape, values) = read(file, name);
    (shape, values.into_iter().map(f32::from_bits).collect())
}

pub(crate) fn ids(file: &Path, name: &str, device: &Device) -> Tensor<2, Int> {
    let (shape, values) = ints(file, name);
    Tensor::from_data(TensorData::new(values, [shape[0], shape[1]]), device)
}

pub(crate) fn tokens(file: &Path, name: &str) -> Vec<u32> {
    ints(file, name).1.into_iter().map(|id| id as u32).collect()
}

pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data_dtype(DType::F32).try_into_vec().unwrap()
}

/// The largest difference, after making sure that the golden values are not trivial.
pub(crate) fn max_diff(ours: &[f32], golden: &[f32]) -> f32 {
    assert_eq!(ours.len(), golden.len());
    assert!(
        golden.iter().any(|x| x.abs() > 1.0),
        "golden values near zero prove nothing"
    );
    ours.iter()
        .zip(golden)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Moves what trains away from its start, as training would: factors,
/// magnitudes, and the modules that train whole.
pub(crate) struct Moved {
    path: Vec<String>,
    whole: Vec<String>,
}

impl Moved {
    pub(crate) fn new(whole: &[String]) -> Self {
        Self {
            path: Vec::new(),
            whole: whole.to_vec(),
        }
    }
}

impl ModuleMapper for Moved {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let at = self.path.join(".");
        let constant = ["anchor", "dora.start", "dora.weight_squares"];
        let is_factor = at.contains("low_rank") && !constant.iter().any(|name| at.contains(name));
        if !is_factor && !self.whole.iter().any(|name| at.starts_with(name.as_str())) {
            return param;
        }
        param.map(|t| {
            let noise = t.random_like(Distribution::Normal(0.0, 0.1));
            t + noise
        })
    }
}
