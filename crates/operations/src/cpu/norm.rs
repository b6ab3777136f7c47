//! Root-mean-square norm.

use std::mem::MaybeUninit;

use burn::backend::{Flex, flex::FlexTensor};
use rayon::prelude::*;

use super::{
    all_f32, contiguous,
    rows::{build, rows_per_chunk},
    shape, tensor, values,
    vector::{sum, vectorised},
};
use crate::norm::{NormKernel, portable_backward, portable_forward};

impl NormKernel for Flex {
    fn norm_forward(x: FlexTensor, weight: FlexTensor, eps: f64) -> FlexTensor {
        if !all_f32([&x, &weight]) {
            return portable_forward::<Self>(x, weight, eps);
        }
        let (x, weight) = (contiguous(x), contiguous(weight));
        let (all, w) = (values(&x), values(&weight));
        let width = w.len();
        let fill = |first: usize, room: &mut [MaybeUninit<f32>]| {
            let from = &all[first * width..][..room.len()];
            vectorised!(<'a>(
                from: &'a [f32],
                w: &'a [f32],
                room: &'a mut [MaybeUninit<f32>],
                width: usize,
                eps: f64,
            ) {
                for (row, out) in from.chunks_exact(width).zip(room.chunks_exact_mut(width)) {
                    let r = reciprocal_rms(row, eps);
                    for ((out, x), w) in out.iter_mut().zip(row).zip(w) {
                        out.write(x * r * w);
                    }
                }
            });
        };
        // SAFETY: a piece of room and `from` are the same whole rows, and each row, its output and
        // the weight are `width` long: `fill` writes all of the room.
        let output = unsafe { build(all.len() / width.max(1), width, fill) };
        tensor(output, shape(&x))
    }

    fn norm_backward(
        x: FlexTensor,
        weight: FlexTensor,
        eps: f64,
        grad: FlexTensor,
        for_weight: bool,
    ) -> (FlexTensor, Option<FlexTensor>) {
        if !all_f32([&x, &weight, &grad]) {
            return portable_backward::<Self>(x, weight, eps, grad, for_weight);
        }
        let (x, weight, grad) = (contiguous(x), contiguous(weight), contiguous(grad));
        let (all, w, all_grads) = (values(&x), values(&weight), values(&grad));
        let width = w.len();
        let fill = |first: usize, room: &mut [MaybeUninit<f32>]| {
            let here = first * width..first * width + room.len();
            let (from, grads) = (&all[here.clone()], &all_grads[here]);
            vectorised!(<'a>(
                from: &'a [f32],
                w: &'a [f32],
                grads: &'a [f32],
                room: &'a mut [MaybeUninit<f32>],
                width: usize,
                eps: f64,
            ) {
                let rows = from.chunks_exact(width).zip(grads.chunks_exact(width));
                for ((row, grad), out) in rows.zip(room.chunks_exact_mut(width)) {
                    let r = reciprocal_rms(row, eps);
                    let along = sum(width, |i| grad[i] * w[i] * row[i]) * r / width as f32;
                    for (((out, x), g), w) in out.iter_mut().zip(row).zip(grad).zip(w) {
                        out.write((g * w - x * r * along) * r);
                    }
                }
            });
        };
        // SAFETY: as in the forward pass; the gradient's rows are as long, or `here` is not in it.
        let grad_x = unsafe { build(all.len() / width.max(1), width, fill) };
        let grad_weight = for_weight.then(|| {
            let chunk = rows_per_chunk(width) * width;
            let parts: Vec<Vec<f32>> = all
                .par_chunks(chunk)
                .zip(all_grads.par_chunks(chunk))
                .map(|(from, grads)| {
                    vectorised!(
                        <'a>(from: &'a [f32], grads: &'a [f32], width: usize, eps: f64) -> Vec<f32> {
                            weight_part(from, grads, width, eps)
                        }
                    )
                })
                .collect();
            let mut sum = vec![0.0; width];
            for part in parts {
                for (sum, part) in sum.iter_mut().zip(part) {
                    *sum += part;
                }
            }
            tensor(sum, [width])
        });
        (tensor(grad_x, shape(&x)), grad_weight)
    }
}

#[inline(always)]
fn reciprocal_rms(row: &[f32], eps: f64) -> f32 {
    let mean_square = sum(row.len(), |i| row[i] * row[i]) / row.len() as f32;
    1.0 / (mean_square + eps as f32).sqrt()
}

/// `Σ g·x·r` over some rows.
#[inline(always)]
fn weight_part(rows: &[f32], grads: &[f32], width: usize, eps: f64) -> Vec<f32> {
    let mut part = vec![0.0; width];
    for (row, grad) in rows.chunks_exact(width).zip(grads.chunks_exact(width)) {
        let r = reciprocal_rms(row, eps);
        for ((part, x), g) in part.iter_mut().zip(row).zip(grad) {
            *part += g * x * r;
        }
    }
    part
}
