//! Loops over f32 that the compiler turns into vector instructions, for each
//! instruction set once, chosen at run time.

/// `vectorised!(<'a>(name: &'a Type, …) -> Output { … })` runs a block compiled
/// for the best instruction set that the processor has. It is given the
/// variables of those names. What it calls must be inlined into it, or is
/// compiled for the oldest.
///
/// A closure will not do: it would be a function of its own, called from one
/// place for each instruction set, and so too large to be inlined into any.
macro_rules! vectorised {
    (<$a:lifetime>($($name:ident: $of:ty),* $(,)?) $(-> $output:ty)? $work:block) => {{
        struct Work<$a> {
            $($name: $of),*
        }
        impl<$a> pulp::NullaryFnOnce for Work<$a> {
            type Output = $crate::cpu::vector::output!($($output)?);

            #[inline(always)]
            fn call(self) -> Self::Output {
                let Self { $($name),* } = self;
                $work
            }
        }
        pulp::Arch::new().dispatch(Work { $($name),* })
    }};
}

/// The type of what a block returns, `()` if none is named.
macro_rules! output {
    () => {
        ()
    };
    ($output:ty) => {
        $output
    };
}

pub(super) use {output, vectorised};

/// Sums are kept in this many parts, one per lane of the widest register and
/// two registers deep: it makes them vectorisable, and the same on every
/// processor.
const LANES: usize = 32;

/// `eˣ` to about 1e-7 relative, for `x` between −87 and 88, at whose value it
/// stays beyond. NaN stays NaN.
///
/// The range is reduced by multiples of ln 2, and the rest done by Cephes'
/// polynomial (`expf.c`).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    const HIGHEST: f32 = 88.0;
    // Adding it rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // `clamp` and `min` would lose NaN, which must be seen.
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if x > HIGHEST { HIGHEST } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    // ln 2 in two parts, the first exact in few bits.
    let x = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut y = 1.987_569_1e-4;
    y = y * x + 1.398_2e-3;
    y = y * x + 8.333_452e-3;
    y = y * x + 4.166_579_6e-2;
    y = y * x + 1.666_666_5e-1;
    y = y * x + 0.500_000_1;
    let y = y * x * x + x + 1.0;
    // A factor rather than bits added to the exponent: NaN has to stay NaN, whichever it is.
    y * f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// `tanh x` to about 1e-7 relative; NaN stays NaN. Cephes' `tanhf.c`: a
/// polynomial near zero, beyond it `1 − 2/(e²ˣ + 1)`.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let square = x * x;
    let mut near = -5.704_988_7e-3;
    near = near * square + 2.063_908_8e-2;
    near = near * square - 5.373_971_6e-2;
    near = near * square + 1.333_144_2e-1;
    near = near * square - 3.333_328e-1;
    let near = near * square * x + x;
    let far = (1.0 - 2.0 / (exp(2.0 * size) + 1.0)).copysign(x);
    if size > 0.625 { far } else { near }
}

/// `Σ f(i)` over `0..n`.
#[inline(always)]
pub(super) fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let whole = n / LANES * LANES;
    let mut at = 0;
    while at < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(at + lane);
        }
        at += LANES;
    }
    for (lane, sum) in lanes.iter_mut().enumerate().take(n - whole) {
        *sum += f(whole + lane);
    }
    lanes.iter().sum()
}

/// The largest of the values, or minus infinity; NaN may be passed over.
#[inline(always)]
pub(super) fn highest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for (highest, value) in lanes.iter_mut().zip(values) {
            *highest = if *value > *highest { *value } else { *highest };
        }
    }
    let of_lanes = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    rest.iter().copied().fold(of_lanes, f32::max)
}

/// Replaces each value by `exp(value − from)`, and returns their sum.
#[inline(always)]
pub(super) fn exponentials(values: &mut [f32], from: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (whole, rest) = values.as_chunks_mut::<LANES>();
    for values in whole {
        for (sum, value) in lanes.iter_mut().zip(values) {
            *value = exp(*value - from);
            *sum += *value;
        }
    }
    for (sum, value) in lanes.iter_mut().zip(rest) {
        *value = exp(*value - from);
        *sum += *value;
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_that_of_f64() {
        let worst = (-8_600..8_800)
            .map(|i| {
                let x = i as f32 * 0.01;
                let right = f64::from(x).exp();
                ((f64::from(exp(x)) - right) / right).abs()
            })
            .fold(0.0, f64::max);
        assert!(worst < 2e-7, "{worst}");
    }

    #[test]
    fn tanh_is_close_to_that_of_f64() {
        let worst = (-20_000..20_000)
            .filter(|i| *i != 0)
            .map(|i| {
                let x = i as f32 * 0.000_7;
                let right = f64::from(x).tanh();
                ((f64::from(tanh(x)) - right) / right).abs()
            })
            .fold(0.0, f64::max);
        assert!(worst < 2e-7, "{worst}");
        assert_eq!([tanh(0.0), tanh(1e30), tanh(-1e30)], [0.0, 1.0, -1.0]);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn exp_keeps_nan_and_stays_finite() {
        for nan in [
            f32::NAN,
            f32::from_bits(0xffff_ffff),
            f32::from_bits(0x7fc0_0001),
        ] {
            assert!(exp(nan).is_nan());
        }
        let nan = &f32::NAN;
        assert!(vectorised!(<'a>(nan: &'a f32) -> f32 { exp(*nan) }).is_nan());
        assert!(exp(-1e30) < 1e-37);
        assert!(exp(1e30).is_finite());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sums_take_in_what_is_left_over() {
        for n in [0, 1, 31, 32, 33, 100] {
            assert_eq!(sum(n, |i| i as f32), (n * n.saturating_sub(1) / 2) as f32);
        }
        let values: Vec<f32> = (0..77).map(|i| if i == 70 { 5.0 } else { 1.0 }).collect();
        assert_eq!(highest(&values), 5.0);
    }
}
