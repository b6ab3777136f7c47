//! What the kernels have in common.

#[cfg(target_arch = "x86_64")]
use crate::x86::Sixteen;

/// Work on blocks, which goes faster with some processors' instructions.
pub(crate) trait Work {
    /// What comes of it.
    type Output;

    /// In plain loops.
    fn plain(self) -> Self::Output;

    /// With the instructions for sixteen values. What it calls must be inlined into it, or is
    /// compiled for the oldest processors: `#[inline(always)]`.
    #[cfg(target_arch = "x86_64")]
    fn run<S: Sixteen>(self, simd: S) -> Self::Output;
}

/// Does the work with the best instructions that the processor has.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn dispatch<W: Work>(work: W) -> W::Output {
    work.plain()
}

/// Does the work with the best instructions that the processor has.
#[cfg(target_arch = "x86_64")]
pub(crate) fn dispatch<W: Work>(work: W) -> W::Output {
    use pulp::{Arch, Simd};

    match Arch::new() {
        Arch::V4(simd) => Simd::vectorize(simd, Run(simd, work)),
        Arch::V3(simd) => Simd::vectorize(simd, Run(simd, work)),
        _ => work.plain(),
    }
}

#[cfg(target_arch = "x86_64")]
struct Run<S, W>(S, W);

#[cfg(target_arch = "x86_64")]
impl<S: Sixteen, W: Work> pulp::NullaryFnOnce for Run<S, W> {
    type Output = W::Output;

    #[inline(always)]
    fn call(self) -> W::Output {
        self.1.run(self.0)
    }
}

/// The work by each of the ways that this processor has, to be compared.
#[cfg(test)]
pub(crate) fn every_way<W: Work>(work: impl Fn() -> W) -> Vec<W::Output> {
    let ways = [Some(work().plain()), Some(dispatch(work()))].into_iter();
    #[cfg(target_arch = "x86_64")]
    let ways = {
        let simd = pulp::x86::V3::try_new();
        ways.chain([simd.map(|simd| pulp::Simd::vectorize(simd, Run(simd, work())))])
    };
    ways.flatten().collect()
}

/// Sums that a dot product is kept in, by the column modulo this: vectorisable, and the
/// same on every processor.
pub(crate) const LANES: usize = 32;

/// An `f16` as `f32`, looked up: computed, it would take as long as four of the ten
/// vector instructions that a block of 32 values takes, and of the units that do those.
/// The scales of a matrix are within a few powers of two, so that what is looked up is
/// in a core's nearest cache.
///
/// Infinity and NaN give something finite: they are refused when a matrix is made.
#[inline(always)]
pub(crate) fn half(bytes: [u8; 2]) -> f32 {
    HALVES[usize::from(u16::from_le_bytes(bytes))]
}

static HALVES: [f32; 1 << 16] = halves();

#[allow(
    long_running_const_eval,
    clippy::large_stack_arrays,
    reason = "it runs in the compiler, and ends"
)]
const fn halves() -> [f32; 1 << 16] {
    let mut all = [0.0; 1 << 16];
    let mut bits: u32 = 0;
    while bits < 1 << 16 {
        // As the bits of an `f32`, exponent and fraction are 2¹¹² times too small, also where it
        // is subnormal.
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
        all[bits as usize] = f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16);
        bits += 1;
    }
    all
}

/// Adds the products of whole blocks to the sums of their lanes. A product is added before it is
/// rounded, for which processors have had an instruction since 2013; older ones take many for the
/// same bits.
#[inline(always)]
pub(crate) fn add_products<const N: usize>(
    sums: &mut [f32; LANES],
    left: &[f32],
    right: &[f32; N],
) {
    let (left, right) = (left.as_chunks::<LANES>().0, right.as_chunks::<LANES>().0);
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            sums[lane] = left[lane].mul_add(right[lane], sums[lane]);
        }
    }
}

/// The sum of the lanes, by halves.
#[inline(always)]
pub(crate) fn total(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_half_is_that_of_the_crate_half() {
        for bits in 0..=u16::MAX {
            let right = half::f16::from_bits(bits);
            if right.is_finite() {
                let ours = half(bits.to_le_bytes());
                assert_eq!(ours.to_bits(), right.to_f32().to_bits(), "{bits:04x}");
            }
        }
    }

    #[test]
    fn lanes_are_added_up() {
        let mut sums = [0.0; LANES];
        let left: Vec<f32> = (0..64).map(|i| i as f32).collect();
        add_products(&mut sums, &left, &[0.5; 64]);
        assert_eq!(total(sums), 1008.0);
    }
}
