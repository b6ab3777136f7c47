//! A start along the gradient of each weight.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use burn::{
    module::Module,
    tensor::{DType, Device, Tensor},
};
use common::{Toy, cast, config, max_diff, random, values};
use olora_adapter::{
    AdapterConfig, AdapterError, GradientDirections, Method, Placement, attach,
    attach_along_gradient, factors, is_probed, probed,
};

const METHODS: [Method; 2] = [Method::OloraGradient, Method::LoraGradient];

fn of(method: Method, rank: usize) -> AdapterConfig {
    AdapterConfig {
        method,
        ..config(rank, 1.5 * rank as f64)
    }
}

/// A loss whose gradient has as many directions as there are outputs.
fn loss(toy: &Toy, x: Tensor<2>) -> Tensor<1> {
    toy.project(x).square().mul_scalar(0.5).sum()
}

/// The gradients of `up` and `down`, as probes have them.
fn by_probes(toy: &Toy, config: &AdapterConfig, x: Tensor<2>) -> Vec<(String, Tensor<2>)> {
    let (probed, probes) = probed(Module::train(toy.clone()), config).unwrap();
    let mut gradients = loss(&probed, Tensor::from_inner(x)).backward();
    assert!(
        probed.up.weight.base().grad(&gradients).is_none(),
        "is frozen"
    );
    let layers = probes.take(&mut gradients).into_iter();
    layers
        .map(|layer| (layer.path.clone(), layer.weight_gradient()))
        .collect()
}

fn directions(toy: &Toy, config: &AdapterConfig, x: Tensor<2>) -> GradientDirections {
    let mut directions = GradientDirections::new(toy, config, 3).unwrap();
    for (path, gradient) in by_probes(toy, config, x) {
        directions.take(&path, &gradient).unwrap();
    }
    directions
}

#[test]
fn probes_give_the_gradients_that_autodiff_gives() {
    let _alone = common::alone();
    let device = Device::flex();
    let toy = Toy::new(12, 20, 9, &device);
    let x = random([30, 12], &device);
    let trained = Module::train(toy.clone());
    let gradients = loss(&trained, Tensor::from_inner(x.clone())).backward();
    let found = by_probes(&toy, &of(Method::OloraGradient, 4), x);
    let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["up", "down"]);
    for ((path, ours), layer) in found.into_iter().zip([&trained.up, &trained.down]) {
        let theirs = layer.weight.val().grad(&gradients).unwrap();
        let size = theirs.clone().abs().max().into_scalar::<f32>();
        assert!(size > 1.0, "{path}: a gradient of {size} proves nothing");
        assert!(max_diff(ours, theirs) < 1e-5 * size, "{path}");
    }
}

/// `A·diag(AᵀGBᵀ)·B` is the best approximation of this rank.
#[test]
fn factors_are_orthonormal_and_along_the_leading_directions() {
    let _alone = common::alone();
    let device = Device::flex();
    let toy = Toy::new(12, 20, 9, &device);
    let x = random([30, 12], &device);
    let setup = of(Method::OloraGradient, 4);
    let gradients = by_probes(&toy, &setup, x.clone());
    let found = directions(&toy, &setup, x);
    let adapted = attach_along_gradient(toy, &setup, &found, 0.5).unwrap();
    for (layer, (path, gradient)) in factors(&adapted).into_iter().zip(gradients) {
        assert_eq!(layer.path, path);
        let eye = Tensor::<2>::eye(4, &device).mul_scalar(0.25);
        let a = layer.a.clone().transpose().matmul(layer.a.clone());
        let b = layer.b.clone().matmul(layer.b.clone().transpose());
        assert!(
            max_diff(a, eye.clone()) < 1e-5 && max_diff(b, eye) < 1e-5,
            "{path}"
        );
        let [d_in, d_out] = gradient.dims();
        let dense: Vec<f64> = values(gradient.clone())
            .into_iter()
            .map(f64::from)
            .collect();
        let dense = nalgebra::DMatrix::from_row_slice(d_in, d_out, &dense);
        let singular = dense.svd(false, false).singular_values;
        // Four of them, each factor half as long: a quarter of each singular value.
        let core = layer
            .a
            .transpose()
            .matmul(gradient)
            .matmul(layer.b.transpose());
        let core = values(core);
        for i in 0..4 {
            for j in 0..4 {
                let expected = if i == j { 0.25 * singular[i] } else { 0.0 };
                let apart = (f64::from(core[4 * i + j]) - expected).abs();
                assert!(apart < 1e-4 * singular[0], "{path} {i} {j}: {apart}");
            }
        }
    }
}

#[test]
fn step_zero_is_the_base_bit_for_bit_in_f32_and_bf16() {
    let _alone = common::alone();
    let device = Device::flex();
    for dtype in [DType::F32, DType::BF16] {
        for method in METHODS {
            for dora in [false, true] {
                let toy = cast(Toy::new(12, 20, 9, &device), dtype);
                let x = random([30, 12], &device).cast(dtype);
                let setup = AdapterConfig {
                    dora,
                    ..of(method, 4)
                };
                let found = directions(&toy, &setup, x.clone());
                let adapted = attach_along_gradient(toy.clone(), &setup, &found, 1.0).unwrap();
                assert_eq!(
                    adapted.project(x.clone()).into_data(),
                    toy.project(x).into_data(),
                    "{dtype:?} {method:?} {dora}"
                );
                let is_zero = |b: Tensor<2>| values(b).iter().all(|x| *x == 0.0);
                let anchored = method == Method::OloraGradient;
                for layer in factors(&adapted) {
                    assert_eq!(is_zero(layer.b), !anchored, "{method:?}");
                }
            }
        }
    }
}

/// Fewer rows than the rank leave directions open, and no rows leave all.
#[test]
fn a_gradient_with_too_few_directions_is_completed() {
    let _alone = common::alone();
    let device = Device::flex();
    let toy = Toy::new(12, 20, 9, &device);
    let setup = of(Method::OloraGradient, 4);
    for x in [random([2, 12], &device), Tensor::zeros([2, 12], &device)] {
        let found = directions(&toy, &setup, x);
        let adapted = attach_along_gradient(toy.clone(), &setup, &found, 1.0).unwrap();
        for layer in factors(&adapted) {
            let eye = Tensor::<2>::eye(4, &device);
            let a = layer.a.clone().transpose().matmul(layer.a);
            let b = layer.b.clone().matmul(layer.b.transpose());
            assert!(max_diff(a, eye.clone()) < 1e-5 && max_diff(b, eye) < 1e-5);
        }
    }
}

#[test]
fn what_it_cannot_do_is_refused_by_name() {
    let _alone = common::alone();
    let device = Device::flex();
    let toy = Toy::new(12, 20, 9, &device);
    let x = random([30, 12], &device);
    let said = |error: AdapterError| error.to_string();
    for method in METHODS {
        let setup = of(method, 4);
        let error = said(attach(toy.clone(), &setup, 1, &mut |_, _| {}).unwrap_err());
        assert!(error.contains("pass over data"), "{error}");
        let unknown = GradientDirections::new(&toy, &setup, 3).unwrap();
        let error = said(attach_along_gradient(toy.clone(), &setup, &unknown, 1.0).unwrap_err());
        assert!(error.contains("no gradient has reached it"), "{error}");
        let residual = AdapterConfig {
            placement: Placement::Residual,
            ..setup
        };
        let error = said(residual.validate().unwrap_err());
        assert!(error.contains("placement"), "{error}");
    }
    let mut found = directions(&toy, &of(Method::OloraGradient, 4), x);
    let infinite = Tensor::<2>::full([12, 20], f32::INFINITY, &device);
    let error = said(found.take("up", &infinite).unwrap_err());
    assert!(error.contains("up"), "{error}");
    // A layer that is not targeted is no matter.
    found
        .take("elsewhere", &Tensor::zeros([3, 3], &device))
        .unwrap();
    assert!(!is_probed(&toy));
}
