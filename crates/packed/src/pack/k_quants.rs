//! The formats with blocks of 256 (`quantize_row_q4_K_ref`, `q5_K` and `q6_K` of
//! `ggml-quants.c`): scales by least squares, then scales of scales.
//!
//! The order of operations is the reference's, so that bytes are.

use half::f16;

use super::store;
use crate::blocks::scale_and_least;

/// Below it a group counts as zero (`GROUP_MAX_EPS`).
const LEAST: f32 = 1e-15;

/// Rounds to the nearest integer, halves to even, by the bits of a large number; beyond
/// 2²² something else, which the reference does not define.
fn nearest(value: f32) -> i32 {
    let bits = (value + 12_582_912.0).to_bits().cast_signed();
    (bits & 0x007f_ffff) - 0x0040_0000
}

/// `max(low, min(high, value))`.
fn within(value: i32, low: i32, high: i32) -> i32 {
    value.min(high).max(low)
}

/// Scale and minimum (its negative) of a group, and its quants from 0 to `most`: those of
/// the least squared error, weighted, of several scales (`make_qkx2_quants`).
fn scale_and_minimum(
    values: &[f32; 32],
    weights: &[f32; 32],
    most: i32,
    (begin, steps): (f32, i32),
    quants: &mut [u8],
) -> (f32, f32) {
    let (mut least, mut highest) = (values[0], values[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * values[0];
    for i in 1..32 {
        if values[i] < least {
            least = values[i];
        }
        if values[i] > highest {
            highest = values[i];
        }
        sum_w += weights[i];
        sum_x += weights[i] * values[i];
    }
    if least > 0.0 {
        least = 0.0;
    }
    if highest == least {
        quants.fill(0);
        return (0.0, -least);
    }
    let from = least;
    let factor = most as f32 / (highest - from);
    let mut scale = 1.0 / factor;
    let mut best = 0.0;
    for i in 0..32 {
        let quant = within(nearest(factor * (values[i] - from)), 0, most);
        quants[i] = quant as u8;
        let difference = scale * quant as f32 + least - values[i];
        best += weights[i] * (difference * difference);
    }
    let mut tried = [0_u8; 32];
    for step in 0..=steps {
        // The reference measures from the minimum that is best so far.
        let factor = (begin + 0.1 * step as f32 + most as f32) / (highest - least);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for i in 0..32 {
            let quant = within(nearest(factor * (values[i] - least)), 0, most);
            tried[i] = quant as u8;
            let (weight, quant) = (weights[i], quant as f32);
            sum_l += weight * quant;
            sum_l2 += weight * quant * quant;
            sum_xl += weight * quant * values[i];
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_least = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_least > 0.0 {
                this_least = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let mut error = 0.0;
            for i in 0..32 {
                let difference = this_scale * f32::from(tried[i]) + this_least - values[i];
                error += weights[i] * (difference * difference);
            }
            if error < best {
                quants.copy_from_slice(&tried);
                best = error;
                scale = this_scale;
                least = this_least;
            }
        }
    }
    (scale, -least)
}

/// Scale of a group around zero, and its quants from 0 to 63 (`make_qx_quants` with
/// `nmax` 32 and `rmse_type` 1).
fn scale_around_zero(values: &[f32; 16], quants: &mut [u8]) -> f32 {
    const MOST: i32 = 32;
    let (mut extreme, mut largest) = (0.0, 0.0);
    for &value in values {
        if value.abs() > largest {
            largest = value.abs();
            extreme = value;
        }
    }
    if largest < LEAST {
        quants.fill(0);
        return 0.0;
    }
    let sums = |factor: f32| {
        let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
        for &value in values {
            let quant = within(nearest(factor * value), -MOST, MOST - 1) as f32;
            let weight = value * value;
            sum_lx += weight * value * quant;
            sum_l2 += weight * quant * quant;
        }
        (sum_lx, sum_l2)
    };
    let mut take = |factor: f32| {
        for (quant, &value) in quants.iter_mut().zip(values) {
            *quant = (MOST + within(nearest(factor * value), -MOST, MOST - 1)) as u8;
        }
    };
    let factor = -(MOST as f32) / extreme;
    take(factor);
    let (sum_lx, sum_l2) = sums(factor);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_lx / sum_l2 };
    let mut best = scale * sum_lx;
    for step in (-9..=9).filter(|&step| step != 0) {
        let factor = -(MOST as f32 + 0.1 * step as f32) / extreme;
        let (sum_lx, sum_l2) = sums(factor);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            take(factor);
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
        }
    }
    scale
}

/// Scales, minima and quants of the formats with 4 and 5 bits.
fn with_minima(block: &[f32], most: i32, trials: (f32, i32), output: &mut Vec<u8>) -> [u8; 256] {
    let mut quants = [0; 256];
    let (mut scales, mut minima) = ([0.0; 8], [0.0; 8]);
    let (mut max_scale, mut max_minimum) = (0.0, 0.0);
    let groups = block.as_chunks::<32>().0.iter();
    for (j, (values, quants)) in groups.zip(quants.chunks_exact_mut(32)).enumerate() {
        let mut squares = 0.0;
        for value in values {
            squares += value * value;
        }
        let average = (squares / 32.0).sqrt();
        let weights = values.map(|value| average + value.abs());
        (scales[j], minima[j]) = scale_and_minimum(values, &weights, most, trials, quants);
        if scales[j] > max_scale {
            max_scale = scales[j];
        }
        if minima[j] > max_minimum {
            max_minimum = minima[j];
        }
    }
    let over = |most: f32| if most > 0.0 { 63.0 / most } else { 0.0 };
    let (scale_factor, minimum_factor) = (over(max_scale), over(max_minimum));
    let mut packed = [0_u8; 12];
    for j in 0..8 {
        let scale = (nearest(scale_factor * scales[j]) as u8).min(63);
        let minimum = (nearest(minimum_factor * minima[j]) as u8).min(63);
        if j < 4 {
            packed[j] = scale;
            packed[j + 4] = minimum;
        } else {
            packed[j + 4] = scale & 15 | (minimum & 15) << 4;
            packed[j - 4] |= scale >> 4 << 6;
            packed[j] |= minimum >> 4 << 6;
        }
    }
    store(output, max_scale / 63.0);
    store(output, max_minimum / 63.0);
    output.extend(packed);
    // Quants again, by the scales as they are stored.
    let stored = |value: f32| f16::from_f32(value).to_f32();
    let (scale, minimum) = (stored(max_scale / 63.0), stored(max_minimum / 63.0));
    let groups = block.as_chunks::<32>().0.iter();
    for (j, (values, quants)) in groups.zip(quants.chunks_exact_mut(32)).enumerate() {
        let (factor, offset) = scale_and_least(&packed, j);
        let (factor, offset) = (scale * factor, minimum * offset);
        if factor == 0.0 {
            continue;
        }
        for (quant, value) in quants.iter_mut().zip(values) {
            *quant = within(nearest((value + offset) / factor), 0, most) as u8;
        }
    }
    quants
}

/// Low four bits of two groups side by side.
fn low_bits(quants: &[u8; 256], output: &mut Vec<u8>) {
    for pair in quants.chunks_exact(64) {
        let (low, high) = pair.split_at(32);
        output.extend(low.iter().zip(high).map(|(low, high)| low & 15 | high << 4));
    }
}

pub(super) fn q4_k(block: &[f32], output: &mut Vec<u8>) {
    let quants = with_minima(block, 15, (-1.0, 20), output);
    low_bits(&quants, output);
}

pub(super) fn q5_k(block: &[f32], output: &mut Vec<u8>) {
    let quants = with_minima(block, 31, (-0.5, 15), output);
    let mut fifth = [0_u8; 32];
    for (group, quants) in quants.chunks_exact(32).enumerate() {
        for (fifth, quant) in fifth.iter_mut().zip(quants) {
            *fifth |= (quant >> 4) << group;
        }
    }
    output.extend(fifth);
    low_bits(&quants, output);
}

pub(super) fn q6_k(block: &[f32], output: &mut Vec<u8>) {
    let mut quants = [0; 256];
    let mut scales = [0.0; 16];
    let (mut max_scale, mut largest) = (0.0, 0.0);
    let groups = block.as_chunks::<16>().0.iter();
    for ((values, quants), scale) in groups.zip(quants.chunks_exact_mut(16)).zip(&mut scales) {
        *scale = scale_around_zero(values, quants);
        if scale.abs() > largest {
            largest = scale.abs();
            max_scale = *scale;
        }
    }
    if largest < LEAST {
        output.extend([0; 210]);
        return;
    }
    let factor = -128.0 / max_scale;
    let stored = f16::from_f32(1.0 / factor);
    let scales = scales.map(|scale| nearest(factor * scale).min(127) as i8);
    let groups = block.as_chunks::<16>().0.iter();
    for ((values, quants), scale) in groups.zip(quants.chunks_exact_mut(16)).zip(scales) {
        let scale = stored.to_f32() * f32::from(scale);
        if scale == 0.0 {
            continue;
        }
        for (quant, value) in quants.iter_mut().zip(values) {
            *quant = (32 + within(nearest(value / scale), -32, 31)) as u8;
        }
    }
    let halves = quants.as_chunks::<128>().0;
    for quants in halves {
        for i in 0..64 {
            output.push(quants[i] & 15 | quants[i + 64] << 4);
        }
    }
    for quants in halves {
        for i in 0..32 {
            let two = |quarter: usize| quants[i + 32 * quarter] >> 4 << (2 * quarter);
            output.push(two(0) | two(1) | two(2) | two(3));
        }
    }
    output.extend(scales.map(i8::cast_unsigned));
    output.extend(stored.to_le_bytes());
}
