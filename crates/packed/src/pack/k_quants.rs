//! The formats with blocks of 256 (`quantize_row_q4_K_ref`, `q5_K` and `q6_K` of
//! `ggml-quants.c`): scales by least squares, then scales of scales.
//!
//! The order of operations is the reference's, so that bytes are.

use half::f16;

use super::store;
use crate::{
    blocks::scale_and_least,
    vector::{Work, dispatch},
};

/// Below it a group counts as zero (`GROUP_MAX_EPS`).
const LEAST: f32 = 1e-15;

/// Rounds to the nearest integer, halves to even, by the bits of a large number; beyond
/// 2²² something else, which the reference does not define.
#[inline(always)]
fn nearest(value: f32) -> i32 {
    let bits = (value + 12_582_912.0).to_bits().cast_signed();
    (bits & 0x007f_ffff) - 0x0040_0000
}

/// `max(low, min(high, value))`.
#[inline(always)]
fn within(value: i32, low: i32, high: i32) -> i32 {
    value.min(high).max(low)
}

/// A number for each of a block's eight groups of 32, side by side: a group's sums are in the
/// order of the reference, and processors add up those of all groups at once.
type Eight = [f32; 8];

/// What is found for each group (`make_qkx2_quants`).
struct Fit {
    scale: Eight,
    /// The minimum's negative.
    minimum: Eight,
    /// What gives the quants: `nearest(factor * (value - from))`.
    factor: Eight,
    from: Eight,
}

/// How much each value counts in its group.
#[inline(always)]
fn weights(values: &[Eight; 32]) -> [Eight; 32] {
    let mut squares = [0.0; 8];
    for values in values {
        for j in 0..8 {
            squares[j] += values[j] * values[j];
        }
    }
    let mut average = [0.0; 8];
    for j in 0..8 {
        average[j] = (squares[j] / 32.0).sqrt();
    }
    let mut weights = [[0.0; 8]; 32];
    for (weights, values) in weights.iter_mut().zip(values) {
        for j in 0..8 {
            weights[j] = average[j] + values[j].abs();
        }
    }
    weights
}

/// Scale and minimum of each group for quants from 0 to `most`: those of the least squared
/// error, weighted, of several scales.
#[inline(always)]
fn scales_and_minima(values: &[Eight; 32], most: i32, (begin, steps): (f32, i32)) -> Fit {
    let weights = weights(values);
    let (mut least, mut highest) = (values[0], values[0]);
    let mut sum_w = weights[0];
    let mut sum_x = [0.0; 8];
    for j in 0..8 {
        sum_x[j] = sum_w[j] * values[0][j];
    }
    for (values, weights) in values.iter().zip(&weights).skip(1) {
        for j in 0..8 {
            least[j] = if values[j] < least[j] {
                values[j]
            } else {
                least[j]
            };
            highest[j] = if values[j] > highest[j] {
                values[j]
            } else {
                highest[j]
            };
            sum_w[j] += weights[j];
            sum_x[j] += weights[j] * values[j];
        }
    }
    let mut is_flat = [false; 8];
    let (mut factor, mut scale, mut best) = ([0.0; 8], [0.0; 8], [0.0; 8]);
    for j in 0..8 {
        least[j] = if least[j] > 0.0 { 0.0 } else { least[j] };
        is_flat[j] = highest[j] == least[j];
        factor[j] = most as f32 / (highest[j] - least[j]);
        scale[j] = 1.0 / factor[j];
    }
    let mut from = least;
    for (values, weights) in values.iter().zip(&weights) {
        for j in 0..8 {
            let quant = within(nearest(factor[j] * (values[j] - least[j])), 0, most);
            let difference = scale[j] * quant as f32 + least[j] - values[j];
            best[j] += weights[j] * (difference * difference);
        }
    }
    let mut tried = [[0.0; 8]; 32];
    for step in 0..=steps {
        // The reference measures from the minimum that is best so far.
        let mut this_factor = [0.0; 8];
        for j in 0..8 {
            this_factor[j] = (begin + 0.1 * step as f32 + most as f32) / (highest[j] - least[j]);
        }
        let (mut sum_l, mut sum_l2, mut sum_xl) = ([0.0; 8], [0.0; 8], [0.0; 8]);
        for ((values, weights), tried) in values.iter().zip(&weights).zip(&mut tried) {
            for j in 0..8 {
                let quant = within(nearest(this_factor[j] * (values[j] - least[j])), 0, most);
                let (weight, quant) = (weights[j], quant as f32);
                tried[j] = quant;
                sum_l[j] += weight * quant;
                sum_l2[j] += weight * quant * quant;
                sum_xl[j] += weight * quant * values[j];
            }
        }
        let (mut this_scale, mut this_least) = ([0.0; 8], [0.0; 8]);
        let mut determinant = [0.0; 8];
        for j in 0..8 {
            determinant[j] = sum_w[j] * sum_l2[j] - sum_l[j] * sum_l[j];
            let scale = (sum_w[j] * sum_xl[j] - sum_x[j] * sum_l[j]) / determinant[j];
            let minimum = (sum_l2[j] * sum_x[j] - sum_l[j] * sum_xl[j]) / determinant[j];
            let above = minimum > 0.0;
            this_least[j] = if above { 0.0 } else { minimum };
            this_scale[j] = if above { sum_xl[j] / sum_l2[j] } else { scale };
        }
        let mut error = [0.0; 8];
        for ((values, weights), tried) in values.iter().zip(&weights).zip(&tried) {
            for j in 0..8 {
                let difference = this_scale[j] * tried[j] + this_least[j] - values[j];
                error[j] += weights[j] * (difference * difference);
            }
        }
        for j in 0..8 {
            let is_better = determinant[j] > 0.0 && error[j] < best[j];
            best[j] = if is_better { error[j] } else { best[j] };
            factor[j] = if is_better { this_factor[j] } else { factor[j] };
            from[j] = if is_better { least[j] } else { from[j] };
            scale[j] = if is_better { this_scale[j] } else { scale[j] };
            least[j] = if is_better { this_least[j] } else { least[j] };
        }
    }
    // In a group that is zero, or constant and negative, there was nothing to be found: what is in its
    // place is of divisions by zero.
    let mut minimum = [0.0; 8];
    for j in 0..8 {
        scale[j] = if is_flat[j] { 0.0 } else { scale[j] };
        factor[j] = if is_flat[j] { 0.0 } else { factor[j] };
        from[j] = if is_flat[j] { 0.0 } else { from[j] };
        minimum[j] = if is_flat[j] { -highest[j] } else { -least[j] };
    }
    Fit {
        scale,
        minimum,
        factor,
        from,
    }
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

/// A block in the formats with 4 and 5 bits.
struct WithMinima<'a> {
    values: &'a [f32; 256],
    most: i32,
    trials: (f32, i32),
}

/// Scales of scales and minima, those themselves in 6 bits, and quants.
struct Packed {
    scale: f32,
    minimum: f32,
    scales: [u8; 12],
    quants: [u8; 256],
}

impl Work for WithMinima<'_> {
    type Output = Packed;

    #[inline(always)]
    fn plain(self) -> Packed {
        let groups = self.values.as_chunks::<32>().0;
        let mut turned = [[0.0; 8]; 32];
        for (j, group) in groups.iter().enumerate() {
            for (turned, value) in turned.iter_mut().zip(group) {
                turned[j] = *value;
            }
        }
        let fit = scales_and_minima(&turned, self.most, self.trials);
        let (mut max_scale, mut max_minimum) = (0.0, 0.0);
        for j in 0..8 {
            if fit.scale[j] > max_scale {
                max_scale = fit.scale[j];
            }
            if fit.minimum[j] > max_minimum {
                max_minimum = fit.minimum[j];
            }
        }
        let scale_factor = if max_scale > 0.0 {
            63.0 / max_scale
        } else {
            0.0
        };
        let minimum_factor = if max_minimum > 0.0 {
            63.0 / max_minimum
        } else {
            0.0
        };
        let mut packed = [0_u8; 12];
        for j in 0..8 {
            let scale = (nearest(scale_factor * fit.scale[j]) as u8).min(63);
            let minimum = (nearest(minimum_factor * fit.minimum[j]) as u8).min(63);
            if j < 4 {
                packed[j] = scale;
                packed[j + 4] = minimum;
            } else {
                packed[j + 4] = scale & 15 | (minimum & 15) << 4;
                packed[j - 4] |= scale >> 4 << 6;
                packed[j] |= minimum >> 4 << 6;
            }
        }
        let (scale, minimum) = (max_scale / 63.0, max_minimum / 63.0);
        // Quants by the scales as they are stored.
        let stored = |value: f32| f16::from_f32(value).to_f32();
        let (stored_scale, stored_minimum) = (stored(scale), stored(minimum));
        let mut quants = [0; 256];
        let outputs = quants.as_chunks_mut::<32>().0;
        for (j, (values, quants)) in groups.iter().zip(outputs).enumerate() {
            let (factor, offset) = scale_and_least(&packed, j);
            let (factor, offset) = (stored_scale * factor, stored_minimum * offset);
            for i in 0..32 {
                // A scale that became zero leaves the quants of the search.
                let scaled = if factor == 0.0 {
                    fit.factor[j] * (values[i] - fit.from[j])
                } else {
                    (values[i] + offset) / factor
                };
                quants[i] = within(nearest(scaled), 0, self.most) as u8;
            }
        }
        Packed {
            scale,
            minimum,
            scales: packed,
            quants,
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run<S: crate::x86::Sixteen>(self, _: S) -> Packed {
        self.plain()
    }
}

/// Writes scales and minima; the quants.
fn with_minima(block: &[f32], most: i32, trials: (f32, i32), output: &mut Vec<u8>) -> [u8; 256] {
    let Some(values) = block.first_chunk() else {
        return [0; 256];
    };
    let made = dispatch(WithMinima {
        values,
        most,
        trials,
    });
    store(output, made.scale);
    store(output, made.minimum);
    output.extend(made.scales);
    made.quants
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::every_way;

    #[test]
    fn every_processor_makes_the_same() {
        // Groups that are flat, constant, subnormal when stored, and any.
        let values: [f32; 256] = std::array::from_fn(|i| match i / 32 {
            0 => 0.0,
            1 => -0.25,
            2 => 0.25,
            3 => (i as f32).sin() * 1e-9,
            group => (i as f32 * 0.7).sin() * group as f32,
        });
        for (most, trials) in [(15, (-1.0, 20)), (31, (-0.5, 15))] {
            let made = every_way(|| WithMinima {
                values: &values,
                most,
                trials,
            });
            let all = |made: &Packed| {
                let outer = [made.scale.to_bits(), made.minimum.to_bits()];
                (outer, made.scales, made.quants)
            };
            for other in &made {
                assert_eq!(all(other), all(&made[0]));
            }
        }
    }
}
