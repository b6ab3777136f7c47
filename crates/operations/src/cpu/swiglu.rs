//! The gate of the feed-forward network.

use std::mem::MaybeUninit;

use burn::backend::{Flex, flex::FlexTensor};

use super::{
    all_f32, contiguous,
    rows::{build, build_two},
    shape, tensor, values,
    vector::{exp, vectorised},
};
use crate::swiglu::{SwigluKernel, portable_backward, portable_forward};

type Room = [MaybeUninit<f32>];

impl SwigluKernel for Flex {
    fn swiglu_forward(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        if !all_f32([&gate, &up]) {
            return portable_forward::<Self>(gate, up);
        }
        let (gate, up) = (contiguous(gate), contiguous(up));
        let (gates, ups) = (values(&gate), values(&up));
        let fill = |first: usize, room: &mut Room| {
            let (gates, ups) = (&gates[first..][..room.len()], &ups[first..][..room.len()]);
            vectorised!(<'a>(room: &'a mut Room, gates: &'a [f32], ups: &'a [f32]) {
                for ((out, gate), up) in room.iter_mut().zip(gates).zip(ups) {
                    out.write(gate / (1.0 + exp(-gate)) * up);
                }
            });
        };
        // SAFETY: gates and ups are cut to the length of the room, and all three gone through.
        let output = unsafe { build(gates.len(), 1, fill) };
        tensor(output, shape(&gate))
    }

    fn swiglu_backward(
        gate: FlexTensor,
        up: FlexTensor,
        grad: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        if !all_f32([&gate, &up, &grad]) {
            return portable_backward::<Self>(gate, up, grad);
        }
        let (gate, up, grad) = (contiguous(gate), contiguous(up), contiguous(grad));
        let (gates, ups, grads) = (values(&gate), values(&up), values(&grad));
        let fill = |first: usize, grad_gate: &mut Room, grad_up: &mut Room| {
            let n = grad_gate.len();
            let (gates, ups) = (&gates[first..][..n], &ups[first..][..n]);
            let grads = &grads[first..][..n];
            vectorised!(<'a>(
                grad_gate: &'a mut Room,
                grad_up: &'a mut Room,
                gates: &'a [f32],
                ups: &'a [f32],
                grads: &'a [f32],
            ) {
                let rooms = grad_gate.iter_mut().zip(grad_up.iter_mut());
                let given = gates.iter().zip(ups).zip(grads);
                for ((grad_gate, grad_up), ((gate, up), grad)) in rooms.zip(given) {
                    let sigma = 1.0 / (1.0 + exp(-gate));
                    let active = gate * sigma;
                    grad_up.write(grad * active);
                    grad_gate.write(grad * up * (sigma + active * (1.0 - sigma)));
                }
            });
        };
        // SAFETY: both rooms are of one length, gates, ups and gradients are cut to it, and all five
        // gone through.
        let (grad_gate, grad_up) = unsafe { build_two(gates.len(), 1, fill) };
        let shape = shape(&gate);
        (tensor(grad_gate, shape.clone()), tensor(grad_up, shape))
    }
}
