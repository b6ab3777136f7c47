//! MLX's affine format: `scale·quant + bias` by groups of a row (`mlx.core.quantize`,
//! mode `affine`).

use std::fmt;

use half::bf16;

#[cfg(target_arch = "x86_64")]
use crate::x86;
use crate::{
    Bytes, PackedError,
    vector::{LANES, Work, add_products, dispatch, half, total},
};

/// In what scales and biases are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// 16 bits, IEEE half precision.
    F16,
    /// 16 bits, the upper half of an `f32`.
    Bf16,
    /// 32 bits.
    F32,
}

impl ScaleType {
    /// Bytes of one.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// The `i`th of many, zero where there are fewer.
    #[inline(always)]
    fn at(self, bytes: &[u8], i: usize) -> f32 {
        match self {
            Self::F16 => bytes.as_chunks().0.get(i).map_or(0.0, |bytes| half(*bytes)),
            Self::Bf16 => bytes
                .as_chunks()
                .0
                .get(i)
                .map_or(0.0, |&[low, high]| f32::from_le_bytes([0, 0, low, high])),
            Self::F32 => bytes
                .as_chunks()
                .0
                .get(i)
                .map_or(0.0, |bytes| f32::from_le_bytes(*bytes)),
        }
    }

    /// [`Self::at`] with infinity and NaN as they are.
    fn exactly_at(self, bytes: &[u8], i: usize) -> f32 {
        match self {
            Self::F16 => bytes
                .as_chunks()
                .0
                .get(i)
                .map_or(0.0, |bytes| half::f16::from_le_bytes(*bytes).to_f32()),
            Self::Bf16 => bytes
                .as_chunks()
                .0
                .get(i)
                .map_or(0.0, |bytes| bf16::from_le_bytes(*bytes).to_f32()),
            Self::F32 => self.at(bytes, i),
        }
    }
}

/// Bits, group and scales of an affine format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Affine {
    bits: usize,
    group: usize,
    scales: ScaleType,
}

impl Affine {
    /// 4 or 8 bits, in groups of 32, 64 or 128 values.
    ///
    /// # Errors
    ///
    /// [`PackedError::Unsupported`] for others.
    pub fn new(bits: usize, group: usize, scales: ScaleType) -> Result<Self, PackedError> {
        let unsupported = |what, found: usize, supported| PackedError::Unsupported {
            what,
            found: found.to_string(),
            supported,
        };
        if !matches!(bits, 4 | 8) {
            return Err(unsupported("the number of bits", bits, "4 and 8"));
        }
        if !matches!(group, 32 | 64 | 128) {
            return Err(unsupported("the group size", group, "32, 64 and 128"));
        }
        Ok(Self {
            bits,
            group,
            scales,
        })
    }

    /// Bits of a value, without its share of scale and bias.
    pub const fn bits(self) -> usize {
        self.bits
    }

    /// Values that share a scale and a bias.
    pub const fn group(self) -> usize {
        self.group
    }

    /// In what scales and biases are stored.
    pub const fn scales(self) -> ScaleType {
        self.scales
    }

    /// Bytes of a group with its scale and bias.
    pub const fn block_bytes(self) -> usize {
        self.quant_bytes() + 2 * self.scales.bytes()
    }

    const fn quant_bytes(self) -> usize {
        self.group * self.bits / 8
    }
}

impl fmt::Display for Affine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bits, group, .. } = self;
        write!(formatter, "affine {bits} bits in groups of {group}")
    }
}

/// The parts of a matrix, each row-major.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    affine: Affine,
    quants: Bytes,
    scales: Bytes,
    biases: Bytes,
}

impl Groups {
    pub(crate) fn new(
        affine: Affine,
        [rows, columns]: [usize; 2],
        [quants, scales, biases]: [Bytes; 3],
    ) -> Result<Self, PackedError> {
        let groups = columns / affine.group;
        let all = rows * groups;
        for (what, part, each) in [
            ("the packed values", &quants, affine.quant_bytes()),
            ("the scales", &scales, affine.scales.bytes()),
            ("the biases", &biases, affine.scales.bytes()),
        ] {
            PackedError::check_length(what, part.len(), all * each)?;
        }
        let highest = ((1_u32 << affine.bits) - 1) as f32;
        for block in 0..all {
            let scale = affine.scales.exactly_at(scales.as_slice(), block);
            let bias = affine.scales.exactly_at(biases.as_slice(), block);
            let largest = scale.abs() * highest + bias.abs();
            let wrong = [("scale", scale), ("bias", bias), ("largest value", largest)];
            if let Some((what, value)) = wrong.into_iter().find(|(_, value)| !value.is_finite()) {
                return Err(PackedError::NotFinite {
                    what,
                    block,
                    row: block / groups,
                    column: block % groups * affine.group,
                    value,
                });
            }
        }
        Ok(Self {
            affine,
            quants,
            scales,
            biases,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.quants.len() + self.scales.len() + self.biases.len()
    }

    /// A group's quants, its scale and its bias.
    pub(crate) fn group(&self, group: usize) -> (&[u8], f32, f32) {
        let size = self.affine.quant_bytes();
        (
            &self.quants.as_slice()[group * size..][..size],
            self.affine.scales.at(self.scales.as_slice(), group),
            self.affine.scales.at(self.biases.as_slice(), group),
        )
    }

    /// Values of the groups from `first` on, as many as `output` holds.
    pub(crate) fn unpack(&self, first: usize, output: &mut [f32]) {
        let width = output.len();
        self.unpack_rows(first, [0, width], output, width);
    }

    /// Values of some rows, `width` of each, from whose first groups to the next there are
    /// `per_row` groups and, in the output, `stride` values.
    pub(crate) fn unpack_rows(
        &self,
        first: usize,
        [per_row, width]: [usize; 2],
        output: &mut [f32],
        stride: usize,
    ) {
        let this = self.slices();
        dispatch(Each {
            this,
            first,
            per_row,
            output,
            stride: stride.max(1),
            width,
        });
    }

    pub(crate) fn dot(&self, first: usize, vector: &[f32]) -> f32 {
        let this = self.slices();
        dispatch(Dot {
            this,
            first,
            vector,
        })
    }

    fn slices(&self) -> Slices<'_> {
        Slices {
            affine: self.affine,
            quants: self.quants.as_slice(),
            scales: self.scales.as_slice(),
            biases: self.biases.as_slice(),
        }
    }
}

#[derive(Clone, Copy)]
struct Slices<'a> {
    affine: Affine,
    quants: &'a [u8],
    scales: &'a [u8],
    biases: &'a [u8],
}

struct Each<'a> {
    this: Slices<'a>,
    first: usize,
    /// Groups from a row to the next.
    per_row: usize,
    output: &'a mut [f32],
    /// Values from a row to the next.
    stride: usize,
    width: usize,
}

impl Each<'_> {
    /// Calls with the first group and the output of each row.
    #[inline(always)]
    fn rows(self, one: impl Fn(usize, &mut [f32])) {
        for (row, output) in self.output.chunks_mut(self.stride).enumerate() {
            one(self.first + row * self.per_row, &mut output[..self.width]);
        }
    }
}

impl Work for Each<'_> {
    type Output = ();

    fn plain(self) {
        let this = self.this;
        match this.affine.bits {
            4 => self.rows(|first, output| this.each(first, output, four_bits)),
            _ => self.rows(|first, output| this.each(first, output, eight_bits)),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run<S: x86::Sixteen>(self, simd: S) {
        let this = self.this;
        match this.affine.bits {
            4 => self.rows(
                #[inline(always)]
                |first, output| {
                    this.each(
                        first,
                        output,
                        #[inline(always)]
                        |quants, scale, bias, out| x86::affine_4(simd, quants, scale, bias, out),
                    );
                },
            ),
            _ => self.rows(
                #[inline(always)]
                |first, output| {
                    this.each(
                        first,
                        output,
                        #[inline(always)]
                        |quants, scale, bias, out| x86::affine_8(simd, quants, scale, bias, out),
                    );
                },
            ),
        }
    }
}

struct Dot<'a> {
    this: Slices<'a>,
    first: usize,
    vector: &'a [f32],
}

impl Work for Dot<'_> {
    type Output = f32;

    fn plain(self) -> f32 {
        match self.this.affine.bits {
            4 => self.this.each_dot(self.first, self.vector, four_bits),
            _ => self.this.each_dot(self.first, self.vector, eight_bits),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run<S: x86::Sixteen>(self, simd: S) -> f32 {
        let mut sums = x86::Sums::new(simd);
        match self.this.affine.bits {
            4 => self.this.each_step(
                self.first,
                self.vector,
                #[inline(always)]
                |quants, scale, bias, vector| {
                    let mut values = [0.0; STEP];
                    x86::affine_4(simd, quants, scale, bias, &mut values);
                    sums.add(simd, vector, &values);
                },
            ),
            _ => self.this.each_step(
                self.first,
                self.vector,
                #[inline(always)]
                |quants, scale, bias, vector| {
                    let mut values = [0.0; STEP];
                    x86::affine_8(simd, quants, scale, bias, &mut values);
                    sums.add(simd, vector, &values);
                },
            ),
        }
        sums.total(simd)
    }
}

/// Values that are unpacked at a time: the smallest group.
const STEP: usize = 32;

impl Slices<'_> {
    #[inline(always)]
    fn each<const BYTES: usize>(
        self,
        first: usize,
        output: &mut [f32],
        one: impl Fn(&[u8; BYTES], f32, f32, &mut [f32; STEP]),
    ) {
        let quants = self.quants[first * self.affine.quant_bytes()..]
            .as_chunks()
            .0;
        let steps = self.affine.group / STEP;
        let groups = output.chunks_exact_mut(self.affine.group);
        for ((group, output), quants) in groups.enumerate().zip(quants.chunks_exact(steps)) {
            let scale = self.affine.scales.at(self.scales, first + group);
            let bias = self.affine.scales.at(self.biases, first + group);
            for (quants, output) in quants.iter().zip(output.as_chunks_mut().0) {
                one(quants, scale, bias, output);
            }
        }
    }

    #[inline(always)]
    fn each_dot<const BYTES: usize>(
        self,
        first: usize,
        vector: &[f32],
        one: impl Fn(&[u8; BYTES], f32, f32, &mut [f32; STEP]),
    ) -> f32 {
        let mut sums = [0.0; LANES];
        self.each_step(
            first,
            vector,
            #[inline(always)]
            |quants, scale, bias, vector| {
                let mut values = [0.0; STEP];
                one(quants, scale, bias, &mut values);
                add_products(&mut sums, vector, &values);
            },
        );
        total(sums)
    }

    /// Calls with quants, scale and bias, and as many values of the vector.
    #[inline(always)]
    fn each_step<const BYTES: usize>(
        self,
        first: usize,
        vector: &[f32],
        mut step: impl FnMut(&[u8; BYTES], f32, f32, &[f32; STEP]),
    ) {
        let quants = self.quants[first * self.affine.quant_bytes()..]
            .as_chunks()
            .0;
        let steps = self.affine.group / STEP;
        let groups = vector.chunks_exact(self.affine.group);
        for ((group, vector), quants) in groups.enumerate().zip(quants.chunks_exact(steps)) {
            let scale = self.affine.scales.at(self.scales, first + group);
            let bias = self.affine.scales.at(self.biases, first + group);
            for (quants, vector) in quants.iter().zip(vector.as_chunks().0) {
                step(quants, scale, bias, vector);
            }
        }
    }
}

/// The first value is in the low bits.
#[inline(always)]
fn four_bits(quants: &[u8; 16], scale: f32, bias: f32, out: &mut [f32; STEP]) {
    let words = quants.as_chunks::<4>().0.iter();
    for (word, out) in words.zip(out.as_chunks_mut::<8>().0) {
        let word = u32::from_le_bytes(*word);
        for (i, out) in out.iter_mut().enumerate() {
            *out = (word >> (4 * i) & 15) as i32 as f32 * scale + bias;
        }
    }
}

#[inline(always)]
fn eight_bits(quants: &[u8; 32], scale: f32, bias: f32, out: &mut [f32; STEP]) {
    for (out, quant) in out.iter_mut().zip(quants) {
        *out = f32::from(*quant) * scale + bias;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::vector::every_way;

    /// What a value is by the format's definition.
    fn plainly(groups: &Groups, at: usize) -> f32 {
        let Affine {
            bits,
            group,
            scales,
        } = groups.affine;
        let byte = groups.quants.as_slice()[at * bits / 8];
        let quant = match bits {
            4 => byte >> (at % 2 * 4) & 15,
            _ => byte,
        };
        let scale = scales.exactly_at(groups.scales.as_slice(), at / group);
        let bias = scales.exactly_at(groups.biases.as_slice(), at / group);
        f32::from(quant) * scale + bias
    }

    /// [`Each`] with an output of its own.
    struct Bits<'a>(Slices<'a>, usize);

    impl Bits<'_> {
        fn by(self, run: impl FnOnce(Each<'_>)) -> Vec<f32> {
            let mut output = vec![0.0; 256];
            run(Each {
                this: self.0,
                first: self.1,
                per_row: 0,
                output: &mut output,
                stride: 256,
                width: 256,
            });
            output
        }
    }

    impl Work for Bits<'_> {
        type Output = Vec<f32>;

        fn plain(self) -> Vec<f32> {
            self.by(|each| each.plain())
        }

        #[cfg(target_arch = "x86_64")]
        fn run<S: x86::Sixteen>(self, simd: S) -> Vec<f32> {
            self.by(|each| each.run(simd))
        }
    }

    #[test]
    fn fast_is_what_the_format_says() {
        for bits in [4, 8] {
            for group in [32, 64, 128] {
                for scales in [ScaleType::F16, ScaleType::Bf16, ScaleType::F32] {
                    let affine = Affine::new(bits, group, scales).unwrap();
                    let shape = [3, 256];
                    let part = |each: usize, seed: usize| {
                        let bytes = (0..3 * 256 / group * each)
                            // Exponents below the largest: nothing overflows.
                            .map(|i| {
                                ((i * 89 + seed) % 251) as u8 & if each > 4 { 255 } else { 0xbb }
                            });
                        Bytes::from(bytes.collect::<Vec<_>>())
                    };
                    let parts = [
                        part(affine.quant_bytes().max(5), 3),
                        part(scales.bytes(), 5),
                        part(scales.bytes(), 7),
                    ];
                    let groups = Groups::new(affine, shape, parts).unwrap();
                    let mut values = vec![0.0; 256];
                    groups.unpack(256 / group, &mut values);
                    for (i, value) in values.iter().enumerate() {
                        let right = plainly(&groups, 256 + i);
                        assert_eq!(value.to_bits(), right.to_bits(), "{affine} {scales:?} {i}");
                    }
                    for output in every_way(|| Bits(groups.slices(), 256 / group)) {
                        assert!(output == values, "{affine} {scales:?}");
                    }
                    let vector: Vec<f32> = (0..256).map(|i| (i % 19) as f32 - 9.5).collect();
                    let sums = every_way(|| Dot {
                        this: groups.slices(),
                        first: 256 / group,
                        vector: &vector,
                    });
                    assert!(
                        sums.iter().all(|sum| *sum == sums[0]),
                        "{affine} {scales:?}"
                    );
                }
            }
        }
    }
}
