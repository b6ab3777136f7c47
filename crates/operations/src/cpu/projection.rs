//! A frozen layer with a low-rank update: every product is added to the output
//! where it lies.

use burn::backend::{Flex, flex::FlexTensor};

use super::{
    all_f32, contiguous,
    matrix::{Matrix, add_product, multiplied},
    shape, tensor, values,
};
use crate::projection::{
    Layer, LayerGradients, ProjectionKernel, portable_backward, portable_forward,
};

fn is_f32(layer: &Layer<Flex>) -> bool {
    let parts = [&layer.factors, &layer.anchor];
    let factors = parts.into_iter().flatten().flatten();
    all_f32(factors.chain(&layer.bias).chain([&layer.weight]))
}

/// The shape with another last axis.
fn with_last(mut shape: Vec<usize>, last: usize) -> Vec<usize> {
    if let Some(axis) = shape.last_mut() {
        *axis = last;
    }
    shape
}

impl ProjectionKernel for Flex {
    fn projection_forward(x: FlexTensor, layer: &Layer<Self>) -> (FlexTensor, Option<FlexTensor>) {
        if !all_f32([&x]) || !is_f32(layer) {
            return portable_forward::<Self>(x, layer);
        }
        let x = contiguous(x);
        let weight = Matrix::of(&layer.weight);
        let (d_in, d_out) = (weight.transposed().columns(), weight.columns());
        let rows = Matrix::of_rows(values(&x), d_in);
        let scale = layer.scale as f32;
        let mut kept = None;
        let mut output = match &layer.factors {
            None => multiplied(1.0, rows, weight),
            Some([a, b]) => {
                let rank = Matrix::of(a).columns();
                let down = multiplied(scale, rows, Matrix::of(a));
                let mut output = multiplied(1.0, Matrix::of_rows(&down, rank), Matrix::of(b));
                if let Some([a0, b0]) = &layer.anchor {
                    // Computed alike and taken away before anything is added: zero at the start.
                    let rank = Matrix::of(a0).columns();
                    let down = multiplied(scale, rows, Matrix::of(a0));
                    add_product(
                        &mut output,
                        -1.0,
                        Matrix::of_rows(&down, rank),
                        Matrix::of(b0),
                    );
                }
                kept = Some(tensor(down, [values(&x).len() / d_in, rank]));
                add_product(&mut output, 1.0, rows, weight);
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
        if !all_f32(given) || !is_f32(layer) {
            return portable_backward::<Self>(layer, kept, grad, for_x);
        }
        let grad = contiguous(grad);
        let weight = Matrix::of(&layer.weight);
        let (d_in, d_out) = (weight.transposed().columns(), weight.columns());
        let grads = Matrix::of_rows(values(&grad), d_out);
        let scale = layer.scale as f32;
        let mut of_x = for_x.then(|| multiplied(1.0, grads, weight.transposed()));
        let mut of_factors = None;
        if let (Some([a, b]), Some([x, down])) = (&layer.factors, kept) {
            let (x, down) = (contiguous(x), contiguous(down));
            let rank = Matrix::of(a).columns();
            let rows = Matrix::of_rows(values(&x), d_in);
            let of_down = multiplied(scale, grads, Matrix::of(b).transposed());
            let of_down = Matrix::of_rows(&of_down, rank);
            let down = Matrix::of_rows(values(&down), rank);
            let of_b = multiplied(1.0, down.transposed(), grads);
            let of_a = multiplied(1.0, rows.transposed(), of_down);
            if let Some(of_x) = &mut of_x {
                add_product(of_x, 1.0, of_down, Matrix::of(a).transposed());
                if let Some([a0, b0]) = &layer.anchor {
                    let rank = Matrix::of(a0).columns();
                    let of_down = multiplied(scale, grads, Matrix::of(b0).transposed());
                    let of_down = Matrix::of_rows(&of_down, rank);
                    add_product(of_x, -1.0, of_down, Matrix::of(a0).transposed());
                }
            }
            of_factors = Some([tensor(of_a, [d_in, rank]), tensor(of_b, [rank, d_out])]);
        }
        LayerGradients {
            of_x: of_x.map(|of_x| tensor(of_x, with_last(shape(&grad), d_in))),
            of_factors,
        }
    }
}
