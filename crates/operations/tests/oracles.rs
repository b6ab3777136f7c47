//! Every operation against the composition of Burn's operations: values and
//! gradients, on the CPU backend.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

mod compared;
mod formats;

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use compared::{compare, difference, factors};
use formats::{numbers, values};
use olora_operations::{
    AttentionMask, OutputHead,
    attention::{self, attention},
    likelihood, loss, norm, projection, rotary,
    swiglu::{self, swiglu},
    weight::soft_capped,
};

#[test]
fn norm_equals_its_composition() {
    for (rows, width) in [(1, 8), (7, 33), (130, 576)] {
        let x = numbers(1, [rows, 3, width], 2.0);
        let weight = numbers(2, [1, 1, width], 1.0);
        let flat = |weight: Tensor<3>| weight.reshape([width]);
        compare(
            [x, weight],
            |[x, weight]| norm::rms_norm(x, flat(weight), 1e-5),
            |[x, weight]| norm::composed(x, flat(weight), 1e-5),
        );
    }
}

#[test]
fn swiglu_equals_its_composition() {
    for size in [1, 37, 40_000] {
        compare(
            [numbers(1, [size, 2], 6.0), numbers(2, [size, 2], 1.0)],
            |[gate, up]| swiglu(gate, up),
            |[gate, up]| swiglu::composed(gate, up),
        );
    }
}

#[test]
fn rotation_equals_its_composition() {
    let (batch, heads, seq, pairs) = (3, 4, 70, 8);
    for rows in [1, batch] {
        let cos = numbers(5, [rows, 1, seq, pairs], 1.0);
        let sin = numbers(6, [rows, 1, seq, pairs], 1.0);
        // As projections give it, and as it is named.
        for swap in [true, false] {
            let x = if swap {
                numbers(1, [batch, seq, heads, 2 * pairs], 1.0)
            } else {
                numbers(1, [batch, heads, seq, 2 * pairs], 1.0)
            };
            let heads_first = |x: Tensor<4>| if swap { x.swap_dims(1, 2) } else { x };
            compare(
                [x],
                |[x]| rotary::rotate(heads_first(x), cos.clone(), sin.clone()),
                |[x]| rotary::composed(heads_first(x), cos.clone(), sin.clone()),
            );
        }
    }
}

fn compare_attention(mask: &AttentionMask, sizes: [usize; 2], groups: usize) {
    compare_attention_of(mask, sizes, groups, 16);
}

fn compare_attention_of(
    mask: &AttentionMask,
    [seq, keys]: [usize; 2],
    groups: usize,
    head_dim: usize,
) {
    let (batch, kv_heads) = (2, 2);
    let q = numbers(1, [batch, seq, kv_heads * groups, head_dim], 2.0);
    let k = numbers(2, [batch, keys, kv_heads, head_dim], 2.0);
    let v = numbers(3, [batch, keys, kv_heads, head_dim], 1.0);
    compare(
        [q, k, v],
        |all| {
            let [q, k, v] = all.map(|x| x.swap_dims(1, 2));
            attention(q, k, v, mask)
        },
        |all| {
            let [q, k, v] = all.map(|x| x.swap_dims(1, 2));
            attention::composed(q, k, v, mask)
        },
    );
}

#[test]
fn causal_attention_equals_its_composition() {
    for seq in [1, 5, 64, 65, 200] {
        for groups in [1, 3] {
            compare_attention(&AttentionMask::causal(None), [seq, seq], groups);
        }
    }
}

/// More keys than one tile holds, so that sums are rescaled.
#[test]
fn attention_over_several_tiles_of_keys_equals_its_composition() {
    compare_attention(&AttentionMask::causal(None), [600, 600], 2);
}

#[test]
fn windowed_attention_equals_its_composition() {
    for window in [1, 7, 64, 100] {
        compare_attention(&AttentionMask::causal(Some(window)), [150, 150], 2);
    }
    // Windows that begin and end within different tiles of keys.
    compare_attention(&AttentionMask::causal(Some(520)), [1100, 1100], 1);
}

#[test]
fn queries_after_cached_keys_equal_the_composition() {
    for seq in [1, 3, 70] {
        compare_attention(&AttentionMask::causal(None), [seq, 90], 2);
        compare_attention(&AttentionMask::causal(Some(11)), [seq, 90], 2);
    }
}

/// Around what a thread takes at a time, and whole registers.
#[test]
fn single_queries_equal_the_composition() {
    for keys in [1, 2, 31, 33, 63, 64, 65, 130, 300] {
        for groups in [1, 3] {
            compare_attention(&AttentionMask::default(), [1, keys], groups);
        }
        compare_attention(&AttentionMask::causal(Some(70)), [1, keys], 2);
        let bent = AttentionMask::default()
            .with_scale(Some(0.7))
            .with_soft_cap(Some(3.0));
        compare_attention(&bent, [1, keys], 2);
        // Widths that have code of their own, and others; the longest on all threads.
        for head_dim in [64, 80, 128] {
            compare_attention_of(&AttentionMask::default(), [1, keys], 3, head_dim);
        }
    }
}

#[test]
fn documents_in_one_row_do_not_see_each_other() {
    let lengths = [vec![3, 80, 40], vec![64, 1]];
    let mask = AttentionMask::causal(None).within_documents(&lengths, 150);
    compare_attention(&mask, [150, 150], 2);
    let windowed = AttentionMask::causal(Some(9)).within_documents(&lengths, 150);
    compare_attention(&windowed, [150, 150], 2);
}

/// Prompts of 70 and 3 with answers that share them, some in the next tile of
/// queries, and beginnings as long as a tile of keys.
#[test]
fn answers_that_share_a_prompt_do_not_see_each_other() {
    let documents = [vec![70, 30, 9, 20], vec![3, 90, 1, 41]];
    let shared = |rows: &[Vec<usize>], seq: usize| -> Vec<Range<usize>> {
        let rows = rows.iter().flat_map(|row| {
            let [prompt, chosen, rejected, other] = row[..] else {
                unreachable!()
            };
            let of_answers = std::iter::repeat_n(0..prompt, chosen + rejected);
            let before = std::iter::repeat_n(0..0, prompt);
            let rest = std::iter::repeat_n(0..0, seq - prompt - chosen - rejected);
            assert!(other <= rest.len());
            before.chain(of_answers).chain(rest)
        });
        rows.collect()
    };
    let all = |rows: &[Vec<usize>; 2], seq: usize, window: Option<usize>| {
        AttentionMask::causal(window)
            .within_documents(rows, seq)
            .continuing(shared(rows, seq))
    };
    for window in [None, Some(9), Some(60), Some(100)] {
        let mask = all(&documents, 150, window);
        compare_attention(&mask, [150, 150], 2);
        compare_attention(&mask.with_soft_cap(Some(1.5)), [150, 150], 2);
    }
    let long = [vec![520, 600, 30, 5], vec![100, 900, 60, 20]];
    compare_attention(&all(&long, 1200, None), [1200, 1200], 1);
    compare_attention(&all(&long, 1200, Some(560)), [1200, 1200], 1);
    // What they do not see is a difference.
    let x = numbers(1, [2, 2, 150, 16], 2.0);
    let with = |mask: &AttentionMask| values(attention(x.clone(), x.clone(), x.clone(), mask));
    let apart = AttentionMask::causal(None).within_documents(&documents, 150);
    assert!(difference(&with(&all(&documents, 150, None)), &with(&apart)) > 0.1);
    let causal = AttentionMask::causal(None);
    assert!(difference(&with(&all(&documents, 150, None)), &with(&causal)) > 0.1);
}

#[test]
fn scaled_and_capped_scores_equal_their_composition() {
    let plain = || AttentionMask::causal(Some(100)).with_scale(Some(0.9));
    compare_attention(&plain(), [150, 150], 2);
    let capped = plain().with_soft_cap(Some(1.5));
    compare_attention(&capped, [150, 150], 2);
    compare_attention(&capped.clone(), [3, 90], 2);
    // What the cap does is larger than any tolerance.
    let x = numbers(1, [1, 2, 20, 16], 2.0);
    let with = |mask: &AttentionMask| values(attention(x.clone(), x.clone(), x.clone(), mask));
    assert!(difference(&with(&capped), &with(&plain())) > 0.1);
    assert!(difference(&with(&plain()), &with(&AttentionMask::causal(Some(100)))) > 0.1);
}

/// A score that is not a number must not be lost on the way.
#[test]
fn attention_keeps_nan() {
    let x = numbers(1, [1, 1, 8, 4], 1.0);
    let bad = x.clone().slice_fill([0..1, 0..1, 2..3, 0..1], f32::NAN);
    let output = values(attention(bad, x.clone(), x, &AttentionMask::causal(None)));
    assert!(output[2 * 4].is_nan());
    assert!(output[..2 * 4].iter().all(|x| x.is_finite()));
}

#[test]
fn loss_equals_its_composition() {
    let (n, width, vocab) = (37, 24, 101);
    let targets: Vec<i32> = (0..n).map(|i| (i * 7 % vocab) as i32).collect();
    for n_trained in [n, n - 5] {
        // One chunk, several, and one row at a time.
        for rows in [64, 10, 1] {
            let hidden = numbers(1, [n, width], 2.0);
            let weight = numbers(2, [width, vocab], 1.0);
            let scalar = |loss: Tensor<1>| loss.reshape([1, 1]);
            compare(
                [hidden, weight],
                |[hidden, weight]| {
                    scalar(loss::cross_entropy_in_chunks(
                        hidden, weight, &targets, n_trained, rows,
                    ))
                },
                |[hidden, weight]| {
                    scalar(loss::composed(hidden.matmul(weight), &targets, n_trained))
                },
            );
        }
    }
}

#[test]
fn capped_logits_have_the_loss_of_their_composition() {
    let (n, width, vocab, cap) = (37, 24, 101, Some(2.5));
    let targets = some_targets(n, vocab);
    let head = |weight: Tensor<2>| OutputHead {
        weight: weight.into(),
        soft_cap: cap,
    };
    let bent = |hidden: Tensor<2>, weight| soft_capped(hidden.matmul(weight), cap);
    let column = |of_tokens: Tensor<1>| of_tokens.reshape([-1, 1]);
    for rows in [64, 10] {
        let inputs = [numbers(1, [n, width], 2.0), numbers(2, [width, vocab], 1.0)];
        compare(
            inputs.clone(),
            |[hidden, weight]| {
                let head = head(weight);
                column(loss::cross_entropy_in_chunks(
                    hidden, head, &targets, 30, rows,
                ))
            },
            |[hidden, weight]| column(loss::composed(bent(hidden, weight), &targets, 30)),
        );
        compare(
            inputs,
            |[hidden, weight]| {
                let head = head(weight);
                column(likelihood::token_log_likelihoods_in_chunks(
                    hidden, head, &targets, rows,
                ))
            },
            |[hidden, weight]| column(likelihood::composed(bent(hidden, weight), &targets)),
        );
    }
}

/// `n` tokens of a vocabulary, some more than once.
fn some_targets(n: usize, vocab: usize) -> Vec<i32> {
    (0..n).map(|i| (i * 7 % vocab) as i32).collect()
}

/// The gradient that comes back is another for each token; the weight trains.
#[test]
fn token_log_likelihoods_equal_their_composition() {
    let (n, width, vocab) = (37, 24, 101);
    let targets = some_targets(n, vocab);
    let column = |likelihoods: Tensor<1>| likelihoods.reshape([n, 1]);
    for rows in [64, 10, 1] {
        compare(
            [numbers(1, [n, width], 2.0), numbers(2, [width, vocab], 1.0)],
            |[hidden, weight]| {
                column(likelihood::token_log_likelihoods_in_chunks(
                    hidden, weight, &targets, rows,
                ))
            },
            |[hidden, weight]| column(likelihood::composed(hidden.matmul(weight), &targets)),
        );
    }
}

#[test]
fn token_log_likelihoods_with_one_constant_equal_their_composition() {
    let (n, width, vocab) = (37, 24, 101);
    let targets = some_targets(n, vocab);
    let [hidden, weight] = [
        numbers(1, [n, width], 2.0).detach(),
        numbers(2, [width, vocab], 1.0).detach(),
    ];
    let column = |likelihoods: Tensor<1>| likelihoods.reshape([n, 1]);
    for rows in [64, 10, 1] {
        let ours = |hidden, weight| {
            column(likelihood::token_log_likelihoods_in_chunks(
                hidden, weight, &targets, rows,
            ))
        };
        let right = |hidden: Tensor<2>, weight| {
            column(likelihood::composed(hidden.matmul(weight), &targets))
        };
        compare(
            [hidden.clone()],
            |[hidden]| ours(hidden, weight.clone()),
            |[hidden]| right(hidden, weight.clone()),
        );
        compare(
            [weight.clone()],
            |[weight]| ours(hidden.clone(), weight),
            |[weight]| right(hidden.clone(), weight),
        );
    }
}

/// Where nothing is differentiated, the same numbers come out.
#[test]
fn token_log_likelihoods_do_not_depend_on_autodiff() {
    let targets = some_targets(37, 101);
    let [hidden, weight] = [numbers(1, [37, 24], 2.0), numbers(2, [24, 101], 1.0)];
    let likelihoods = |hidden, weight| {
        values(likelihood::token_log_likelihoods_in_chunks(
            hidden, weight, &targets, 10,
        ))
    };
    let plain = likelihoods(
        hidden.clone().without_autodiff(),
        weight.clone().without_autodiff(),
    );
    let frozen = likelihoods(hidden.clone().require_grad(), weight.clone());
    let trained = likelihoods(hidden, weight.require_grad());
    assert_eq!(plain, frozen);
    assert_eq!(plain, trained);
}

/// Minus their sum is the loss, with the same gradients: bit for bit, but that
/// the loss adds in f64.
#[test]
fn token_log_likelihoods_add_up_to_the_loss() {
    let (n, width, vocab) = (37, 24, 101);
    let targets = some_targets(n, vocab);
    for weight_trains in [false, true] {
        for rows in [64, 10, 1] {
            let leaves = || {
                let weight = numbers(2, [width, vocab], 1.0).detach();
                let weight = if weight_trains {
                    weight.require_grad()
                } else {
                    weight
                };
                (numbers(1, [n, width], 2.0).detach().require_grad(), weight)
            };
            let gradients = |objective: Tensor<1>, hidden: &Tensor<2>, weight: &Tensor<2>| {
                let grads = objective.backward();
                let of = |leaf: &Tensor<2>| {
                    let grad = leaf.grad(&grads)?;
                    Some(values(Tensor::<2>::from_inner(grad)))
                };
                (of(hidden), of(weight))
            };
            let (hidden, weight) = leaves();
            let loss =
                loss::cross_entropy_in_chunks(hidden.clone(), weight.clone(), &targets, n, rows);
            let by_loss = gradients(loss.clone(), &hidden, &weight);
            let (hidden, weight) = leaves();
            let likelihoods = likelihood::token_log_likelihoods_in_chunks(
                hidden.clone(),
                weight.clone(),
                &targets,
                rows,
            );
            let by_tokens = gradients(likelihoods.clone().sum().neg(), &hidden, &weight);
            let sum: f64 = values(likelihoods).iter().map(|x| f64::from(*x)).sum();
            assert_eq!(values(loss), [-sum as f32]);
            assert!(by_loss.0.is_some() && by_loss.1.is_some() == weight_trains);
            assert_eq!(
                by_loss, by_tokens,
                "{rows} rows, weight trains: {weight_trains}"
            );
        }
    }
}

/// bfloat16 takes the portable code. Compared with f32 on the same rounded
/// inputs: what differs is how logits and gradients are rounded.
#[test]
fn token_log_likelihoods_in_bf16_are_close_to_f32() {
    let (n, width, vocab) = (37, 24, 101);
    let targets = some_targets(n, vocab);
    let rounded = |x: Tensor<2>| x.cast(DType::BF16).detach();
    for weight_trains in [false, true] {
        let run = |dtype: DType| {
            let hidden = rounded(numbers(1, [n, width], 1.0)).cast(dtype);
            let hidden = hidden.detach().require_grad();
            let weight = rounded(numbers(2, [width, vocab], 1.0))
                .cast(dtype)
                .detach();
            let weight = if weight_trains {
                weight.require_grad()
            } else {
                weight
            };
            let output = likelihood::token_log_likelihoods_in_chunks(
                hidden.clone(),
                weight.clone(),
                &targets,
                10,
            );
            assert_eq!(output.dtype(), DType::F32);
            let grads = (output.clone() * numbers(9, [n], 1.0)).sum().backward();
            let gradients = [hidden, weight].into_iter().filter_map(|leaf| {
                let grad = leaf.grad(&grads)?;
                assert_eq!(grad.dtype(), dtype);
                Some(values(Tensor::<2>::from_inner(grad.cast(DType::F32))))
            });
            let mut found = vec![values(output)];
            found.extend(gradients);
            found
        };
        let (half, full) = (run(DType::BF16), run(DType::F32));
        assert_eq!(half.len(), if weight_trains { 3 } else { 2 });
        for (i, (half, full)) in half.iter().zip(&full).enumerate() {
            let difference = difference(half, full);
            assert!(difference < 0.02 && difference > 0.0, "{i}: {difference}");
        }
    }
}

#[test]
#[should_panic(expected = "not a token of a vocabulary of 11")]
fn the_likelihood_of_a_target_outside_the_vocabulary_is_refused() {
    let (hidden, weight) = (numbers(1, [2, 12], 1.0), numbers(2, [12, 11], 1.0));
    drop(likelihood::token_log_likelihoods(hidden, weight, &[-1, 1]));
}

#[test]
#[should_panic(expected = "not a token of a vocabulary of 11")]
fn a_target_outside_the_vocabulary_is_refused() {
    let (hidden, weight) = (numbers(1, [2, 12], 1.0), numbers(2, [12, 11], 1.0));
    drop(loss::cross_entropy(hidden, weight, &[3, 11], 2));
}

#[test]
#[should_panic(expected = "do not fit each other")]
fn a_layer_of_another_width_is_refused() {
    let (x, weight) = (numbers(1, [4, 3], 1.0), numbers(2, [6, 8], 1.0));
    drop(projection::project(x, weight, None, None));
}

#[test]
fn flipped_inputs_are_read_as_they_are_named() {
    let [cos, sin] = [5, 6].map(|seed| numbers(seed, [1, 1, 9, 4], 1.0));
    compare(
        [numbers(1, [2, 3, 9, 8], 1.0)],
        |[x]| rotary::rotate(x.flip([2]), cos.clone(), sin.clone()),
        |[x]| rotary::composed(x.flip([2]), cos.clone(), sin.clone()),
    );
}

/// A tied embedding is a transposed weight.
#[test]
fn loss_takes_a_transposed_weight() {
    let targets = [3, 0, 9];
    compare(
        [numbers(1, [3, 12], 1.0), numbers(2, [11, 12], 1.0)],
        |[hidden, table]| {
            loss::cross_entropy(hidden, table.transpose(), &targets, 3).reshape([1, 1])
        },
        |[hidden, table]| {
            loss::composed(hidden.matmul(table.transpose()), &targets, 3).reshape([1, 1])
        },
    );
}

#[test]
fn adapted_projection_equals_its_composition() {
    let (rows, d_in, d_out, rank) = (70, 48, 80, 8);
    let constant = |seed, shape: [usize; 2]| numbers(seed, shape, 0.5).detach();
    let weight = constant(4, [d_in, d_out]);
    let [a0, b0] = [constant(5, [d_in, rank]), constant(6, [rank, d_out])];
    for anchored in [false, true] {
        for bias in [None, Some(numbers(7, [d_out], 1.0))] {
            let inputs = [
                numbers(1, [rows, d_in], 1.0),
                numbers(2, [d_in, rank], 0.5),
                numbers(3, [rank, d_out], 0.5),
            ];
            let layer = |a, b| factors([a, b, a0.clone(), b0.clone()], anchored);
            compare(
                inputs,
                |[x, a, b]| {
                    // Three axes, as a model has them.
                    let x = x.reshape([2, rows / 2, d_in]);
                    let output =
                        projection::project(x, weight.clone(), bias.clone(), Some(layer(a, b)));
                    output.reshape([rows, d_out])
                },
                |[x, a, b]| {
                    projection::composed(x, weight.clone(), bias.clone(), Some(layer(a, b)))
                },
            );
        }
    }
}

#[test]
fn frozen_projection_equals_its_composition() {
    let weight = numbers(4, [48, 80], 0.5).detach();
    compare(
        [numbers(1, [70, 48], 1.0)],
        |[x]| projection::project(x, weight.clone(), None, None),
        |[x]| projection::composed(x, weight.clone(), None, None),
    );
}

/// A full fine-tune, or another adapter that is composed into the weight.
#[test]
fn a_weight_that_trains_has_its_gradient() {
    let inputs = || [numbers(1, [70, 48], 1.0), numbers(4, [48, 80], 0.5)];
    compare(
        inputs(),
        |[x, weight]| projection::project(x, weight, None, None),
        |[x, weight]| projection::composed(x, weight, None, None),
    );
    let fixed = factors(
        [
            numbers(5, [48, 4], 0.5),
            numbers(6, [4, 80], 0.5),
            numbers(7, [48, 4], 0.5),
            numbers(8, [4, 80], 0.5),
        ],
        true,
    );
    compare(
        inputs(),
        |[x, weight]| projection::project(x, weight, None, Some(fixed.clone())),
        |[x, weight]| projection::composed(x, weight, None, Some(fixed.clone())),
    );
}

#[test]
fn an_adapter_at_its_anchor_changes_not_one_bit() {
    for (rows, rank) in [(64, 16), (64, 1), (64, 2), (64, 3), (1, 16), (3, 300)] {
        let x = numbers(1, [rows, 700], 1.0);
        let weight = numbers(2, [700, 90], 0.5);
        let [a, b] = [numbers(3, [700, rank], 1.0), numbers(4, [rank, 90], 1.0)];
        let at_anchor = factors([a.clone(), b.clone(), a, b], true);
        let adapted = projection::project(x.clone(), weight.clone(), None, Some(at_anchor));
        let plain = projection::project(x, weight, None, None);
        assert_eq!(values(adapted), values(plain), "{rows} rows, rank {rank}");
    }
}

/// Half precision takes the portable code, on a device with kernels of its own.
#[test]
fn half_precision_is_close_to_f32() {
    let x = numbers(1, [9, 64], 1.0);
    let weight = numbers(2, [64], 1.0);
    let right = values(norm::rms_norm(x.clone(), weight.clone(), 1e-5));
    let half = norm::rms_norm(x.cast(DType::BF16), weight.cast(DType::BF16), 1e-5);
    assert_eq!(half.dtype(), DType::BF16);
    let difference = difference(&values(half.cast(DType::F32)), &right);
    assert!(difference < 0.02 && difference > 0.0, "{difference}");
}

/// A flipped weight lies before its first element in memory.
#[test]
fn flipped_weights_are_read_as_they_are_named() {
    let (x, weight) = (numbers(1, [9, 48], 1.0), numbers(4, [48, 80], 0.5).detach());
    compare(
        [x.clone()],
        |[x]| projection::project(x, weight.clone().flip([0, 1]), None, None),
        |[x]| projection::composed(x, weight.clone().flip([0, 1]), None, None),
    );
    let targets = some_targets(9, 80);
    compare(
        [x],
        |[x]| loss::cross_entropy(x, weight.clone().flip([1]), &targets, 9).reshape([1, 1]),
        |[x]| loss::composed(x.matmul(weight.clone().flip([1])), &targets, 9).reshape([1, 1]),
    );
}

#[test]
fn flipped_factors_are_read_as_they_are_named() {
    let constant = |seed, shape: [usize; 2]| numbers(seed, shape, 0.5).detach();
    let weight = constant(4, [48, 80]);
    let four = [
        constant(5, [48, 8]),
        constant(6, [8, 80]),
        constant(7, [48, 8]),
        constant(8, [8, 80]),
    ];
    let flipped = || factors(four.clone().map(|factor| factor.flip([0])), true);
    compare(
        [numbers(1, [9, 48], 1.0)],
        |[x]| projection::project(x, weight.clone(), None, Some(flipped())),
        |[x]| projection::composed(x, weight.clone(), None, Some(flipped())),
    );
}

/// Output and gradients of attention for `[q, k, v, gradient of the output]`,
/// all `[batch, heads, seq, head_dim]`.
fn attend(inputs: &[Tensor<4>; 4], mask: &AttentionMask, dtype: DType) -> [Vec<f32>; 4] {
    let [q, k, v, grad] = inputs.clone().map(|x| x.cast(dtype).detach());
    let leaves = [q, k, v].map(Tensor::require_grad);
    let [q, k, v] = leaves.clone();
    let output = attention(q, k, v, mask);
    let grads = (output.clone() * grad).sum().backward();
    let of = |leaf: &Tensor<4>| Tensor::<4>::from_inner(leaf.grad(&grads).unwrap());
    let [q, k, v] = [0, 1, 2].map(|i| of(&leaves[i]));
    [output, q, k, v].map(|x| values(x.cast(DType::F32)))
}

/// One value of one document is not finite. All results of the other documents
/// are to the bit what they are without it; half precision takes the portable
/// code.
#[test]
fn what_is_not_finite_stays_in_its_document() {
    let (batch, kv_heads, seq, head_dim) = (2, 2, 70, 8);
    let mask = AttentionMask::causal(None).within_documents(&[vec![5, 40, 25], vec![30]], seq);
    let inputs = [(1, 2), (2, 1), (3, 1), (4, 2)].map(|(seed, groups)| {
        let shape = [batch, kv_heads * groups, seq, head_dim];
        numbers(seed, shape, 1.0)
    });
    // Of the document of row 0 at 5..45.
    let is_within = |i: usize, heads: usize| {
        let (row, position) = (i / head_dim / seq / heads, i / head_dim % seq);
        row == 0 && (5..45).contains(&position)
    };
    for dtype in [DType::F32, DType::BF16] {
        for mask in [mask.clone(), mask.clone().in_stretches_of(16)] {
            let right = attend(&inputs, &mask, dtype);
            assert!(right.iter().flatten().all(|x| x.is_finite()));
            for (which, name) in ["q", "k", "v", "gradient"].into_iter().enumerate() {
                for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                    let mut inputs = inputs.clone();
                    let one = inputs[which].clone();
                    inputs[which] = one.slice_fill([0..1, 1..2, 20..21, 3..4], bad);
                    let found = attend(&inputs, &mask, dtype);
                    assert!(
                        found.iter().flatten().any(|x| !x.is_finite()),
                        "{bad} in {name} is lost ({dtype:?})"
                    );
                    for (result, (found, right)) in found.iter().zip(&right).enumerate() {
                        let heads = found.len() / batch / seq / head_dim;
                        for (i, (found, right)) in found.iter().zip(right).enumerate() {
                            assert!(
                                found == right || is_within(i, heads),
                                "{bad} in {name} reaches result {result} at {i}: {found} in the \
                                 place of {right} ({dtype:?})"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// What a position does not see leaves it as it is within its document too: the
/// positions before a value that is not finite.
#[test]
fn what_is_not_finite_reaches_no_earlier_position() {
    let shape = [1, 1, 20, 4];
    let mask = AttentionMask::causal(None).within_documents(&[vec![12, 8]], 20);
    let mut inputs = [1, 2, 3, 4].map(|seed| numbers(seed, shape, 1.0));
    let right = attend(&inputs, &mask, DType::F32);
    inputs[2] = inputs[2]
        .clone()
        .slice_fill([0..1, 0..1, 7..8, 2..3], f32::INFINITY);
    let [output, ..] = attend(&inputs, &mask, DType::F32);
    for (i, (found, right)) in output.iter().zip(&right[0]).enumerate() {
        let (position, feature) = (i / 4, i % 4);
        let sees = (7..12).contains(&position) && feature == 2;
        assert!(
            if sees { found.is_nan() } else { found == right },
            "{i}: {found}"
        );
    }
}
