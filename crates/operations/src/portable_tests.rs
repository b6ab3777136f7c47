//! The portable code against the CPU's kernels, which `tests/oracles.rs` holds
//! to the compositions: values and gradients, on the same backend.

use burn::backend::{Flex, TensorData, flex::FlexTensor};

use crate::{
    attention::{self, AttentionKernel, AttentionMask},
    likelihood::{self, LikelihoodKernel},
    logits::{LogitsWay, WantedGradients},
    loss::{self, LossKernel},
    norm::{self, NormKernel},
    projection::{self, Layer, ProjectionKernel},
    rotary::{self, RotaryKernel},
    stored::Stored,
    swiglu::{self, SwigluKernel},
};

fn numbers(seed: u32, shape: &[usize], size: f32) -> FlexTensor {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / 8_388_608.0 - 1.0) * size
        })
        .collect();
    FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
}

fn assert_close(portable: FlexTensor, kernel: FlexTensor) {
    let read = |tensor: FlexTensor| tensor.into_data().try_to_vec::<f32>().unwrap();
    assert_eq!(portable.layout().shape(), kernel.layout().shape());
    let (portable, kernel) = (read(portable), read(kernel));
    let size = kernel.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
    assert!(size > 0.0, "all zero, which proves nothing");
    let worst = portable
        .iter()
        .zip(&kernel)
        .fold(0.0_f32, |worst, (x, y)| worst.max((x - y).abs()));
    assert!(worst <= 3e-6 * size, "{worst} of {size}");
}

#[test]
fn norm_is_the_kernels() {
    let (x, w) = (numbers(1, &[2, 9, 40], 2.0), numbers(2, &[40], 1.0));
    assert_close(
        norm::portable_forward::<Flex>(x.clone(), w.clone(), 1e-5),
        Flex::norm_forward(x.clone(), w.clone(), 1e-5),
    );
    let g = numbers(3, &[2, 9, 40], 1.0);
    let portable = norm::portable_backward::<Flex>(x.clone(), w.clone(), 1e-5, g.clone(), true);
    let kernel = Flex::norm_backward(x, w, 1e-5, g, true);
    assert_close(portable.0, kernel.0);
    assert_close(portable.1.unwrap(), kernel.1.unwrap());
}

#[test]
fn swiglu_is_the_kernels() {
    let [gate, up, g] = [1, 2, 3].map(|seed| numbers(seed, &[9, 40], 4.0));
    assert_close(
        swiglu::portable_forward::<Flex>(gate.clone(), up.clone()),
        Flex::swiglu_forward(gate.clone(), up.clone()),
    );
    let portable = swiglu::portable_backward::<Flex>(gate.clone(), up.clone(), g.clone());
    let kernel = Flex::swiglu_backward(gate, up, g);
    assert_close(portable.0, kernel.0);
    assert_close(portable.1, kernel.1);
}

#[test]
fn rotation_is_the_kernels() {
    let x = numbers(1, &[2, 3, 7, 8], 1.0);
    let [cos, sin] = [2, 3].map(|seed| numbers(seed, &[1, 1, 7, 4], 1.0));
    for back in [false, true] {
        assert_close(
            rotary::portable_rotate::<Flex>(x.clone(), cos.clone(), sin.clone(), back),
            Flex::rotate(x.clone(), cos.clone(), sin.clone(), back),
        );
    }
}

/// In stretches of queries that do not divide the sequence, and in one.
#[test]
fn attention_is_the_kernels() {
    let documents = [vec![11, 8], vec![2, 20]];
    let answers = AttentionMask::causal(None)
        .within_documents(&[vec![6, 5, 9], vec![2, 1, 20]], 23)
        .continuing(
            [
                vec![0..0; 6],
                vec![0..6; 14],
                vec![0..0; 3],
                vec![0..0; 2],
                vec![0..2; 21],
            ]
            .concat(),
        );
    for mask in [
        AttentionMask::causal(None),
        AttentionMask::causal(Some(5)),
        AttentionMask::causal(None).within_documents(&documents, 23),
        answers.clone(),
        answers.within_window(Some(6)),
        AttentionMask::causal(Some(5))
            .with_scale(Some(0.7))
            .with_soft_cap(Some(1.5)),
    ] {
        for stretch in [5, 1, 23] {
            let q = numbers(1, &[2, 4, 23, 8], 2.0);
            let [k, v] = [2, 3].map(|seed| numbers(seed, &[2, 2, 23, 8], 2.0));
            let g = numbers(4, &[2, 4, 23, 8], 1.0);
            let mask = mask.clone().in_stretches_of(stretch);
            let all = || (q.clone(), k.clone(), v.clone());
            let ((q1, k1, v1), (q2, k2, v2)) = (all(), all());
            let portable = attention::portable_forward::<Flex>(q1, k1, v1, &mask);
            let kernel = Flex::attention_forward(q2, k2, v2, &mask);
            assert_close(portable.output.clone(), kernel.output.clone());
            let ((q1, k1, v1), (q2, k2, v2)) = (all(), all());
            let portable =
                attention::portable_backward::<Flex>(q1, k1, v1, &mask, portable, g.clone());
            let kernel = Flex::attention_backward(q2, k2, v2, &mask, kernel, g);
            for (portable, kernel) in portable.into_iter().zip(kernel) {
                assert_close(portable, kernel);
            }
        }
    }
}

fn some_ids(n: i64, vocab: i64) -> FlexTensor {
    let ids: Vec<i64> = (0..n).map(|i| i * 5 % vocab).collect();
    FlexTensor::from_data(TensorData::new(ids, [n as usize]))
}

#[test]
fn likelihoods_are_the_kernels() {
    let given = || {
        let weight = Stored::<Flex>::Dense(numbers(2, &[6, 21], 1.0));
        (numbers(1, &[13, 6], 2.0), weight)
    };
    let wanted = WantedGradients {
        hidden: true,
        weight: true,
    };
    for (rows, soft_cap) in [(13, None), (4, None), (4, Some(2.0))] {
        let way = LogitsWay { soft_cap, rows };
        let (h, w) = given();
        let portable = likelihood::portable_forward::<Flex>(h, &w, &some_ids(13, 21), way, true);
        let (h, w) = given();
        let kernel = Flex::likelihood_forward(h, w, some_ids(13, 21), way, true);
        assert_close(portable.0, kernel.0);
        assert_close(portable.1.unwrap(), kernel.1.unwrap());
        let ((h, w), g) = (given(), numbers(3, &[13], 1.0));
        let ids = some_ids(13, 21);
        let portable = likelihood::portable_backward::<Flex>(h, &w, &ids, way, g.clone(), wanted);
        let (h, w) = given();
        let kernel = Flex::likelihood_backward(h, w, ids, way, g, wanted);
        for (portable, kernel) in portable.into_iter().zip(kernel) {
            assert_close(portable.unwrap(), kernel.unwrap());
        }
    }
}

#[test]
fn loss_is_the_kernels() {
    let hidden = numbers(1, &[13, 6], 2.0);
    let weight = Stored::<Flex>::Dense(numbers(2, &[6, 21], 1.0));
    let ids = || some_ids(13, 21);
    let wanted = WantedGradients {
        hidden: true,
        weight: true,
    };
    for (n_trained, rows, cap) in [(13, 13, None), (10, 4, None), (10, 4, Some(2.0))] {
        let (h, w) = (hidden.clone(), weight.clone());
        let portable = loss::portable::<Flex>(h, &w, &ids(), n_trained, cap, rows, wanted);
        let (h, w) = (hidden.clone(), weight.clone());
        let kernel = Flex::loss_and_gradients(h, w, ids(), n_trained, cap, rows, wanted);
        assert_close(portable.loss, kernel.loss);
        assert_close(portable.grad_hidden.unwrap(), kernel.grad_hidden.unwrap());
        assert_close(portable.grad_weight.unwrap(), kernel.grad_weight.unwrap());
    }
}

#[test]
fn projection_is_the_kernels() {
    let x = numbers(1, &[2, 9, 12], 1.0);
    let pair = |seed| {
        [
            numbers(seed, &[12, 4], 1.0),
            numbers(seed + 1, &[4, 10], 1.0),
        ]
    };
    for anchor in [None, Some(pair(5))] {
        let layer = Layer::<Flex> {
            weight: Stored::Dense(numbers(2, &[12, 10], 1.0)),
            bias: Some(numbers(9, &[10], 1.0)),
            factors: Some(pair(3)),
            anchor,
            scale: 1.5,
        };
        let (portable, down) = projection::portable_forward::<Flex>(x.clone(), &layer);
        let (kernel, kernel_down) = Flex::projection_forward(x.clone(), &layer);
        assert_close(portable, kernel);
        assert_close(down.clone().unwrap(), kernel_down.unwrap());
        let g = numbers(8, &[2, 9, 10], 1.0);
        let kept = || Some([x.clone(), down.clone().unwrap()]);
        let portable = projection::portable_backward::<Flex>(&layer, kept(), g.clone(), true);
        let kernel = Flex::projection_backward(&layer, kept(), g, true);
        assert_close(portable.grad_x.unwrap(), kernel.grad_x.unwrap());
        let both = portable.grad_factors.unwrap().into_iter();
        for (portable, kernel) in both.zip(kernel.grad_factors.unwrap()) {
            assert_close(portable, kernel);
        }
    }
}
