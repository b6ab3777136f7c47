//! Rotary position embedding.

use std::mem::MaybeUninit;

use burn::backend::{Flex, flex::FlexTensor};

use super::{
    all_f32, by_heads, contiguous, dense_last, rows::build, shape, strided, values,
    vector::vectorised,
};
use crate::rotary::{RotaryKernel, portable_rotate};

/// What is the same for all positions.
#[derive(Clone, Copy)]
struct Sizes {
    seq: usize,
    /// All heads of a position.
    width: usize,
    head_dim: usize,
    pairs: usize,
    /// From one row's table of cosines to the next.
    per_row: usize,
    /// From one row, head and position of the input to the next.
    strides: [usize; 3],
    /// Minus one to turn back.
    sign: f32,
}

impl RotaryKernel for Flex {
    fn rotate(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, back: bool) -> FlexTensor {
        if !all_f32([&x, &cos, &sin]) {
            return portable_rotate::<Self>(x, cos, sin, back);
        }
        let x = dense_last(x);
        let (cos, sin) = (contiguous(cos), contiguous(sin));
        let [batch, heads, seq, head_dim] = [0, 1, 2, 3].map(|axis| shape(&x)[axis]);
        let pairs = head_dim / 2;
        assert_eq!(head_dim, 2 * pairs, "the features of a head come in pairs");
        let (cosines, sines) = (values(&cos), values(&sin));
        // One table for all rows, or one for each.
        let per_row = if shape(&cos)[0] == 1 { 0 } else { seq * pairs };
        let from = strided(&x);
        let strides = [0, 1, 2].map(|axis| x.layout().strides()[axis] as usize);
        let sign = if back { -1.0 } else { 1.0 };
        let width = heads * head_dim;
        let sizes = Sizes {
            seq,
            width,
            head_dim,
            pairs,
            per_row,
            strides,
            sign,
        };
        // One row of the output is one position, all heads of it.
        let fill = |first: usize, room: &mut [MaybeUninit<f32>]| {
            vectorised!(<'a>(
                room: &'a mut [MaybeUninit<f32>],
                from: &'a [f32],
                cosines: &'a [f32],
                sines: &'a [f32],
                first: usize,
                sizes: Sizes,
            ) {
                let Sizes { seq, width, head_dim, pairs, per_row, strides, sign } = sizes;
                for (i, out) in room.chunks_exact_mut(width).enumerate() {
                    let (row, position) = ((first + i) / seq, (first + i) % seq);
                    let table = row * per_row + position * pairs;
                    let (cos, sin) = (&cosines[table..][..pairs], &sines[table..][..pairs]);
                    for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                        let at = row * strides[0] + head * strides[1] + position * strides[2];
                        let (x, y) = from[at..][..head_dim].split_at(pairs);
                        let (out_x, out_y) = out.split_at_mut(pairs);
                        for i in 0..pairs {
                            let sin = sign * sin[i];
                            out_x[i].write(x[i] * cos[i] - y[i] * sin);
                            out_y[i].write(y[i] * cos[i] + x[i] * sin);
                        }
                    }
                }
            });
        };
        // SAFETY: the room is whole rows of `width`, which are whole heads, which are two halves of
        // `pairs`, as asserted: `fill` writes both to their ends.
        let rotated = unsafe { build(batch * seq, width, fill) };
        by_heads(rotated, [batch, heads, seq, head_dim])
    }
}
