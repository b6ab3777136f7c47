//! A frozen layer with a low-rank update: every product is added to the output
//! where it lies.

use burn::backend::{Flex, flex::FlexTensor};

use super::{
    all_f32,
    bf16::{Inputs, Kernel, Side},
    contiguous,
    frozen::{Frozen, Straight},
    matrix::{Matrix, add_product, multiplied, unflipped},
    shape, tensor, values,
};
use crate::{
    Products,
    apart::rows_are_apart,
    projection::{Layer, LayerGradients, ProjectionKernel, portable_backward, portable_forward},
    stored::Host,
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

/// Whether rows are multiplied by themselves: one, or several that are to be
/// computed as if each were.
fn is_single(n_rows: usize) -> bool {
    n_rows <= 1 || rows_are_apart()
}

/// Whether `gemm` forms a product whole before it adds it: not for one row, nor
/// for one or two columns, which it adds one by one, nor for more columns than
/// it takes at a time.
fn subtracts_exactly(n_rows: usize, rank: usize) -> bool {
    !is_single(n_rows) && (3..=256).contains(&rank)
}

fn transposed(tensor: &FlexTensor) -> FlexTensor {
    tensor.transpose(0, 1)
}

/// The weight, if products of several rows with it are of values that are rounded to bf16.
fn rounds(weight: Frozen<'_>, n_rows: usize) -> Option<&Host> {
    match weight {
        Frozen::Packed(host) if host.products == Products::Rounded && !is_single(n_rows) => {
            Some(host)
        }
        Frozen::Packed(_) | Frozen::Dense(_) => None,
    }
}

/// An update whose products are of bf16 values, summed in f32 with those of the weight.
///
/// An anchored one is computed as `s·(x·(A − A₀)·B + x·A₀·(B − B₀))`, which is the same: differences
/// that are small beside the factors keep their digits when they are rounded, and are exactly zero
/// at the start.
struct Update {
    /// `s·A`, or `s·(A − A₀)` beside `s·A₀`: `[d_in, width]`.
    down: Vec<f32>,
    /// `B`, or `B` above `B − B₀`: `[width, d_out]`.
    up: Vec<f32>,
    rank: usize,
    width: usize,
    d_in: usize,
    d_out: usize,
    scale: f32,
}

impl Update {
    fn new([a, b]: &[FlexTensor; 2], anchor: Option<&[FlexTensor; 2]>, scale: f32) -> Self {
        let ([d_in, rank], d_out) = ([shape(a)[0], shape(a)[1]], shape(b)[1]);
        let [a, b] = [a, b].map(|factor| contiguous(factor.clone()));
        let [a, b] = [values(&a), values(&b)];
        let (mut down, mut up) = (Vec::new(), b.to_vec());
        let width = match anchor {
            None => {
                down.extend(a.iter().map(|a| scale * a));
                rank
            }
            Some(anchor) => {
                let [a0, b0] = anchor.each_ref().map(|factor| contiguous(factor.clone()));
                let [a0, b0] = [values(&a0), values(&b0)];
                for (a, a0) in a.chunks_exact(rank).zip(a0.chunks_exact(rank)) {
                    down.extend(a.iter().zip(a0).map(|(a, a0)| scale * (a - a0)));
                    down.extend(a0.iter().map(|a0| scale * a0));
                }
                up.extend(b.iter().zip(b0).map(|(b, b0)| b - b0));
                2 * rank
            }
        };
        Self {
            down,
            up,
            rank,
            width,
            d_in,
            d_out,
            scale,
        }
    }

    fn up(&self) -> Matrix<'_> {
        Matrix::of_rows(&self.up, self.d_out)
    }

    /// The output, and `s·x·A`.
    fn forward(&self, kernel: Option<Kernel>, x: Matrix, host: &Host) -> (Vec<f32>, Vec<f32>) {
        let mut x = Inputs::new(kernel, x, self.width);
        let mut down = x.times(Matrix::of_rows(&self.down, self.width));
        x.append(Matrix::of_rows(&down, self.width));
        let output = x.multiplied(host, &Side::Forward, Some(self.up()));
        if self.width > self.rank {
            // s·x·(A − A₀) + s·x·A₀.
            let rows = down.chunks_exact(self.width);
            down = rows
                .flat_map(|row| {
                    let (moved, anchor) = row.split_at(self.rank);
                    moved
                        .iter()
                        .zip(anchor)
                        .map(|(moved, anchor)| moved + anchor)
                })
                .collect();
        }
        (output, down)
    }

    /// The gradient of x, if it is wanted, and of both factors; from x, `s·x·A` and the gradient
    /// of the output.
    fn backward(
        &self,
        kernel: Option<Kernel>,
        [x, down, grad]: [Matrix; 3],
        host: &Host,
        for_x: bool,
    ) -> (Option<Vec<f32>>, [Vec<f32>; 2]) {
        let n_rows = grad.rows();
        let (mut grad_x, grad_b, grad_down);
        {
            let more = if for_x { self.width } else { 0 };
            let mut grad = Inputs::new(kernel, grad, more);
            grad_b = grad.summed_with(down);
            // g·Bᵀ, beside g·(B − B₀)ᵀ.
            let up = self.up().transposed().to_vec();
            grad_down = grad.times(Matrix::of_rows(&up, self.width));
            grad_x = None;
            if for_x {
                grad.append(Matrix::of_rows(&grad_down, self.width));
                let down = Matrix::of_rows(&self.down, self.width)
                    .transposed()
                    .to_vec();
                let down = Matrix::of_rows(&down, self.d_in);
                let rows = Side::Back(0..self.d_out);
                grad_x = Some(grad.multiplied(host, &rows, Some(down)));
            }
        }
        let trained = Matrix::new(&grad_down, n_rows, self.rank, self.width);
        let turned = Inputs::new(kernel, x, 0).summed_with(trained);
        let turned = Matrix::of_rows(&turned, self.d_in);
        let mut grad_a = turned.transposed().to_vec();
        for grad in &mut grad_a {
            *grad *= self.scale;
        }
        (grad_x, [grad_a, grad_b])
    }
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
        let n_rows = values(&x).len() / d_in;
        let scale = layer.scale as f32;
        let mut kept = None;
        let mut output = match (&layer.factors, rounds(weight, n_rows)) {
            (None, _) => weight.multiplied(rows),
            (Some(factors), Some(host)) => {
                let update = Update::new(factors, layer.anchor.as_ref(), scale);
                let (output, down) = update.forward(Kernel::best(), rows, host);
                kept = Some(tensor(down, [n_rows, update.rank]));
                output
            }
            (Some([a, b]), None) => {
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
        if let (Some(factors), Some([x, down])) = (&layer.factors, &kept)
            && let Some(host) = rounds(weight, grads.rows())
        {
            let (x, down) = (contiguous(x.clone()), contiguous(down.clone()));
            let update = Update::new(factors, layer.anchor.as_ref(), scale);
            let rank = update.rank;
            let given = [
                Matrix::of_rows(values(&x), d_in),
                Matrix::of_rows(values(&down), rank),
                grads,
            ];
            let (grad_x, [grad_a, grad_b]) = update.backward(Kernel::best(), given, host, for_x);
            return LayerGradients {
                grad_x: grad_x.map(|grad_x| tensor(grad_x, with_last(shape(&grad), d_in))),
                grad_factors: Some([tensor(grad_a, [d_in, rank]), tensor(grad_b, [rank, d_out])]),
            };
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use olora_packed::{Format, Packed};

    use super::*;
    use crate::cpu::bf16::tests::{available, some};

    /// The largest difference, of the largest value.
    fn difference(found: &[f32], right: &[f32]) -> f32 {
        assert_eq!(found.len(), right.len());
        let size = right.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
        assert!(size > 0.0, "all zero, which proves nothing");
        let pairs = found.iter().zip(right);
        pairs.fold(0.0_f32, |worst, (x, y)| worst.max((x - y).abs())) / size
    }

    /// Every kernel, and none, which multiplies the same values by `gemm`.
    #[test]
    fn an_update_is_the_same_by_every_kernel_up_to_the_order_of_sums() {
        let (n, d_in, d_out, rank) = (45, 70, 100, 5);
        let host = Host {
            packed: Arc::new(
                Packed::pack(Format::Bf16, [d_out, d_in], &some(d_out * d_in, 1)).unwrap(),
            ),
            products: Products::Rounded,
        };
        for width in [rank, 2 * rank] {
            let update = Update {
                down: some(d_in * width, 2),
                up: some(width * d_out, 3),
                rank,
                width,
                d_in,
                d_out,
                scale: 0.75,
            };
            let (x, grad) = (some(n * d_in, 4), some(n * d_out, 5));
            let run = |kernel| {
                let rows = Matrix::of_rows(&x, d_in);
                let (output, down) = update.forward(kernel, rows, &host);
                let kept = Matrix::of_rows(&down, rank);
                let given = [rows, kept, Matrix::of_rows(&grad, d_out)];
                let (grad_x, [grad_a, grad_b]) = update.backward(kernel, given, &host, true);
                let (none, alone) = update.backward(kernel, given, &host, false);
                assert!(none.is_none());
                assert_eq!(alone, [grad_a.clone(), grad_b.clone()]);
                [output, down.clone(), grad_x.unwrap(), grad_a, grad_b]
            };
            let right = run(None);
            for kernel in available() {
                for (which, (found, right)) in run(Some(kernel)).iter().zip(&right).enumerate() {
                    let difference = difference(found, right);
                    // Where sums differ in their last bits, they may be rounded to another bf16.
                    assert!(
                        difference < 2e-3,
                        "{kernel:?}, {width}, {which}: {difference}"
                    );
                }
            }
        }
    }
}
