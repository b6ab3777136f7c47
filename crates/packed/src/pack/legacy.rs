//! The formats with blocks of 32 (`quantize_row_*_ref` of `ggml-quants.c`).

use super::{inverse, store};

/// The value that is largest without its sign; the first of several.
fn extreme(block: &[f32]) -> f32 {
    let mut most = 0.0_f32;
    let mut extreme = 0.0;
    for &value in block {
        if most < value.abs() {
            most = value.abs();
            extreme = value;
        }
    }
    extreme
}

fn range(block: &[f32]) -> (f32, f32) {
    let mut range = (f32::MAX, -f32::MAX);
    for &value in block {
        if value < range.0 {
            range.0 = value;
        }
        if value > range.1 {
            range.1 = value;
        }
    }
    range
}

/// Low four bits of the block's halves, side by side.
fn nibbles(quants: &[u8; 32], output: &mut Vec<u8>) {
    let (low, high) = quants.split_at(16);
    output.extend(low.iter().zip(high).map(|(low, high)| low & 15 | high << 4));
}

fn fifth_bits(quants: &[u8; 32], output: &mut Vec<u8>) {
    let bits = quants.iter().enumerate();
    let bits = bits.fold(0, |bits, (i, quant)| bits | u32::from(quant >> 4 & 1) << i);
    output.extend(bits.to_le_bytes());
}

/// Quants around zero, which is `zero` when stored.
fn around_zero(block: &[f32], zero: u8, output: &mut Vec<u8>) -> [u8; 32] {
    let scale = extreme(block) / -f32::from(zero);
    let factor = inverse(scale);
    store(output, scale);
    let mut quants = [0; 32];
    for (quant, value) in quants.iter_mut().zip(block) {
        // Truncated; what a factor beyond `f32` makes of it is as good as any, with a scale of zero.
        let rounded = (value * factor + (f32::from(zero) + 0.5)) as i8;
        *quant = rounded.cast_unsigned().min(2 * zero - 1);
    }
    quants
}

/// Quants from the least value on.
fn from_least(block: &[f32], most: u8, output: &mut Vec<u8>) -> [u8; 32] {
    let (least, highest) = range(block);
    let scale = (highest - least) / f32::from(most);
    let factor = inverse(scale);
    store(output, scale);
    store(output, least);
    let mut quants = [0; 32];
    for (quant, value) in quants.iter_mut().zip(block) {
        *quant = (((value - least) * factor + 0.5) as u8).min(most);
    }
    quants
}

pub(super) fn q4_0(block: &[f32], output: &mut Vec<u8>) {
    let quants = around_zero(block, 8, output);
    nibbles(&quants, output);
}

pub(super) fn q4_1(block: &[f32], output: &mut Vec<u8>) {
    let quants = from_least(block, 15, output);
    nibbles(&quants, output);
}

pub(super) fn q5_0(block: &[f32], output: &mut Vec<u8>) {
    let quants = around_zero(block, 16, output);
    fifth_bits(&quants, output);
    nibbles(&quants, output);
}

pub(super) fn q5_1(block: &[f32], output: &mut Vec<u8>) {
    let quants = from_least(block, 31, output);
    fifth_bits(&quants, output);
    nibbles(&quants, output);
}

pub(super) fn q8_0(block: &[f32], output: &mut Vec<u8>) {
    let most = block
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    let scale = most / 127.0;
    let factor = inverse(scale);
    store(output, scale);
    let quants = block.iter().map(|value| (value * factor).round() as i8);
    output.extend(quants.map(i8::cast_unsigned));
}
