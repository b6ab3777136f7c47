//! Operations on packed weights, in each format that a base may have.

use burn::tensor::Tensor;
use olora_model::Dtype;
use olora_operations::{LowRankFactors, PackedTensor, loss, projection};
use olora_packed::{BlockFormat, Format, Packed};

use crate::{
    Bench, Outputs,
    inputs::numbers,
    operations::{backward, gradient, ids},
};

const ROWS: usize = 2;
/// Whole blocks of every format.
const WIDTH: usize = 256;
/// As many as there are token ids.
const D_OUT: usize = 96;
const RANK: usize = 8;

/// A layer in each of the formats that can be made; codes of the others are laid out alike.
macro_rules! layers {
    ($($name:ident: $format:expr),* $(,)?) => {$(
        pub(super) fn $name(bench: &Bench, length: usize) -> Outputs {
            layer(bench, concat!("packed ", stringify!($name)), length, $format.into())
        }
    )*};
}

layers! {
    q4_0: BlockFormat::Q4_0,
    q4_1: BlockFormat::Q4_1,
    q5_0: BlockFormat::Q5_0,
    q5_1: BlockFormat::Q5_1,
    q8_0: BlockFormat::Q8_0,
    q4_k: BlockFormat::Q4K,
    q5_k: BlockFormat::Q5K,
    q6_k: BlockFormat::Q6K,
    nf4: Format::Nf4,
}

fn weight(name: &str, format: Format) -> PackedTensor {
    let values = numbers(name, D_OUT * WIDTH, 0.25);
    #[expect(
        clippy::expect_used,
        reason = "numbers of ours, in a format that can be made, with rows of whole blocks"
    )]
    let packed = Packed::pack(format, [D_OUT, WIDTH], &values).expect("the numbers can be packed");
    PackedTensor::new(packed)
}

/// A frozen layer with an adapter, whose factors are f32.
fn layer(bench: &Bench, name: &str, length: usize, format: Format) -> Outputs {
    let full = Bench {
        dtype: Dtype::F32,
        ..*bench
    };
    let x = bench.variable("packed x", [ROWS, length, WIDTH], 1.0);
    let a = full.variable("packed a", [WIDTH, RANK], 0.25);
    let b = full.variable("packed b", [RANK, D_OUT], 0.25);
    let factors = LowRankFactors {
        a: a.clone(),
        b: b.clone(),
        anchor: None,
        scale: 1.5,
    };
    let weight = weight("packed w", format);
    let output = if bench.composed {
        let dense = Tensor::from_inner(weight.dense(bench.device, bench.dtype.into()));
        projection::composed(x.clone(), dense, None, Some(factors))
    } else {
        projection::project(x.clone(), weight, None, Some(factors))
    };
    backward(bench, name, output, |gradients| {
        vec![
            gradient("x", &x, gradients),
            gradient("a", &a, gradients),
            gradient("b", &b, gradients),
        ]
    })
}

/// Rows of a packed table, each value times one that has a gradient.
pub(super) fn embedding(bench: &Bench, length: usize) -> Outputs {
    let weight = weight("packed table", BlockFormat::Q6K.into());
    let factor = bench.variable("packed factor", [ROWS, length, WIDTH], 1.0);
    let ids = ids(bench, length);
    let rows = if bench.composed {
        let table = weight.dense(bench.device, bench.dtype.into()).transpose();
        burn::tensor::module::embedding(table, ids)
    } else {
        weight.embedding(ids, bench.dtype.into())
    };
    let output = Tensor::from_inner(rows) * factor.clone();
    backward(bench, "packed embedding", output, |gradients| {
        vec![gradient("factor", &factor, gradients)]
    })
}

/// Cross-entropy over a packed vocabulary, at some positions.
pub(super) fn cross_entropy(bench: &Bench, length: usize) -> Outputs {
    let n = ROWS * length;
    let hidden = bench.variable("packed hidden", [n, WIDTH], 1.0);
    let weight = weight("packed output weight", BlockFormat::Q6K.into());
    let targets: Vec<i32> = (0..n).map(|i| (i * 7 % D_OUT) as i32).collect();
    let states = hidden.clone();
    let sum = if bench.composed {
        let dense = Tensor::from_inner(weight.dense(bench.device, bench.dtype.into()));
        loss::composed(states.matmul(dense), &targets, n - 3)
    } else {
        loss::cross_entropy_in_chunks(states, weight, &targets, n - 3, n.div_ceil(3) + 5)
    };
    backward(bench, "packed loss", sum, |gradients| {
        vec![gradient("hidden", &hidden, gradients)]
    })
}
