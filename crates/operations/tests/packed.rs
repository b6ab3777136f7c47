//! Operations on packed weights against the same on the unpacked weight: equal
//! bit for bit on the CPU backend, but for single rows.

#![allow(clippy::unwrap_used, reason = "tests")]

mod formats;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use formats::{all_formats, bits, device, made, numbers, packed, values};
use olora_operations::{
    LowRankFactors, PackedTensor, Weight, likelihood::token_log_likelihoods_in_chunks,
    loss::cross_entropy_in_chunks, project,
};
use olora_packed::{BlockFormat, Format};

/// Outputs and inputs: few and many, of one panel and several, not multiples of
/// what a panel has.
const SHAPES: [[usize; 2]; 7] = [
    [1, 64],
    [2, 256],
    [96, 256],
    [64, 64],
    [192, 576],
    [300, 512],
    [1056, 768],
];
const ROWS: [usize; 5] = [2, 17, 64, 65, 300];

/// Of the shapes those that a format can have.
fn shapes_of(format: Format) -> impl Iterator<Item = [usize; 2]> {
    SHAPES
        .into_iter()
        .filter(move |[_, d_in]| d_in.is_multiple_of(format.block_values()))
}

/// What is to be multiplied with the rows.
#[derive(Clone, Copy, PartialEq)]
enum With {
    Nothing,
    Bias,
    Anchor,
}

fn factors([d_in, d_out]: [usize; 2], with: With) -> Option<LowRankFactors> {
    let pair = |seed| {
        [
            numbers(seed, [d_in, 4], 0.5),
            numbers(seed + 1, [4, d_out], 0.5),
        ]
    };
    (with == With::Anchor).then(|| {
        let [a, b] = pair(11).map(Tensor::require_grad);
        LowRankFactors {
            a,
            b,
            anchor: Some(pair(13)),
            scale: 1.5,
        }
    })
}

/// Output and gradients of x and the factors.
fn run<const D: usize>(x: Tensor<D>, weight: impl Into<Weight>, with: With) -> Vec<Vec<f32>> {
    let weight = weight.into();
    let [d_in, d_out] = weight.dims();
    let x = Tensor::<D>::from_inner(x.without_autodiff()).require_grad();
    let bias = (with != With::Nothing).then(|| numbers(17, [d_out], 1.0));
    let factors = factors([d_in, d_out], with);
    let output = project(x.clone(), weight, bias, factors.clone());
    let upstream = numbers(99, output.dims(), 1.0);
    let grads = (output.clone() * upstream).sum().backward();
    let mut found = vec![values(output), values(x.grad(&grads).unwrap())];
    if let Some(factors) = factors {
        found.push(values(factors.a.grad(&grads).unwrap()));
        found.push(values(factors.b.grad(&grads).unwrap()));
    }
    found
}

fn oracle(weight: &PackedTensor) -> Tensor<2> {
    weight.dense(&device(), DType::F32)
}

/// Compares one of what [`run`] gives.
fn compare(format: Format, with: With, which: usize) {
    for [d_out, d_in] in shapes_of(format) {
        let weight = PackedTensor::new(packed(format, [d_out, d_in]));
        for n in ROWS {
            let x = numbers(3, [n, d_in], 1.0);
            let ours = run(x.clone(), weight.clone(), with);
            let right = run(x, oracle(&weight), with);
            assert!(right[which].iter().any(|value| *value != 0.0));
            assert_eq!(
                bits(&ours[which]),
                bits(&right[which]),
                "{format}, {d_out} x {d_in}, {n} rows"
            );
        }
    }
}

#[test]
fn outputs_equal_the_unpacked_weights() {
    for format in all_formats().into_iter().chain([Format::Bf16]) {
        compare(format, With::Nothing, 0);
    }
}

#[test]
fn gradients_of_the_input_equal_the_unpacked_weights() {
    for format in all_formats().into_iter().chain([Format::Bf16]) {
        compare(format, With::Nothing, 1);
    }
}

#[test]
fn outputs_with_a_bias_equal_the_unpacked_weights() {
    compare(BlockFormat::Q4_1.into(), With::Bias, 0);
}

#[test]
fn outputs_with_factors_and_anchors_equal_the_unpacked_weights() {
    compare(Format::Nf4Double, With::Anchor, 0);
    compare(BlockFormat::Q4K.into(), With::Anchor, 0);
}

#[test]
fn gradients_with_factors_and_anchors_equal_the_unpacked_weights() {
    for which in 1..4 {
        compare(Format::Nf4, With::Anchor, which);
        compare(BlockFormat::Q6K.into(), With::Anchor, which);
    }
}

/// Large enough for several threads in every way of sharing out the work.
#[test]
fn large_products_equal_the_unpacked_weights() {
    for (format, [d_out, d_in], n) in [
        (Format::from(BlockFormat::Q4_1), [1536, 576], 200),
        (Format::from(BlockFormat::Q8_0), [576, 1536], 33),
        (Format::from(BlockFormat::Q4K), [256, 2304], 70),
        (Format::Nf4, [64, 4096], 90),
        (Format::Nf4, [4096, 64], 90),
    ] {
        let weight = PackedTensor::new(made(format, [d_out, d_in]));
        let x = numbers(3, [n, d_in], 1.0);
        let ours = run(x.clone(), weight.clone(), With::Nothing);
        let right = run(x, oracle(&weight), With::Nothing);
        assert_eq!(bits(&ours[0]), bits(&right[0]), "{format}, output");
        assert_eq!(bits(&ours[1]), bits(&right[1]), "{format}, gradient");
    }
}

#[test]
fn inputs_of_more_axes_equal_the_unpacked_weights() {
    let weight = PackedTensor::new(packed(BlockFormat::Q5_0.into(), [96, 256]));
    let x = numbers(3, [3, 5, 256], 1.0);
    let ours = run(x.clone(), weight.clone(), With::Anchor);
    assert_eq!(ours, run(x, oracle(&weight), With::Anchor));
}

#[test]
fn inputs_that_are_views_equal_the_unpacked_weights() {
    let weight = PackedTensor::new(packed(BlockFormat::Q4_0.into(), [96, 256]));
    let x = numbers(3, [256, 7, 3], 1.0).permute([2, 1, 0]);
    let ours = run(x.clone(), weight.clone(), With::Nothing);
    assert_eq!(ours, run(x, oracle(&weight), With::Nothing));
}

/// Summed in another order than an unpacked one; a Gaussian sum of 4,096
/// products differs by some 1e-6 of its size.
#[test]
fn single_rows_are_close_to_the_unpacked_weights() {
    for format in all_formats().into_iter().chain([Format::Bf16]) {
        for [d_out, d_in] in [[5, 256], [300, 4096]] {
            let weight = PackedTensor::new(packed(format, [d_out, d_in]));
            let x = numbers(3, [1, d_in], 1.0);
            let ours = run(x.clone(), weight.clone(), With::Anchor);
            let right = run(x, oracle(&weight), With::Anchor);
            for (i, (ours, right)) in ours.iter().zip(&right).enumerate() {
                let size = right.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
                let worst = ours.iter().zip(right).map(|(x, y)| (x - y).abs());
                let worst = worst.fold(0.0, f32::max);
                assert!(worst <= 2e-6 * size, "{format} {i}: {worst} of {size}");
            }
        }
    }
}

#[test]
fn a_bias_that_trains_has_its_gradient() {
    let weight = PackedTensor::new(packed(BlockFormat::Q4_0.into(), [96, 256]));
    let run = |weight: Weight| {
        let bias = numbers(17, [96], 1.0).require_grad();
        let x = numbers(3, [2, 4, 256], 1.0);
        let output = project(
            x,
            weight,
            Some(bias.clone()),
            factors([256, 96], With::Anchor),
        );
        let grads = (output.clone() * numbers(99, [2, 4, 96], 1.0))
            .sum()
            .backward();
        values(bias.grad(&grads).unwrap())
    };
    // Added up in another order.
    let right = run(oracle(&weight).into());
    for (ours, right) in run(weight.into()).iter().zip(right) {
        assert!((ours - right).abs() < 2e-6, "{ours} for {right}");
    }
}

#[test]
fn half_precision_is_close_to_the_unpacked_weights() {
    let weight = PackedTensor::new(packed(BlockFormat::Q4_0.into(), [96, 256]));
    let x = numbers(3, [9, 256], 1.0);
    let right = values(project(x.clone(), oracle(&weight), None, None));
    let ours = project(x.cast(DType::BF16), weight, None, None);
    assert_eq!(ours.dtype(), DType::BF16);
    let ours = values(ours.cast(DType::F32));
    let size = right.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
    for (ours, right) in ours.iter().zip(&right) {
        assert!((ours - right).abs() < 0.02 * size, "{ours} for {right}");
    }
}

fn some_targets(n: usize, vocab: usize) -> Vec<i32> {
    (0..n).map(|i| (i * 7919 % vocab) as i32).collect()
}

/// The loss and the gradient of the hidden states.
fn loss(weight: impl Into<Weight>, n: usize, rows: usize) -> [Vec<f32>; 2] {
    let weight = weight.into();
    let [width, vocab] = weight.dims();
    let hidden = numbers(5, [n, width], 1.0).require_grad();
    let targets = some_targets(n, vocab);
    let loss = cross_entropy_in_chunks(hidden.clone(), weight, &targets, n - 1, rows);
    let grads = loss.clone().mul_scalar(0.3).backward();
    [values(loss), values(hidden.grad(&grads).unwrap())]
}

/// The same of log-likelihoods, each weighted otherwise.
fn likelihoods(weight: impl Into<Weight>, n: usize, rows: usize) -> [Vec<f32>; 2] {
    let weight = weight.into();
    let [width, vocab] = weight.dims();
    let hidden = numbers(5, [n, width], 1.0).require_grad();
    let targets = some_targets(n, vocab);
    let found = token_log_likelihoods_in_chunks(hidden.clone(), weight, &targets, rows);
    let grads = (found.clone() * numbers(6, [n], 1.0)).sum().backward();
    [values(found), values(hidden.grad(&grads).unwrap())]
}

/// Vocabularies of one slice and of several.
fn heads() -> impl Iterator<Item = PackedTensor> {
    [
        (Format::from(BlockFormat::Q8_0), [9001, 64]),
        (Format::from(BlockFormat::Q6K), [500, 256]),
        (Format::from(BlockFormat::Q4_1), [4097, 96]),
    ]
    .into_iter()
    .map(|(format, shape)| PackedTensor::new(made(format, shape)))
}

#[test]
fn the_loss_equals_the_unpacked_weights() {
    for weight in heads() {
        for (n, rows) in [(33, 33), (50, 20), (140, 70)] {
            let [ours, _] = loss(weight.clone(), n, rows);
            let [right, _] = loss(oracle(&weight), n, rows);
            assert_eq!(bits(&ours), bits(&right), "{n} in {rows}");
        }
    }
}

#[test]
fn the_gradient_of_the_loss_equals_the_unpacked_weights() {
    for weight in heads() {
        for (n, rows) in [(33, 33), (50, 20), (140, 70)] {
            let [_, ours] = loss(weight.clone(), n, rows);
            let [_, right] = loss(oracle(&weight), n, rows);
            assert_eq!(bits(&ours), bits(&right), "{n} in {rows}");
        }
    }
}

#[test]
fn log_likelihoods_equal_the_unpacked_weights() {
    for weight in heads() {
        let ours = likelihoods(weight.clone(), 50, 20);
        assert_eq!(ours, likelihoods(oracle(&weight), 50, 20));
    }
}

/// A number that varies with the chunk would show a row or a slice left out.
#[test]
fn chunks_change_the_loss_by_rounding_only() {
    for weight in heads() {
        let [whole, whole_gradient] = loss(weight.clone(), 130, 130);
        for rows in [1, 7, 64, 128] {
            let [ours, gradient] = loss(weight.clone(), 130, rows);
            assert!((ours[0] - whole[0]).abs() <= 1e-6 * whole[0], "{rows}");
            for (ours, right) in gradient.iter().zip(&whole_gradient) {
                assert!((ours - right).abs() < 1e-5, "{rows}: {ours} for {right}");
            }
        }
    }
}

#[test]
fn the_loss_in_half_precision_is_close() {
    let weight = PackedTensor::new(made(BlockFormat::Q8_0, [500, 64]));
    let hidden = numbers(5, [20, 64], 1.0);
    let targets = some_targets(20, 500);
    let right = values(cross_entropy_in_chunks(
        hidden.clone(),
        oracle(&weight),
        &targets,
        20,
        8,
    ));
    let ours = cross_entropy_in_chunks(hidden.cast(DType::BF16), weight, &targets, 20, 8);
    let ours = values(ours);
    assert!(
        (ours[0] - right[0]).abs() < 0.01 * right[0],
        "{ours:?} for {right:?}"
    );
}

#[test]
fn packed_weights_take_128_rows_of_logits_at_least() {
    let large = PackedTensor::new(made(BlockFormat::Q8_0, [100_000, 32]));
    assert_eq!(Weight::from(large).rows_at_once(), 128);
    let small = PackedTensor::new(made(BlockFormat::Q8_0, [1000, 32]));
    assert_eq!(Weight::from(small).rows_at_once(), 8388);
}

fn some_ids<const N: usize>(ids: [[i32; N]; 2]) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::from(ids), &Device::flex())
}

#[test]
fn embeddings_are_rows_of_the_unpacked_weight() {
    for format in all_formats().into_iter().chain([Format::Bf16]) {
        let weight = PackedTensor::new(packed(format, [9, 256]));
        let found = weight.embedding(some_ids([[3, 0, 8], [3, 3, 1]]), DType::F32);
        assert_eq!(found.dims(), [2, 3, 256]);
        let table = weight.dense(&Device::flex(), DType::F32).transpose();
        let ids = Tensor::<1, Int>::from_data([3, 0, 8, 3, 3, 1], &Device::flex());
        let right = table.select(0, ids);
        assert_eq!(bits(&values(found)), bits(&values(right)), "{format}");
    }
}

#[test]
#[should_panic(expected = "the id 9 is not one of the 9 rows")]
fn ids_beyond_the_rows_are_refused() {
    let weight = PackedTensor::new(packed(BlockFormat::Q4_0.into(), [9, 64]));
    drop(weight.embedding(some_ids([[0], [9]]), DType::F32));
}

#[test]
#[should_panic(expected = "the id -1 is not one of the 9 rows")]
fn negative_ids_are_refused() {
    let weight = PackedTensor::new(packed(BlockFormat::Q4_0.into(), [9, 64]));
    drop(weight.embedding(some_ids([[0], [-1]]), DType::F32));
}
