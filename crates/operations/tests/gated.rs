//! The last product of a feed-forward network, kept smaller, against its composition.

#![allow(clippy::unwrap_used, reason = "tests")]

mod compared;
mod formats;

use burn::tensor::Tensor;
use compared::{compare, factors, output_and_gradients};
use formats::numbers;
use olora_operations::{
    project_gated, projection,
    swiglu::{self, swiglu},
};

/// The composition, and bit by bit the two operations that it is.
#[test]
fn gated_projection_equals_its_composition() {
    let (rows, d_in, d_out, rank) = (70, 48, 80, 8);
    let constant = |seed, shape: [usize; 2]| numbers(seed, shape, 0.5).detach();
    let weight = constant(4, [d_in, d_out]);
    let [a0, b0] = [constant(5, [d_in, rank]), constant(6, [rank, d_out])];
    for anchored in [false, true] {
        for bias in [None, Some(numbers(7, [d_out], 1.0))] {
            let inputs = [
                numbers(1, [rows, d_in], 2.0),
                numbers(8, [rows, d_in], 1.0),
                numbers(2, [d_in, rank], 0.5),
                numbers(3, [rank, d_out], 0.5),
            ];
            let layer = |a, b| factors([a, b, a0.clone(), b0.clone()], anchored);
            let gated = |[gate, up, a, b]: [Tensor<2>; 4]| {
                project_gated(gate, up, weight.clone(), bias.clone(), layer(a, b))
            };
            compare(inputs.clone(), gated, |[gate, up, a, b]| {
                let x = swiglu::composed(gate, up);
                projection::composed(x, weight.clone(), bias.clone(), Some(layer(a, b)))
            });
            let apart = |[gate, up, a, b]: [Tensor<2>; 4]| {
                let factors = Some(layer(a, b));
                projection::project(swiglu(gate, up), weight.clone(), bias.clone(), factors)
            };
            assert_eq!(
                output_and_gradients(&inputs, &gated),
                output_and_gradients(&inputs, &apart)
            );
        }
    }
}

/// A full fine-tune beside an adapter, or a start or a bias that trains, each alone; and a gate that
/// does not.
#[test]
fn what_trains_beside_a_gated_projection_has_its_gradient() {
    let constant = |seed, shape: [usize; 2]| numbers(seed, shape, 0.5).detach();
    let (gate, up) = (constant(1, [70, 48]), constant(2, [70, 48]));
    let (weight, a0) = (constant(4, [48, 80]), constant(5, [48, 8]));
    let [a, b, b0] = [[48, 8], [8, 80], [8, 80]].map(|shape| constant(6, shape));
    let check = |input: Tensor<2>, place: usize| {
        let parts = |x: Tensor<2>| {
            let mut all = [weight.clone(), a0.clone(), constant(7, [1, 80]), a.clone()];
            all[place] = x;
            let [weight, a0, bias, a] = all;
            let factors = factors([a, b.clone(), a0, b0.clone()], true);
            (weight, Some(bias.reshape([80])), factors)
        };
        compare(
            [input],
            |[x]| {
                let (weight, bias, factors) = parts(x);
                project_gated(gate.clone(), up.clone(), weight, bias, factors)
            },
            |[x]| {
                let (weight, bias, factors) = parts(x);
                let x = swiglu::composed(gate.clone(), up.clone());
                projection::composed(x, weight, bias, Some(factors))
            },
        );
    };
    for (place, input) in [&weight, &a0, &constant(7, [1, 80]), &a]
        .into_iter()
        .enumerate()
    {
        check(input.clone(), place);
    }
}
