//! Operations whose products are of values rounded to bf16, against those of f32: on any processor,
//! with the instructions for it or without.

#![allow(clippy::unwrap_used, reason = "tests")]

mod formats;

use burn::tensor::Tensor;
use formats::{numbers, packed, values};
use olora_operations::{
    AttentionMask, LowRankFactors, PackedTensor, Products, attention::attention, project,
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
    for (seq, keys, groups, head_dim, cap) in [
        (70, 70, 1, 24, None),
        (130, 130, 2, 64, Some(3.0)),
        (3, 600, 2, 40, None),
        (65, 70, 1, 64, None),
    ] {
        let run = |products| {
            let head = |seed, heads, n| numbers(seed, [2, heads, n, head_dim], 1.0).require_grad();
            let (q, k, v) = (head(1, 2 * groups, seq), head(2, 2, keys), head(3, 2, keys));
            let mask = AttentionMask::causal(Some(100))
                .with_soft_cap(cap)
                .with_products(products);
            let mask = if seq == keys {
                mask.within_documents(&[vec![40, 20], vec![7]], seq)
            } else {
                mask
            };
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

/// Of one query, scores are exact, and so must be what goes back through them: large ones would
/// differ by more than a weight.
#[test]
fn a_single_query_is_attended_exactly() {
    for keys in [1, 70] {
        let run = |products| {
            let head = |seed, n| (numbers(seed, [1, 1, n, 64], 0.1) + 3.0077).require_grad();
            let leaf = |x: Tensor<4>| Tensor::<4>::from_inner(x.without_autodiff()).require_grad();
            let (q, k, v) = (leaf(head(1, 1)), leaf(head(2, keys)), leaf(head(3, keys)));
            let mask = AttentionMask::causal(None).with_products(products);
            let output = attention(q.clone(), k.clone(), v.clone(), &mask);
            let upstream = numbers(99, output.dims(), 1.0);
            let grads = (output.clone() * upstream).sum().backward();
            let leaves = [q, k, v].map(|x| values(x.grad(&grads).unwrap()));
            [vec![values(output)], leaves.to_vec()].concat()
        };
        assert_eq!(run(Products::Rounded), run(Products::Exact), "{keys} keys");
    }
}

/// Where a query sees one key, the score has no gradient, however its products are rounded.
#[test]
fn the_first_position_has_no_gradient_through_its_score() {
    let head = |seed| numbers(seed, [1, 1, 40, 64], 1.0);
    let q = head(1).require_grad();
    let mask = AttentionMask::causal(None).with_products(Products::Rounded);
    let output = attention(q.clone(), head(2), head(3), &mask);
    let grads = (output.clone() * head(4)).sum().backward();
    let grad = values(q.grad(&grads).unwrap());
    let size = |row: usize| {
        grad[row * 64..(row + 1) * 64]
            .iter()
            .map(|x| x.abs())
            .sum::<f32>()
    };
    assert!(size(0) < 1e-5 * size(20), "{} of {}", size(0), size(20));
}

/// One row has no products of several: x alone is rounded for the weight, and its update is f32's.
#[test]
fn a_single_row_has_an_update_in_f32() {
    let run = |products| {
        let x = numbers(3, [1, 96], 1.0);
        let factors = LowRankFactors {
            a: numbers(11, [96, 16], 10.0),
            b: numbers(12, [16, 130], 10.0),
            anchor: None,
            scale: 1.0,
        };
        let both = project(x.clone(), weight(96, 130, products), None, Some(factors));
        let base = values(project(x, weight(96, 130, products), None, None));
        let update = values(both);
        update
            .iter()
            .zip(base)
            .map(|(both, base)| both - base)
            .collect::<Vec<f32>>()
    };
    let difference = difference(&run(Products::Rounded), &run(Products::Exact));
    assert!(difference < 1e-5, "{difference}");
}
