//! Packed matrices in every format, and numbers.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file takes what it needs"
)]

use burn::tensor::{DType, Device, Tensor, TensorData};
use olora_packed::{Affine, BlockFormat, Bytes, Format, Packed, ScaleType};

pub fn device() -> Device {
    Device::flex().autodiff()
}

/// `n` numbers between -1 and 1, different for every `seed`.
pub fn some(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// Numbers between −`size` and `size`, different for every `seed`.
pub fn numbers<const D: usize>(seed: u32, shape: [usize; D], size: f32) -> Tensor<D> {
    let values = some(seed, shape.iter().product());
    let values: Vec<f32> = values.into_iter().map(|value| value * size).collect();
    Tensor::from_data(TensorData::new(values, shape), (&device(), DType::F32))
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.without_autodiff().into_data().try_to_vec().unwrap()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Every format, affine ones with both numbers of bits.
pub fn all_formats() -> Vec<Format> {
    let affine = |bits, group, scales| Format::Affine(Affine::new(bits, group, scales).unwrap());
    let mut all: Vec<Format> = BlockFormat::ALL.into_iter().map(Format::from).collect();
    all.extend([
        Format::Nf4,
        Format::Nf4Double,
        affine(4, 64, ScaleType::F16),
        affine(8, 32, ScaleType::Bf16),
        affine(4, 32, ScaleType::F32),
    ]);
    all
}

/// A matrix that the crate makes.
pub fn made(format: impl Into<Format>, shape: [usize; 2]) -> Packed {
    Packed::pack(format, shape, &some(7, shape[0] * shape[1])).unwrap()
}

/// A matrix in any format: those that are only read, of bytes.
pub fn packed(format: Format, [rows, columns]: [usize; 2]) -> Packed {
    let random = |n: usize, seed: u32| -> Vec<u8> {
        let values = some(seed, n).into_iter();
        values.map(|value| (value * 128.0) as i8 as u8).collect()
    };
    // f16 and bf16 of both signs, about 0.01.
    let halves = |n: usize, seed: u32, exponent: u8| -> Vec<u8> {
        let mut bytes = random(2 * n, seed);
        for half in bytes.as_chunks_mut::<2>().0 {
            half[1] = half[1] & 0x83 | exponent;
        }
        bytes
    };
    let scales_at = match format {
        Format::Blocks(BlockFormat::Q2K) => vec![80, 82],
        Format::Blocks(BlockFormat::Q3K) => vec![108],
        Format::Blocks(BlockFormat::Q8K) => vec![],
        Format::Affine(affine) => {
            let groups = rows * columns / affine.group();
            let quants = Bytes::from(random(rows * columns * affine.bits() / 8, 1));
            let of = |seed| match affine.scales() {
                ScaleType::F16 => halves(groups, seed, 0x20),
                ScaleType::Bf16 => halves(groups, seed, 0x3c),
                ScaleType::F32 => {
                    let values = some(seed, groups).into_iter();
                    values
                        .flat_map(|value| (value * 0.01).to_le_bytes())
                        .collect()
                }
            };
            let [scales, biases] = [of(2), of(3)].map(Bytes::from);
            return Packed::from_affine(affine, [rows, columns], quants, scales, biases).unwrap();
        }
        _ => return made(format, [rows, columns]),
    };
    let Format::Blocks(block) = format else {
        unreachable!()
    };
    let n = rows * columns / block.block_values();
    let mut bytes = random(n * block.block_bytes(), 1);
    let scales = halves(2 * n, 2, 0x20);
    for (i, block) in bytes.chunks_exact_mut(block.block_bytes()).enumerate() {
        for at in &scales_at {
            block[*at..at + 2].copy_from_slice(&scales[2 * i..][..2]);
        }
        if scales_at.is_empty() {
            block[..4].copy_from_slice(&(0.001 + i as f32 * 1e-4).to_le_bytes());
        }
    }
    Packed::from_blocks(block, [rows, columns], Bytes::from(bytes)).unwrap()
}
