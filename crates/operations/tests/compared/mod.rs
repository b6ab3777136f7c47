//! An operation beside the composition that it is to equal: values and gradients.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "tests, of which each file takes what it needs"
)]

use burn::tensor::Tensor;
use olora_operations::LowRankFactors;

use crate::formats::{numbers, values};

/// The largest difference, relative to the largest value.
pub fn difference(ours: &[f32], right: &[f32]) -> f32 {
    assert_eq!(ours.len(), right.len());
    let size = right.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
    assert!(ours.iter().all(|x| x.is_finite()));
    ours.iter()
        .zip(right)
        .fold(0.0_f32, |worst, (x, y)| worst.max((x - y).abs()))
        / size.max(0.3)
}

/// The output of fresh leaves of the values, and the gradients of some sum of it.
pub fn output_and_gradients<const D: usize, const N: usize>(
    inputs: &[Tensor<D>; N],
    f: &dyn Fn([Tensor<D>; N]) -> Tensor<D>,
) -> Vec<Vec<f32>> {
    let leaves = inputs
        .clone()
        .map(|x| Tensor::from_inner(x.without_autodiff()).require_grad());
    let output = f(leaves.clone());
    let weights = numbers(99, output.dims(), 1.0);
    let grads = (output.clone() * weights).sum().backward();
    let mut found = vec![values(output)];
    found.extend(leaves.map(|leaf| values(Tensor::<D>::from_inner(leaf.grad(&grads).unwrap()))));
    found
}

/// Runs both ways on fresh leaves of the same values, and compares outputs and
/// gradients.
pub fn compare<const D: usize, const N: usize>(
    inputs: [Tensor<D>; N],
    ours: impl Fn([Tensor<D>; N]) -> Tensor<D>,
    right: impl Fn([Tensor<D>; N]) -> Tensor<D>,
) {
    let [ours, right] = [
        output_and_gradients(&inputs, &ours),
        output_and_gradients(&inputs, &right),
    ];
    assert!(
        right[0].iter().any(|x| *x != 0.0),
        "all zero, which proves nothing"
    );
    for (i, (ours, right)) in ours.iter().zip(&right).enumerate() {
        let difference = difference(ours, right);
        assert!(
            difference < 2e-6,
            "output and gradients: {i} differs by {difference}"
        );
    }
}

/// A layer's factors, with a scale that is not one.
pub fn factors([a, b, a0, b0]: [Tensor<2>; 4], anchored: bool) -> LowRankFactors {
    LowRankFactors {
        a,
        b,
        anchor: anchored.then_some([a0, b0]),
        scale: 1.5,
    }
}
