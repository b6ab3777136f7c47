//! Operations whose products are of values rounded to bf16, against those of f32: on any processor,
//! with the instructions for it or without.

#![allow(clippy::unwrap_used, reason = "tests")]

mod formats;

use burn::tensor::{DType, Tensor};
use formats::{device, numbers, packed, values};
use olora_operations::{
    AttentionMask, LowRankFactors, PackedTensor, Products, Weight, attention::attention, project,
};
use olora_packed::Format;

/// Of the largest value, the largest difference.
fn difference(found: &[f32], right: &[f32]) -> f32 {
    assert_eq!(found.len(), right.len());
    let size = right.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
    assert!(size > 0.0, "all zero, which proves nothing");
    let pairs = found.iter().zip(right);
    pairs.fold(0.0_f32, |worst, (x, y)| worst.max((x - y).abs())) / size
}

fn weight(d_in: usize, d_out: usize, products: Products) -> PackedTensor {
    PackedTensor::new(packed(Format::Bf16, [d_out, d_in])).with_products(products)
}

/// Output and gradients of the input and of both factors; the factors are `apart` from the anchor.
fn adapted(products: Products, rank: usize, anchored: bool, apart: f32) -> Vec<Vec<f32>> {
    let (n, d_in, d_out) = (70, 96, 130);
    let x = numbers(3, [n, d_in], 1.0).require_grad();
    let a0 = numbers(11, [d_in, rank], 0.5);
    let b0 = numbers(12, [rank, d_out], 0.5);
    let a = Tensor::from_inner((a0.clone() + numbers(13, [d_in, rank], apart)).without_autodiff());
    let b = Tensor::from_inner((b0.clone() + numbers(14, [rank, d_out], apart)).without_autodiff());
    let (a, b) = (a.require_grad(), b.require_grad());
    let factors = LowRankFactors {
        a: a.clone(),
        b: b.clone(),
        anchor: anchored.then_some([a0, b0]),
        scale: 0.75,
    };
    let output = project(
        x.clone(),
        weight(d_in, d_out, products),
        None,
        Some(factors),
    );
    let upstream = numbers(99, output.dims(), 1.0);
    let grads = (output.clone() * upstream).sum().backward();
    vec![
        values(output),
        values(x.grad(&grads).unwrap()),
        values(a.grad(&grads).unwrap()),
        values(b.grad(&grads).unwrap()),
    ]
}

#[test]
fn an_update_is_that_of_f32_up_to_rounding() {
    for rank in [1, 16, 40] {
        for anchored in [false, true] {
            let [found, right] =
                [Products::Rounded, Products::Exact].map(|p| adapted(p, rank, anchored, 0.2));
            for (which, (found, right)) in found.iter().zip(&right).enumerate() {
                let difference = difference(found, right);
                assert!(
                    difference < 1e-2,
                    "rank {rank}, {anchored}, {which}: {difference}"
                );
                // The same to the last bit would mean that nothing was rounded.
                assert!(difference > 1e-6);
            }
        }
    }
}

#[test]
fn an_update_at_its_anchor_changes_not_one_bit() {
    let found = &adapted(Products::Rounded, 16, true, 0.0)[0];
    let x = numbers(3, [70, 96], 1.0);
    let base = project(x, weight(96, 130, Products::Rounded), None, None);
    assert_eq!(found, &values(base));
}

/// What a factor has moved away from its anchor is far below what bf16 tells apart in the factor.
#[test]
fn small_steps_away_from_an_anchor_are_not_rounded_off() {
    let away = |products| {
        let [moved, still] = [1e-4, 0.0].map(|apart| adapted(products, 16, true, apart));
        let both = moved[0].iter().zip(&still[0]);
        both.map(|(x, y)| x - y).collect::<Vec<f32>>()
    };
    let difference = difference(&away(Products::Rounded), &away(Products::Exact));
    assert!(difference < 1e-2, "{difference}");
}

#[test]
fn attention_is_that_of_f32_up_to_rounding() {
    for (seq, keys, groups) in [(70, 70, 1), (130, 130, 2), (3, 600, 2), (65, 70, 1)] {
        let run = |products| {
            let head = |seed, heads, n| numbers(seed, [2, heads, n, 24], 1.0).require_grad();
            let (q, k, v) = (head(1, 2 * groups, seq), head(2, 2, keys), head(3, 2, keys));
            let mask = AttentionMask::causal(Some(100)).with_products(products);
            let output = attention(q.clone(), k.clone(), v.clone(), &mask);
            let upstream = numbers(99, output.dims(), 1.0);
            let grads = (output.clone() * upstream).sum().backward();
            let leaves = [q, k, v].map(|x| values(x.grad(&grads).unwrap()));
            [vec![values(output)], leaves.to_vec()].concat()
        };
        let [found, right] = [Products::Rounded, Products::Exact].map(run);
        for (which, (found, right)) in found.iter().zip(&right).enumerate() {
            let difference = difference(found, right);
            assert!(difference < 1e-2, "{seq} of {keys}, {which}: {difference}");
            assert!(difference > 1e-6);
        }
    }
}

/// One row has no products of several: its update is f32's.
#[test]
fn a_single_row_is_projected_too() {
    let x = numbers(3, [1, 96], 1.0);
    let found = project(x.clone(), weight(96, 130, Products::Rounded), None, None);
    let dense = weight(96, 130, Products::Exact).dense(&device(), DType::F32);
    let right = project(x, Weight::Dense(dense), None, None);
    assert!(difference(&values(found), &values(right)) < 1e-2);
}
