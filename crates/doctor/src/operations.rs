//! The operations that training uses, each as the training code calls it.

use burn::{
    module::Param,
    nn::Linear,
    optim::{AdamWConfig, GradientsParams},
    tensor::{DType, Gradients, Int, Tensor, TensorData},
};
use olora_adapter::{Project, to_dtype};
use olora_model::{Dtype, Rotation};
use olora_operations::{
    AttentionMask, LowRankFactors,
    attention::{self, attention},
    likelihood, loss,
    norm::{self, rms_norm},
    projection, rotary,
    swiglu::{self, swiglu},
};
use olora_training::average_and_clip;

use crate::{
    Bench, Formats, Kind, Operation, Outputs,
    inputs::numbers,
    packed,
    tiny::{self, Variant},
};

const ROWS: usize = 2;
const WIDTH: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const WINDOW: usize = 48;
const VOCAB: usize = 96;
const RANK: usize = 8;

const fn operation(name: &'static str, run: fn(&Bench, usize) -> Outputs) -> Operation {
    Operation {
        name,
        kind: Kind::Operation,
        formats: Formats::All,
        base: None,
        length: None,
        run,
    }
}

const fn only(formats: Formats, mut operation: Operation) -> Operation {
    operation.formats = formats;
    operation
}

/// Computing in half precision over weights that are cast where they are used.
const fn held_in_f32(mut operation: Operation) -> Operation {
    operation.formats = Formats::Half;
    operation.base = Some(Dtype::F32);
    operation
}

const fn whole(
    name: &'static str,
    kind: Kind,
    length: Option<usize>,
    run: fn(&Bench, usize) -> Outputs,
) -> Operation {
    Operation {
        name,
        kind,
        formats: Formats::All,
        base: None,
        length,
        run,
    }
}

/// Everything, parts before wholes, so that the first wrong line is the cause.
pub(super) const ALL: &[Operation] = &[
    only(Formats::Half, operation("cast", cast)),
    operation("matmul", matmul),
    operation("embedding", embedding),
    operation("norm", normed),
    operation("rotary", rotated),
    operation("attention", full_attention),
    operation("attention, window", windowed_attention),
    operation("swiglu", gated),
    operation("adapter", adapter),
    operation("loss", cross_entropy),
    operation("log-likelihoods", log_likelihoods),
    operation("packed q4_0", packed::q4_0),
    operation("packed q4_1", packed::q4_1),
    operation("packed q5_0", packed::q5_0),
    operation("packed q5_1", packed::q5_1),
    operation("packed q8_0", packed::q8_0),
    operation("packed q4_k", packed::q4_k),
    operation("packed q5_k", packed::q5_k),
    operation("packed q6_k", packed::q6_k),
    operation("packed nf4", packed::nf4),
    operation("packed embedding", packed::embedding),
    operation("packed loss", packed::cross_entropy),
    only(Formats::Full, operation("clip", clip)),
    only(Formats::Full, operation("adamw", adamw)),
    whole("model", Kind::Model, None, |bench, length| {
        tiny::loss_and_gradients(bench, "model", length, Variant::ADAPTED)
    }),
    whole("model, window", Kind::Model, None, |bench, length| {
        let windowed = Variant::ADAPTED.with_window(WINDOW);
        tiny::loss_and_gradients(bench, "model, window", length, windowed)
    }),
    whole("model, recomputed", Kind::Model, None, |bench, length| {
        let recomputed = Variant::RECOMPUTED;
        tiny::loss_and_gradients(bench, "model, recomputed", length, recomputed)
    }),
    whole("model, packed", Kind::Model, None, |bench, length| {
        tiny::loss_and_gradients(bench, "model, packed", length, Variant::PACKED)
    }),
    only(
        Formats::Full,
        whole("model, all weights", Kind::Model, None, |bench, length| {
            tiny::loss_and_gradients(bench, "model, all weights", length, Variant::FULL)
        }),
    ),
    held_in_f32(whole(
        "model, f32 base",
        Kind::Model,
        None,
        |bench, length| tiny::loss_and_gradients(bench, "model, f32 base", length, Variant::FULL),
    )),
    whole("training", Kind::Training, Some(64), |bench, length| {
        tiny::losses(bench, "training", length, 10, Variant::ADAPTED)
    }),
];

/// What `train` looks at before its first step, if an adapter trains.
pub(super) const QUICK: &[Operation] = &[
    whole("model", Kind::Model, Some(64), |bench, length| {
        let variant = Variant::ADAPTED.with_window(WINDOW);
        tiny::loss_and_gradients(bench, "model", length, variant)
    }),
    whole("training", Kind::Training, Some(64), |bench, length| {
        tiny::losses(bench, "training", length, 3, Variant::ADAPTED)
    }),
];

/// The same, if every weight trains.
pub(super) const QUICK_FULL: &[Operation] = &[
    whole(
        "model, all weights",
        Kind::Model,
        Some(64),
        |bench, length| {
            tiny::loss_and_gradients(bench, "model, all weights", length, Variant::FULL)
        },
    ),
    whole("training", Kind::Training, Some(64), |bench, length| {
        tiny::losses(bench, "training", length, 3, Variant::FULL)
    }),
];

/// A tensor's name and its values on the host.
pub(super) fn read<const D: usize>(name: &str, tensor: Tensor<D>) -> (String, Vec<f32>) {
    let n = tensor.shape().num_elements();
    let data = to_dtype(tensor.without_autodiff().reshape([n]), DType::F32).into_data();
    #[expect(
        clippy::expect_used,
        reason = "device failures are caught by whoever runs an operation"
    )]
    let values = data
        .try_to_vec::<f32>()
        .expect("the values were read as f32");
    (name.to_owned(), values)
}

/// Runs backward from `output`, each element of which counts as `weights` say,
/// and reads it and the gradients of `variables`.
pub(super) fn backward<const D: usize>(
    bench: &Bench,
    operation: &str,
    output: Tensor<D>,
    gradients: impl FnOnce(&Gradients) -> Outputs,
) -> Outputs {
    let output = bench.faulty(operation, output);
    let values = read("output", output.clone());
    // In f32, and not all alike: a sum would hide an error that is the same everywhere.
    let weights = bench.constant::<D>("weights of the output", output.dims(), 1.0);
    let weights = Tensor::from_inner(to_dtype(weights, DType::F32));
    let scalar = (to_dtype(output, DType::F32) * weights).sum();
    let mut outputs = vec![values];
    outputs.extend(gradients(&scalar.backward()));
    outputs
}

pub(super) fn gradient<const D: usize>(
    name: &str,
    variable: &Tensor<D>,
    gradients: &Gradients,
) -> (String, Vec<f32>) {
    match variable.grad(gradients) {
        Some(gradient) => read(&format!("gradient of {name}"), gradient),
        None => (format!("gradient of {name}, which is missing"), Vec::new()),
    }
}

fn cast(bench: &Bench, length: usize) -> Outputs {
    let x = bench.variable("cast", [ROWS, length, WIDTH], 4.0);
    // There and back, with arithmetic in between, so that no cast can be left out.
    let other = to_dtype(x.clone(), DType::F32).mul_scalar(1.1);
    let output = to_dtype(other, bench.dtype.into()).mul_scalar(0.9);
    backward(bench, "cast", output, |gradients| {
        vec![gradient("x", &x, gradients)]
    })
}

fn matmul(bench: &Bench, length: usize) -> Outputs {
    let x = bench.variable("matmul x", [ROWS, length, WIDTH], 1.0);
    let w = bench.variable("matmul w", [WIDTH, 3 * WIDTH / 2], 0.25);
    let output = burn::tensor::module::linear(x.clone(), w.clone(), None);
    backward(bench, "matmul", output, |gradients| {
        vec![gradient("x", &x, gradients), gradient("w", &w, gradients)]
    })
}

fn embedding(bench: &Bench, length: usize) -> Outputs {
    let table = bench.variable("embedding", [VOCAB, WIDTH], 1.0);
    let ids = ids(bench, length);
    let output = burn::tensor::module::embedding(table.clone(), ids);
    backward(bench, "embedding", output, |gradients| {
        vec![gradient("table", &table, gradients)]
    })
}

/// Row-major token ids, some of them repeated.
pub(super) fn ids(bench: &Bench, length: usize) -> Tensor<2, Int> {
    let ids: Vec<i32> = numbers("ids", ROWS * length, 1.0)
        .iter()
        .map(|x| ((x + 1.0) * 64.0) as i32 % VOCAB as i32)
        .collect();
    Tensor::from_data(TensorData::new(ids, [ROWS, length]), bench.device)
}

fn normed(bench: &Bench, length: usize) -> Outputs {
    let x = bench.variable("norm x", [ROWS, length, WIDTH], 2.0);
    let weight = bench.variable("norm weight", [WIDTH], 1.0);
    let eps = 1e-5;
    let output = if bench.composed {
        norm::composed(x.clone(), weight.clone(), eps)
    } else {
        rms_norm(x.clone(), weight.clone(), eps)
    };
    backward(bench, "norm", output, |gradients| {
        vec![
            gradient("x", &x, gradients),
            gradient("weight", &weight, gradients),
        ]
    })
}

fn rotation(bench: &Bench, length: usize) -> Rotation {
    let pairs = HEAD_DIM / 2;
    let frequencies: Vec<f32> = (0..pairs)
        .map(|pair| 10_000_f32.powf(-(pair as f32) / pairs as f32))
        .collect();
    Rotation::new(&frequencies, 0, length, bench.dtype.into(), bench.device)
}

fn rotated(bench: &Bench, length: usize) -> Outputs {
    let x = bench.variable("rotary", [ROWS, HEADS, length, HEAD_DIM], 1.0);
    let rotation = rotation(bench, length);
    let output = if bench.composed {
        let [cos, sin] = rotation.tables();
        rotary::composed(x.clone(), cos, sin)
    } else {
        rotation.apply(x.clone())
    };
    backward(bench, "rotary", output, |gradients| {
        vec![gradient("x", &x, gradients)]
    })
}

fn full_attention(bench: &Bench, length: usize) -> Outputs {
    attend(bench, "attention", length, None)
}

fn windowed_attention(bench: &Bench, length: usize) -> Outputs {
    attend(bench, "attention, window", length, Some(WINDOW))
}

fn attend(bench: &Bench, name: &str, length: usize, window: Option<usize>) -> Outputs {
    let q = bench.variable("queries", [ROWS, HEADS, length, HEAD_DIM], 2.0);
    let k = bench.variable("keys", [ROWS, KV_HEADS, length, HEAD_DIM], 2.0);
    let v = bench.variable("values", [ROWS, KV_HEADS, length, HEAD_DIM], 1.0);
    // Stretches that do not divide the length, so that more than one is looked at.
    let mask = AttentionMask::causal(window).in_stretches_of(length.div_ceil(3));
    let (queries, keys, values) = (q.clone(), k.clone(), v.clone());
    let output = if bench.composed {
        attention::composed(queries, keys, values, &mask)
    } else {
        attention(queries, keys, values, &mask)
    };
    backward(bench, name, output, |gradients| {
        vec![
            gradient("queries", &q, gradients),
            gradient("keys", &k, gradients),
            gradient("values", &v, gradients),
        ]
    })
}

fn gated(bench: &Bench, length: usize) -> Outputs {
    let gate = bench.variable("gate", [ROWS, length, WIDTH], 4.0);
    let up = bench.variable("up", [ROWS, length, WIDTH], 1.0);
    let output = if bench.composed {
        swiglu::composed(gate.clone(), up.clone())
    } else {
        swiglu(gate.clone(), up.clone())
    };
    backward(bench, "swiglu", output, |gradients| {
        vec![
            gradient("gate", &gate, gradients),
            gradient("up", &up, gradients),
        ]
    })
}

/// A frozen layer with an anchored adapter, whose factors are f32 whatever the
/// layer's dtype.
fn adapter(bench: &Bench, length: usize) -> Outputs {
    let full = Bench {
        dtype: Dtype::F32,
        ..*bench
    };
    let (d_in, d_out) = (WIDTH, 3 * WIDTH / 2);
    let x = bench.variable("adapter x", [ROWS, length, d_in], 1.0);
    let constant =
        |name: &str, shape: [usize; 2]| Tensor::from_inner(full.constant(name, shape, 0.25));
    let a = full.variable("adapter a", [d_in, RANK], 0.25);
    let b = full.variable("adapter b", [RANK, d_out], 0.25);
    let factors = LowRankFactors {
        a: a.clone(),
        b: b.clone(),
        anchor: Some([
            constant("adapter a0", [d_in, RANK]),
            constant("adapter b0", [RANK, d_out]),
        ]),
        scale: 1.5,
    };
    let weight = Tensor::from_inner(bench.constant("adapter w", [d_in, d_out], 0.25));
    let output = if bench.composed {
        projection::composed(x.clone(), weight, None, Some(factors))
    } else {
        projection::project(x.clone(), weight, None, Some(factors))
    };
    backward(bench, "adapter", output, |gradients| {
        vec![
            gradient("x", &x, gradients),
            gradient("a", &a, gradients),
            gradient("b", &b, gradients),
        ]
    })
}

/// Cross-entropy at some positions, the rest padding.
fn cross_entropy(bench: &Bench, length: usize) -> Outputs {
    let n = ROWS * length;
    let hidden = bench.variable("hidden", [n, WIDTH], 2.0);
    let weight = bench.variable("output weight", [WIDTH, VOCAB], 0.5);
    let targets: Vec<i32> = (0..n).map(|i| (i * 7 % VOCAB) as i32).collect();
    let (states, projection) = (hidden.clone(), weight.clone());
    let sum = if bench.composed {
        loss::composed(states.matmul(projection), &targets, n - 3)
    } else {
        loss::cross_entropy_in_chunks(states, projection, &targets, n - 3, n.div_ceil(3) + 5)
    };
    backward(bench, "loss", sum, |gradients| {
        vec![
            gradient("hidden", &hidden, gradients),
            gradient("weight", &weight, gradients),
        ]
    })
}

/// The log-likelihood of each token, every one with a gradient of its own.
fn log_likelihoods(bench: &Bench, length: usize) -> Outputs {
    let n = ROWS * length;
    let hidden = bench.variable("hidden", [n, WIDTH], 2.0);
    let weight = bench.variable("output weight", [WIDTH, VOCAB], 0.5);
    let targets: Vec<i32> = (0..n).map(|i| (i * 7 % VOCAB) as i32).collect();
    let (states, projection) = (hidden.clone(), weight.clone());
    let of_tokens = if bench.composed {
        likelihood::composed(states.matmul(projection), &targets)
    } else {
        let rows = n.div_ceil(3) + 5;
        likelihood::token_log_likelihoods_in_chunks(states, projection, &targets, rows)
    };
    backward(bench, "log-likelihoods", of_tokens, |gradients| {
        vec![
            gradient("hidden", &hidden, gradients),
            gradient("weight", &weight, gradients),
        ]
    })
}

/// One trained layer, and its gradients after a backward pass.
fn layer_and_gradients(bench: &Bench, name: &str, length: usize) -> (Linear, GradientsParams) {
    let layer = Linear {
        weight: Param::from_tensor(bench.variable("layer", [WIDTH, WIDTH], 0.25)),
        bias: Some(Param::from_tensor(bench.variable("bias", [WIDTH], 0.25))),
    };
    let gradients = layer_gradients(bench, name, length, &layer);
    (layer, gradients)
}

fn layer_gradients(bench: &Bench, name: &str, length: usize, layer: &Linear) -> GradientsParams {
    let x = Tensor::from_inner(bench.constant::<3>("layer x", [ROWS, length, WIDTH], 1.0));
    let output = bench.faulty(name, layer.project(x));
    let loss = (output.clone() * output).mean();
    GradientsParams::from_grads(loss.backward(), layer)
}

fn clip(bench: &Bench, length: usize) -> Outputs {
    let (layer, mut gradients) = layer_and_gradients(bench, "clip", length);
    let Some(norm) = average_and_clip(&layer, &mut gradients, 2.0, 0.01) else {
        return Vec::new();
    };
    let mut outputs = vec![read("norm", norm)];
    if let Some(gradient) = gradients.get::<2>(layer.weight.id) {
        outputs.push(read("clipped gradient", gradient));
    }
    outputs
}

/// Three updates.
fn adamw(bench: &Bench, length: usize) -> Outputs {
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.1).init();
    let (mut layer, mut gradients) = layer_and_gradients(bench, "", length);
    // Adam forgives a gradient that is too large everywhere; this it does not.
    let rate = if bench.fault == Some("adamw") {
        0.0125
    } else {
        0.01
    };
    let before = read("before", layer.weight.val()).1;
    for _ in 0..3 {
        layer = optimizer.step(rate, layer, gradients);
        gradients = layer_gradients(bench, "", length, &layer);
    }
    let after = read("after", layer.weight.val()).1;
    let moved = before.iter().zip(&after).map(|(x, y)| y - x).collect();
    vec![("update".to_owned(), moved)]
}
