//! A frozen layer with a low-rank update: every product is added to the output
//! where it lies.

use burn::backend::{Flex, flex::FlexTensor};

use super::{
    all_f32, contiguous,
    frozen::Straight,
    matrix::{Matrix, add_product, multiplied, unflipped},
    shape, tensor, values,
};
use crate::projection::{
    Layer, LayerGradients, ProjectionKernel, portable_backward, portable_forward,
};

/// Whether all but the weight is f32.
fn is_f32(layer: &Layer<Flex>) -> bool {
    let parts = [&layer.factors, &layer.anchor];
    let factors = parts.into_iter().flatten().flatten();
    all_f32(factors.chain(&layer.bias))
}

/// The shape with another last axis.
fn with_last(mut shape: Vec<usize>, last: usize) -> Vec<usize> {
    if let Some(axis) = shape.last_mut() {
        *axis = last;
    }
    shape
}

/// A factor and its anchor next to each other, so that one product reads its
/// input once for both. Each column is computed as it would be alone.
struct Thin {
    values: Vec<f32>,
    rank: usize,
    width: usize,
}

impl Thin {
    /// From `[n, rank]`, and as much again.
    fn new(factor: &FlexTensor, anchor: Option<&FlexTensor>) -> Self {
        let rank = shape(factor)[1];
        let parts: Vec<FlexTensor> = [Some(factor), anchor]
            .into_iter()
            .flatten()
            .map(|part| contiguous(part.clone()))
            .collect();
        let width = rank * parts.len();
        let mut all = Vec::with_capacity(shape(factor)[0] * width);
        for i in 0..shape(factor)[0] {
            for part in &parts {
                all.extend_from_slice(&values(part)[i * rank..(i + 1) * rank]);
            }
        }
        Self {
            values: all,
            rank,
            width,
        }
    }

    fn width(&self) -> usize {
        self.width
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix::of_rows(&self.values, self.width)
    }

    /// The columns of the factor alone, of a product of `n` such rows.
    fn first_half(&self, product: Vec<f32>) -> Vec<f32> {
        if self.width == self.rank {
            return product;
        }
        let rows = product.chunks_exact(self.width);
        rows.flat_map(|row| &row[..self.rank]).copied().collect()
    }

    /// The halves of `product`, whose columns are those of this; the second is
    /// empty if there is one only.
    fn split<'a>(&self, product: &'a [f32], n_rows: usize) -> [Matrix<'a>; 2] {
        let second = self.width - self.rank;
        let rest = product.get(self.rank..).unwrap_or(&[]);
        [
            Matrix::new(product, n_rows, self.rank, self.width),
            Matrix::new(rest, n_rows, second, self.width),
        ]
    }
}

/// Whether `gemm` forms a product whole before it adds it: not for one row, nor
/// for one or two columns, which it adds one by one, nor for more columns than
/// it takes at a time.
fn subtracts_exactly(n_rows: usize, rank: usize) -> bool {
    n_rows > 1 && (3..=256).contains(&rank)
}

fn transposed(tensor: &FlexTensor) -> FlexTensor {
    tensor.transpose(0, 1)
}

impl ProjectionKernel for Flex {
    fn projection_forward(x: FlexTensor, layer: &Layer<Self>) -> (FlexTensor, Option<FlexTensor>) {
        let weight = Straight::of(&layer.weight).filter(|_| all_f32([&x]) && is_f32(layer));
        let Some(weight) = weight else {
            return portable_forward::<Self>(x, layer);
        };
        let x = contiguous(x);
        let weight = weight.frozen();
        let (d_in, d_out) = (weight.d_in(), weight.d_out());
        let rows = Matrix::of_rows(values(&x), d_in);
        let scale = layer.scale as f32;
        let mut kept = None;
        let mut output = match &layer.factors {
            None => weight.multiplied(rows),
            Some([a, b]) => {
                let n_rows = values(&x).len() / d_in;
                let thin = Thin::new(a, layer.anchor.as_ref().map(|[a0, _]| a0));
                let down = multiplied(scale, rows, thin.matrix());
                let [trained, anchored] = thin.split(&down, n_rows);
                let mut output = multiplied(1.0, trained, Matrix::of(&unflipped(b)));
                if let Some([_, b0]) = &layer.anchor {
                    let b0 = unflipped(b0);
                    let b0 = Matrix::of(&b0);
                    // Computed alike and taken away before anything is added: zero at the start.
                    if subtracts_exactly(n_rows, thin.rank) {
                        add_product(&mut output, -1.0, anchored, b0);
                    } else {
                        let product = multiplied(1.0, anchored, b0);
                        for (output, product) in output.iter_mut().zip(product) {
                            *output -= product;
                        }
                    }
                }
                weight.add_product(&mut output, rows);
                kept = Some(tensor(thin.first_half(down), [n_rows, thin.rank]));
                output
            }
        };
        if let Some(bias) = &layer.bias {
            let bias = contiguous(bias.clone());
            for row in output.chunks_exact_mut(d_out) {
                for (out, bias) in row.iter_mut().zip(values(&bias)) {
                    *out += bias;
                }
            }
        }
        (tensor(output, with_last(shape(&x), d_out)), kept)
    }

    fn projection_backward(
        layer: &Layer<Self>,
        kept: Option<[FlexTensor; 2]>,
        grad: FlexTensor,
        for_x: bool,
    ) -> LayerGradients<Self> {
        let given = kept.iter().flatten().chain([&grad]);
        let weight = Straight::of(&layer.weight).filter(|_| all_f32(given) && is_f32(layer));
        let Some(weight) = weight else {
            return portable_backward::<Self>(layer, kept, grad, for_x);
        };
        let grad = contiguous(grad);
        let weight = weight.frozen();
        let (d_in, d_out) = (weight.d_in(), weight.d_out());
        let grads = Matrix::of_rows(values(&grad), d_out);
        let scale = layer.scale as f32;
        let mut grad_x = for_x.then(|| weight.multiplied_back(grads));
        let mut grad_factors = None;
        if let (Some([a, b]), Some([x, down])) = (&layer.factors, kept) {
            let (x, down) = (contiguous(x), contiguous(down));
            let n_rows = values(&x).len() / d_in;
            let rows = Matrix::of_rows(values(&x), d_in);
            let rank = shape(a)[1];
            let down = Matrix::of_rows(values(&down), rank);
            let grad_b = multiplied(1.0, down.transposed(), grads);
            // Of the anchored half, with its sign, only the part that reaches x.
            let (anchor_a, anchor_b) = match &layer.anchor {
                Some([a0, b0]) if for_x => (Some(a0), Some(b0)),
                _ => (None, None),
            };
            let up = Thin::new(&transposed(b), anchor_b.map(transposed).as_ref());
            let mut grad_down = multiplied(scale, grads, up.matrix());
            if up.width() > rank {
                for row in grad_down.chunks_exact_mut(up.width()) {
                    for value in &mut row[rank..] {
                        *value = -*value;
                    }
                }
            }
            let [trained, _] = up.split(&grad_down, n_rows);
            let grad_a = multiplied(1.0, rows.transposed(), trained);
            if let Some(grad_x) = &mut grad_x {
                let thin = Thin::new(a, anchor_a);
                let both = Matrix::of_rows(&grad_down, up.width());
                add_product(grad_x, 1.0, both, thin.matrix().transposed());
            }
            grad_factors = Some([tensor(grad_a, [d_in, rank]), tensor(grad_b, [rank, d_out])]);
        }
        LayerGradients {
            grad_x: grad_x.map(|grad_x| tensor(grad_x, with_last(shape(&grad), d_in))),
            grad_factors,
        }
    }
}
